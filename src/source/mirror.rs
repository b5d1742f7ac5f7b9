//! A bare copy of a repository under the cache folder.
//!
//! One folder an address (`git-v1/<digest of the address>`), shared by all processes of a machine. It is written under
//! a lock; objects are only ever added, so reading needs none. References are updated after all their objects are
//! there. Nothing of its own configuration comes from the remote.

use crate::connection::{self, Watch};
use crate::error::clean;
use crate::protocol::{Advertisement, is_hex};
use crate::{CommitTree, GitSettings, RepoUrl, SourceError};
use git2::{ErrorCode, ObjectType, Oid, Repository, RepositoryInitOptions};
use keelway_disk::{Lock, LockError};
use keelway_model::{CommitId, Timestamp};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Version of the layout under the cache folder.
const FOLDER: &str = "git-v1";
/// Commits we tell a server that we have, at most.
const MAX_HAVES: usize = 1024;
/// How long to wait for another process that makes the same mirror.
const OPEN_WAIT: Duration = Duration::from_secs(30);

/// A mirror.
pub struct Mirror {
    url: RepoUrl,
    dir: PathBuf,
    lock: PathBuf,
    repo: Mutex<Repository>,
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
        let repo = Repository::open_bare(&dir).map_err(|e| match e.code() {
            ErrorCode::Owner => SourceError::Owner { path: dir.clone() },
            _ => SourceError::git(format!("cannot open the mirror {} of {url}", dir.display()), &e),
        })?;
        Ok(Self { url: url.clone(), dir, lock, repo: Mutex::new(repo) })
    }

    /// Whose mirror this is.
    pub fn url(&self) -> &RepoUrl {
        &self.url
    }

    pub(crate) fn repo(&self) -> MutexGuard<'_, Repository> {
        self.repo.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn failed(&self, e: &git2::Error) -> SourceError {
        SourceError::git(format!("the mirror of {} failed", self.url), e)
    }

    /// Brings all branches and tags up to date; `progress` is told the bytes so far.
    pub fn fetch(
        &self,
        settings: &GitSettings,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Fetched, SourceError> {
        let watch = Watch::start(&self.url, settings);
        let cancelled = || settings.cancel.load(Ordering::Relaxed);
        let _held = take(&self.lock, watch.until, &cancelled, &self.url)?;
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
                writer.commit().map_err(|e| self.broken(e.message()))?;
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
        CommitTree::open(repo, commit)
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

/// Made under another name first, so that a mirror is there whole or not at all.
fn make(folder: &Path, dir: &Path) -> Result<(), SourceError> {
    let failed = |e| SourceError::io(format!("cannot make {}", dir.display()), e);
    let temp = folder.join(keelway_disk::publish::temp_name().map_err(failed)?);
    let mut options = RepositoryInitOptions::new();
    options.bare(true).no_reinit(true).external_template(false).mkdir(true);
    let made = Repository::init_opts(&temp, &options)
        .map_err(|e| SourceError::git(format!("cannot make {}", dir.display()), &e))
        .and_then(|_| {
            if dir.exists() {
                // What is there has no HEAD: a folder that somebody damaged.
                fs::remove_dir_all(dir).map_err(failed)?;
            }
            fs::rename(&temp, dir).map_err(failed)
        });
    if made.is_err() {
        let _ = fs::remove_dir_all(&temp);
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
