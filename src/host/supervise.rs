//! `keelway __supervise`: the supervisor of a host, or the keeper of one replica.

use crate::settings::SuperviseSettings;
use keelway_model::ExitCode;

/// Runs until told to end, making its own runtime. The caller has not started one.
pub fn run(settings: SuperviseSettings) -> ExitCode {
    let _ = settings;
    ExitCode::Bug
}
