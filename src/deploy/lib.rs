//! Targets, releases, the rollout state machine and its journal, the host protocol, the ssh transport.
