//! Where the files of a build come from besides a folder of the run's source: other folders, repositories, images of a
//! layout, a stream, an address.
//!
//! Whoever gives the command names them, so a repository is reached as `--repo` is, with the person's own logins and ssh.

use crate::perform::Workspace;
use crate::settings::Settings;
use crate::{blocking, git, lower, source};
use keelway_dockerfile::{Ignore, ignore_file_candidates};
use keelway_engine::{CancelToken, Failure};
use keelway_http::{Request, StatusCode, Url};
use keelway_image::git::Address;
use keelway_image::received::{self, Received};
use keelway_image::{Blame, NamedContext, PinnedBase, StepError, import};
use keelway_model::{ExitCode, ImageRef, Platform, Timestamp, Tree, TreeEntry, TreeError, TreePath};
use keelway_source::{DirTree, Mirror, Origin, RepoUrl};
use keelway_store::{Store, Upper};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// For the whole of a context by address.
const DOWNLOAD: Duration = Duration::from_secs(30 * 60);

/// What a name of `--build-context` means.
#[derive(Clone)]
pub enum BuildContext {
    /// An image by reference.
    Image(ImageRef),
    /// An image that is in the store.
    Pinned(Box<PinnedBase>),
    /// Files, behind the patterns of their own `.dockerignore`.
    Files(Arc<dyn Tree>, Arc<Ignore>),
}

/// The contexts of a build by their names, in lower case.
pub type BuildContexts = BTreeMap<String, BuildContext>;

/// What a Dockerfile is lowered with.
pub(crate) fn named(contexts: &BuildContexts) -> BTreeMap<String, NamedContext> {
    let named = |context: &BuildContext| match context {
        BuildContext::Image(image) => NamedContext::Image(image.clone()),
        BuildContext::Pinned(base) => NamedContext::Pinned(base.clone()),
        BuildContext::Files(..) => NamedContext::Files,
    };
    contexts.iter().map(|(name, context)| (name.clone(), named(context))).collect()
}

/// Files as a named context, with their `.dockerignore`; blocking.
///
/// # Errors
/// The ignore file cannot be read or is not valid.
pub fn files(tree: Arc<dyn Tree>) -> Result<BuildContext, Failure> {
    // A context of its own has no Dockerfile that could have another.
    let [_, common] = ignore_file_candidates("");
    let ignore = lower::ignore_file(&*tree, &[common])?;
    Ok(BuildContext::Files(tree, Arc::new(ignore)))
}

/// The image of an OCI layout as a named context, in the store when this is done; blocking.
///
/// # Errors
/// The layout is not sound, or holds not just one image for this machine that `select` names.
pub fn layout(store: &Store, dir: &std::path::Path, select: Option<&str>) -> Result<BuildContext, Failure> {
    let taken = import::take(store, dir, select, &Platform::host()).map_err(|e| {
        let exit = if e.is_its_fault() { ExitCode::Failed } else { ExitCode::Outside };
        Failure::new(exit, e.to_string())
    })?;
    Ok(BuildContext::Pinned(Box::new(taken)))
}

/// A repository as a context.
pub struct Repository {
    /// Its files.
    pub tree: Arc<dyn Tree>,
    /// The commit's time.
    pub time: Timestamp,
    /// Lines that a person should know.
    pub remarks: Vec<String>,
}

/// The repository that a person names, `ADDRESS#REF:FOLDER`; `.git` is kept where the address or `keep_git_dir` says so.
///
/// # Errors
/// The address is not valid; it cannot be reached; it does not have what it shall have.
pub async fn repository(
    settings: &Settings,
    workspace: &Workspace,
    text: &str,
    keep_git_dir: bool,
    cancel: &CancelToken,
) -> Result<Repository, Failure> {
    let usage = |e: String| Failure::new(ExitCode::Usage, format!("the repository {e}"));
    let address = Address::parse(text).map_err(|e| usage(format!("of a context: {e}")))?;
    // It may hold a password: of what does not parse nothing is shown.
    let url =
        RepoUrl::parse(&address.url, Origin::CommandLine).map_err(|e| usage(format!("of a context: {e}")))?;
    let keep_git_dir = address.keep_git_dir.unwrap_or(keep_git_dir);
    if keep_git_dir && address.folder.is_some() {
        return Err(usage(format!("{url}: a .git is for all of it, and this names a folder of it")));
    }
    let (mirrors, store) = (settings.mirrors.clone(), workspace.store.clone());
    source::fetching(settings.git.clone(), cancel, move |settings| {
        let outside = |e: &dyn std::fmt::Display| Failure::outside(e.to_string());
        let mirror = Mirror::open(&mirrors, &url).map_err(|e| outside(&e))?;
        mirror.fetch(settings, &mut |_| {}).map_err(|e| outside(&e))?;
        let reference = address.reference.as_deref().unwrap_or("HEAD");
        let found = mirror.resolve(reference).map_err(|e| outside(&e))?;
        let commit = found.commit.as_str();
        if let Some(wanted) = address.commit.as_deref().filter(|wanted| !commit.starts_with(*wanted)) {
            return Err(Failure::failed(format!(
                "{url}: {reference} is the commit {commit}, and not {wanted}"
            )));
        }
        let wish = git::Wish {
            folder: address.folder.as_deref(),
            keep_git_dir,
            submodules: address.submodules.unwrap_or(true),
        };
        let (tree, remark) = git::files(&store, &mirror, &found.commit, found.branch.as_deref(), &wish)?;
        let mut remarks =
            vec![format!("the context is commit {} of {url} ({reference})", found.commit.short())];
        remarks.extend(remark);
        Ok(Repository { tree, time: found.time, remarks })
    })
    .await
}

/// What a stream held.
pub enum Streamed {
    /// The files of a tar.
    Files(Arc<dyn Tree>),
    /// A Dockerfile.
    Dockerfile(String),
}

/// Reads a build context or Dockerfile from standard input (or whatever stands for it) to its end.
///
/// # Errors
/// It cannot be read; a tar that is not sound; a text that is none.
pub async fn stream(
    store: &Store,
    from: impl Read + Send + 'static,
    cancel: &CancelToken,
) -> Result<Streamed, Failure> {
    let store = store.clone();
    unless_cancelled(cancel, move || streamed(&store, from, "standard input")).await
}

/// The same of what a person's http or https address answers with.
///
/// # Errors
/// As [`stream`], and it cannot be reached.
pub async fn download(
    settings: &Settings,
    store: &Store,
    address: &str,
    cancel: &CancelToken,
) -> Result<Streamed, Failure> {
    // The address may hold a password or a token: of what does not parse nothing is shown.
    let url: Url = address
        .parse()
        .map_err(|e| Failure::new(ExitCode::Usage, format!("the address of a context: {e}")))?;
    let (http, store) = (settings.http.clone(), store.clone());
    unless_cancelled(cancel, move || {
        let name = format!("{}{}", url.host_str().unwrap_or_default(), url.path());
        let outside = |why: &dyn std::fmt::Display| Failure::outside(format!("the context {name}: {why}"));
        let client = http.blocking().map_err(|e| outside(&e))?;
        let response = client.send(Request::get(url.clone()).total(DOWNLOAD)).map_err(|e| outside(&e))?;
        if response.status() != StatusCode::OK {
            return Err(outside(&format!("the server answers {}", response.status())));
        }
        streamed(&store, response, &name)
    })
    .await
}

/// Blocking work that is given up when `cancel` says so.
async fn unless_cancelled<T: Send + 'static>(
    cancel: &CancelToken,
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::select! {
        done = blocking(work) => done,
        _ = cancel.cancelled() => Err(Failure::new(ExitCode::Cancelled, "cancelled while reading the context")),
    }
}

fn streamed(store: &Store, from: impl Read + Send + 'static, name: &str) -> Result<Streamed, Failure> {
    let broken = Arc::new(AtomicBool::new(false));
    let from = Watched { inner: from, broken: Arc::clone(&broken) };
    let failed = |e: &StepError| match e.blame() {
        Blame::Build if !broken.load(Ordering::Relaxed) => Failure::new(ExitCode::Usage, e.to_string()),
        _ => Failure::outside(e.to_string()),
    };
    match received::receive(store, from, name).map_err(|e| failed(&e))? {
        Received::Files(upper) => Ok(Streamed::Files(Arc::new(Kept::new(upper)?))),
        Received::Text(text) => match String::from_utf8(text) {
            Ok(text) => Ok(Streamed::Dockerfile(text)),
            Err(_) => {
                let message = format!("{name} is neither a tar nor the UTF-8 text of a Dockerfile");
                Err(Failure::new(ExitCode::Usage, message))
            }
        },
    }
}

/// Remembers that reading failed: then it was not the content.
struct Watched<R> {
    inner: R,
    broken: Arc<AtomicBool>,
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let done = self.inner.read(buf);
        if done.as_ref().is_err_and(|e| e.kind() != io::ErrorKind::Interrupted) {
            self.broken.store(true, Ordering::Relaxed);
        }
        done
    }
}

/// A context without any files; blocking.
///
/// # Errors
/// The store cannot be written.
pub fn nothing(store: &Store) -> Result<Arc<dyn Tree>, Failure> {
    let upper = store.begin().map_err(|e| Failure::outside(e.to_string()))?;
    Ok(Arc::new(Kept::new(upper)?))
}

/// A directory of this run as a tree, which goes when this does.
pub(crate) struct Kept {
    tree: DirTree,
    _upper: Upper,
}

impl Kept {
    pub(crate) fn new(upper: Upper) -> Result<Self, Failure> {
        let path: PathBuf = upper.fs().to_owned();
        let tree = DirTree::open(&path).map_err(|e| Failure::outside(e.to_string()))?;
        Ok(Self { tree, _upper: upper })
    }
}

impl Tree for Kept {
    fn entry(&self, path: &TreePath) -> Result<Option<TreeEntry>, TreeError> {
        self.tree.entry(path)
    }
    fn list(&self, path: &TreePath) -> Result<Vec<TreeEntry>, TreeError> {
        self.tree.list(path)
    }
    fn open(&self, path: &TreePath) -> Result<Box<dyn Read + Send>, TreeError> {
        self.tree.open(path)
    }
    fn open_file(&self, path: &TreePath) -> Result<Option<File>, TreeError> {
        self.tree.open_file(path)
    }
}
