//! `keelway plan`, `keelway lint`, `keelway explain`.

use super::Context;
use super::run::{pinned, wanted};
use crate::args::{Format, Names, Place, Source};
use crate::outcome::CommandError;
use crate::{render, settings};
use keelway_model::ExitCode;
use keelway_pipeline::Event;
use keelway_runner::RunnerError;
use keelway_runner::run::{lint as linted, prepare};
use keelway_runner::source::pin;
use keelway_runner::watch;

/// What would run, and why.
pub async fn plan(
    context: &Context,
    stages: &[String],
    source: &Source,
    names: &Names,
) -> Result<(), CommandError> {
    let settings = settings::settings(&context.global, names, &context.machine)?;
    let selection = watch::stage_names(stages)?;
    let pinned = pinned(context, &settings, source).await?;
    if !pinned.dirty {
        context.say(&format!("the plan of {}", pinned.searched));
    }
    let prepared = prepare(&settings, pinned, Event::Manual, selection).await?;
    match context.global.format {
        Format::Text => context.print(&keelway_pipeline::render(&prepared.plan)),
        Format::Json => context.print_json(&prepared.plan),
    }
}

/// Every problem of the definition.
pub async fn lint(context: &Context, place: &Place) -> Result<(), CommandError> {
    let settings = settings::settings(&context.global, &Names::default(), &context.machine)?;
    let source = Source { place: place.clone(), dirty: place.repo.is_none() };
    let pinned = pin(&settings, wanted(&source)?, &context.cancel.token()).await?;
    let searched = pinned.searched.clone();
    let found = match linted(&settings, pinned).await {
        Ok(found) | Err(RunnerError::Definition(found)) => found,
        Err(e) => return Err(e.into()),
    };
    let errors = found.has_errors();
    match context.global.format {
        Format::Json => context.print(&render::diagnostics_json(&found))?,
        Format::Text if errors => return Err(CommandError::Definition(found)),
        Format::Text => context.print(&render::diagnostics(&found, &context.style))?,
    }
    if errors {
        return Err(CommandError::Ended(ExitCode::Usage));
    }
    context.say(&format!("no errors in {searched}"));
    Ok(())
}

/// What a code means.
pub fn explain(context: &Context, code: &str) -> Result<(), CommandError> {
    match keelway_pipeline::explain(code).or_else(|| keelway_dockerfile::explain(code)) {
        Some(text) if context.global.format == Format::Json => {
            context.print_json(&serde_json::json!({"code": code, "text": text.trim_end()}))
        }
        Some(text) => context.print(&format!("{}\n", text.trim_end())),
        None => Err(CommandError::usage(format!(
            "{code:?} is no code of a diagnostic; it stands in brackets, for example error[K0102]"
        ))),
    }
}
