//! Recorded layouts, and limits written into directories that look like them.
