//! What the tests of this crate share: a store on tmpfs, a tree in memory, chains made by hand.

use keelway_disk::Root;
use keelway_model::clock::SystemClock;
use keelway_model::plan::{Chain, CopyFrom, CopyOp, Unpack};
use keelway_model::{Digest, Output, Tree, TreeEntry, TreeError, TreeKind, TreePath};
use keelway_store::{LAYER_TIME, Store};
use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

/// A store that goes with the test.
pub(crate) struct Rig {
    pub(crate) store: Store,
    _dir: tempfile::TempDir,
}

impl Rig {
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("keelway-image-").tempdir_in("/dev/shm").unwrap();
        let store = Store::open(&dir.path().join("store"), Arc::new(SystemClock)).unwrap();
        Self { store, _dir: dir }
    }
    /// A chain with one more snapshot, filled by `fill`.
    pub(crate) fn on(&self, below: &[&Chain], fill: impl FnOnce(&Root)) -> Chain {
        let upper = self.store.begin().unwrap();
        fill(&upper.root().unwrap());
        let snapshot = upper.freeze().unwrap();
        let mut snapshots: Vec<_> = below.iter().flat_map(|c| c.snapshots.clone()).collect();
        let key = Digest::of(format!("{snapshots:?}{snapshot}").as_bytes());
        snapshots.push(snapshot);
        Chain { snapshots, key }
    }
    pub(crate) fn empty(&self) -> Chain {
        Chain { snapshots: Vec::new(), key: crate::base::chain_key(&[]) }
    }
}

/// Everything in a layer that a step wrote carries the one time, without a walk that sets it.
pub(crate) fn assert_still(dir: &std::path::Path) {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::symlink_metadata(dir).unwrap();
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (LAYER_TIME.seconds(), 0), "{}", dir.display());
    if meta.is_dir() {
        for entry in std::fs::read_dir(dir).unwrap() {
            assert_still(&entry.unwrap().path());
        }
    }
}

pub(crate) fn put(root: &Root, path: &str, content: &str) {
    if let Some((dir, _)) = path.rsplit_once('/') {
        root.mkdir_all(dir.as_bytes(), 0o755).unwrap();
    }
    std::io::Write::write_all(&mut root.create_file(path.as_bytes(), 0o644).unwrap(), content.as_bytes())
        .unwrap();
}

pub(crate) fn out(chain: &Chain) -> Output {
    Output::Chain(chain.clone())
}

pub(crate) fn copy_op(sources: &[&str], dest: &str) -> CopyOp {
    CopyOp {
        sources: sources.iter().map(|s| (*s).to_owned()).collect(),
        from: CopyFrom::Context,
        context: None,
        dest: dest.to_owned(),
        chown: None,
        chmod: None,
        exclude: Vec::new(),
        parents: false,
        link: false,
        unpack: Unpack::Never,
        identity: Digest::of(b"step"),
    }
}

/// A tree in memory, as a plain directory would be: owned by somebody.
#[derive(Default, Clone)]
pub(crate) struct MemTree {
    entries: BTreeMap<TreePath, (TreeEntry, Vec<u8>)>,
}

impl MemTree {
    pub(crate) fn with(files: &[(&str, &str)]) -> Self {
        let mut tree = Self::default();
        for (path, content) in files {
            tree.file(path, content.as_bytes(), 0o644);
        }
        tree
    }
    fn add(&mut self, path: &str, kind: TreeKind, mode: u32, bytes: Vec<u8>) {
        let path = TreePath::from(path);
        let mut parent = path.parent();
        while let Some(p) = parent.filter(|p| !p.is_root()) {
            if !self.entries.contains_key(&p) {
                let entry = Self::entry_of(&p, TreeKind::Directory, 0o755);
                self.entries.insert(p.clone(), (entry, Vec::new()));
            }
            parent = p.parent();
        }
        let entry = Self::entry_of(&path, kind, mode);
        self.entries.insert(path, (entry, bytes));
    }
    fn entry_of(path: &TreePath, kind: TreeKind, mode: u32) -> TreeEntry {
        let name = path.file_name().unwrap_or_default().to_vec();
        TreeEntry { name, kind, mode, uid: 1000, gid: 1000, xattrs: Vec::new(), link_id: None }
    }
    pub(crate) fn file(&mut self, path: &str, bytes: &[u8], mode: u32) {
        self.add(path, TreeKind::File { size: bytes.len() as u64 }, mode, bytes.to_vec());
    }
    pub(crate) fn dir(&mut self, path: &str, mode: u32) {
        self.add(path, TreeKind::Directory, mode, Vec::new());
    }
    pub(crate) fn submodule(&mut self, path: &str) {
        self.add(path, TreeKind::Submodule, 0o755, Vec::new());
    }
    pub(crate) fn link(&mut self, path: &str, target: &str) {
        self.add(path, TreeKind::Symlink { target: target.into() }, 0o777, Vec::new());
    }
    pub(crate) fn hard(&mut self, path: &str, bytes: &[u8], id: u64) {
        self.file(path, bytes, 0o644);
        self.entries.get_mut(&TreePath::from(path)).unwrap().0.link_id = Some((1, id));
    }
}

impl Tree for MemTree {
    fn entry(&self, path: &TreePath) -> Result<Option<TreeEntry>, TreeError> {
        if path.is_root() {
            return Ok(Some(Self::entry_of(path, TreeKind::Directory, 0o755)));
        }
        Ok(self.entries.get(path).map(|(e, _)| e.clone()))
    }
    fn list(&self, path: &TreePath) -> Result<Vec<TreeEntry>, TreeError> {
        Ok(self
            .entries
            .iter()
            .filter(|(p, _)| p.parent().as_ref() == Some(path))
            .map(|(_, (e, _))| e.clone())
            .collect())
    }
    fn open(&self, path: &TreePath) -> Result<Box<dyn Read + Send>, TreeError> {
        match self.entries.get(path) {
            Some((TreeEntry { kind: TreeKind::File { .. }, .. }, bytes)) => {
                Ok(Box::new(std::io::Cursor::new(bytes.clone())))
            }
            _ => Err(TreeError::NotFound { path: path.clone() }),
        }
    }
}

/// Every entry of a chain: `path kind mode uid:gid content-or-target`.
pub(crate) fn dump(store: &Store, chain: &Chain) -> Vec<String> {
    fn walk(tree: &dyn Tree, at: &TreePath, out: &mut Vec<String>) {
        for e in tree.list(at).unwrap() {
            let path = at.join(&e.name).unwrap();
            let (kind, rest) = match &e.kind {
                TreeKind::File { .. } => {
                    let mut text = String::new();
                    tree.open(&path).unwrap().read_to_string(&mut text).unwrap();
                    ("f", text)
                }
                TreeKind::Directory => ("d", String::new()),
                TreeKind::Symlink { target } => ("l", String::from_utf8_lossy(target).into_owned()),
                TreeKind::Fifo => ("p", String::new()),
                TreeKind::Device { major, minor, .. } => ("c", format!("{major}:{minor}")),
                _ => ("?", String::new()),
            };
            let mode = if kind == "l" { 0 } else { e.mode };
            out.push(format!("{path} {kind} {mode:o} {}:{} {rest}", e.uid, e.gid).trim_end().to_owned());
            if e.kind == TreeKind::Directory {
                walk(tree, &path, out);
            }
        }
    }
    let mut out = Vec::new();
    walk(&store.view(&chain.snapshots).unwrap(), &TreePath::root(), &mut out);
    out
}
