//! What people and programs see: events of a run and diagnostics, in the form that was asked for.
//!
//! Four forms of events, each an `EventSink`: live lines on a terminal, plain lines with the time in a pipe, one JSON
//! object a line for programs, one line at the end for `--quiet`. Text goes to standard error, JSON to standard output.
//! Whatever a build step, a repository or a registry wrote goes through [`clean`] first, so that it cannot move the
//! cursor, set the clipboard or hide a line. Nothing here reads the environment: [`Style`] says what was decided.

mod clean;
mod diagnostics;
mod forms;
mod live;
mod story;
mod style;
mod table;
mod terminal;

#[cfg(test)]
mod tests;

pub use clean::{clean, clean_lines};
pub use diagnostics::{diagnostics, diagnostics_json};
pub use live::above;
pub use story::short;
pub use style::Style;
pub use table::table;

use crate::render::story::Story;
use crate::render::style::{Form, Paint};
use keelway_model::EventSink;
use std::io;

/// Whether the ledger keeps a run, so that its whole log can be read later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    /// `keelway runs logs` has it.
    Kept,
    /// What is not shown now is gone.
    Nowhere,
}

/// Where the events of a run go to be seen.
pub fn events(style: &Style, record: Record) -> Box<dyn EventSink> {
    let story = Story::new(style.clone(), record);
    match style.form() {
        Form::Live => Box::new(live::Live::on_stderr(story, style)),
        Form::Plain => Box::new(forms::Plain::new(io::stderr(), story, style.clone())),
        Form::Quiet => Box::new(forms::Quiet::new(io::stderr(), story)),
        Form::Json => Box::new(forms::Json::new(io::stdout())),
    }
}

/// A command's failure: `error: what failed`, with what follows the first line left as it is.
pub fn error(message: &str, style: &Style) -> String {
    format!("{} {}", style.paint(Paint::Red, "error:"), clean_lines(message).trim_end())
}
