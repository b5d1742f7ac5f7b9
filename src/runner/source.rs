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
    let count = checkout.dirty.len();
    let names: Vec<&str> = checkout.dirty.iter().take(3).map(|d| d.path.as_str()).collect();
    let more = if count > names.len() { ", .." } else { "" };
    let files = if count == 1 { "file differs" } else { "files differ" };
    if dirty {
        remarks.push(format!(
            "the tree as it lies in {} is run; nothing is pushed or deployed",
            checkout.root.display()
        ));
        let tree: Arc<dyn Tree> = Arc::new(checkout.dirty_tree().map_err(|e| outside(&e))?);
        let subject =
            Subject { tree, commit: None, branch: checkout.head.branch, created: settings.clock.now() };
        return Ok(Pinned { subject, repo, dirty: true, remarks });
    }
    if count > 0 {
        remarks.push(format!(
            "{count} {files} from HEAD and are not in this run ({}{more}); --dirty runs the tree as it is",
            names.join(", ")
        ));
    }
    let tree = checkout.tree().map_err(|e| outside(&e))?;
    remarks.extend(attributes(&tree));
    let tree: Arc<dyn Tree> = Arc::new(tree);
    let subject = Subject {
        tree,
        commit: Some(checkout.head.commit),
        branch: checkout.head.branch,
        created: checkout.head.time,
    };
    Ok(Pinned { subject, repo, dirty: false, remarks })
}

/// What a checkout by git would do to the files and we do not (see [`CommitTree`]).
fn attributes(tree: &CommitTree) -> Option<String> {
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
    Ok(Pinned { subject, repo: mirror.url().to_string(), dirty: false, remarks })
}
