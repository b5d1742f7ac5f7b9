//! Every rule in one table: what it finds, what it leaves alone. That it can be switched off is tried with each.

use super::super::tests::{options, pinned};
use super::*;
use keelway_dockerfile::parse;
use keelway_model::{Diagnostic, SourceText};
use std::collections::BTreeSet;

/// A file and what is around it.
#[derive(Clone, Default)]
struct Case {
    text: String,
    ignore: &'static str,
    args: &'static [(&'static str, &'static str)],
    target: Option<&'static str>,
    /// Whether the images `base` and `shell` are pinned, as for a build.
    pinned: bool,
}

fn file(text: &str) -> Case {
    Case { text: text.to_owned(), ..Case::default() }
}
/// The same, as in a build whose bases are known.
fn built(text: &str) -> Case {
    Case { pinned: true, ..file(text) }
}
fn with(text: &str, args: &'static [(&'static str, &'static str)]) -> Case {
    Case { args, ..file(text) }
}
fn ignoring(ignore: &'static str, text: &str) -> Case {
    Case { ignore, ..file(text) }
}

fn found(case: &Case) -> Diagnostics {
    let source = SourceText::new("Dockerfile", case.text.clone());
    let file = parse(&source).unwrap_or_else(|e| panic!("{}\n{e}", case.text));
    let args = case.args.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let options = BuildOptions { args, target: case.target.map(Into::into), ..options() };
    let build = Build::new(file, options).unwrap_or_else(|e| panic!("{}\n{e}", case.text));
    let (bases, look) = match case.pinned {
        false => (Bases::new(), Look::File),
        true => {
            let shell = pinned("shell", |c| c.config.shell = vec!["/bin/x".into()]);
            let other = pinned("other", |c| c.platform = "linux/s390x".parse().unwrap());
            ([pinned("base", |_| ()), shell, other].into(), Look::Build)
        }
    };
    build.lint(&bases, &Ignore::parse(case.ignore.as_bytes()).unwrap(), look)
}

/// The lines that a rule found something in.
fn lines(case: &Case, rule: Rule) -> Vec<usize> {
    let found = found(case);
    let place = |d: &Diagnostic| found.sources[0].line_col(d.span.start).0;
    found.items.iter().filter(|d| d.code == rule.name()).map(place).collect()
}

/// What is found in which lines; no lines, and nothing may be found.
fn table() -> Vec<(Rule, Case, &'static [usize])> {
    use Rule::*;
    vec![
        (ConsistentInstructionCasing, file("From scratch\nFROM scratch\nCOPY a b\n"), &[1]),
        (ConsistentInstructionCasing, file("FROM scratch\nCOPY a b\ncopy a c\nCopy a d\n"), &[3, 4]),
        (ConsistentInstructionCasing, file("from scratch\ncopy a b\nCOPY a c\n"), &[3]),
        (ConsistentInstructionCasing, file("from scratch\ncopy a b\n"), &[]),
        (ConsistentInstructionCasing, file("arg X=1\nFROM scratch\nCOPY a b\n"), &[]),
        (
            CopyIgnoredFile,
            ignoring("a\nd/*.o", "FROM scratch\nCOPY a /\nADD ./d/x.o b /\nCOPY b /\n"),
            &[2, 3],
        ),
        (CopyIgnoredFile, ignoring("a", "FROM scratch\nARG X=a\nCOPY $X/inside /\n"), &[3]),
        (CopyIgnoredFile, ignoring("*", "FROM scratch\nCOPY . /\n"), &[2]),
        (CopyIgnoredFile, ignoring(".*", "FROM scratch\nCOPY . /\n"), &[]),
        (CopyIgnoredFile, ignoring("*\n!a", "FROM scratch\nCOPY b /\nCOPY . /\n"), &[]),
        (CopyIgnoredFile, ignoring("a", "FROM scratch AS x\nFROM scratch\nCOPY --from=x a /\n"), &[]),
        (DuplicateStageName, file("FROM scratch AS a\nFROM scratch AS a\nFROM scratch AS A\n"), &[2, 3]),
        (DuplicateStageName, file("FROM scratch AS a\nFROM scratch AS b\n"), &[]),
        (ExposeInvalidFormat, file("FROM scratch\nEXPOSE 127.0.0.1:80:80 81\nEXPOSE 5000:5000\n"), &[2, 3]),
        (ExposeInvalidFormat, file("FROM scratch\nARG P=1:2\nEXPOSE $P\n"), &[3]),
        (ExposeInvalidFormat, file("FROM scratch\nEXPOSE 80/tcp 8000-8010\n"), &[]),
        (ExposeProtoCasing, file("FROM scratch\nEXPOSE 80/TcP 8080/TCP 8080/udp\n"), &[2, 2]),
        (ExposeProtoCasing, file("FROM scratch\nEXPOSE 80/tcp 81\n"), &[]),
        (FromAsCasing, file("FROM scratch as a\nfrom scratch AS b\n"), &[1, 2]),
        (FromAsCasing, file("FROM scratch AS a\nfrom scratch as b\nFrom scratch as c\n"), &[]),
        (FromPlatformFlagConstDisallowed, file("FROM --platform=linux/amd64 scratch\n"), &[1]),
        (FromPlatformFlagConstDisallowed, file("FROM --platform=linux/amd64 scratch AS build-amd64\n"), &[]),
        (FromPlatformFlagConstDisallowed, file("FROM --platform=linux/amd64 scratch AS linux\n"), &[]),
        (FromPlatformFlagConstDisallowed, file("FROM --platform=$BUILDPLATFORM scratch\n"), &[]),
        (InvalidBaseImagePlatform, built("FROM base\nFROM other\n"), &[2]),
        (InvalidBaseImagePlatform, built("FROM other\nFROM base\n"), &[]),
        (InvalidDefaultArgInFrom, with("ARG V\nFROM base:$V\n", &[("V", "1")]), &[2]),
        (InvalidDefaultArgInFrom, with("ARG I\nFROM $I\n", &[("I", "base")]), &[2]),
        (InvalidDefaultArgInFrom, with("ARG S=ox:\nFROM busyb$S\n", &[("S", "ox:1")]), &[2]),
        (InvalidDefaultArgInFrom, with("ARG V=1\nFROM base:$V\n", &[("V", "2")]), &[]),
        (InvalidDefaultArgInFrom, with("ARG V\nFROM base:1$V\nFROM base:${V:-1}\n", &[("V", "2")]), &[]),
        (InvalidDefaultArgInFrom, with("ARG V=a\nFROM base AS a\nFROM $V\n", &[("V", "base")]), &[]),
        (
            InvalidDefinitionDescription,
            file(&tried("# bar what\nARG foo=1\n# Base is\nFROM scratch AS base\n# bad\nARG a b\n")),
            &[2, 4, 6],
        ),
        (
            InvalidDefinitionDescription,
            file(&tried("# foo what\nARG foo=1\n# base is\nFROM scratch AS base\n# b is\nARG a b\n")),
            &[],
        ),
        (
            InvalidDefinitionDescription,
            file(&tried(
                "# no\n\nARG foo=1\n# no\n#\nFROM scratch AS base\n# no\nFROM scratch\n# no\nRUN x\n",
            )),
            &[],
        ),
        (InvalidDefinitionDescription, file("# bar\nFROM scratch AS base\n"), &[]),
        (JSONArgsRecommended, file("FROM scratch\nCMD a\nENTRYPOINT b\n"), &[2, 3]),
        (JSONArgsRecommended, built("FROM base\nCMD a\n"), &[2]),
        (JSONArgsRecommended, file("FROM anything\nCMD a\n"), &[2]),
        (JSONArgsRecommended, built("FROM shell\nCMD a\n"), &[]),
        (JSONArgsRecommended, file("FROM scratch\nCMD [\"a\"]\nHEALTHCHECK CMD b\n"), &[]),
        (JSONArgsRecommended, file("FROM scratch AS a\nSHELL [\"/x\"]\nFROM a\nENTRYPOINT b\n"), &[]),
        (LegacyKeyValueFormat, file("FROM scratch\nENV a b\nLABEL c d\n"), &[2, 3]),
        (LegacyKeyValueFormat, file("FROM scratch AS a\nONBUILD ENV c d\nFROM a\n"), &[2]),
        (LegacyKeyValueFormat, file("FROM scratch\nENV a=b c=d\nLABEL c=d\n"), &[]),
        (MaintainerDeprecated, file("FROM scratch\nMAINTAINER me\n"), &[2]),
        (MaintainerDeprecated, file("FROM scratch\nLABEL org.opencontainers.image.authors=me\n"), &[]),
        (
            MultipleInstructionsDisallowed,
            file(
                "FROM scratch\nCMD [\"a\"]\nENTRYPOINT [\"b\"]\nCMD [\"c\"]\nCMD [\"d\"]\nENTRYPOINT [\"e\"]\n",
            ),
            &[2, 3, 4],
        ),
        (
            MultipleInstructionsDisallowed,
            file("FROM scratch\nHEALTHCHECK NONE\nCOPY a b\nHEALTHCHECK CMD [\"b\"]\n"),
            &[2],
        ),
        (
            MultipleInstructionsDisallowed,
            file("FROM scratch AS a\nCMD [\"a\"]\nFROM a\nCMD [\"b\"]\nHEALTHCHECK CMD [\"c\"]\n"),
            &[],
        ),
        (NoEmptyContinuation, file("FROM scratch\nRUN a \\\n\n b\nRUN c \\\n\t\n d\n"), &[3, 6]),
        (NoEmptyContinuation, file("FROM scratch\nRUN a \\\n# c\n b\n\nRUN c\n"), &[]),
        (
            RedundantTargetPlatform,
            file("FROM --platform=$TARGETPLATFORM scratch\nFROM --platform=${TARGETPLATFORM} scratch\n"),
            &[1, 2],
        ),
        (
            RedundantTargetPlatform,
            file("FROM --platform=$BUILDPLATFORM scratch\nFROM --platform=$TARGETOS/$TARGETARCH scratch\n"),
            &[],
        ),
        (ReservedStageName, file("FROM base AS scratch\nFROM base AS Context\n"), &[1, 2]),
        (ReservedStageName, file("FROM scratch\nFROM scratch AS a\n"), &[]),
        (
            SecretsUsedInArgOrEnv,
            file(
                "FROM scratch\nARG SECRET_PASSPHRASE x\nENV SUPER_Secret=1 apikey=2\nENV git_key=\nARG auth\n",
            ),
            &[2, 3, 3, 4, 5],
        ),
        (
            SecretsUsedInArgOrEnv,
            file(
                "FROM scratch\nENV PUBLIC_KEY=1\nARG TOKEN_FILE\nARG AUTH_MODULE_VERSION\nENV monkey=1 keys=2 KEYBOARD=3\n",
            ),
            &[],
        ),
        (StageNameCasing, file("FROM scratch AS Bad\nFROM scratch AS good\n"), &[1]),
        (StageNameCasing, file("FROM scratch\nFROM scratch AS good-1\n"), &[]),
        (UndefinedArgInFrom, file("ARG tag=1\nFROM base:${tag}${version} AS b\n"), &[2]),
        (UndefinedArgInFrom, file("FROM base:1$VARIANT\nFROM base:${TAG:-2}\n"), &[1, 2]),
        (
            UndefinedArgInFrom,
            file("ARG D\nFROM scratch${D}\nFROM --platform=$BUILDPLATFORM scra${D:-tch}\n"),
            &[],
        ),
        (UndefinedVar, file("FROM scratch\nCOPY $foo .\nARG foo=bar\nCOPY $foo .\n"), &[2]),
        (UndefinedVar, file("FROM scratch AS a\nLABEL a=$A\nFROM scratch\nUSER $B\n"), &[2, 4]),
        (UndefinedVar, file("FROM scratch\nENV PATH=$PAHT:/x\nVOLUME /$a/${b:-c}\n"), &[2, 3, 3]),
        (
            UndefinedVar,
            file("FROM scratch\nCOPY <<A <<\"B\" /x/\n$a\nA\n$b\nB\nRUN --mount=type=cache,target=/$c x\n"),
            &[3, 7],
        ),
        (UndefinedVar, file("FROM scratch AS a\nONBUILD WORKDIR /$x\nFROM a\n"), &[2]),
        (UndefinedVar, built("FROM base\nWORKDIR /$BASE/$OTHER\n"), &[2]),
        // Of an image that nobody asked for, only what is nearly the name of something known.
        (
            UndefinedVar,
            file("FROM anything\nARG DIR_ASSETS=a\nCOPY $DIR_ASSET .\nCOPY $PYTHON_VERSION $V .\n"),
            &[3],
        ),
        (UndefinedVar, file("FROM scratch\nRUN echo $a\nCMD echo $b\nENTRYPOINT $c\nEXPOSE $d\n"), &[]),
        (UndefinedVar, file("FROM scratch AS a\nARG foo bar=$foo\nFROM a\nCOPY $foo $bar /\n"), &[]),
        (UndefinedVar, built("FROM base\nCOPY $BASE '$a' \\$b .\n"), &[]),
        (UndefinedVar, with("FROM scratch\nARG a=$b\n", &[("a", "1")]), &[]),
        (WorkdirRelativePath, file("FROM scratch\nWORKDIR app\nWORKDIR more\n"), &[2]),
        (WorkdirRelativePath, file("FROM scratch\nARG d=/x\nWORKDIR $d\nWORKDIR y\n"), &[]),
        (WorkdirRelativePath, file("FROM scratch AS a\nWORKDIR /app\nFROM a\nWORKDIR sub\n"), &[]),
    ]
}

/// With the experimental rule on, and without a new line.
fn tried(text: &str) -> String {
    format!("# check=experimental=InvalidDefinitionDescription\n{text}")
}

/// The text with a comment above each instruction that a rule found something in.
fn skipped_there(case: &Case, rule: Rule, lines: &[usize]) -> String {
    let file = parse(&SourceText::new("Dockerfile", case.text.clone())).unwrap();
    let instructions = file.stages.iter().flat_map(|s| s.instructions.iter().map(|i| i.span));
    let spans =
        file.globals.iter().map(|i| i.span).chain(file.stages.iter().map(|s| s.span)).chain(instructions);
    let line = |at| file.source.line_col(at).0;
    // A finding may stand in the comment above its instruction.
    let above = |l: usize| case.text.lines().nth(l - 1).is_some_and(|t| t.starts_with('#'));
    let mut starts: Vec<usize> = spans
        .filter(|s| {
            lines.iter().any(|l| (line(s.start)..=line(s.end)).contains(&if above(*l) { l + 1 } else { *l }))
        })
        .map(|s| s.start)
        .collect();
    starts.sort_unstable_by(|a, b| b.cmp(a));
    let mut text = case.text.clone();
    for at in starts {
        text.insert_str(at, &format!("# check=skip={} not here\n", rule.name()));
    }
    // At the head it would be for the whole file.
    if text.starts_with("# check=skip") { format!("\n{text}") } else { text }
}

#[test]
fn every_rule_finds_what_it_is_for_and_can_be_switched_off() {
    let (mut positive, mut negative) = (BTreeSet::new(), BTreeSet::new());
    for (rule, case, expected) in table() {
        let (name, text) = (rule.name(), &case.text);
        assert_eq!(lines(&case, rule), expected, "{name}\n{text}\n{}", found(&case));
        if expected.is_empty() {
            negative.insert(rule);
            continue;
        }
        positive.insert(rule);
        let here = Case { text: skipped_there(&case, rule, expected), ..case.clone() };
        assert!(lines(&here, rule).is_empty(), "{name}, by comments\n{}\n{}", here.text, found(&here));
        let head = match text.strip_prefix("# check=") {
            Some(rest) => format!("# check=skip={name};{rest}"),
            None => format!("# check=skip={name}\n{text}"),
        };
        let everywhere = Case { text: head, ..case.clone() };
        assert!(lines(&everywhere, rule).is_empty(), "{name}, in the file\n{}", everywhere.text);
        let skip_all = match text.strip_prefix("# check=") {
            Some(rest) => format!("# check=skip=all;{rest}"),
            None => format!("# check=skip=all\n{text}"),
        };
        let all = Case { text: skip_all, ..case.clone() };
        assert_eq!(lines(&all, rule).is_empty(), !rule.is_experimental(), "{name}\n{}", all.text);
        let strict = Case { text: text.replace("# check=", "# check=error=true;"), ..case.clone() };
        let strict = match text.starts_with("# check=") {
            true => strict,
            false => Case { text: format!("# check=error=true\n{text}"), ..case.clone() },
        };
        assert!(found(&strict).has_errors(), "{name}\n{}", strict.text);
    }
    let all: BTreeSet<Rule> = Rule::ALL.iter().copied().collect();
    assert_eq!((&positive, &negative), (&all, &all), "each rule has both");
    assert_eq!(all.len(), 22);
}

#[test]
fn files_of_good_habits_have_no_findings() {
    for text in [
        "# syntax=docker/dockerfile:1\nARG V=1\n# build is where it is made\nFROM --platform=$BUILDPLATFORM base:$V AS build\nARG TARGETARCH\nWORKDIR /src\nCOPY . .\nRUN make ARCH=$TARGETARCH\nFROM scratch\nCOPY --from=build /src/out /app\nEXPOSE 80/tcp\nUSER 1000:1000\nENTRYPOINT [\"/app\"]\nCMD [\"--help\"]\n",
        "from scratch as a\nenv A=1 B=2\nlabel x=$A\nfrom a\nrun <<EOF\n$NOT_OURS\nEOF\n",
    ] {
        let found = found(&file(text));
        assert!(found.items.is_empty(), "{found}");
    }
}

#[test]
fn findings_say_what_to_do() {
    for (case, said) in [
        (file("FROM --platform=$BULIDPLATFORM/x scratch\n"), "refused"),
        (file("ARG MY_OS=linux\nFROM base:${MYOS}1\n"), "did you mean $MY_OS?"),
        (
            file("FROM scratch\nENV PATH=$PAHT\n"),
            "Dockerfile:2:10: warning[UndefinedVar]: $PAHT is not set here, so it is empty\n  hint: did you mean $PATH?",
        ),
        (file("FROM scratch AS a\nFROM scratch AS a\n"), "the stage of line 1 is named \"a\", too"),
    ] {
        let parsed = parse(&SourceText::new("Dockerfile", case.text.clone())).unwrap();
        if said == "refused" {
            assert!(Build::new(parsed, options()).is_err());
            continue;
        }
        let found = found(&case).to_string();
        assert!(found.contains(said), "{found}");
    }
}

#[test]
fn a_build_looks_at_its_target_and_waits_for_bases() {
    let text = "FROM scratch AS one\nENV a b\nFROM base AS two\nCOPY $x .\nCMD y\n";
    let parsed = || parse(&SourceText::new("Dockerfile", text)).unwrap();
    let codes = |target: Option<&str>, bases: &Bases, look| {
        let options = BuildOptions { target: target.map(Into::into), ..options() };
        let found = Build::new(parsed(), options).unwrap().lint(bases, &Ignore::default(), look);
        found.items.iter().map(|d| d.code.clone()).collect::<Vec<_>>()
    };
    let (none, all) = (Bases::new(), Bases::from([pinned("base", |_| ())]));
    assert_eq!(codes(None, &none, Look::File), ["LegacyKeyValueFormat", "JSONArgsRecommended"]);
    assert_eq!(codes(Some("two"), &none, Look::File), ["JSONArgsRecommended"]);
    assert_eq!(codes(Some("one"), &none, Look::Build), ["LegacyKeyValueFormat"]);
    assert!(codes(None, &none, Look::Build).is_empty());
    assert_eq!(codes(None, &all, Look::Build), ["UndefinedVar", "JSONArgsRecommended"]);
}

#[test]
fn triggers_of_a_base_image_are_not_ours_to_mend() {
    let base = pinned("base", |c| c.config.on_build = vec!["ENV token $x".into(), "CMD y".into()]);
    let parsed = parse(&SourceText::new("Dockerfile", "FROM base\n")).unwrap();
    let found = Build::new(parsed, options()).unwrap().lint(&[base].into(), &Ignore::default(), Look::Build);
    assert!(found.items.is_empty(), "{found}");
}

#[test]
fn options_that_cannot_be_understood_are_refused() {
    let parsed = parse(&SourceText::new("Dockerfile", "FROM base\n")).unwrap();
    let args = [(INSTEAD.to_owned(), "skip".to_owned())].into();
    let refused = Build::new(parsed, BuildOptions { args, ..options() }).unwrap_err().to_string();
    assert!(refused.contains("D0002") && refused.contains(INSTEAD), "{refused}");
}
