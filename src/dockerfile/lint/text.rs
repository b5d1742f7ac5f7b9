//! The rules that need nothing but the text.

use super::{Checks, Lint, Rule};
use crate::ast::{Instruction, Kind, Stage, Word, Written};
use crate::words::is_blank;
use keelway_model::{Diagnostic, Span};

/// Names that mean something else than a stage.
const RESERVED: [&str; 2] = ["context", "scratch"];

impl Lint<'_> {
    /// Finds what the text alone shows, in all stages.
    pub fn text(&mut self) {
        let file = self.file;
        let instructions = || file.globals.iter().chain(file.stages.iter().flat_map(|s| &s.instructions));
        for stage in &file.stages {
            self.written(&stage.written);
            self.stage(stage);
            if let Some(name) = &stage.name {
                self.description("FROM", &[name], stage.span, &stage.written);
            }
        }
        for i in instructions() {
            self.written(&i.written);
            self.instruction(i);
        }
        self.names();
        self.casing();
    }

    /// What concerns every instruction.
    fn written(&mut self, written: &Written) {
        for comment in &written.comments {
            match Checks::of_comment(&comment.text) {
                Some(Ok(checks)) => self.tell_unknown(&checks.unknown, comment.span),
                Some(Err(why)) => {
                    let message = format!("this check has no effect: {why}");
                    let file = &self.file.source.name;
                    self.found.push(Diagnostic::warning("D0101", file, comment.span, message));
                }
                None => {}
            }
        }
        if let Some(blank) = written.blank {
            let message = "a blank line inside an instruction that goes on";
            self.report(Rule::NoEmptyContinuation, written, blank, message, "remove it, or start it with #");
        }
    }

    fn stage(&mut self, stage: &Stage) {
        let words: Vec<&str> = stage.text.split(is_blank).filter(|w| !w.is_empty()).collect();
        let (Some(name), [from, .., keyword, written_name]) = (&stage.name, &words[..]) else { return };
        if *written_name != name.text {
            let message = format!("the name of the stage {written_name:?} has capitals");
            let fix = format!("write {}", name.text);
            self.report(Rule::StageNameCasing, &stage.written, name.span, message, fix);
        }
        let fits = match casing(from) {
            Some(Casing::Small) => Some(keyword.to_ascii_lowercase()),
            Some(Casing::Capital) => Some(keyword.to_ascii_uppercase()),
            // What is wrong with it is FROM.
            None => None,
        };
        if let Some(fits) = fits.filter(|f| f != keyword) {
            let message = format!("{keyword:?} is not written like {from:?}");
            let fix = format!("write {fits}");
            self.report(Rule::FromAsCasing, &stage.written, stage.span, message, fix);
        }
    }

    fn instruction(&mut self, i: &Instruction) {
        match &i.kind {
            Kind::Maintainer(_) => {
                let fix = "write LABEL org.opencontainers.image.authors=..";
                self.report(Rule::MaintainerDeprecated, &i.written, i.span, "MAINTAINER is an old form", fix);
            }
            Kind::Arg(arguments) => {
                let names: Vec<&Word> = arguments.iter().map(|a| &a.name).collect();
                self.description("ARG", &names, i.span, &i.written);
            }
            _ => {}
        }
    }

    /// The comment right above a definition begins with a name that is defined there.
    fn description(&mut self, what: &str, names: &[&Word], at: Span, written: &Written) {
        let Some(comment) = written.comments.last() else { return };
        let between = self.file.source.text.get(comment.span.end..at.start).unwrap_or_default();
        let first = comment.text.split(' ').next().unwrap_or_default();
        if between.matches('\n').count() > 1
            || Checks::of_comment(&comment.text).is_some()
            || names.iter().any(|n| n.text == first)
        {
            return;
        }
        let name = if let [only] = names { only.text.as_str() } else { "NAME" };
        let message = format!("the description of this {what} does not begin with its name");
        let fix = format!("write `# {name} what it is`, or leave a line blank below a comment that is none");
        self.report(Rule::InvalidDefinitionDescription, written, comment.span, message, fix);
    }

    fn names(&mut self) {
        let file = self.file;
        for (index, stage) in file.stages.iter().enumerate() {
            let Some(name) = &stage.name else { continue };
            if RESERVED.contains(&name.text.as_str()) {
                let message = format!("{:?} cannot be meant as a stage: it means something else", name.text);
                let fix = "give the stage another name";
                self.report(Rule::ReservedStageName, &stage.written, name.span, message, fix);
            }
            let same = |s: &&Stage| s.name.as_ref().is_some_and(|n| n.text == name.text);
            if let Some(first) = file.stages[..index].iter().rfind(same) {
                let line = file.source.line_col(first.span.start).0;
                let message = format!("the stage of line {line} is named {:?}, too", name.text);
                let fix = "from here on the name means this stage; give it another one";
                self.report(Rule::DuplicateStageName, &stage.written, name.span, message, fix);
            }
        }
    }

    /// All instructions are written as most are.
    fn casing(&mut self) {
        let file = self.file;
        let all = || {
            file.stages.iter().flat_map(|s| {
                let from = (s.span, &s.written);
                std::iter::once(from).chain(s.instructions.iter().map(|i| (i.span, &i.written)))
            })
        };
        let count = |c| all().filter(|(_, w)| casing(&w.keyword) == Some(c)).count();
        let most =
            if count(Casing::Small) > count(Casing::Capital) { Casing::Small } else { Casing::Capital };
        for (span, written) in all().filter(|(_, w)| casing(&w.keyword) != Some(most)) {
            let (how, fits) = match most {
                Casing::Small => ("small letters", written.keyword.to_ascii_lowercase()),
                Casing::Capital => ("capitals", written.keyword.to_ascii_uppercase()),
            };
            let at = Span::new(span.start, span.start + written.keyword.len());
            let message = format!("{:?} is not written in {how} as the others are", written.keyword);
            let fix = format!("write {fits}");
            self.report(Rule::ConsistentInstructionCasing, written, at, message, fix);
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Casing {
    Small,
    Capital,
}

/// How a keyword is written; `None` for a mixture.
fn casing(word: &str) -> Option<Casing> {
    if word.bytes().all(|b| b.is_ascii_lowercase()) {
        Some(Casing::Small)
    } else if word.bytes().all(|b| b.is_ascii_uppercase()) {
        Some(Casing::Capital)
    } else {
        None
    }
}
