//! Branches, tags, commits, force-pushes, and what is new since.

use super::{World, fetch, settings};
use crate::{Advance, Mirror, SourceError};
use keelway_model::{CommitId, Tree, TreePath};

fn id(text: &str) -> CommitId {
    text.parse().unwrap()
}

#[test]
fn references_resolve_to_exact_commits() {
    let world = World::new();
    let first = world.repo.head().unwrap();
    world.repo.git(&["tag", "-a", "v1", "-m", "one"]).unwrap();
    world.repo.git(&["branch", "feature/x"]).unwrap();
    let second = world.repo.commit_file("README", "two\n").unwrap();
    let mirror = world.fetched();
    for (name, want, branch) in [
        ("main", &second, Some("main")),
        ("HEAD", &second, Some("main")),
        ("refs/heads/main", &second, Some("main")),
        ("feature/x", &first, Some("feature/x")),
        ("v1", &first, None),
        ("refs/tags/v1", &first, None),
        (first.as_str(), &first, None),
        (&first[..8], &first, None),
    ] {
        let pinned = mirror.resolve(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!((pinned.commit.as_str(), pinned.branch.as_deref()), (want.as_str(), branch), "{name}");
    }
    let pinned = mirror.resolve("main").unwrap();
    assert_eq!(pinned.summary, "Change README");
    assert_eq!(pinned.time.to_string(), "2026-01-01T00:01:00Z");
}

#[test]
fn what_does_not_resolve_is_said() {
    let world = World::new();
    world.repo.git(&["branch", "release-1"]).unwrap();
    world.repo.git(&["tag", "twin"]).unwrap();
    world.repo.commit_file("README", "two\n").unwrap();
    world.repo.git(&["branch", "twin"]).unwrap();
    let tree = world.repo.git(&["rev-parse", "HEAD^{tree}"]).unwrap();
    let mirror = world.fetched();
    let mut out = String::new();
    for name in [
        "realease-1",
        "release",
        "nope",
        "",
        "-x",
        "main:x",
        "..",
        &"0".repeat(40),
        &tree,
        "abcdef0",
        "twin",
        "refs/heads/nope",
    ] {
        let e = mirror.resolve(name).expect_err(name);
        out += &format!("{name:?}: {}\n", world.shown(&e));
    }
    insta::assert_snapshot!(out);
}

#[test]
fn s09_a_commit_on_no_branch_is_refused() {
    let world = World::new();
    let lost = world.repo.commit_file("README", "lost\n").unwrap();
    let mirror = world.fetched();
    assert!(mirror.resolve(&lost).is_ok());
    world.repo.git(&["reset", "-q", "--hard", "HEAD~1"]).unwrap();
    fetch(&mirror, &settings()).unwrap();
    for name in [lost.as_str(), &lost[..10]] {
        let e = mirror.resolve(name).unwrap_err();
        assert!(matches!(&e, SourceError::NotReachable { commit, .. } if commit.as_str() == lost), "{e}");
    }
}

#[test]
fn a_force_push_is_seen() {
    let world = World::new();
    let old = world.repo.commit_file("README", "old\n").unwrap();
    world.repo.git(&["branch", "gone"]).unwrap();
    let mirror = world.fetched();
    world.repo.git(&["reset", "-q", "--hard", "HEAD~1"]).unwrap();
    world.repo.git(&["branch", "-q", "-D", "gone"]).unwrap();
    // A name that was a branch becomes a folder of branches.
    world.repo.git(&["branch", "gone/under"]).unwrap();
    let new = world.repo.commit_file("README", "new\n").unwrap();
    let fetched = fetch(&mirror, &settings()).unwrap();
    assert_eq!(fetched.forced, [("main".to_owned(), id(&old), id(&new))]);
    assert_eq!((fetched.removed, fetched.updated), (1, 1));
    let advance = mirror.first_parent_since(Some(&id(&old)), &id(&new)).unwrap();
    assert_eq!(advance, Advance::ForcePushed { old: id(&old), new: id(&new) });
}

#[test]
fn first_parent_commits_in_order() {
    let world = World::new();
    let first = world.repo.head().unwrap();
    let second = world.repo.commit_file("a", "1").unwrap();
    world.repo.git(&["checkout", "-q", "-b", "side"]).unwrap();
    let side = world.repo.commit_file("b", "1").unwrap();
    world.repo.git(&["checkout", "-q", "main"]).unwrap();
    let third = world.repo.commit_file("a", "2").unwrap();
    world.repo.git(&["merge", "-q", "--no-ff", "-m", "merge", "side"]).unwrap();
    let merge = world.repo.head().unwrap();
    let mirror = world.fetched();
    let since = |old: &str| mirror.first_parent_since(Some(&id(old)), &id(&merge)).unwrap();
    let commits = |ids: &[&String]| Advance::Commits(ids.iter().map(|i| id(i)).collect());
    assert_eq!(mirror.first_parent_since(None, &id(&merge)).unwrap(), commits(&[&merge]), "the tip once");
    assert_eq!(since(&first), commits(&[&second, &third, &merge]));
    assert_eq!(since(&third), commits(&[&merge]));
    assert_eq!(since(&merge), Advance::UpToDate);
    assert_eq!(
        since(&side),
        commits(&[&third, &merge]),
        "the old tip came in as a second parent: no force-push"
    );
    let back = mirror.first_parent_since(Some(&id(&merge)), &id(&second)).unwrap();
    assert!(matches!(back, Advance::ForcePushed { .. }), "a branch that was set back");
    let unknown = mirror.first_parent_since(Some(&id(&"1".repeat(40))), &id(&merge)).unwrap();
    assert!(matches!(unknown, Advance::ForcePushed { .. }));
}

#[test]
fn long_histories_with_merges_agree_with_git() {
    let world = World::new();
    let git = |args: &[&str]| world.repo.git(args).unwrap();
    // Twenty commits on main, a side branch begun every third one and merged two later.
    for n in 0..20 {
        if n % 3 == 0 {
            git(&["branch", "-f", "side"]);
        }
        world.repo.commit_file("a", &n.to_string()).unwrap();
        if n % 3 == 2 {
            git(&["checkout", "-q", "side"]);
            world.repo.commit_file(&format!("b{n}"), "").unwrap();
            git(&["checkout", "-q", "main"]);
            git(&["merge", "-q", "--no-ff", "-m", "merge", "side"]);
        }
    }
    let mirror = world.fetched();
    let tip = world.repo.head().unwrap();
    let all = git(&["rev-list", "HEAD"]);
    assert!(all.lines().count() > 30);
    for old in all.lines().filter(|old| **old != tip) {
        let want = git(&["rev-list", "--first-parent", "--reverse", &format!("{old}..HEAD")]);
        let want = Advance::Commits(want.lines().map(id).collect());
        assert_eq!(mirror.first_parent_since(Some(&id(old)), &id(&tip)).unwrap(), want, "since {old}");
    }
}

#[test]
fn an_empty_repository_has_no_head() {
    let world = World::new();
    let empty = keelway_tests::git::GitRepo::init(&world.projects().join("empty")).unwrap();
    let mirror = world.mirror(&super::url(&empty.path().to_string_lossy()));
    assert_eq!(fetch(&mirror, &settings()).unwrap(), crate::Fetched::default());
    assert!(matches!(mirror.resolve("HEAD"), Err(SourceError::NoReference { .. })));
}

#[test]
fn many_processes_share_one_mirror() {
    let world = World::new();
    let head = world.repo.head().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let mirror = world.fetched();
                assert_eq!(mirror.resolve("main").unwrap().commit.as_str(), head);
            });
        }
    });
    let names: Vec<_> =
        std::fs::read_dir(world.cache().join("git-v1")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "a mirror and its lock, nothing temporary: {names:?}");
}

#[test]
fn a_damaged_mirror_is_fetched_anew() {
    use std::path::Path;
    let world = World::new();
    let first = world.fetched().resolve("main").unwrap().commit;
    let second = id(&world.repo.commit_file("README", "two\n").unwrap());
    world.fetched();
    let dir = {
        let folder = world.cache().join("git-v1");
        let mut names = std::fs::read_dir(folder).unwrap().map(|n| n.unwrap().path());
        names.find(|p| p.is_dir()).unwrap()
    };
    let packs = |dir: &Path| -> Vec<std::path::PathBuf> {
        let all = std::fs::read_dir(dir.join("objects/pack")).unwrap().map(|n| n.unwrap().path());
        all.filter(|p| p.extension().is_some_and(|e| e == "pack")).collect()
    };
    let write = |path: &Path, bytes: &[u8]| {
        let _ = std::fs::remove_file(path);
        std::fs::write(path, bytes).unwrap();
    };
    let halve = |path: &Path| {
        let bytes = std::fs::read(path).unwrap();
        write(path, &bytes[..bytes.len() / 2]);
    };
    let scramble = |path: &Path| {
        let mut bytes = std::fs::read(path).unwrap();
        let end = bytes.len() - 20;
        bytes[12..end].fill(0xa5);
        write(path, &bytes);
    };
    let damages: [(&str, &dyn Fn()); 6] = [
        ("a reference", &|| write(&dir.join("refs/heads/main"), b"123")),
        ("HEAD", &|| write(&dir.join("HEAD"), b"\xff\x00garbage")),
        ("the configuration", &|| write(&dir.join("config"), b"[core\nx")),
        ("a pack cut in half", &|| packs(&dir).iter().for_each(|p| halve(p))),
        ("a pack that is gone", &|| packs(&dir).iter().for_each(|p| std::fs::remove_file(p).unwrap())),
        ("an index", &|| packs(&dir).iter().for_each(|p| halve(&p.with_extension("idx")))),
    ];
    for (what, damage) in damages {
        damage();
        let mirror = Mirror::open(&world.cache(), &world.local()).unwrap_or_else(|e| panic!("{what}: {e}"));
        fetch(&mirror, &settings()).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(mirror.resolve("HEAD").unwrap().commit, second, "{what}");
        let tree = mirror.tree(&first).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(tree.list(&TreePath::root()).is_ok(), "{what}");
    }

    // Damage that shows only when an object is read is mended by the fetch after that.
    packs(&dir).iter().for_each(|p| scramble(p));
    let mirror = Mirror::open(&world.cache(), &world.local()).unwrap();
    let read = fetch(&mirror, &settings())
        .and_then(|_| mirror.resolve("main"))
        .and_then(|found| mirror.tree(&found.commit))
        .map(|tree| tree.list(&TreePath::root()).is_ok());
    assert_ne!(read.ok(), Some(true), "the damage shows");
    // libgit2 shares open packs within a process, by their names.
    drop(mirror);
    let mirror = world.fetched();
    let tree = mirror.tree(&mirror.resolve("main").unwrap().commit).unwrap();
    assert!(tree.list(&TreePath::root()).is_ok());
    let left = std::fs::read_dir(world.cache().join("git-v1")).unwrap().count();
    assert_eq!(left, 2, "a mirror and its lock: nothing that was thrown away");
}
