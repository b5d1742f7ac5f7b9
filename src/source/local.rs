//! A repository of this machine as the other end: its objects are packed in memory and read like any server's, so
//! nothing is linked or shared with it (S08), and no program of it runs.

use crate::connection::{Connection, Sink, Watch};
use crate::protocol::Advertisement;
use crate::{GitSettings, RepoUrl, SourceError};
use git2::{ErrorCode, ObjectType, Oid, Repository, RepositoryOpenFlags};
use std::ffi::OsStr;
use std::path::Path;

pub(crate) struct Local<'a> {
    url: &'a RepoUrl,
    settings: &'a GitSettings,
    watch: Watch<'a>,
    repo: Repository,
}

impl<'a> Local<'a> {
    pub(crate) fn open(
        url: &'a RepoUrl,
        path: &Path,
        settings: &'a GitSettings,
        watch: Watch<'a>,
    ) -> Result<Self, SourceError> {
        let none: &[&OsStr] = &[];
        let repo =
            Repository::open_ext(path, RepositoryOpenFlags::NO_SEARCH, none).map_err(|e| match e.code() {
                ErrorCode::Owner => SourceError::Owner { path: path.into() },
                ErrorCode::NotFound => SourceError::NoRepository { url: url.clone() },
                _ => SourceError::git(format!("cannot open {url}"), &e),
            })?;
        if repo.is_shallow() {
            let what =
                "the repository is shallow; fetch its whole history first (git fetch --unshallow)".into();
            return Err(SourceError::Protocol { url: url.clone(), what });
        }
        Ok(Self { url, settings, watch, repo })
    }

    fn failed(&self, e: &git2::Error) -> SourceError {
        SourceError::git(format!("cannot read {}", self.url), e)
    }
}

impl Connection for Local<'_> {
    fn advertise(&mut self) -> Result<Advertisement, SourceError> {
        let mut out = Advertisement::default();
        for reference in self.repo.references().map_err(|e| self.failed(&e))? {
            let reference = reference.map_err(|e| self.failed(&e))?;
            let Some(name) = std::str::from_utf8(reference.name_bytes()).ok() else { continue };
            if !name.starts_with("refs/heads/") && !name.starts_with("refs/tags/") {
                continue;
            }
            if let Some(oid) = reference.resolve().ok().and_then(|r| r.target()) {
                out.references.insert(name.to_owned(), oid);
            }
            if out.references.len() > self.settings.limits.references {
                let bound = self.settings.limits.references as u64;
                return Err(SourceError::TooBig {
                    url: self.url.clone(),
                    what: "the number of references",
                    bound,
                });
            }
        }
        let head = self.repo.find_reference("HEAD").ok();
        let target =
            head.as_ref().and_then(|h| h.symbolic_target_bytes()).and_then(|t| std::str::from_utf8(t).ok());
        out.head = target.and_then(|t| t.strip_prefix("refs/heads/")).map(str::to_owned);
        Ok(out)
    }

    fn fetch(&mut self, wants: &[Oid], haves: &[Oid], sink: &mut Sink<'_>) -> Result<(), SourceError> {
        let mut stopped = None;
        let packed = (|| -> Result<(), git2::Error> {
            let mut walk = self.repo.revwalk()?;
            let mut pack = self.repo.packbuilder()?;
            pack.set_threads(1);
            for &want in wants {
                let mut at = want;
                // A tag may point to a tag; a chain longer than this is no honest one.
                for _ in 0..16 {
                    match self.repo.odb()?.read_header(at)?.1 {
                        ObjectType::Tag => {
                            pack.insert_object(at, None)?;
                            at = self.repo.find_tag(at)?.target_id();
                        }
                        ObjectType::Commit => {
                            walk.push(at)?;
                            break;
                        }
                        _ => {
                            pack.insert_recursive(at, None)?;
                            break;
                        }
                    }
                }
            }
            for &have in haves {
                if self.repo.find_commit(have).is_ok() {
                    walk.hide(have)?;
                }
            }
            pack.insert_walk(&mut walk)?;
            pack.foreach(|bytes| match self.watch.check().and_then(|()| sink(bytes)) {
                Ok(()) => true,
                Err(e) => {
                    stopped = Some(e);
                    false
                }
            })
        })();
        match (stopped, packed) {
            (Some(e), _) => Err(e),
            (None, Err(e)) => Err(self.failed(&e)),
            (None, Ok(())) => Ok(()),
        }
    }
}
