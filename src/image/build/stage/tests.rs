//! Planning takes time and memory in proportion to the file, and refuses what would not.

use crate::build::{Bases, Build, BuildOptions};
use keelway_dockerfile::parse;
use keelway_model::{Op, Plan, SourceText};
use std::fmt::Write;
use std::time::{Duration, Instant};

/// Generous: what was quadratic took longer by far, on any machine that this took as long.
const SOON: Duration = Duration::from_secs(5);

/// Plans it, within the time.
fn soon(text: &str) -> Result<Plan, String> {
    let begun = Instant::now();
    let plan = try_plan(text);
    let took = begun.elapsed();
    assert!(took < SOON, "planning took {took:?}");
    plan
}

fn try_plan(text: &str) -> Result<Plan, String> {
    let file = parse(&SourceText::new("Dockerfile", text)).map_err(|e| e.to_string())?;
    let options = BuildOptions::new("linux/amd64".parse().unwrap());
    let build = Build::new(file, options).map_err(|e| e.to_string())?;
    build.lower(&Bases::new()).map_err(|e| e.to_string())
}

fn lines(count: usize, head: &str, line: impl Fn(usize) -> String) -> String {
    (0..count).fold(head.to_owned(), |mut text, i| {
        writeln!(text, "{}", line(i)).unwrap();
        text
    })
}

fn end_env(plan: &Plan) -> &[String] {
    match &plan.node(plan.result.unwrap()).unwrap().op {
        Op::Assemble(op) => &op.config.config.env,
        op => panic!("{op:?}"),
    }
}

#[test]
fn many_variables_are_planned_soon() {
    let plan =
        soon(&lines(9_000, "FROM scratch\n", |i| format!("ENV V{i}=$V{} W{i}=x", i.max(1) - 1))).unwrap();
    assert_eq!(end_env(&plan).len(), 18_001);
}

#[test]
fn many_stages_on_one_another_are_planned_soon() {
    let text =
        lines(999, "FROM scratch AS s0\nENV A=x\n", |i| format!("FROM s{i} AS s{}\nENV A=${{A}}x\n", i + 1));
    let plan = soon(&text).unwrap();
    assert_eq!(end_env(&plan)[1], format!("A={}", "x".repeat(1000)));
    // Side by side, all on one, and each has its own.
    let text =
        lines(499, "FROM scratch AS s\nENV A=x\n", |i| format!("FROM s AS s{i}\nENV B=${{A}}{i} S{i}=1"));
    let text = lines(499, &format!("{text}FROM s\nENV C=${{B}}c\n"), |i| format!("COPY --from=s{i} /a /b"));
    assert_eq!(end_env(&soon(&text).unwrap())[1..], ["A=x", "C=c"]);
}

#[test]
fn too_many_are_refused() {
    let e = soon(&lines(20_000, "FROM scratch\n", |i| format!("ENV V{i}=1"))).unwrap_err();
    assert!(e.contains("error[D0001]: the Dockerfile has more than 10000 instructions"), "{e}");
    assert!(e.starts_with("Dockerfile:10001:"), "{e}");
    let e = soon(&lines(5_000, "", |i| format!("FROM scratch AS s{i}"))).unwrap_err();
    assert!(e.contains("error[D0001]: the Dockerfile has more than 1000 stages"), "{e}");
    assert!(e.starts_with("Dockerfile:1001:"), "{e}");
    assert!(soon(&lines(1_000, "", |i| format!("FROM scratch AS s{i}"))).is_ok());
}

#[test]
fn what_expands_to_too_much_is_refused() {
    let long = format!("FROM scratch AS base\nENV A={}\n", "a".repeat(60_000));
    let eight = "$A".repeat(8);
    let refused = |text: &str| {
        let e = try_plan(text).expect_err("it is too much");
        assert!(e.contains("expand to more than 64 MiB"), "{e:.300}");
        assert_eq!(e.matches("error[").count(), 1, "{e:.300}");
    };
    let (label, copy) = (format!("LABEL l={eight}"), format!("COPY a /{eight}/"));
    for line in [&label, "RUN x", "EXPOSE 1-65535", &copy, "WORKDIR $A"] {
        refused(&lines(1_200, &long, |_| line.to_owned()));
    }
    // A copy of a stage counts, where the target reaches it and another stage needs it too.
    let stages = lines(900, &long, |i| format!("FROM base AS s{i}\nENV B=1"));
    assert!(try_plan(&stages).is_ok());
    refused(&lines(900, &format!("{stages}FROM scratch\n"), |i| format!("COPY --from=s{i} /a /b")));
}
