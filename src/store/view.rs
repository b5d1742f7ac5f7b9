//! A chain of snapshots read as one tree, without a mount.
//!
//! The rules are overlayfs's own: the topmost layer that has a name decides; a whiteout ends the search; a
//! directory merges with directories below it until an opaque one, or something that is no directory. A
//! path is the same in every layer, because redirects are off.
//!
//! Snapshots do not change, so which layers hold a directory is remembered.

use crate::error::StoreError;
use crate::open::Store;
use crate::walk::overlay;
use keelway_disk::{NodeKind, Root, Stat};
use keelway_model::{Digest, Hasher, SnapshotId, Tree, TreeEntry, TreeError, TreeKind, TreePath};
use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io::{self, Read};
use std::sync::{Arc, Mutex};

/// Links followed in one path, as the kernel does.
const MAX_LINKS: usize = 40;

/// Directories remembered; beyond that, memory starts anew.
const MAX_KNOWN: usize = 65_536;

/// Files from this size on have a memo of their own.
const MEMO_FILE: u64 = 1 << 20;

/// The layers that hold a directory, topmost first; empty when there is no such directory.
type Holders = Arc<Vec<usize>>;

/// The merged view of a chain.
pub struct View {
    /// Topmost first.
    layers: Vec<Root>,
    chain: Digest,
    known: Mutex<HashMap<TreePath, Holders>>,
}

impl Store {
    /// The merged view of `chain`, lowest first; an empty chain is an empty root.
    pub fn view(&self, chain: &[SnapshotId]) -> Result<View, StoreError> {
        let mut layers = Vec::with_capacity(chain.len());
        let mut hasher = Hasher::new();
        for id in chain {
            let dir = self.existing(id)?;
            let root = Root::open(&dir).map_err(StoreError::io("open", &dir))?;
            layers.push(root);
            hasher.field(id.as_str().as_bytes());
        }
        layers.reverse();
        Ok(View { layers, chain: hasher.finish(), known: Mutex::default() })
    }
}

fn io_error(path: &TreePath) -> impl Fn(io::Error) -> TreeError {
    let path = path.clone();
    move |source| TreeError::Io { path: path.clone(), source }
}

impl View {
    /// Follows every symbolic link in `path`, inside the root, as a process in it would. Components that do
    /// not exist are kept as they are written, so the answer may name something that is not there.
    /// Errors: more than 40 links (ELOOP).
    pub fn resolve(&self, path: &TreePath) -> Result<TreePath, TreeError> {
        let mut left: VecDeque<Vec<u8>> = path.components().map(<[u8]>::to_vec).collect();
        let mut at = TreePath::root();
        let mut links = 0;
        while let Some(part) = left.pop_front() {
            match &part[..] {
                b"" | b"." => continue,
                b".." => {
                    at = at.parent().unwrap_or_default();
                    continue;
                }
                _ => {}
            }
            let Some(next) = at.join(&part) else { continue };
            let Some((_, stat, layer)) = self.find(&next)? else {
                at = next;
                continue;
            };
            if stat.kind != NodeKind::Symlink {
                at = next;
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                let source = io::Error::other("too many levels of symbolic links");
                return Err(TreeError::Io { path: path.clone(), source });
            }
            let target = layer.read_link(next.as_bytes()).map_err(io_error(&next))?;
            if target.first() == Some(&b'/') {
                at = TreePath::root();
            }
            for part in target.split(|&b| b == b'/').rev() {
                left.push_front(part.to_vec());
            }
        }
        Ok(at)
    }

    /// The topmost entry of a name, and its layer.
    fn find(&self, path: &TreePath) -> Result<Option<(usize, Stat, &Root)>, TreeError> {
        let Some(parent) = path.parent() else {
            let Some(layer) = self.layers.first() else { return Ok(None) };
            let stat = layer.stat(b"").map_err(io_error(path))?;
            return Ok(stat.map(|s| (0, s, layer)));
        };
        for &index in self.holders(&parent)?.iter() {
            let layer = &self.layers[index];
            match layer.stat(path.as_bytes()).map_err(io_error(path))? {
                Some(stat) if stat.kind == overlay::WHITEOUT => return Ok(None),
                Some(stat) => return Ok(Some((index, stat, layer))),
                None => {}
            }
        }
        Ok(None)
    }

    /// When an entry's content last changed, in seconds since the epoch; `None` where there is nothing.
    pub(crate) fn modified(&self, path: &TreePath) -> Result<Option<i64>, TreeError> {
        Ok(self.find(path)?.map(|(_, stat, _)| stat.mtime))
    }

    /// The regular file at `path`.
    fn file(&self, path: &TreePath) -> Result<File, TreeError> {
        match self.find(path)? {
            None => Err(TreeError::NotFound { path: path.clone() }),
            Some((_, stat, _)) if stat.kind != NodeKind::File => {
                Err(TreeError::WrongKind { path: path.clone(), wanted: "a regular file" })
            }
            Some((_, _, layer)) => layer.open_file_nofollow(path.as_bytes()).map_err(io_error(path)),
        }
    }

    /// The layers whose directory `path` shows.
    fn holders(&self, path: &TreePath) -> Result<Holders, TreeError> {
        // From the root down, so that a deep path needs no deep recursion.
        let mut at = TreePath::root();
        let mut holders = self.known_holders(&at, None)?;
        for part in path.components() {
            at = at.join(part).ok_or_else(|| TreeError::NotFound { path: path.clone() })?;
            holders = self.known_holders(&at, Some(&holders))?;
            if holders.is_empty() {
                break;
            }
        }
        Ok(holders)
    }

    fn known_holders(&self, path: &TreePath, parent: Option<&Holders>) -> Result<Holders, TreeError> {
        let known = || self.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(found) = known().get(path) {
            return Ok(found.clone());
        }
        let every: Vec<usize> = (0..self.layers.len()).collect();
        let mut out = Vec::new();
        for &index in parent.map_or(&every, |p| p) {
            let root = &self.layers[index];
            let Some(stat) = root.stat(path.as_bytes()).map_err(io_error(path))? else { continue };
            if stat.kind != NodeKind::Directory {
                break;
            }
            out.push(index);
            // The kernel merges the roots of all layers, whatever their attributes say.
            if parent.is_some() && overlay::is_opaque(&root.xattrs(path.as_bytes()).map_err(io_error(path))?)
            {
                break;
            }
        }
        let out = Arc::new(out);
        let mut known = known();
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert(path.clone(), out.clone());
        Ok(out)
    }

    fn tree_entry(&self, dir: &Root, name: &[u8], stat: &Stat) -> io::Result<TreeEntry> {
        let kind = match stat.kind {
            NodeKind::File => TreeKind::File { size: stat.size },
            NodeKind::Directory => TreeKind::Directory,
            NodeKind::Symlink => TreeKind::Symlink { target: dir.read_link(name)? },
            NodeKind::Fifo => TreeKind::Fifo,
            NodeKind::Socket => TreeKind::Socket,
            NodeKind::Device { character, major, minor } => TreeKind::Device { character, major, minor },
        };
        let mut xattrs = match stat.kind {
            NodeKind::File | NodeKind::Directory => dir.xattrs(name)?,
            _ => Vec::new(),
        };
        xattrs.retain(|(n, _)| overlay::is_for_images(n));
        let linked = stat.links > 1 && stat.kind != NodeKind::Directory;
        Ok(TreeEntry {
            name: name.to_vec(),
            kind,
            mode: if stat.kind == NodeKind::Symlink { 0o777 } else { stat.mode },
            uid: stat.uid,
            gid: stat.gid,
            xattrs,
            link_id: linked.then_some(stat.id),
        })
    }
}

impl Tree for View {
    fn entry(&self, path: &TreePath) -> Result<Option<TreeEntry>, TreeError> {
        let Some((_, stat, layer)) = self.find(path)? else {
            // An empty chain still has a root.
            let empty = TreeEntry {
                name: Vec::new(),
                kind: TreeKind::Directory,
                mode: 0o755,
                uid: 0,
                gid: 0,
                xattrs: Vec::new(),
                link_id: None,
            };
            return Ok(path.is_root().then_some(empty));
        };
        let mut entry = self.tree_entry(layer, path.as_bytes(), &stat).map_err(io_error(path))?;
        entry.name = path.file_name().unwrap_or_default().to_vec();
        Ok(Some(entry))
    }

    fn list(&self, path: &TreePath) -> Result<Vec<TreeEntry>, TreeError> {
        let holders = self.holders(path)?;
        if holders.is_empty() && !path.is_root() {
            return Err(match self.find(path)? {
                None => TreeError::NotFound { path: path.clone() },
                Some(_) => TreeError::WrongKind { path: path.clone(), wanted: "a directory" },
            });
        }
        let mut out = Vec::new();
        let mut seen = HashSet::new();
        let several = holders.len() > 1;
        for &index in holders.iter() {
            let layer = &self.layers[index];
            let dir = layer.open_dir(path.as_bytes()).map_err(io_error(path))?;
            for item in dir.list(b"").map_err(io_error(path))? {
                if several && !seen.insert(item.name.clone()) {
                    continue;
                }
                let Some(stat) = dir.stat(&item.name).map_err(io_error(path))? else { continue };
                if stat.kind != overlay::WHITEOUT {
                    out.push(self.tree_entry(&dir, &item.name, &stat).map_err(io_error(path))?);
                }
            }
        }
        if several {
            out.sort_by(|a, b| a.name.cmp(&b.name));
        }
        Ok(out)
    }

    fn open(&self, path: &TreePath) -> Result<Box<dyn Read + Send>, TreeError> {
        Ok(Box::new(self.file(path)?))
    }

    fn open_file(&self, path: &TreePath) -> Result<Option<File>, TreeError> {
        self.file(path).map(Some)
    }

    /// Snapshots never change and their ids are never used again, so the chain and the path name the content.
    /// Only for what is worth remembering: directories and big files.
    fn memo(&self, path: &TreePath) -> Option<Digest> {
        let (_, stat, _) = self.find(path).ok()??;
        match stat.kind {
            NodeKind::Directory => {}
            NodeKind::File if stat.size >= MEMO_FILE => {}
            _ => return None,
        }
        let mut h = Hasher::new();
        h.field(b"keelway view").field(self.chain.as_bytes()).field(path.as_bytes());
        Some(h.finish())
    }
}
