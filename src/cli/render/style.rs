//! What was decided about how to say things: form and colour.

use crate::args::{Colour, Format, Global};
use crate::build_args::Progress;
use crate::machine::Machine;
use std::io::IsTerminal;
use std::path::PathBuf;

/// How events are said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Lines that change while nodes run: a terminal.
    Live,
    /// A line an event, with the time: a pipe or a file.
    Plain,
    /// An object a line.
    Json,
    /// One line at the end.
    Quiet,
}

/// How to say things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Style {
    form: Form,
    color: bool,
    /// The state directory, where the command line named it: commands to copy must name it, too.
    state: Option<PathBuf>,
}

/// A colour with a meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Paint {
    /// Failed.
    Red,
    /// Done.
    Green,
    /// Worth knowing.
    Yellow,
    /// From the cache, under way.
    Cyan,
    /// Beside the point.
    Dim,
    /// Nothing special.
    Plain,
}

impl Style {
    /// From flags, environment, and whether standard error is a terminal. `--color` beats `NO_COLOR`.
    pub fn new(global: &Global, machine: &Machine) -> Self {
        let terminal = std::io::stderr().is_terminal() && !machine.dumb_terminal;
        let color = match global.color {
            Colour::Always => true,
            Colour::Never => false,
            Colour::Auto => terminal && !machine.no_color,
        };
        let form = match (global.format, global.quiet, terminal) {
            (Format::Json, _, _) => Form::Json,
            (Format::Text, true, _) => Form::Quiet,
            (Format::Text, false, true) => Form::Live,
            (Format::Text, false, false) => Form::Plain,
        };
        Self { form, color, state: global.state.clone() }
    }
    /// The same with the form that `--progress` asks for; JSON and `--quiet` stay what they are.
    #[must_use]
    pub fn in_progress(mut self, progress: Progress) -> Self {
        self.form = match (self.form, progress) {
            (form @ (Form::Json | Form::Quiet), _) | (form, Progress::Auto) => form,
            (_, Progress::Plain) => Form::Plain,
            (_, Progress::Tty) => Form::Live,
            (_, Progress::Quiet) => Form::Quiet,
        };
        self
    }
    /// Colours or not, in the plain form.
    #[cfg(test)]
    pub(super) const fn plain(color: bool) -> Self {
        Self { form: Form::Plain, color, state: None }
    }
    /// The same with a state directory of its own.
    #[cfg(test)]
    pub(super) fn with_state(self, dir: &str) -> Self {
        Self { state: Some(dir.into()), ..self }
    }
    /// A command of ours that can be copied and run.
    pub fn command(&self, words: &str) -> String {
        let Some(dir) = &self.state else { return format!("keelway {words}") };
        let dir = dir.display().to_string();
        let plain = |c: char| c.is_alphanumeric() || matches!(c, '/' | '.' | '-' | '_' | '+' | ':' | '@');
        match dir.chars().all(plain) && !dir.is_empty() {
            true => format!("keelway --state {dir} {words}"),
            false => format!("keelway --state '{}' {words}", dir.replace('\'', "'\\''")),
        }
    }
    pub(super) const fn form(&self) -> Form {
        self.form
    }
    /// Whether to use colour.
    pub(super) const fn color(&self) -> bool {
        self.color
    }
    /// Text in a colour, where colours are used.
    pub(super) fn paint(&self, paint: Paint, text: &str) -> String {
        let code = match paint {
            Paint::Red => "31;1",
            Paint::Green => "32",
            Paint::Yellow => "33",
            Paint::Cyan => "36",
            Paint::Dim => "2",
            Paint::Plain => return text.to_owned(),
        };
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}
