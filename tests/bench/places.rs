//! Where stores and workloads lie: tmpfs, and a journaled ext4 that this process makes.
//!
//! The ext4 is an image file on a loop device, mounted in a mount namespace of our own. The file is unlinked as soon as it
//! is mounted, so nothing of it outlives this process, however that ends.

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Room on the journaled file system; the image is sparse.
const IMAGE_BYTES: u64 = 16 << 30;

/// A file system to measure on.
pub struct Place {
    /// In the table.
    pub name: String,
    /// A folder on it, ours alone.
    pub dir: PathBuf,
    keep: tempfile::TempDir,
}

/// Leaves the machine's mount namespace: what builders mount and leave goes with this process. Before any
/// thread is started.
pub fn own_mounts() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    Ok(())
}

fn temporary(on: &Path) -> io::Result<tempfile::TempDir> {
    tempfile::Builder::new().prefix("keelway-bench-").tempdir_in(on)
}

impl Place {
    /// A folder on the file system of `on`.
    pub fn folder(on: &Path) -> io::Result<Self> {
        let keep = temporary(on)?;
        let out = Command::new("stat").args(["-f", "-c", "%T"]).arg(on).output()?;
        let name = String::from_utf8_lossy(&out.stdout).trim().to_owned();
        Ok(Self { name, dir: keep.path().to_owned(), keep })
    }

    /// A new journaled ext4 whose image file is on the file system of `on`.
    pub fn journaled(on: &Path) -> io::Result<Self> {
        let keep = temporary(on)?;
        let (image, dir) = (keep.path().join("image"), keep.path().join("mounted"));
        File::create(&image)?.set_len(IMAGE_BYTES)?;
        std::fs::create_dir(&dir)?;
        // No lazy initialisation: the kernel would write inode tables while we measure.
        let options = "lazy_itable_init=0,lazy_journal_init=0";
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-E", options, "-O", "has_journal"]).arg(&image))?;
        run(Command::new("mount").args(["-o", "loop,noatime"]).arg(&image).arg(&dir))?;
        std::fs::remove_file(&image)?;
        Ok(Self { name: "ext4, journal".into(), dir, keep })
    }

    /// Writes everything out, so that one measurement does not pay for the one before.
    pub fn settle(&self) -> io::Result<()> {
        run(Command::new("sync").arg("-f").arg(&self.dir))
    }

    /// Takes the place away.
    pub fn close(self) -> io::Result<()> {
        if self.dir != self.keep.path() {
            run(Command::new("umount").arg(&self.dir))?;
        }
        self.keep.close()
    }
}

fn run(command: &mut Command) -> io::Result<()> {
    let out = command.output()?;
    if out.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&out.stderr);
    Err(io::Error::other(format!("{command:?}: {}\n{text}", out.status)))
}
