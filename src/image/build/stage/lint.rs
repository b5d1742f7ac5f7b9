//! Lint rules about instructions, asked while these are lowered. Without a [`Linting`] they cost nothing and find nothing.

use super::{From, Lower, State, Step};
use crate::build::metadata::looks_secret;
use crate::build::scope::is_scanner_setting;
use keelway_dockerfile::{
    Command, Environment, ExpandError, Ignore, Kind, Lint, Rule, Stage, Transfer, Watched, Written, nearest,
};
use keelway_model::{Span, TreePath};
use std::collections::BTreeSet;

/// The shortest name of a variable of which a nearly equal one says that it is misspelt.
const MIN_MISSPELT: usize = 4;

/// A pass that looks for findings.
#[derive(Debug)]
pub(in crate::build) struct Linting<'b> {
    /// What was found.
    pub(in crate::build) lint: Lint<'b>,
    /// What the context leaves out.
    pub(in crate::build) ignore: &'b Ignore,
    /// Whether the likely is taken for given, where a base that is not pinned decides.
    pub(in crate::build) guess: bool,
}

/// What a stage has had so far, as far as only rules ask for it.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    /// It stands on an image of which nothing is known.
    open: bool,
    /// A WORKDIR of this file.
    workdir: bool,
    /// Names of ARG, with or without value.
    declared: BTreeSet<String>,
    /// The last CMD, ENTRYPOINT and HEALTHCHECK of the stage, and whether another may be reported.
    last: [Option<(Span, bool)>; 3],
}

impl Seen {
    pub(super) fn of_a_base(open: bool) -> Self {
        Self { open, ..Self::default() }
    }
    pub(super) fn for_another_stage(&self) -> Self {
        Self { last: [None; 3], ..self.clone() }
    }
    pub(super) fn declare(&mut self, name: String) {
        self.declared.insert(name);
    }
}

impl Lower<'_> {
    /// Does something about an instruction of the file, where findings are wanted. What a trigger of a base image says
    /// nobody here can mend.
    fn look(&self, step: &Step<'_>, what: impl FnOnce(&mut Linting<'_>, &Written)) {
        if let Some(linting) = &self.linting
            && step.located.file == self.build.dockerfile.source.name
        {
            what(&mut linting.borrow_mut(), &step.located.instruction.written);
        }
    }

    /// Expands with the stage's variables, and notes which of them are not set.
    pub(super) fn watched(
        &self,
        state: &State,
        step: &Step<'_>,
        at: Span,
        expand: impl FnOnce(&dyn Environment) -> Result<String, ExpandError>,
    ) -> Result<String, ExpandError> {
        if self.linting.is_none() {
            return expand(&state.env);
        }
        let env = Watched::new(&state.env);
        let value = expand(&env);
        let asked = env.asked();
        let unset = asked.iter().filter(|(name, set)| {
            !**set && !state.seen.declared.contains(*name) && !is_scanner_setting(name)
        });
        for (name, _) in unset {
            self.look(step, |l, written| undefined(l, written, state, at, name));
        }
        value
    }

    pub(super) fn secret(&self, step: &Step<'_>, at: Span, name: &str) {
        if !looks_secret(name) {
            return;
        }
        self.look(step, |l, written| {
            let what = step.located.instruction.kind.name();
            let message =
                format!("{what} {name} looks like a secret: everyone who has the image can read it");
            let fix = "use RUN --mount=type=secret, or give it to the program when it runs";
            l.lint.report(Rule::SecretsUsedInArgOrEnv, written, at, message, fix);
        });
    }

    pub(super) fn old_form(&self, step: &Step<'_>) {
        let i = &step.located.instruction;
        if !i.written.old_form {
            return;
        }
        self.look(step, |l, written| {
            let message = format!("{} name value is an old form", i.kind.name());
            let fix = format!("write {} name=value", i.kind.name());
            l.lint.report(Rule::LegacyKeyValueFormat, written, i.span, message, fix);
        });
    }

    pub(super) fn port(&self, step: &Step<'_>, at: Span, port: &str) {
        let (numbers, protocol) = port.split_once('/').unwrap_or((port, ""));
        self.look(step, |l, written| {
            let lower = protocol.to_ascii_lowercase();
            if protocol != lower {
                let message = format!("the protocol of {port:?} has capitals");
                let fix = format!("write {numbers}/{lower}");
                l.lint.report(Rule::ExposeProtoCasing, written, at, message, fix);
            }
            if let Some((outside, inside)) = numbers.rsplit_once(':')
                && outside.contains(|c| c != ':')
            {
                let message = format!("{port:?} names an address or port of the machine");
                let fix =
                    format!("write {inside}; what the machine forwards is said when the container runs");
                l.lint.report(Rule::ExposeInvalidFormat, written, at, message, fix);
            }
        });
    }

    pub(super) fn shell_form(&self, state: &State, step: &Step<'_>, command: &Command) {
        if matches!(command, Command::Exec(_)) || !state.config.config.shell.is_empty() {
            return;
        }
        self.look(step, |l, written| {
            if state.seen.open && !l.guess {
                return;
            }
            let i = &step.located.instruction;
            let message =
                format!("{} in shell form runs below a shell that passes no signals on", i.kind.name());
            let fix = format!("write a JSON array: {} [\"program\", \"argument\"]", i.kind.name());
            l.lint.report(Rule::JSONArgsRecommended, written, i.span, message, fix);
        });
    }

    /// CMD, ENTRYPOINT and HEALTHCHECK count once a stage: the one before is told that it does not.
    pub(super) fn once(&self, state: &mut State, step: &Step<'_>) {
        let i = &step.located.instruction;
        let slot = match &i.kind {
            Kind::Cmd(_) => 0,
            Kind::Entrypoint(_) => 1,
            _ => 2,
        };
        let last = state.seen.last[slot];
        self.look(step, |l, written| {
            if let Some((at, true)) = last {
                let message =
                    format!("the stage has another {} below: this one has no effect", i.kind.name());
                l.lint.report(Rule::MultipleInstructionsDisallowed, written, at, message, "remove it");
            }
            state.seen.last[slot] =
                Some((i.span, l.lint.wants(Rule::MultipleInstructionsDisallowed, written)));
        });
    }

    pub(super) fn relative(&self, state: &mut State, step: &Step<'_>, at: Span, path: &str) {
        let first = !std::mem::replace(&mut state.seen.workdir, true);
        if !first || path.starts_with('/') {
            return;
        }
        self.look(step, |l, written| {
            let message = format!("where {path:?} is, is up to the base image");
            let fix = format!("write it from / on: WORKDIR /{path}");
            l.lint.report(Rule::WorkdirRelativePath, written, at, message, fix);
        });
    }

    /// Sources, variables replaced, that the context leaves out. Where the ignore file takes something back in, a directory may
    /// be left out and something in it not: then nothing is said.
    pub(super) fn ignored(&self, step: &Step<'_>, t: &Transfer, sources: &[String]) {
        if t.from.is_some() {
            return;
        }
        self.look(step, |l, written| {
            let i = &step.located.instruction;
            for source in sources.iter().filter(|_| !l.ignore.takes_back()) {
                let Some(path) = TreePath::clamped(source.as_bytes()) else { continue };
                let out = match path.is_root() {
                    true => l.ignore.leaves_all_out(),
                    false => l.ignore.excludes(path.as_bytes()),
                };
                if out {
                    let message = format!("{} of {source:?}, which .dockerignore leaves out", i.kind.name());
                    let fix = "take it back in there by a line that begins with !, or do not copy it";
                    let word = t.sources.iter().find(|w| w.text == *source);
                    let at = word.map_or(i.span, |w| w.span);
                    l.lint.report(Rule::CopyIgnoredFile, written, at, message, fix);
                }
            }
        });
    }

    /// A base is for the platform of the build.
    pub(super) fn base_platform(&self, stage: &Stage, from: &From) {
        let (Some(linting), Some(base)) = (&self.linting, self.build.pinned(from, self.pinned)) else {
            return;
        };
        let (have, want) = (&base.config.platform, &self.build.options.platform);
        if (&have.os, &have.architecture) != (&want.os, &want.architecture) {
            let message =
                format!("the base image {} is for {have}, and this build for {want}", stage.base.text);
            let fix = format!("choose an image that has {want}");
            let lint = &mut linting.borrow_mut().lint;
            lint.report(Rule::InvalidBaseImagePlatform, &stage.written, stage.base.span, message, fix);
        }
    }
}

fn undefined(l: &mut Linting<'_>, written: &Written, state: &State, at: Span, name: &str) {
    if !l.lint.wants(Rule::UndefinedVar, written) {
        return;
    }
    let names: Vec<&str> = state.env.pairs().iter().map(|(k, _)| k.as_str()).collect();
    let near = nearest(name, &names);
    // The base image may set it; that two names are nearly equal hardly comes about by chance.
    let open = state.seen.open && !(l.guess && near.is_some() && name.len() >= MIN_MISSPELT);
    if open {
        return;
    }
    let message = format!("${name} is not set here, so it is empty");
    let fix = match near {
        Some(near) => format!("did you mean ${near}?"),
        None => format!("write ARG {name} or ENV {name}=.. before this line"),
    };
    l.lint.report(Rule::UndefinedVar, written, at, message, fix);
}
