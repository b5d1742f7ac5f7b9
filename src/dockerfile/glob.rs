//! Go's `filepath.Match`: `*` and `?` stop at `/`, `[a-z]` and `[^a-z]`, `\` escapes.
//!
//! A malformed pattern is an error even where the name already failed to match. Names need not be UTF-8:
//! a byte that is not part of a character counts as one character of its own. The cost is bounded by the
//! product of the two lengths.

/// A malformed pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed pattern {0:?}: a [ without its ], an empty range, or a \\ at the end")]
pub struct BadPattern(pub String);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Literal(u32),
    One,
    Many,
    Class { negated: bool, ranges: Ranges },
}

/// A compiled pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob(Vec<Token>);

/// Not a character: a byte that is not UTF-8 gets a number above all characters.
const RAW: u32 = 0x11_0000;
const SLASH: u32 = b'/' as u32;

/// The characters of a name.
pub(crate) fn characters(text: &[u8]) -> Vec<u32> {
    let mut out = Vec::with_capacity(text.len());
    for chunk in text.utf8_chunks() {
        out.extend(chunk.valid().chars().map(u32::from));
        out.extend(chunk.invalid().iter().map(|&b| RAW + u32::from(b)));
    }
    out
}

/// Lowest and highest character of each member of a class.
pub(crate) type Ranges = Vec<(u32, u32)>;

/// One `[..]` class, `at` right after the `[`; gives whether it is negated, its members and what follows it.
pub(crate) fn class(chars: &[u32], mut at: usize) -> Option<(bool, Ranges, usize)> {
    const ESCAPE: u32 = b'\\' as u32;
    let is = |at: usize, c: u8| chars.get(at) == Some(&u32::from(c));
    let negated = is(at, b'^');
    at += usize::from(negated);
    let member = |at: usize| -> Option<(u32, usize)> {
        match *chars.get(at)? {
            c if c == u32::from(b'-') || c == u32::from(b']') => None,
            ESCAPE => Some((*chars.get(at + 1)?, at + 2)),
            c => Some((c, at + 1)),
        }
    };
    let mut ranges = Vec::new();
    while ranges.is_empty() || !is(at, b']') {
        let (low, next) = member(at)?;
        let (high, next) = if is(next, b'-') { member(next + 1)? } else { (low, next) };
        ranges.push((low, high));
        at = next;
    }
    Some((negated, ranges, at + 1))
}

impl Glob {
    /// Compiles a pattern.
    pub fn new(pattern: &[u8]) -> Result<Self, BadPattern> {
        let bad = || BadPattern(String::from_utf8_lossy(pattern).chars().take(200).collect());
        let chars = characters(pattern);
        let mut out = Vec::new();
        let mut at = 0;
        while let Some(&c) = chars.get(at) {
            at += 1;
            out.push(match u8::try_from(c) {
                Ok(b'*') => Token::Many,
                Ok(b'?') => Token::One,
                Ok(b'[') => {
                    let (negated, ranges, next) = class(&chars, at).ok_or_else(bad)?;
                    at = next;
                    Token::Class { negated, ranges }
                }
                Ok(b'\\') => {
                    at += 1;
                    Token::Literal(*chars.get(at - 1).ok_or_else(bad)?)
                }
                _ => Token::Literal(c),
            });
        }
        Ok(Self(out))
    }

    /// Whether the whole of `name` matches.
    pub fn matches(&self, name: &[u8]) -> bool {
        let name = characters(name);
        let tokens = &self.0;
        // After a `*` failed to lead anywhere it takes one more character and all is tried again from there.
        let (mut t, mut n, mut retry) = (0, 0, None);
        while n < name.len() {
            let fits = match tokens.get(t) {
                Some(Token::Many) => {
                    retry = Some((t, n));
                    t += 1;
                    continue;
                }
                Some(Token::One) => name[n] != SLASH,
                Some(Token::Literal(c)) => *c == name[n],
                Some(Token::Class { negated, ranges }) => {
                    ranges.iter().any(|(low, high)| (*low..=*high).contains(&name[n])) != *negated
                }
                None => false,
            };
            if fits {
                (t, n) = (t + 1, n + 1);
                continue;
            }
            match retry {
                Some((star, from)) if name[from] != SLASH => {
                    retry = Some((star, from + 1));
                    (t, n) = (star + 1, from + 1);
                }
                _ => return false,
            }
        }
        tokens[t..].iter().all(|t| *t == Token::Many)
    }
}

/// Whether the text has a character with a meaning in patterns.
pub fn is_pattern(text: &[u8]) -> bool {
    text.iter().any(|b| matches!(b, b'*' | b'?' | b'[' | b'\\'))
}

/// Whether the whole of `name` matches `pattern`.
pub fn matches(pattern: &[u8], name: &[u8]) -> Result<bool, BadPattern> {
    Glob::new(pattern).map(|g| g.matches(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules() {
        let m = |p: &str, n: &str| matches(p.as_bytes(), n.as_bytes());
        for (p, n) in [
            ("*", "abc"),
            ("*", ""),
            ("*c", "abc"),
            ("a*/b", "abc/b"),
            ("a?c", "aßc"),
            ("[a-c]x", "bx"),
            ("[^a-c]x", "zx"),
            ("[\\]]", "]"),
            ("\\*", "*"),
            ("a*b*c", "a__b_b_c"),
            ("*.tar.*", "x.tar.gz"),
            ("[a-ζ]*", "α"),
            ("**", "abc"),
            ("a/*/c", "a/b/c"),
            ("", ""),
        ] {
            assert_eq!(m(p, n), Ok(true), "{p} {n}");
        }
        for (p, n) in [
            ("*", "a/b"),
            ("?", "/"),
            ("a*", "ba"),
            ("[a-c]", "d"),
            ("[^a]", "a"),
            ("abc", "ab"),
            ("ab", "abc"),
            ("*/", "a"),
            ("", "a"),
            ("a/*", "a/b/c"),
        ] {
            assert_eq!(m(p, n), Ok(false), "{p} {n}");
        }
        for p in ["[", "[a", "[]a]", "[-]", "[x-]", "[-x]", "[a-b-c]", "\\", "a[", "[^", "[a\\"] {
            assert!(m(p, "a").is_err(), "{p}");
            assert!(m(p, "never").is_err(), "{p} is malformed whatever the name is");
        }
        assert_eq!(matches(b"a?b", b"a\xffb"), Ok(true), "a byte that is no character is one");
    }

    #[test]
    fn many_stars_stay_cheap() {
        let pattern = "*a".repeat(2000);
        assert_eq!(matches(pattern.as_bytes(), &vec![b'a'; 1999]), Ok(false));
        assert_eq!(matches(format!("{pattern}b").as_bytes(), &vec![b'a'; 20_000]), Ok(false));
    }
}
