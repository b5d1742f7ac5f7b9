//! Takes, keeps and gives back the lease of an app on a majority of its hosts.
//!
//! A lease that another owner holds is waited for only as long as nobody renews it: a living owner is told apart from
//! one that was killed by looking whether its time left goes up again, so a second deploy is refused within a few
//! seconds, and one after a crash waits out the rest of the dead lease instead of failing.

use super::{DeployEnd, DeployEvent, Emit, asked_to_end};
use crate::lease;
use crate::link::HostLink;
use crate::links::{Links, ask, observe};
use crate::protocol::{Epoch, LeaseAnswer, LeaseClaim, LeaseView, Order, Reply};
use crate::rollout::LeaseNews;
use futures_util::future::join_all;
use keelway_model::{ExitCode, format_duration};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How long a lease may take to get: a dead one's rest, and a little.
const PATIENCE: Duration = Duration::from_secs(25);

struct Votes {
    granted: usize,
    held: Option<(String, LeaseView)>,
    stale: Option<Epoch>,
}

async fn vote(links: &Links, order: impl Fn() -> Order) -> Votes {
    let answers = join_all(links.iter().map(|l| ask(l, order()))).await;
    let mut votes = Votes { granted: 0, held: None, stale: None };
    for (link, answer) in links.iter().zip(answers) {
        match answer {
            Ok(Reply::Lease(LeaseAnswer::Granted)) => votes.granted += 1,
            Ok(Reply::Lease(LeaseAnswer::Held(view))) => votes.held = Some((link.name().to_owned(), view)),
            Ok(Reply::Lease(LeaseAnswer::Stale { highest })) => votes.stale = votes.stale.max(Some(highest)),
            _ => {}
        }
    }
    votes
}

/// Takes the lease at an epoch higher than any host has seen; with the moment at which it was asked for.
pub(super) async fn acquire(
    links: &Links,
    mut claim: LeaseClaim,
    emit: Emit<'_>,
    cancel: &mut watch::Receiver<bool>,
) -> Result<(LeaseClaim, Instant), DeployEnd> {
    let began = Instant::now();
    let mut seen: Option<(LeaseView, Instant)> = None;
    let mut told = false;
    loop {
        let reports = observe(&claim.app, links).await.map_err(|reasons| {
            DeployEnd::early(ExitCode::Preflight, "a host went away; nothing was changed", reasons)
        })?;
        let highest = reports
            .iter()
            .flat_map(|r| &r.apps)
            .filter(|a| a.app == claim.app)
            .map(|a| a.highest_epoch)
            .max();
        claim.epoch = Epoch(highest.unwrap_or_default().0.max(claim.epoch.0) + 1);
        let asked = Instant::now();
        let votes = vote(links, || Order::AcquireLease(claim.clone())).await;
        if votes.granted >= lease::majority(links.len()) {
            return Ok((claim, asked));
        }
        release(links, &claim).await;
        if let Some(epoch) = votes.stale {
            claim.epoch = Epoch(claim.epoch.0.max(epoch.0));
        }
        if let Some((host, view)) = votes.held {
            let renewed = seen.as_ref().is_some_and(|(last, at)| {
                let should_be_left =
                    last.left_ms.saturating_sub(u64::try_from(at.elapsed().as_millis()).unwrap_or(0));
                last.owner == view.owner && view.left_ms > should_be_left + 1000
            });
            if renewed || began.elapsed() > PATIENCE {
                return Err(held(&host, &view));
            }
            if !told {
                told = true;
                let text = format!(
                    "the lease is held by {} for another {}; waiting to see whether it is alive",
                    view.who,
                    format_duration(Duration::from_millis(view.left_ms))
                );
                emit(DeployEvent::Note { text });
            }
            // The first look of an owner is kept: renewals show as more time left than that leaves.
            if seen.as_ref().is_none_or(|(last, _)| last.owner != view.owner) {
                seen = Some((view, Instant::now()));
            }
        } else if began.elapsed() > PATIENCE {
            let text = "the lease could not be had on a majority of the hosts; nothing was changed";
            return Err(DeployEnd::early(ExitCode::LeaseHeld, text, vec![]));
        }
        // Two that began at once do not meet again at once.
        let mut random = [0u8; 1];
        let spread = if getrandom::fill(&mut random).is_ok() { u64::from(random[0]) * 3 } else { 300 };
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(250 + spread)) => {}
            true = asked_to_end(cancel) => {
                return Err(DeployEnd::early(ExitCode::Cancelled, "interrupted before anything was changed", vec![]));
            }
        }
    }
}

fn held(host: &str, view: &LeaseView) -> DeployEnd {
    let age = format_duration(Duration::from_millis(view.age_ms));
    let reason = format!(
        "{host}: the lease is held by {} since {age} (epoch {}); wait for that deploy to end, or end it there",
        view.who, view.epoch
    );
    DeployEnd::early(
        ExitCode::LeaseHeld,
        "another deploy of this app is under way; nothing was changed",
        vec![reason],
    )
}

/// Gives the lease back wherever it was granted.
pub(super) async fn release(links: &Links, claim: &LeaseClaim) {
    let order =
        || Order::ReleaseLease { app: claim.app.clone(), owner: claim.owner.clone(), epoch: claim.epoch };
    // A host that does not hear it lets the lease run out.
    let give_back = join_all(links.iter().map(|l| l.call(order(), lease::RENEW)));
    let _ = tokio::time::timeout(lease::RENEW, give_back).await;
}

/// What came of a renewal, and when it was asked for: the hosts count from then or later, so a deployer that counts
/// from there never believes in a lease that they have given up.
type News = (Instant, LeaseNews);

/// Renews a lease beside the rollout, as long as it lives.
pub(super) struct Keeper {
    news: Arc<Mutex<Option<News>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Keeper {
    pub(super) fn start(links: &Links, claim: &LeaseClaim) -> Self {
        let news = Arc::new(Mutex::new(None));
        let task = tokio::spawn(keep(links.to_vec(), claim.clone(), news.clone()));
        Self { news, task }
    }
    /// What happened since the last call.
    pub(super) fn news(&self) -> Option<News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn keep(links: Vec<Arc<dyn HostLink>>, claim: LeaseClaim, news: Arc<Mutex<Option<News>>>) {
    loop {
        tokio::time::sleep(lease::RENEW).await;
        let asked = Instant::now();
        let votes = vote(&links, || Order::RenewLease(claim.clone())).await;
        let what = if votes.granted >= lease::majority(links.len()) {
            Some(LeaseNews::Renewed)
        } else if let Some((host, view)) = votes.held {
            Some(LeaseNews::Lost(format!("{host}: {} has it (epoch {})", view.who, view.epoch)))
        } else {
            votes.stale.map(|epoch| LeaseNews::Lost(format!("a deploy with epoch {epoch} took over")))
        };
        if let Some(what) = what {
            let lost = matches!(what, LeaseNews::Lost(_));
            *news.lock().unwrap_or_else(PoisonError::into_inner) = Some((asked, what));
            if lost {
                return;
            }
        }
    }
}
