//! The images that must stay in this machine's store although no process holds them right now.
//!
//! Read from the records on disk, so that any process of the machine can ask, whether a supervisor runs or not. Where a
//! record cannot be read nobody can say what must stay, and that is an error.

use crate::record::ReplicaFiles;
use crate::settings::Settings;
use crate::supervise::RELEASES;
use crate::{files, record};
use keelway_container::containers::{Containers, ContainersError};
use keelway_deploy::protocol::{ReleaseRecord, ReleaseState, ReplicaId};
use keelway_model::ids::AppName;
use keelway_store::Need;
use std::io;
use std::path::{Path, PathBuf};

/// Why it is not known what must stay.
#[derive(Debug, thiserror::Error)]
pub enum NeedsError {
    /// A record of the host.
    #[error("cannot read {path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A container's record.
    #[error(transparent)]
    Containers(#[from] ContainersError),
}

/// What containers, replicas and releases of this state directory need. A release that was completed is one that
/// `deploy rollback` may go back to; one that is not at its end may still need its image; only one that was given up needs
/// nothing.
pub fn needed_images(state: &Path) -> Result<Vec<Need>, NeedsError> {
    let mut out = Containers::of(state).needed()?;
    let settings = Settings { root: state.into(), ..Settings::default() };
    let apps = settings.state().join("apps");
    for name in names(&apps)? {
        let Ok(app) = name.parse::<AppName>() else { continue };
        let dir = record::app_dir(&settings, &app);
        let path = dir.join(RELEASES);
        let failed = |path: &Path| {
            let path = path.to_path_buf();
            move |source| NeedsError::Io { path, source }
        };
        let releases: Vec<ReleaseRecord> = files::load(&path).map_err(failed(&path))?.unwrap_or_default();
        for one in releases.iter().filter(|r| r.state != ReleaseState::RolledBack) {
            let who = format!("release {} of {app}", one.revision.0);
            out.push(Need { manifest: one.release.spec.image.digest(), who });
        }
        for id in names(&dir.join("replicas"))? {
            let Ok(id) = id.parse::<ReplicaId>() else { continue };
            let files = ReplicaFiles::of(&settings, &app, id);
            if let Some(record) = files.load().map_err(failed(&files.dir))? {
                let who = format!("replica {id} of {app}");
                out.push(Need { manifest: record.spec.image.digest(), who });
            }
        }
    }
    Ok(out)
}

/// Names in a directory; none where it is not there.
fn names(dir: &Path) -> Result<Vec<String>, NeedsError> {
    let failed = |source| NeedsError::Io { path: dir.to_path_buf(), source };
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let names: io::Result<Vec<String>> =
        entries.map(|e| Ok(e?.file_name().to_string_lossy().into_owned())).collect();
    names.map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_needed_where_nothing_is_and_what_cannot_be_read_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(needed_images(dir.path()).unwrap(), []);
        let app = dir.path().join("host/apps/shop");
        std::fs::create_dir_all(app.join("replicas/r1-0")).unwrap();
        assert_eq!(needed_images(dir.path()).unwrap(), [], "a replica without a record was never begun");
        std::fs::write(app.join("replicas/r1-0/record.json"), "{").unwrap();
        assert!(needed_images(dir.path()).unwrap_err().to_string().contains("replicas/r1-0"));
        std::fs::remove_file(app.join("replicas/r1-0/record.json")).unwrap();
        std::fs::write(app.join(RELEASES), "{").unwrap();
        assert!(needed_images(dir.path()).unwrap_err().to_string().contains(RELEASES));
    }
}
