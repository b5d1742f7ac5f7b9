//! git: a reference to a pinned commit to a tree.
