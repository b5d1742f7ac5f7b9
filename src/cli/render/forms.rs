//! The forms that only ever add: plain lines, JSON lines, one line at the end.

use crate::render::story::{Said, Story};
use crate::render::style::{Paint, Style};
use keelway_model::{EventKind, EventSink, RunEvent, SinkError};
use std::io::{self, Write};

/// Writes, and takes a reader that went away (`| head`) for somebody who has seen enough: the run goes on.
struct Out<W> {
    to: W,
    gone: bool,
}

impl<W: Write> Out<W> {
    fn new(to: W) -> Self {
        Self { to, gone: false }
    }
    fn write(&mut self, text: &str) -> Result<(), SinkError> {
        if self.gone || text.is_empty() {
            return Ok(());
        }
        match self.to.write_all(text.as_bytes()).and_then(|()| self.to.flush()) {
            // A terminal that went away reads as an error of input and output.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe || e.raw_os_error() == Some(5) => {
                self.gone = true;
                Ok(())
            }
            Err(e) => {
                Err(SinkError { message: format!("cannot write what happens: {e}; is the disk full?") })
            }
            Ok(()) => Ok(()),
        }
    }
}

/// A line an event, with the time.
pub(super) struct Plain<W> {
    out: Out<W>,
    story: Story,
    style: Style,
}

impl<W: Write> Plain<W> {
    pub fn new(to: W, story: Story, style: Style) -> Self {
        Self { out: Out::new(to), story, style }
    }
}

impl<W: Write + Send> EventSink for Plain<W> {
    fn events(&mut self, batch: &[RunEvent]) -> Result<(), SinkError> {
        let mut text = String::new();
        for event in batch {
            let at = keelway_model::Timestamp::from_seconds(event.at.seconds()).to_string();
            let time = self.style.paint(Paint::Dim, at.get(11..19).unwrap_or(&at));
            for said in self.story.tell(event) {
                match said {
                    Said::Line(line) if line.is_empty() => text.push('\n'),
                    Said::Line(line) | Said::Begins(line) => text.push_str(&format!("{time} {line}\n")),
                    Said::Output { label, text: line } => {
                        text.push_str(&format!("{time}   {label} | {line}\n"))
                    }
                    Said::Passing => {}
                }
            }
        }
        self.out.write(&text)
    }
}

/// An object a line: the event itself.
pub(super) struct Json<W>(Out<W>);

impl<W: Write> Json<W> {
    pub fn new(to: W) -> Self {
        Self(Out::new(to))
    }
}

impl<W: Write + Send> EventSink for Json<W> {
    fn events(&mut self, batch: &[RunEvent]) -> Result<(), SinkError> {
        let mut text = String::new();
        for event in batch {
            let line = serde_json::to_string(event).map_err(|e| SinkError {
                message: format!("an event cannot be written as JSON: {e}; this is a bug in Keelway"),
            })?;
            text.push_str(&line);
            text.push('\n');
        }
        self.0.write(&text)
    }
}

/// One line at the end; of a failure its cause, and where there is more.
pub(super) struct Quiet<W> {
    out: Out<W>,
    story: Story,
}

impl<W: Write> Quiet<W> {
    pub fn new(to: W, story: Story) -> Self {
        Self { out: Out::new(to), story }
    }
}

impl<W: Write + Send> EventSink for Quiet<W> {
    fn events(&mut self, batch: &[RunEvent]) -> Result<(), SinkError> {
        for event in batch {
            self.story.tell(event);
            if let EventKind::RunFinished { outcome, millis, .. } = &event.kind {
                let line = self.story.end(outcome, *millis);
                self.out.write(&format!("{line}\n"))?;
                for line in self.story.cause() {
                    self.out.write(&format!("{line}\n"))?;
                }
            }
        }
        Ok(())
    }
}
