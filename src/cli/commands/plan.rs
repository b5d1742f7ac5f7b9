//! `keelway plan`, `keelway lint`, `keelway explain`.

use super::run::{pinned, wanted};
use super::{Context, build_context, image};
use crate::args::{Format, LintArgs, Names, Source};
use crate::outcome::CommandError;
use crate::{render, settings};
use keelway_model::plan::Network;
use keelway_pipeline::Event;
use keelway_runner::RunnerError;
use keelway_runner::run::{lint as linted, lint_dockerfile, prepare};
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

/// Every problem of the definition, or of one Dockerfile.
pub async fn lint(context: &Context, args: LintArgs) -> Result<(), CommandError> {
    let settings = settings::settings(&context.global, &Names::default(), &context.machine)?;
    let of_a_build = args.file.is_some() || args.target.is_some() || !args.build_arg.is_empty();
    let (found, searched) = if args.dir.is_some() || of_a_build {
        let dir = args.dir.unwrap_or_else(|| ".".into());
        let from = build_context::local(&dir, args.file.as_deref())?;
        let searched = args.file.unwrap_or_else(|| dir.join(&from.file)).display().to_string();
        let given = image::build_args(&args.build_arg)?;
        let single = image::single(from, args.target, given, Network::Private);
        (lint_dockerfile(&settings, single).await, searched)
    } else {
        let source = Source { dirty: args.place.repo.is_none(), place: args.place };
        let pinned = pin(&settings, wanted(&source)?, &context.cancel.token()).await?;
        let searched = pinned.searched.clone();
        (linted(&settings, pinned).await, searched)
    };
    let found = match found {
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
        return Err(CommandError::Ended(found.exit()));
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
            "{code:?} is no code of a diagnostic and no lint rule; it stands in brackets, for example error[K0102]"
        ))),
    }
}
