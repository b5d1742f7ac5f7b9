//! Fetches what an `ADD` names by address.
//!
//! The file that names it may be anybody's: unless the build has the machine's network, only what a private network
//! reaches is asked. Size, time and redirects are bounded.

use crate::perform::Performer;
use crate::{blocking, perform::step_failure};
use keelway_engine::{Ctx, Failure};
use keelway_http::{Bytes, HeaderValue, Request, Response, StatusCode, Url, header};
use keelway_image::fetch::{Answer, MAX_BYTES, Receiving, known};
use keelway_model::plan::{Chain, FetchOp, Network};
use std::time::Duration;
use tokio::sync::mpsc;

/// For one file, from the request to its last byte.
const TOTAL: Duration = Duration::from_secs(30 * 60);
/// Pieces of an answer that wait to be written.
const WAITING: usize = 16;

/// Fetches one file, or finds that the one that is here is still right.
pub(crate) async fn run(performer: &Performer, ctx: &Ctx, op: &FetchOp) -> Result<Chain, Failure> {
    let failed = |why: &dyn std::fmt::Display| Failure::outside(format!("ADD of {}: {why}", op.name));
    let url: Url = op.url.parse().map_err(|e| Failure::failed(format!("ADD of {}: {e}", op.name)))?;
    let (store, asked) = (performer.store().clone(), op.clone());
    let before = match &op.checksum {
        // Whatever the server says, it is the checksum that counts.
        Some(_) => None,
        None => blocking(move || Ok(known(&store, &asked))).await?,
    };
    let http = &performer.settings.http;
    let client = match op.network {
        Network::Host => http.clone(),
        Network::Private | Network::None => http.for_strangers().map_err(|e| failed(&e))?,
    };
    let mut request = Request::get(url).total(TOTAL);
    if let Some((_, answer)) = &before {
        let validators =
            [(header::IF_NONE_MATCH, &answer.etag), (header::IF_MODIFIED_SINCE, &answer.last_modified)];
        for (name, value) in validators {
            if let Some(value) = value.as_ref().and_then(|v| HeaderValue::from_str(v).ok()) {
                request = request.header(name, value);
            }
        }
    }
    let response = client.send(request).await.map_err(|e| failed(&e))?;
    match (response.status(), before) {
        (StatusCode::NOT_MODIFIED, Some((chain, _))) => {
            ctx.news(format!("{} did not change", op.name)).await;
            Ok(chain)
        }
        (StatusCode::OK, _) => receive(performer, ctx, op, response).await,
        (status, _) => Err(failed(&format!("the server answers {status}"))),
    }
}

async fn receive(
    performer: &Performer,
    ctx: &Ctx,
    op: &FetchOp,
    mut response: Response,
) -> Result<Chain, Failure> {
    let failed = |why: &dyn std::fmt::Display| Failure::outside(format!("ADD of {}: {why}", op.name));
    let length = response.content_length();
    if length.is_some_and(|l| l > MAX_BYTES) {
        return Err(failed(&format!("it has more than {} GiB", MAX_BYTES >> 30)));
    }
    let of = |name: &str| response.header(name).map(str::to_owned);
    let answer = Answer { etag: of("etag"), last_modified: of("last-modified") };
    let (pieces, mut from) = mpsc::channel::<Bytes>(WAITING);
    let (store, asked) = (performer.store().clone(), op.clone());
    // Ends when the channel does; what was received is dropped with it, unless it is finished below.
    let writer = tokio::spawn(blocking(move || {
        let mut receiving = Receiving::begin(&store, &asked).map_err(|e| step_failure(&e))?;
        while let Some(piece) = from.blocking_recv() {
            receiving.take(&piece).map_err(|e| step_failure(&e))?;
        }
        Ok(receiving)
    }));
    let mut done = 0;
    while let Some(piece) = response.chunk().await.map_err(|e| failed(&e))? {
        done += piece.len() as u64;
        ctx.progress(op.name.clone(), done, length);
        // The writer has failed, and says below why.
        if pieces.send(piece).await.is_err() {
            break;
        }
    }
    drop(pieces);
    let receiving =
        writer.await.map_err(|e| Failure::bug(format!("the thread that wrote a file failed: {e}")))??;
    let (store, op) = (performer.store().clone(), op.clone());
    blocking(move || {
        let name = op.name.clone();
        receiving.finish(&store, &op, &answer).map_err(|e| {
            let Failure { exit, message, .. } = step_failure(&e);
            Failure::new(exit, format!("ADD of {name}: {message}"))
        })
    })
    .await
}
