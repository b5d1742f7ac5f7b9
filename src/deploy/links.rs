//! Calls over the links to the hosts of a target: one order to one host, or to all side by side.
//!
//! Invariant: every call ends, whatever the link does.

use crate::link::{ConnectError, HostLink};
use crate::protocol::{HostReport, Order, Reply, Welcome};
use crate::rollout::OrderError;
use futures_util::future::join_all;
use keelway_model::ids::AppName;
use std::sync::Arc;
use std::time::Duration;

/// The links to the hosts of a target, in its order.
pub type Links = [Arc<dyn HostLink>];

/// Sends an order and waits for the answer, at most as long as such an order may take.
pub(crate) async fn ask(link: &Arc<dyn HostLink>, order: Order) -> Result<Reply, OrderError> {
    let deadline = crate::rollout::deadline(&order);
    ask_within(link, order, deadline).await
}

/// Sends an order and waits for the answer, until the deadline.
pub(crate) async fn ask_within(
    link: &Arc<dyn HostLink>,
    order: Order,
    deadline: Duration,
) -> Result<Reply, OrderError> {
    // The link keeps the deadline; this is for a link that does not.
    let sure = deadline + Duration::from_secs(2);
    tokio::time::timeout(sure, link.call(order, deadline)).await.unwrap_or(Err(OrderError::Late))
}

/// Connects every host, or says what is wrong with each that cannot be.
pub(crate) async fn connect(links: &Links) -> Result<Vec<Welcome>, Vec<ConnectError>> {
    let (mut welcomes, mut errors) = (Vec::new(), Vec::new());
    for answer in join_all(links.iter().map(|l| l.connect())).await {
        match answer {
            Ok(w) => welcomes.push(w),
            Err(e) => errors.push(e),
        }
    }
    if errors.is_empty() { Ok(welcomes) } else { Err(errors) }
}

/// What every host reports of an app.
pub(crate) async fn observe(app: &AppName, links: &Links) -> Result<Vec<HostReport>, Vec<String>> {
    let order = Order::Status { app: Some(app.clone()) };
    let (mut reports, mut errors) = (Vec::new(), Vec::new());
    for (link, answer) in links.iter().zip(join_all(links.iter().map(|l| ask(l, order.clone()))).await) {
        match answer {
            Ok(Reply::Status(report)) => reports.push(report),
            Ok(_) => errors.push(format!("{}: answered something else than its status", link.name())),
            Err(e) => errors.push(format!("{}: {e}", link.name())),
        }
    }
    if errors.is_empty() { Ok(reports) } else { Err(errors) }
}
