//! `keelway container logs`.

use super::Place;
use crate::args::Format;
use crate::commands::Context;
use crate::container_args::Tail;
use crate::outcome::CommandError;
use crate::{render, settings};
use keelway_container::containers::{Entry, Phase};
use keelway_container::lines::{self, Line};
use keelway_model::{LogStream, Timestamp};
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

/// Between two looks at a log that is followed.
const LOOK: Duration = Duration::from_millis(50);

/// The flags.
pub struct Wanted {
    pub follow: bool,
    pub since: Option<String>,
    pub tail: Option<Tail>,
    pub timestamps: bool,
}

pub async fn logs(context: &Context, place: &Place, word: &str, wanted: Wanted) -> Result<(), CommandError> {
    let entry = place.find(word)?;
    let now = settings::clock(&context.machine).now();
    let since = wanted.since.as_deref().map(|text| moment(text, now)).transpose()?;
    let count = match wanted.tail {
        Some(Tail::Last(count)) => Some(count),
        Some(Tail::All) | None => None,
    };
    let out = Out { context, timestamps: wanted.timestamps, since };
    let (lines, mut reader) = lines::last(&entry.files.log(), count).map_err(CommandError::outside)?;
    if !out.print(&lines)? || !wanted.follow {
        return Ok(());
    }
    let cancelled = context.cancel.token();
    loop {
        // Looked at before the log is read: what was written before its end is read after it.
        let ended = has_ended(&entry)?;
        loop {
            let more = reader.more().map_err(CommandError::outside)?;
            if reader.take_lost() {
                context.say("lines are missing here: the container wrote faster than they were read");
            }
            if more.is_empty() {
                break;
            }
            if !out.print(&more)? {
                return Ok(());
            }
        }
        if ended || cancelled.is_cancelled() {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn has_ended(entry: &Entry) -> Result<bool, CommandError> {
    if !entry.files.dir().exists() {
        return Ok(true);
    }
    let look = entry.look().map_err(CommandError::outside)?;
    Ok(look.phase == Phase::Exited && !entry.files.is_kept())
}

/// A time, or a span before now.
fn moment(text: &str, now: Timestamp) -> Result<Timestamp, CommandError> {
    if let Ok(span) = keelway_model::parse_duration(text) {
        return Ok(Timestamp(now.0.saturating_sub(i64::try_from(span.as_millis()).unwrap_or(i64::MAX))));
    }
    if let Ok(seconds) = text.parse::<i64>() {
        return Ok(Timestamp::from_seconds(seconds));
    }
    text.parse::<jiff::Timestamp>().map(|t| Timestamp(t.as_millisecond())).map_err(|_| {
        CommandError::usage(format!(
            "--since {text:?}: write a time (2026-11-23T14:00:00Z), seconds since 1970, or a span (10m)"
        ))
    })
}

struct Out<'a> {
    context: &'a Context,
    timestamps: bool,
    since: Option<Timestamp>,
}

impl Out<'_> {
    /// False when nobody reads any more.
    fn print(&self, lines: &[Line]) -> Result<bool, CommandError> {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut begins = true;
        for line in lines.iter().filter(|l| self.since.is_none_or(|since| l.at >= since)) {
            if self.context.global.format == Format::Json {
                let text = String::from_utf8_lossy(&line.text);
                let json = serde_json::json!({"at": line.at.to_string(), "stream": line.stream, "text": text, "whole": line.whole});
                out.extend_from_slice(format!("{json}\n").as_bytes());
                continue;
            }
            let to = if line.stream == LogStream::Stdout { &mut out } else { &mut err };
            if self.timestamps && begins {
                to.extend_from_slice(format!("{} ", line.at).as_bytes());
            }
            begins = line.whole;
            to.extend_from_slice(&line.bytes());
        }
        if !err.is_empty() {
            let bytes = if io::stderr().is_terminal() { harmless(&err) } else { err };
            // Who does not want to read it has closed it.
            let _ = io::stderr().lock().write_all(&bytes);
        }
        let bytes = if io::stdout().is_terminal() { harmless(&out) } else { out };
        let mut to = io::stdout().lock();
        match to.write_all(&bytes).and_then(|()| to.flush()) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            Err(e) => Err(CommandError::outside(format!("cannot write the log: {e}"))),
        }
    }
}

/// A terminal is shown text only: what a container wrote may be meant to change it.
fn harmless(bytes: &[u8]) -> Vec<u8> {
    render::clean_lines(&String::from_utf8_lossy(bytes)).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments() {
        let now = Timestamp::from_seconds(1_000_000);
        assert_eq!(moment("10m", now).unwrap(), Timestamp::from_seconds(999_400));
        assert_eq!(moment("500", now).unwrap(), Timestamp::from_seconds(500));
        assert_eq!(moment("1970-01-01T00:00:01.5Z", now).unwrap(), Timestamp(1500));
        assert!(moment("yesterday", now).is_err());
    }
}
