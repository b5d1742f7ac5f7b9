//! What runs on a target host: `__host` at the far end of ssh, the supervisor, a keeper for each replica,
//! a balancer for each app, fencing.
//!
//! Four kinds of process, each of which may be killed at any moment without taking another with it:
//! - `__host` ([`serve`]) lives as long as one ssh session; it hands every request on to the supervisor,
//!   which it starts when there is none;
//! - the supervisor ([`supervise`]), one a host, holds what shall be (on disk, synced), sees that it is,
//!   and answers; when it comes back it finds the others by their locks and sockets;
//! - a keeper ([`supervise`] with `--replica`) owns the sandbox of one replica, which dies with it;
//! - a balancer ([`balancer`]) owns the listening socket of one app.
//!
//! This crate never prints, exits or reads the environment: `cli` gives it arguments and streams.

pub mod balancer;
pub mod boot;
mod keeper;
mod needs;
mod network;
mod process;
mod record;
pub mod settings;
pub mod supervise;

mod serve;

use keelway_container::{files, wire};

pub use needs::{NeedsError, needed_images};
pub use serve::{ServeError, serve};
pub use settings::{
    ArgsError, BalancerSettings, HostSettings, NetworkSettings, Patience, Settings, SuperviseSettings,
};

/// For fuzzers: parsers of bytes that others wrote. None may panic.
pub mod fuzz {
    /// A balancer's pool file.
    pub fn fuzz_pool_file(data: &[u8]) {
        let _ = crate::balancer::control::parse_pool(data);
    }
    /// Arguments of the hidden verbs, separated by NUL bytes.
    pub fn fuzz_arguments(data: &[u8]) {
        use std::os::unix::ffi::OsStrExt;
        let args: Vec<_> =
            data.split(|b| *b == 0).map(|a| std::ffi::OsStr::from_bytes(a).to_owned()).collect();
        let _ = crate::SuperviseSettings::from_args(&args);
        let _ = crate::BalancerSettings::from_args(&args);
        let _ = crate::HostSettings::from_args(&args, args.first().and_then(|a| a.to_str()));
    }

    #[cfg(test)]
    mod tests {
        use proptest::prelude::*;

        proptest! {
            #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]
            #[test]
            fn nothing_panics(noise in prop::collection::vec(any::<u8>(), 0..200), at in 0usize..400, byte in any::<u8>()) {
                super::fuzz_pool_file(&noise);
                super::fuzz_arguments(&noise);
                let mut pool = br#"{"version":1,"pool":{"epoch":1,"generation":2,"backends":[{"replica":"r1-0","address":"10.0.0.1:80","state":"active","health":{"http":"/","interval":{"secs":1,"nanos":0},"timeout":{"secs":1,"nanos":0},"healthy":1,"unhealthy":1,"deadline":{"secs":1,"nanos":0}}}]}}"#.to_vec();
                prop_assert!(crate::balancer::control::parse_pool(&pool).is_some());
                let at = at % pool.len();
                pool[at] = byte;
                super::fuzz_pool_file(&pool);
                let mut args = b"--app|web|--listen|:80|--subnet|10.88.0.0/16|--ports|20000+5".to_vec();
                args.iter_mut().filter(|b| **b == b'|').for_each(|b| *b = 0);
                let at = at % args.len();
                args[at] = byte;
                super::fuzz_arguments(&args);
            }
        }
    }
}
