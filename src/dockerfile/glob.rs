//! Go's `filepath.Match`. (skeleton)
/// A malformed pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed pattern {0:?}")]
pub struct BadPattern(pub String);
/// Whether `name` matches `pattern` as a whole.
pub fn matches(pattern: &[u8], name: &[u8]) -> Result<bool, BadPattern> {
    let _ = (pattern, name);
    todo!()
}
