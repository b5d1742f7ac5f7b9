//! A supervised container: root file system, health, logs, restart, network.
