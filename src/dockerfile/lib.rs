//! Dockerfile text to typed instructions with spans; ignore patterns. Pure.
