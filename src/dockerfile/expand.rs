//! The variable and quoting language of instruction arguments.
//!
//! `$v ${v}`, `${v:-w} ${v-w} ${v:+w} ${v+w} ${v:?e} ${v?e}`, `${v#p} ${v##p} ${v%p} ${v%%p}`, `${v/p/r} ${v//p/r}`, with
//! the wildcards `*` and `?` in patterns. Words nest. Single quotes are literal, the escape character takes
//! the meaning off the next character. Behaviour follows BuildKit, oddities included.
//!
//! Invariants: the work and the result are bounded ([`MAX_DEPTH`], [`MAX_RESULT`], [`MAX_STEPS`]), whatever
//! the input; nothing but the given [`Environment`] is looked at.

use std::cell::RefCell;
use std::collections::BTreeMap;

mod pattern;
#[cfg(test)]
mod tests;

/// How deep `${a:-${b:-..}}` may nest.
pub const MAX_DEPTH: usize = 100;
/// How long a result may be, in bytes.
pub const MAX_RESULT: usize = 1 << 20;
/// How much pattern matching one word may cost, in character comparisons.
pub const MAX_STEPS: usize = 20_000_000;

/// Where variables come from.
pub trait Environment {
    /// The value of a variable; `None` where it is not set.
    fn get(&self, name: &str) -> Option<&str>;
}

/// The last entry of a name counts.
impl Environment for Vec<(String, String)> {
    fn get(&self, name: &str) -> Option<&str> {
        self.iter().rev().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }
}

impl Environment for BTreeMap<String, String> {
    fn get(&self, name: &str) -> Option<&str> {
        BTreeMap::get(self, name).map(String::as_str)
    }
}

/// Variables that remember what was asked for.
pub struct Watched<'a> {
    env: &'a dyn Environment,
    asked: RefCell<BTreeMap<String, bool>>,
}

impl<'a> Watched<'a> {
    /// Nothing was asked for yet.
    pub fn new(env: &'a dyn Environment) -> Self {
        Self { env, asked: RefCell::default() }
    }
    /// Every name that was asked for, and whether it was set.
    pub fn asked(self) -> BTreeMap<String, bool> {
        self.asked.into_inner()
    }
}

impl Environment for Watched<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        let value = self.env.get(name);
        self.asked.borrow_mut().insert(name.to_owned(), value.is_some());
        value
    }
}

/// Why a word cannot be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpandError {
    /// A quote or brace is not closed.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// `${}`, `${{x}`, `${:x}`.
    #[error("bad substitution: a variable name must follow ${{")]
    BadSubstitution,
    /// `${x:y}`, `${x=y}`.
    #[error("unsupported modifier ({0}) in a substitution")]
    Modifier(String),
    /// `${x:?message}` of an unset or empty variable.
    #[error("{name}: {message}")]
    Required {
        /// The variable.
        name: String,
        /// What the author says, or what is wrong.
        message: String,
    },
    /// A malformed pattern.
    #[error("invalid pattern ({pattern}) in a substitution: {what}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        what: String,
    },
    /// One of the bounds was hit.
    #[error("a word expands to too much: {0}")]
    TooMuch(&'static str),
}

/// Expands one word: variables replaced, quotes and escapes taken off, white space kept.
pub fn expand(word: &str, env: &dyn Environment, escape: char) -> Result<String, ExpandError> {
    Expander::new(word, env, escape, Quotes::Processed).run().map(|(text, _)| text)
}

/// Expands, then splits at white space that is not quoted. Empty words are dropped.
pub fn expand_words(word: &str, env: &dyn Environment, escape: char) -> Result<Vec<String>, ExpandError> {
    Expander::new(word, env, escape, Quotes::Processed).run().map(|(_, words)| words)
}

/// Expands the body of an unquoted heredoc of `COPY` or `ADD`: quotes are ordinary characters, the backslash
/// escapes the next character and is taken off, as BuildKit has it.
pub fn expand_heredoc(body: &str, env: &dyn Environment) -> Result<String, ExpandError> {
    Expander::new(body, env, '\\', Quotes::Kept).run().map(|(text, _)| text)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Quotes {
    Processed,
    Kept,
}

/// Whether the escape character stays in the text (patterns need it) or is taken off.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Escapes {
    Raw,
    Removed,
}

/// Splits what it is given at white space, except where it was quoted.
#[derive(Default)]
struct Words {
    word: String,
    words: Vec<String>,
}

impl Words {
    fn soft(&mut self, c: char) {
        if !c.is_whitespace() {
            self.word.push(c);
        } else if !self.word.is_empty() {
            self.words.push(std::mem::take(&mut self.word));
        }
    }
    fn finish(mut self) -> Vec<String> {
        if !self.word.is_empty() {
            self.words.push(self.word);
        }
        self.words
    }
}

struct Expander<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    env: &'a dyn Environment,
    escape: char,
    quotes: Quotes,
    depth: usize,
    steps: usize,
}

impl<'a> Expander<'a> {
    fn new(word: &'a str, env: &'a dyn Environment, escape: char, quotes: Quotes) -> Self {
        Self { rest: word.chars().peekable(), env, escape, quotes, depth: 0, steps: 0 }
    }

    fn run(mut self) -> Result<(String, Vec<String>), ExpandError> {
        self.until(None, Escapes::Removed)
    }

    /// Up to and over `stop`, or to the end where there is none.
    fn until(&mut self, stop: Option<char>, escapes: Escapes) -> Result<(String, Vec<String>), ExpandError> {
        let mut text = String::new();
        let mut words = Words::default();
        while let Some(&c) = self.rest.peek() {
            if text.len() > MAX_RESULT {
                return Err(ExpandError::TooMuch("more than 1 MiB"));
            }
            if Some(c) == stop {
                self.rest.next();
                return Ok((text, words.finish()));
            }
            match c {
                '$' => {
                    let value = self.dollar()?;
                    value.chars().for_each(|c| words.soft(c));
                    text.push_str(&value);
                }
                '\'' | '"' if self.quotes == Quotes::Processed => {
                    self.rest.next();
                    let value = if c == '"' { self.double_quoted(escapes)? } else { self.single_quoted()? };
                    words.word.push_str(&value);
                    text.push_str(&value);
                }
                _ => {
                    self.rest.next();
                    if c != self.escape {
                        words.soft(c);
                        text.push(c);
                        continue;
                    }
                    if escapes == Escapes::Raw {
                        words.word.push(c);
                        text.push(c);
                    }
                    if let Some(c) = self.rest.next() {
                        words.word.push(c);
                        text.push(c);
                    }
                }
            }
        }
        match stop {
            Some('/') => Err(ExpandError::Missing("the / between pattern and replacement")),
            Some(_) => Err(ExpandError::Missing("the } of ${")),
            None if text.len() > MAX_RESULT => Err(ExpandError::TooMuch("more than 1 MiB")),
            None => Ok((text, words.finish())),
        }
    }

    fn single_quoted(&mut self) -> Result<String, ExpandError> {
        let mut text = String::new();
        for c in self.rest.by_ref() {
            if c == '\'' {
                return Ok(text);
            }
            text.push(c);
        }
        Err(ExpandError::Missing("the closing single quote"))
    }

    fn double_quoted(&mut self, escapes: Escapes) -> Result<String, ExpandError> {
        let mut text = String::new();
        while let Some(&c) = self.rest.peek() {
            if text.len() > MAX_RESULT {
                return Err(ExpandError::TooMuch("more than 1 MiB"));
            }
            if c == '$' {
                text.push_str(&self.dollar()?);
                continue;
            }
            self.rest.next();
            if c == '"' {
                return Ok(text);
            }
            if c != self.escape {
                text.push(c);
                continue;
            }
            if escapes == Escapes::Raw {
                text.push(c);
            }
            // Only these three can be escaped here; before anything else the escape character stays.
            match self.rest.peek() {
                None => {}
                Some(&next) if next == '"' || next == '$' || next == self.escape => {
                    self.rest.next();
                    text.push(next);
                }
                Some(_) => text.push(c),
            }
        }
        Err(ExpandError::Missing("the closing double quote"))
    }

    /// At a `$`.
    fn dollar(&mut self) -> Result<String, ExpandError> {
        self.rest.next();
        if self.rest.peek() != Some(&'{') {
            let name = self.name();
            return Ok(if name.is_empty() {
                "$".to_owned()
            } else {
                self.env.get(&name).unwrap_or_default().to_owned()
            });
        }
        self.rest.next();
        if self.depth >= MAX_DEPTH {
            return Err(ExpandError::TooMuch("substitutions nest more than 100 deep"));
        }
        self.depth += 1;
        let value = self.braced();
        self.depth -= 1;
        value
    }

    /// After `${`.
    fn braced(&mut self) -> Result<String, ExpandError> {
        match self.rest.peek() {
            None => return Err(ExpandError::Missing("the } of ${")),
            Some('{' | '}' | ':') => return Err(ExpandError::BadSubstitution),
            Some(_) => {}
        }
        let name = self.name();
        let env = self.env;
        let value = env.get(&name);
        let mut modifier = String::new();
        let mut next = self.rest.next();
        let empty_is_unset = next == Some(':');
        if empty_is_unset {
            modifier.push(':');
            next = self.rest.next();
        }
        let Some(c) = next else { return Err(ExpandError::Missing("the } of ${")) };
        modifier.push(c);
        let missing = value.is_none() || (empty_is_unset && value == Some(""));
        match c {
            '}' if !empty_is_unset => Ok(value.unwrap_or_default().to_owned()),
            '-' | '+' | '?' => {
                // A pattern around this keeps its escapes, the word itself does not.
                let (word, _) = self.until(Some('}'), Escapes::Removed)?;
                match c {
                    '-' if missing => Ok(word),
                    '+' if missing => Ok(String::new()),
                    '+' => Ok(word),
                    '?' if missing => {
                        let what = if value.is_none() {
                            "is not allowed to be unset"
                        } else {
                            "is not allowed to be empty"
                        };
                        Err(ExpandError::Required {
                            name,
                            message: if word.is_empty() { what.to_owned() } else { word },
                        })
                    }
                    _ => Ok(value.unwrap_or_default().to_owned()),
                }
            }
            '#' | '%' if !empty_is_unset => {
                let (word, _) = self.until(Some('}'), Escapes::Raw)?;
                let (longest, pattern) = word.strip_prefix(c).map_or((false, word.as_str()), |w| (true, w));
                let end = if c == '#' { pattern::End::Start } else { pattern::End::End };
                pattern::trim(pattern, value.unwrap_or_default(), end, longest, &mut self.steps)
            }
            '/' if !empty_is_unset => {
                let all = self.rest.peek() == Some(&'/');
                if all {
                    self.rest.next();
                }
                let (pattern, _) = self.until(Some('/'), Escapes::Raw)?;
                let (replacement, _) = self.until(Some('}'), Escapes::Raw)?;
                pattern::replace(&pattern, value.unwrap_or_default(), &replacement, all, &mut self.steps)
            }
            _ => Err(ExpandError::Modifier(modifier)),
        }
    }

    /// Letters, digits and `_`; or digits alone; or one special parameter. Empty when none of these follows.
    fn name(&mut self) -> String {
        let mut name = String::new();
        let Some(&first) = self.rest.peek() else { return name };
        if matches!(first, '@' | '*' | '#' | '?' | '-' | '$' | '!') {
            self.rest.next();
            name.push(first);
            return name;
        }
        let digits_only = first.is_numeric();
        while let Some(&c) = self.rest.peek() {
            let fits = if digits_only { c.is_numeric() } else { c.is_alphanumeric() || c == '_' };
            if !fits {
                break;
            }
            self.rest.next();
            name.push(c);
        }
        name
    }
}
