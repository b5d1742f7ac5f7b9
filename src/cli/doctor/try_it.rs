//! A sandbox is really started, with this machine's own programs, so nothing has to be there but /bin/sh.

use super::Finding;
use keelway_sandbox::rootless;
use keelway_sandbox::{
    Access, CapProfile, ExitKind, Launcher, LauncherConfig, Mount, MountKind, Network, RootFs, Spec, Stdio,
};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

/// First argument of the process that tries; the state directory follows.
pub const TRY_ARGUMENT: &str = "__doctor";
const CHECK: &str = "a sandbox";
/// Where a shell and its libraries are.
const PROGRAMS: [&str; 4] = ["/bin", "/lib", "/lib64", "/usr"];

/// Tries, and writes what was found to standard output, a JSON object a line.
pub fn try_it(args: &[OsString], rootless: bool) -> ExitCode {
    let is_root = fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0);
    if !is_root && !rootless {
        let e =
            rootless::enter([OsStr::new(TRY_ARGUMENT).to_owned()].into_iter().chain(args.iter().cloned()));
        return write(&[Finding::missing(CHECK, e.to_string(), "")]);
    }
    let found = match args.first() {
        Some(state) => tried(Path::new(state)),
        None => vec![Finding::missing(CHECK, "no directory was named", "")],
    };
    write(&found)
}

fn write(found: &[Finding]) -> ExitCode {
    let mut out = io::stdout().lock();
    for f in found {
        let _ = writeln!(out, "{}", serde_json::to_string(f).unwrap_or_default());
    }
    ExitCode::SUCCESS
}

fn tried(state: &Path) -> Vec<Finding> {
    let place = match tempfile_in(state) {
        Ok(place) => place,
        Err(e) => {
            let seen = format!("cannot write into {}: {e}", state.display());
            return vec![Finding::missing("state directory", seen, "name another one with --state DIR")];
        }
    };
    let found = in_place(&place.0);
    drop(place);
    found.unwrap_or_else(|e| vec![Finding::missing(CHECK, e, "")])
}

/// A directory that goes with this value, and so does what made it.
struct Place(std::path::PathBuf, Option<std::path::PathBuf>);

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
        if let Some(made) = &self.1 {
            // Only when nothing else is in it.
            let _ = fs::remove_dir(made);
        }
    }
}

fn tempfile_in(state: &Path) -> io::Result<Place> {
    let made = (!state.exists()).then(|| state.to_owned());
    fs::create_dir_all(state)?;
    let dir = state.join(format!("doctor-{}", std::process::id()));
    fs::create_dir(&dir)?;
    Ok(Place(dir, made))
}

fn in_place(base: &Path) -> Result<Vec<Finding>, String> {
    let text = |e: io::Error| e.to_string();
    let lower = base.join("lower");
    fs::create_dir_all(lower.join("keelway-doctor/full")).map_err(text)?;
    fs::write(lower.join("keelway-doctor/full/file"), "x").map_err(text)?;
    for name in ["upper", "work"] {
        fs::create_dir(base.join(name)).map_err(text)?;
    }
    let parent = format!("keelway/doctor-{}", std::process::id());
    let launcher = Launcher::new(LauncherConfig::new(parent.parse().map_err(|e| format!("{e}"))?));
    let root = RootFs::Overlay { lowers: vec![lower], upper: base.join("upper"), work: base.join("work") };
    // Mounts of users succeed where deleting fails, so something is deleted.
    let script = "rm -rf /keelway-doctor && [ ! -e /keelway-doctor ] && mkdir /keelway-doctor && id -u";
    let argv = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    let mut spec = Spec::new(root, argv, "try".parse().map_err(|e| format!("{e}"))?);
    spec.caps = CapProfile::Step;
    spec.network = Network::None;
    let programs = PROGRAMS.iter().filter(|p| Path::new(p).is_dir());
    spec.mounts = programs
        .map(|p| Mount {
            target: p.into(),
            kind: MountKind::Bind { source: p.into(), access: Access::ReadOnly, below: true },
        })
        .collect();
    let begun = Instant::now();
    let (mut output, writer) = io::pipe().map_err(text)?;
    let mut running =
        launcher.spawn(&spec, Stdio::output_to(writer.into()).map_err(text)?).map_err(|e| e.to_string())?;
    let warnings = running.warnings().to_vec();
    let mut said = String::new();
    output.read_to_string(&mut said).map_err(text)?;
    let exit = running.wait().map_err(|e| e.to_string())?;
    let took = begun.elapsed();
    let mut found = Vec::new();
    if exit.kind == ExitKind::Code(0) && said.trim() == "0" {
        found.push(Finding::ok(
            CHECK,
            format!("was started, deleted a directory below it and ended in {} ms", took.as_millis()),
        ));
    } else {
        found.push(Finding::missing(
            CHECK,
            format!("ended with {:?} and said {:?}", exit.kind, said.trim()),
            "",
        ));
    }
    // The machine's programs may lie where ids cannot be translated; that is no matter of the store.
    let ours =
        warnings.into_iter().filter(|w| w.contains(&*base.to_string_lossy()) || !w.contains("file system"));
    found.extend(ours.map(|w| Finding::warning("a sandbox's walls", w, "")));
    Ok(found)
}
