//! The crate as a whole: the file of the documentation, every kind of error at once, plans, bounds.

mod bounds;
mod messages;
mod plans;

use crate::Definition;
use keelway_model::SourceText;

pub(super) const SHOP: &str = include_str!("files/shop.yml");

pub(super) fn parse(text: &str) -> Result<Definition, keelway_model::Diagnostics> {
    crate::parse(SourceText::new("keelway.yml", text))
}

pub(super) fn ok(text: &str) -> Definition {
    parse(text).unwrap_or_else(|e| panic!("{e}"))
}

/// The codes of the errors of a text, in order.
pub(super) fn codes(text: &str) -> Vec<String> {
    parse(text).err().map(|e| e.items.into_iter().map(|d| d.code).collect()).unwrap_or_default()
}
