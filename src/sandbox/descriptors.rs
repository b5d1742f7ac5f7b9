//! What this program was started with beside its standard input, output and error.

use std::io;

/// Keeps whatever descriptors somebody left open when this program was started from every program that it starts, so that
/// one which lives on, such as a container's keeper, holds no lock and no file of whoever happened to start it.
pub fn pass_on_nothing() -> io::Result<()> {
    Ok(crate::sys::close_on_exec_from(3)?)
}
