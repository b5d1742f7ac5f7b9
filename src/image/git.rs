//! A git repository by address, as `ADD` and contexts name one: `ADDRESS#REF:FOLDER` or `ADDRESS?ref=..&subdir=..`.
//!
//! A repository that is added is a snapshot of its own, whose key holds the commit; the copy takes it from there, and is
//! keyed by what it holds. Nothing here speaks with anybody.

use crate::base::{empty, extend};
use crate::copy;
use crate::error::StepError;
use crate::fetch;
use crate::key::KeyContext;
use keelway_dockerfile::Ignore;
use keelway_model::plan::{Chain, CopyFrom, CopyOp, GitOp, Unpack};
use keelway_model::{CacheKey, Digest, Hasher, KeyPart, Output, Tree};
use keelway_store::Store;

/// Where the files are in the snapshot.
const TREE: &str = "/tree";
/// Digits of a whole commit id.
const WHOLE: usize = 40;

/// Whether a text that a person gives is the address of a repository, and no path.
pub fn is_address(text: &str) -> bool {
    text.starts_with("file://") || fetch::kind(text) == fetch::Kind::Git
}

/// An address, taken apart.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Address {
    /// What is spoken to.
    pub url: String,
    /// Branch, tag, full reference or commit.
    pub reference: Option<String>,
    /// A folder of the repository, without a slash at either end.
    pub folder: Option<String>,
    /// The commit that it must be, or the beginning of its id, in lower case.
    pub commit: Option<String>,
    /// Whether `.git` is wanted; `None` where nothing is said.
    pub keep_git_dir: Option<bool>,
    /// Whether submodules are wanted; `None` where nothing is said.
    pub submodules: Option<bool>,
}

impl Address {
    /// Takes an address apart. Whether its URL can be spoken to is not looked at.
    ///
    /// # Errors
    /// Something in it that is not understood, or said in two ways, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (rest, fragment) = text.split_once('#').map_or((text, None), |(r, f)| (r, Some(f)));
        let (url, query) = rest.split_once('?').map_or((rest, None), |(u, q)| (u, Some(q)));
        let mut address = Self { url: url.to_owned(), ..Self::default() };
        if let Some(fragment) = fragment {
            let (reference, folder) = fragment.split_once(':').map_or((fragment, ""), |(r, f)| (r, f));
            address.take("ref", reference)?;
            address.take("subdir", folder)?;
        }
        for pair in query.into_iter().flat_map(|q| q.split('&')).filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            address.take(name, &decoded(value)?)?;
        }
        if address.reference.is_none() && address.commit.as_ref().is_some_and(|c| c.len() == WHOLE) {
            address.reference.clone_from(&address.commit);
        }
        Ok(address)
    }

    fn take(&mut self, name: &str, value: &str) -> Result<(), String> {
        let switch = || match value {
            "" | "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            _ => Err(format!("{name}={value} is neither true nor false")),
        };
        match name {
            "submodules" => return set(&mut self.submodules, name, switch()?),
            "keep-git-dir" => return set(&mut self.keep_git_dir, name, switch()?),
            "ref" | "branch" | "tag" | "subdir" | "checksum" | "commit" => {}
            _ => {
                return Err(format!(
                    "{name:?} means nothing in the address of a repository: it may say ref, branch, tag, subdir, checksum, \
                     submodules and keep-git-dir"
                ));
            }
        }
        if value.is_empty() {
            return Ok(());
        }
        if value.contains('\0') {
            return Err(format!("{name} cannot hold a NUL character"));
        }
        match name {
            "subdir" => match clean(value) {
                None => Err(format!("the folder {value:?} leads out of the repository")),
                Some(folder) if folder.is_empty() => Ok(()),
                Some(folder) => set(&mut self.folder, name, folder),
            },
            "checksum" | "commit" => set(&mut self.commit, name, checked(value)?),
            "branch" => set(&mut self.reference, name, format!("refs/heads/{value}")),
            "tag" => set(&mut self.reference, name, format!("refs/tags/{value}")),
            _ => set(&mut self.reference, name, value.to_owned()),
        }
    }

    /// Takes what `--checksum` says.
    ///
    /// # Errors
    /// It is no commit id, or the address says another.
    pub fn must_be(&mut self, checksum: &str) -> Result<(), String> {
        set(&mut self.commit, "checksum", checked(checksum)?)?;
        if self.reference.is_none() {
            self.reference = self.commit.clone().filter(|c| c.len() == WHOLE);
        }
        Ok(())
    }
}

fn set<T: PartialEq + std::fmt::Debug>(place: &mut Option<T>, name: &str, value: T) -> Result<(), String> {
    match place {
        Some(there) if *there != value => Err(format!("{name} is said in two ways: {there:?} and {value:?}")),
        _ => {
            *place = Some(value);
            Ok(())
        }
    }
}

/// A commit id or its beginning.
fn checked(text: &str) -> Result<String, String> {
    let digits = text.bytes().all(|b| b.is_ascii_hexdigit());
    if text.is_empty() || text.len() > WHOLE || !digits {
        return Err(format!(
            "the checksum {text:?} is none of a repository: write the commit's id, or the beginning of it"
        ));
    }
    Ok(text.to_ascii_lowercase())
}

/// A relative path without `.` and empty components; `None` where it leads out.
fn clean(path: &str) -> Option<String> {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            p => parts.push(p),
        }
    }
    Some(parts.join("/"))
}

/// `%41` and `+` as in a form.
fn decoded(text: &str) -> Result<String, String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        if first != b'%' {
            out.push(if first == b'+' { b' ' } else { first });
            continue;
        }
        let digit = |at: usize| after.get(at).and_then(|b| char::from(*b).to_digit(16));
        let (Some(high), Some(low)) = (digit(0), digit(1)) else {
            return Err(format!("{text:?} holds a '%' that is no encoded character"));
        };
        out.push((high * 16 + low) as u8);
        rest = &after[2..];
    }
    String::from_utf8(out).map_err(|_| format!("{text:?} is not UTF-8 when it is decoded"))
}

/// The commit, where the op names one whole and nobody need be asked.
pub fn named_commit(op: &GitOp) -> Option<&str> {
    let whole = |t: &&str| t.len() == WHOLE && t.bytes().all(|b| b.is_ascii_hexdigit());
    op.checksum.as_deref().filter(whole).or(Some(op.reference.as_str()).filter(whole))
}

/// That a commit is the one that the op wants.
///
/// # Errors
/// Another is wanted.
pub fn check(op: &GitOp, commit: &str) -> Result<(), StepError> {
    match op.checksum.as_deref().filter(|wanted| !commit.starts_with(*wanted)) {
        Some(wanted) => Err(StepError::Refused(format!(
            "{} is the commit {commit}, and the checksum says {wanted}",
            op.reference
        ))),
        None => Ok(()),
    }
}

/// The key of a repository at a commit; `url` without a password, `branch` where `.git` is to be on one.
pub fn key(op: &GitOp, url: &str, commit: &str, branch: Option<&str>) -> CacheKey {
    let mut h = Hasher::new();
    h.field(b"git").field(url.as_bytes()).field(op.folder.as_deref().unwrap_or("").as_bytes());
    h.field(&[u8::from(op.keep_git_dir), u8::from(op.submodules)]);
    if op.keep_git_dir {
        h.field(branch.unwrap_or("").as_bytes());
    }
    let commit = Digest::of(commit.as_bytes());
    CacheKey::new(op.identity, vec![(KeyPart::Command, h.finish()), (KeyPart::Files, commit)])
}

/// Puts the files of a repository into a snapshot of their own.
pub fn snapshot(store: &Store, tree: &dyn Tree, key: &CacheKey) -> Result<Chain, StepError> {
    let op = CopyOp {
        sources: vec!["/".to_owned()],
        from: CopyFrom::Context,
        context: None,
        dest: format!("{TREE}/"),
        chown: None,
        chmod: None,
        exclude: Vec::new(),
        parents: false,
        link: false,
        unpack: Unpack::Never,
        identity: key.identity,
    };
    let cx = KeyContext { store, context: tree, ignore: &Ignore::default() };
    let upper = copy::run(&op, &[Output::Chain(empty())], &cx)?;
    extend(&empty(), upper, key)
}

/// Where a copy finds the files.
pub(crate) fn source() -> String {
    TREE.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{MemTree, Rig, dump};
    use keelway_model::plan::Network;

    const SHA: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn addresses_are_taken_apart() {
        let shown = |text: &str| {
            Address::parse(text).map(|a| {
                let on = |b: Option<bool>| b.map_or("-", |b| if b { "yes" } else { "no" });
                let text = |t: Option<String>| t.unwrap_or_else(|| "-".into());
                format!(
                    "{} {} {} {} {} {}",
                    a.url,
                    text(a.reference),
                    text(a.folder),
                    text(a.commit),
                    on(a.keep_git_dir),
                    on(a.submodules)
                )
            })
        };
        for (text, want) in [
            ("https://x/y.git", "https://x/y.git - - - - -"),
            ("https://x/y.git#", "https://x/y.git - - - - -"),
            ("https://x/y.git#main", "https://x/y.git main - - - -"),
            ("https://x/y.git#:a/./b/", "https://x/y.git - a/b - - -"),
            ("git@x:y.git#v1:a/../b", "git@x:y.git v1 b - - -"),
            ("https://x/y.git#refs/pull/1/head", "https://x/y.git refs/pull/1/head - - - -"),
            ("https://x/y.git?ref=a%2Fb&subdir=c+d", "https://x/y.git a/b c d - - -"),
            ("https://x/y.git?branch=m", "https://x/y.git refs/heads/m - - - -"),
            (
                "https://x/y.git?tag=v1&keep-git-dir=1&submodules=false",
                "https://x/y.git refs/tags/v1 - - yes no",
            ),
            ("https://x/y.git?checksum=ABCD#v1", "https://x/y.git v1 - abcd - -"),
            ("https://x/y.git?keep-git-dir&ref=", "https://x/y.git - - - yes -"),
        ] {
            assert_eq!(shown(text).as_deref(), Ok(want), "{text}");
        }
        let whole = Address::parse(&format!("https://x/y.git?commit={SHA}")).unwrap();
        assert_eq!(whole.reference.as_deref(), Some(SHA), "a whole commit is a reference");
        for (text, why) in [
            ("https://x/y.git?rev=1", "\"rev\" means nothing"),
            ("https://x/y.git?ref=a#b", "two ways"),
            ("https://x/y.git?ref=a&branch=a", "two ways"),
            ("https://x/y.git?subdir=../a", "leads out"),
            ("https://x/y.git#:a/../../b", "leads out"),
            ("https://x/y.git?ref=%zz", "no encoded character"),
            ("https://x/y.git?ref=%ff", "not UTF-8"),
            ("https://x/y.git?ref=%00", "NUL"),
            ("https://x/y.git?submodules=maybe", "neither true nor false"),
            ("https://x/y.git?checksum=xyz", "commit's id"),
        ] {
            let e = Address::parse(text).unwrap_err();
            assert!(e.contains(why), "{text}: {e}");
        }
    }

    fn op(reference: &str, checksum: Option<&str>) -> GitOp {
        GitOp {
            url: "https://x/y.git".into(),
            reference: reference.into(),
            folder: None,
            checksum: checksum.map(str::to_owned),
            keep_git_dir: false,
            submodules: true,
            network: Network::Private,
            identity: Digest::of(b"step"),
        }
    }

    #[test]
    fn checksums_are_commits_or_their_beginning() {
        let mut address = Address::parse("https://x/y.git").unwrap();
        address.must_be(&SHA.to_uppercase()).unwrap();
        assert_eq!(address.reference.as_deref(), Some(SHA));
        assert!(address.must_be("ffff").unwrap_err().contains("two ways"));
        assert!(address.must_be("sha256:00").unwrap_err().contains("commit's id"));
        assert_eq!(named_commit(&op("main", None)), None);
        assert_eq!(named_commit(&op("main", Some("0123"))), None);
        assert_eq!(named_commit(&op("main", Some(SHA))), Some(SHA));
        assert_eq!(named_commit(&op(SHA, Some("0123"))), Some(SHA));
        check(&op("main", Some("0123")), SHA).unwrap();
        check(&op("main", None), SHA).unwrap();
        let e = check(&op("main", Some("0124")), SHA).unwrap_err().to_string();
        assert!(e.contains("the checksum says 0124"), "{e}");
    }

    #[test]
    fn a_repository_is_known_by_its_commit() {
        let base = op("main", None);
        let digest = |op: &GitOp, url: &str, commit: &str, branch| key(op, url, commit, branch).digest;
        let this = digest(&base, "u", SHA, Some("main"));
        assert_eq!(this, digest(&GitOp { reference: "v1".into(), ..base.clone() }, "u", SHA, None));
        assert_ne!(this, digest(&base, "u", &SHA.replace('0', "1"), None));
        assert_ne!(this, digest(&base, "v", SHA, None));
        assert_ne!(this, digest(&GitOp { folder: Some("a".into()), ..base.clone() }, "u", SHA, None));
        assert_ne!(this, digest(&GitOp { submodules: false, ..base.clone() }, "u", SHA, None));
        let keep = GitOp { keep_git_dir: true, ..base };
        assert_ne!(this, digest(&keep, "u", SHA, None));
        assert_ne!(digest(&keep, "u", SHA, Some("main")), digest(&keep, "u", SHA, None));

        let rig = Rig::new();
        let tree = MemTree::with(&[("a", "A"), ("d/b", "B")]);
        let chain = snapshot(&rig.store, &tree, &key(&keep, "u", SHA, None)).unwrap();
        assert_eq!(
            dump(&rig.store, &chain),
            ["tree d 755 0:0", "tree/a f 644 0:0 A", "tree/d d 755 0:0", "tree/d/b f 644 0:0 B"]
        );
    }
}
