//! A hermetic environment for one test: HOME, TMPDIR, store, a clean process environment, the binary.
