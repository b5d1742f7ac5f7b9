//! Whether everything in a store is what it says it is, and taking away what is not.
//!
//! Looking holds nothing and is no use of what is looked at, and others may work on the store meanwhile: what they
//! take away is not missed. Without the data it is about names, records and lengths; with it every byte is read, blobs are hashed and
//! snapshots compared with what they were packed to or unpacked from.
//!
//! What is damaged can always be made or pulled again, so mending is removing it; it must not remove what has been made
//! anew meanwhile, and not what a process is working with.

use crate::cache::Kept;
use crate::census::{file_name, listed, missing};
use crate::error::StoreError;
use crate::hold::{Thing, held};
use crate::layer::{Compression, Layer, UnpackError};
use crate::open::Store;
use crate::prune::Need;
use crate::record;
use crate::refs::Reference;
use crate::snapshot::{META_VERSION, SnapshotMeta, layer_snapshot};
use crate::used::{last_use, set_last_use};
use crate::walk::walk;
use keelway_disk::{Lock, NodeKind, Root, sync_dir};
use keelway_model::{Digest, SnapshotId};
use serde::Serialize;
use std::collections::HashMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[cfg(test)]
mod tests;

/// For those who pass the gate; each is there for microseconds.
const GATE_WAIT: Duration = Duration::from_secs(10);

/// What is wrong, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Where, below the store.
    pub path: String,
    /// What is wrong.
    pub problem: String,
    /// What to do.
    pub remedy: String,
    #[serde(skip)]
    mend: Option<Mend>,
}

/// What mending takes away: this very file or directory, and not one that has come in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mend {
    path: PathBuf,
    thing: Option<Thing>,
    inode: u64,
    written: (i64, i64),
}

/// What a check looked at and found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// Snapshots.
    pub snapshots: usize,
    /// Blobs.
    pub blobs: usize,
    /// Cache mounts.
    pub mounts: usize,
    /// Records of the step cache.
    pub records: usize,
    /// Names of images.
    pub names: usize,
    /// Whether it was not stopped before its end.
    pub finished: bool,
    /// What is wrong.
    #[serde(skip)]
    pub findings: Vec<Finding>,
}

impl Checked {
    /// Whether all was looked at and nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.finished && self.findings.is_empty()
    }
}

const REMOVES: &str = "`keelway store check --repair` removes it";

/// Why what is gone afterwards is no loss.
fn anew(what: &str) -> String {
    format!("{REMOVES}, and {what}")
}

struct Check<'a> {
    store: &'a Store,
    data: bool,
    stop: &'a dyn Fn() -> bool,
    /// Lengths of blobs, by what names them.
    lengths: HashMap<Digest, (u64, String)>,
    out: Checked,
}

impl Store {
    /// Looks at everything, with `data` at every byte, until `stop` says so. `needs` are images that somebody needs who is
    /// not in the store.
    pub fn check(&self, needs: &[Need], data: bool, stop: &dyn Fn() -> bool) -> Result<Checked, StoreError> {
        let mut check = Check { store: self, data, stop, lengths: HashMap::new(), out: Checked::default() };
        let finished = check.snapshots()?
            && check.records()?
            && check.mounts()?
            && check.images(needs)?
            && check.blobs()?;
        Ok(Checked { finished, ..check.out })
    }

    /// Removes what was found to be damaged; gives how much that was, and what could not be removed because a process
    /// uses it.
    pub fn mend(&self, findings: &[Finding]) -> Result<(usize, Vec<Finding>), StoreError> {
        let gate = self.path().join("locks/gate");
        let failed = |e| StoreError::io("lock", &gate)(io::Error::other(e));
        let _alone = Lock::take(&gate, Instant::now() + GATE_WAIT, &|| false).map_err(failed)?;
        let held = held(self.path())?;
        let silent = !held.silent_others(self).is_empty();
        let (mut mended, mut used) = (0, Vec::new());
        for finding in findings {
            let Some(mend) = &finding.mend else { continue };
            if mend.thing.as_ref().is_some_and(|t| held.things.contains(t)) || silent {
                used.push(finding.clone());
                continue;
            }
            if stamp(&mend.path) == Some((mend.inode, mend.written)) {
                self.discard(&mend.path)?;
                mended += 1;
            }
        }
        let refs = self.path().join("refs");
        sync_dir(&refs).map_err(StoreError::io("sync", refs))?;
        Ok((mended, used))
    }
}

fn stamp(path: &Path) -> Option<(u64, (i64, i64))> {
    let stat = path.symlink_metadata().ok()?;
    Some((stat.ino(), (stat.mtime(), stat.mtime_nsec())))
}

impl Check<'_> {
    fn find(&mut self, path: &Path, thing: Option<Thing>, problem: impl Into<String>, remedy: String) {
        // What others have taken away meanwhile is not wrong.
        let Some((inode, written)) = stamp(path) else { return };
        let mend = Mend { path: path.into(), thing, inode, written };
        self.say(path, problem, remedy, Some(mend));
    }

    /// What removing does not mend.
    fn tell(&mut self, path: &Path, problem: impl Into<String>, remedy: String) {
        self.say(path, problem, remedy, None);
    }

    fn say(&mut self, path: &Path, problem: impl Into<String>, remedy: String, mend: Option<Mend>) {
        let path = path.strip_prefix(self.store.path()).unwrap_or(path).to_string_lossy().into_owned();
        self.out.findings.push(Finding { path, problem: problem.into(), remedy, mend });
    }

    fn snapshots(&mut self) -> Result<bool, StoreError> {
        for dir in listed(&self.store.path().join("snapshots"))? {
            if (self.stop)() {
                return Ok(false);
            }
            self.out.snapshots += 1;
            let lost = || {
                anew("the step that made it runs again, or the layer is unpacked again, when it is needed")
            };
            let Ok(id) = file_name(&dir).parse::<SnapshotId>() else {
                self.find(&dir, None, "it is no snapshot", REMOVES.into());
                continue;
            };
            let thing = Some(Thing::Snapshot(id.clone()));
            let Some(meta) = record::read::<SnapshotMeta>(&dir.join("meta.json")) else {
                self.find(&dir, thing, "the record of this snapshot is missing or damaged", lost());
                continue;
            };
            if meta.version > META_VERSION {
                let problem = format!("its format {} is newer than this keelway", meta.version);
                self.tell(&dir, problem, "use the keelway that made it".into());
                continue;
            }
            if !dir.join("fs").is_dir() {
                self.find(&dir, thing, "the files of this snapshot are missing", lost());
                continue;
            }
            if meta.diff_id.is_some_and(|d| layer_snapshot(&d).ok().as_ref() != Some(&id)) {
                self.find(&dir, thing, "its record is that of another layer", lost());
                continue;
            }
            let mut layers = Vec::new();
            for form in Compression::ALL {
                let path = dir.join(form.record());
                match record::read::<Layer>(&path) {
                    Some(layer) => {
                        let by = format!("the record of snapshot {id}");
                        self.lengths.insert(layer.descriptor.digest, (layer.descriptor.size, by));
                        layers.push((form, layer));
                    }
                    None if path.exists() => {
                        let remedy = anew("the layer is packed again when it is needed");
                        self.find(&path, None, "the record of a packed layer is damaged", remedy);
                    }
                    None => {}
                }
            }
            if self.data
                && let Some(problem) = self.content(&dir, &meta, &layers)?
            {
                self.find(&dir, thing, problem, lost());
            }
        }
        Ok(true)
    }

    /// What is wrong with the files of a snapshot.
    fn content(
        &self,
        dir: &Path,
        meta: &SnapshotMeta,
        layers: &[(Compression, Layer)],
    ) -> Result<Option<String>, StoreError> {
        let fs = dir.join("fs");
        let unreadable = |e: io::Error| Ok(dir.exists().then(|| format!("its files cannot be read: {e}")));
        if meta.diff_id.is_none()
            && let Some((_, layer)) = layers.first()
        {
            return match crate::layer::tar_digest(&fs) {
                Ok(found) if found == layer.diff_id => Ok(None),
                Ok(found) => Ok(Some(format!("its content was {} and now is {found}", layer.diff_id))),
                Err(e) => unreadable(e),
            };
        }
        if let Some(diff_id) = &meta.diff_id {
            for (form, layer) in layers {
                match self.unpacked_again(&fs, layer, *form, diff_id) {
                    Ok(Ok(None)) => return Ok(None),
                    Ok(Ok(Some(difference))) => {
                        let path = String::from_utf8_lossy(&difference.path).escape_debug().to_string();
                        let what = difference.what;
                        return Ok(Some(format!("/{path} is not what its layer has: {what} differs")));
                    }
                    Ok(Err(e)) => return unreadable(e),
                    Err(UnpackError::Store(StoreError::Missing { .. })) => {}
                    Err(UnpackError::Store(e)) => return Err(e),
                    // The blob is damaged, which is found there.
                    Err(_) => {}
                }
            }
        }
        match read_all(&fs) {
            Ok(()) => Ok(None),
            Err(e) => unreadable(e),
        }
    }

    /// How the files in `fs` differ from those that their layer gives when it is unpacked now.
    fn unpacked_again(
        &self,
        fs: &Path,
        layer: &Layer,
        form: Compression,
        diff_id: &Digest,
    ) -> Result<io::Result<Option<crate::Difference>>, UnpackError> {
        let blob = self.store.blob_path(&layer.descriptor.digest);
        let used = blob.symlink_metadata().map(|stat| last_use(&stat));
        let upper = self.store.unpack_again(&layer.descriptor, form, diff_id);
        if let Ok(at) = used {
            // Looking was no use. If it cannot be said, it looks used.
            let _ = set_last_use(&blob, at);
        }
        let upper = upper?;
        Ok(crate::compare::difference(fs, upper.fs()))
    }

    fn records(&mut self) -> Result<bool, StoreError> {
        for folder in ["cache/keys", "cache/last", "cache/steps"] {
            for path in listed(&self.store.path().join(folder))? {
                self.out.records += 1;
                let sound = match folder {
                    "cache/keys" => {
                        record::read::<Kept>(&path).is_some_and(|kept| kept.key.hex() == file_name(&path))
                    }
                    _ => record::read::<serde_json::Value>(&path).is_some(),
                };
                if !sound {
                    let remedy = anew("the step runs again when it is needed");
                    self.find(&path, None, "this record of a step is damaged", remedy);
                }
            }
            if (self.stop)() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn mounts(&mut self) -> Result<bool, StoreError> {
        for entry in self.store.cache_mounts()? {
            self.out.mounts += 1;
            if entry.meta.id.is_empty() || !entry.fs.is_dir() {
                let dir = entry.fs.parent().unwrap_or(&entry.fs).to_path_buf();
                let thing = Some(Thing::Mount(entry.name));
                let problem = "the record or the files of this cache mount are missing or damaged";
                self.find(&dir, thing, problem, anew("the next RUN that uses it begins with an empty one"));
            }
        }
        Ok(!(self.stop)())
    }

    fn images(&mut self, needs: &[Need]) -> Result<bool, StoreError> {
        for path in listed(&self.store.path().join("refs"))? {
            self.out.names += 1;
            let named = || record::read::<Reference>(&path);
            let Some(mut found) = named().filter(|r| Store::reference_file(&r.name) == file_name(&path))
            else {
                let remedy = anew("the image has to be pulled, loaded or built again, if its name is needed");
                self.find(&path, None, "the name of an image is damaged", remedy);
                continue;
            };
            let mut gone = missing(self.store, &found.target.digest, &mut self.lengths);
            // It may have been given to another image meanwhile, and this one taken away.
            while !gone.is_empty()
                && let Some(now) = named().filter(|now| now.target != found.target)
            {
                gone = missing(self.store, &now.target.digest, &mut self.lengths);
                found = now;
            }
            if !gone.is_empty() {
                let problem = format!("the image {} is not whole: {}", found.name, list(&gone));
                let remedy = format!("pull, load or build {} again; or {REMOVES}", found.name);
                self.find(&path, None, problem, remedy);
            }
        }
        for need in needs {
            let gone = missing(self.store, &need.manifest, &mut self.lengths);
            if !gone.is_empty() {
                let problem = format!("the image of {} is not whole: {}", need.who, list(&gone));
                let remedy = format!("pull {} again, or remove what needs it", need.manifest);
                self.tell(&self.store.path().join("blobs"), problem, remedy);
            }
        }
        Ok(!(self.stop)())
    }

    fn blobs(&mut self) -> Result<bool, StoreError> {
        let lost = || anew("it is pulled or made again when it is needed");
        for folder in listed(&self.store.path().join("blobs/sha256"))? {
            if !folder.is_dir() {
                self.find(&folder, None, "it is no folder of blobs", REMOVES.into());
                continue;
            }
            for path in listed(&folder)? {
                if (self.stop)() {
                    return Ok(false);
                }
                self.out.blobs += 1;
                let Ok(stat) = path.symlink_metadata() else { continue };
                let digest = Digest::from_hex(file_name(&path)).ok();
                let Some(digest) = digest.filter(|d| stat.is_file() && self.store.blob_path(d) == path)
                else {
                    self.find(&path, None, "it is no blob", REMOVES.into());
                    continue;
                };
                let thing = Some(Thing::Blob(digest));
                let length = self.lengths.get(&digest).filter(|(length, _)| *length != stat.len()).cloned();
                if let Some((length, by)) = length {
                    let problem = format!("this blob has {} bytes, and {length} by {by}", stat.len());
                    self.find(&path, thing, problem, lost());
                } else if self.data {
                    match crate::blob::hash_file(&path) {
                        Ok(found) if found == digest => {}
                        Ok(found) => self.find(&path, thing, format!("its bytes are {found}"), lost()),
                        Err(e) => self.find(&path, thing, format!("it cannot be read: {e}"), lost()),
                    }
                }
            }
        }
        Ok(true)
    }
}

/// The first of a few digests, for people.
fn list(gone: &[Digest]) -> String {
    match gone {
        [one] => format!("{one} is missing or damaged"),
        [one, rest @ ..] => format!("{one} and {} more are missing or damaged", rest.len()),
        [] => String::new(),
    }
}

/// Reads every file.
fn read_all(dir: &Path) -> io::Result<()> {
    let root = Root::open(dir)?;
    walk(&root, &mut |v| {
        if v.stat.kind == NodeKind::File {
            io::copy(&mut v.dir.open_file_nofollow(v.name)?, &mut io::sink())?;
        }
        Ok(())
    })
}
