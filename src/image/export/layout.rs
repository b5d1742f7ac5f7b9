//! An image in an OCI layout directory, beside what is there already.
//!
//! A blob appears whole under its name, and the index last, each by a rename: a reader at any moment finds a layout that
//! holds together. Names that the index has already move to the new image; what it has under others stays.

use super::{Checked, ExportError, IMAGE_NAME, LAYOUT, REF_NAME, blob_path, blobs_of, entries, index, json};
use crate::cache::{Cache, MAX_CONFIG};
use crate::import;
use keelway_disk::{Lock, NodeKind, Root};
use keelway_model::document::{self, Document};
use keelway_model::oci::{Descriptor, Index};
use keelway_model::{Digest, ImageRef};
use keelway_store::Store;
use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// Largest index that is read.
const MAX_INDEX: u64 = 4 << 20;
/// The file that writers lock.
const LOCK: &str = ".keelway.lock";
/// How long another writer may take.
const PEER: Duration = Duration::from_secs(600);

/// Puts an image of the store into the layout at `dir`, which is made where there is none.
pub fn layout(store: &Store, image: &Descriptor, names: &[ImageRef], dir: &Path) -> Result<(), ExportError> {
    let layout = Layout::open(dir)?;
    layout.blobs(store, image)?;
    layout.name(entries(image, names))
}

/// Writes a cache under a tag of the layout at `dir`, with what is still whole of the one that is there already, and gives
/// what was written. Blobs that only the earlier one named go.
pub fn cache(store: &Store, cache: Cache, tag: &str, dir: &Path) -> Result<Cache, ExportError> {
    let layout = Layout::open(dir)?;
    let is_ours = |d: &Descriptor| d.annotations.get(REF_NAME).is_some_and(|t| t == tag);
    let old = layout.index()?.manifests.into_iter().find(is_ours);
    // What cannot be read there is replaced.
    let earlier = import::artifact(store, dir, tag, MAX_CONFIG).ok().flatten();
    let mut earlier =
        earlier.and_then(|(manifest, config)| Cache::read(&manifest, &config).ok()).unwrap_or_default();
    earlier.retain(|layer| layout.has(&layer.descriptor.digest, layer.descriptor.size));
    let cache = cache.after(earlier);
    let manifest = cache.write(store)?;
    layout.blobs(store, &manifest)?;
    let mut entry = manifest;
    entry.annotations.insert(REF_NAME.to_owned(), tag.to_owned());
    layout.name(vec![entry])?;
    if let Some(old) = old {
        layout.sweep(store, &old)?;
    }
    Ok(cache)
}

/// A layout that is written, by nobody else.
pub(crate) struct Layout<'a> {
    root: Root,
    dir: &'a Path,
    _lock: Lock,
}

impl<'a> Layout<'a> {
    /// Opens or makes it. A directory that holds other things is refused.
    pub(crate) fn open(dir: &'a Path) -> Result<Self, ExportError> {
        let failed = |what: &str| {
            let (what, to) = (what.to_owned(), dir.display().to_string());
            move |source| ExportError::Write { what, to, source }
        };
        std::fs::create_dir_all(dir).map_err(failed("the folder"))?;
        let root = Root::open(dir).map_err(failed("the folder"))?;
        let items = root.list(b"").map_err(failed("the folder"))?;
        let foreign = |name: &[u8]| name != LOCK.as_bytes() && !name.starts_with(b".tmp-");
        if items.iter().any(|i| foreign(&i.name)) && !items.iter().any(|i| i.name == b"oci-layout") {
            let why = "it holds other files, and no oci-layout: name an empty or a new directory".to_owned();
            return Err(ExportError::Refused { dir: dir.to_owned(), why });
        }
        let lock = Lock::take(&dir.join(LOCK), Instant::now() + PEER, &|| false)?;
        let layout = Self { root, dir, _lock: lock };
        layout.root.mkdir_all(b"blobs/sha256", 0o755).map_err(layout.failed("blobs"))?;
        if layout.root.stat(b"oci-layout").map_err(layout.failed("oci-layout"))?.is_none() {
            layout.publish("oci-layout", &mut &LAYOUT[..])?;
        }
        Ok(layout)
    }

    fn failed(&self, what: &str) -> impl FnOnce(io::Error) -> ExportError + use<> {
        let (what, to) = (what.to_owned(), self.dir.display().to_string());
        move |source| ExportError::Write { what, to, source }
    }

    /// Writes beside, then renames.
    fn publish(&self, path: &str, from: &mut dyn Read) -> Result<(), ExportError> {
        let temp = format!(".tmp-{}-{}", std::process::id(), path.rsplit('/').next().unwrap_or(path));
        let mut write = || -> io::Result<()> {
            self.root.remove_all(temp.as_bytes())?;
            let mut file = self.root.create_file(temp.as_bytes(), 0o644)?;
            io::copy(from, &mut file)?;
            file.flush()?;
            self.root.rename(temp.as_bytes(), path.as_bytes())
        };
        write().map_err(|e| {
            // The first error is the one to tell.
            let _ = self.root.remove_all(temp.as_bytes());
            self.failed(path)(e)
        })
    }

    /// All blobs of an image that are not there, or not whole.
    pub(crate) fn blobs(&self, store: &Store, image: &Descriptor) -> Result<(), ExportError> {
        for (digest, size) in blobs_of(store, image)? {
            if !self.has(&digest, size) {
                self.publish(
                    &blob_path(&digest),
                    &mut Checked::new(store.open_blob(&digest)?, digest, size),
                )?;
            }
        }
        Ok(())
    }

    /// Removes the blobs of an image that is no longer in the index, but for those that others there have, too. Nothing
    /// goes where that cannot be told.
    fn sweep(&self, store: &Store, old: &Descriptor) -> Result<(), ExportError> {
        let mut needed = BTreeSet::new();
        for entry in self.index()?.manifests {
            let read = import::blob(store, self.dir, &entry).is_ok();
            let Some(blobs) = blobs_of(store, &entry).ok().filter(|_| read) else { return Ok(()) };
            needed.extend(blobs.into_keys());
        }
        for digest in blobs_of(store, old).unwrap_or_default().into_keys() {
            if !needed.contains(&digest) {
                let path = blob_path(&digest);
                self.root.remove_all(path.as_bytes()).map_err(self.failed(&path))?;
            }
        }
        Ok(())
    }

    /// Whether a blob is there, byte for byte.
    pub(crate) fn has(&self, digest: &Digest, size: u64) -> bool {
        let path = blob_path(digest);
        let stat = self.root.stat(path.as_bytes()).ok().flatten();
        stat.is_some_and(|s| s.kind == NodeKind::File && s.size == size)
            && self
                .root
                .open_file_nofollow(path.as_bytes())
                .is_ok_and(|file| io::copy(&mut Checked::new(file, *digest, size), &mut io::sink()).is_ok())
    }

    /// The index; an empty one where there is none.
    pub(crate) fn index(&self) -> Result<Index, ExportError> {
        let mut bytes = Vec::new();
        match self.root.open_file(b"index.json") {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(index(Vec::new())),
            opened => opened
                .and_then(|file| file.take(MAX_INDEX).read_to_end(&mut bytes))
                .map_err(self.failed("index.json"))?,
        };
        match document::read(&bytes, None) {
            Ok((Document::Index(index), _)) => Ok(index),
            _ => Err(ExportError::Refused {
                dir: self.dir.to_owned(),
                why: "its index.json is not the index of a layout".into(),
            }),
        }
    }

    /// Enters images into the index.
    pub(crate) fn name(&self, entries: Vec<Descriptor>) -> Result<(), ExportError> {
        let mut index = self.index()?;
        index.manifests.retain(|old| !entries.iter().any(|new| replaces(new, old)));
        index.manifests.extend(entries);
        self.publish("index.json", &mut &json("index.json", &index)?[..])
    }
}

/// Whether an entry takes the place of another: the same whole name, the same short name where one has no whole name, or
/// the same image where there is no name at all.
fn replaces(new: &Descriptor, old: &Descriptor) -> bool {
    let of = |d: &Descriptor, key: &str| d.annotations.get(key).cloned();
    let (whole, short) = ((of(new, IMAGE_NAME), of(old, IMAGE_NAME)), (of(new, REF_NAME), of(old, REF_NAME)));
    match (whole, short) {
        ((Some(a), Some(b)), _) => a == b,
        (_, (Some(a), Some(b))) => a == b,
        (_, (None, None)) => new.digest == old.digest,
        _ => false,
    }
}
