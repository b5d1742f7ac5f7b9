//! What this machine knows of its own deploys: an owner id, a lock, and for each epoch a file of JSON lines.
//!
//! A line is on the disk (fsync) before the step that it names is given to a host. It tells people and the next
//! attempt where a killed deploy stood; what is true is read from the hosts, never from here, so a lost or torn
//! journal costs nothing but that sentence.
//!
//! Invariants: one living process holds the lock of an app's directory, which the kernel frees when it dies; the owner
//! id is written once, and only the lock's holder uses it, so a restarted deployer may take its own lease over.

use crate::protocol::{Epoch, Revision};
use crate::rollout::Step;
use keelway_model::ids::AppName;
use keelway_model::{Digest, Timestamp};
use serde::{Deserialize, Serialize};
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Files that are kept for each app.
const KEEP: usize = 10;
/// Most bytes of a file that are read back.
const MAX_READ: u64 = 8 << 20;

/// Why the journal could not be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process on this machine deploys this app.
    #[error("another deploy of {app} runs on this machine: {who}")]
    Busy {
        /// The app.
        app: AppName,
        /// What the other one wrote about itself.
        who: String,
    },
    /// The directory or a file in it failed.
    #[error("{path}: {source}; the deployer keeps its journal there, give it a directory it can write")]
    Io {
        /// Which.
        path: PathBuf,
        /// What failed.
        source: io::Error,
    },
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// When, by this machine's clock.
    pub at: Timestamp,
    /// Under which epoch.
    pub epoch: Epoch,
    /// What.
    pub entry: Entry,
}

/// What a line says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Entry {
    /// A deploy begins.
    Begin {
        /// Its revision.
        revision: Revision,
        /// Manifest it rolls out.
        image: Digest,
        /// Manifest it would go back to.
        base: Option<Digest>,
        /// Hosts, in order.
        hosts: Vec<String>,
    },
    /// A step is about to be done.
    Step(Step),
    /// It ended with this exit code.
    End {
        /// The code.
        exit: u8,
        /// One line for people.
        summary: String,
    },
}

/// The journal of an app, locked.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    _lock: File,
    file: Option<File>,
    owner: String,
}

impl Journal {
    /// Locks the directory of `app` under `state_dir`, which is made where it is missing.
    pub fn open(state_dir: &Path, app: &AppName, who: &str) -> Result<Self, JournalError> {
        let dir = state_dir.join(app.as_str());
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| JournalError::Io { path, source }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(at(&dir))?;
        let path = dir.join("lock");
        let lock = private().read(true).truncate(false).open(&path).map_err(at(&path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                // Who it is and since when helps, but is not worth another error.
                let begun = lock.metadata().and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
                let _ = lock.take(1000).read_to_string(&mut text);
                let age = begun.map_or("a moment".to_owned(), keelway_model::format_duration);
                return Err(JournalError::Busy {
                    app: app.clone(),
                    who: format!("{} since {age}", text.trim()),
                });
            }
            Err(TryLockError::Error(e)) => return Err(at(&path)(e)),
        }
        let note =
            |mut f: &File| f.set_len(0).and_then(|()| f.rewind()).and_then(|()| f.write_all(who.as_bytes()));
        note(&lock).map_err(at(&path))?;
        let path = dir.join("owner");
        let owner = match std::fs::read_to_string(&path) {
            Ok(text) if text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit()) => text,
            Ok(_) => write_owner(&dir).map_err(at(&path))?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => write_owner(&dir).map_err(at(&path))?,
            Err(e) => return Err(at(&path)(e)),
        };
        Ok(Self { dir, _lock: lock, file: None, owner })
    }

    /// Unguessable, and the same for every deploy from this directory.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// Begins the file of an epoch, and removes the oldest ones.
    pub fn begin(&mut self, line: &Line) -> Result<(), JournalError> {
        let path = self.dir.join(format!("{:020}.jsonl", line.epoch.0));
        let io = |source| JournalError::Io { path: path.clone(), source };
        self.file = Some(private().append(true).open(&path).map_err(io)?);
        File::open(&self.dir).and_then(|d| d.sync_all()).map_err(io)?;
        let mut files = self.files().map_err(io)?;
        files.truncate(files.len().saturating_sub(KEEP));
        for old in files {
            // One that stays is removed next time.
            let _ = std::fs::remove_file(old);
        }
        self.write(line)
    }

    /// Appends a line and syncs it.
    pub fn write(&mut self, line: &Line) -> Result<(), JournalError> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut text = serde_json::to_vec(line).expect("a line is strings and numbers");
        text.push(b'\n');
        let io = |source| JournalError::Io { path: self.dir.clone(), source };
        #[cfg(test)]
        fault::hit().map_err(io)?;
        file.write_all(&text).and_then(|()| file.sync_data()).map_err(io)
    }

    /// The lines of the newest file, as far as they are whole.
    pub fn last(&self) -> Result<Vec<Line>, JournalError> {
        let io = |source| JournalError::Io { path: self.dir.clone(), source };
        let Some(newest) = self.files().map_err(io)?.pop() else { return Ok(Vec::new()) };
        let mut text = Vec::new();
        File::open(&newest).and_then(|f| f.take(MAX_READ).read_to_end(&mut text)).map_err(io)?;
        Ok(parse(&text))
    }

    /// A deploy that began on this machine and was never ended: its last line.
    pub fn unfinished(&self) -> Result<Option<Line>, JournalError> {
        Ok(self.last()?.pop().filter(|l| !matches!(l.entry, Entry::End { .. })))
    }

    fn files(&self) -> io::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "jsonl") {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }
}

/// The whole lines at the front of a journal; a torn tail (and whatever would follow it) is left out.
pub fn parse(text: &[u8]) -> Vec<Line> {
    let whole = text.split_inclusive(|b| *b == b'\n').filter(|l| l.ends_with(b"\n"));
    whole.map_while(|l| serde_json::from_slice(l).ok()).collect()
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.create(true).write(true).mode(0o600);
    options
}

fn write_owner(dir: &Path) -> io::Result<String> {
    let mut raw = [0u8; 16];
    getrandom::fill(&mut raw).map_err(io::Error::other)?;
    let owner: String = raw.iter().map(|b| format!("{b:02x}")).collect();
    let temp = dir.join("owner.new");
    let mut file = private().truncate(true).open(&temp)?;
    file.write_all(owner.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&temp, dir.join("owner"))?;
    Ok(owner)
}

/// Writes of this thread that fail as on a full disk.
#[cfg(test)]
pub(crate) mod fault {
    use std::cell::Cell;
    use std::io;

    thread_local! {
        static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
    }

    /// The next `n` lines are written, those after them are not; with `None` all are.
    pub(crate) fn after(n: Option<u32>) {
        LEFT.set(n);
    }
    pub(super) fn hit() -> io::Result<()> {
        match LEFT.get() {
            None => Ok(()),
            Some(0) => Err(io::ErrorKind::StorageFull.into()),
            Some(n) => {
                LEFT.set(Some(n - 1));
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::goal::Direction;
    use crate::rollout::StepKind;

    fn line(epoch: u64, entry: Entry) -> Line {
        Line { at: Timestamp(1), epoch: Epoch(epoch), entry }
    }
    fn step() -> Entry {
        Entry::Step(Step {
            kind: StepKind::Start,
            direction: Direction::Forward,
            host: Some("a".into()),
            replica: None,
        })
    }
    fn begin() -> Entry {
        Entry::Begin { revision: Revision(1), image: Digest::of(b""), base: None, hosts: vec!["a".into()] }
    }

    #[test]
    fn one_deploy_at_a_time_and_a_torn_tail_costs_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let app: AppName = "web".parse().unwrap();
        let mut journal = Journal::open(dir.path(), &app, "me").unwrap();
        let busy = Journal::open(dir.path(), &app, "you").unwrap_err();
        assert!(matches!(&busy, JournalError::Busy { who, .. } if who.starts_with("me since ")), "{busy}");
        assert_eq!(journal.unfinished().unwrap(), None);
        journal.begin(&line(3, begin())).unwrap();
        journal.write(&line(3, step())).unwrap();
        let owner = journal.owner().to_owned();
        drop(journal);
        let path = dir.path().join("web").join(format!("{:020}.jsonl", 3));
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"at\":1,\"ep").unwrap();
        let mut journal = Journal::open(dir.path(), &app, "me again").unwrap();
        assert_eq!(journal.owner(), owner);
        assert_eq!(journal.unfinished().unwrap(), Some(line(3, step())));
        journal.begin(&line(4, begin())).unwrap();
        journal.write(&line(4, Entry::End { exit: 0, summary: "ok".into() })).unwrap();
        assert_eq!(journal.unfinished().unwrap(), None);
        for epoch in 5..30 {
            journal.begin(&line(epoch, begin())).unwrap();
        }
        assert_eq!(journal.files().unwrap().len(), KEEP);
    }

    #[test]
    fn any_prefix_of_a_journal_is_a_journal() {
        let lines = [line(1, begin()), line(1, step())];
        let text: Vec<u8> =
            lines.iter().flat_map(|l| [serde_json::to_vec(l).unwrap(), b"\n".to_vec()].concat()).collect();
        for cut in 0..=text.len() {
            let got = parse(&text[..cut]);
            assert_eq!(got, lines[..got.len()]);
        }
        assert_eq!(parse(&text), lines);
    }
}
