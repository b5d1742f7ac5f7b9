//! Fetches the repositories that an `ADD` names.
//!
//! The file that names them may be anybody's. So nothing of the person who builds is used that was not given to the
//! build: tokens are its secrets `GIT_AUTH_TOKEN` and `GIT_AUTH_TOKEN.HOST`, ssh has the keys of its agent `default` and
//! reads no configuration; and unless the build has the machine's network, only what a private network reaches is asked.
//! The mirrors are apart from those of repositories that people name.

use crate::contexts::Kept;
use crate::perform::{Performer, step_failure};
use crate::subtree::Subtree;
use crate::{blocking, source};
use keelway_engine::{Ctx, Failure};
use keelway_http::Reach;
use keelway_image::git::{check, key, named_commit, snapshot};
use keelway_model::plan::{Chain, GitOp, Network};
use keelway_model::{CacheKey, CommitId, Digest, Redacted, Tree, TreeEntry, TreeError, TreeKind, TreePath};
use keelway_source::{GitCredentials, GitSettings, Login, Mirror, Origin, RepoUrl, SshSettings, Transport};
use keelway_store::Store;
use std::collections::HashMap;
use std::io::Read;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::OnceCell;

/// Beneath the folder of mirrors.
const MIRRORS: &str = "added";
/// The secret with a token for repositories; with a dot and a host after it, for those of that host.
const TOKEN: &str = "GIT_AUTH_TOKEN";
/// Who a token is for: servers look at the token alone.
const TOKEN_USER: &str = "x-access-token";
/// The agent that ssh asks, by its id.
const AGENT: &str = "default";
const GIT: &[u8] = b".git";

/// What a reference means.
#[derive(Debug, Clone)]
struct Resolved {
    commit: CommitId,
    branch: Option<String>,
}

/// Address, reference and reach.
type Asked = (String, String, bool);

/// The answers of one run: what moves, moves between two runs.
#[derive(Default)]
pub(crate) struct Repositories(Mutex<HashMap<Asked, Arc<OnceCell<Resolved>>>>);

fn failed(op: &GitOp) -> impl Fn(&dyn std::fmt::Display) -> Failure {
    // The address may hold a password: of what does not parse nothing is shown.
    let shown = address(op).map_or_else(|_| "a repository".to_owned(), |url| url.to_string());
    move |why| Failure::outside(format!("ADD of {shown}: {why}"))
}

fn address(op: &GitOp) -> Result<RepoUrl, Failure> {
    // With the machine's network also what is on its loopback, which speaks plain http.
    let origin = if op.network == Network::Host { Origin::CommandLine } else { Origin::File };
    let url =
        RepoUrl::parse(&op.url, origin).map_err(|e| Failure::failed(format!("ADD of a repository: {e}")))?;
    match url.transport() {
        Transport::Local { .. } => Err(Failure::failed("ADD of a repository: it is a path of this machine")),
        _ => Ok(url),
    }
}

/// What the fetch may use.
fn settings(performer: &Performer, op: &GitOp, url: &RepoUrl) -> Result<GitSettings, Failure> {
    let given = &performer.settings;
    let mut git = given.git.clone();
    git.credentials = credentials(&given.secrets);
    git.ssh = SshSettings { config: given.add_ssh_config.clone(), ..git.ssh };
    git.ssh.agent = given.agents.get(AGENT).cloned();
    if matches!(url.transport(), Transport::Ssh { .. }) && git.ssh.agent.is_none() && git.ssh.config.is_none()
    {
        return Err(Failure::failed(format!(
            "ADD of {url}: this build has no ssh agent; --ssh default gives it the one of SSH_AUTH_SOCK"
        )));
    }
    git.ssh.config.get_or_insert_with(|| PathBuf::from(SshSettings::NO_CONFIG));
    if op.network != Network::Host {
        git.http = given.http.for_strangers().map_err(|e| failed(op)(&e))?;
        git.ssh.reach = Reach::Strangers;
    }
    Ok(git)
}

fn credentials(secrets: &std::collections::BTreeMap<String, Redacted<Vec<u8>>>) -> GitCredentials {
    let mut out = GitCredentials::default();
    for (id, token) in secrets {
        let password = Redacted::new(String::from_utf8_lossy(token.reveal()).trim().to_owned());
        let login = Login { user: TOKEN_USER.to_owned(), password };
        match id.strip_prefix(TOKEN) {
            Some("") => out.set_any(login),
            Some(rest) => {
                if let Some(host) = rest.strip_prefix('.') {
                    out.set(host, login);
                }
            }
            None => {}
        }
    }
    out
}

fn mirrors(performer: &Performer) -> PathBuf {
    performer.settings.mirrors.join(MIRRORS)
}

/// Fetches, and says what the reference means; once a run.
async fn resolve(performer: &Performer, ctx: &Ctx, op: &GitOp, url: &RepoUrl) -> Result<Resolved, Failure> {
    let asked = (url.cache_name(), op.reference.clone(), op.network == Network::Host);
    let cell = {
        // Each change is one insertion, so a panic elsewhere leaves nothing half done.
        let mut cells = performer.repositories.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(cells.entry(asked).or_default())
    };
    let ask = || async {
        let settings = settings(performer, op, url)?;
        let (cache, url, op, own) = (mirrors(performer), url.clone(), op.clone(), ctx.clone());
        source::fetching(settings, &ctx.cancel, move |git| {
            let failed = failed(&op);
            let mirror = Mirror::open(&cache, &url).map_err(|e| failed(&e))?;
            let label = url.to_string();
            mirror
                .fetch(git, &mut |bytes| own.progress(label.clone(), bytes, None))
                .map_err(|e| failed(&e))?;
            let found = mirror.resolve(&op.reference).map_err(|e| failed(&e))?;
            Ok(Resolved { commit: found.commit, branch: found.branch })
        })
        .await
    };
    cell.get_or_try_init(ask).await.cloned()
}

/// The key of the repository at the commit that it has now; where the Dockerfile says which commit that must be, nobody is
/// asked.
pub(crate) async fn key_of(performer: &Performer, ctx: &Ctx, op: &GitOp) -> Result<CacheKey, Failure> {
    let url = address(op)?;
    let (commit, branch) = match named_commit(op).filter(|_| !op.keep_git_dir) {
        Some(commit) => (commit.to_owned(), None),
        None => {
            let found = resolve(performer, ctx, op, &url).await?;
            (found.commit.as_str().to_owned(), found.branch)
        }
    };
    check(op, &commit).map_err(|e| step_failure(&e))?;
    Ok(key(op, &url.to_string(), &commit, branch.as_deref()))
}

/// Puts the files of the repository into the store.
pub(crate) async fn run(
    performer: &Performer,
    ctx: &Ctx,
    op: &GitOp,
    key: CacheKey,
) -> Result<Chain, Failure> {
    let url = address(op)?;
    let found = resolve(performer, ctx, op, &url).await?;
    check(op, found.commit.as_str()).map_err(|e| step_failure(&e))?;
    ctx.news(format!("{url} at {} ({})", found.commit.short(), op.reference)).await;
    let (store, cache, op) = (performer.store().clone(), mirrors(performer), op.clone());
    let (chain, remark) = blocking(move || {
        let failed = failed(&op);
        let mirror = Mirror::open(&cache, &url).map_err(|e| failed(&e))?;
        let wish =
            Wish { folder: op.folder.as_deref(), keep_git_dir: op.keep_git_dir, submodules: op.submodules };
        let (tree, remark) = files(&store, &mirror, &found.commit, found.branch.as_deref(), &wish)?;
        let chain = snapshot(&store, &*tree, &key).map_err(|e| step_failure(&e))?;
        Ok((chain, remark))
    })
    .await?;
    if let Some(remark) = remark {
        ctx.notice(remark).await;
    }
    Ok(chain)
}

/// What is wanted of a repository.
pub(crate) struct Wish<'a> {
    /// Only this folder.
    pub folder: Option<&'a str>,
    /// With a `.git`.
    pub keep_git_dir: bool,
    /// Whether submodules are, else their folders are empty.
    pub submodules: bool,
}

/// The files of a commit of a mirror, and what a person should know of them; blocking.
pub(crate) fn files(
    store: &Store,
    mirror: &Mirror,
    commit: &CommitId,
    branch: Option<&str>,
    wish: &Wish<'_>,
) -> Result<(Arc<dyn Tree>, Option<String>), Failure> {
    let url = mirror.url();
    let failed = |e: &dyn std::fmt::Display| Failure::outside(format!("{url}: {e}"));
    let commit = mirror.tree(commit).map_err(|e| failed(&e))?;
    let remark = source::attributes(&commit);
    let git = match wish.keep_git_dir {
        true => {
            let upper = store.begin().map_err(|e| failed(&e))?;
            commit.write_git_dir(upper.fs(), &url.to_string(), branch).map_err(|e| failed(&e))?;
            Some(Kept::new(upper)?)
        }
        false => None,
    };
    let mut tree: Arc<dyn Tree> = Arc::new(commit);
    if let Some(folder) = wish.folder {
        let part = Subtree::new(tree, TreePath::from(folder));
        tree = Arc::new(part.map_err(|e| Failure::failed(format!("{url}: {e}")))?);
    }
    if git.is_some() || !wish.submodules {
        tree = Arc::new(Added { tree, git, submodules: wish.submodules });
    }
    Ok((tree, remark))
}

/// The files of a commit as they are added.
struct Added {
    tree: Arc<dyn Tree>,
    git: Option<Kept>,
    /// Whether a submodule is one, or an empty folder.
    submodules: bool,
}

impl Added {
    /// The path in the `.git`, where it is one.
    fn git(&self, path: &TreePath) -> Option<(&Kept, TreePath)> {
        let tree = self.git.as_ref()?;
        let mut components = path.components();
        (components.next()? == GIT).then_some(())?;
        let rest = components.try_fold(TreePath::root(), |at, name| at.join(name))?;
        Some((tree, rest))
    }

    fn told(&self, mut entry: TreeEntry) -> TreeEntry {
        if entry.kind == TreeKind::Submodule && !self.submodules {
            entry.kind = TreeKind::Directory;
        }
        entry
    }

    /// Whether this is the empty folder of a submodule.
    fn is_emptied(&self, path: &TreePath) -> Result<bool, TreeError> {
        let submodule = |e: TreeEntry| e.kind == TreeKind::Submodule;
        Ok(!self.submodules && self.tree.entry(path)?.is_some_and(submodule))
    }
}

impl Tree for Added {
    fn entry(&self, path: &TreePath) -> Result<Option<TreeEntry>, TreeError> {
        if let Some((git, rest)) = self.git(path) {
            let name = path.file_name().unwrap_or_default().to_vec();
            return Ok(git.entry(&rest)?.map(|e| TreeEntry { name, ..e }));
        }
        Ok(self.tree.entry(path)?.map(|e| self.told(e)))
    }
    fn list(&self, path: &TreePath) -> Result<Vec<TreeEntry>, TreeError> {
        if let Some((git, rest)) = self.git(path) {
            return git.list(&rest);
        }
        if self.is_emptied(path)? {
            return Ok(Vec::new());
        }
        let mut entries: Vec<_> = self.tree.list(path)?.into_iter().map(|e| self.told(e)).collect();
        if path.is_root()
            && self.git.is_some()
            && let Some(at) = path.join(GIT)
            && let Some(git) = self.entry(&at)?
        {
            entries.push(git);
            entries.sort_by(|a, b| a.name.cmp(&b.name));
        }
        Ok(entries)
    }
    fn open(&self, path: &TreePath) -> Result<Box<dyn Read + Send>, TreeError> {
        match self.git(path) {
            Some((git, rest)) => git.open(&rest),
            None => self.tree.open(path),
        }
    }
    fn memo(&self, path: &TreePath) -> Option<Digest> {
        // Beneath the top a tree is as git knows it, but for the folders of submodules.
        self.tree.memo(path).filter(|_| self.submodules && !path.is_root() && self.git(path).is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_secrets_of_the_build_are_logins() {
        let secret = |text: &str| Redacted::new(text.as_bytes().to_vec());
        let secrets = [
            ("GIT_AUTH_TOKEN.git.example.com", secret("one\n")),
            ("GIT_AUTH_TOKENS", secret("other")),
            ("npm", secret("other")),
        ];
        let mut secrets = secrets.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        let found = |secrets: &_, host: &str| {
            credentials(secrets).for_host(host).map(|l| (l.user.clone(), l.password.reveal().clone()))
        };
        assert_eq!(found(&secrets, "git.example.com"), Some(("x-access-token".into(), "one".into())));
        assert_eq!(found(&secrets, "example.com"), None);
        secrets.insert("GIT_AUTH_TOKEN".to_owned(), secret("all"));
        assert_eq!(found(&secrets, "example.com"), Some(("x-access-token".into(), "all".into())));
        assert_eq!(found(&secrets, "git.example.com"), Some(("x-access-token".into(), "one".into())));
    }

    #[test]
    fn addresses_of_a_file_are_of_other_machines() {
        let op = |url: &str, network| GitOp {
            url: url.into(),
            reference: "HEAD".into(),
            folder: None,
            checksum: None,
            keep_git_dir: false,
            submodules: true,
            network,
            identity: keelway_model::Digest::of(b"step"),
        };
        for (url, private, host) in [
            ("https://example.com/a.git", true, true),
            ("git@example.com:a.git", true, true),
            ("http://127.0.0.1:1/a.git", false, true),
            ("http://example.com/a.git", false, false),
            ("git://example.com/a.git", false, false),
            ("file:///srv/a.git", false, false),
            ("/srv/a.git", false, false),
        ] {
            assert_eq!(address(&op(url, Network::Private)).is_ok(), private, "{url}");
            assert_eq!(address(&op(url, Network::Host)).is_ok(), host, "{url}");
        }
    }
}
