//! Base images made from Debian's packages: busybox, a Debian with an interpreter.
