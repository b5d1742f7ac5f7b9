//! Orders of a session: fenced, then done.

use super::apps::App;
use super::images::blocking;
use super::state::{Supervisor, net};
use crate::balancer::pool::PoolSpec;
use crate::keeper;
use crate::record::ReplicaFiles;
use crate::settings::listen_address;
use futures_util::future::join_all;
use keelway_deploy::protocol::{
    AppReport, AppSettings, Fence, HostReport, Order, Outcome, Refusal, RefusalKind, ReplicaId, Reply,
};
use keelway_model::ids::AppName;
use std::sync::Arc;
use std::time::Duration;

impl Supervisor {
    /// What comes of an order. The session sees to its deadline.
    pub(super) async fn outcome(self: Arc<Self>, order: Order) -> Outcome {
        match self.order(order).await {
            Ok(reply) => Outcome::Done(reply),
            Err(refusal) => Outcome::Refused(refusal),
        }
    }

    async fn order(self: Arc<Self>, order: Order) -> Result<Reply, Refusal> {
        // Before anything else: who gives it may have been replaced.
        let app = match order.fence() {
            Some(fence) => Some(self.admit(fence)?),
            None => None,
        };
        let app =
            || app.as_ref().ok_or_else(|| Refusal::new(RefusalKind::Malformed, "the order has no fence"));
        match order {
            Order::Preflight(wanted) => self.preflight(wanted).await.map(Reply::Preflight),
            Order::AcquireLease(claim) | Order::RenewLease(claim) => {
                let app = self.ensure_app(&claim.app)?;
                app.claim(&claim, self.boot.now()).map(Reply::Lease)
            }
            Order::ReleaseLease { app, owner, epoch } => {
                if let Some(app) = self.app(&app) {
                    app.release(&owner, epoch)?;
                }
                Ok(Reply::Ok)
            }
            Order::EnsureImage { image, registry, .. } => {
                self.ensure_image(&image, registry).await.map(Reply::Image)
            }
            Order::EnsureApp { settings, .. } => self.set_up(app()?, settings).await,
            Order::EnsureReplica { replica, spec, .. } => {
                let report = self.ensure_replica(app()?, replica, *spec).await?;
                Ok(Reply::Replica(Box::new(report)))
            }
            Order::SetBackends { fence, generation, backends } => {
                let pool = PoolSpec { epoch: fence.epoch, generation, backends };
                self.set_pool(app()?, pool).await.map(Reply::Balancer)
            }
            Order::StopReplica { replica, grace_ms, .. } => {
                if let Some(replica) = app()?.replica(replica) {
                    self.stop_replica(&replica, Duration::from_millis(grace_ms)).await?;
                }
                Ok(Reply::Ok)
            }
            Order::RemoveReplica { replica, .. } => {
                let app = app()?;
                if let Some(replica) = app.replica(replica) {
                    self.remove_replica(app, &replica).await?;
                }
                Ok(Reply::Ok)
            }
            Order::Status { app } => self.status(app.as_ref()).await.map(Reply::Status),
            Order::ReadLogs { app, replica, tail } => {
                self.read_logs(&app, replica, tail).await.map(Reply::Logs)
            }
            Order::RecordRelease { record, .. } => {
                let image = record.release.spec.image.digest();
                app()?.record_release(*record)?;
                self.is_recorded(image);
                Ok(Reply::Ok)
            }
        }
    }

    fn admit(self: &Arc<Self>, fence: &Fence) -> Result<Arc<App>, Refusal> {
        let app = self.ensure_app(&fence.app)?;
        app.admit(fence.epoch)?;
        Ok(app)
    }
    fn known(&self, name: &AppName) -> Result<Arc<App>, Refusal> {
        self.app(name).ok_or_else(|| {
            Refusal::new(RefusalKind::NotFound, format!("there is no app {name} on this host"))
        })
    }

    async fn set_up(self: &Arc<Self>, app: &Arc<App>, settings: AppSettings) -> Result<Reply, Refusal> {
        let Some(listen) = listen_address(&settings.listen) else {
            let text =
                format!("{:?} is not an address to listen on: write :80 or 192.0.2.1:80", settings.listen);
            return Err(Refusal::new(RefusalKind::Malformed, text));
        };
        if let Some(other) = self.listens_on(&app.name, listen.port()) {
            let text = format!("port {} is taken by the balancer of {other}: choose another", listen.port());
            return Err(Refusal::new(RefusalKind::Taken, text));
        }
        app.set_settings(settings)?;
        self.ensure_firewall().await.map_err(|e| net(&e))?;
        self.ensure_balancer(app).await?;
        Ok(Reply::Ok)
    }

    /// The other app of ours whose balancer has a port.
    pub(super) fn listens_on(&self, not: &AppName, port: u16) -> Option<AppName> {
        let others = self.apps().into_iter().filter(|a| a.name != *not);
        let mut holders = others.filter(|a| {
            a.settings().and_then(|s| listen_address(&s.listen)).is_some_and(|l| l.port() == port)
        });
        holders.next().map(|a| a.name.clone())
    }

    async fn status(&self, only: Option<&AppName>) -> Result<HostReport, Refusal> {
        let mut report = HostReport::default();
        for app in self.apps().into_iter().filter(|a| only.is_none_or(|o| *o == a.name)) {
            // Side by side: a hung keeper costs its own time-out, and eight of them cost no more.
            let replicas = app.replicas();
            let (balancer, _) = tokio::join!(
                self.balancer_report(&app),
                join_all(replicas.iter().map(|replica| self.refresh(replica))),
            );
            let replicas = replicas.iter().map(|replica| replica.report(self)).collect();
            report.apps.push(AppReport {
                app: app.name.clone(),
                settings: app.settings(),
                replicas,
                balancer,
                lease: app.lease_view(self.boot.now()),
                highest_epoch: app.highest(),
                releases: app.releases(),
            });
        }
        Ok(report)
    }

    async fn read_logs(&self, app: &AppName, replica: ReplicaId, lines: u32) -> Result<Vec<String>, Refusal> {
        let app = self.known(app)?;
        let files = ReplicaFiles::of(&self.settings, &app.name, replica);
        blocking(move || {
            if !files.log.is_dir() {
                return Err(no_replica(&app, replica));
            }
            keeper::read_log(&files, lines).map_err(|e| {
                Refusal::new(RefusalKind::Failed, format!("cannot read the log of {replica}: {e}"))
            })
        })
        .await
    }
}

fn no_replica(app: &App, replica: ReplicaId) -> Refusal {
    Refusal::new(RefusalKind::NotFound, format!("{} has no replica {replica} on this host", app.name))
}
