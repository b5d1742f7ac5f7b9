//! What `--chmod` says: a mode in octal, or changes to the mode that is there, as chmod(1) reads them.
//!
//! A change is `[ugoa..]` and then, once or more, `+`, `-` or `=` with permissions (`rwxXst`), with one of `u g o`
//! to copy from, or with octal digits (where no letter of who stands before). Changes are applied in order. What a
//! letter of who leaves out is all, and never depends on a umask. A directory keeps its set-id bits unless
//! a change names them, as GNU's chmod has it; octal digits alone are the whole mode, of directories too.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Changes that one text may hold.
const MAX_CHANGES: usize = 100;

/// All that a mode can hold.
const ALL: u32 = 0o7777;
const SET_IDS: u32 = 0o6000;
const EXECUTE: u32 = 0o111;

/// A mode, or changes to one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Chmod {
    text: String,
    rule: Rule,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Rule {
    Mode(u32),
    Changes(Vec<Change>),
}

/// One operator with what stands on its sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Change {
    /// Bits that who stands for; `None` where nobody is named.
    who: Option<u32>,
    operator: Operator,
    value: Value,
    /// Bits that the change speaks of.
    mentioned: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Add,
    Remove,
    Set,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value {
    Bits(u32),
    /// The same, and `X`.
    BitsAndSearch(u32),
    /// What the owner, group or others have, by their mask.
    Of(u32),
}

/// The text is no mode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a mode: write it in octal, at most 7777, or as changes like u=rwX,go=rX or +x")]
pub struct ChmodParseError(String);

impl std::str::FromStr for Chmod {
    type Err = ChmodParseError;
    fn from_str(text: &str) -> Result<Self, ChmodParseError> {
        let rule = if text.starts_with(|c: char| c.is_ascii_digit()) {
            octal(text.as_bytes()).map(Rule::Mode)
        } else {
            changes(text.as_bytes()).map(Rule::Changes)
        };
        match rule {
            Some(rule) => Ok(Self { text: text.to_owned(), rule }),
            None => Err(ChmodParseError(text.chars().take(100).collect())),
        }
    }
}

impl TryFrom<String> for Chmod {
    type Error = ChmodParseError;
    fn try_from(text: String) -> Result<Self, ChmodParseError> {
        text.parse()
    }
}

impl From<Chmod> for String {
    fn from(chmod: Chmod) -> Self {
        chmod.text
    }
}

impl fmt::Display for Chmod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Chmod {
    /// The mode of something that had `mode`.
    pub fn apply(&self, mode: u32, directory: bool) -> u32 {
        match &self.rule {
            Rule::Mode(mode) => *mode,
            Rule::Changes(changes) => changes.iter().fold(mode & ALL, |m, c| c.apply(m, directory)),
        }
    }
}

impl Change {
    fn apply(&self, mode: u32, directory: bool) -> u32 {
        let kept = if directory { SET_IDS & !self.mentioned } else { 0 };
        let value = match self.value {
            Value::Bits(bits) => bits,
            Value::BitsAndSearch(bits) if directory || mode & EXECUTE != 0 => bits | EXECUTE,
            Value::BitsAndSearch(bits) => bits,
            Value::Of(mask) => {
                let theirs = mode & mask;
                [0o444, 0o222, 0o111].into_iter().filter(|bits| theirs & bits != 0).sum()
            }
        };
        let value = value & self.who.unwrap_or(ALL) & !kept;
        match self.operator {
            Operator::Add => mode | value,
            Operator::Remove => mode & !value,
            Operator::Set => (mode & (self.who.map_or(0, |who| !who & ALL) | kept)) | value,
        }
    }
}

/// Octal digits, at most 7777.
fn octal(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() || digits.len() > 5 || !digits.iter().all(|d| (b'0'..=b'7').contains(d)) {
        return None;
    }
    Some(digits.iter().fold(0, |n, d| n << 3 | u32::from(d - b'0'))).filter(|n| *n <= ALL)
}

fn changes(text: &[u8]) -> Option<Vec<Change>> {
    let mut out = Vec::new();
    for clause in text.split(|b| *b == b',') {
        let end = clause.iter().position(|b| !b"ugoa".contains(b))?;
        let who = clause[..end].iter().fold(None, |who: Option<u32>, b| {
            Some(
                who.unwrap_or(0)
                    | match b {
                        b'u' => 0o4700,
                        b'g' => 0o2070,
                        b'o' => 0o1007,
                        _ => ALL,
                    },
            )
        });
        let mut rest = &clause[end..];
        while let Some((operator, after)) = rest.split_first() {
            let operator = match operator {
                b'+' => Operator::Add,
                b'-' => Operator::Remove,
                b'=' => Operator::Set,
                _ => return None,
            };
            let length = after.iter().position(|b| b"+-=".contains(b)).unwrap_or(after.len());
            let (operand, next) = after.split_at(length);
            out.push(change(who, operator, operand, next.is_empty())?);
            rest = next;
        }
        if end == clause.len() || out.len() > MAX_CHANGES {
            return None;
        }
    }
    Some(out)
}

fn change(who: Option<u32>, operator: Operator, operand: &[u8], last: bool) -> Option<Change> {
    if operand.first().is_some_and(u8::is_ascii_digit) {
        // Digits stand alone.
        let bits = octal(operand).filter(|_| who.is_none() && last)?;
        return Some(Change { who: Some(ALL), operator, value: Value::Bits(bits), mentioned: ALL });
    }
    let value = match operand {
        b"u" => Value::Of(0o700),
        b"g" => Value::Of(0o070),
        b"o" => Value::Of(0o007),
        letters => {
            let (mut bits, mut search) = (0, false);
            for letter in letters {
                bits |= match letter {
                    b'r' => 0o444,
                    b'w' => 0o222,
                    b'x' => EXECUTE,
                    b's' => SET_IDS,
                    b't' => 0o1000,
                    b'X' => {
                        search = true;
                        0
                    }
                    _ => return None,
                };
            }
            if search { Value::BitsAndSearch(bits) } else { Value::Bits(bits) }
        }
    };
    let spoken = match value {
        Value::Bits(bits) | Value::BitsAndSearch(bits) => bits,
        Value::Of(mask) => mask,
    };
    Some(Change { who, operator, value, mentioned: spoken & who.unwrap_or(ALL) })
}

#[cfg(test)]
mod tests;
