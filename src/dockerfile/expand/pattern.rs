//! Shell patterns (`*` and `?` only) of `${v#p}`, `${v%p}` and `${v/p/r}`.

use super::{ExpandError, MAX_RESULT, MAX_STEPS};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Token {
    Literal(char),
    One,
    Many,
}

/// Which end of a value a pattern is tried at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// `#`
    Start,
    /// `%`
    End,
}

fn tokens(pattern: &str) -> Result<Vec<Token>, ExpandError> {
    let bad = |what: String| ExpandError::Pattern { pattern: pattern.chars().take(100).collect(), what };
    let mut out = Vec::new();
    let mut rest = pattern.chars();
    while let Some(c) = rest.next() {
        out.push(match c {
            '*' => Token::Many,
            '?' => Token::One,
            '\\' => match rest.next() {
                Some(c @ ('*' | '?' | '\\' | '}' | '/')) => Token::Literal(c),
                Some(c) => return Err(bad(format!("invalid escape '\\{c}'"))),
                None => return Err(bad("it ends in a backslash".to_owned())),
            },
            c => Token::Literal(c),
        });
    }
    Ok(out)
}

/// How many characters of `value`, from its start, the tokens match: the most or the fewest. A line feed is
/// matched by itself alone.
fn prefix(
    tokens: &[Token],
    value: &[char],
    longest: bool,
    steps: &mut usize,
) -> Result<Option<usize>, ExpandError> {
    // `live[i]`: the first i tokens match what was read.
    let mut live = vec![false; tokens.len() + 1];
    live[0] = true;
    skip_stars(tokens, &mut live);
    let mut found = None;
    for at in 0..=value.len() {
        if live[tokens.len()] {
            found = Some(at);
            if !longest {
                break;
            }
        }
        let Some(&c) = value.get(at) else { break };
        *steps += tokens.len() + 1;
        if *steps > MAX_STEPS {
            return Err(ExpandError::TooMuch("a pattern needs too many comparisons"));
        }
        let mut next = vec![false; tokens.len() + 1];
        for (i, token) in tokens.iter().enumerate().filter(|(i, _)| live[*i]) {
            match token {
                Token::Literal(l) if *l == c => next[i + 1] = true,
                Token::One if c != '\n' => next[i + 1] = true,
                Token::Many if c != '\n' => next[i] = true,
                _ => {}
            }
        }
        skip_stars(tokens, &mut next);
        if !next.contains(&true) {
            break;
        }
        live = next;
    }
    Ok(found)
}

fn skip_stars(tokens: &[Token], live: &mut [bool]) {
    for i in 0..tokens.len() {
        if live[i] && tokens[i] == Token::Many {
            live[i + 1] = true;
        }
    }
}

/// `value` without what `pattern` matches at one end.
pub(super) fn trim(
    pattern: &str,
    value: &str,
    end: End,
    longest: bool,
    steps: &mut usize,
) -> Result<String, ExpandError> {
    let mut tokens = tokens(pattern)?;
    let mut chars: Vec<char> = value.chars().collect();
    if end == End::End {
        tokens.reverse();
        chars.reverse();
    }
    let cut = prefix(&tokens, &chars, longest, steps)?.unwrap_or(0);
    let kept = chars.into_iter().skip(cut);
    Ok(if end == End::End { kept.collect::<Vec<_>>().into_iter().rev().collect() } else { kept.collect() })
}

/// `value` with the first or every longest match replaced.
pub(super) fn replace(
    pattern: &str,
    value: &str,
    by: &str,
    all: bool,
    steps: &mut usize,
) -> Result<String, ExpandError> {
    let tokens = tokens(pattern)?;
    let chars: Vec<char> = value.chars().collect();
    let mut out = String::new();
    let (mut at, mut done) = (0, false);
    // An empty match right after another one does not count.
    let mut matched_to = None;
    while at <= chars.len() {
        let found = if done { None } else { prefix(&tokens, &chars[at..], true, steps)? };
        if let Some(len) = found.filter(|&len| len > 0 || matched_to != Some(at)) {
            out.push_str(by);
            done = !all;
            matched_to = Some(at + len);
            if len > 0 {
                at += len;
                continue;
            }
        }
        if let Some(&c) = chars.get(at) {
            out.push(c);
        }
        at += 1;
        if out.len() > MAX_RESULT {
            return Err(ExpandError::TooMuch("more than 1 MiB"));
        }
    }
    Ok(out)
}
