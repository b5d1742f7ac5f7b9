//! A bare copy of a repository under the cache folder.
//!
//! One folder an address (`git-v1/<digest of the address>`), shared by all processes of a machine. It is written under
//! a lock; objects are only ever added, so reading needs none. References are updated after all their objects are
//! there. Nothing of its own configuration comes from the remote.
//!
//! It is a cache: one that is damaged is thrown away by the next fetch, which begins from nothing. A truncated pack shows
//! before the fetch, damage that keeps a fetch from its work shows in it; what shows only later, when objects are read,
//! is written down in the mirror ([`DOUBT`]) for the next fetch.

use crate::connection::{self, Watch};
use crate::error::clean;
use crate::protocol::{Advertisement, is_hex};
use crate::{CommitTree, GitSettings, RepoUrl, SourceError};
use git2::{ErrorClass, ErrorCode, ObjectType, Oid, Repository, RepositoryInitOptions};
use keelway_disk::{Lock, LockError};
use keelway_model::{CommitId, Timestamp};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Version of the layout under the cache folder.
const FOLDER: &str = "git-v1";
/// Commits we tell a server that we have, at most.
const MAX_HAVES: usize = 1024;
/// How long to wait for another process that makes the same mirror.
const OPEN_WAIT: Duration = Duration::from_secs(30);

/// A file in a mirror that could not be read as it should.
pub(crate) const DOUBT: &str = "keelway-damaged";

/// A mirror.
pub struct Mirror {
    url: RepoUrl,
    folder: PathBuf,
    dir: PathBuf,
    lock: PathBuf,
    repo: Mutex<Repository>,
    /// Whether something failed since the last look that a damaged mirror would explain.
    doubted: AtomicBool,
}

/// What a fetch did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fetched {
    /// References that are new or moved forward.
    pub updated: usize,
    /// Branches that moved to a commit that does not stand on the old one: name, old, new.
    pub forced: Vec<(String, CommitId, CommitId)>,
    /// References that are gone.
    pub removed: usize,
    /// Bytes of the pack that came.
    pub bytes: u64,
}

/// A reference, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinned {
    /// The commit.
    pub commit: CommitId,
    /// The branch, when a branch was asked for (or HEAD, which is one).
    pub branch: Option<String>,
    /// The committer's time.
    pub time: Timestamp,
    /// The first line of the commit's message, cleaned for terminals.
    pub summary: String,
}

pub(crate) fn commit_id(oid: Oid) -> CommitId {
    oid.to_string().parse().expect("a git oid is 40 hexadecimal digits")
}

pub(crate) fn oid_of(commit: &CommitId) -> Oid {
    Oid::from_str(commit.as_str()).expect("a commit id is 40 hexadecimal digits")
}

/// Describes a commit.
pub(crate) fn pinned(repo: &Repository, oid: Oid, branch: Option<String>) -> Result<Pinned, git2::Error> {
    let commit = repo.find_commit(oid)?;
    let message = String::from_utf8_lossy(commit.message_bytes()).into_owned();
    Ok(Pinned {
        commit: commit_id(oid),
        branch,
        time: Timestamp::from_seconds(commit.time().seconds()),
        summary: clean(message.trim_start().lines().next().unwrap_or(""), 200),
    })
}

impl Mirror {
    /// Opens, or makes, the mirror of `url` under `cache`. No network.
    pub fn open(cache: &Path, url: &RepoUrl) -> Result<Self, SourceError> {
        let folder = cache.join(FOLDER);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(|e| SourceError::io(format!("cannot make {}", folder.display()), e))?;
        let dir = folder.join(url.cache_name());
        let lock = folder.join(format!("{}.lock", url.cache_name()));
        if !dir.join("HEAD").exists() {
            let _held = take(&lock, Instant::now() + OPEN_WAIT, &|| false, url)?;
            if !dir.join("HEAD").exists() {
                make(&folder, &dir)?;
            }
        }
        let repo = match open_bare(&dir, url) {
            Err(SourceError::Git { .. }) => {
                let _held = take(&lock, Instant::now() + OPEN_WAIT, &|| false, url)?;
                // Another process may have renewed it by now.
                open_bare(&dir, url).or_else(|_| {
                    make(&folder, &dir)?;
                    open_bare(&dir, url)
                })
            }
            other => other,
        }?;
        let doubted = AtomicBool::new(false);
        Ok(Self { url: url.clone(), folder, dir, lock, repo: Mutex::new(repo), doubted })
    }

    /// Whose mirror this is.
    pub fn url(&self) -> &RepoUrl {
        &self.url
    }

    pub(crate) fn repo(&self) -> MutexGuard<'_, Repository> {
        self.repo.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn failed(&self, e: &git2::Error) -> SourceError {
        self.doubt(e);
        SourceError::git(
            format!("the mirror of {} failed; should it be damaged, the next run fetches it anew", self.url),
            e,
        )
    }

    /// Remembers an error that a damaged mirror would explain; what the system says (no space, no permission) is none.
    fn doubt(&self, e: &git2::Error) {
        if e.class() != ErrorClass::Os {
            self.doubted.store(true, Ordering::Relaxed);
            doubt(&self.dir);
        }
    }

    /// Brings all branches and tags up to date; `progress` is told the bytes so far. A damaged mirror is thrown away
    /// first, or when its damage shows, and everything is fetched.
    pub fn fetch(
        &self,
        settings: &GitSettings,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Fetched, SourceError> {
        let watch = Watch::start(&self.url, settings);
        let cancelled = || settings.cancel.load(Ordering::Relaxed);
        let _held = take(&self.lock, watch.until, &cancelled, &self.url)?;
        if self.dir.join(DOUBT).exists() || !packs_are_whole(&self.dir) {
            self.renew()?;
        }
        match self.fetch_locked(settings, watch, progress) {
            Err(_) if self.doubted.load(Ordering::Relaxed) => {
                self.renew()?;
                self.fetch_locked(settings, watch, progress)
            }
            other => other,
        }
    }

    /// Begins anew, with nothing. The lock is held.
    fn renew(&self) -> Result<(), SourceError> {
        let mut repo = self.repo();
        make(&self.folder, &self.dir)?;
        *repo = open_bare(&self.dir, &self.url)?;
        self.doubted.store(false, Ordering::Relaxed);
        Ok(())
    }

    fn fetch_locked(
        &self,
        settings: &GitSettings,
        watch: Watch<'_>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Fetched, SourceError> {
        let mut far = connection::open(&self.url, settings, watch)?;
        let theirs = far.advertise()?;
        let repo = self.repo();
        let odb = repo.odb().map_err(|e| self.failed(&e))?;
        // Another process may have written packs since.
        odb.refresh().map_err(|e| self.failed(&e))?;
        let mut wants: Vec<Oid> = theirs.references.values().copied().filter(|o| !odb.exists(*o)).collect();
        wants.sort_unstable();
        wants.dedup();
        let mut fetched = Fetched::default();
        if !wants.is_empty() {
            let haves = haves(&repo).map_err(|e| self.failed(&e))?;
            let mut writer = odb.packwriter().map_err(|e| self.failed(&e))?;
            let mut gate = Gate { url: &self.url, settings, head: Vec::new(), bytes: 0 };
            far.fetch(&wants, &haves, &mut |piece| {
                watch.check()?;
                gate.pass(piece)?;
                writer.write_all(piece).map_err(|e| self.broken(&e.to_string()))?;
                progress(gate.bytes);
                Ok(())
            })?;
            if gate.bytes > 0 {
                writer.commit().map_err(|e| {
                    // The pack may stand on objects of ours that cannot be read.
                    self.doubt(&e);
                    self.broken(e.message())
                })?;
            }
            drop(writer);
            odb.refresh().map_err(|e| self.failed(&e))?;
            if let Some(lost) = wants.iter().find(|o| !odb.exists(**o)) {
                return Err(self.broken(&format!("{lost} was promised and did not come")));
            }
            fetched.bytes = gate.bytes;
        }
        drop(far);
        self.update(&repo, &theirs, &mut fetched).map_err(|e| self.failed(&e))?;
        Ok(fetched)
    }

    fn broken(&self, what: &str) -> SourceError {
        SourceError::Protocol {
            url: self.url.clone(),
            what: format!("its pack is not valid: {}", clean(what, 200)),
        }
    }

    /// Makes our references theirs: first what is gone (a name may become a folder of names), then the rest.
    fn update(
        &self,
        repo: &Repository,
        theirs: &Advertisement,
        fetched: &mut Fetched,
    ) -> Result<(), git2::Error> {
        let ours = references(repo)?;
        for name in ours.keys().filter(|n| !theirs.references.contains_key(*n)) {
            repo.find_reference(name)?.delete()?;
            fetched.removed += 1;
        }
        for (name, new) in &theirs.references {
            let old = ours.get(name).copied();
            if old == Some(*new) {
                continue;
            }
            repo.reference(name, *new, true, "keelway: fetch")?;
            let forced = match old.filter(|_| name.starts_with("refs/heads/")) {
                Some(old) => repo.find_commit(old).is_ok() && !repo.graph_descendant_of(*new, old)?,
                None => false,
            };
            match old.filter(|_| forced) {
                Some(old) => {
                    let branch = name.trim_start_matches("refs/heads/").to_owned();
                    fetched.forced.push((branch, commit_id(old), commit_id(*new)));
                }
                None => fetched.updated += 1,
            }
        }
        if let Some(head) = &theirs.head {
            let name = format!("refs/heads/{head}");
            if git2::Reference::is_valid_name(&name) {
                repo.set_head(&name)?;
            }
        }
        Ok(())
    }

    /// Resolves a branch, tag, full reference, `HEAD`, commit or unique beginning of a commit (7 digits or more), in
    /// the mirror as it is. A name that is both branch and tag must be given in full; 40 digits are always a commit (S09).
    pub fn resolve(&self, reference: &str) -> Result<Pinned, SourceError> {
        let repo = self.repo();
        let known = references(&repo).map_err(|e| self.failed(&e))?;
        let none = || SourceError::NoReference {
            url: self.url.clone(),
            reference: clean(reference, 200),
            nearest: nearest(&known, reference),
        };
        if reference == "HEAD" {
            let head = repo.find_reference("HEAD").ok();
            let name = head.as_ref().and_then(|h| h.symbolic_target_bytes()).map(String::from_utf8_lossy);
            return match name.filter(|n| known.contains_key(n.as_ref())) {
                Some(name) => self.pin(&repo, known[name.as_ref()], name.strip_prefix("refs/heads/")),
                None => Err(none()),
            };
        }
        if reference.len() == 40 && is_hex(reference) {
            let commit: CommitId = reference.parse().map_err(|_| none())?;
            return self.pin_commit(&repo, &known, oid_of(&commit));
        }
        if let Some(oid) = known.get(reference) {
            return self.pin(&repo, *oid, reference.strip_prefix("refs/heads/"));
        }
        let branch = known.get(&format!("refs/heads/{reference}"));
        let tag = known.get(&format!("refs/tags/{reference}"));
        match (branch, tag) {
            (Some(a), Some(b)) if a != b => {
                return Err(SourceError::BranchAndTag { url: self.url.clone(), name: clean(reference, 200) });
            }
            (Some(oid), _) => return self.pin(&repo, *oid, Some(reference)),
            (None, Some(oid)) => return self.pin(&repo, *oid, None),
            (None, None) => {}
        }
        if (7..40).contains(&reference.len()) && is_hex(reference) {
            let prefix = Oid::from_str(reference).map_err(|_| none())?;
            let odb = repo.odb().map_err(|e| self.failed(&e))?;
            return match odb.exists_prefix(prefix, reference.len()) {
                Ok(oid) => self.pin_commit(&repo, &known, oid),
                Err(e) if e.code() == ErrorCode::Ambiguous => {
                    Err(SourceError::Ambiguous { url: self.url.clone(), prefix: reference.to_owned() })
                }
                Err(_) => Err(none()),
            };
        }
        Err(none())
    }

    fn pin(&self, repo: &Repository, oid: Oid, branch: Option<&str>) -> Result<Pinned, SourceError> {
        let object = repo.find_object(oid, None).map_err(|e| self.failed(&e))?;
        let commit = object.peel(ObjectType::Commit).map_err(|_| SourceError::NoReference {
            url: self.url.clone(),
            reference: format!("{} as a commit", branch.unwrap_or("the tag")),
            nearest: Vec::new(),
        })?;
        pinned(repo, commit.id(), branch.map(str::to_owned)).map_err(|e| self.failed(&e))
    }

    /// A commit by its id must be on something that the repository shows: an object that is merely there may be
    /// what a force-push left, or come from a fork (S09).
    fn pin_commit(
        &self,
        repo: &Repository,
        known: &BTreeMap<String, Oid>,
        oid: Oid,
    ) -> Result<Pinned, SourceError> {
        let absent = || SourceError::NotReachable { url: self.url.clone(), commit: commit_id(oid) };
        if repo.find_commit(oid).is_err() {
            return Err(absent());
        }
        let mut walk = repo.revwalk().map_err(|e| self.failed(&e))?;
        // Newest first, and nothing beneath the commit: a walk that ends early where it can.
        walk.set_sorting(git2::Sort::TIME).map_err(|e| self.failed(&e))?;
        for tip in known.values() {
            let commit = repo.find_object(*tip, None).and_then(|o| o.peel(ObjectType::Commit));
            if let Ok(commit) = commit {
                walk.push(commit.id()).map_err(|e| self.failed(&e))?;
            }
        }
        for next in walk {
            if next.map_err(|e| self.failed(&e))? == oid {
                return pinned(repo, oid, None).map_err(|e| self.failed(&e));
            }
        }
        Err(absent())
    }

    /// The files of a commit that was resolved.
    pub fn tree(&self, commit: &CommitId) -> Result<CommitTree, SourceError> {
        let repo = Repository::open_bare(&self.dir).map_err(|e| self.failed(&e))?;
        let tree = CommitTree::open(repo, commit);
        if tree.is_err() {
            doubt(&self.dir);
        }
        Ok(tree?.of_mirror(self.dir.clone()))
    }
}

/// Looks at the pack as it comes: its bytes, and the number of objects that its head promises.
struct Gate<'a> {
    url: &'a RepoUrl,
    settings: &'a GitSettings,
    head: Vec<u8>,
    bytes: u64,
}

impl Gate<'_> {
    fn pass(&mut self, piece: &[u8]) -> Result<(), SourceError> {
        let limits = &self.settings.limits;
        let too_big = |what, bound| Err(SourceError::TooBig { url: self.url.clone(), what, bound });
        self.bytes += piece.len() as u64;
        if self.bytes > limits.pack_bytes {
            return too_big("bytes to fetch", limits.pack_bytes);
        }
        if self.head.len() < 12 {
            let missing = 12 - self.head.len();
            self.head.extend_from_slice(&piece[..missing.min(piece.len())]);
            if let Some(count) = self.head.get(8..12) {
                let objects = u32::from_be_bytes([count[0], count[1], count[2], count[3]]);
                if objects > limits.pack_objects {
                    return too_big("objects to fetch", limits.pack_objects.into());
                }
            }
        }
        Ok(())
    }
}

fn take(
    path: &Path,
    until: Instant,
    cancelled: &dyn Fn() -> bool,
    url: &RepoUrl,
) -> Result<Lock, SourceError> {
    Lock::take(path, until, cancelled).map_err(|e| match e {
        LockError::TimedOut { path, .. } => SourceError::Busy { path },
        LockError::Cancelled { .. } => SourceError::Cancelled { url: url.clone() },
        LockError::Io { path, source } => SourceError::io(format!("cannot lock {}", path.display()), source),
    })
}

fn open_bare(dir: &Path, url: &RepoUrl) -> Result<Repository, SourceError> {
    Repository::open_bare(dir).map_err(|e| match e.code() {
        ErrorCode::Owner => SourceError::Owner { path: dir.to_owned() },
        _ => SourceError::git(format!("cannot open the mirror {} of {url}", dir.display()), &e),
    })
}

/// Leaves word that a mirror cannot be read. It may fail: then it is found again.
pub(crate) fn doubt(dir: &Path) {
    let _ = fs::write(dir.join(DOUBT), "");
}

/// Whether every index of a pack has its pack, to its last byte: both end with the pack's checksum.
fn packs_are_whole(dir: &Path) -> bool {
    let tail = |path: &Path, from_end: i64| -> std::io::Result<[u8; 20]> {
        let mut file = fs::File::open(path)?;
        file.seek(SeekFrom::End(-from_end))?;
        let mut sum = [0; 20];
        file.read_exact(&mut sum)?;
        Ok(sum)
    };
    let Ok(names) = fs::read_dir(dir.join("objects/pack")) else { return false };
    names.filter_map(Result::ok).map(|n| n.path()).filter(|p| p.extension().is_some_and(|e| e == "idx")).all(
        |index| match (tail(&index, 40), tail(&index.with_extension("pack"), 20)) {
            (Ok(promised), Ok(there)) => promised == there,
            _ => false,
        },
    )
}

/// An empty mirror in the place of what is there. Made under another name first, so that a mirror is there whole or not
/// at all.
fn make(folder: &Path, dir: &Path) -> Result<(), SourceError> {
    let failed = |e| SourceError::io(format!("cannot make {}", dir.display()), e);
    let temp = folder.join(keelway_disk::publish::temp_name().map_err(failed)?);
    let old = folder.join(keelway_disk::publish::temp_name().map_err(failed)?);
    let mut options = RepositoryInitOptions::new();
    options.bare(true).no_reinit(true).external_template(false).mkdir(true);
    let made = Repository::init_opts(&temp, &options)
        .map_err(|e| SourceError::git(format!("cannot make {}", dir.display()), &e))
        .and_then(|_| match fs::rename(dir, &old) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed(e)),
            _ => fs::rename(&temp, dir).map_err(failed),
        });
    for gone in [&temp, &old] {
        let _ = fs::remove_dir_all(gone);
    }
    made
}

/// Branches and tags by full name.
fn references(repo: &Repository) -> Result<BTreeMap<String, Oid>, git2::Error> {
    let mut out = BTreeMap::new();
    for reference in repo.references()? {
        let reference = reference?;
        let name = std::str::from_utf8(reference.name_bytes()).ok();
        if let (Some(name), Some(oid)) = (name, reference.target()) {
            out.insert(name.to_owned(), oid);
        }
    }
    Ok(out)
}

/// What we have, newest first: the tips, and commits beneath them, so that a server finds common ground also after a
/// force-push.
fn haves(repo: &Repository) -> Result<Vec<Oid>, git2::Error> {
    let mut walk = repo.revwalk()?;
    walk.set_sorting(git2::Sort::TIME)?;
    for oid in references(repo)?.into_values() {
        if let Ok(commit) = repo.find_object(oid, None).and_then(|o| o.peel(ObjectType::Commit)) {
            walk.push(commit.id())?;
        }
    }
    walk.take(MAX_HAVES).collect()
}

/// Branch and tag names that are near what was asked for; where none is and there are few, the branches.
fn nearest(known: &BTreeMap<String, Oid>, wanted: &str) -> Vec<String> {
    let short = |n: &str| n.trim_start_matches("refs/heads/").trim_start_matches("refs/tags/").to_owned();
    let wanted = short(&wanted.chars().take(100).collect::<String>().to_lowercase());
    let mut names: Vec<(usize, String)> = known
        .keys()
        .filter(|n| n.len() < 200)
        .map(|n| (strsim::osa_distance(&short(n).to_lowercase(), &wanted), short(n)))
        .filter(|(d, n)| *d <= n.len().max(wanted.len()) / 3)
        .collect();
    names.sort();
    names.dedup();
    names.truncate(3);
    if names.is_empty() && known.len() <= 5 {
        names = known.keys().filter(|n| n.starts_with("refs/heads/")).map(|n| (0, short(n))).collect();
    }
    names.into_iter().map(|(_, n)| n).collect()
}
