//! The lint rules that need more than the text: arguments, the stages, the bases as far as they are known, the ignore patterns.
//!
//! Those about `FROM` are here; those about instructions are looked after where instructions are lowered
//! ([`super::stage`]), so that both mean the same by a variable, a directory or a shell.

use super::scope::Globals;
use super::stage::{self, Linting};
use super::{Bases, Build, BuildOptions, Located, Reached};
use keelway_dockerfile::lint::INSTEAD;
use keelway_dockerfile::{
    Dockerfile, Ignore, Kind, Lint, MAX_INSTRUCTIONS, Rule, Stage, Watched, Word, expand, nearest,
};
use keelway_model::{Diagnostics, ImageRef, Platform};
use std::collections::BTreeMap;

#[cfg(test)]
mod tests;

/// For what a Dockerfile is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// For a build: what the target needs. Whatever a base decides that is not pinned yet is left open.
    Build,
    /// For itself: all stages where no target is named. Of a base that is not pinned the likely is taken for given.
    File,
}

/// An empty collection of findings, or why its options cannot be understood.
pub(super) fn start<'f>(file: &'f Dockerfile, options: &BuildOptions) -> Result<Lint<'f>, String> {
    Lint::new(file, options.args.get(INSTEAD).map(String::as_str))
}

/// Adds what the text alone shows to what is wrong with a file.
pub(super) fn beside(mut found: Diagnostics, file: &Dockerfile, options: &BuildOptions) -> Diagnostics {
    if let Ok(mut lint) = start(file, options) {
        lint.text();
        found.merge(lint.finish());
    }
    found
}

impl Build {
    /// The findings of all lint rules, in the order of the file. They are errors where the file wants that
    /// (`error=true`), and then nothing may be built. With more bases pinned it finds more.
    pub fn lint(&self, pinned: &Bases, ignore: &Ignore, look: Look) -> Diagnostics {
        let nothing = || Diagnostics::of(self.dockerfile.source.clone());
        // `new` has seen that the options can be understood.
        let Ok(mut lint) = start(&self.dockerfile, &self.options) else { return nothing() };
        lint.text();
        self.bases_of_stages(&mut lint);
        let reached = match look {
            Look::File if self.options.target.is_none() => self.everything(),
            // What is wrong with it was reported when it was walked before.
            _ => self.walk(pinned).unwrap_or_default(),
        };
        let linting = Linting { lint, ignore, guess: look == Look::File };
        stage::lint(self, pinned, &reached, linting).map_or_else(nothing, Lint::finish)
    }

    /// All stages, as far as they can be understood without any image.
    fn everything(&self) -> Reached {
        let mut reached = Reached::default();
        let mut count = 0;
        for (index, stage) in self.dockerfile.stages.iter().enumerate() {
            let Ok(from) = self.base_of(index, stage) else { continue };
            let mut instructions = self.triggers(&from, &Bases::new(), &mut Diagnostics::default());
            let file = &self.dockerfile.source.name;
            instructions.extend(
                stage.instructions.iter().map(|i| Located { file: file.clone(), instruction: i.clone() }),
            );
            count += instructions.len();
            if count > MAX_INSTRUCTIONS {
                break;
            }
            reached.stages.insert(index, (from, instructions));
        }
        reached
    }

    /// The rules about `FROM`, in all stages.
    fn bases_of_stages(&self, lint: &mut Lint<'_>) {
        let bare = BuildOptions { args: BTreeMap::new(), ..self.options.clone() };
        let mut wrong = Diagnostics::default();
        let defaults = Globals::new(&self.dockerfile, &bare, self.target, &mut wrong);
        for (index, stage) in self.dockerfile.stages.iter().enumerate() {
            self.declared(lint, stage, &stage.base);
            if let Some(platform) = &stage.platform {
                let asked = self.declared(lint, stage, platform);
                self.platform(lint, stage, platform, &asked);
            }
            let name = expand(&stage.base.text, &defaults.values, self.dockerfile.escape);
            if let (Ok(name), false, true) = (name, wrong.has_errors(), stage.base.text.contains('$')) {
                self.default_base(lint, stage, index, &name);
            }
        }
    }

    /// Every variable of a `FROM` is declared. Gives those that were asked for, and whether they are set.
    fn declared(&self, lint: &mut Lint<'_>, stage: &Stage, word: &Word) -> BTreeMap<String, bool> {
        let env = Watched::new(&self.globals.values);
        // What cannot be expanded was reported.
        let _ = expand(&word.text, &env, self.dockerfile.escape);
        let asked = env.asked();
        let arguments = self.dockerfile.globals.iter().flat_map(|i| match &i.kind {
            Kind::Arg(arguments) => &arguments[..],
            _ => &[],
        });
        let known: Vec<&str> = arguments
            .map(|a| a.name.text.as_str())
            .chain(self.globals.values.keys().map(String::as_str))
            .collect();
        for name in asked.keys().filter(|n| !known.contains(&n.as_str())) {
            let message = format!("${name} is declared by no ARG before the first FROM, so it is empty");
            let fix = match nearest(name, &known) {
                Some(near) => format!("did you mean ${near}?"),
                None => format!("write ARG {name}=.. before the first FROM"),
            };
            lint.report(Rule::UndefinedArgInFrom, &stage.written, word.span, message, fix);
        }
        asked
    }

    fn platform(&self, lint: &mut Lint<'_>, stage: &Stage, word: &Word, asked: &BTreeMap<String, bool>) {
        let Ok(value) = expand(&word.text, &self.globals.values, self.dockerfile.escape) else { return };
        let target = self.globals.values.get("TARGETPLATFORM");
        let asked: Vec<&str> = asked.keys().map(String::as_str).collect();
        if asked == ["TARGETPLATFORM"] && target == Some(&value) {
            let message = format!("{} is the platform of a stage that names none", word.text);
            let fix = "leave --platform out";
            lint.report(Rule::RedundantTargetPlatform, &stage.written, word.span, message, fix);
        }
        let Ok(platform) = value.parse::<Platform>() else { return };
        let name = stage.name.as_ref().map_or("", |n| n.text.as_str());
        let said = name.contains(&platform.os) || name.contains(&platform.architecture);
        if asked.is_empty() && !said {
            let message = format!("this stage is for {platform} only");
            let fix = format!(
                "leave --platform out, write $BUILDPLATFORM, or name the stage after it: AS build-{}",
                platform.architecture
            );
            lint.report(Rule::FromPlatformFlagConstDisallowed, &stage.written, word.span, message, fix);
        }
    }

    /// A base whose name has variables is one also where no build argument is given.
    fn default_base(&self, lint: &mut Lint<'_>, stage: &Stage, index: usize, name: &str) {
        let is_base = name == "scratch"
            || self.stage_named(name, index).is_some()
            || self.given(name).is_some()
            || name.parse::<ImageRef>().is_ok();
        if !is_base {
            let message =
                format!("without --build-arg, {} gives {name:?}, which is no image", stage.base.text);
            let fix = "give the ARG before the first FROM a default";
            lint.report(Rule::InvalidDefaultArgInFrom, &stage.written, stage.base.span, message, fix);
        }
    }
}
