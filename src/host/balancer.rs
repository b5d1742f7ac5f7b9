//! `keelway __balancer`: the HTTP/1.1 reverse proxy of one app.

pub mod headers;
pub mod pool;

use crate::settings::BalancerSettings;
use keelway_model::ExitCode;

/// Runs until SIGTERM, making its own runtime. The caller has not started one.
pub fn run(settings: BalancerSettings) -> ExitCode {
    let _ = settings;
    ExitCode::Bug
}
