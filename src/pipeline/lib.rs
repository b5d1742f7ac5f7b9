//! `keelway.yml` text to a checked [`Definition`] to a [`Plan`](keelway_model::Plan).
//!
//! The way of a file: [`yaml`] parses the text once into a tree of nodes that know their place, with bounds
//! on everything; [`schema`] walks that tree, collects every problem at once and builds a [`Definition`];
//! [`plan()`] turns a definition and a [`Trigger`] into a plan. Files are read only through a
//! [`Tree`] of a pinned source, and nothing here opens a path, reads the clock or prints.

mod check;
mod codes;
pub mod definition;
pub mod fuzz;
mod hints;
mod limits;
mod planner;
mod render;
pub mod schema;
mod stage;
pub mod trigger;
mod walk;
pub mod yaml;

pub use codes::{CODES, UNREADABLE, explain};
pub use definition::{Definition, Kind, On, RegistryRule, Stage, StageImage};
pub use planner::plan;
pub use render::render;
pub use trigger::{Event, Selection, Trigger, triggers};

use keelway_model::{Diagnostic, Diagnostics, SourceText, Span, Tree, TreePath};
use std::io::Read;

/// The name of the pipeline file at the root of a repository.
pub const FILE_NAME: &str = "keelway.yml";

/// Reads and checks the pipeline file at `path` of a tree.
///
/// A file that cannot be read is a diagnostic too (`K0001`), so that a caller has one kind of error to show.
pub fn load(tree: &dyn Tree, path: &str) -> Result<Definition, Diagnostics> {
    let unreadable = |what: String| {
        let mut found = Diagnostics::of(SourceText::new(path, ""));
        found.push(
            Diagnostic::error(codes::UNREADABLE, path, Span::default(), what)
                .hint(format!("commit a file named {FILE_NAME} at the root of the repository")),
        );
        found
    };
    let at =
        TreePath::clamped(path.as_bytes()).ok_or_else(|| unreadable("the file name holds a NUL".into()))?;
    let mut bytes = Vec::new();
    tree.open(&at)
        .map_err(|e| unreadable(e.to_string()))?
        .take(yaml::MAX_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| unreadable(format!("cannot read {path}: {e}")))?;
    parse_bytes(path, &bytes)
}

/// Checks the bytes of a pipeline file; `name` is how diagnostics call it.
pub fn parse_bytes(name: &str, bytes: &[u8]) -> Result<Definition, Diagnostics> {
    parse(yaml::decode(name, bytes)?)
}

/// Checks the text of a pipeline file.
///
/// # Errors
/// Every problem of the text, in the order of the file.
pub fn parse(source: SourceText) -> Result<Definition, Diagnostics> {
    let mut found = Diagnostics::of(source.clone());
    let root = yaml::parse(&source, &mut found);
    let definition = root.and_then(|root| schema::definition(&source, &root, &mut found));
    found.items.sort_by_key(|d| (d.span.start, d.span.end));
    match definition {
        Some(mut definition) if !found.has_errors() => {
            definition.warnings = found;
            Ok(definition)
        }
        _ => Err(found),
    }
}

#[cfg(test)]
mod cases;
