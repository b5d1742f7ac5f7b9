//! Fuzz entries. (skeleton)
