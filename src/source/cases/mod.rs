//! The crate against real git servers of the kit.

mod far;
mod references;
mod trees;
mod work;

use crate::{Fetched, GitSettings, Mirror, Origin, RepoUrl, SourceError};
use keelway_http::{Client, Settings};
use keelway_tests::git::GitRepo;
use std::path::PathBuf;

/// A temporary world: a repository under `projects/shop`, a cache.
pub(super) struct World {
    pub(super) dir: tempfile::TempDir,
    pub(super) repo: GitRepo,
}

impl World {
    /// With one commit: `README`, `run.sh` (executable), `src/main.c`, a link.
    pub(super) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("keelway-source-").tempdir_in("/dev/shm").unwrap();
        let repo = GitRepo::init(&dir.path().join("projects/shop")).unwrap();
        repo.write("README", "shop\n").unwrap();
        repo.write("run.sh", "#!/bin/sh\n").unwrap();
        repo.write("src/main.c", "int main(void) { return 0; }\n").unwrap();
        std::os::unix::fs::symlink("../README", repo.path().join("src/link")).unwrap();
        repo.git(&["add", "-A"]).unwrap();
        repo.git(&["update-index", "--chmod=+x", "run.sh"]).unwrap();
        std::process::Command::new("chmod").arg("755").arg(repo.path().join("run.sh")).status().unwrap();
        repo.commit("First").unwrap();
        Self { dir, repo }
    }
    pub(super) fn projects(&self) -> PathBuf {
        self.dir.path().join("projects")
    }
    pub(super) fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }
    pub(super) fn local(&self) -> RepoUrl {
        url(&self.repo.path().to_string_lossy())
    }
    pub(super) fn mirror(&self, url: &RepoUrl) -> Mirror {
        Mirror::open(&self.cache(), url).unwrap()
    }
    /// A mirror of the repository by its path, fetched.
    pub(super) fn fetched(&self) -> Mirror {
        let mirror = self.mirror(&self.local());
        fetch(&mirror, &settings()).unwrap();
        mirror
    }
    /// Replaces what differs from run to run in a message.
    pub(super) fn shown(&self, e: &SourceError) -> String {
        keelway_tests::env::normalise(&e.to_string(), &[(&self.dir.path().to_string_lossy(), "[DIR]")])
    }
}

pub(super) fn url(text: &str) -> RepoUrl {
    RepoUrl::parse(text, Origin::CommandLine).unwrap()
}

/// Without the system's authorities.
pub(super) fn settings() -> GitSettings {
    GitSettings::new(Client::new(Settings { system_roots: None, ..Settings::default() }).unwrap())
}

pub(super) fn fetch(mirror: &Mirror, settings: &GitSettings) -> Result<Fetched, SourceError> {
    mirror.fetch(settings, &mut |_| {})
}
