//! Changes of modes, against what chmod(1) makes of them.

use super::*;

fn parsed(text: &str) -> Chmod {
    text.parse().unwrap_or_else(|e| panic!("{e}"))
}

/// `table.txt` is what chmod(1) of GNU coreutils 9.1 does under umask 0: the first line has the modes before, each
/// other line a change, `f` for a file or `d` for a directory, and the modes after.
#[test]
fn changes_are_those_of_chmod() {
    let mut lines = include_str!("table.txt").lines();
    let modes = |words: std::str::SplitWhitespace<'_>| {
        words.map(|m| u32::from_str_radix(m, 8).unwrap()).collect::<Vec<_>>()
    };
    let before = modes(lines.next().unwrap().trim_start_matches('#').split_whitespace());
    let mut checked = 0;
    for line in lines {
        let mut words = line.split_whitespace();
        let (change, kind) = (words.next().unwrap(), words.next().unwrap());
        let chmod = parsed(change);
        for (mode, after) in before.iter().zip(modes(words)) {
            let got = chmod.apply(*mode, kind == "d");
            assert_eq!(got, after, "{change} of {kind} {mode:o} is {after:o}, not {got:o}");
            checked += 1;
        }
    }
    assert_eq!(checked, 84 * 2 * before.len());
}

#[test]
fn octal_is_the_whole_mode() {
    for (text, mode) in [("755", 0o755), ("0644", 0o644), ("7777", 0o7777), ("00755", 0o755), ("0", 0)] {
        assert_eq!(
            (parsed(text).apply(0o4711, false), parsed(text).apply(0o2711, true)),
            (mode, mode),
            "{text}"
        );
    }
}

/// All but the last two are refused by chmod(1) too.
#[test]
fn what_is_no_mode_is_refused() {
    let long = "u+x,".repeat(MAX_CHANGES) + "u+x";
    for text in [
        "", "x", "u", "ug", "u+z", "rwx", "u+x,", "u+ug", "u=rg", "u=755", "+8", "=77777", "u x", "+1x",
        "a+x;", "=7+r", "755,u+x", "u+x,755", "+x ", "u++q", "9", "0x1", "+ur", "u=rwxg", "=1,", "8",
        "10000", "-1", "é", "u+é", "000755", &long,
    ] {
        if text == "-1" {
            // A minus and an octal digit: takes others' search away.
            assert_eq!(parsed(text).apply(0o777, false), 0o776);
            continue;
        }
        let e = text.parse::<Chmod>().expect_err(text).to_string();
        assert!(e.contains("is not a mode"), "{e}");
    }
}

#[test]
fn texts_come_back_from_plans() {
    for text in ["755", "u=rwX,go=rX"] {
        let json = serde_json::to_string(&parsed(text)).unwrap();
        assert_eq!(json, format!("{text:?}"));
        assert_eq!(serde_json::from_str::<Chmod>(&json).unwrap(), parsed(text));
    }
    assert!(serde_json::from_str::<Chmod>("\"nope\"").is_err());
}

/// Whatever the letters are: a mode stays a mode, `=` gives the same twice, and `-` takes what `+` gave.
#[test]
fn any_change_keeps_its_promise() {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    for _ in 0..20_000 {
        let mut pick = |letters: &str| -> String { letters.chars().filter(|_| random(2) == 0).collect() };
        let (who, what) = (pick("ugoa"), pick("rwxXst"));
        let (mode, directory) = (random(0o10000) as u32, random(2) == 0);
        let apply = |operator: char, mode| parsed(&format!("{who}{operator}{what}")).apply(mode, directory);
        let (added, set) = (apply('+', mode), apply('=', mode));
        assert!(added <= ALL && added & mode == mode, "{who}+{what} of {mode:o} is {added:o}");
        assert!(set <= ALL);
        if !what.contains('X') {
            assert_eq!(apply('=', set), set, "{who}={what} of {mode:o}");
            assert_eq!(apply('-', added), apply('-', mode), "{who}-{what} of {mode:o}");
        }
    }
}
