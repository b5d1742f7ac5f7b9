//! `keelway container ls`.

use super::{Place, words};
use crate::args::Format;
use crate::commands::Context;
use crate::outcome::CommandError;
use crate::render;
use crate::settings;
use keelway_container::containers::{Entry, Look, Phase};
use keelway_model::Timestamp;

pub fn ls(context: &Context, place: &Place, all: bool) -> Result<(), CommandError> {
    let now = settings::clock(&context.machine).now();
    let mut found = Vec::new();
    for entry in place.containers.list()? {
        let look = entry.look().map_err(CommandError::outside)?;
        if all || matches!(look.phase, Phase::Running | Phase::Restarting) {
            found.push((entry, look));
        }
    }
    let text: String = match (context.global.format, context.global.quiet) {
        (Format::Json, _) => found.iter().map(|(e, l)| format!("{}\n", json(e, l, now))).collect(),
        (Format::Text, true) => found.iter().map(|(e, _)| format!("{}\n", e.record.id.short())).collect(),
        (Format::Text, false) => {
            let rows: Vec<[String; 7]> = found.iter().map(|(e, l)| row(e, l, now)).collect();
            let head = ["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"];
            render::table(head, &rows, 3)
        }
    };
    context.print(&text)
}

fn ports(entry: &Entry) -> String {
    let ports: Vec<String> = entry.record.asked.publish.iter().map(ToString::to_string).collect();
    ports.join(", ")
}

fn row(entry: &Entry, look: &Look, now: Timestamp) -> [String; 7] {
    let r = &entry.record;
    let ports = if look.phase == Phase::Running { ports(entry) } else { String::new() };
    [
        r.id.short().to_owned(),
        r.image.clone(),
        words::command(&r.argv),
        format!("{} ago", words::span(r.created, now)),
        words::status(look, now),
        ports,
        r.name.to_string(),
    ]
}

fn json(entry: &Entry, look: &Look, now: Timestamp) -> serde_json::Value {
    let r = &entry.record;
    let labels: Vec<String> = r.asked.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    serde_json::json!({
        "ID": r.id.short(), "Image": r.image, "Command": words::command(&r.argv), "CreatedAt": r.created.to_string(),
        "RunningFor": format!("{} ago", words::span(r.created, now)), "State": words::phase(look.phase),
        "Status": words::status(look, now), "Ports": ports(entry), "Names": r.name, "Labels": labels.join(","),
    })
}
