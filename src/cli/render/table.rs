//! Rows in columns.

use super::clean;
use std::fmt::Write as _;

/// A head and rows, each column as wide as its widest cell, `gap` blanks between them.
pub fn table<const N: usize>(head: [&str; N], rows: &[[String; N]], gap: usize) -> String {
    let cleaned: Vec<[String; N]> = rows.iter().map(|row| row.each_ref().map(|cell| clean(cell))).collect();
    let mut widths = head.map(str::len);
    for row in &cleaned {
        for (w, cell) in widths.iter_mut().zip(row) {
            *w = (*w).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    let mut line = |cells: [&str; N]| {
        let mut text = String::new();
        for (cell, width) in cells.iter().zip(widths) {
            let _ = write!(text, "{cell:width$}{:gap$}", "");
        }
        out.push_str(text.trim_end());
        out.push('\n');
    };
    line(head);
    for row in &cleaned {
        line(row.each_ref().map(String::as_str));
    }
    out
}
