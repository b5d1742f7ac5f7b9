//! `keelway deploy status|rollback`.

use super::Context;
use super::run::pinned;
use crate::args::{DeployVerb, Format};
use crate::outcome::CommandError;
use crate::{render, settings};
use keelway_deploy::apply::DeployEvent;
use keelway_model::ExitCode;
use keelway_runner::deploy::{Place, end_as_failure};
use std::io::Write;

/// What runs on a target's hosts.
pub async fn deploy(context: &Context, verb: DeployVerb) -> Result<(), CommandError> {
    let (target, source, names) = match &verb {
        DeployVerb::Status { target, source, names } | DeployVerb::Rollback { target, source, names, .. } => {
            (target, source, names)
        }
    };
    let settings = settings::settings(&context.global, names, &context.machine)?;
    let pinned = pinned(context, &settings, source).await?;
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
            let end = place.rollback(&settings, &app, &emit, &context.cancel.token()).await?;
            if end.exit == ExitCode::Done {
                context.print(&format!("{}\n", render::clean(&end.summary)))
            } else {
                Err(end_as_failure(&format!("rollback of {app} on {target}"), &end).into())
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
                let line = serde_json::to_string(host).map_err(CommandError::outside)?;
                context.print(&format!("{line}\n"))?;
            }
        }
    }
    let away: Vec<String> = hosts.iter().filter_map(|h| h.unreachable.clone()).collect();
    if away.is_empty() { Ok(()) } else { Err(CommandError::outside(away.join("\n"))) }
}
