//! The command line and its documentation say the same.

use crate::{Ended, Test, World};
use keelway_tests::env::Env;
use std::collections::BTreeSet;

/// The tests of this file.
pub const TESTS: &[Test] = &[
    ("commands::help_and_documentation_list_the_same_verbs", help_and_documentation_list_the_same_verbs),
    ("commands::wrong_usage_is_exit_code_2", wrong_usage_is_exit_code_2),
];

/// The words under `Commands:` of a help text.
fn verbs(env: &Env, of: &[&str]) -> Vec<String> {
    let help = env.keelway(&[of, &["--help"]].concat()).expect(0).stdout;
    help.lines()
        .skip_while(|l| *l != "Commands:")
        .skip(1)
        .take_while(|l| l.starts_with("  "))
        .filter_map(|l| l.split_whitespace().next())
        .filter(|v| *v != "help")
        .map(str::to_owned)
        .collect()
}

fn help_and_documentation_list_the_same_verbs(world: &World) -> Ended {
    let env = world.env();
    let mut shown = BTreeSet::new();
    for verb in verbs(&env, &[]) {
        let below = verbs(&env, &[&verb]);
        if below.is_empty() {
            shown.insert(verb);
        } else {
            shown.extend(below.iter().map(|b| format!("{verb} {b}")));
        }
    }
    let text = std::fs::read_to_string(world.project.join("docs/commands.md")).expect("docs/commands.md is there");
    let documented: BTreeSet<String> = text
        .lines()
        .filter_map(|l| l.strip_prefix("| `keelway "))
        .filter_map(|l| Some(l.split_once('`')?.0.to_owned()))
        .collect();
    assert!(shown.len() > 10, "{shown:?}");
    assert_eq!(shown, documented);
    Ok(())
}

fn wrong_usage_is_exit_code_2(world: &World) -> Ended {
    let env = world.env();
    for args in [&["nonsense"][..], &["run", "--commit", "main"], &["image", "build"], &["image", "build", "/nonexistent"], &["run"]] {
        let out = env.keelway(args).expect(2);
        assert!(out.stderr.starts_with("error"), "{args:?}: {}", out.stderr);
    }
    Ok(())
}
