//! Drawing indicatif's live lines so that they survive a resize.
//!
//! indicatif fills each line with blanks up to the width and trusts that the terminal still has that width when it
//! draws again; after a resize the blanks fold into new rows and the old lines stay behind as litter. Here the lines
//! are written without the blanks, and before the next drawing the rows they take *now* are counted anew. Terminals that
//! fold lines (all common ones today) come out right; one that cuts them loses at most the rows it did not fold.

use indicatif::TermLike;
use std::fmt;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

/// A terminal that draws whole blocks: whatever is written between two flushes is one.
pub(super) struct Terminal {
    state: Mutex<State>,
    /// Rows and columns now.
    size: fn() -> (u16, u16),
}

struct State {
    to: Box<dyn Write + Send>,
    /// Columns of each line of the block on the screen; the cursor stands at the end of the last.
    drawn: Vec<usize>,
    /// What was written since the last flush: each line, then the blanks after it.
    written: Vec<String>,
}

impl fmt::Debug for Terminal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Terminal")
    }
}

impl Terminal {
    pub fn new(to: Box<dyn Write + Send>, size: fn() -> (u16, u16)) -> Self {
        Self { state: Mutex::new(State { to, drawn: Vec::new(), written: Vec::new() }), size }
    }
}

/// Columns of a line without its colours. A character of two columns counts as one: such a line takes no more rows than
/// counted unless it is cut at the very edge.
fn columns(line: &str) -> usize {
    super::clean(line).chars().count()
}

impl TermLike for Terminal {
    fn width(&self) -> u16 {
        (self.size)().1.max(1)
    }
    fn height(&self) -> u16 {
        (self.size)().0.max(1)
    }
    // indicatif's own way back to the top of the block; `flush` knows a better one.
    fn move_cursor_up(&self, _: usize) -> io::Result<()> {
        Ok(())
    }
    fn move_cursor_down(&self, _: usize) -> io::Result<()> {
        Ok(())
    }
    fn move_cursor_right(&self, _: usize) -> io::Result<()> {
        Ok(())
    }
    fn move_cursor_left(&self, _: usize) -> io::Result<()> {
        Ok(())
    }
    fn clear_line(&self) -> io::Result<()> {
        Ok(())
    }
    fn write_line(&self, line: &str) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.written.extend([line.to_owned(), String::new()]);
        Ok(())
    }
    fn write_str(&self, text: &str) -> io::Result<()> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).written.push(text.to_owned());
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        let width = usize::from(self.width());
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        let rows: usize = state.drawn.iter().map(|columns| columns.div_ceil(width).max(1)).sum();
        let mut text = String::new();
        if rows > 1 {
            text.push_str(&format!("\x1b[{}A", rows - 1));
        }
        if rows > 0 {
            text.push_str("\r\x1b[J");
        }
        let written = std::mem::take(&mut state.written);
        let lines: Vec<&str> = written.iter().step_by(2).map(|l| l.trim_end()).collect();
        text.push_str(&lines.join("\r\n"));
        state.drawn = lines.iter().map(|l| columns(l)).collect();
        state.to.write_all(text.as_bytes())?;
        state.to.flush()
    }
}
