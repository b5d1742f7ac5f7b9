//! What this machine allows, what is missing, and the command that mends it.
//!
//! Facts are read, and then a sandbox is really started on the state directory's file system: what works is known
//! from having worked. Nothing is changed but a folder that goes with the check.

mod facts;
mod try_it;

pub use try_it::{TRY_ARGUMENT, try_it};

use crate::args::{Format, Global};
use crate::commands::Context;
use crate::machine::Machine;
use crate::outcome::CommandError;
use crate::settings;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::process::Command;

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// As it should be.
    Ok,
    /// Works, with less speed, fewer limits or thinner walls.
    Warning,
    /// Something that Keelway does does not work here.
    Missing,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at.
    pub check: String,
    /// How it is.
    pub health: Health,
    /// What was seen.
    pub seen: String,
    /// What mends it; empty when nothing is to be done.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mend: String,
}

impl Finding {
    fn ok(check: &str, seen: impl Into<String>) -> Self {
        Self { check: check.into(), health: Health::Ok, seen: seen.into(), mend: String::new() }
    }
    fn warning(check: &str, seen: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { check: check.into(), health: Health::Warning, seen: seen.into(), mend: mend.into() }
    }
    fn missing(check: &str, seen: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { check: check.into(), health: Health::Missing, seen: seen.into(), mend: mend.into() }
    }
}

/// `keelway doctor`.
pub fn doctor(context: &Context) -> Result<(), CommandError> {
    let state = settings::state_dir(&context.global, &context.machine)?;
    let mut found = facts::all(&context.machine, &state);
    found.extend(trial(&state));
    let ill = found.iter().filter(|f| f.health == Health::Missing).count();
    show(context, &context.global, &context.machine, &found)?;
    if ill == 0 {
        return Ok(());
    }
    Err(CommandError::outside(format!(
        "{ill} of {} checks say that something does not work here",
        found.len()
    )))
}

fn show(
    context: &Context,
    global: &Global,
    machine: &Machine,
    found: &[Finding],
) -> Result<(), CommandError> {
    if global.format == Format::Json {
        return found.iter().try_for_each(|f| context.print_json(f));
    }
    let who = if machine.root { "as root" } else { "as an ordinary user" };
    let mut text = format!("Keelway {} on this machine, {who}:\n\n", env!("CARGO_PKG_VERSION"));
    let width = found.iter().map(|f| f.check.len()).max().unwrap_or(0);
    for f in found {
        let word = match f.health {
            Health::Ok => "ok",
            Health::Warning => "warning",
            Health::Missing => "missing",
        };
        text.push_str(&format!("{word:<8} {:<width$}  {}\n", f.check, f.seen));
        for line in f.mend.lines() {
            text.push_str(&format!("{:<8} {:<width$}    {line}\n", "", ""));
        }
    }
    context.print(&text)
}

/// In a process of its own, since an ordinary user's has to enter a user namespace for it.
fn trial(state: &Path) -> Vec<Finding> {
    const CHECK: &str = "a sandbox";
    let output = std::env::current_exe().and_then(|exe| {
        Command::new(exe).arg(TRY_ARGUMENT).arg(state).stdin(std::process::Stdio::null()).output()
    });
    let output = match output {
        Ok(output) => output,
        Err(e) => return vec![Finding::missing(CHECK, format!("this program cannot be started: {e}"), "")],
    };
    let found: Vec<Finding> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    if !found.is_empty() {
        return found;
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().trim_start_matches("keelway: ").to_owned();
    vec![Finding::missing(CHECK, if said.is_empty() { output.status.to_string() } else { said }, "")]
}
