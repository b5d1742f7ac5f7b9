//! `keelway run`.

use super::Context;
use crate::args::{Names, Source};
use crate::outcome::CommandError;
use crate::{render, settings};
use keelway_pipeline::Event;
use keelway_runner::run::{execute, open_ledger, prepare, record};
use keelway_runner::source::{Pinned, Wanted, pin};
use keelway_runner::{Settings, Workspace, watch};

/// What the flags ask for.
pub fn wanted(source: &Source) -> Result<Wanted, CommandError> {
    match &source.place.repo {
        Some(url) => Ok(Wanted::Repository {
            url: settings::repo_url(url)?,
            reference: source.place.commit.clone().unwrap_or_else(|| "HEAD".into()),
        }),
        None => Ok(Wanted::Checkout {
            at: std::env::current_dir().map_err(CommandError::outside)?,
            dirty: source.dirty,
        }),
    }
}

/// Pins the source and says what a person should know about it.
pub async fn pinned(context: &Context, settings: &Settings, source: &Source) -> Result<Pinned, CommandError> {
    let mut settings = settings.clone();
    settings.git.ssh.config = settings::git_ssh_config(source.place.git_ssh_config.as_deref())?;
    let pinned = pin(&settings, wanted(source)?, &context.cancel.token()).await?;
    for remark in &pinned.remarks {
        context.say(remark);
    }
    Ok(pinned)
}

/// The pipeline of a source.
pub async fn run(
    context: &Context,
    stages: &[String],
    source: &Source,
    names: &Names,
) -> Result<(), CommandError> {
    let settings = settings::settings(&context.global, names, &context.machine)?;
    let selection = watch::stage_names(stages)?;
    let pinned = pinned(context, &settings, source).await?;
    let prepared = prepare(&settings, pinned, Event::Manual, selection).await?;
    context.warn(&prepared.warnings);
    let workspace = Workspace::open(&settings)?;
    let ledger = open_ledger(&settings, &|text| context.say(text))?;
    let run = record(&ledger, &prepared)?;
    let show = render::events(&context.style, render::Record::Kept);
    let report = execute(&settings, &workspace, &ledger, &run, prepared, show, context.cancel.token()).await;
    let done = report.map_err(CommandError::from).and_then(|report| CommandError::of_report(&report));
    super::store::tidy(context, &settings, &workspace.store).await;
    done
}
