//! The supervisor of a container that was made by hand: it starts it again by its policy, and checks its health.
//!
//! It owns nothing: when it dies the container goes on, and its keeper starts another one. When the keeper dies
//! the container dies with it, and the supervisor starts both again, where the policy says so. When both are
//! killed at once, the next command that looks at containers does.

use crate::backoff::Backoff;
use crate::containers::{Entry, killed};
use crate::exec;
use crate::keeper::Ask;
use crate::keeping::{self, Post, Role};
use crate::policy::Ended;
use crate::record::{
    self, Check, ContainerFiles, EndRecord, Health, HealthCommand, Record, RunRecord, Want, Watch,
};
use crate::{Image, Process, wire};
use keelway_deploy::frame;
use keelway_disk::{Lock, LockError};
use keelway_image::user;
use keelway_model::clock::SystemClock;
use keelway_model::{Clock, Timestamp};
use keelway_sandbox::{ExecSpec, User};
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// For the lock: whoever looks whether it is free holds it for a moment.
const LOCK_WAIT: Duration = Duration::from_secs(1);
/// Between two looks at what cannot be awaited.
const LOOK: Duration = Duration::from_millis(50);
/// Between two looks at whether the keeper lives.
const ALIVE: Duration = Duration::from_millis(200);
/// For a keeper to take its lock.
const BEGIN: Duration = Duration::from_secs(10);
/// Bytes of a check's output that are kept.
const MAX_OUTPUT: usize = 4096;
/// Checks that are kept.
const MAX_CHECKS: usize = 5;

/// Why a supervisor ended early.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// The disk.
    #[error("cannot {what}: {source}")]
    Io {
        /// What failed.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The lock.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A container's files.
    #[error(transparent)]
    Containers(#[from] crate::containers::ContainersError),
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> SuperviseError {
    move |source| SuperviseError::Io { what, source }
}

/// Looks after a container until it has ended for good. Another supervisor of it is no error.
pub async fn supervise(post: &Post) -> Result<(), SuperviseError> {
    let files = post.files();
    let path = files.supervisor_lock();
    let taken = tokio::task::spawn_blocking(move || Lock::take(&path, Instant::now() + LOCK_WAIT, &|| false));
    let _lock = match taken.await.map_err(|e| failed("lock")(io::Error::other(e)))? {
        Ok(lock) => lock,
        Err(LockError::TimedOut { .. }) => return Ok(()),
        Err(LockError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    let mut backoff = Backoff::default();
    let mut watch = files.watch().map_err(failed("read what was known"))?;
    watch.over = false;
    loop {
        let Some(record) = files.load().map_err(failed("read the container's record"))? else {
            return Ok(());
        };
        if files.is_kept() {
            attend(post, &files, &record, &mut watch).await?;
            continue;
        }
        let settled = tokio::task::spawn_blocking({
            let (files, again) = (files.clone(), watch.restarts > 0);
            move || settle(&files, again)
        });
        let Some((run, end)) =
            settled.await.map_err(|e| failed("look at its end")(io::Error::other(e)))??
        else {
            continue;
        };
        // It was never started: whoever made it is about to.
        let Some(end) = end else { return Ok(()) };
        let want = files.want().map_err(failed("read what it shall do"))?.unwrap_or_else(|| Want::now(false));
        let after = Ended {
            well: end.code == 0,
            stopped: want.stopped,
            booted: want.boot != record::boot(),
            restarts: watch.restarts,
        };
        // What never ran will not run by itself, the first time; later it may be the world outside.
        let hopeless = run.is_none() && end.started.is_none() && watch.restarts == 0;
        watch.health = None;
        if hopeless || !record.asked.restart.again(after) {
            return finish(post, &files, record, watch);
        }
        let ran = end.started.map_or(0, |started| (end.ended.0 - started.0).max(0));
        let wait = backoff.after(Duration::from_millis(u64::try_from(ran).unwrap_or(0)));
        tracing::info!(code = end.code, ?wait, "it ended and is started again");
        if !pause(&files, wait).await? {
            continue;
        }
        watch.restarts = watch.restarts.saturating_add(1);
        files.save_watch(&watch).map_err(failed("write what is known"))?;
        start(post, &files, &end).await?;
    }
}

/// The last run, and how it ended.
type Last = (Option<RunRecord>, Option<EndRecord>);

/// How the last run ended, written down where its keeper could not; without an end it was never started, `again` aside.
/// `None` when somebody keeps it after all. Blocking.
fn settle(files: &ContainerFiles, again: bool) -> Result<Option<Last>, SuperviseError> {
    let read = || Ok((files.run()?, files.end()?));
    let is_settled = |(run, end): &Last| end.is_some() || (run.is_none() && !again);
    let last = read().map_err(failed("read how it ended"))?;
    if is_settled(&last) {
        return Ok(Some(last));
    }
    // Only who holds its lock knows that nobody keeps it.
    let _mine = match files.take_keeper_lock() {
        Ok(lock) => lock,
        Err(LockError::TimedOut { .. }) => return Ok(None),
        Err(LockError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(Some((None, None)));
        }
        Err(e) => return Err(e.into()),
    };
    let last = read().map_err(failed("read how it ended"))?;
    if is_settled(&last) {
        return Ok(Some(last));
    }
    files.clear_cgroup().map_err(failed("remove its cgroup"))?;
    let end = killed(last.0.as_ref());
    files.save_end(&end).map_err(failed("write how it ended"))?;
    Ok(Some((last.0, Some(end))))
}

fn finish(
    post: &Post,
    files: &ContainerFiles,
    record: Record,
    mut watch: Watch,
) -> Result<(), SuperviseError> {
    watch.over = true;
    files.save_watch(&watch).map_err(failed("write what is known"))?;
    if record.asked.remove && files.end().is_ok_and(|e| e.is_some_and(|e| e.started.is_some())) {
        post.containers().remove(&Entry { record, files: files.clone() })?;
    }
    Ok(())
}

/// Waits before a start; false where something else came first.
async fn pause(files: &ContainerFiles, wait: Duration) -> Result<bool, SuperviseError> {
    let end = Instant::now() + wait;
    loop {
        let want = files.want().map_err(failed("read what it shall do"))?;
        if want.is_some_and(|w| w.is_stopped_now()) || files.is_kept() {
            return Ok(false);
        }
        let now = Instant::now();
        if now >= end {
            return Ok(true);
        }
        tokio::time::sleep(LOOK.min(end - now)).await;
    }
}

/// Starts a keeper and waits until it has the container, or has said why not, or it was stopped. The keeper forgets the
/// `last` end, so that one that was stopped meanwhile still has it.
async fn start(post: &Post, files: &ContainerFiles, last: &EndRecord) -> Result<(), SuperviseError> {
    post.spawn(Role::Keeper).map_err(failed("start a keeper"))?;
    let end = Instant::now() + BEGIN;
    while Instant::now() < end {
        let end = files.end().map_err(failed("read how it ended"))?;
        let want = files.want().map_err(failed("read what it shall do"))?;
        if files.is_kept() || end.as_ref() != Some(last) || want.is_some_and(|w| w.is_stopped_now()) {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
    // A machine under load, or a keeper that was killed at once: the next round sees an end and waits longer.
    let now = SystemClock.now();
    let error = Some("its keeper did not begin".to_owned());
    let never = EndRecord { code: 125, out_of_memory: false, error, started: None, ended: now };
    files.save_end(&never).map_err(failed("write how it ended"))
}

/// Looks after a container that is kept until it is not.
async fn attend(
    post: &Post,
    files: &ContainerFiles,
    record: &Record,
    watch: &mut Watch,
) -> Result<(), SuperviseError> {
    let gone = wait_until_free(files);
    let Some(rule) = &record.asked.health else {
        gone.await;
        return Ok(());
    };
    tokio::select! {
        () = gone => Ok(()),
        checked = check(post, files, record, rule, watch) => checked,
    }
}

/// Until the keeper is gone: seen at once by the end of a connection, and by the lock in any case.
async fn wait_until_free(files: &ContainerFiles) {
    if let Ok(mut stream) = wire::connect(&files.socket()).await {
        loop {
            let asked = frame::write(&mut stream, &Ask::Status).await;
            let answer =
                asked.is_ok() && matches!(frame::read::<crate::Status>(&mut stream).await, Ok(Some(_)));
            if !answer {
                break;
            }
            tokio::select! {
                _ = stream.readable() => break,
                () = tokio::time::sleep(Duration::from_secs(10)) => {}
            }
        }
    }
    loop {
        let looked = files.clone();
        if !tokio::task::spawn_blocking(move || looked.is_kept()).await.unwrap_or(true) {
            return;
        }
        tokio::time::sleep(ALIVE).await;
    }
}

/// Checks for ever.
async fn check(
    post: &Post,
    files: &ContainerFiles,
    record: &Record,
    rule: &HealthCommand,
    watch: &mut Watch,
) -> Result<(), SuperviseError> {
    let save = |watch: &Watch| files.save_watch(watch).map_err(failed("write what is known"));
    watch.health = Some(Health::Starting);
    (watch.failing, watch.checks) = (0, Vec::new());
    save(watch)?;
    let started = loop {
        match files.run().map_err(failed("read its run"))? {
            Some(run) => break run.started,
            None => tokio::time::sleep(LOOK).await,
        }
    };
    let spec = {
        let (post, record, argv) = (post.clone(), record.clone(), rule.argv.clone());
        let made = tokio::task::spawn_blocking(move || joining(&post, &record, argv)).await;
        made.unwrap_or_else(|e| Err(e.to_string()))
    };
    loop {
        tokio::time::sleep(rule.interval).await;
        let found = match &spec {
            Ok(spec) => one(files, spec, rule.timeout).await,
            Err(why) => {
                let now = SystemClock.now();
                Check { start: now, end: now, code: -1, output: why.clone() }
            }
        };
        note(watch, found, rule, started);
        save(watch)?;
    }
}

/// Takes a check in.
fn note(watch: &mut Watch, check: Check, rule: &HealthCommand, started: Timestamp) {
    let age = check.end.0.saturating_sub(started.0);
    let early = i64::try_from(rule.start_period.as_millis()).is_ok_and(|period| age < period);
    if check.code == 0 {
        watch.failing = 0;
        watch.health = Some(Health::Healthy);
    } else if !(early && watch.health == Some(Health::Starting)) {
        watch.failing = watch.failing.saturating_add(1);
        if watch.failing >= rule.retries.max(1) {
            watch.health = Some(Health::Unhealthy);
        }
    }
    watch.checks.push(check);
    let surplus = watch.checks.len().saturating_sub(MAX_CHECKS);
    watch.checks.drain(..surplus);
}

async fn one(files: &ContainerFiles, spec: &ExecSpec, timeout: Duration) -> Check {
    let start = SystemClock.now();
    let (code, output) = match tokio::time::timeout(timeout, run(files, spec)).await {
        Ok(Ok((code, output))) => (i32::from(code), output),
        Ok(Err(why)) => (-1, why),
        Err(_) => (-1, format!("no answer within {timeout:?}")),
    };
    Check { start, end: SystemClock.now(), code, output }
}

async fn run(files: &ContainerFiles, spec: &ExecSpec) -> Result<(u8, String), String> {
    let say = |e: &dyn std::fmt::Display| e.to_string();
    let null = std::fs::OpenOptions::new().read(true).open("/dev/null").map_err(|e| say(&e))?;
    let (reader, writer) = std::io::pipe().map_err(|e| say(&e))?;
    let again = writer.try_clone().map_err(|e| say(&e))?;
    let stdio: [OwnedFd; 3] = [null.into(), writer.into(), again.into()];
    let session = exec::begin_check(&files.socket(), spec, &stdio).await.map_err(|e| say(&e))?;
    drop(stdio);
    let mut output = tokio::net::unix::pipe::Receiver::from_owned_fd(reader.into()).map_err(|e| say(&e))?;
    let (_nobody, mut signals) = mpsc::channel(1);
    let read = async {
        use tokio::io::AsyncReadExt;
        let (mut kept, mut buffer) = (Vec::new(), vec![0; MAX_OUTPUT]);
        // All of it is read, so that a check that talks much does not stand still.
        while let Ok(n @ 1..) = output.read(&mut buffer).await {
            let room = MAX_OUTPUT.saturating_sub(kept.len());
            kept.extend_from_slice(&buffer[..n.min(room)]);
        }
        kept
    };
    tokio::pin!(read);
    let mut wait = std::pin::pin!(session.wait(&mut signals));
    let mut kept = None;
    let code = loop {
        tokio::select! {
            bytes = &mut read, if kept.is_none() => kept = Some(bytes),
            code = &mut wait => break code.map_err(|e| say(&e))?,
        }
    };
    // What it left in the background may hold the pipe for ever.
    let kept = match kept {
        Some(bytes) => bytes,
        None => tokio::time::timeout(LOOK, read).await.unwrap_or_default(),
    };
    Ok((code, String::from_utf8_lossy(&kept).into_owned()))
}

/// A process in the container as its own is: its environment, user, directory and capabilities. Blocking.
pub fn joining(post: &Post, record: &Record, argv: Vec<String>) -> Result<ExecSpec, String> {
    let say = |error: &dyn std::fmt::Display| error.to_string();
    let store = keeping::open_store(&post.state).map_err(|e| say(&e))?;
    let image = Image::prepare(&store, record.digest).map_err(|e| say(&e))?;
    let process = Process::of(&image.config.config, &keeping::overrides(record)).map_err(|e| say(&e))?;
    let view = store.view(&image.chain).map_err(|e| say(&e))?;
    let user = user::resolve(&view, &process.user).map_err(|e| say(&e))?;
    let mut spec = ExecSpec::new(argv);
    spec.env = process.env;
    if !spec.env.iter().any(|(name, _)| name == "HOME") {
        spec.env.push(("HOME".into(), user.home.clone().unwrap_or_else(|| "/".into())));
    }
    spec.cwd = process.cwd;
    spec.user = User { uid: user.uid, gid: user.gid, groups: user.groups };
    spec.caps = keeping::capabilities(record).map_err(|e| say(&e))?;
    Ok(spec)
}
