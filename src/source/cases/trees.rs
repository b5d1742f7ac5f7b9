//! Files of commits and folders: exact, and safe whatever a repository holds.

use super::World;
use crate::{CommitTree, DirTree};
use keelway_model::{Tree, TreeError, TreeKind, TreePath};
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;

fn raw_id(hex: &str) -> Vec<u8> {
    (0..20).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap()).collect()
}

/// A tree object as git would not write it.
fn raw_tree(entries: &[(&str, &[u8], &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (mode, name, id) in entries {
        out.extend_from_slice(mode.as_bytes());
        out.push(b' ');
        out.extend_from_slice(name);
        out.push(0);
        out.extend_from_slice(&raw_id(id));
    }
    out
}

fn read(tree: &dyn Tree, path: &str) -> String {
    let mut out = String::new();
    tree.open(&TreePath::from(path)).unwrap().read_to_string(&mut out).unwrap();
    out
}

fn tree_of(world: &World, reference: &str) -> CommitTree {
    let mirror = world.fetched();
    mirror.tree(&mirror.resolve(reference).unwrap().commit).unwrap()
}

/// Everything in a commit: path, kind and mode, content.
fn listing(tree: &CommitTree) -> Result<String, TreeError> {
    let mut out = Vec::new();
    let mut folders = vec![TreePath::root()];
    while let Some(folder) = folders.pop() {
        for entry in tree.list(&folder)? {
            let at = folder.join(&entry.name).unwrap();
            match entry.kind {
                TreeKind::Directory => {
                    out.push(format!("{at}/ {:o}", entry.mode));
                    folders.push(at);
                }
                TreeKind::Symlink { target } => out.push(format!("{at} -> {}", target.escape_ascii())),
                TreeKind::File { size } => {
                    let mut bytes = Vec::new();
                    tree.open(&at)?.read_to_end(&mut bytes).unwrap();
                    assert_eq!(bytes.len() as u64, size);
                    out.push(format!("{at} {:o} \"{}\"", entry.mode, bytes.escape_ascii()));
                }
                other => out.push(format!("{at} {other:?}")),
            }
        }
    }
    out.sort();
    Ok(out.join("\n"))
}

#[test]
fn a_commit_is_read_without_a_checkout() {
    let world = World::new();
    let tree = tree_of(&world, "main");
    let names: Vec<String> = tree
        .list(&TreePath::root())
        .unwrap()
        .iter()
        .map(|e| String::from_utf8_lossy(&e.name).into_owned())
        .collect();
    assert_eq!(names, ["README", "run.sh", "src"]);
    let entry = |path: &str| tree.entry(&TreePath::from(path)).unwrap();
    let script = entry("run.sh").unwrap();
    assert_eq!((script.mode, script.uid, script.gid), (0o755, 0, 0));
    assert_eq!(entry("README").unwrap().mode, 0o644);
    assert_eq!(entry("README").unwrap().kind, TreeKind::File { size: 5 });
    assert_eq!(entry("src").unwrap().kind, TreeKind::Directory);
    assert_eq!(entry("src/link").unwrap().kind, TreeKind::Symlink { target: b"../README".to_vec() });
    assert_eq!(entry("").unwrap().kind, TreeKind::Directory);
    for none in ["nothing", "README/x", "src/link/x", "src/nothing/x"] {
        assert!(entry(none).is_none(), "{none}");
    }
    assert_eq!(read(&tree, "README"), "shop\n");
    assert!(tree.open(&TreePath::from("src/link")).is_err(), "a link is not followed");
}

#[test]
fn a_commit_is_exactly_its_objects() {
    let world = World::new();
    let want = "README 644 \"shop\\n\"\nrun.sh 755 \"#!/bin/sh\\n\"\nsrc/ 755\nsrc/link -> ../README\n\
                src/main.c 644 \"int main(void) { return 0; }\\n\"";
    assert_eq!(listing(&tree_of(&world, "main")).unwrap(), want);
}

#[test]
fn memos_name_content() {
    let world = World::new();
    let first = tree_of(&world, "main");
    world.repo.commit_file("README", "changed\n").unwrap();
    let second = tree_of(&world, "main");
    let memo = |t: &CommitTree, p: &str| t.memo(&TreePath::from(p));
    assert_eq!(memo(&first, "src"), memo(&second, "src"));
    assert!(memo(&first, "src").is_some());
    assert_ne!(memo(&first, "README"), memo(&second, "README"));
    assert_ne!(memo(&first, ""), memo(&second, ""));
    world.repo.git(&["update-index", "--chmod=+x", "README"]).unwrap();
    fs::set_permissions(world.repo.path().join("README"), fs::Permissions::from_mode(0o755)).unwrap();
    world.repo.commit("mode").unwrap();
    let third = tree_of(&world, "main");
    assert_ne!(memo(&second, "README"), memo(&third, "README"), "the mode is content");
    assert_eq!(memo(&first, "nothing"), None);
}

#[test]
fn attributes_never_change_bytes_and_run_nothing() {
    let world = World::new();
    let marker = world.dir.path().join("marker");
    let evil = format!("touch {}", marker.display());
    for (key, value) in [
        ("filter.evil.clean", evil.as_str()),
        ("filter.evil.smudge", &evil),
        ("filter.evil.process", &evil),
        ("core.fsmonitor", &evil),
        ("core.sshCommand", &evil),
        ("diff.evil.textconv", &evil),
    ] {
        world.repo.git(&["config", key, value]).unwrap();
    }
    let hook = world.repo.path().join(".git/hooks/post-checkout");
    fs::create_dir_all(hook.parent().unwrap()).unwrap();
    fs::write(&hook, format!("#!/bin/sh\n{evil}\n")).unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    let blob = world.repo.raw_object("blob", b"$Id$\nline\n").unwrap();
    let attributes = world
        .repo
        .raw_object("blob", b"*.x filter=evil diff=evil ident eol=crlf working-tree-encoding=UTF-16\n")
        .unwrap();
    let tree = raw_tree(&[("100644", b".gitattributes", &attributes), ("100644", b"a.x", &blob)]);
    world.repo.commit_raw_tree("attributes", &tree).unwrap();
    let mirror = world.fetched();
    let tree = mirror.tree(&mirror.resolve("attributes").unwrap().commit).unwrap();
    assert_eq!(read(&tree, "a.x"), "$Id$\nline\n");
    assert_eq!(
        tree.unapplied_attributes().as_deref(),
        Some("filter, ident, eol=crlf, working-tree-encoding")
    );
    crate::Checkout::discover(world.repo.path()).unwrap();
    assert!(!marker.exists(), "s04: something of the repository was executed");
}

#[test]
fn submodules_and_lfs_pointers_are_told() {
    let world = World::new();
    let head = world.repo.head().unwrap();
    world.repo.git(&["update-index", "--add", "--cacheinfo", &format!("160000,{head},vendor/lib")]).unwrap();
    world.repo.git(&["commit", "-q", "-m", "submodule"]).unwrap();
    world.repo.git(&["branch", "submodule"]).unwrap();
    world.repo.git(&["reset", "-q", "--hard", "HEAD~1"]).unwrap();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n";
    world.repo.commit_file("assets/big.psd", pointer).unwrap();
    world.repo.git(&["branch", "lfs"]).unwrap();
    let tree = tree_of(&world, "submodule");
    assert_eq!(tree.entry(&TreePath::from("vendor/lib")).unwrap().unwrap().kind, TreeKind::Submodule);
    assert_eq!(tree.memo(&TreePath::from("vendor/lib")), None);
    let lfs = tree_of(&world, "lfs").open(&TreePath::from("assets/big.psd")).err().unwrap();
    assert_eq!(
        lfs.to_string(),
        "cannot read assets/big.psd: a Git LFS pointer at assets/big.psd: not supported yet; \
         commit the file itself, or fetch it in a build step"
    );
}

#[test]
fn s04_s07_hostile_trees_are_unreadable() {
    let world = World::new();
    let file = world.repo.raw_object("blob", b"owned\n").unwrap();
    let link = world.repo.raw_object("blob", world.dir.path().as_os_str().as_encoded_bytes()).unwrap();
    let sub = world.repo.raw_object("tree", &raw_tree(&[("100644", b"sentinel", &file)])).unwrap();
    let empty_link = world.repo.raw_object("blob", b"").unwrap();
    let long_link = world.repo.raw_object("blob", &[b'a'; 5000]).unwrap();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("dotgit", raw_tree(&[("40000", b".git", &sub)])),
        ("dotgit-case", raw_tree(&[("40000", b".GiT", &sub)])),
        ("dotgit-short", raw_tree(&[("40000", b"git~1", &sub)])),
        ("dotgit-ignorable", raw_tree(&[("40000", ".g\u{200c}it".as_bytes(), &sub)])),
        ("dotdot", raw_tree(&[("40000", b"..", &sub)])),
        ("dot", raw_tree(&[("40000", b".", &sub)])),
        ("slash", raw_tree(&[("100644", b"../sentinel", &file)])),
        ("absolute", raw_tree(&[("100644", b"/sentinel", &file)])),
        ("link-and-folder", raw_tree(&[("120000", b"a", &link), ("40000", b"a", &sub)])),
        ("file-twice", raw_tree(&[("100644", b"a", &file), ("100755", b"a", &file)])),
        ("a-tree-as-file", raw_tree(&[("100644", b"a", &sub)])),
        ("device", raw_tree(&[("20644", b"a", &file)])),
        ("empty-link", raw_tree(&[("120000", b"a", &empty_link)])),
        ("long-link", raw_tree(&[("120000", b"a", &long_link)])),
    ];
    for (name, tree) in &cases {
        world.repo.commit_raw_tree(name, tree).unwrap();
    }
    let mirror = world.fetched();
    for (name, _) in &cases {
        let tree = mirror.tree(&mirror.resolve(name).unwrap().commit).unwrap();
        let e = listing(&tree).expect_err(name);
        assert!(matches!(e, TreeError::Io { .. }), "{name}: {e}");
    }
}

#[test]
fn s10_a_tree_that_names_itself_again_and_again_is_not_walked() {
    let world = World::new();
    let file = world.repo.raw_object("blob", b"x").unwrap();
    let ten = |mode: &str, id: &str| {
        let names: Vec<String> = (0..10).map(|i| format!("d{i}")).collect();
        raw_tree(&names.iter().map(|n| (mode, n.as_bytes(), id)).collect::<Vec<_>>())
    };
    let mut id = world.repo.raw_object("tree", &ten("100644", &file)).unwrap();
    for _ in 0..30 {
        id = world.repo.raw_object("tree", &ten("40000", &id)).unwrap();
    }
    world.repo.commit_raw_tree("bomb", &ten("40000", &id)).unwrap();
    let mirror = world.fetched();
    let tree = mirror.tree(&mirror.resolve("bomb").unwrap().commit).unwrap();
    assert!(tree.memo(&TreePath::root()).is_some(), "named without being walked");
    assert_eq!(tree.list(&TreePath::root()).unwrap().len(), 10);
}

#[test]
fn a_folder_as_a_tree_follows_no_link() {
    let world = World::new();
    let dir = world.dir.path().join("plain");
    fs::create_dir_all(dir.join("a/b")).unwrap();
    fs::write(dir.join("a/file"), "x").unwrap();
    fs::set_permissions(dir.join("a/file"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::hard_link(dir.join("a/file"), dir.join("a/same")).unwrap();
    std::os::unix::fs::symlink("/etc", dir.join("etc")).unwrap();
    std::os::unix::fs::symlink("a", dir.join("inside")).unwrap();
    let tree = DirTree::open(&dir).unwrap();
    let entry = |p: &str| tree.entry(&TreePath::from(p)).unwrap();
    assert_eq!(entry("a/file").unwrap().mode, 0o640);
    assert_eq!((entry("a/file").unwrap().uid, entry("a/b").unwrap().kind), (0, TreeKind::Directory));
    assert_eq!(entry("a/file").unwrap().link_id, entry("a/same").unwrap().link_id);
    assert!(entry("a/file").unwrap().link_id.is_some());
    assert_eq!(entry("etc").unwrap().kind, TreeKind::Symlink { target: b"/etc".to_vec() });
    for none in ["etc/passwd", "inside/file", "a/file/x", "nothing"] {
        assert!(entry(none).is_none(), "{none}");
        assert!(tree.open(&TreePath::from(none)).is_err(), "{none}");
    }
    assert!(tree.open(&TreePath::from("etc")).is_err());
    assert!(tree.open_file(&TreePath::from("etc")).is_err());
    let file = tree.open_file(&TreePath::from("a/file")).unwrap().expect("it lies on a disk");
    assert_eq!(std::io::read_to_string(file).unwrap(), "x");
    assert_eq!(read(&tree, "a/file"), "x");
    let names: Vec<Vec<u8>> = tree.list(&TreePath::root()).unwrap().into_iter().map(|e| e.name).collect();
    assert_eq!(names, [b"a".to_vec(), b"etc".to_vec(), b"inside".to_vec()]);
    assert!(tree.list(&TreePath::from("inside")).is_err());
    assert!(tree.list(&TreePath::from("a/file")).is_err());
}
