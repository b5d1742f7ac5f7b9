//! The checkout somebody stands in.

use super::World;
use crate::{Checkout, SourceError};
use keelway_model::{Tree, TreePath};
use std::fs;

#[test]
fn head_branch_remote_and_dirt_are_found() {
    let world = World::new();
    let head = world.repo.head().unwrap();
    world.repo.git(&["remote", "add", "origin", "https://me:s3cret@example.com/shop.git"]).unwrap();
    let clean = Checkout::discover(&world.repo.path().join("src")).unwrap();
    assert_eq!(clean.root, world.repo.path().canonicalize().unwrap());
    assert_eq!(
        {
            let at = clean.head.as_ref().unwrap();
            (at.commit.as_str(), at.branch.as_deref())
        },
        (head.as_str(), Some("main"))
    );
    assert_eq!(
        clean.remote.as_ref().map(ToString::to_string).as_deref(),
        Some("https://example.com/shop.git")
    );
    assert!(!format!("{clean:?}").contains("s3cret"));
    assert!(clean.dirty.is_empty(), "{:?}", clean.dirty);

    world.repo.write(".gitignore", "ignored\n").unwrap();
    world.repo.commit("ignore").unwrap();
    world.repo.write("README", "changed\n").unwrap();
    world.repo.write("ignored", "x").unwrap();
    world.repo.write("new\u{1b}[31m", "x").unwrap();
    fs::remove_file(world.repo.path().join("run.sh")).unwrap();
    let dirty = Checkout::discover(world.repo.path()).unwrap();
    let shown: Vec<String> = dirty.dirty.iter().map(|d| format!("{} {}", d.change, d.path)).collect();
    assert_eq!(shown, ["modified README", "new new\\u{1b}[31m", "deleted run.sh"]);

    let text = |tree: &dyn Tree| {
        let mut out = String::new();
        tree.open(&TreePath::from("README")).unwrap().read_to_string(&mut out).unwrap();
        out
    };
    assert_eq!(text(&dirty.tree().unwrap()), "shop\n", "HEAD");
    let as_it_lies = dirty.dirty_tree().unwrap();
    assert_eq!(text(&as_it_lies), "changed\n");
    assert!(as_it_lies.entry(&TreePath::from(".git")).unwrap().is_none());
    assert!(as_it_lies.entry(&TreePath::from(".git/HEAD")).unwrap().is_none());
    assert!(as_it_lies.list(&TreePath::root()).unwrap().iter().all(|e| e.name != b".git"));
}

#[test]
fn a_detached_head_and_a_linked_work_tree_are_fine() {
    let world = World::new();
    let head = world.repo.head().unwrap();
    world.repo.git(&["checkout", "-q", "--detach"]).unwrap();
    let found = Checkout::discover(world.repo.path()).unwrap();
    assert_eq!(
        found.head.as_ref().map(|h| (h.commit.as_str().to_owned(), h.branch.clone())),
        Some((head, None))
    );
    let linked = world.dir.path().join("linked");
    world.repo.git(&["worktree", "add", "-q", "-b", "other", &linked.to_string_lossy()]).unwrap();
    let found = Checkout::discover(&linked).unwrap();
    assert_eq!(found.head.as_ref().unwrap().branch.as_deref(), Some("other"));
    assert!(found.tree().unwrap().entry(&TreePath::from("README")).unwrap().is_some());
}

#[test]
fn what_is_no_checkout_is_said() {
    let world = World::new();
    let plain = world.dir.path().join("plain");
    fs::create_dir(&plain).unwrap();
    let empty = keelway_tests::git::GitRepo::init(&world.projects().join("empty")).unwrap();
    let bare = world.dir.path().join("bare.git");
    world.repo.git(&["clone", "-q", "--bare", ".", &bare.to_string_lossy()]).unwrap();
    let elsewhere = keelway_tests::git::GitRepo::init(&world.projects().join("elsewhere")).unwrap();
    elsewhere.commit_file("x", "y").unwrap();
    elsewhere.git(&["config", "core.worktree", "/etc"]).unwrap();
    let foreign = keelway_tests::git::GitRepo::init(&world.projects().join("foreign")).unwrap();
    foreign.commit_file("x", "y").unwrap();
    std::process::Command::new("chown").args(["-R", "12345:12345"]).arg(foreign.path()).status().unwrap();
    let mut out = String::new();
    for (name, path) in [
        ("plain", plain.as_path()),
        ("empty", empty.path()),
        ("bare", &bare),
        ("work tree elsewhere", elsewhere.path()),
        ("of another user", foreign.path()),
        ("nothing", &world.dir.path().join("nothing")),
    ] {
        // One without a commit is a checkout: its tree can be taken as it lies there.
        let e: SourceError = match Checkout::discover(path) {
            Ok(found) if name == "empty" => {
                assert!(found.dirty_tree().is_ok());
                found.tree().err().expect(name)
            }
            other => other.expect_err(name),
        };
        out += &format!("{name}: {}\n", world.shown(&e));
    }
    insta::assert_snapshot!(out);
}
