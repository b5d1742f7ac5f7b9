//! `.dockerignore`. (skeleton)
/// Compiled patterns.
#[derive(Debug, Clone, Default)]
pub struct Ignore {}
/// Why a pattern file is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct IgnoreError(pub String);
impl Ignore {
    /// Parses the text of an ignore file.
    pub fn parse(text: &[u8]) -> Result<Self, IgnoreError> {
        let _ = text;
        todo!()
    }
    /// Whether a path (relative, normalised) is left out.
    pub fn excludes(&self, path: &[u8]) -> bool {
        let _ = path;
        todo!()
    }
}
/// Where the ignore file of a Dockerfile is looked for, first hit wins: `<Dockerfile>.dockerignore`, `.dockerignore`.
/// Both relative to the context.
pub fn ignore_file_candidates(dockerfile: &str) -> [String; 2] {
    [format!("{dockerfile}.dockerignore"), ".dockerignore".to_owned()]
}
