//! Rooted paths by descriptor, write-then-publish, locks, lazy deletion, append-only logs.
