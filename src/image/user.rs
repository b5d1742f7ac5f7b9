//! `USER` names to numbers, by the image's own /etc/passwd and /etc/group. (skeleton)
use keelway_model::plan::UserSpec;
use keelway_store::View;

/// A user in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups, sorted, without `gid`.
    pub groups: Vec<u32>,
    /// Home directory by /etc/passwd: the HOME of a process whose environment has none.
    pub home: Option<String>,
}
/// Why a user cannot be resolved.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UserError(String);
/// Resolves a user specification in the root file system; an empty one is root.
pub fn resolve(view: &View, spec: &UserSpec) -> Result<User, UserError> {
    let _ = (view, spec);
    todo!()
}
