//! `keelway deploy status|rollback`.

use super::Context;
use super::run::pinned;
use crate::args::{DeployVerb, Format, Source};
use crate::outcome::CommandError;
use crate::{render, settings};
use keelway_deploy::apply::DeployEvent;
use keelway_model::ExitCode;
use keelway_runner::deploy::{Place, end_as_failure};
use keelway_runner::record::rollback;
use keelway_runner::run::open_ledger;
use std::io::Write;

/// What runs on a target's hosts.
pub async fn deploy(context: &Context, verb: DeployVerb) -> Result<(), CommandError> {
    let (target, source, names): (_, Source, _) = match &verb {
        DeployVerb::Status { target, place, names } => (target, place.into(), names),
        DeployVerb::Rollback { target, source, names, .. } => (target, source.clone(), names),
    };
    if source.dirty && matches!(verb, DeployVerb::Rollback { .. }) {
        return Err(CommandError::usage(
            "deploy rollback --dirty: a tree with changes that are in no commit decides nothing about hosts; leave --dirty out",
        ));
    }
    let settings = settings::settings(&context.global, names, &context.machine)?;
    let pinned = pinned(context, &settings, &source).await?;
    let definition = keelway_pipeline::load(&*pinned.subject.tree, keelway_pipeline::FILE_NAME)
        .map_err(CommandError::Definition)?;
    let place = Place::open(&settings, &definition, target).await?;
    match &verb {
        DeployVerb::Status { .. } => status(context, &place).await,
        DeployVerb::Rollback { app, .. } => {
            let app = place.app(app.as_deref())?;
            let quiet = context.global.quiet;
            let emit = move |event: DeployEvent| {
                if !quiet {
                    let _ = writeln!(std::io::stderr(), "{}", render::clean(&event.text()));
                }
            };
            let ledger = open_ledger(&settings, &|text| context.say(text))?;
            let cancel = context.cancel.token();
            let (end, run) = rollback(&place, &settings, ledger, &pinned, &app, &emit, &cancel).await?;
            if context.global.format == Format::Json {
                context.print_json(&serde_json::json!({
                    "target": target, "app": app, "run": run, "exit": end.exit.code(), "summary": end.summary,
                    "reasons": end.reasons, "log": end.log, "changed": end.changed, "cut": end.cut, "hosts": end.hosts,
                }))?;
            }
            match end.exit {
                ExitCode::Done if context.global.format == Format::Json => Ok(()),
                ExitCode::Done => context.print(&format!("{}\n", render::clean(&end.summary))),
                _ => Err(end_as_failure(&format!("rollback of {app} on {target}"), &end).into()),
            }
        }
    }
}

async fn status(context: &Context, place: &Place) -> Result<(), CommandError> {
    let hosts = place.status().await;
    match context.global.format {
        Format::Text => context.print(&keelway_deploy::status::render(&hosts))?,
        Format::Json => {
            for host in &hosts {
                context.print_json(host)?;
            }
        }
    }
    let away: Vec<String> = hosts.iter().filter_map(|h| h.unreachable.clone()).collect();
    if away.is_empty() { Ok(()) } else { Err(CommandError::outside(away.join("\n"))) }
}
