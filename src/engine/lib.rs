//! A Plan to events: one dispatcher, cache keys, timeouts, cancellation.
