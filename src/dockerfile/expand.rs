//! Expansion of `$variables` and quotes. (skeleton)

/// Where variables come from.
pub trait Environment {
    /// The value of a variable, `None` where it is not set.
    fn get(&self, name: &str) -> Option<&str>;
}
impl Environment for [(String, String)] {
    fn get(&self, name: &str) -> Option<&str> {
        self.iter().rev().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }
}
impl Environment for std::collections::BTreeMap<String, String> {
    fn get(&self, name: &str) -> Option<&str> {
        self.get(name).map(String::as_str)
    }
}

/// Why a word cannot be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ExpandError(pub String);

/// Expands one word: variables replaced, quotes and escapes taken off.
pub fn expand(word: &str, env: &(impl Environment + ?Sized), escape: char) -> Result<String, ExpandError> {
    let _ = (word, env.get(""), escape);
    todo!()
}
/// Expands and splits into words at unquoted white space.
pub fn expand_words(word: &str, env: &(impl Environment + ?Sized), escape: char) -> Result<Vec<String>, ExpandError> {
    let _ = (word, env.get(""), escape);
    todo!()
}
