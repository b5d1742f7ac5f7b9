//! `keelway plan`, `keelway lint`, `keelway explain`.

use super::Context;
use super::run::pinned;
use crate::args::{Format, Names, Source};
use crate::outcome::CommandError;
use crate::{render, settings};
use keelway_model::{Diagnostics, ExitCode};
use keelway_pipeline::Event;
use keelway_runner::RunnerError;
use keelway_runner::run::prepare;
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
    let prepared = prepare(&settings, pinned, Event::Manual, selection).await?;
    match context.global.format {
        Format::Text => context.print(&keelway_pipeline::render(&prepared.plan)),
        Format::Json => context.print_json(&prepared.plan),
    }
}

/// Every problem of the definition.
pub async fn lint(context: &Context, source: &Source) -> Result<(), CommandError> {
    let settings = settings::settings(&context.global, &Names::default(), &context.machine)?;
    let pinned = pinned(context, &settings, source).await?;
    let prepared = prepare(&settings, pinned, Event::Manual, keelway_pipeline::Selection::default()).await;
    if context.global.format == Format::Json {
        return match prepared {
            Ok(prepared) => diagnostics_json(context, &prepared.warnings),
            Err(RunnerError::Definition(found)) => {
                diagnostics_json(context, &found)?;
                Err(CommandError::Ended(ExitCode::Usage))
            }
            Err(e) => Err(e.into()),
        };
    }
    let prepared = prepared?;
    if !prepared.warnings.items.is_empty() {
        context.print(&render::diagnostics(&prepared.warnings, &context.style))?;
    }
    context.say("no errors");
    Ok(())
}

/// A diagnostic a line.
fn diagnostics_json(context: &Context, found: &Diagnostics) -> Result<(), CommandError> {
    found.items.iter().try_for_each(|diagnostic| context.print_json(diagnostic))
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
