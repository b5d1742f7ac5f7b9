//! Pinning: what was asked for becomes a commit and its tree, before anything is planned.

use crate::perform::Subject;
use crate::settings::Settings;
use crate::{RunnerError, blocking};
use keelway_engine::{CancelToken, Failure};
use keelway_model::{ExitCode, Tree};
use keelway_source::{Checkout, CommitTree, GitSettings, Mirror, RepoUrl};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// What a run shall be of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// The checkout that this folder is in: its HEAD, or the tree as it lies there.
    Checkout {
        /// Any folder of the checkout.
        at: PathBuf,
        /// `--dirty`.
        dirty: bool,
    },
    /// A repository: `--repo URL --commit REF`.
    Repository {
        /// The address.
        url: RepoUrl,
        /// Branch, tag or commit; `HEAD` where none is given.
        reference: String,
    },
}

/// A pinned source.
#[derive(Clone)]
pub struct Pinned {
    /// Files, commit, branch, time.
    pub subject: Subject,
    /// The repository as records name it, without a password.
    pub repo: String,
    /// Whether the tree has changes that are in no commit.
    pub dirty: bool,
    /// Lines that a person should know: `3 files differ from HEAD and are left out`.
    pub remarks: Vec<String>,
    /// What was looked at, in words: `commit 0123456789ab (HEAD) of /home/me/shop`.
    pub searched: String,
}

/// How long a fetch that is no longer wanted may take to tidy up.
const GRACE: Duration = Duration::from_secs(2);

/// Pins; blocking work on the blocking pool.
pub async fn pin(settings: &Settings, wanted: Wanted, cancel: &CancelToken) -> Result<Pinned, RunnerError> {
    let settings = settings.clone();
    let git = settings.git.clone();
    let pinned = fetching(git, cancel, move |git| match wanted {
        Wanted::Checkout { at, dirty } => checkout(&settings, &at, dirty),
        Wanted::Repository { url, reference } => repository(&settings, git, &url, &reference),
    })
    .await?;
    Ok(pinned)
}

/// Blocking work with git that ends when `cancel` says so: the fetch is told, and given a moment to remove what it
/// began. A server that hangs keeps nobody.
pub(crate) async fn fetching<T: Send + 'static>(
    mut git: GitSettings,
    cancel: &CancelToken,
    work: impl FnOnce(&GitSettings) -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    git.cancel = Arc::default();
    let stop = Arc::clone(&git.cancel);
    let task = blocking(move || work(&git));
    tokio::pin!(task);
    tokio::select! {
        done = &mut task => done,
        _ = cancel.cancelled() => {
            stop.store(true, Ordering::Relaxed);
            let _ = tokio::time::timeout(GRACE, task).await;
            Err(Failure::new(ExitCode::Cancelled, "cancelled while reading the repository"))
        }
    }
}

fn outside(e: &dyn std::fmt::Display) -> Failure {
    Failure::outside(e.to_string())
}

fn checkout(settings: &Settings, at: &std::path::Path, dirty: bool) -> Result<Pinned, Failure> {
    let checkout = Checkout::discover(at).map_err(|e| Failure::new(ExitCode::Usage, e.to_string()))?;
    let repo =
        checkout.remote.as_ref().map_or_else(|| checkout.root.display().to_string(), ToString::to_string);
    let mut remarks = Vec::new();
    let branch = checkout.head.as_ref().and_then(|h| h.branch.clone());
    let count = checkout.dirty.len();
    let names: Vec<&str> = checkout.dirty.iter().take(3).map(|d| d.path.as_str()).collect();
    let more = if count > names.len() { ", .." } else { "" };
    let files = if count == 1 { "file differs" } else { "files differ" };
    let mut searched = format!("the tree as it lies in {}", checkout.root.display());
    let elsewhere = at.canonicalize().is_ok_and(|here| here != checkout.root)
        && at.join(keelway_pipeline::FILE_NAME).exists();
    let elsewhere = if elsewhere {
        format!("; the one in {} is not read: the file must stand at the repository's root", at.display())
    } else {
        String::new()
    };
    if dirty {
        remarks.push(format!(
            "{searched}, uncommitted changes included; such a tree is never pushed or deployed"
        ));
        let tree: Arc<dyn Tree> = Arc::new(checkout.dirty_tree().map_err(|e| outside(&e))?);
        let subject = Subject { tree, commit: None, branch, created: settings.clock.now() };
        return Ok(Pinned { subject, repo, dirty: true, remarks, searched: searched + &elsewhere });
    }
    if count > 0 {
        remarks.push(format!(
            "{count} {files} from HEAD and {} left out ({}{more}); --dirty takes the tree as it lies there",
            if count == 1 { "is" } else { "are" },
            names.join(", ")
        ));
    }
    let tree = checkout.tree().map_err(|e| Failure::new(ExitCode::Usage, e.to_string()))?;
    let Some(head) = checkout.head else {
        return Err(Failure::bug("a checkout without a commit has a tree of one"));
    };
    searched = format!("commit {} (HEAD) of {}", head.commit.short(), checkout.root.display());
    if checkout.root.join(keelway_pipeline::FILE_NAME).exists() {
        searched.push_str("; what lies there and is not committed is not in it (--dirty takes it)");
    }
    remarks.extend(attributes(&tree));
    let tree: Arc<dyn Tree> = Arc::new(tree);
    let subject = Subject { tree, commit: Some(head.commit), branch: head.branch, created: head.time };
    Ok(Pinned { subject, repo, dirty: false, remarks, searched: searched + &elsewhere })
}

/// What a checkout by git would do to the files and we do not (see [`CommitTree`]).
pub(crate) fn attributes(tree: &CommitTree) -> Option<String> {
    let asked = tree.unapplied_attributes()?;
    Some(format!(
        ".gitattributes asks a checkout for {asked}, which is not done: files are used byte for byte as the commit holds them"
    ))
}

fn repository(
    settings: &Settings,
    git: &GitSettings,
    url: &RepoUrl,
    reference: &str,
) -> Result<Pinned, Failure> {
    let mirror = Mirror::open(&settings.mirrors, url).map_err(|e| outside(&e))?;
    mirror.fetch(git, &mut |_| {}).map_err(|e| outside(&e))?;
    let found = mirror.resolve(reference).map_err(|e| outside(&e))?;
    at_commit(&mirror, found)
}

/// The tree of a resolved reference of a mirror.
pub(crate) fn at_commit(mirror: &Mirror, found: keelway_source::Pinned) -> Result<Pinned, Failure> {
    let tree = mirror.tree(&found.commit).map_err(|e| outside(&e))?;
    let remarks = attributes(&tree).into_iter().collect();
    let subject = Subject {
        tree: Arc::new(tree),
        commit: Some(found.commit),
        branch: found.branch,
        created: found.time,
    };
    let repo = mirror.url().to_string();
    let searched = format!("commit {} of {repo}", subject.commit.as_ref().map_or("?", |c| c.short()));
    Ok(Pinned { subject, repo, dirty: false, remarks, searched })
}
