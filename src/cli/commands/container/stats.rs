//! `keelway container stats`.

use super::{Place, words};
use crate::args::Format;
use crate::commands::Context;
use crate::outcome::CommandError;
use crate::render;
use keelway_container::containers::{Entry, Phase};
use keelway_container::record::NetworkMode;
use keelway_container::stats::{Sample, sample};
use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::time::Duration;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);
/// The first look lasts so long, so that there is something to compare with.
const FIRST: Duration = Duration::from_millis(500);

pub async fn stats(
    context: &Context,
    place: &Place,
    no_stream: bool,
    wanted: &[String],
) -> Result<(), CommandError> {
    let mut before: BTreeMap<String, Sample> = BTreeMap::new();
    let cancel = context.cancel.token();
    let live = !no_stream && io::stdout().is_terminal() && context.global.format == Format::Text;
    let mut first = true;
    loop {
        let mut now = BTreeMap::new();
        let mut rows = Vec::new();
        for entry in entries(place, wanted)? {
            let Some((sample, row)) = row(&entry, &before)? else { continue };
            now.insert(entry.record.id.to_string(), sample);
            rows.push(row);
        }
        before = now;
        if !first {
            let text = text(context, &rows);
            let text = if live { format!("\x1b[H\x1b[J{text}") } else { text };
            if !context.print_more(&text)? || no_stream {
                return Ok(());
            }
        } else if live {
            context.print_more("\x1b[2J")?;
        }
        let wait = if first { FIRST } else { EVERY };
        first = false;
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = cancel.changed_from(None) => return Ok(()),
        }
    }
}

fn entries(place: &Place, wanted: &[String]) -> Result<Vec<Entry>, CommandError> {
    if wanted.is_empty() {
        return Ok(place.containers.list()?);
    }
    wanted.iter().map(|word| place.find(word)).collect()
}

/// One container's figures, where it runs.
fn row(
    entry: &Entry,
    before: &BTreeMap<String, Sample>,
) -> Result<Option<(Sample, [String; 8])>, CommandError> {
    let look = entry.look().map_err(CommandError::outside)?;
    let Some(run) = look.run.filter(|_| look.phase == Phase::Running) else { return Ok(None) };
    let own_network = entry.record.asked.network != NetworkMode::Host;
    let Some(sample) = sample(run.pid, own_network) else { return Ok(None) };
    let id = entry.record.id.to_string();
    let cores = before.get(&id).map_or(0.0, |earlier| sample.cores_since(earlier));
    let share = sample.memory as f64 * 100.0 / (sample.memory_limit.max(1) as f64);
    let pair = |(a, b): (u64, u64)| format!("{} / {}", words::decimal_size(a), words::decimal_size(b));
    let row = [
        entry.record.id.short().to_owned(),
        entry.record.name.to_string(),
        format!("{:.2}%", cores * 100.0),
        format!("{} / {}", words::binary_size(sample.memory), words::binary_size(sample.memory_limit)),
        format!("{share:.2}%"),
        sample.network.map_or_else(|| "--".into(), pair),
        pair(sample.disk),
        sample.pids.to_string(),
    ];
    Ok(Some((sample, row)))
}

fn text(context: &Context, rows: &[[String; 8]]) -> String {
    if context.global.format == Format::Json {
        let json = |[id, name, cpu, memory, share, net, disk, pids]: &[String; 8]| {
            let row = serde_json::json!({
                "ID": id, "Name": name, "CPUPerc": cpu, "MemUsage": memory, "MemPerc": share, "NetIO": net, "BlockIO": disk,
                "PIDs": pids,
            });
            format!("{row}\n")
        };
        return rows.iter().map(json).collect();
    }
    let head =
        ["CONTAINER ID", "NAME", "CPU %", "MEM USAGE / LIMIT", "MEM %", "NET I/O", "BLOCK I/O", "PIDS"];
    render::table(head, rows, 3)
}
