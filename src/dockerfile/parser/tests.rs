//! Lexing, typed instructions, several errors at once.

use crate::*;
use keelway_model::{Diagnostics, SourceText};
use proptest::prelude::*;

fn read(text: &str) -> Result<Dockerfile, Diagnostics> {
    parse(&SourceText::new("Dockerfile", text))
}
fn good(text: &str) -> Dockerfile {
    read(text).unwrap_or_else(|e| panic!("{text}\n{e}"))
}
fn bad(text: &str) -> String {
    match read(text) {
        Err(e) => e.to_string(),
        Ok(_) => panic!("accepted: {text}"),
    }
}
/// The only instruction after `FROM x`.
fn one(line: &str) -> Kind {
    let mut file = good(&format!("FROM x\n{line}"));
    assert_eq!(file.stages[0].instructions.len(), 1, "{line}");
    file.stages.remove(0).instructions.remove(0).kind
}
fn texts(words: &[Word]) -> Vec<&str> {
    words.iter().map(|w| w.text.as_str()).collect()
}

#[test]
fn stages_and_global_arguments() {
    let f = good(
        "ARG V=1 W\nfrom --platform=$P a:${V} As Build\nRUN x\nFROM build\n\n# c\nCOPY --from=build /a /b/\n",
    );
    assert_eq!(f.globals.len(), 1);
    let [first, second] = &f.stages[..] else { panic!() };
    assert_eq!((first.base.text.as_str(), first.name.as_ref().unwrap().text.as_str()), ("a:${V}", "build"));
    assert_eq!(first.platform.as_ref().unwrap().text, "$P");
    assert_eq!(second.base.text, "build");
    assert_eq!(first.instructions[0].text, "RUN x");
    let Kind::Copy(copy) = &second.instructions[0].kind else { panic!() };
    assert_eq!(copy.from.as_ref().unwrap().text, "build");
    assert_eq!((texts(&copy.sources), copy.dest.text.as_str()), (vec!["/a"], "/b/"));
}

#[test]
fn spans_lead_back_to_the_source() {
    let text =
        "FROM x\nENV a=1 \\\n# note\n    b=${c:-d} \\\n\n    e='f g'\nCOPY \\\n  --chown=u:g  src  dst\n";
    let f = good(text);
    let at = |w: &Word| &text[w.span.range(text.len())];
    let Kind::Env(pairs) = &f.stages[0].instructions[0].kind else { panic!() };
    let found: Vec<_> = pairs.iter().map(|(k, v)| (at(k), at(v))).collect();
    assert_eq!(found, [("a", "1"), ("b", "${c:-d}"), ("e", "'f g'")]);
    let Kind::Copy(copy) = &f.stages[0].instructions[1].kind else { panic!() };
    assert_eq!(at(copy.chown.as_ref().unwrap()), "--chown=u:g");
    assert_eq!((at(&copy.sources[0]), at(&copy.dest)), ("src", "dst"));
    assert_eq!(&text[f.stages[0].instructions[1].span.range(text.len())], "COPY \\\n  --chown=u:g  src  dst");
    let blank = f.stages[0].instructions[0].written.blank.unwrap();
    assert_eq!(f.source.line_col(blank.start), (5, 1));
}

#[test]
fn directives() {
    let f = good(
        "\u{feff}#!/usr/bin/env x\n# Syntax = docker/dockerfile:1.7\n#ESCAPE=`\n# check=skip=all\nFROM x\nRUN a `\n b\\\n",
    );
    assert_eq!(f.escape, '`');
    assert_eq!(
        f.directives.iter().map(|d| d.key.as_str()).collect::<Vec<_>>(),
        ["syntax", "escape", "check"]
    );
    let Kind::Run(run) = &f.stages[0].instructions[0].kind else { panic!() };
    assert!(matches!(&run.command, Command::Shell(w) if w.text == "a  b\\"), "{run:?}");
    assert_eq!(good("# other=1\n# escape=`\nFROM x\n").escape, '\\', "an unknown key ends the directives");
    assert_eq!(good("\n# escape=`\nFROM x\n").escape, '\\', "so does a blank line");
    assert!(bad("# escape=x\nFROM x").contains("1:10"), "{}", bad("# escape=x\nFROM x"));
    assert!(bad("# escape=`\n# escape=`\nFROM x").contains("only one escape"));
    let evil = bad("# syntax=evil/frontend:1\nFROM x");
    assert!(evil.contains("D0012") && evil.contains("evil/frontend:1"), "{evil}");
    for fine in ["docker/dockerfile", "docker.io/docker/dockerfile:1@sha256:00", "docker/dockerfile:labs"] {
        good(&format!("# syntax={fine}\nFROM x"));
    }
    bad("# syntax=docker/dockerfile-upstream:master\nFROM x");
}

#[test]
fn heredocs() {
    let Kind::Run(run) = one("RUN <<EOF\na\n\tb\nEOF\n") else { panic!() };
    assert_eq!(run.heredocs[0].content, "a\n\tb\n");
    assert!(run.heredocs[0].expand && run.heredocs[0].fd == 0);
    let Kind::Run(run) = one("RUN cat <<-'A' 3<<\"B\" > x\n\ta\n\tA\nB2\nB\n") else { panic!() };
    let [a, b] = &run.heredocs[..] else { panic!("{run:?}") };
    assert_eq!(
        (a.name.as_str(), a.content.as_str(), a.body().as_str(), a.expand),
        ("A", "\ta\n", "a\n", false)
    );
    assert_eq!((b.name.as_str(), b.content.as_str(), b.fd, b.expand), ("B", "B2\n", 3, false));
    let Kind::Copy(copy) = one("COPY a <<f1 <<f2 /d/\n$x\nf1\nFROM nothing\nf2\n") else { panic!() };
    assert_eq!(texts(&copy.sources), ["a"]);
    assert_eq!(
        copy.contents.iter().map(|h| (h.name.as_str(), h.content.as_str())).collect::<Vec<_>>(),
        [("f1", "$x\n"), ("f2", "FROM nothing\n")]
    );
    let Kind::Onbuild(t) = one("ONBUILD RUN <<E\nx\nE\n") else { panic!() };
    assert_eq!(t.text, "RUN <<E\nx\nE");
    let again = parse_trigger(&SourceText::new("base", t.text.clone())).unwrap();
    let Kind::Run(run) = &again.kind else { panic!() };
    assert_eq!((run.heredocs[0].content.as_str(), again.text.as_str()), ("x\n", "RUN <<E"));
    // None of these opens one.
    for line in [
        "RUN a <<<b",
        "RUN echo $((1<<2))",
        "RUN [\"cat\", \"<<EOF\"]",
        "CMD cat <<EOF",
        "RUN it's <<EOF",
        "RUN cat << EOF",
    ] {
        good(&format!("FROM x\n{line}\nUSER y\n"));
    }
    assert!(bad("FROM x\nRUN <<EOF\na\n").contains("2:5: error[D0006]: heredoc \"EOF\" is not ended"));
    assert!(bad("FROM x\nCOPY a <<E\nE\n").contains("destination"));
    assert!(bad("FROM x\nCOPY <<../e /x\n../e\n").contains("file name"));
}

#[test]
fn json_forms() {
    assert_eq!(one(r#"CMD ["a", "b c"]"#), Kind::Cmd(Command::Exec(vec!["a".into(), "b c".into()])));
    assert!(matches!(one("CMD ['a']"), Kind::Cmd(Command::Shell(w)) if w.text == "['a']"));
    assert!(matches!(one(r#"RUN ["a""#), Kind::Run(Run { command: Command::Shell(_), .. })));
    assert!(bad("FROM x\nCMD [1]").contains("D0009"));
    assert!(bad("FROM x\nSHELL sh -c").contains("SHELL takes a JSON array"));
    let Kind::Copy(copy) = one(r#"COPY ["a b", "c d/"]"#) else { panic!() };
    assert_eq!((texts(&copy.sources), copy.dest.text.as_str()), (vec!["a b"], "c d/"));
    assert!(bad("FROM x\nRUN [\"a\\u0000\"]").contains("NUL"));
}

#[test]
fn every_error_at_once_with_place_and_hint() {
    let e = bad(
        "FROM\nRUM x\nFROM x\nCOPY --frm=a b c\nCOPY a\nENV\nENV a=1 b\nHEALTHCHECK --interval=3 CMD x\nUSER a=b c d\nSHELL x\n",
    );
    for part in [
        "Dockerfile:1:1: error[D0005]: FROM takes",
        "Dockerfile:2:1: error[D0003]: unknown instruction \"RUM\"\n  hint: did you mean RUN?",
        "Dockerfile:4:6: error[D0004]: COPY has no flag --frm\n  hint: did you mean --from?",
        "Dockerfile:5:1: error[D0005]: COPY takes at least one source",
        "Dockerfile:6:1: error[D0005]: ENV takes",
        "Dockerfile:7:9: error[D0005]: \"b\" has no =",
        "Dockerfile:8:13: error[D0010]: \"3\" is not a duration",
        "Dockerfile:10:7: error[D0009]",
    ] {
        assert!(e.contains(part), "{part}\n---\n{e}");
    }
    assert!(bad("RUN x\nFROM y").contains("before the first FROM"));
    assert!(bad("# only\n\n").contains("no instructions"));
    assert!(bad("ARG x\n").contains("no FROM"));
    assert!(bad("FROM x AS 1a").contains("D0008"));
    for line in
        ["ONBUILD ONBUILD RUN x", "ONBUILD FROM x", "ONBUILD MAINTAINER x", "ONBUILD", "ONBUILD NOPE x"]
    {
        bad(&format!("FROM x\n{line}"));
    }
    assert!(bad("FROM x\nCOPY --from=a --from=b c d").contains("twice"));
    assert!(bad("FROM x\nCOPY --link=yes c d").contains("true or false"));
    assert!(bad("FROM x\nCMD --x y").contains("CMD has no flag --x"));
}

#[test]
fn mounts() {
    let Kind::Run(run) = one(
        "RUN --mount=type=cache,dst=/c,id=$X,sharing=locked --mount=from=a,src=/s,target=/t,rw --network=none --security=sandbox make",
    ) else {
        panic!()
    };
    assert_eq!(run.mounts.iter().map(|m| m.kind).collect::<Vec<_>>(), [MountKind::Cache, MountKind::Bind]);
    assert_eq!(
        run.mounts[1].options.iter().map(|(k, _)| k.as_str()).collect::<Vec<_>>(),
        ["from", "source", "target", "readwrite"]
    );
    assert_eq!(run.network.unwrap().text, "none");
    assert!(
        bad("FROM x\nRUN --mount=bind-propagation=suid x")
            .contains("invalid mount option \"bind-propagation\"")
    );
    assert!(bad("FROM x\nRUN --mount=type=cach x").contains("did you mean cache?"));
    assert!(bad("FROM x\nRUN --mount=type=secret,required=maybe x").contains("no fitting value"));
}

#[test]
fn health_checks() {
    let Kind::Healthcheck(h) =
        one("HEALTHCHECK --interval=1m30s --timeout=1.5s --start-period=0s --retries=3 CMD a  b")
    else {
        panic!()
    };
    assert_eq!((h.interval, h.timeout, h.start_period, h.retries), (90_000_000_000, 1_500_000_000, 0, 3));
    assert!(matches!(h.test, Some(Command::Shell(w)) if w.text == "a  b"));
    assert!(matches!(one("HEALTHCHECK none"), Kind::Healthcheck(Health { test: None, .. })));
    for line in [
        "--interval=1us CMD x",
        "--retries=-1 CMD x",
        "NONE x",
        "CMD",
        "TCP 80",
        "",
        "--timeout=9999999999h CMD x",
        "--interval=m CMD x",
    ] {
        bad(&format!("FROM x\nHEALTHCHECK {line}"));
    }
}

#[test]
fn bounds() {
    let long = "a".repeat(MAX_LINE - 4);
    good(&format!("FROM x\nRUN {long}"));
    assert!(bad(&format!("FROM x\nRUN {long}a")).contains("2:1: error[D0001]"));
    assert!(bad(&"#".repeat(MAX_FILE + 1)).contains("D0001"));
    let many = format!("FROM x\n{}", "RUN true\n".repeat(MAX_INSTRUCTIONS - 1));
    assert_eq!(good(&many).stages[0].instructions.len(), MAX_INSTRUCTIONS - 1);
    assert!(bad(&format!("{many}RUN true\n")).contains("10001:1: error[D0001]"));
    assert!(bad(&"FROM x\n".repeat(MAX_STAGES + 1)).contains("1001:1: error[D0001]"));
    let wrong = format!("FROM x\n{}", "NOPE\n".repeat(100_000));
    assert_eq!(read(&wrong).unwrap_err().items.len(), MAX_ERRORS);
    good(&format!("FROM x\nENV a={}{}", "${A:-".repeat(10_000), "}".repeat(10_000)));
    let onbuilds = "ONBUILD ".repeat(5_000);
    bad(&format!("FROM x\n{onbuilds}RUN x"));
}

#[test]
fn fuzz_entries_hold() {
    let seeds: [&[u8]; 4] = [
        b"# escape=`\nFROM a AS b\nRUN --mount=type=cache,target=/x <<EOF `\nx\nEOF\nCOPY --from=b [\"a\",\"b\"]\n",
        b"ONBUILD COPY <<-\"E\" 3<<F /x\nE\nF\nHEALTHCHECK --interval=3s CMD x\nENV a=b\\\n\n c='d'",
        b"${a:-${b%%*.}}${c//x/y}'\"`\\$",
        b"**/a[b-c]\\*\n!x/**/y?\0x/a/b",
    ];
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    };
    for round in 0..3000 {
        let mut data = seeds[round % seeds.len()].to_vec();
        for _ in 0..random() % 8 {
            let at = random() % data.len();
            match random() % 4 {
                0 => data[at] = random() as u8,
                1 => data.truncate(at.max(1)),
                2 => data.insert(at, b"\n\\\"'$<{}[]*"[random() % 11]),
                _ => data.extend_from_within(at..),
            }
        }
        fuzz::fuzz_dockerfile(&data);
        fuzz::fuzz_word(&data);
        fuzz::fuzz_ignore(&data);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_text_is_read_or_refused(text in "(FROM|RUN|COPY|ENV|ARG|[ \\\\`\n\t#<='\"\\[\\]$a-c-]){0,40}") {
        fuzz::fuzz_dockerfile(text.as_bytes());
    }
    /// Where a line is broken by continuation never changes what is read.
    #[test]
    fn continuation_is_invisible(words in prop::collection::vec("[a-z]{1,6}", 1..8), breaks in prop::collection::vec(any::<bool>(), 8)) {
        let flat = format!("FROM x\nRUN {}", words.join(" "));
        let mut broken = "FROM x\nRUN".to_owned();
        for (word, b) in words.iter().zip(breaks) {
            broken += if b { " \\\n# c\n" } else { " " };
            broken += word;
        }
        let command = |t: &str| match good(t).stages.remove(0).instructions.remove(0).kind {
            Kind::Run(Run { command: Command::Shell(w), .. }) => w.text,
            k => panic!("{k:?}"),
        };
        prop_assert_eq!(command(&flat), command(&broken));
    }
}
