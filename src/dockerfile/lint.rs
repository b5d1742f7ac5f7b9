//! Lint rules, by BuildKit's names: what is valid and probably not meant.
//!
//! [`Lint`] collects the findings of one file and obeys what the file says of the rules: `# check=` at its head for all of it, in a
//! comment above an instruction for that one. [`Lint::text`] finds what the text alone shows. Rules that need arguments,
//! bases or the context are looked after by the image crate, where it lowers the file, and report here, too.
//!
//! Findings are warnings; `error=true` makes them errors, so that nothing is built. They are bounded and in the order of the file.

use crate::ast::{Dockerfile, Written};
use crate::nearest;
use keelway_model::{Diagnostic, Diagnostics, Severity, Span};

mod checks;
#[cfg(test)]
mod tests;
mod text;

pub use checks::Checks;

/// The build argument whose options count instead of those of the file.
pub const INSTEAD: &str = "BUILDKIT_DOCKERFILE_CHECK";
/// Most findings that are given of one file.
pub const MAX_FINDINGS: usize = 50;
/// Most that are looked at to choose them from.
const MAX_LOOKED_AT: usize = 20 * MAX_FINDINGS;

macro_rules! rules {
    ($($name:ident: $text:literal,)*) => {
        /// The rules.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Rule {
            $(#[doc = $text] $name,)*
        }

        impl Rule {
            /// All of them, by name.
            pub const ALL: &[Rule] = &[$(Rule::$name),*];

            /// What it is called: its code in a diagnostic, and in `# check=`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),* }
            }
            /// What it means and how to mend it.
            pub const fn explain(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }
        }
    };
}

rules! {
    ConsistentInstructionCasing: "Instructions are written in capitals and in small letters in one file, or in both at once. Write all as most of them are.",
    CopyIgnoredFile: "COPY or ADD takes a path that .dockerignore leaves out, so the build cannot find it. Take the path back in by a line `!path` there, or do not copy it.",
    DuplicateStageName: "Two stages have the same name; FROM and --from mean the last one before them. Give each its own name.",
    ExposeInvalidFormat: "EXPOSE names an address or a port of the machine. It documents the container's port only; what the machine forwards is said when it runs.",
    ExposeProtoCasing: "The protocol of EXPOSE is written with capitals. Write 80/tcp or 80/udp.",
    FromAsCasing: "FROM and AS are written differently, one in capitals, one in small letters. Write both alike.",
    FromPlatformFlagConstDisallowed: "FROM --platform names one platform, so the file builds for no other. Leave it out, use $BUILDPLATFORM or $TARGETPLATFORM, or say in the stage's name for which platform it is.",
    InvalidBaseImagePlatform: "The base image is for another platform than the build. Its programs cannot run here without emulation: choose an image that has the platform.",
    InvalidDefaultArgInFrom: "Without --build-arg, the variables of a FROM give no valid image name. Give the ARG before the first FROM a default, or write ${NAME:-default}.",
    InvalidDefinitionDescription: "The comment right above a FROM .. AS or an ARG is shown as its description, and begins with its name: `# NAME what it is`. A blank line below the comment says that it is none. The rule is on where `# check=experimental=` names it.",
    JSONArgsRecommended: "CMD or ENTRYPOINT in shell form runs below a shell, which passes no signals on: the program is not told to stop. Write a JSON array, or name the shell by SHELL where one is meant.",
    LegacyKeyValueFormat: "`ENV name value` and `LABEL name value` are an old form that can set one name only. Write name=value.",
    MaintainerDeprecated: "MAINTAINER is an old form. Write LABEL org.opencontainers.image.authors=.. instead.",
    MultipleInstructionsDisallowed: "A stage has more than one CMD, ENTRYPOINT or HEALTHCHECK; only the last one counts. Remove the others.",
    NoEmptyContinuation: "A blank line inside an instruction that goes on over several lines. It is passed over for now, as elsewhere; remove it or start it with #.",
    RedundantTargetPlatform: "FROM --platform=$TARGETPLATFORM says what is the case anyway. Leave it out.",
    ReservedStageName: "A stage is called scratch or context, which mean something else. Give it another name.",
    SecretsUsedInArgOrEnv: "The name of an ARG or ENV says that it holds a secret. Its value is in the image's config or history, for everyone who can pull it. Use RUN --mount=type=secret, or give it to the program when it runs.",
    StageNameCasing: "The name of a stage has capitals. Names are compared in small letters, so write them so.",
    UndefinedArgInFrom: "FROM uses a variable that no ARG before the first FROM declares, so it is empty. Declare it there; the message names the nearest one.",
    UndefinedVar: "A variable is used that is set neither by ENV or ARG before it nor by the base image, so it is empty. Declare it, or correct its name.",
    WorkdirRelativePath: "The first WORKDIR of a stage is relative, so where it leads is up to the base image. Write it from / on.",
}

impl Rule {
    /// Whether it is off unless `experimental=` asks for it.
    pub const fn is_experimental(self) -> bool {
        matches!(self, Self::InvalidDefinitionDescription)
    }
    /// The rule of this name; case matters.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|r| r.name() == name)
    }
    /// The nearest name, whatever its case.
    fn near(name: &str) -> Option<&'static str> {
        let lower: Vec<String> = Self::ALL.iter().map(|r| r.name().to_ascii_lowercase()).collect();
        let names: Vec<&str> = lower.iter().map(String::as_str).collect();
        let near = nearest(&name.to_ascii_lowercase(), &names)?;
        lower.iter().position(|n| n == near).map(|i| Self::ALL[i].name())
    }
}

/// The findings of one file, as they gather.
#[derive(Debug)]
pub struct Lint<'f> {
    file: &'f Dockerfile,
    checks: Checks,
    found: Vec<Diagnostic>,
}

impl<'f> Lint<'f> {
    /// Nothing was found yet. `instead` are options that count instead of the file's own `# check=` directive: the value of
    /// [`INSTEAD`].
    ///
    /// # Errors
    /// Why `instead` cannot be understood; those of the file were checked when it was parsed.
    pub fn new(file: &'f Dockerfile, instead: Option<&str>) -> Result<Self, String> {
        let mut lint = Self { file, checks: Checks::default(), found: Vec::new() };
        let directive = file.directives.iter().find(|d| d.key == "check");
        match (instead, directive) {
            (Some(options), _) => {
                lint.checks = Checks::parse(options)?;
                lint.tell_unknown(&lint.checks.unknown.clone(), Span::default());
            }
            (None, Some(directive)) => {
                lint.checks = Checks::parse(&directive.value.text).unwrap_or_default();
                lint.tell_unknown(&lint.checks.unknown.clone(), directive.value.span);
            }
            (None, None) => {}
        }
        Ok(lint)
    }

    /// The file.
    pub fn file(&self) -> &'f Dockerfile {
        self.file
    }

    /// Whether a finding of the rule about an instruction would be kept.
    pub fn wants(&self, rule: Rule, written: &Written) -> bool {
        if self.found.len() >= MAX_LOOKED_AT {
            return false;
        }
        let local = || written.comments.iter().filter_map(|c| Checks::of_comment(&c.text)?.ok());
        if rule.is_experimental() {
            self.checks.tries(rule) || local().any(|c| c.tries(rule))
        } else {
            !self.checks.skips(rule) && !local().any(|c| c.skips(rule))
        }
    }

    /// Takes a finding about an instruction: where, what, and what to do.
    pub fn report(
        &mut self,
        rule: Rule,
        written: &Written,
        at: Span,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) {
        if self.wants(rule, written) {
            let file = &self.file.source.name;
            let mut d = Diagnostic::warning(rule.name(), file, at, message).hint(fix);
            if self.checks.error {
                d.severity = Severity::Error;
            }
            self.found.push(d);
        }
    }

    fn tell_unknown(&mut self, names: &[String], at: Span) {
        for name in names {
            let message = format!("there is no lint rule {name:?}");
            let d = Diagnostic::warning("D0101", &self.file.source.name, at, message);
            self.found.push(match Rule::near(name) {
                Some(near) => d.hint(format!("did you mean {near}?")),
                None => d.hint("docs/dockerfile.md lists the rules"),
            });
        }
    }

    /// What was found, in the order of the file, each once, at most [`MAX_FINDINGS`].
    pub fn finish(self) -> Diagnostics {
        let mut out = Diagnostics::of(self.file.source.clone());
        let mut found = self.found;
        found.sort_by(|a, b| (a.span, &a.code, &a.message).cmp(&(b.span, &b.code, &b.message)));
        found.dedup();
        let more = found.len() > MAX_FINDINGS;
        found.truncate(MAX_FINDINGS);
        if self.checks.error
            && let Some(first) = found.iter_mut().find(|d| d.severity == Severity::Error)
        {
            first.hints.push("`# check=error=true` makes lint findings errors".to_owned());
        }
        out.items = found;
        if more {
            let message = format!("more than {MAX_FINDINGS} lint findings: the others are not shown");
            out.push(Diagnostic::warning("D0102", &self.file.source.name, Span::default(), message));
        }
        out
    }
}
