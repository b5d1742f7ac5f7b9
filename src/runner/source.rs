//! Pinning: what was asked for becomes a commit and its tree, before anything is planned.

use crate::perform::Subject;
use crate::settings::Settings;
use crate::{RunnerError, blocking};
use keelway_engine::Failure;
use keelway_model::{ExitCode, Tree};
use keelway_source::{Checkout, Mirror, RepoUrl};
use std::path::PathBuf;
use std::sync::Arc;

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

/// Pins; blocking work on the blocking pool.
pub async fn pin(settings: &Settings, wanted: Wanted) -> Result<Pinned, RunnerError> {
    let settings = settings.clone();
    let pinned = blocking(move || match wanted {
        Wanted::Checkout { at, dirty } => checkout(&settings, &at, dirty),
        Wanted::Repository { url, reference } => repository(&settings, &url, &reference),
    })
    .await?;
    Ok(pinned)
}

fn outside(e: &dyn std::fmt::Display) -> Failure {
    Failure::outside(e.to_string())
}

fn checkout(settings: &Settings, at: &std::path::Path, dirty: bool) -> Result<Pinned, Failure> {
    let checkout = Checkout::discover(at).map_err(|e| Failure::new(ExitCode::Usage, e.to_string()))?;
    let repo = checkout.remote.as_ref().map_or_else(|| checkout.root.display().to_string(), ToString::to_string);
    let mut remarks = Vec::new();
    let count = checkout.dirty.len();
    let names: Vec<&str> = checkout.dirty.iter().take(3).map(|d| d.path.as_str()).collect();
    let more = if count > names.len() { ", .." } else { "" };
    let files = if count == 1 { "file differs" } else { "files differ" };
    if dirty {
        remarks.push(format!("the tree as it lies in {} is run; nothing is pushed or deployed", checkout.root.display()));
        let tree: Arc<dyn Tree> = Arc::new(checkout.dirty_tree().map_err(|e| outside(&e))?);
        let subject = Subject { tree, commit: None, branch: checkout.head.branch, created: settings.clock.now() };
        return Ok(Pinned { subject, repo, dirty: true, remarks });
    }
    if count > 0 {
        remarks.push(format!("{count} {files} from HEAD and are not in this run ({}{more}); --dirty runs the tree as it is", names.join(", ")));
    }
    let tree: Arc<dyn Tree> = Arc::new(checkout.tree().map_err(|e| outside(&e))?);
    let subject = Subject { tree, commit: Some(checkout.head.commit), branch: checkout.head.branch, created: checkout.head.time };
    Ok(Pinned { subject, repo, dirty: false, remarks })
}

fn repository(settings: &Settings, url: &RepoUrl, reference: &str) -> Result<Pinned, Failure> {
    let mirror = Mirror::open(&settings.mirrors, url).map_err(|e| outside(&e))?;
    mirror.fetch(&settings.git, &mut |_| {}).map_err(|e| outside(&e))?;
    let found = mirror.resolve(reference).map_err(|e| outside(&e))?;
    at_commit(&mirror, found)
}

/// The tree of a resolved reference of a mirror.
pub(crate) fn at_commit(mirror: &Mirror, found: keelway_source::Pinned) -> Result<Pinned, Failure> {
    let tree: Arc<dyn Tree> = Arc::new(mirror.tree(&found.commit).map_err(|e| outside(&e))?);
    let subject = Subject { tree, commit: Some(found.commit), branch: found.branch, created: found.time };
    Ok(Pinned { subject, repo: mirror.url().to_string(), dirty: false, remarks: Vec::new() })
}
