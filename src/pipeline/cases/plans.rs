//! Which stages run, in which order, and why not.

use super::{SHOP, ok};
use crate::{Event, Selection, Trigger, plan, render, triggers};
use keelway_model::plan::ImageSource;
use keelway_model::{Op, SkipReason};

fn on(event: Event, branch: Option<&str>) -> Trigger {
    Trigger { event, branch: branch.map(str::to_owned), commit: None, dirty: false }
}

fn only(names: &[&str]) -> Selection {
    Selection { stages: names.iter().map(|s| (*s).to_owned()).collect() }
}

#[test]
fn plans_as_people_read_them() {
    let d = ok(SHOP);
    let all = Selection::default();
    let mut out = String::new();
    for (title, trigger, selection) in [
        ("push to main", on(Event::Push, Some("main")), all.clone()),
        ("push to dev", on(Event::Push, Some("dev")), all.clone()),
        ("no branch, test alone", on(Event::Manual, None), only(&["test"])),
        ("dirty", Trigger { dirty: true, ..on(Event::Manual, Some("main")) }, all),
    ] {
        out += &format!("# {title}\n{}\n", render(&plan(&d, &trigger, &selection).unwrap()));
    }
    insta::assert_snapshot!(out);
}

#[test]
fn images_are_nodes_among_the_needs() {
    let d = ok(
        "version: 1\nstages:\n  last: {needs: [mid], image: {stage: first}, steps: [{run: x}]}\n  mid: {needs: first, image: busybox, steps: [{run: x}]}\n  first: {build: {}}\n",
    );
    let plan = plan(&d, &on(Event::Push, None), &Selection::default()).unwrap();
    plan.check().unwrap();
    let names: Vec<&str> = plan.nodes.iter().map(|n| n.name.as_str()).collect();
    assert_eq!(names, ["first", "mid", "last"], "what is needed comes first");
    let last = &plan.nodes[2];
    let Op::Steps(steps) = &last.op else { panic!() };
    assert_eq!(steps.image, ImageSource::Node(plan.nodes[0].id));
    assert!(last.needs.contains(&plan.nodes[0].id), "a transitive need becomes a direct one");
}

#[test]
fn networks_are_private_unless_the_file_says_otherwise() {
    let d = ok(
        "version: 1\nstages:\n  a: {image: busybox, steps: [{run: x}]}\n  b: {image: busybox, network: none, steps: [{run: x}]}\n  \
         c: {image: busybox, network: host, steps: [{run: x}]}\n  d: {build: {}}\n  e: {build: {}, network: none}\n",
    );
    let plan = plan(&d, &on(Event::Push, None), &Selection::default()).unwrap();
    let network = |name: &str| match &plan.nodes.iter().find(|n| n.name == name).unwrap().op {
        Op::Steps(op) => op.network,
        Op::Build(op) => op.network,
        op => panic!("{op:?}"),
    };
    use keelway_model::plan::Network::{Host, None as Nothing, Private};
    assert_eq!(["a", "b", "c", "d", "e"].map(network), [Private, Nothing, Host, Private, Nothing]);
    // The machine's goes on working, with a warning that says where.
    let warnings: Vec<&str> = d.warnings.items.iter().map(|w| w.code.as_str()).collect();
    assert_eq!(warnings, ["K0302"]);
    assert!(!d.warnings.has_errors());
    let found = super::parse("version: 1\nstages:\n  a: {build: {}, network: host}\n").unwrap_err();
    assert!(found.to_string().contains("--allow host-network"), "{found}");
}

#[test]
fn a_stage_names_its_runtime_and_never_where_it_is() {
    let d =
        ok("version: 1\nstages:\n  a: {image: busybox, isolation: {runtime: runsc}, steps: [{run: x}]}\n  \
                b: {build: {}, isolation: {runtime: kata.1}}\n  c: {build: {}}\n");
    let plan = plan(&d, &on(Event::Push, None), &Selection::default()).unwrap();
    let runtime = |name: &str| match &plan.nodes.iter().find(|n| n.name == name).unwrap().op {
        Op::Steps(op) => op.runtime.clone(),
        Op::Build(op) => op.runtime.clone(),
        op => panic!("{op:?}"),
    };
    assert_eq!(["a", "b", "c"].map(runtime), [Some("runsc".into()), Some("kata.1".into()), None]);
    for (isolation, hint) in [
        ("{runtime: /usr/bin/runsc}", "--runtime NAME=PATH"),
        ("{}", "isolation: {runtime: runsc}"),
        ("runsc", "isolation: {runtime: runsc}"),
    ] {
        let text = format!("version: 1\nstages:\n  a: {{build: {{}}, isolation: {isolation}}}\n");
        let found = super::parse(&text).unwrap_err().to_string();
        assert!(found.contains(hint), "{found}");
    }
    let found = super::parse("version: 1\nstages:\n  a: {push: {}, isolation: {runtime: x}}\n").unwrap_err();
    assert!(found.to_string().contains("a push stage has no `isolation`"), "{found}");
}

#[test]
fn a_stage_after_a_skipped_one_is_skipped() {
    let d = ok(
        "version: 1\nstages:\n  a: {when: {event: [tag, api]}, build: {}}\n  b: {needs: a, image: busybox, steps: [{run: x}]}\n",
    );
    let plan = plan(&d, &on(Event::Push, Some("main")), &Selection::default()).unwrap();
    assert_eq!(
        plan.nodes[0].skip,
        Some(SkipReason::When { text: "the event is push, not tag or api".into() })
    );
    assert_eq!(plan.nodes[1].skip, Some(SkipReason::Needs { name: "a".into() }));
}

#[test]
fn a_wrong_selection_names_the_nearest_stage() {
    let found = plan(&ok(SHOP), &on(Event::Manual, None), &only(&["test", "pubish"])).unwrap_err();
    insta::assert_snapshot!(found.to_string(), @r#"
    the command line:1:6: error[K0201]: there is no stage "pubish"
      hint: did you mean "publish"?
    "#);
}

#[test]
fn on_decides_whether_a_trigger_runs_at_all() {
    let d = ok("version: 1\non: {push: {branches: [main, 'release/*']}, tag: }\nstages: {a: {build: {}}}\n");
    let runs = |event, branch| triggers(&d, &on(event, branch)).map_err(|r| r.to_string());
    assert_eq!(runs(Event::Push, Some("main")), Ok(()));
    assert_eq!(runs(Event::Push, Some("release/1/2")), Ok(()));
    assert_eq!(runs(Event::Tag, None), Ok(()));
    assert_eq!(runs(Event::Manual, Some("dev")), Ok(()), "a person is never refused");
    assert_eq!(runs(Event::Push, Some("dev")).unwrap_err(), "the branch is \"dev\", not main or release/*");
    assert_eq!(runs(Event::Push, None).unwrap_err(), "there is no branch, and it wants main or release/*");
    assert_eq!(runs(Event::Api, Some("main")).unwrap_err(), "the event is api, and `on` names push or tag");
    let any = ok("version: 1\nstages: {a: {build: {}}}\n");
    assert_eq!(triggers(&any, &on(Event::Api, None)), Ok(()), "without `on`, everything does");
}

#[test]
fn patterns_match_as_documented() {
    let p = |pattern: &str, name: &str| crate::definition::Pattern(pattern.into()).matches(name);
    assert!(p("main", "main") && !p("main", "mainx") && !p("main", "xmain"));
    assert!(p("*", "") && p("*", "a/b") && p("a*c", "abbc") && p("a*", "a") && p("*-x", "y-x"));
    assert!(!p("a*c", "abd") && !p("", "a") && p("", ""));
    let slow = "*a".repeat(100);
    assert!(!p(&slow, &"b".repeat(10_000)), "no blow-up");
}
