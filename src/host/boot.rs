//! What a host needs so that its replicas come back when it boots: a unit of systemd, where systemd runs.
//!
//! The unit starts the supervisor, which brings back everything that it has on record. It names a link to the binary, and
//! each session points that link at its own binary, so what boots is what deployed last.
//!
//! Invariants: where systemd does not run, or the binary was not brought by a deployer, nothing is touched; files are put in
//! place by rename; a host on which it does not work serves all the same, so a failure is said and no more.

use crate::settings::{DEFAULT_ROOT, Settings};
use keelway_disk::{Faults, Sync, publish};
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// The unit's name.
pub const UNIT: &str = "keelway-host.service";
const TEXT: &str = include_str!("../../runners/systemd/keelway-host.service");
/// The link that it starts, beside the binaries.
const LINK: &str = "keelway";
/// There when systemd is the init of this machine; see `sd_booted(3)`.
const RUNS: &str = "run/systemd/system";
const UNITS: &str = "etc/systemd/system";
/// For one command of systemd's.
const ANSWER: Duration = Duration::from_secs(10);

/// Why a host's replicas would not come back after a reboot.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The disk.
    #[error(
        "cannot {what} {path}: {source}; until it can, replicas come back only with the next deploy or status"
    )]
    Io {
        /// What failed.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// systemd said no.
    #[error("`systemctl {command}` failed: {said}; look at it with: systemctl status {UNIT}")]
    Systemctl {
        /// What it was asked.
        command: String,
        /// What it said.
        said: String,
    },
}

/// The machine's systemd, as far as we use it.
#[derive(Debug, Clone)]
pub struct Systemd {
    root: PathBuf,
    systemctl: PathBuf,
}

impl Systemd {
    /// This machine's, for a host with these settings and this binary; `None` where it does not run, and where the host's
    /// state or the binary lies elsewhere than the unit says.
    pub fn of(settings: &Settings, binary: &Path) -> Option<Self> {
        let ours = settings.root == Path::new(DEFAULT_ROOT)
            && *settings == Settings::default()
            && binary.parent() == Some(&settings.binaries());
        ours.then(|| Self::at(Path::new("/"), Path::new("systemctl"))).flatten()
    }

    /// The same below another root, with another program to talk to it; `None` where it does not run.
    pub fn at(root: &Path, systemctl: &Path) -> Option<Self> {
        let found = Self { root: root.to_owned(), systemctl: systemctl.to_owned() };
        found.root.join(RUNS).is_dir().then_some(found)
    }

    /// Installs and enables the unit, with `binary` as what it starts. What is so already is left alone.
    pub async fn install(&self, binary: &Path) -> Result<(), BootError> {
        point(binary)?;
        let dir = self.root.join(UNITS);
        let path = dir.join(UNIT);
        let wanted = dir.join("multi-user.target.wants").join(UNIT);
        if std::fs::read(&path).is_ok_and(|have| have == TEXT.as_bytes()) && wanted.is_symlink() {
            return Ok(());
        }
        let failed = |source| BootError::Io { what: "write", path: path.clone(), source };
        std::fs::create_dir_all(&dir).map_err(failed)?;
        publish(&dir, UNIT, TEXT.as_bytes(), Sync::Yes, &Faults::NONE).map_err(failed)?;
        self.systemctl(&["daemon-reload"]).await?;
        self.systemctl(&["enable", UNIT]).await
    }

    /// Starts the supervisor as the unit's, where it is not.
    pub async fn start(&self) -> Result<(), BootError> {
        self.systemctl(&["start", "--no-block", UNIT]).await
    }

    async fn systemctl(&self, args: &[&str]) -> Result<(), BootError> {
        let failed = |said: String| BootError::Systemctl { command: args.join(" "), said };
        let command =
            Command::new(&self.systemctl).args(args).stdin(Stdio::null()).kill_on_drop(true).output();
        let done = match tokio::time::timeout(ANSWER, command).await {
            Ok(done) => done.map_err(|e| failed(e.to_string()))?,
            Err(_) => return Err(failed(format!("no answer within {ANSWER:?}"))),
        };
        if done.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&done.stderr);
        Err(failed(said.trim().chars().filter(|c| !c.is_control()).take(300).collect()))
    }
}

/// Points the link beside `binary` at it.
fn point(binary: &Path) -> Result<(), BootError> {
    let link = binary.with_file_name(LINK);
    let name = binary.file_name().unwrap_or(OsStr::new(LINK));
    if std::fs::read_link(&link).is_ok_and(|to| to == Path::new(name)) {
        return Ok(());
    }
    let new = binary.with_file_name(format!(".{LINK}.{}", std::process::id()));
    let failed = |source| BootError::Io { what: "make the link", path: link.clone(), source };
    match std::fs::remove_file(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    std::os::unix::fs::symlink(name, &new).and_then(|()| std::fs::rename(&new, &link)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A root with a systemctl that writes down what it was asked, and does what `enable` does.
    fn machine(booted: bool) -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        for sub in ["etc", "var/lib/keelway/bin"] {
            std::fs::create_dir_all(root.join(sub)).unwrap();
        }
        if booted {
            std::fs::create_dir_all(root.join(RUNS)).unwrap();
        }
        let systemctl = dir.path().join("systemctl");
        let script = format!(
            "#!/bin/sh\necho \"$@\" >>{log}\ncd {units} || exit 1\ntest ! -e {deny} || {{ echo 'Access denied' >&2; exit 1; }}\n\
             case $1 in enable) mkdir -p multi-user.target.wants; ln -sf ../$2 multi-user.target.wants/$2;; esac\n",
            log = dir.path().join("log").display(),
            units = root.join(UNITS).display(),
            deny = dir.path().join("deny").display(),
        );
        std::fs::write(&systemctl, script).unwrap();
        std::fs::set_permissions(&systemctl, std::fs::Permissions::from_mode(0o755)).unwrap();
        (dir, root, systemctl)
    }

    #[tokio::test]
    async fn the_unit_is_installed_once_and_starts_what_came_last() {
        let (dir, root, systemctl) = machine(true);
        let systemd = Systemd::at(&root, &systemctl).expect("it runs");
        let bin = root.join("var/lib/keelway/bin");
        let asked = || std::fs::read_to_string(dir.path().join("log")).unwrap_or_default();
        let points_at = || std::fs::read_link(bin.join(LINK)).unwrap();
        systemd.install(&bin.join("keelway-1-aa")).await.unwrap();
        assert_eq!(std::fs::read_to_string(root.join(UNITS).join(UNIT)).unwrap(), TEXT);
        assert_eq!(asked(), format!("daemon-reload\nenable {UNIT}\n"));
        assert_eq!(points_at(), Path::new("keelway-1-aa"));
        // Again, by another binary: the unit is as it was, the link is not.
        systemd.install(&bin.join("keelway-2-bb")).await.unwrap();
        assert_eq!(asked(), format!("daemon-reload\nenable {UNIT}\n"));
        assert_eq!(points_at(), Path::new("keelway-2-bb"));
        // One that an earlier version wrote is replaced.
        std::fs::write(root.join(UNITS).join(UNIT), "[Unit]\n").unwrap();
        systemd.install(&bin.join("keelway-2-bb")).await.unwrap();
        assert_eq!(std::fs::read_to_string(root.join(UNITS).join(UNIT)).unwrap(), TEXT);
        assert_eq!(asked().lines().count(), 4);
        let left = std::fs::read_dir(&bin).unwrap().count();
        assert_eq!(left, 1, "nothing beside the link");
        // What it refuses is said, with what to look at.
        std::fs::write(dir.path().join("deny"), "").unwrap();
        let error = systemd.start().await.unwrap_err().to_string();
        assert!(error.contains("start --no-block") && error.contains("Access denied"), "{error}");
        assert!(error.contains("systemctl status keelway-host.service"), "{error}");
    }

    #[test]
    fn where_systemd_does_not_run_nothing_is_touched() {
        let (_dir, root, systemctl) = machine(false);
        assert!(Systemd::at(&root, &systemctl).is_none());
        // Nor for a state that is not the unit's, or a binary that nobody brought.
        let elsewhere = Settings { root: "/srv/keelway".into(), ..Settings::default() };
        assert!(Systemd::of(&elsewhere, Path::new("/srv/keelway/bin/keelway-1-aa")).is_none());
        assert!(Systemd::of(&Settings::default(), Path::new("/usr/bin/keelway")).is_none());
    }

    #[test]
    fn the_unit_names_what_we_install() {
        let link = Settings::default().binaries().join(LINK);
        assert!(TEXT.contains(&format!("\nExecStart={} __supervise\n", link.display())), "{TEXT}");
        assert_eq!(Settings::default().binaries(), Path::new(keelway_deploy::ssh::BIN_DIR));
        assert!(
            TEXT.contains(&format!("\nConditionPathIsDirectory={}\n", Settings::default().state().display()))
        );
        // Its supervisor is the default one: no option is needed, and none is given.
        let role = crate::settings::Role::Supervisor;
        let wanted = crate::SuperviseSettings { settings: Settings::default(), role };
        assert_eq!(crate::SuperviseSettings::from_args(&[]), Ok(wanted));
    }

    #[test]
    fn systemd_finds_nothing_wrong_with_the_unit() {
        let dir = tempfile::tempdir().unwrap();
        // It also looks whether the program is there, which only a host has.
        let text = TEXT.replace("/var/lib/keelway/bin/keelway ", "/bin/true ");
        let path = dir.path().join(UNIT);
        std::fs::write(&path, text).unwrap();
        let done = std::process::Command::new("systemd-analyze")
            .args(["verify", "--man=no"])
            .arg(&path)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        let ours: Vec<&str> = said.lines().filter(|l| l.contains("keelway-host")).collect();
        assert!(done.status.success() && ours.is_empty(), "{said}");
    }
}
