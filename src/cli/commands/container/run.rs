//! `keelway container run`.

use super::Place;
use super::terminal::{self, Here};
use crate::args::{Format, Names};
use crate::commands::{Context, image};
use crate::container_args::RunArgs;
use crate::files;
use crate::machine::Machine;
use crate::outcome::CommandError;
use keelway_container::console::Tee;
use keelway_container::containers::{Entry, New};
use keelway_container::diary::Diary;
use keelway_container::keeper::{self, Order};
use keelway_container::keeping::{self, Attachment, Post, Role};
use keelway_container::record::{Asked, Bind, EndRecord, HealthCommand, NetworkMode, STOP_TIMEOUT, Tmpfs};
use keelway_container::{Image, Process, RestartPolicy, Stop, process};
use keelway_model::plan::UserSpec;
use keelway_model::{Bytes, Digest, ImageRef};
use keelway_sandbox::CapSet;
use keelway_store::Store;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// For a keeper to begin, unpacking of the image included.
const START: Duration = Duration::from_secs(180);
/// Between two looks at whether it has begun.
const LOOK: Duration = Duration::from_millis(5);
/// Largest file of environment variables.
const MAX_ENV_FILE: u64 = 4 << 20;
/// A tmpfs of which no size is said.
const TMPFS: Bytes = Bytes(1 << 30);
/// Where docker's defaults for health are.
const HEALTH: Duration = Duration::from_secs(30);
const SIGHUP: i32 = 1;

pub async fn run(context: &Context, place: &Place, args: RunArgs) -> Result<(), CommandError> {
    if !args.detach {
        terminal::check(args.interactive, args.tty)?;
    }
    let mut asked = asked(&args)?;
    let name: ImageRef = args.image().parse().map_err(|e| CommandError::usage(format!("{e}")))?;
    let (digest, image, store) = ready(context, place, &name, &args.names).await?;
    if asked.health.is_none() && args.health_cmd.is_none() {
        asked.health = image.config.config.healthcheck.as_ref().and_then(of_image);
    }
    let entry = create(place, &args, asked, digest, &image)?;
    // From now on the container's record says that its image is needed.
    drop(store);
    let post = place.post(&entry);
    if args.detach {
        detached(context, place, &post, &entry).await
    } else {
        attached(place, &post, &entry).await
    }
}

/// Brings the image into the store, unless it is there, and unpacks it; there it stays while the store is open.
async fn ready(
    context: &Context,
    place: &Place,
    name: &ImageRef,
    names: &Names,
) -> Result<(Digest, Image, Store), CommandError> {
    let find = || -> Result<_, CommandError> {
        let store = keeping::open_store(&place.state).map_err(CommandError::outside)?;
        let known = store.reference(name).map_err(CommandError::outside)?;
        Ok((store, known))
    };
    let (mut store, mut known) = find()?;
    if known.is_none() {
        context.say(&format!("{name} is not in the store; it is pulled"));
        image::fetch(context, name, names).await?;
        (store, known) = find()?;
    }
    let descriptor =
        known.ok_or_else(|| CommandError::outside(format!("{name} was pulled and is not there")))?;
    let digest = descriptor.digest;
    let held = store.clone();
    let prepared = tokio::task::spawn_blocking(move || Image::prepare(&store, digest)).await;
    let image = prepared.map_err(CommandError::outside)?.map_err(CommandError::outside)?;
    Ok((digest, image, held))
}

fn create(
    place: &Place,
    args: &RunArgs,
    asked: Asked,
    digest: Digest,
    image: &Image,
) -> Result<Entry, CommandError> {
    let over = keelway_container::Overrides {
        entrypoint: asked.entrypoint.clone(),
        command: asked.command.clone(),
        stop_signal: asked.stop_signal.clone(),
        ..Default::default()
    };
    let process = Process::of(&image.config.config, &over).map_err(|e| CommandError::usage(e.to_string()))?;
    let (argv, stop_signal) = (process.argv, process.stop_signal);
    let (name, image) = (args.name.clone(), args.image().to_owned());
    Ok(place.containers.create(New { name, image, digest, argv, stop_signal, asked })?)
}

/// Its end, as ours.
fn ended(entry: &Entry, end: &EndRecord) -> Result<(), CommandError> {
    match (&end.error, end.code) {
        (None, 0) => Ok(()),
        (None, code) => Err(CommandError::code(code, None)),
        (Some(error), code) => {
            Err(CommandError::code(code, Some(format!("container {}: {error}", entry.record.name))))
        }
    }
}

async fn detached(context: &Context, place: &Place, post: &Post, entry: &Entry) -> Result<(), CommandError> {
    let keeper = post.spawn(Role::Keeper).map_err(CommandError::outside)?;
    let end = Instant::now() + START;
    loop {
        // Before its files: what it wrote to its end is seen in them.
        let dead = keeper.is_finished();
        let read = || Ok::<_, io::Error>((entry.files.run()?, entry.files.end()?));
        let (run, ended_so) = read().map_err(CommandError::outside)?;
        // With --rm a short one may be gone already.
        if run.is_some() || !entry.files.dir().exists() {
            break;
        }
        if let Some(end) = ended_so {
            if end.started.is_some() {
                break;
            }
            if entry.record.asked.remove {
                place.containers.remove(entry)?;
            }
            return ended(entry, &end);
        }
        if dead {
            if entry.record.asked.remove {
                place.containers.remove(entry)?;
            }
            return Err(died(entry, keeper).await);
        }
        if Instant::now() > end {
            return Err(CommandError::outside(format!(
                "container {} has not begun within {START:?}; what its keeper says is in {}",
                entry.record.name,
                entry.files.diary().display()
            )));
        }
        tokio::time::sleep(LOOK).await;
    }
    if let Ok(Some(run)) = entry.files.run() {
        run.warnings.iter().for_each(|w| context.say(w));
    }
    match context.global.format {
        Format::Text => context.print(&format!("{}\n", entry.record.id)),
        Format::Json => {
            context.print_json(&serde_json::json!({"id": entry.record.id, "name": entry.record.name}))
        }
    }
}

/// What is known of a keeper that ended before its container began.
async fn died(entry: &Entry, keeper: process::Ending) -> CommandError {
    let how = match keeper.await {
        Ok(Ok(status)) => status.to_string(),
        Ok(Err(e)) => e.to_string(),
        Err(e) => e.to_string(),
    };
    let said = Diary::at(&entry.files.diary()).last_line().ok().flatten();
    let said = said.map(|line| format!(": {line}")).unwrap_or_default();
    let name = &entry.record.name;
    CommandError::outside(format!(
        "container {name}: its keeper ended ({how}) before the container began{said}"
    ))
}

async fn attached(place: &Place, post: &Post, entry: &Entry) -> Result<(), CommandError> {
    let asked = &entry.record.asked;
    let here = Arc::new(Here::new(asked.input));
    let (desk, life) = keeper::desk();
    let (signals, mut passed) = mpsc::channel(16);
    let _signals = terminal::pass_signals(here.terminal(), signals).map_err(CommandError::outside)?;
    let tee: Arc<dyn Tee> = Arc::clone(&here) as _;
    let attachment = Attachment { tee: Some(tee), window: terminal::window() };
    let keeping = keeping::keep(post, attachment, (desk.clone(), life));
    tokio::pin!(keeping);
    let end = loop {
        tokio::select! {
            end = &mut keeping => break end,
            Some(signal) = passed.recv() => {
                desk.order(Order::Signal(signal));
                if signal == SIGHUP {
                    // Nobody is there any more who could end it.
                    desk.order(Order::Stop(Stop { grace: asked.grace() }));
                }
            }
        }
    };
    here.end();
    let end = end.map_err(CommandError::outside)?;
    if asked.remove && end.started.is_none() {
        place.containers.remove(entry)?;
    }
    ended(entry, &end)
}

fn of_image(check: &keelway_model::oci::Healthcheck) -> Option<HealthCommand> {
    let (kind, rest) = check.test.split_first()?;
    let argv = match (kind.as_str(), rest) {
        ("CMD", argv) if !argv.is_empty() => argv.to_vec(),
        ("CMD-SHELL", [text]) => shell(text),
        _ => return None,
    };
    let or = |nanos: u64, default| if nanos == 0 { default } else { Duration::from_nanos(nanos) };
    Some(HealthCommand {
        argv,
        interval: or(check.interval, HEALTH),
        timeout: or(check.timeout, HEALTH),
        retries: u32::try_from(check.retries).ok().filter(|r| *r > 0).unwrap_or(3),
        start_period: Duration::from_nanos(check.start_period),
    })
}

fn shell(text: &str) -> Vec<String> {
    vec!["/bin/sh".into(), "-c".into(), text.into()]
}

fn asked(args: &RunArgs) -> Result<Asked, CommandError> {
    let usage = |text: String| Err(CommandError::usage(text));
    if args.rm && args.restart != RestartPolicy::No {
        return usage(
            "--rm and --restart do not go together: one that is removed cannot be started again".into(),
        );
    }
    if args.restart != RestartPolicy::No && !args.detach {
        return usage("--restart needs -d: a container in the foreground ends with its command".into());
    }
    let network = match args.network.as_str() {
        "private" | "bridge" | "default" => NetworkMode::Private,
        "none" => NetworkMode::None,
        "host" => NetworkMode::Host,
        other => {
            return usage(format!(
                "--network {other:?}: write private, none or host; there are no named networks yet"
            ));
        }
    };
    if network != NetworkMode::Private && !args.publish.is_empty() {
        return usage("-p needs --network private: only there the container has ports of its own".into());
    }
    CapSet::chosen(&args.cap_add, &args.cap_drop).map_err(|e| CommandError::usage(e.to_string()))?;
    if let Some(signal) =
        args.stop_signal.as_deref().filter(|s| keelway_container::signal_number(s).is_none())
    {
        return usage(format!("--stop-signal {signal:?} is not a signal, for example TERM"));
    }
    if let Some(name) = args.hostname.as_deref().filter(|n| n.is_empty() || n.len() > 64) {
        return usage(format!("--hostname {name:?}: 1 to 64 characters"));
    }
    Ok(Asked {
        entrypoint: args.entrypoint.as_ref().map(|e| match e.is_empty() {
            true => Vec::new(),
            false => vec![e.clone()],
        }),
        command: args.command().to_vec(),
        env: environment(&args.env_file, &args.env)?,
        cwd: args.workdir.clone(),
        user: args.user.clone().map(UserSpec),
        hostname: args.hostname.clone(),
        network,
        publish: args.publish.clone(),
        limits: args.limits.limits(),
        read_only: args.read_only,
        tmpfs: args.tmpfs.iter().map(|t| tmpfs(t)).collect::<Result<_, _>>()?,
        binds: args.volume.iter().map(|v| bind(v)).collect::<Result<_, _>>()?,
        cap_add: args.cap_add.clone(),
        cap_drop: args.cap_drop.clone(),
        terminal: args.tty,
        input: args.interactive,
        remove: args.rm,
        detached: args.detach,
        restart: args.restart,
        health: args.health_cmd.as_deref().filter(|c| !c.is_empty()).map(|command| HealthCommand {
            argv: shell(command),
            interval: args.health_interval.unwrap_or(HEALTH),
            timeout: args.health_timeout.unwrap_or(HEALTH),
            retries: args.health_retries.unwrap_or(3),
            start_period: args.health_start_period.unwrap_or(Duration::ZERO),
        }),
        stop_signal: args.stop_signal.clone(),
        stop_timeout: args.stop_timeout.map(|s| Duration::from_secs(s.into())).or(Some(STOP_TIMEOUT)),
        labels: args
            .label
            .iter()
            .map(|l| l.split_once('=').unwrap_or((l, "")))
            .map(owned)
            .collect::<BTreeMap<_, _>>(),
    })
}

fn owned((key, value): (&str, &str)) -> (String, String) {
    (key.to_owned(), value.to_owned())
}

/// Files first, then words, each over those before.
pub fn environment(files: &[PathBuf], words: &[String]) -> Result<Vec<(String, String)>, CommandError> {
    let mut env: Vec<(String, String)> = Vec::new();
    let mut set = |word: &str| -> Result<(), CommandError> {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (word, Machine::variable(word)),
        };
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(CommandError::usage(format!(
                "{word:?} is no environment variable: write NAME=VALUE"
            )));
        }
        let Some(value) = value else { return Ok(()) };
        match env.iter_mut().find(|(have, _)| have == name) {
            Some((_, have)) => *have = value,
            None => env.push((name.to_owned(), value)),
        }
        Ok(())
    };
    for file in files {
        let text = files::read_text(file, MAX_ENV_FILE)
            .map_err(|e| CommandError::usage(format!("--env-file {}: {e}", file.display())))?;
        for line in text.lines().map(str::trim_start).filter(|l| !l.is_empty() && !l.starts_with('#')) {
            set(line)?;
        }
    }
    words.iter().try_for_each(|word| set(word))?;
    Ok(env)
}

fn inner(path: &str, flag: &str) -> Result<PathBuf, CommandError> {
    match Path::new(path).is_absolute() && path != "/" {
        true => Ok(path.into()),
        false => Err(CommandError::usage(format!(
            "{flag}: {path:?} is no place in the container: write an absolute path, but not /"
        ))),
    }
}

fn bind(text: &str) -> Result<Bind, CommandError> {
    let usage = |why: &str| CommandError::usage(format!("-v {text:?}: {why}"));
    let mut parts = text.split(':');
    let (Some(source), Some(target)) = (parts.next(), parts.next()) else {
        return Err(usage("write PATH:TARGET or PATH:TARGET:ro; volumes without a path are not there yet"));
    };
    let writable = match (parts.next(), parts.next()) {
        (None | Some("rw"), None) => true,
        (Some("ro"), None) => false,
        _ => return Err(usage("after the target only ro or rw are known")),
    };
    if !(source.starts_with('/')
        || source.starts_with("./")
        || source.starts_with("../")
        || matches!(source, "." | ".."))
    {
        return Err(usage("named volumes are not there yet: give a path, absolute or beginning with ./"));
    }
    let found = Path::new(source).canonicalize().map_err(|e| usage(&e.to_string()))?;
    Ok(Bind { source: found, target: inner(target, "-v")?, writable })
}

fn tmpfs(text: &str) -> Result<Tmpfs, CommandError> {
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    let mut made = Tmpfs { target: inner(target, "--tmpfs")?, size: TMPFS, mode: 0o1777 };
    for option in options.split(',').filter(|o| !o.is_empty()) {
        let bad =
            || CommandError::usage(format!("--tmpfs {text:?}: {option:?} is not known; size and mode are"));
        match option.split_once('=').unwrap_or((option, "")) {
            ("size", size) => made.size = size.parse().map_err(|_| bad())?,
            ("mode", mode) => {
                made.mode = u32::from_str_radix(mode, 8).ok().filter(|m| *m <= 0o7777).ok_or_else(bad)?;
            }
            // What every one is.
            ("rw" | "nosuid" | "nodev", "") => {}
            _ => return Err(bad()),
        }
    }
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_written_as_people_know_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        let text = |rest: &str| format!("{}:{rest}", path.display());
        let made = |target: &str, writable| Bind { source: path.clone(), target: target.into(), writable };
        assert_eq!(bind(&text("/data")).unwrap(), made("/data", true));
        assert_eq!(bind(&text("/data:ro")).unwrap(), made("/data", false));
        for bad in [
            "data:/data",
            "/nowhere-at-all:/data",
            "/tmp",
            "/tmp:data",
            "/tmp:/",
            "/tmp:/a:z",
            "/tmp:/a:ro:ro",
        ] {
            assert!(bind(bad).is_err(), "{bad}");
        }
        let t = tmpfs("/run:size=1m,mode=700").unwrap();
        assert_eq!((t.size, t.mode), (Bytes(1 << 20), 0o700));
        for bad in ["run", "/run:exec", "/run:mode=99999", "/run:size=x", "/"] {
            assert!(tmpfs(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn words_count_over_files() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("env");
        std::fs::write(&file, "# remark\nA=1\n\nB=x=y \nNOT_SET_ANYWHERE_AT_ALL\n").unwrap();
        let env = environment(&[file], &["A=2".into(), "C=".into()]).unwrap();
        let text: Vec<String> = env.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(text, ["A=2", "B=x=y ", "C="]);
        assert!(environment(&[], &["=x".into()]).is_err());
    }
}
