//! How the supervisor steers a balancer: a pool in, a report out, over the app's control socket.
//!
//! Invariant: a pool is on disk, synced, before it is in force, and in force before it is acknowledged;
//! so a balancer that was killed starts again with a pool no older than the last one acknowledged.

use super::pool::{Pool, PoolSpec, SwapError};
use crate::settings::BalancerSettings;
use crate::wire;
use keelway_deploy::frame;
use keelway_deploy::protocol::BalancerReport;
use keelway_disk::{Faults, Sync, publish};
use serde::{Deserialize, Serialize};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, Semaphore};

/// Version of the pool file.
const POOL_VERSION: u32 = 1;
/// Name of the pool file.
const POOL_FILE: &str = "pool.json";
/// Largest pool file that is read.
const MAX_POOL: u64 = 4 << 20;
/// Connections to the control socket at one time.
const MAX_CONTROL: usize = 16;
/// A peer that says nothing for so long is let go.
const IDLE: Duration = Duration::from_secs(30);

/// What a balancer is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub enum Ask {
    /// Take this pool.
    SetPool {
        /// The whole of it.
        pool: PoolSpec,
    },
    /// How are you?
    Report,
    /// Finish what is in flight and end. Answered at once; the end is seen by the lock.
    End,
}

/// What it answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// As it is; after [`Ask::SetPool`], with the pool in force.
    Report {
        /// Its process.
        pid: u32,
        /// Where it listens.
        listen: SocketAddr,
        /// The rest.
        report: BalancerReport,
    },
    /// The pool was refused; nothing changed.
    Refused {
        /// Why.
        why: SwapError,
    },
    /// The pool could not be stored; nothing changed.
    Failed {
        /// Why.
        message: String,
    },
}

#[derive(Serialize, Deserialize)]
struct PoolFile {
    version: u32,
    pool: PoolSpec,
}

/// Why the pool file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PoolFileError {
    /// The disk failed.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It holds something else.
    #[error("{path} is not a pool that this version of keelway can read: remove it and deploy again")]
    Malformed {
        /// The file.
        path: PathBuf,
    },
}

/// Reads the bytes of a pool file.
pub fn parse_pool(bytes: &[u8]) -> Option<PoolSpec> {
    let file: PoolFile = serde_json::from_slice(bytes).ok()?;
    // Whatever the file says must be a pool that could have been ordered.
    (file.version == POOL_VERSION && file.pool.follows(&PoolSpec::default()).is_ok()).then_some(file.pool)
}

/// The pool that was in force when the last balancer of this app ended; an empty one at first.
pub fn load_pool(dir: &Path) -> Result<PoolSpec, PoolFileError> {
    let path = dir.join(POOL_FILE);
    match crate::files::read_capped(&path, MAX_POOL) {
        Ok(Some(bytes)) => parse_pool(&bytes).ok_or(PoolFileError::Malformed { path }),
        Ok(None) => Ok(PoolSpec::default()),
        Err(source) => Err(PoolFileError::Io { path, source }),
    }
}

fn store_pool(dir: &Path, pool: &PoolSpec) -> io::Result<()> {
    let file = PoolFile { version: POOL_VERSION, pool: pool.clone() };
    let bytes = serde_json::to_vec(&file).map_err(io::Error::other)?;
    publish(dir, POOL_FILE, &bytes, Sync::Yes, &Faults::NONE)
}

/// One balancer's control side.
#[derive(Debug)]
pub struct Control {
    pool: Arc<Pool>,
    dir: PathBuf,
    listen: SocketAddr,
    // One swap at a time, so that file and pool never differ.
    swapping: Mutex<()>,
    end: tokio::sync::Notify,
}

impl Control {
    /// For a pool that is kept in `dir`.
    pub fn new(pool: Arc<Pool>, dir: PathBuf, settings: &BalancerSettings) -> Self {
        Self { pool, dir, listen: settings.listen, swapping: Mutex::new(()), end: tokio::sync::Notify::new() }
    }

    /// Answers peers until it is told to end.
    pub async fn run(self: Arc<Self>, listener: UnixListener) {
        let room = Arc::new(Semaphore::new(MAX_CONTROL));
        loop {
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
            let stream = tokio::select! {
                stream = wire::accept(&listener) => stream,
                () = self.end.notified() => return,
            };
            let this = Arc::clone(&self);
            tokio::spawn(async move {
                if let Err(error) = this.talk(stream).await {
                    tracing::debug!(%error, "a control connection ended");
                }
                drop(permit);
            });
        }
    }

    async fn talk(&self, mut stream: UnixStream) -> Result<(), frame::FrameError> {
        while let Ok(ask) = tokio::time::timeout(IDLE, frame::read(&mut stream)).await {
            let Some(ask) = ask? else { break };
            let end = ask == Ask::End;
            let answer = self.answer(ask).await;
            frame::write(&mut stream, &answer).await?;
            if end {
                self.end.notify_one();
                break;
            }
        }
        Ok(())
    }

    async fn answer(&self, ask: Ask) -> Answer {
        if let Ask::SetPool { pool } = ask {
            let _one = self.swapping.lock().await;
            match pool.follows(&self.pool.spec()) {
                Err(why) => return Answer::Refused { why },
                Ok(false) => {}
                Ok(true) => {
                    if let Err(answer) = self.put_in_force(pool).await {
                        return answer;
                    }
                }
            }
        }
        let (epoch, generation, backends) = self.pool.report(Instant::now());
        let report = BalancerReport { running: true, epoch, generation, backends };
        Answer::Report { pid: std::process::id(), listen: self.listen, report }
    }

    async fn put_in_force(&self, pool: PoolSpec) -> Result<(), Answer> {
        let (dir, stored) = (self.dir.clone(), pool.clone());
        let stored = tokio::task::spawn_blocking(move || store_pool(&dir, &stored)).await;
        let stored = stored.unwrap_or_else(|e| Err(io::Error::other(e)));
        stored.map_err(|e| Answer::Failed {
            message: format!("cannot store the pool in {}: {e}; look at the disk", self.dir.display()),
        })?;
        self.pool.swap(pool).map_err(|why| Answer::Refused { why })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_file_is_a_pool_or_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load_pool(dir.path()).unwrap(), PoolSpec::default());
        let pool = PoolSpec { generation: 7, ..PoolSpec::default() };
        store_pool(dir.path(), &pool).unwrap();
        assert_eq!(load_pool(dir.path()).unwrap(), pool);
        for bad in ["", "{}", r#"{"version":2,"pool":{"epoch":0,"generation":1,"backends":[]}}"#] {
            std::fs::write(dir.path().join(POOL_FILE), bad).unwrap();
            assert!(load_pool(dir.path()).is_err(), "{bad}");
        }
    }
}
