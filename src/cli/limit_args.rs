//! Flags that bound what is run by hand, the same for `image build` and `container run`.

use clap::Args;
use keelway_model::limits::Io;
use keelway_model::{Bytes, Limits};

/// The flags.
#[derive(Debug, Clone, Default, Args)]
pub struct LimitArgs {
    /// Memory, swap included, for example 512m
    #[arg(long, short, value_name = "BYTES", value_parser = bytes)]
    pub memory: Option<Bytes>,
    /// Processors, for example 1.5
    #[arg(long, value_name = "N", value_parser = cpus)]
    pub cpus: Option<u32>,
    /// Processes and threads [default: 4096]
    #[arg(long, value_name = "N")]
    pub pids_limit: Option<u32>,
    /// What is written into the root, for example 2g
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub disk: Option<Bytes>,
    /// Files made in the root [default: one for 4 KiB of --disk]
    #[arg(long, value_name = "N")]
    pub files: Option<u64>,
    /// Bytes read from the disk in a second
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub io_read: Option<Bytes>,
    /// Bytes written to the disk in a second
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub io_write: Option<Bytes>,
    /// Size of /dev/shm [default: 64m]
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub shm_size: Option<Bytes>,
    /// Open files of a process: nofile=N [default: 1024, which it may raise to 524288]
    #[arg(long, value_name = "nofile=N", value_parser = nofile)]
    pub ulimit: Option<u32>,
}

impl LimitArgs {
    /// As limits.
    pub fn limits(&self) -> Limits {
        Limits {
            memory: self.memory,
            pids: self.pids_limit,
            cpu_millis: self.cpus,
            disk: self.disk,
            files: self.files,
            io: Io { read: self.io_read, write: self.io_write, ..Io::default() },
            open_files: self.ulimit,
            shm: self.shm_size,
            log: None,
        }
    }
}

fn cpus(text: &str) -> Result<u32, String> {
    let millis = text.parse::<f64>().ok().map(|cpus| cpus * 1000.0);
    match millis {
        Some(millis) if (1.0..=1_000_000.0).contains(&millis) => Ok(millis as u32),
        _ => Err("write cores, for example 0.5 or 2".into()),
    }
}

/// Nothing would mean no bound where the kernel reads it.
fn bytes(text: &str) -> Result<Bytes, String> {
    match text.parse::<Bytes>() {
        Ok(Bytes(0)) => Err("write more than 0, for example 64m".into()),
        Ok(bytes) => Ok(bytes),
        Err(e) => Err(format!("{e}")),
    }
}

fn nofile(text: &str) -> Result<u32, String> {
    let number = text.strip_prefix("nofile=").ok_or("only nofile=N is there, for example nofile=4096")?;
    match number.parse() {
        Ok(n @ 16..=524_288) => Ok(n),
        _ => Err("write a number from 16 to 524288, for example nofile=4096".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_that_make_no_sense_are_refused() {
        assert_eq!(bytes("64m"), Ok(Bytes(64 << 20)));
        assert!(bytes("0").is_err() && bytes("-1").is_err() && bytes("").is_err());
        assert_eq!(nofile("nofile=100"), Ok(100));
        for bad in ["nproc=3", "nofile", "nofile=1:2", "nofile=3", "nofile=-1"] {
            assert!(nofile(bad).is_err(), "{bad}");
        }
    }
}
