//! `--exclude`, `--parents`, symbolic `--chmod`: what is copied, and what the key holds of it.

use super::*;
use proptest::prelude::*;

fn tree() -> MemTree {
    let mut tree = MemTree::with(&[
        ("a.txt", "A"),
        ("b.md", "B"),
        ("x/a.txt", "XA"),
        ("x/b.md", "XB"),
        ("x/y/c.txt", "XYC"),
        ("x/y/keep.log", "K"),
        ("x/y/drop.log", "D"),
        ("z/q/c.txt", "ZQC"),
        ("!odd/f", "O"),
    ]);
    tree.dir("x/y", 0o700);
    tree.dir("e/f", 0o711);
    tree.file("x/run", b"R", 0o755);
    tree.link("to-x", "x");
    tree.link("x/l", "a.txt");
    tree
}

fn flagged(sources: &[&str], dest: &str, parents: bool, exclude: &[&str]) -> CopyOp {
    let exclude = exclude.iter().map(|e| (*e).to_owned()).collect();
    CopyOp { parents, exclude, ..copy_op(sources, dest) }
}

/// The paths that a copy gives, with what is not a file marked.
fn paths(lines: &[String]) -> Vec<String> {
    lines
        .iter()
        .map(|l| {
            let mut words = l.split(' ');
            let (path, kind) = (words.next().unwrap(), words.next().unwrap());
            if kind == "d" { format!("{path}/") } else { path.to_owned() }
        })
        .collect()
}

fn given(sources: &[&str], parents: bool, exclude: &[&str], ignore: &str) -> Vec<String> {
    let rig = Rig::new();
    paths(&copied(&rig, &flagged(sources, "/", parents, exclude), &[&rig.empty()], &tree(), ignore))
}

#[test]
fn exclude_is_about_paths_from_the_source() {
    let x = |exclude: &[&str]| given(&["x"], false, exclude, "");
    assert_eq!(x(&["*.txt"]), ["b.md", "l", "run", "y/", "y/c.txt", "y/drop.log", "y/keep.log"]);
    assert_eq!(x(&["**/*.txt", "y/*.log"]), ["b.md", "l", "run", "y/"], "the directory itself is kept");
    assert_eq!(x(&["y"]), ["a.txt", "b.md", "l", "run"]);
    assert_eq!(x(&["y/"]), x(&["y"]));
    assert_eq!(x(&["./y"]), x(&["y"]));
    assert_eq!(x(&["y", "!y/keep.log"]), ["a.txt", "b.md", "l", "run", "y/", "y/keep.log"]);
    assert_eq!(x(&["**", "!y/*.log", "y/drop.log"]), ["y/", "y/keep.log"], "the last that matches wins");
    assert_eq!(x(&["x/a.txt"]), x(&[]), "not from the context's root");
    assert_eq!(x(&["/a.txt"]), x(&[]), "a leading slash stays, and matches nothing");
    assert_eq!(x(&["**"]), Vec::<String>::new());
    // Files that are named, or that a wildcard names: by their name.
    assert_eq!(given(&["*.txt", "*.md"], false, &["*.md"], ""), ["a.txt"]);
    assert_eq!(given(&["x/*"], false, &["*.txt", "b.md"], ""), ["drop.log", "keep.log", "l", "run"]);
    assert_eq!(given(&["a.txt"], false, &["a.txt"], ""), Vec::<String>::new());
    // Both kinds of patterns count.
    assert_eq!(given(&["x"], false, &["*.md"], "x/y\n"), ["a.txt", "l", "run"]);
}

#[test]
fn parents_keeps_the_path_of_a_source() {
    let p = |sources: &[&str]| given(sources, true, &[], "");
    assert_eq!(p(&["x/a.txt"]), ["x/", "x/a.txt"]);
    assert_eq!(p(&["./x/a.txt", "a.txt"]), ["a.txt", "x/", "x/a.txt"]);
    assert_eq!(p(&["../../x/y"]), ["x/", "x/y/", "x/y/c.txt", "x/y/drop.log", "x/y/keep.log"]);
    assert_eq!(p(&["x/y/"]), p(&["x/y"]));
    assert_eq!(p(&["**/c.txt"]), ["x/", "x/y/", "x/y/c.txt", "z/", "z/q/", "z/q/c.txt"]);
    assert_eq!(p(&["*/*.txt"]), ["x/", "x/a.txt"]);
    assert_eq!(p(&["e"]), ["e/", "e/f/"]);
    assert_eq!(p(&["x/l"]), ["x/", "x/l"], "a link is copied, not followed");
    assert_eq!(p(&["!odd/f"]), ["!odd/", "!odd/f"], "an exclamation mark is part of a path");
    // The pivot: what stands before it is where the paths begin.
    assert_eq!(p(&["x/./y/c.txt"]), ["y/", "y/c.txt"]);
    assert_eq!(p(&["./x/./**/*.txt"]), ["a.txt", "y/", "y/c.txt"]);
    assert_eq!(p(&["*/./c.txt", "z/./q"]), ["q/", "q/c.txt"], "a pattern may name nothing");
    assert_eq!(p(&["to-x/./y/c.txt"]), ["y/", "y/c.txt"], "links before the pivot are followed");
    assert_eq!(p(&["x/y/./."]), ["c.txt", "drop.log", "keep.log"]);
    assert_eq!(p(&["?/./y/c.txt"]), ["y/", "y/c.txt"], "the starting point may be a pattern");
    // With the other patterns.
    let both = given(&["x", "**/c.txt"], true, &["x/y/*.log", "**/*.md"], "z\n");
    assert_eq!(both, ["x/", "x/a.txt", "x/l", "x/run", "x/y/", "x/y/c.txt"]);
}

#[test]
fn parents_takes_the_modes_of_what_it_passes() {
    let rig = Rig::new();
    let op = flagged(&["x/./y/c.txt"], "/d/n", true, &[]);
    assert_eq!(
        copied(&rig, &op, &[&rig.empty()], &tree(), ""),
        ["d d 755 0:0", "d/n d 755 0:0", "d/n/y d 700 0:0", "d/n/y/c.txt f 644 0:0 XYC"]
    );
}

#[test]
fn parents_says_what_is_not_there() {
    let rig = Rig::new();
    let refused = |source: &str, ignore: &str| {
        let op = flagged(&[source], "/", true, &[]);
        after(&rig, &op, &[&rig.empty()], &tree(), ignore).unwrap_err()
    };
    assert!(refused("x/nope", "").contains("\"x/nope\" is not in the build context"));
    assert!(refused("x/rum", "").contains("did you mean \"x/run\"?"));
    assert!(refused("to-x/a.txt", "").contains("is not in the build context"), "no link is followed");
    assert!(refused("nope/./x", "").contains("\"nope\" is not in the build context"));
    assert!(refused("x/./rum", "").contains("did you mean \"x/run\"?"));
    assert!(refused("x/a.txt", "x/a.txt").contains(".dockerignore"));
    assert!(refused("**/*.none", "").contains("no file matches **/*.none"));
    assert!(refused("a.txt/./x", "").contains("not in the build context"));
    assert!(refused("x/[", "").contains("malformed pattern"));
}

#[test]
fn symbolic_modes_are_applied_to_each_entry() {
    let rig = Rig::new();
    let op = CopyOp { chmod: Some(mode("u=rwX,go=rX,g-w")), ..copy_op(&["x"], "/d") };
    let lines = copied(&rig, &op, &[&rig.empty()], &tree(), "**/*.md\n**/*.log\n");
    assert_eq!(
        lines,
        [
            "d d 755 0:0",
            "d/a.txt f 644 0:0 XA",
            "d/l l 0 0:0 a.txt",
            "d/run f 755 0:0 R",
            "d/y d 755 0:0",
            "d/y/c.txt f 644 0:0 XYC"
        ]
    );
    let inline = CopyOp {
        from: CopyFrom::Inline(vec![("f".into(), String::new())]),
        chmod: Some(mode("+x,o=")),
        ..copy_op(&[], "/f")
    };
    assert_eq!(copied(&rig, &inline, &[&rig.empty()], &tree(), ""), ["f f 750 0:0"]);
}

#[test]
fn keys_hold_what_is_left_and_how_it_ends_up() {
    let rig = Rig::new();
    let none = rig.empty();
    let of = |op: &CopyOp, tree: &MemTree| key_of(&rig, op, &[&none], tree, "").digest;
    // --exclude: what is left out does not count, nor how it was said.
    let op = flagged(&["x"], "/d", false, &["*.md"]);
    let mut other = tree();
    other.file("x/b.md", b"changed", 0o600);
    assert_eq!(of(&op, &tree()), of(&op, &other));
    assert_eq!(of(&op, &tree()), of(&flagged(&["x"], "/d", false, &["b.md"]), &tree()));
    assert_ne!(of(&op, &tree()), of(&copy_op(&["x"], "/d"), &tree()));
    other.file("x/a.txt", b"changed", 0o644);
    assert_ne!(of(&op, &tree()), of(&op, &other));
    // --parents: neither files nor folders elsewhere, but paths.
    let op = flagged(&["**/c.txt"], "/d", true, &[]);
    let mut other = tree();
    other.file("elsewhere/deep/f", b"", 0o644);
    other.file("x/a.txt", b"changed", 0o644);
    other.dir("e/f", 0o777);
    assert_eq!(of(&op, &tree()), of(&op, &other));
    other.file("n/c.txt", b"new", 0o644);
    assert_ne!(of(&op, &tree()), of(&op, &other));
    let at = |source: &str| of(&flagged(&[source], "/d", true, &[]), &tree());
    assert_eq!(at("x/y/c.txt"), at("./x/y/c.txt"));
    assert_ne!(at("x/y/c.txt"), at("x/./y/c.txt"), "the path counts");
    assert_ne!(at("x/y/c.txt"), of(&copy_op(&["x/y/c.txt"], "/d"), &tree()));
    // --chmod: the mode that comes out.
    let chmod = |text: &str| of(&CopyOp { chmod: Some(mode(text)), ..copy_op(&["a.txt"], "/d") }, &tree());
    assert_eq!(chmod("644"), of(&copy_op(&["a.txt"], "/d"), &tree()));
    assert_eq!(chmod("u=rw,go=r"), chmod("0644"));
    assert_eq!(chmod("+X"), chmod("0644"));
    assert_ne!(chmod("+x"), chmod("0644"));
    let mut other = tree();
    other.file("a.txt", b"A", 0o600);
    let op = CopyOp { chmod: Some(mode("u=rw,go=r")), ..copy_op(&["a.txt"], "/d") };
    assert_eq!(of(&op, &tree()), of(&op, &other), "the source's mode, where it makes no difference");
    let op = CopyOp { chmod: Some(mode("u+x")), ..copy_op(&["a.txt"], "/d") };
    assert_ne!(of(&op, &tree()), of(&op, &other));
}

/// The reference's own cases: what a pattern list excludes is left out, and what it does not is copied.
#[test]
#[allow(clippy::print_stdout, reason = "tests say how many cases ran")]
fn exclude_agrees_with_the_references_cases() {
    // As the tests of the parser find it.
    let dir = std::env::var_os("KEELWAY_CORPUS").map_or_else(
        || std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/corpus"),
        std::path::PathBuf::from,
    );
    let Ok(text) = std::fs::read_to_string(dir.join("dockerignore_patterns.json")) else {
        println!("no corpus at {}", dir.display());
        return;
    };
    let cases: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut checked = 0;
    for case in cases["matches"].as_array().unwrap() {
        let path = case["path"].as_str().unwrap();
        let patterns: Vec<String> =
            case["patterns"].as_array().unwrap().iter().map(|p| p.as_str().unwrap().to_owned()).collect();
        // Not every case is a path that a tree can hold.
        let Some(clean) = TreePath::clamped(path.as_bytes()).filter(|c| c.as_bytes() == path.as_bytes())
        else {
            continue;
        };
        let mut tree = MemTree::default();
        tree.file(&format!("s/{clean}"), b"x", 0o644);
        let rig = Rig::new();
        let op = CopyOp { exclude: patterns.clone(), ..copy_op(&["s"], "/") };
        let lines = copied(&rig, &op, &[&rig.empty()], &tree, "");
        let there = paths(&lines).iter().any(|p| p == path);
        assert_eq!(!there, case["match"].as_bool().unwrap(), "{patterns:?} and {path}");
        checked += 1;
    }
    assert!(checked > 40, "{checked}");
    println!("{checked} cases ran");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]
    /// The walk with its shortcuts leaves what asking for every single path leaves, and the key changes with a
    /// file exactly where the file is copied.
    #[test]
    fn walk_and_key_agree_with_the_patterns(
        exclude in prop::collection::vec("!?(\\*\\*/)?[ab*](/[ab*]){0,2}", 0..4),
        sources in prop::collection::vec("(\\*\\*/)?[ab*](/[ab*]){0,2}", 1..3),
        parents: bool,
    ) {
        let rig = Rig::new();
        let none = rig.empty();
        let mut tree = MemTree::default();
        let mut files = Vec::new();
        for path in ["a/a/a", "a/a/b", "a/b/a", "b/a/a", "b/b/b", "c/a", "c/b/a", "d"] {
            tree.file(path, path.as_bytes(), 0o644);
            files.push(path);
        }
        let texts: Vec<&[u8]> = exclude.iter().map(String::as_bytes).collect();
        let patterns = Ignore::from_patterns(texts).unwrap();
        let wanted: Vec<Ignore> =
            sources.iter().map(|s| Ignore::from_patterns([s.as_bytes()]).unwrap()).collect();
        let op = CopyOp {
            sources: if parents { sources } else { vec![".".to_owned()] },
            exclude,
            parents,
            ..copy_op(&[], "/")
        };
        let copy = after(&rig, &op, &[&none], &tree, "");
        let expected: Vec<&str> = files
            .iter()
            .copied()
            .filter(|f| !parents || wanted.iter().any(|w| w.excludes(f.as_bytes())))
            .filter(|f| !patterns.excludes(f.as_bytes()))
            .collect();
        let Ok(chain) = copy else {
            // A path without a wildcard must be there.
            let missing = op.sources.iter().zip(&wanted).any(|(s, w)| {
                !s.contains('*') && !files.iter().any(|f| w.excludes(f.as_bytes()))
            });
            prop_assert!(parents && (missing || expected.is_empty()), "{:?}", copy);
            return Ok(());
        };
        let got: Vec<String> =
            paths(&dump(&rig.store, &chain)).into_iter().filter(|p| !p.ends_with('/')).collect();
        prop_assert_eq!(&got, &expected);
        let key = key_of(&rig, &op, &[&none], &tree, "").digest;
        for file in &files {
            let mut other = tree.clone();
            other.file(file, b"changed", 0o644);
            let changed = key_of(&rig, &op, &[&none], &other, "").digest != key;
            prop_assert_eq!(changed, expected.contains(file), "{}", file);
        }
    }
}
