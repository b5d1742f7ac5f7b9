//! A commit's files written out.
