//! `keelway deploy status`: what runs where, as data and as text. Changes nothing, needs no lease.

use crate::links::{Links, ask};
use crate::protocol::{
    AppReport, BalancerReport, LeaseView, Order, ReleaseRecord, ReleaseState, ReplicaId, ReplicaState, Reply,
    Revision,
};
use crate::rollout::HostView;
use futures_util::future::join_all;
use keelway_model::ids::AppName;
use keelway_model::{Digest, format_duration};
use std::fmt::Write;
use std::time::Duration;

/// A host and what it says.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct HostStatus {
    /// Its name in the target.
    pub host: String,
    /// Why it says nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreachable: Option<String>,
    /// Its apps.
    pub apps: Vec<AppStatus>,
}

/// An app on a host.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct AppStatus {
    /// Which.
    pub app: AppName,
    /// Its replicas on this host, by id.
    pub replicas: Vec<ReplicaStatus>,
    /// Backends that this host's balancer can use, and all that it has.
    pub usable: usize,
    /// See `usable`.
    pub backends: usize,
    /// Whether the balancer runs.
    pub balancer: bool,
    /// Balancer address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,
    /// The release that was completed last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed: Option<Revision>,
    /// A release that was begun and not finished.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unfinished: Option<Revision>,
    /// Who deploys now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeaseView>,
}

/// A replica.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct ReplicaStatus {
    /// Which.
    pub replica: ReplicaId,
    /// What it runs.
    pub digest: Digest,
    /// How it is.
    pub state: ReplicaState,
    /// Times it was started again.
    pub restarts: u32,
    /// Requests in flight from this host's balancer.
    pub in_flight: u32,
    /// Since its process started.
    pub age: Duration,
    /// What its last bad health check said, or how it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Asks every host, of one app or of all. A host that does not answer is a row that says so.
pub async fn status(app: Option<&AppName>, links: &Links) -> Vec<HostStatus> {
    let one = async |link: &std::sync::Arc<dyn crate::link::HostLink>| {
        let host = link.name().to_owned();
        let gone = |why: String| HostStatus { host: host.clone(), unreachable: Some(why), apps: vec![] };
        if let Err(e) = link.connect().await {
            return gone(e.to_string());
        }
        match ask(link, Order::Status { app: app.cloned() }).await {
            Ok(Reply::Status(report)) => {
                let apps = report.apps.iter().map(app_row).collect();
                HostStatus { host: host.clone(), unreachable: None, apps }
            }
            Ok(_) => gone("it answered something else".into()),
            Err(e) => gone(e.to_string()),
        }
    };
    join_all(links.iter().map(one)).await
}

/// The hosts of a rollout as it saw them last.
pub(crate) fn rows(views: &[HostView], app: &AppName) -> Vec<HostStatus> {
    let row = |v: &HostView| {
        let apps = if v.report.app == *app { vec![app_row(&v.report)] } else { vec![] };
        HostStatus { host: v.name.clone(), unreachable: v.why_down(), apps }
    };
    views.iter().map(row).collect()
}

fn app_row(report: &AppReport) -> AppStatus {
    let balancer: &BalancerReport = &report.balancer;
    let newest = |wanted: fn(&ReleaseRecord) -> bool| {
        report.releases.iter().filter(|r| wanted(r)).map(|r| r.revision).max()
    };
    let completed = newest(|r| r.state == ReleaseState::Completed);
    let unfinished = newest(|r| matches!(r.state, ReleaseState::Started | ReleaseState::RollingBack));
    let replicas = report.replicas.iter().map(|r| ReplicaStatus {
        replica: r.replica,
        digest: r.spec.image.digest(),
        state: r.state,
        restarts: r.restarts,
        in_flight: balancer.backends.iter().filter(|b| b.replica == r.replica).map(|b| b.in_flight).sum(),
        age: Duration::from_millis(r.age_ms),
        note: match r.state {
            ReplicaState::Healthy => None,
            ReplicaState::Exited => r.ended.clone(),
            _ => r.last_bad.clone(),
        },
    });
    AppStatus {
        app: report.app.clone(),
        replicas: replicas.collect(),
        usable: balancer.backends.iter().filter(|b| b.usable).count(),
        backends: balancer.backends.len(),
        balancer: balancer.running,
        listen: report.settings.as_ref().map(|s| s.listen.clone()),
        completed,
        unfinished: unfinished.filter(|u| completed.is_none_or(|c| *u > c)),
        lease: report.lease.clone().filter(|l| l.left_ms > 0),
    }
}

/// The table as text, lines ended. Control characters of what hosts say are left out.
pub fn render(hosts: &[HostStatus]) -> String {
    let mut rows: Vec<[String; 7]> =
        vec![["HOST", "APP", "REPLICA", "DIGEST", "STATE", "AGE", "NOTE"].map(str::to_owned)];
    let mut notes = String::new();
    for host in hosts {
        let plain = |s: &str| -> String { s.chars().filter(|c| !c.is_control()).take(300).collect() };
        if let Some(why) = &host.unreachable {
            let empty = String::new;
            rows.push([
                host.host.clone(),
                empty(),
                empty(),
                empty(),
                "unreachable".into(),
                empty(),
                plain(why),
            ]);
        }
        for app in &host.apps {
            for r in &app.replicas {
                let mut note = r.note.as_deref().map(plain).unwrap_or_default();
                if r.restarts > 0 {
                    note = format!("restarted {} times {note}", r.restarts).trim().to_owned();
                }
                let state = format!("{:?}", r.state).to_lowercase();
                let (age, digest) = (format_duration(r.age), r.digest.short());
                rows.push([
                    host.host.clone(),
                    app.app.to_string(),
                    r.replica.to_string(),
                    digest,
                    state,
                    age,
                    note,
                ]);
            }
            let running = if app.balancer { "runs" } else { "DOWN" };
            let listen = app.listen.as_deref().unwrap_or("-");
            let _ = write!(
                notes,
                "{} {}: balancer {running} on {listen}, {} of {} backends usable",
                host.host, app.app, app.usable, app.backends
            );
            let _ = app.completed.map(|r| write!(notes, "; revision {r} completed"));
            let _ = app.unfinished.map(|r| {
                write!(notes, "; revision {r} UNFINISHED: deploy again, or `keelway deploy rollback`")
            });
            let _ = app.lease.as_ref().map(|l| write!(notes, "; being deployed by {}", plain(&l.who)));
            notes.push('\n');
        }
    }
    let width = |column: usize| rows.iter().map(|r| r[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..7).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, w)| format!("{cell:<w$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text + &notes
}
