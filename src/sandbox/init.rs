//! Init: what the re-executed binary does.

use crate::sys;

/// The whole life of a re-executed init. A binary that has a [`crate::Launcher`] calls this before anything
/// else (argument parsing, logging, threads) when its first argument is [`crate::INIT_ARGUMENT`].
pub fn init_main() -> ! {
    sys::exit_now(1)
}
