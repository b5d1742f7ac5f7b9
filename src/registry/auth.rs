//! Authentication.
#[derive(Default)]
pub(crate) struct TokenCache;
