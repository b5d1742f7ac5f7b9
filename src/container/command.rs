//! What runs in a container: the image's config, with what the caller sets over it. Pure.

use keelway_model::oci::ContainerConfig;
use keelway_model::plan::UserSpec;
use keelway_sandbox::DEFAULT_PATH;
use nix::sys::signal::Signal;
use std::path::PathBuf;

/// Signal that stops a container whose image names none.
const SIGTERM: i32 = Signal::SIGTERM as i32;
/// Real-time signals as the kernel counts them; glibc and musl keep the first ones for themselves.
const SIGRTMIN: i32 = 34;
const SIGRTMAX: i32 = 64;

/// What a caller sets over the image's config.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Set over, or added to, the image's environment, in order.
    pub env: Vec<(String, String)>,
    /// Instead of the image's ENTRYPOINT, whose CMD is left out then; an empty one takes both away.
    pub entrypoint: Option<Vec<String>>,
    /// Instead of the image's CMD, unless empty.
    pub command: Vec<String>,
    /// Instead of the image's WORKDIR.
    pub cwd: Option<String>,
    /// Instead of the image's USER.
    pub user: Option<UserSpec>,
    /// Instead of the image's STOPSIGNAL.
    pub stop_signal: Option<String>,
}

/// One process as it shall be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Environment, each name once. `HOME` is added when the user is known.
    pub env: Vec<(String, String)>,
    /// Working directory.
    pub cwd: PathBuf,
    /// Who, as the image writes it.
    pub user: UserSpec,
    /// What stops it.
    pub stop_signal: i32,
}

/// Why an image's config says nothing that can be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// Neither ENTRYPOINT nor CMD.
    #[error("the image has neither ENTRYPOINT nor CMD: name the program, here or in its Dockerfile")]
    Nothing,
    /// STOPSIGNAL makes no sense.
    #[error("the stop signal {0:?} is not a signal")]
    Signal(String),
}

impl Process {
    /// Merges.
    pub fn of(config: &ContainerConfig, overrides: &Overrides) -> Result<Self, CommandError> {
        let words = |w: &Option<Vec<String>>| w.clone().unwrap_or_default();
        let entrypoint = overrides.entrypoint.clone().unwrap_or_else(|| words(&config.entrypoint));
        let command = match (overrides.command.is_empty(), &overrides.entrypoint) {
            (false, _) => overrides.command.clone(),
            // The image's arguments were meant for its own entry point.
            (true, Some(_)) => Vec::new(),
            (true, None) => words(&config.cmd),
        };
        let argv: Vec<String> = entrypoint.into_iter().chain(command).collect();
        if argv.first().is_none_or(String::is_empty) {
            return Err(CommandError::Nothing);
        }
        let mut env: Vec<(String, String)> = Vec::new();
        let image = config.env.iter().filter_map(|e| e.split_once('='));
        let image = image.map(|(k, v)| (k.to_owned(), v.to_owned()));
        for (name, value) in image.chain(overrides.env.iter().cloned()) {
            match env.iter_mut().find(|(have, _)| *have == name) {
                Some((_, have)) => *have = value,
                None => env.push((name, value)),
            }
        }
        if !env.iter().any(|(name, _)| name == "PATH") {
            env.insert(0, ("PATH".into(), DEFAULT_PATH.into()));
        }
        let cwd = overrides.cwd.as_deref().or(config.working_dir.as_deref());
        let cwd = cwd.filter(|d| !d.is_empty()).unwrap_or("/");
        let signal = overrides.stop_signal.as_deref().or(config.stop_signal.as_deref());
        let signal = signal.filter(|s| !s.is_empty());
        Ok(Self {
            argv,
            env,
            cwd: PathBuf::from("/").join(cwd),
            user: overrides.user.clone().unwrap_or_else(|| UserSpec(config.user.clone().unwrap_or_default())),
            stop_signal: signal.map_or(Ok(SIGTERM), |s| {
                signal_number(s).ok_or_else(|| CommandError::Signal(s.chars().take(40).collect()))
            })?,
        })
    }
}

/// `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`.
pub fn signal_number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=SIGRTMAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(rest) = name.strip_prefix("RTMIN") {
        let above = if rest.is_empty() { 0 } else { rest.strip_prefix('+')?.parse::<i32>().ok()? };
        return SIGRTMIN.checked_add(above).filter(|n| (SIGRTMIN..=SIGRTMAX).contains(n));
    }
    format!("SIG{name}").parse::<Signal>().ok().map(|s| s as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_says_what_runs_and_the_caller_what_it_sees() {
        let config = ContainerConfig {
            entrypoint: Some(vec!["/app".into()]),
            cmd: Some(vec!["--serve".into()]),
            env: vec!["A=1".into(), "B=x=y".into(), "broken".into()],
            working_dir: Some("srv".into()),
            user: Some("web:www".into()),
            stop_signal: Some("SIGRTMIN+3".into()),
            ..ContainerConfig::default()
        };
        let over = Overrides {
            env: vec![("A".into(), "2".into()), ("C".into(), "$(x)\n".into())],
            ..Overrides::default()
        };
        let p = Process::of(&config, &over).unwrap();
        assert_eq!(p.argv, ["/app", "--serve"]);
        let env: Vec<String> = p.env.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(env, [&format!("PATH={DEFAULT_PATH}"), "A=2", "B=x=y", "C=$(x)\n"]);
        assert_eq!((p.cwd.to_str(), p.user.0.as_str(), p.stop_signal), (Some("/srv"), "web:www", 37));
    }

    #[test]
    fn the_caller_names_another_program() {
        let config = ContainerConfig {
            entrypoint: Some(vec!["/app".into()]),
            cmd: Some(vec!["--serve".into()]),
            ..ContainerConfig::default()
        };
        let argv = |entrypoint: Option<&[&str]>, command: &[&str]| {
            let words = |w: &[&str]| w.iter().map(|w| (*w).to_owned()).collect::<Vec<String>>();
            let over = Overrides {
                entrypoint: entrypoint.map(words),
                command: words(command),
                ..Overrides::default()
            };
            Process::of(&config, &over).map(|p| p.argv.join(" "))
        };
        assert_eq!(argv(None, &["--help"]).as_deref(), Ok("/app --help"));
        assert_eq!(argv(Some(&["sh"]), &[]).as_deref(), Ok("sh"));
        assert_eq!(argv(Some(&["sh"]), &["-c", "x"]).as_deref(), Ok("sh -c x"));
        assert_eq!(argv(Some(&[]), &["ls"]).as_deref(), Ok("ls"));
        assert_eq!(argv(Some(&[]), &[]), Err(CommandError::Nothing));
    }

    #[test]
    fn signals() {
        for (text, number) in [("SIGTERM", 15), ("quit", 3), ("9", 9), ("SIGRTMIN", 34), ("RTMIN+30", 64)] {
            assert_eq!(signal_number(text), Some(number), "{text}");
        }
        for bad in ["", "0", "65", "-1", "SIGNOPE", "RTMIN+31", "RTMIN-1", "99999999999"] {
            assert_eq!(signal_number(bad), None, "{bad}");
        }
        assert_eq!(
            Process::of(&ContainerConfig::default(), &Overrides::default()),
            Err(CommandError::Nothing)
        );
    }
}
