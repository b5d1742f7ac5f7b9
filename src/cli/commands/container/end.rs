//! `keelway container stop|kill|rm`.

use super::Place;
use crate::args::Format;
use crate::commands::Context;
use crate::outcome::CommandError;
use keelway_container::containers::{ContainersError, Entry};
use keelway_container::keeper::Ask;
use keelway_container::record::{MOMENT, Want};
use keelway_container::{Status, signal_number, wire};
use std::time::{Duration, Instant};

/// For one answer of a keeper.
const ANSWER: Duration = Duration::from_secs(5);
/// Beyond the grace: for the kernel to end everything and for the keeper to clear up.
const BEYOND_GRACE: Duration = Duration::from_secs(40);
/// Between two looks at what has no event.
const LOOK: Duration = Duration::from_millis(10);
const SIGKILL: i32 = 9;

/// Does the same to each; what fails for one is said, and the others go on.
async fn each<F: AsyncFn(&str) -> Result<(), CommandError>>(
    context: &Context,
    words: &[String],
    work: F,
) -> Result<(), CommandError> {
    let mut first = None;
    for word in words {
        match work(word).await {
            Ok(()) => match context.global.format {
                Format::Text => context.print(&format!("{word}\n"))?,
                Format::Json => context.print_json(&serde_json::json!({"container": word}))?,
            },
            Err(error) if first.is_none() => first = Some(error),
            Err(error) => super::super::say_error(context, &error),
        }
    }
    first.map_or(Ok(()), Err)
}

async fn ask(entry: &Entry, ask: Ask) -> Result<(), CommandError> {
    // A keeper that has just begun makes its socket a moment after it took its lock; one that ends is as good as told.
    let end = Instant::now() + ANSWER;
    loop {
        match wire::call::<_, Status>(&entry.files.socket(), &ask, ANSWER).await {
            Ok(_) => return Ok(()),
            Err(_) if !entry.files.is_kept() => return Ok(()),
            Err(e) if Instant::now() > end => return Err(CommandError::outside(e)),
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}

async fn until_it_is_free(entry: &Entry, patience: Duration) -> Result<(), CommandError> {
    let end = Instant::now() + patience;
    while entry.files.is_kept() {
        if Instant::now() > end {
            let name = &entry.record.name;
            return Err(CommandError::outside(format!(
                "container {name} has not ended within {patience:?}; look at its processes"
            )));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// Nobody starts it again from here on.
fn want_stopped(entry: &Entry) -> Result<(), CommandError> {
    entry.files.save_want(&Want::now(true)).map_err(CommandError::outside)
}

async fn stop_one(entry: &Entry, grace: Duration) -> Result<(), CommandError> {
    want_stopped(entry)?;
    if entry.files.is_kept() {
        ask(entry, Ask::Stop { grace }).await?;
    }
    until_it_is_free(entry, grace + BEYOND_GRACE).await
}

pub async fn stop(
    context: &Context,
    place: &Place,
    time: Option<u32>,
    words: &[String],
) -> Result<(), CommandError> {
    each(context, words, async |word| {
        let entry = place.find(word)?;
        let grace = time.map_or_else(|| entry.record.asked.grace(), |s| Duration::from_secs(s.into()));
        stop_one(&entry, grace).await
    })
    .await
}

pub async fn kill(
    context: &Context,
    place: &Place,
    signal: &str,
    words: &[String],
) -> Result<(), CommandError> {
    let number = signal_number(signal).ok_or_else(|| {
        CommandError::usage(format!("--signal {signal:?} is not a signal, for example TERM"))
    })?;
    each(context, words, async |word| {
        let entry = place.find(word)?;
        if !entry.files.is_kept() {
            return Err(CommandError::usage(format!("container {word} is not running")));
        }
        // What is meant to end it shall not be undone by a restart policy.
        if number == SIGKILL || number == entry.record.stop_signal() {
            want_stopped(&entry)?;
        }
        if number != SIGKILL {
            return ask(&entry, Ask::Signal { signal: number }).await;
        }
        ask(&entry, Ask::Signal { signal: number }).await?;
        until_it_is_free(&entry, BEYOND_GRACE).await
    })
    .await
}

pub async fn rm(context: &Context, place: &Place, force: bool, words: &[String]) -> Result<(), CommandError> {
    each(context, words, async |word| {
        let entry = place.find(word)?;
        let name = entry.record.name.clone();
        if force {
            stop_one(&entry, Duration::ZERO).await?;
        } else if entry.files.is_kept() && until_it_is_free(&entry, MOMENT).await.is_err() {
            // Not one that only somebody who puts it right has in his hands.
            return Err(ContainersError::Running(name).into());
        } else {
            // A supervisor that waits for the next start must not win.
            want_stopped(&entry)?;
        }
        // With --rm it may be gone by now.
        let (containers, removed) = (place.containers.clone(), entry.clone());
        let removed = tokio::task::spawn_blocking(move || containers.remove(&removed)).await;
        Ok(removed.map_err(CommandError::outside)??)
    })
    .await
}
