//! A supervised container: an image of the store that runs, is checked, is started again, and leaves a log.
//!
//! What replicas of a host, services of a stage and detached containers share. A [`Container`] belongs to
//! the process that made it: when that process dies, by whatever signal, its sandbox dies with it. Who
//! wants a container to outlive the one who asked for it runs it in a process of its own, as the host's
//! keepers do. [`network`] makes private networks; a container joins a namespace that is there.
//!
//! Nothing here prints or reads the environment.

mod backoff;
mod command;
pub mod console;
mod container;
pub mod containers;
pub mod copy;
pub mod diary;
pub mod exec;
pub mod files;
pub mod health;
mod image;
pub mod keeper;
pub mod keeping;
pub mod lines;
pub mod logs;
mod names;
pub mod network;
pub mod oci;
mod policy;
pub mod process;
pub mod publish;
pub mod record;
mod start;
pub mod stats;
pub mod supervisor;
pub mod wire;

pub use backoff::Backoff;
pub use command::{CommandError, Overrides, Process, signal_number};
pub use container::{
    Container, HealthSpec, Kept, NOT_EXECUTABLE, NOT_FOUND, NOT_STARTED, Settings, Shape, StartError, State,
    Status, Stop, exit_code, start_code,
};
pub use image::{Image, ImageError};
pub use names::{ContainerId, ContainerName, NameError};
pub use policy::{Ended, PolicyError, RestartPolicy};
