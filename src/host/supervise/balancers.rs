//! The balancer process of each app: started, watched over, given its pool.

use super::apps::{App, disk};
use super::state::Supervisor;
use crate::balancer::control::{Answer, Ask};
use crate::balancer::pool::{PoolSpec, SwapError};
use crate::settings::{BalancerSettings, Patience, listen_address};
use crate::{process, record, wire};
use keelway_deploy::protocol::{BalancerReport, Refusal, RefusalKind};
use keelway_disk::Lock;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often a balancer is looked after; with its start, well within the second that a killed one may be
/// away.
const TICK: Duration = Duration::from_millis(200);
/// For one answer.
const ANSWER: Duration = Duration::from_secs(3);
/// For a balancer to listen, once it is started.
const START: Duration = Duration::from_secs(5);
/// For one that listens elsewhere to finish what it has.
const LEAVE: Duration = Duration::from_secs(35);
/// Between two looks while something is awaited.
const LOOK: Duration = Duration::from_millis(10);

impl Supervisor {
    fn balancer_settings(&self, app: &App) -> Option<BalancerSettings> {
        let listen = listen_address(&app.settings()?.listen)?;
        let (settings, patience) = (self.settings.clone(), Patience::default());
        Some(BalancerSettings { settings, app: app.name.clone(), listen, patience })
    }
    async fn ask_balancer(&self, settings: &BalancerSettings, ask: &Ask) -> Result<Answer, wire::CallError> {
        wire::call(&settings.socket(), ask, ANSWER).await
    }
    /// Its address and what it does, where one runs.
    async fn balancer_state(&self, settings: &BalancerSettings) -> Option<(SocketAddr, BalancerReport)> {
        match self.ask_balancer(settings, &Ask::Report).await {
            Ok(Answer::Report { listen, report, .. }) => Some((listen, report)),
            _ => None,
        }
    }
    pub(super) async fn balancer_report(&self, app: &App) -> BalancerReport {
        let Some(settings) = self.balancer_settings(app) else { return BalancerReport::default() };
        self.balancer_state(&settings).await.map(|(_, report)| report).unwrap_or_default()
    }

    /// Sees to it that an app's balancer runs, as soon as the app has settings.
    pub(super) fn watch_balancer(self: &Arc<Self>, app: &Arc<App>) {
        let (this, app) = (Arc::clone(self), Arc::clone(app));
        tokio::spawn(async move {
            let mut failures = 0u32;
            loop {
                // Without settings the app has no balancer yet.
                if this.balancer_settings(&app).is_some() {
                    match this.ensure_balancer(&app).await {
                        Ok(()) => failures = 0,
                        Err(error) => {
                            if failures == 0 {
                                tracing::warn!(app = %app.name, %error, "the balancer does not run");
                            }
                            failures = (failures + 1).min(25);
                        }
                    }
                }
                tokio::time::sleep(TICK * (1 + failures)).await;
            }
        });
    }

    /// Starts the balancer unless it runs, at the address that it shall have.
    pub(super) async fn ensure_balancer(&self, app: &App) -> Result<(), Refusal> {
        let _one_at_a_time = app.balancer.lock().await;
        let Some(settings) = self.balancer_settings(app) else {
            let text = format!("{} has no balancer address yet: EnsureApp comes first", app.name);
            return Err(Refusal::new(RefusalKind::NotFound, text));
        };
        match self.balancer_state(&settings).await {
            Some((listen, _)) if listen == settings.listen => return Ok(()),
            Some(_) => self.end_balancer(&settings).await?,
            None => {}
        }
        let diary = record::diary(&self.settings, "balancers");
        process::spawn("__balancer", settings.to_args(), &diary)
            .map_err(|e| disk(&e, "start the balancer"))?;
        let end = Instant::now() + START;
        while Instant::now() < end {
            if self.balancer_state(&settings).await.is_some() {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
        let text = format!(
            "the balancer of {} does not listen on {}; is the port taken? see {} on the host",
            app.name,
            settings.listen,
            diary.display()
        );
        Err(Refusal::new(RefusalKind::Taken, text))
    }

    async fn end_balancer(&self, settings: &BalancerSettings) -> Result<(), Refusal> {
        let _ = self.ask_balancer(settings, &Ask::End).await;
        let end = Instant::now() + LEAVE;
        while !matches!(Lock::try_take(&settings.lock()), Ok(Some(_))) {
            if Instant::now() > end {
                let text = format!("the old balancer of {} does not end", settings.app);
                return Err(Refusal::new(RefusalKind::Failed, text));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Gives the balancer a pool; it is in force when this returns.
    pub(super) async fn set_pool(&self, app: &App, pool: PoolSpec) -> Result<BalancerReport, Refusal> {
        let Some(settings) = self.balancer_settings(app) else {
            let text = format!("{} has no balancer yet: EnsureApp comes first", app.name);
            return Err(Refusal::new(RefusalKind::NotFound, text));
        };
        let ask = Ask::SetPool { pool };
        let mut answer = self.ask_balancer(&settings, &ask).await;
        if answer.is_err() {
            // Killed a moment ago, perhaps: the same pool may be given twice.
            self.ensure_balancer(app).await?;
            answer = self.ask_balancer(&settings, &ask).await;
        }
        match answer {
            Ok(Answer::Report { report, .. }) => Ok(report),
            Ok(Answer::Refused { why }) => {
                let kind = match why {
                    SwapError::Older { epoch, .. } | SwapError::Conflict { epoch, .. } => {
                        RefusalKind::Fenced { highest: epoch }
                    }
                    SwapError::Twice(_) | SwapError::TooMany(_) => RefusalKind::Malformed,
                };
                Err(Refusal::new(kind, why.to_string()))
            }
            Ok(Answer::Failed { message }) => Err(Refusal::new(RefusalKind::Failed, message)),
            Err(error) => {
                Err(Refusal::new(RefusalKind::Failed, format!("the balancer of {}: {error}", app.name)))
            }
        }
    }
}
