//! `keelway __host`: one ssh session's end of the host protocol.
//!
//! It holds nothing: each request is handed to the supervisor over its socket, in a connection of its own,
//! and the answer handed back. When there is no supervisor it starts one; when the supervisor dies in the
//! middle it starts another and gives the order again, which orders allow. A supervisor that runs another
//! binary than this session is told to retire first, so that after an upgrade the new one serves.

use crate::boot::Systemd;
use crate::settings::{HostSettings, Role, Settings, SuperviseSettings};
use crate::supervise::{Answer, Ask};
use crate::{process, record, wire};
use keelway_container::diary::Diary;
use keelway_deploy::frame::{self, FrameError};
use keelway_deploy::protocol::{
    Greeting, Hello, Outcome, Refusal, RefusalKind, Request, Response, VERSION, Welcome,
};
use keelway_model::Platform;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Mutex, Semaphore, mpsc};
use tokio::task::JoinSet;

/// For the deployer's first frame.
const HELLO: Duration = Duration::from_secs(60);
/// Requests of one session at one time; more wait in the stream.
const MAX_REQUESTS: usize = 64;
/// For a supervisor to answer once it was started.
const START: Duration = Duration::from_secs(10);
/// For a supervisor to say who it is.
const ANSWER: Duration = Duration::from_secs(3);
/// Between two tries to reach the supervisor.
const PAUSE: Duration = Duration::from_millis(50);

/// Why a session ended early.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The far side of ssh went wrong.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// It never said hello.
    #[error("the deployer said nothing within {HELLO:?}")]
    Silent,
}

/// Answers the requests of one session until its input ends. Orders that were begun are finished by the
/// supervisor, whatever becomes of the session.
pub async fn serve<R, W>(mut input: R, mut output: W, settings: HostSettings) -> Result<(), ServeError>
where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send + 'static,
{
    frame::write_magic(&mut output).await?;
    let hello = tokio::time::timeout(HELLO, frame::read::<Hello>(&mut input)).await;
    let Some(hello) = hello.map_err(|_| ServeError::Silent)?? else { return Ok(()) };
    if hello.version != VERSION {
        let text = format!(
            "the host speaks version {VERSION} of the protocol, the deployer {}: bring the host the deployer's keelway",
            hello.version
        );
        let refused = Greeting::Refused(Refusal::new(RefusalKind::Version, text));
        return Ok(frame::write(&mut output, &refused).await?);
    }
    // Before the welcome: who was refused is told why, who was welcomed is served.
    if let Err(error) = record::make_dirs(&settings.settings) {
        let text = format!(
            "cannot use {}: {error}; look at it with: df -h {}",
            settings.settings.state().display(),
            settings.settings.root.display()
        );
        let kind = match error.kind() {
            std::io::ErrorKind::StorageFull => RefusalKind::DiskFull,
            _ => RefusalKind::Failed,
        };
        return Ok(frame::write(&mut output, &Greeting::Refused(Refusal::new(kind, text))).await?);
    }
    frame::write(&mut output, &Greeting::Welcome(welcome(&settings))).await?;
    let link = Arc::new(Link { settings: settings.settings, checked: Mutex::new(false) });
    let (answers, mut to_write) = mpsc::channel::<Response>(MAX_REQUESTS);
    let writer = tokio::spawn(async move {
        while let Some(response) = to_write.recv().await {
            frame::write(&mut output, &response).await?;
        }
        Ok::<(), FrameError>(())
    });
    let room = Arc::new(Semaphore::new(MAX_REQUESTS));
    let mut under_way = JoinSet::new();
    let read = loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { break Ok(()) };
        match frame::read::<Request>(&mut input).await {
            Ok(Some(request)) => {
                let (link, answers) = (Arc::clone(&link), answers.clone());
                under_way.spawn(async move {
                    // Nobody reads any more: the session is over.
                    let _ = answers.send(link.answer(request).await).await;
                    drop(permit);
                });
            }
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
        while under_way.try_join_next().is_some() {}
    };
    // The far side is gone, so nobody waits for what is under way; the supervisor finishes it.
    drop(under_way);
    drop(answers);
    let written = writer.await.unwrap_or(Ok(()));
    read?;
    Ok(written?)
}

fn welcome(settings: &HostSettings) -> Welcome {
    let uname = nix::sys::utsname::uname().ok();
    let text = |s: Option<&std::ffi::OsStr>| s.map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    Welcome {
        version: VERSION,
        keelway: env!("CARGO_PKG_VERSION").to_owned(),
        hostname: text(uname.as_ref().map(|u| u.nodename())),
        kernel: text(uname.as_ref().map(|u| u.release())),
        platform: Platform::host(),
        root: nix::unistd::geteuid().is_root(),
        address: settings.address,
        boot_id: boot_id.trim().to_owned(),
    }
}

/// The way to the supervisor.
struct Link {
    settings: Settings,
    /// Whether the supervisor was found to run our binary. Held while one is started.
    checked: Mutex<bool>,
}

impl Link {
    async fn answer(&self, request: Request) -> Response {
        let id = request.id;
        let deadline = Duration::from_millis(request.deadline_ms);
        let outcome = match tokio::time::timeout(deadline, self.order(request, deadline)).await {
            Ok(outcome) => outcome,
            Err(_) => Outcome::Refused(Refusal::new(
                RefusalKind::Deadline,
                format!("the host has not done it within {deadline:?}; it may still be doing it, ask again"),
            )),
        };
        Response { id, outcome }
    }

    async fn order(&self, request: Request, deadline: Duration) -> Outcome {
        let ask = Ask::Order { request: Box::new(request) };
        let path = record::supervisor_socket(&self.settings);
        loop {
            if let Err(refusal) = self.ensure_supervisor().await {
                return Outcome::Refused(refusal);
            }
            match wire::call(&path, &ask, deadline).await {
                Ok(Answer::Done { response }) => return response.outcome,
                Ok(_) => {
                    return Outcome::Refused(Refusal::new(
                        RefusalKind::Failed,
                        "the supervisor answered nonsense",
                    ));
                }
                // It died, or retired: the next one does it, once. The caller's deadline ends this.
                Err(error) => {
                    tracing::debug!(%error, "giving the order again");
                    *self.checked.lock().await = false;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Sees to it that a boot brings the supervisor back; says how systemd is reached where it runs. A host where that
    /// does not work serves all the same.
    async fn ensure_boot(&self) -> Option<Systemd> {
        // One whose file is gone is no binary to boot from.
        let binary = process::own_path().ok().filter(|path| path.is_file())?;
        let systemd = Systemd::of(&self.settings, &binary)?;
        match systemd.install(&binary).await {
            Ok(()) => Some(systemd),
            Err(error) => {
                self.note(&format!("a reboot would not bring the replicas back: {error}"));
                None
            }
        }
    }

    /// A line in the supervisor's diary: a session has none of its own, and its standard error is the deployer's ssh.
    fn note(&self, line: &str) {
        let diary = Diary::at(&record::diary(&self.settings, "supervisor"));
        // Without a diary there is nowhere to say that there is none.
        let _ = diary.open().and_then(|mut file| writeln!(file, "session: {line}"));
    }

    /// As the unit's, so that it belongs to no session; else by ourselves.
    async fn start_supervisor(&self, systemd: Option<&Systemd>) -> std::io::Result<()> {
        if let Some(systemd) = systemd {
            match systemd.start().await {
                Ok(()) => return Ok(()),
                Err(error) => self.note(&format!("starting the supervisor without its unit: {error}")),
            }
        }
        let args = SuperviseSettings { settings: self.settings.clone(), role: Role::Supervisor };
        process::spawn("__supervise", args.to_args(), &record::diary(&self.settings, "supervisor")).map(drop)
    }

    /// A supervisor that answers and runs our binary.
    async fn ensure_supervisor(&self) -> Result<(), Refusal> {
        let mut checked = self.checked.lock().await;
        if *checked {
            return Ok(());
        }
        let failed =
            |what: &str, e: std::io::Error| Refusal::new(RefusalKind::Failed, format!("{what}: {e}"));
        let ours = process::own_binary().map_err(|e| failed("cannot look at our own binary", e))?;
        let path = record::supervisor_socket(&self.settings);
        let systemd = self.ensure_boot().await;
        let end = Instant::now() + START;
        let mut started: Option<Instant> = None;
        loop {
            match wire::call::<Ask, Answer>(&path, &Ask::Hello, ANSWER).await {
                Ok(Answer::Hello { binary, .. }) if binary == ours => {
                    *checked = true;
                    return Ok(());
                }
                Ok(Answer::Hello { pid, .. }) => {
                    tracing::info!(pid, "a supervisor of another version retires");
                    let _ = wire::call::<Ask, Answer>(&path, &Ask::Retire, ANSWER).await;
                    started = None;
                }
                _ => {
                    // One that was started may have lost to one of another session: then that one answers.
                    if started.is_none_or(|at| at.elapsed() > START / 3) {
                        self.start_supervisor(systemd.as_ref())
                            .await
                            .map_err(|e| failed("cannot start the supervisor", e))?;
                        started = Some(Instant::now());
                    }
                }
            }
            if Instant::now() > end {
                let diary = record::diary(&self.settings, "supervisor");
                let text = format!("the host's supervisor does not answer; see {}", diary.display());
                return Err(Refusal::new(RefusalKind::Failed, text));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_host_whose_state_cannot_be_used_says_so_instead_of_welcome() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let root = file.join("keelway");
        let settings = HostSettings { settings: Settings { root, ..Settings::default() }, address: None };
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let (input, output) = tokio::io::split(theirs);
        let served = tokio::spawn(serve(input, output, settings));
        let (mut from, mut to) = tokio::io::split(ours);
        let hello = Hello { version: VERSION, keelway: "test".into(), binary: None };
        frame::write(&mut to, &hello).await.unwrap();
        frame::skip_to_magic(&mut from).await.unwrap();
        let greeting = frame::read::<Greeting>(&mut from).await.unwrap();
        let Some(Greeting::Refused(refusal)) = greeting else { panic!("{greeting:?}") };
        assert!(
            refusal.message.contains("/file/keelway/host") && refusal.message.contains("df -h"),
            "{refusal}"
        );
        served.await.unwrap().unwrap();
    }
}
