//! Dockerfile text to typed instructions with spans; ignore patterns. Pure: no file is opened here.
//!
//! [`parse`] finds as many errors as it can at once. [`expand`](mod@expand) is the variable and quoting language of the
//! instructions, [`ignore`] the patterns of `.dockerignore`, [`glob`] Go's `filepath.Match`.

pub mod ast;
mod codes;
#[cfg(test)]
mod corpus_tests;
pub mod expand;
pub mod fuzz;
pub mod glob;
pub mod ignore;
mod lexer;
pub mod lint;
mod parser;
mod typed;
mod words;

pub use ast::{
    Argument, Command, Directive, Dockerfile, Health, Heredoc, Instruction, Kind, Mount, MountKind, Run,
    Stage, Transfer, Trigger, Word, Written,
};
pub use codes::{CODES, explain};
pub use expand::{Environment, ExpandError, Watched, expand, expand_heredoc, expand_words};
pub use glob::Glob;
pub use ignore::{Coverage, Ignore, IgnoreError, ignore_file_candidates};
pub use lexer::{MAX_ERRORS, MAX_FILE, MAX_INSTRUCTIONS, MAX_LINE, MAX_STAGES};
pub use lint::{Lint, Rule};
pub use parser::{parse, parse_all, parse_trigger};
pub use typed::nearest;

/// Whether the whole text opens one heredoc (`<<EOF`) and nothing else.
pub fn is_heredoc(text: &str) -> bool {
    words::heredoc(text.trim()).is_some()
}
