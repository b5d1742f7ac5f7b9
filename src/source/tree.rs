//! The files of a commit, straight from git's objects.
//!
//! The rule for attributes: a file of a commit is its blob, byte for byte. What `.gitattributes` asks a checkout to do to
//! bytes (`filter`, `eol`, `ident`, `working-tree-encoding`, `export-subst`) is never done, on any machine; so the content
//! does not depend on settings, no program of a repository runs, and a git id names the content (the memo) without an
//! exception. Files that are useless without their filter are refused by name where they can be told: Git LFS pointers.
//! [`CommitTree::unapplied_attributes`] says what a checkout would have changed, for a notice to people.
//!
//! Names that could lead elsewhere on some file system (`..`, `.git` in every spelling, one name twice) make their folder
//! unreadable (S03, S04, S07).

use crate::SourceError;
use crate::mirror::oid_of;
use git2::{ObjectType, Oid, Repository};
use keelway_model::{CommitId, Digest, Hasher, Tree, TreeEntry, TreeError, TreeKind, TreePath};
use std::io::{self, Cursor, Read};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Longest target of a symbolic link that Linux takes.
const MAX_LINK: usize = 4095;
/// Largest file that is read: it is held in memory.
pub(crate) const MAX_FILE: u64 = 2 << 30;
/// Files larger than this are no Git LFS pointers.
const MAX_POINTER: usize = 1024;
/// Bytes of `.gitattributes` that are looked at.
const MAX_ATTRIBUTES: usize = 1 << 20;

/// The kind of an error when git's objects could not be read.
const UNREADABLE: io::ErrorKind = io::ErrorKind::Other;

/// A commit as a tree: files 0644 or 0755, directories 0755, everything owned by 0:0.
pub struct CommitTree {
    commit: CommitId,
    root: Oid,
    repo: Mutex<Repository>,
    /// Where to leave word when objects cannot be read.
    mirror: Option<PathBuf>,
}

/// An entry as git has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Found {
    oid: Oid,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    File { mode: u32 },
    Link,
    Directory,
    Submodule,
}

impl Kind {
    fn of(mode: i32) -> Option<Self> {
        Some(match mode & 0o170_000 {
            0o040_000 => Self::Directory,
            0o120_000 => Self::Link,
            0o160_000 => Self::Submodule,
            0o100_000 if mode & 0o100 != 0 => Self::File { mode: 0o755 },
            0o100_000 => Self::File { mode: 0o644 },
            _ => return None,
        })
    }
}

impl CommitTree {
    pub(crate) fn open(repo: Repository, commit: &CommitId) -> Result<Self, SourceError> {
        let root = repo
            .find_commit(oid_of(commit))
            .map(|c| c.tree_id())
            .map_err(|e| SourceError::git(format!("cannot read commit {commit}"), &e))?;
        Ok(Self { commit: commit.clone(), root, repo: Mutex::new(repo), mirror: None })
    }

    /// The objects are those of this mirror, which is thrown away if they cannot be read.
    pub(crate) fn of_mirror(mut self, dir: PathBuf) -> Self {
        self.mirror = Some(dir);
        self
    }

    /// A result, after a look at why there is none.
    fn told<T>(&self, result: Result<T, TreeError>) -> Result<T, TreeError> {
        if let (Some(dir), Err(TreeError::Io { source, .. })) = (&self.mirror, &result)
            && source.kind() == UNREADABLE
        {
            crate::mirror::doubt(dir);
        }
        result
    }

    /// The commit.
    pub fn commit(&self) -> &CommitId {
        &self.commit
    }

    pub(crate) fn repo(&self) -> MutexGuard<'_, Repository> {
        self.repo.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the root's `.gitattributes` would have a checkout change, in words; `None` where there is nothing.
    pub fn unapplied_attributes(&self) -> Option<String> {
        let path = TreePath::root().join(b".gitattributes")?;
        let mut text = Vec::new();
        Tree::open(self, &path).ok()?.take(MAX_ATTRIBUTES as u64).read_to_end(&mut text).ok()?;
        changing(&String::from_utf8_lossy(&text))
    }

    fn find(&self, repo: &Repository, path: &TreePath) -> Result<Option<Found>, TreeError> {
        let mut at = Found { oid: self.root, kind: Kind::Directory };
        for name in path.components() {
            if at.kind != Kind::Directory {
                return Ok(None);
            }
            let tree = repo.find_tree(at.oid).map_err(|e| failed(path, &e))?;
            let Some(entry) = tree.get_name_bytes(name) else { return Ok(None) };
            let Some(kind) = Kind::of(entry.filemode_raw()) else {
                return Err(hostile(path, "has a mode that git does not use"));
            };
            at = Found { oid: entry.id(), kind };
        }
        Ok(Some(at))
    }

    fn describe(
        &self,
        repo: &Repository,
        path: &TreePath,
        name: &[u8],
        found: Found,
    ) -> Result<TreeEntry, TreeError> {
        let (kind, mode) = match found.kind {
            Kind::Directory => (TreeKind::Directory, 0o755),
            Kind::Submodule => (TreeKind::Submodule, 0o755),
            Kind::File { mode } => (TreeKind::File { size: blob_size(repo, path, found.oid)? }, mode),
            Kind::Link => {
                if blob_size(repo, path, found.oid)? > MAX_LINK as u64 {
                    return Err(hostile(path, "is a symbolic link longer than 4095 bytes"));
                }
                let blob = repo.find_blob(found.oid).map_err(|e| failed(path, &e))?;
                if blob.content().is_empty() || blob.content().contains(&0) {
                    return Err(hostile(path, "is a symbolic link that points to no possible path"));
                }
                (TreeKind::Symlink { target: blob.content().to_vec() }, 0o777)
            }
        };
        Ok(TreeEntry { name: name.to_vec(), kind, mode, uid: 0, gid: 0, xattrs: Vec::new(), link_id: None })
    }
}

fn blob_size(repo: &Repository, path: &TreePath, oid: Oid) -> Result<u64, TreeError> {
    match repo.odb().and_then(|odb| odb.read_header(oid)) {
        Ok((size, ObjectType::Blob)) => Ok(size as u64),
        Ok(_) => Err(hostile(path, "is no file though its mode says so")),
        Err(e) => Err(failed(path, &e)),
    }
}

fn failed(path: &TreePath, e: &git2::Error) -> TreeError {
    TreeError::Io { path: path.clone(), source: io::Error::new(UNREADABLE, SourceError::git("git", e)) }
}

fn hostile(path: &TreePath, why: &str) -> TreeError {
    TreeError::Io {
        path: path.clone(),
        source: io::Error::new(io::ErrorKind::InvalidData, format!("it {why}")),
    }
}

impl CommitTree {
    fn read_entry(&self, path: &TreePath) -> Result<Option<TreeEntry>, TreeError> {
        let repo = self.repo();
        let Some(found) = self.find(&repo, path)? else { return Ok(None) };
        self.describe(&repo, path, path.file_name().unwrap_or(b""), found).map(Some)
    }

    fn read_list(&self, path: &TreePath) -> Result<Vec<TreeEntry>, TreeError> {
        let repo = self.repo();
        let found = self.find(&repo, path)?.ok_or_else(|| TreeError::NotFound { path: path.clone() })?;
        if found.kind != Kind::Directory {
            return Err(TreeError::WrongKind { path: path.clone(), wanted: "a directory" });
        }
        let tree = repo.find_tree(found.oid).map_err(|e| failed(path, &e))?;
        let mut out = Vec::with_capacity(tree.len());
        for entry in &tree {
            let name = entry.name_bytes();
            if let Some(why) = forbidden(name) {
                let shown = path.join(name).unwrap_or_else(|| path.clone());
                return Err(hostile(&shown, why));
            }
            let at = path.join(name).ok_or_else(|| hostile(path, "holds a name that is no name"))?;
            let Some(kind) = Kind::of(entry.filemode_raw()) else {
                return Err(hostile(&at, "has a mode that git does not use"));
            };
            out.push(self.describe(&repo, &at, name, Found { oid: entry.id(), kind })?);
        }
        out.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(twice) = out.windows(2).find(|w| w[0].name == w[1].name) {
            let at = path.join(&twice[0].name).unwrap_or_else(|| path.clone());
            return Err(hostile(&at, "stands twice in its folder"));
        }
        Ok(out)
    }

    fn read_file(&self, path: &TreePath) -> Result<Box<dyn Read + Send>, TreeError> {
        let repo = self.repo();
        let found = self.find(&repo, path)?.ok_or_else(|| TreeError::NotFound { path: path.clone() })?;
        if !matches!(found.kind, Kind::File { .. }) {
            return Err(TreeError::WrongKind { path: path.clone(), wanted: "a regular file" });
        }
        if blob_size(&repo, path, found.oid)? > MAX_FILE {
            return Err(hostile(path, "is larger than 2 GiB"));
        }
        let odb = repo.odb().map_err(|e| failed(path, &e))?;
        let bytes = odb.read(found.oid).map_err(|e| failed(path, &e))?.data().to_vec();
        if is_lfs_pointer(&bytes) {
            let refused = SourceError::Unsupported {
                what: "a Git LFS pointer",
                path: path.to_string(),
                hint: "; commit the file itself, or fetch it in a build step",
            };
            return Err(TreeError::Io {
                path: path.clone(),
                source: io::Error::new(io::ErrorKind::Unsupported, refused),
            });
        }
        Ok(Box::new(Cursor::new(bytes)))
    }
}

impl Tree for CommitTree {
    fn entry(&self, path: &TreePath) -> Result<Option<TreeEntry>, TreeError> {
        self.told(self.read_entry(path))
    }

    fn list(&self, path: &TreePath) -> Result<Vec<TreeEntry>, TreeError> {
        self.told(self.read_list(path))
    }

    fn open(&self, path: &TreePath) -> Result<Box<dyn Read + Send>, TreeError> {
        self.told(self.read_file(path))
    }

    fn memo(&self, path: &TreePath) -> Option<Digest> {
        let found = self.find(&self.repo(), path).ok()??;
        let (word, mode) = match found.kind {
            Kind::Directory => ("tree", 0o755),
            Kind::File { mode } => ("file", mode),
            Kind::Link => ("link", 0),
            Kind::Submodule => return None,
        };
        let mut hasher = Hasher::new();
        hasher
            .field(b"git")
            .field(word.as_bytes())
            .field(&u32::to_le_bytes(mode))
            .field(found.oid.as_bytes());
        Some(hasher.finish())
    }
}

fn is_lfs_pointer(bytes: &[u8]) -> bool {
    bytes.len() <= MAX_POINTER
        && (bytes.starts_with(b"version https://git-lfs.github.com/spec/")
            || bytes.starts_with(b"version https://hawser.github.com/spec/"))
}

/// Why a name may not be in a tree.
pub(crate) fn forbidden(name: &[u8]) -> Option<&'static str> {
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0) {
        return Some("holds a name that leads out of its folder");
    }
    is_dot_git(name).then_some("is named like git's own folder")
}

/// `.git` as any file system could read it: case, the short name of FAT, trailing dots and spaces, streams of NTFS,
/// characters that HFS+ ignores.
fn is_dot_git(name: &[u8]) -> bool {
    let text = String::from_utf8_lossy(name);
    let ignored = |c: char| matches!(c, '\u{200c}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{206a}'..='\u{206f}' | '\u{feff}');
    let plain: String = text.chars().filter(|c| !ignored(*c)).collect::<String>().to_lowercase();
    let plain = plain.split(['\\', ':']).next().unwrap_or("").trim_end_matches([' ', '.']);
    plain == ".git" || plain == "git~1"
}

/// Attributes that make a checkout differ from the blobs.
fn changing(text: &str) -> Option<String> {
    let mut found: Vec<&str> = Vec::new();
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        for attribute in line.split_whitespace().skip(1) {
            let name = match attribute.split_once('=') {
                Some(("filter", _)) => "filter",
                Some(("working-tree-encoding", _)) => "working-tree-encoding",
                Some(("eol", "crlf")) => "eol=crlf",
                None if attribute == "ident" => "ident",
                None if attribute == "export-subst" => "export-subst",
                _ => continue,
            };
            if !found.contains(&name) {
                found.push(name);
            }
        }
    }
    (!found.is_empty()).then(|| found.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s04_every_spelling_of_git_s_folder_is_known() {
        for bad in [
            ".git",
            ".GIT",
            ".Git",
            "git~1",
            "GIT~1",
            ".git.",
            ".git ",
            ".git . ",
            ".git::$INDEX_ALLOCATION",
            ".g\u{200c}it",
            ".git\\x",
        ] {
            assert!(forbidden(bad.as_bytes()).is_some(), "{bad:?}");
        }
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0"] {
            assert!(forbidden(bad).is_some(), "{bad:?}");
        }
        for good in [".gitignore", ".gitattributes", ".github", "git", "x.git", ".gi", "git~2", "..."] {
            assert!(forbidden(good.as_bytes()).is_none(), "{good:?}");
        }
    }

    #[test]
    fn attributes_that_change_bytes_are_named() {
        assert_eq!(changing("* text=auto\n*.png binary\n*.sh eol=lf\n"), None);
        assert_eq!(
            changing("# *.x filter=y\n*.psd filter=lfs diff=lfs -text\n*.c ident\n"),
            Some("filter, ident".into())
        );
    }
}
