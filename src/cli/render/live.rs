//! The terminal: what is over scrolls up, below it one line for each node that runs.
//!
//! A live line is cut to the width of the terminal, never wrapped; [`Terminal`] keeps the block right after a resize.

use crate::render::clean;
use crate::render::story::{Said, Story, short};
use crate::render::style::Style;
use crate::render::terminal::Terminal;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use keelway_model::{EventKind, EventSink, NodeId, RunEvent, SinkError};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Redraws a second, at most.
const REDRAWS: u8 = 15;

/// The live lines of this process, for what is said beside them.
static LIVE: Mutex<Option<MultiProgress>> = Mutex::new(None);

/// Says a line on standard error, above live lines where there are any.
pub fn above(text: &str) {
    use io::Write;
    let say = || {
        let _ = writeln!(io::stderr(), "{}", clean(text));
    };
    match &*LIVE.lock().unwrap_or_else(PoisonError::into_inner) {
        Some(all) => all.suspend(say),
        None => say(),
    }
}

/// The live form.
pub(super) struct Live {
    all: MultiProgress,
    out: Box<dyn io::Write + Send>,
    /// Rows and columns now.
    size: fn() -> (u16, u16),
    lines: BTreeMap<Vec<NodeId>, ProgressBar>,
    story: Story,
    template: ProgressStyle,
}

impl Live {
    pub fn on_stderr(story: Story, style: &Style) -> Self {
        let size = || console::Term::stderr().size();
        let terminal = Terminal::new(Box::new(io::stderr()), size);
        let live = Self::on(terminal, Box::new(io::stderr()), size, story, style);
        *LIVE.lock().unwrap_or_else(PoisonError::into_inner) = Some(live.all.clone());
        live
    }

    /// `terminal` draws the live lines, `out` writes to the same terminal.
    pub fn on(
        terminal: Terminal,
        out: Box<dyn io::Write + Send>,
        size: fn() -> (u16, u16),
        story: Story,
        style: &Style,
    ) -> Self {
        let target = ProgressDrawTarget::term_like_with_hz(Box::new(terminal), REDRAWS);
        let all = MultiProgress::with_draw_target(target);
        Self { all, out, size, lines: BTreeMap::new(), story, template: template(style) }
    }

    /// Writes lines above the live ones. Not by indicatif's `println`, which fills lines up to the width with blanks: the
    /// next resize would fold every one of them.
    fn say(&mut self, lines: &[String]) -> Result<(), SinkError> {
        let Self { all, out, .. } = self;
        let text: String = lines.iter().map(|l| format!("{l}\n")).collect();
        match all.suspend(|| out.write_all(text.as_bytes()).and_then(|()| out.flush())) {
            // A terminal that went away reads as an error of input and output.
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe && e.raw_os_error() != Some(5) => {
                Err(SinkError { message: format!("cannot write to the terminal: {e}") })
            }
            _ => Ok(()),
        }
    }

    /// Adds, changes or removes the line of the node an event is about.
    fn draw(&mut self, event: &RunEvent) {
        if matches!(event.kind, EventKind::Finished { .. }) {
            if let Some(line) = self.lines.remove(&event.node) {
                line.finish_and_clear();
                self.all.remove(&line);
            }
            return;
        }
        let Some(node) = self.story.nodes.get(&event.node) else { return };
        let shown = matches!(event.kind, EventKind::Started { .. } | EventKind::Waiting { .. });
        if shown && !self.lines.contains_key(&event.node) {
            // In order of the plan, a build's steps beneath their stage.
            let place = self.lines.range(..event.node.clone()).count();
            let line = self.all.insert(place, ProgressBar::new_spinner());
            line.set_style(self.template.clone());
            line.enable_steady_tick(Duration::from_millis(120));
            self.lines.insert(event.node.clone(), line);
        }
        if let Some(line) = self.lines.get(&event.node) {
            let indent = "  ".repeat(event.node.len().saturating_sub(1));
            let room = usize::from((self.size)().1).saturating_sub(BEFORE + indent.len());
            line.set_message(format!("{indent}{}", within(&node.label, &node.now, room)));
        }
    }
}

/// Columns of a live line before its text: spinner, time, spaces.
const BEFORE: usize = 8;

/// Name and last output of a node in so many columns: a long name gives way, down to what tells it from others, so that
/// the output can be seen.
fn within(label: &str, now: &str, room: usize) -> String {
    if now.is_empty() {
        return label.to_owned();
    }
    let (wide, last) = (label.chars().count(), now.chars().count());
    let least = short(label).chars().count().min(room / 2);
    let most = room.saturating_sub(last + 3).max(room / 2).max(least);
    if wide <= most {
        return format!("{label} | {now}");
    }
    let cut: String = label.chars().take(most.saturating_sub(2).max(least)).collect();
    format!("{}.. | {now}", cut.trim_end())
}

fn template(style: &Style) -> ProgressStyle {
    let text = if style.color() {
        "{spinner:.cyan} {elapsed:>4.dim} {wide_msg}"
    } else {
        "{spinner} {elapsed:>4} {wide_msg}"
    };
    ProgressStyle::with_template(text).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

impl EventSink for Live {
    fn events(&mut self, batch: &[RunEvent]) -> Result<(), SinkError> {
        for event in batch {
            let said = self.story.tell(event);
            self.draw(event);
            if matches!(event.kind, EventKind::RunFinished { .. }) {
                // Nothing runs any more, and nothing may draw over the last lines.
                for line in std::mem::take(&mut self.lines).into_values() {
                    line.finish_and_clear();
                }
            }
            let line = |said| match said {
                Said::Line(line) => Some(line),
                // These are live lines, or the last words of one.
                Said::Begins(_) | Said::Output { .. } | Said::Passing => None,
            };
            let lines: Vec<String> = said.into_iter().filter_map(line).collect();
            if !lines.is_empty() {
                self.say(&lines)?;
            }
        }
        Ok(())
    }
}
