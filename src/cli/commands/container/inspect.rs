//! `keelway container inspect`: everything, under the names that docker gives it.

use super::{Place, words};
use crate::args::Format;
use crate::commands::Context;
use crate::outcome::CommandError;
use keelway_container::containers::{Entry, Look, Phase};
use keelway_container::record::{Health, NetworkMode};
use keelway_container::{RestartPolicy, keeping};
use keelway_model::Timestamp;
use serde_json::{Value, json};

/// How docker writes a time that never was.
const NEVER: &str = "0001-01-01T00:00:00Z";

pub fn inspect(context: &Context, place: &Place, containers: &[String]) -> Result<(), CommandError> {
    let mut found = Vec::new();
    for word in containers {
        let entry = place.find(word)?;
        let look = entry.look().map_err(CommandError::outside)?;
        found.push(value(&entry, &look));
    }
    match context.global.format {
        Format::Json => found.iter().try_for_each(|value| context.print_json(value)),
        Format::Text => {
            let text = serde_json::to_string_pretty(&found).map_err(CommandError::outside)?;
            context.print(&format!("{text}\n"))
        }
    }
}

fn time(at: Option<Timestamp>) -> String {
    at.map_or_else(|| NEVER.into(), |at| at.to_string())
}

fn nanos(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn state(look: &Look) -> Value {
    let running = look.phase == Phase::Running;
    let (run, end) = (look.run.as_ref(), look.end.as_ref().filter(|_| !running));
    let mut state = json!({
        "Status": words::phase(look.phase), "Running": running, "Paused": false,
        "Restarting": look.phase == Phase::Restarting, "OOMKilled": end.is_some_and(|e| e.out_of_memory), "Dead": false,
        "Pid": run.filter(|_| running).map_or(0, |r| r.pid), "ExitCode": end.map_or(0, |e| e.code),
        "Error": end.and_then(|e| e.error.clone()).unwrap_or_default(),
        "StartedAt": time(run.map(|r| r.started).or(end.and_then(|e| e.started))), "FinishedAt": time(end.map(|e| e.ended)),
    });
    if let Some(health) = look.watch.health {
        let word = match health {
            Health::Starting => "starting",
            Health::Healthy => "healthy",
            Health::Unhealthy => "unhealthy",
        };
        let log: Vec<Value> = look
            .watch
            .checks
            .iter()
            .map(|c| json!({"Start": c.start.to_string(), "End": c.end.to_string(), "ExitCode": c.code, "Output": c.output}))
            .collect();
        state["Health"] = json!({"Status": word, "FailingStreak": look.watch.failing, "Log": log});
    }
    state
}

fn value(entry: &Entry, look: &Look) -> Value {
    let (r, a) = (&entry.record, &entry.record.asked);
    let (program, rest) = r.argv.split_first().map_or(("", &[][..]), |(p, rest)| (p.as_str(), rest));
    let mounts: Vec<Value> = a
        .binds
        .iter()
        .map(|b| {
            json!({"Type": "bind", "Source": b.source, "Destination": b.target, "Mode": if b.writable { "" } else { "ro" },
                   "RW": b.writable, "Propagation": "rprivate"})
        })
        .chain(a.tmpfs.iter().map(|t| {
            json!({"Type": "tmpfs", "Source": "", "Destination": t.target, "Mode": format!("{:o}", t.mode), "RW": true,
                   "Size": t.size.0})
        }))
        .collect();
    let env: Vec<String> = a.env.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let health = a.health.as_ref().map(|h| {
        let test: Vec<&str> = std::iter::once("CMD").chain(h.argv.iter().map(String::as_str)).collect();
        json!({"Test": test, "Interval": nanos(h.interval), "Timeout": nanos(h.timeout),
               "Retries": h.retries, "StartPeriod": nanos(h.start_period)})
    });
    let network = match a.network {
        NetworkMode::None => "none",
        NetworkMode::Host => "host",
        NetworkMode::Private => "private",
    };
    let (policy, most) = match a.restart {
        RestartPolicy::OnFailure(most) => ("on-failure".to_owned(), most.unwrap_or(0)),
        other => (other.to_string(), 0),
    };
    let ports: serde_json::Map<String, Value> = a
        .publish
        .iter()
        .map(|p| {
            (
                format!("{}/tcp", p.container),
                json!([{"HostIp": p.address.to_string(), "HostPort": p.host.to_string()}]),
            )
        })
        .collect();
    json!({
        "Id": r.id, "Created": r.created.to_string(), "Path": program, "Args": rest, "State": state(look),
        "Image": r.digest, "Name": format!("/{}", r.name), "RestartCount": look.watch.restarts, "Platform": "linux",
        "LogPath": entry.files.log(), "Mounts": mounts,
        "Config": {
            "Hostname": keeping::hostname(r), "User": a.user.as_ref().map_or("", |u| u.0.as_str()), "Tty": a.terminal,
            "OpenStdin": a.input, "Env": env, "Cmd": a.command, "Entrypoint": a.entrypoint, "Image": r.image,
            "WorkingDir": a.cwd.as_deref().unwrap_or_default(), "Labels": a.labels, "Healthcheck": health,
            "StopSignal": a.stop_signal, "StopTimeout": a.grace().as_secs(),
        },
        "HostConfig": {
            "NetworkMode": network, "PortBindings": ports, "RestartPolicy": {"Name": policy, "MaximumRetryCount": most},
            "AutoRemove": a.remove, "CapAdd": a.cap_add, "CapDrop": a.cap_drop, "ReadonlyRootfs": a.read_only,
            "Memory": a.limits.memory.map_or(0, |m| m.0), "NanoCpus": u64::from(a.limits.cpu_millis.unwrap_or(0)) * 1_000_000,
            "PidsLimit": a.limits.pids.unwrap_or(keelway_model::limits::DEFAULT_PIDS), "Init": true, "Privileged": false,
        },
    })
}
