//! One isolated process: a [`Spec`] in, an [`Exit`] out.
//!
//! Three processes take part. The **owner** ([`Launcher`], a part of Keelway with many threads) never
//! forks: it spawns a sealed copy of its own binary as the **supervisor** and hands it the spec over a
//! control socket. The supervisor stays outside the sandbox: it makes the cgroups, clones **PID 1** into
//! new namespaces, relays signals and the end, and removes what is left. PID 1 builds the root, drops
//! every power, forks the main process, reaps orphans and ends with the main process, which ends
//! everything else in the pid namespace.
//!
//! Who dies with whom: the supervisor reads the end of the control socket when its owner dies (no
//! parent-death signal there: that fires when a pool thread ends) and kills PID 1. PID 1 has one parent with
//! one thread, so there a parent-death signal is right; it also reads the end of its own socket. The pid
//! namespace dies with PID 1. What a dead owner left in the cgroup tree is removed by [`cgroup::reap`].
//!
//! This is the only crate with unsafe code, all of it in `sys`.

pub mod archive;
mod binary;
mod bundle;
mod caps;
pub mod cgroup;
mod config;
mod descriptors;
mod end;
mod error;
mod executed;
mod gate;
mod ids;
mod init;
mod launcher;
mod openat2;
mod probe;
mod proto;
mod root;
pub mod rootless;
mod running;
mod seccomp;
mod spec;
mod sys;

pub use bundle::{BundleError, oci_config};
pub use cgroup::{BoxName, ParentName};
pub use config::{Bundled, ConfigError, from_oci};
pub use descriptors::pass_on_nothing;
pub use end::{Exit, ExitKind, Limit, Usage};
pub use error::{Errno, ExecError, SetupError, SpawnError, WaitError};
pub use executed::{Executed, ExecutedHandle};
pub use gate::Gate;
pub use ids::IDS;
pub use init::init_main;
pub use launcher::{INIT_ARGUMENT, Ids, Launcher, LauncherConfig, OverlayApi, Stdio};
pub use probe::{Finding, Probe, ProbeFailure, probe};
pub use running::{Handle, Running};
pub use spec::{
    Access, CapError, CapProfile, CapSet, DEFAULT_PATH, ExecSpec, MAX_LOWERS, Mount, MountKind, Network,
    Resource, Rlimit, RootFs, Spec, SpecError, User, Window, Work,
};

/// For fuzzers: parsers of foreign bytes. None may panic.
pub mod fuzz {
    /// Frames of the control socket.
    pub fn fuzz_frame(data: &[u8]) {
        crate::proto::fuzz_frame(data);
    }
    /// The first bytes of a program that cannot be executed.
    pub fn fuzz_interpreter(data: &[u8]) {
        let _ = crate::init::interpreter(data);
    }
    /// A bundle's `config.json`.
    pub fn fuzz_oci_config(data: &[u8]) {
        if let Ok(config) = serde_json::from_slice(data) {
            let _ = crate::from_oci(&config, std::path::Path::new("/bundle"), "one");
        }
    }
    /// Mount tables.
    pub fn fuzz_mountinfo(data: &[u8]) {
        let _ = crate::cgroup::Layout::from_mountinfo(data, |_| String::new());
    }
}

#[cfg(test)]
mod tests {
    use crate::fuzz;
    use proptest::prelude::*;

    /// Bytes that begin like the real thing, with a piece replaced.
    fn mutated(seed: &[u8], at: usize, with: &[u8]) -> Vec<u8> {
        let mut data = seed.to_vec();
        let at = at % (data.len() + 1);
        let end = (at + with.len()).min(data.len());
        data.splice(at..end, with.iter().copied());
        data
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn no_parser_panics(noise in proptest::collection::vec(any::<u8>(), 0..300), at: usize) {
            let program = std::fs::read("/bin/ls").unwrap();
            let frame = [&[4, 30, 0, 0, 0][..], br#"{"Failed":{"exec":{"denied":{}"#].concat();
            let table = std::fs::read("/proc/self/mountinfo").unwrap();
            let config = br#"{"ociVersion":"1.0.2","root":{"path":"r"},"process":{"args":["a"],"env":["A=b"],"cwd":"/"},"linux":{"namespaces":[{"type":"pid"}]}}"#;
            for seed in [&program[..1024], b"#!/bin/sh -e\n", &frame, &table, config, b""] {
                let data = mutated(seed, at, &noise);
                fuzz::fuzz_frame(&data);
                fuzz::fuzz_interpreter(&data);
                fuzz::fuzz_mountinfo(&data);
                fuzz::fuzz_oci_config(&data);
            }
        }
    }
}
