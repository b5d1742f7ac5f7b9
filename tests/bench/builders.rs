//! Who builds: Keelway and the peers that this machine has, each on a store of its own.

use crate::measure::{self, Figure};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Who builds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Builder {
    /// The binary under test.
    Keelway,
    /// Debian's buildah with Debian's runc.
    Buildah,
}

/// A base image: its name in Dockerfiles and its OCI layout.
pub type BaseImage = (&'static str, PathBuf);

impl Builder {
    /// All that are installed, ours first.
    pub fn installed() -> Vec<Self> {
        let there = |program: &str| {
            Command::new(program)
                .arg("--version")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|s| s.success())
        };
        let mut all = vec![Self::Keelway];
        if there("buildah") && there("runc") {
            all.push(Self::Buildah);
        }
        all
    }

    /// In the table.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Keelway => "keelway",
            Self::Buildah => "buildah",
        }
    }

    /// With its version, for the head of the table.
    pub fn described(self, keelway: &Path) -> String {
        let program = match self {
            Self::Keelway => keelway,
            Self::Buildah => Path::new("buildah"),
        };
        let out = Command::new(program).arg("--version").output();
        out.map_or_else(|_| self.name().into(), |o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
    }

    fn command(self, keelway: &Path, store: &Path) -> Command {
        let mut c = Command::new(match self {
            Self::Keelway => keelway,
            Self::Buildah => Path::new("buildah"),
        });
        match self {
            Self::Keelway => c.arg("--state").arg(store).arg("--quiet"),
            Self::Buildah => c
                .arg("--root")
                .arg(store.join("root"))
                .arg("--runroot")
                .arg(store.join("run"))
                .args(["--storage-driver", "overlay"]),
        };
        c
    }

    /// Makes a store at `store` that holds the bases, pulled and unpacked, and nothing else. A build that only
    /// names a base makes the builder unpack it: otherwise one of them would do so in the measured build.
    pub fn fresh(self, keelway: &Path, store: &Path, bases: &[BaseImage]) -> io::Result<()> {
        fs::create_dir_all(store)?;
        for (name, layout) in bases {
            match self {
                Self::Keelway => {
                    finish(self.command(keelway, store).args(["image", "load"]).arg(layout).arg(name))?;
                }
                Self::Buildah => {
                    let image = format!("oci:{}:latest", layout.display());
                    let id = finish(self.command(keelway, store).args(["pull", "-q", &image]))?;
                    finish(self.command(keelway, store).args(["tag", id.trim(), name]))?;
                }
            }
            let context = store.join("warm-up");
            fs::create_dir_all(&context)?;
            fs::write(context.join("Dockerfile"), format!("FROM {name}\nLABEL warm=up\n"))?;
            finish(&mut self.build_command(keelway, store, &context, "bench/warm-up:1"))?;
            fs::remove_dir_all(&context)?;
        }
        Ok(())
    }

    /// Builds a context, measured.
    pub fn build(self, keelway: &Path, store: &Path, context: &Path) -> io::Result<Figure> {
        measure::run(&self.build_command(keelway, store, context, "bench/result:1"))
    }

    fn build_command(self, keelway: &Path, store: &Path, context: &Path, tag: &str) -> Command {
        let mut c = self.command(keelway, store);
        match self {
            Self::Keelway => c.args(["image", "build", "-t", tag]),
            // As Keelway builds: layers cached and compressed, the host's network, two steps at once.
            Self::Buildah => {
                c.args(["build", "--layers", "--pull-never", "--runtime", "runc", "--network", "host"]);
                c.args(["--jobs", "2", "-q", "-t", tag])
            }
        };
        c.arg(context);
        c
    }

    /// Removes a store with what the builder has mounted in it.
    pub fn remove(self, store: &Path) -> io::Result<()> {
        if self == Self::Buildah {
            let _ = Command::new("umount").arg(store.join("root/overlay")).stderr(Stdio::null()).status();
        }
        fs::remove_dir_all(store)
    }
}

/// Runs to success; gives standard output.
fn finish(command: &mut Command) -> io::Result<String> {
    let out = command.stdin(Stdio::null()).output()?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&out.stderr);
    Err(io::Error::other(format!("{command:?}: {}\n{text}", out.status)))
}
