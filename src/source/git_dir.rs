//! What `.git` of a checkout of one commit holds: that commit and its files, as a shallow clone has them.
//!
//! The same commit, address and branch give the same bytes on every machine: objects are packed by one thread, the index
//! knows no times, and all modes are set. There is no hook, log or template in it.

use crate::mirror::oid_of;
use crate::{CommitTree, SourceError};
use git2::{Index, Repository};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

impl CommitTree {
    /// Fills `dir`, an empty folder of ours, with a git directory whose work tree is this commit: on the branch where
    /// one is given, else detached. `remote` becomes `origin`.
    pub fn write_git_dir(&self, dir: &Path, remote: &str, branch: Option<&str>) -> Result<(), SourceError> {
        let what = "cannot write the .git of a repository";
        let git = |e: &git2::Error| SourceError::git(what, e);
        let io = |e| SourceError::io(what, e);
        let repo = self.repo();
        let commit = repo.find_commit(oid_of(self.commit())).map_err(|e| git(&e))?;
        for folder in ["objects/pack", "refs/heads", "refs/tags"] {
            fs::create_dir_all(dir.join(folder)).map_err(io)?;
        }
        let id = self.commit().as_str();
        let branch =
            branch.map(|b| format!("refs/heads/{b}")).filter(|name| git2::Reference::is_valid_name(name));
        let head = match &branch {
            Some(name) => format!("ref: {name}\n"),
            None => format!("{id}\n"),
        };
        let mut files = vec![("HEAD", head), ("config", config(remote))];
        if let Some(name) = &branch {
            files.push((
                "packed-refs",
                format!("# pack-refs with: peeled fully-peeled sorted \n{id} {name}\n"),
            ));
        }
        if commit.parent_count() > 0 {
            files.push(("shallow", format!("{id}\n")));
        }
        for (name, text) in files {
            fs::write(dir.join(name), text).map_err(io)?;
        }
        pack(&repo, &commit, &dir.join("objects/pack")).map_err(|e| git(&e))?;
        index(&commit, &dir.join("index")).map_err(|e| git(&e))?;
        set_modes(dir, 0).map_err(io)
    }
}

fn config(remote: &str) -> String {
    let url = remote.replace('\\', "\\\\").replace('"', "\\\"");
    format!(
        "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = false\n\tlogallrefupdates = true\n\
         [remote \"origin\"]\n\turl = \"{url}\"\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n"
    )
}

/// The commit, its folders and files in one pack.
fn pack(repo: &Repository, commit: &git2::Commit<'_>, into: &Path) -> Result<(), git2::Error> {
    let mut pack = repo.packbuilder()?;
    pack.set_threads(1);
    pack.insert_commit(commit.id())?;
    pack.write(into, 0o444)
}

/// An index without times: git compares the files themselves when it is first asked.
fn index(commit: &git2::Commit<'_>, at: &Path) -> Result<(), git2::Error> {
    let mut index = Index::open(at)?;
    index.read_tree(&commit.tree()?)?;
    index.write()
}

fn set_modes(dir: &Path, depth: usize) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let folder = entry.file_type()?.is_dir();
        // What was written above is three folders deep.
        if folder && depth < 4 {
            set_modes(&entry.path(), depth + 1)?;
        }
        let packed = entry.path().extension().is_some_and(|e| e == "pack" || e == "idx");
        let mode = match (folder, packed) {
            (true, _) => 0o755,
            (false, true) => 0o444,
            (false, false) => 0o644,
        };
        fs::set_permissions(entry.path(), fs::Permissions::from_mode(mode))?;
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))
}

#[cfg(test)]
mod tests {
    use crate::{GitSettings, Mirror, Origin, RepoUrl};
    use keelway_tests::git::{GitRepo, git};
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::Path;

    fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
        let mut out = BTreeMap::new();
        let mut folders = vec![dir.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => folders.push(path),
                    false => {
                        let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
                        out.insert(name, fs::read(&path).unwrap());
                    }
                }
            }
        }
        out
    }

    #[test]
    fn a_git_directory_is_a_shallow_clone_and_always_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let work = GitRepo::init(&dir.path().join("far")).unwrap();
        work.commit_file("old", "1").unwrap();
        work.write("sub/a b", "text").unwrap();
        let commit = work.commit_file("run", "#!/bin/sh\n").unwrap();
        let url = RepoUrl::parse(work.path().to_str().unwrap(), Origin::CommandLine).unwrap();
        let http = keelway_http::Client::new(keelway_http::Settings::default()).unwrap();
        let mut made = Vec::new();
        for cache in ["c1", "c2"] {
            let mirror = Mirror::open(&dir.path().join(cache), &url).unwrap();
            mirror.fetch(&GitSettings::new(http.clone()), &mut |_| {}).unwrap();
            let found = mirror.resolve("HEAD").unwrap();
            assert_eq!(found.commit.as_str(), commit);
            let tree = mirror.tree(&found.commit).unwrap();
            for (name, branch) in [("on", found.branch.as_deref()), ("off", None)] {
                let at = dir.path().join(format!("{cache}-{name}"));
                fs::create_dir_all(at.join(".git")).unwrap();
                tree.write_git_dir(&at.join(".git"), "https://example.com/a\"b", branch).unwrap();
                made.push(files(&at.join(".git")));
                for (path, text) in [("old", "1"), ("sub/a b", "text"), ("run", "#!/bin/sh\n")] {
                    fs::create_dir_all(at.join(path).parent().unwrap()).unwrap();
                    fs::write(at.join(path), text).unwrap();
                }
                let said = |args: &[&str]| {
                    let out = git(&at).args(args).output().unwrap();
                    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
                    String::from_utf8(out.stdout).unwrap().trim().to_owned()
                };
                assert_eq!(said(&["rev-parse", "HEAD"]), commit);
                assert_eq!(said(&["status", "--porcelain"]), "");
                assert_eq!(said(&["rev-list", "--count", "HEAD"]), "1");
                assert_eq!(said(&["config", "remote.origin.url"]), "https://example.com/a\"b");
                said(&["fsck", "--strict"]);
                let on = said(&["rev-parse", "--abbrev-ref", "HEAD"]);
                assert_eq!(on, branch.unwrap_or("HEAD"));
            }
        }
        assert_eq!(made[0], made[2]);
        assert_eq!(made[1], made[3]);
    }
}
