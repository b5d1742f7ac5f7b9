//! The durable record of runs: attempts, events, logs.
