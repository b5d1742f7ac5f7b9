//! `.dockerignore`: which paths of a context are left out.
//!
//! Lines as Docker reads them: `#` at column 1 is a comment, white space around goes, a leading `/` goes, the
//! rest is cleaned as a path; `!` takes back in; the last line that matches wins; a match on a parent
//! counts for everything beneath it. `*` and `?` stop at `/`, `**` does not, `[..]` and `\` as in [`crate::glob`].
//!
//! A text is hostile until parsed: its size and the number of patterns are bounded, a malformed pattern is
//! an error with its line, and matching costs at most the product of the lengths.

use crate::glob::{Ranges, characters, class};

/// Largest ignore file, in bytes.
pub const MAX_BYTES: usize = 1 << 20;
/// Most patterns in one file.
pub const MAX_PATTERNS: usize = 10_000;

/// Where the ignore file of a Dockerfile is looked for; the first that exists is the only one read. Both are
/// relative to the context.
pub fn ignore_file_candidates(dockerfile: &str) -> [String; 2] {
    [format!("{dockerfile}.dockerignore"), ".dockerignore".to_owned()]
}

/// Why an ignore file is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IgnoreError {
    /// More than [`MAX_BYTES`] or [`MAX_PATTERNS`].
    #[error("the ignore file is too large: at most {MAX_BYTES} bytes and {MAX_PATTERNS} patterns are read")]
    TooLarge,
    /// A `!` alone.
    #[error("line {line}: a ! must be followed by a pattern")]
    LoneExclamation {
        /// From 1.
        line: usize,
    },
    /// A malformed pattern.
    #[error(
        "line {line}: malformed pattern {pattern:?}: a [ without its ], an empty or reversed range, or a \\ at the end"
    )]
    Pattern {
        /// From 1.
        line: usize,
        /// The pattern.
        pattern: String,
    },
}

impl IgnoreError {
    /// The same about a pattern that is no line of a file.
    pub fn of_one_pattern(&self) -> String {
        let said = self.to_string();
        match self {
            Self::TooLarge => said,
            _ => said.split_once(": ").map_or(said.clone(), |(_, rest)| rest.to_owned()),
        }
    }
}

/// What of a directory is in the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coverage {
    /// It, and everything beneath.
    Whole,
    /// It, but something beneath may be left out.
    Partly,
    /// Not it, but something beneath may be taken back in; if so, the directory comes along.
    OnlyBeneath,
    /// Nothing.
    Nothing,
}

/// Compiled patterns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ignore {
    patterns: Vec<Pattern>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    /// `!`
    takes_back: bool,
    /// Bytes that every match starts with.
    fixed: Vec<u8>,
    shape: Shape,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Shape {
    Exact(Vec<u8>),
    /// `dir/**`
    Prefix(Vec<u8>),
    /// `**name`; with a leading slash (`**/name`) also the bare name.
    Suffix(Vec<u8>),
    Tokens(Vec<Token>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Literal(u32),
    /// `?`
    One,
    /// `*`
    Many,
    Class {
        negated: bool,
        ranges: Ranges,
    },
    /// `**` in the middle: nothing, or anything that ends in a slash.
    Directories,
    /// `**` at the end.
    Rest,
}

impl Ignore {
    /// Parses an ignore file.
    pub fn parse(text: &[u8]) -> Result<Self, IgnoreError> {
        if text.len() > MAX_BYTES {
            return Err(IgnoreError::TooLarge);
        }
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        let mut out = Self::default();
        for (i, line) in text.split(|&b| b == b'\n').enumerate() {
            if line.starts_with(b"#") {
                continue;
            }
            let line = line.trim_ascii();
            let (takes_back, pattern) = match line.strip_prefix(b"!") {
                Some(p) => (true, p.trim_ascii()),
                None => (false, line),
            };
            if line.is_empty() {
                continue;
            }
            if pattern.is_empty() {
                return Err(IgnoreError::LoneExclamation { line: i + 1 });
            }
            let cleaned = clean(pattern);
            let cleaned =
                if cleaned.len() > 1 { cleaned.strip_prefix(b"/").unwrap_or(&cleaned) } else { &cleaned };
            out.push(takes_back, cleaned, i + 1)?;
        }
        Ok(out)
    }

    /// Takes patterns that are not lines of a file (`--exclude`): trimmed and cleaned, a leading `/` stays.
    pub fn from_patterns<'a>(patterns: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, IgnoreError> {
        let mut out = Self::default();
        for (i, pattern) in patterns.into_iter().enumerate() {
            let cleaned = clean(pattern.trim_ascii());
            let (takes_back, rest) =
                cleaned.strip_prefix(b"!").map_or((false, &cleaned[..]), |rest| (true, rest));
            if pattern.trim_ascii().is_empty() {
                continue;
            }
            if rest.is_empty() {
                return Err(IgnoreError::LoneExclamation { line: i + 1 });
            }
            out.push(takes_back, rest, i + 1)?;
        }
        Ok(out)
    }

    fn push(&mut self, takes_back: bool, cleaned: &[u8], line: usize) -> Result<(), IgnoreError> {
        if self.patterns.len() >= MAX_PATTERNS {
            return Err(IgnoreError::TooLarge);
        }
        let shape = Shape::new(cleaned).ok_or_else(|| IgnoreError::Pattern {
            line,
            pattern: String::from_utf8_lossy(cleaned).chars().take(200).collect(),
        })?;
        let fixed = match &shape {
            Shape::Exact(text) | Shape::Prefix(text) => text.clone(),
            Shape::Suffix(_) => Vec::new(),
            Shape::Tokens(_) => {
                let end = cleaned.iter().position(|b| matches!(b, b'*' | b'?' | b'[' | b'\\'));
                cleaned[..end.unwrap_or(cleaned.len())].to_vec()
            }
        };
        self.patterns.push(Pattern { takes_back, fixed, shape });
        Ok(())
    }

    /// Whether there is no pattern at all.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether a pattern takes something back in: then what is left out cannot be told without the files.
    pub fn takes_back(&self) -> bool {
        self.patterns.iter().any(|p| p.takes_back)
    }

    /// Whether one pattern leaves everything out: `*`, `**` or `**/*`.
    pub fn leaves_all_out(&self) -> bool {
        self.patterns.iter().any(|p| !p.takes_back && p.shape.is_everything())
    }

    /// Whether a path (relative, normalised, any bytes) is left out, itself or through a parent.
    pub fn excludes(&self, path: &[u8]) -> bool {
        let mut excluded = false;
        for pattern in &self.patterns {
            // A pattern that could only say what is the case already need not be tried.
            if pattern.takes_back == excluded && pattern.matches_with_parents(path) {
                excluded = !pattern.takes_back;
            }
        }
        excluded
    }

    /// What of the directory `path` is in the context. Never says less than there is: `Partly` may turn out
    /// whole, `OnlyBeneath` empty.
    pub fn coverage(&self, path: &[u8]) -> Coverage {
        let excluded = !path.is_empty() && self.excludes(path);
        let may_change = self.patterns.iter().any(|p| p.takes_back == excluded && p.may_match_beneath(path));
        match (excluded, may_change) {
            (false, false) => Coverage::Whole,
            (false, true) => Coverage::Partly,
            (true, true) => Coverage::OnlyBeneath,
            (true, false) => Coverage::Nothing,
        }
    }
}

impl Pattern {
    fn matches_with_parents(&self, path: &[u8]) -> bool {
        if !path.starts_with(&self.fixed) {
            return false;
        }
        self.shape.matches(path)
            || path
                .iter()
                .enumerate()
                .filter(|(_, b)| **b == b'/')
                .any(|(i, _)| self.shape.matches(&path[..i]))
    }

    fn may_match_beneath(&self, dir: &[u8]) -> bool {
        if dir.is_empty() || self.fixed.is_empty() {
            return true;
        }
        let inside = [dir, b"/"].concat();
        inside.starts_with(&self.fixed) || self.fixed.starts_with(&inside)
    }
}

impl Shape {
    /// `None` when the pattern is malformed.
    fn new(pattern: &[u8]) -> Option<Self> {
        let chars = characters(pattern);
        let is = |at: usize, c: u8| chars.get(at) == Some(&u32::from(c));
        let mut tokens = Vec::new();
        let mut at = 0;
        let mut plain = true;
        let mut last_stars = false;
        while let Some(&c) = chars.get(at) {
            at += 1;
            last_stars = false;
            match u8::try_from(c) {
                Ok(b'*') if is(at, b'*') => {
                    at += 1;
                    at += usize::from(is(at, b'/'));
                    last_stars = at == chars.len();
                    plain &= last_stars || tokens.is_empty();
                    tokens.push(if last_stars { Token::Rest } else { Token::Directories });
                }
                Ok(b'*') => (plain, _) = (false, tokens.push(Token::Many)),
                Ok(b'?') => (plain, _) = (false, tokens.push(Token::One)),
                Ok(b'[') => {
                    let (negated, ranges, next) = class(&chars, at)?;
                    if ranges.iter().any(|(low, high)| low > high) {
                        return None;
                    }
                    at = next;
                    plain = false;
                    tokens.push(Token::Class { negated, ranges });
                }
                Ok(b'\\') => {
                    plain = false;
                    tokens.push(Token::Literal(*chars.get(at)?));
                    at += 1;
                }
                _ => tokens.push(Token::Literal(c)),
            }
        }
        let doubles = tokens.iter().filter(|t| matches!(t, Token::Directories | Token::Rest)).count();
        Some(match tokens.first() {
            _ if !plain || doubles > 1 => Self::Tokens(tokens),
            Some(Token::Rest) => Self::Suffix(Vec::new()),
            Some(Token::Directories) => Self::Suffix(pattern[2..].to_vec()),
            // After `**` at the end a slash may have been eaten; cleaned patterns have none there.
            _ if last_stars => Self::Prefix(pattern[..pattern.len() - 2].to_vec()),
            _ => Self::Exact(pattern.to_vec()),
        })
    }

    fn is_everything(&self) -> bool {
        match self {
            Self::Suffix(text) => text.is_empty(),
            Self::Tokens(tokens) => matches!(tokens[..], [Token::Many] | [Token::Directories, Token::Many]),
            Self::Exact(_) | Self::Prefix(_) => false,
        }
    }

    fn matches(&self, path: &[u8]) -> bool {
        match self {
            Self::Exact(text) => path == text,
            Self::Prefix(text) => path.starts_with(text),
            Self::Suffix(text) => path.ends_with(text) || text.strip_prefix(b"/") == Some(path),
            Self::Tokens(tokens) => matches_tokens(tokens, &characters(path)),
        }
    }
}

fn matches_tokens(tokens: &[Token], path: &[u32]) -> bool {
    const SLASH: u32 = b'/' as u32;
    // `live[i]`: the first i tokens match what was read. A `**` that is inside a name waits for its slash.
    let end = tokens.len();
    let mut live = vec![false; end + 1];
    let mut inside = vec![false; end + 1];
    live[0] = true;
    let skip = |live: &mut Vec<bool>| {
        for i in 0..end {
            if live[i] && matches!(tokens[i], Token::Many | Token::Rest | Token::Directories) {
                live[i + 1] = true;
            }
        }
    };
    skip(&mut live);
    for &c in path {
        let mut next = vec![false; end + 1];
        let mut next_inside = vec![false; end + 1];
        for (i, token) in tokens.iter().enumerate() {
            match token {
                Token::Literal(l) => next[i + 1] |= live[i] && *l == c,
                Token::One => next[i + 1] |= live[i] && c != SLASH,
                Token::Many => next[i] |= live[i] && c != SLASH,
                Token::Class { negated, ranges } => {
                    let member = ranges.iter().any(|(low, high)| (*low..=*high).contains(&c));
                    next[i + 1] |= live[i] && member != *negated;
                }
                Token::Rest => next[i] |= live[i],
                Token::Directories if live[i] || inside[i] => {
                    next_inside[i] = true;
                    next[i + 1] |= c == SLASH;
                }
                Token::Directories => {}
            }
        }
        skip(&mut next);
        if !next.contains(&true) && !next_inside.contains(&true) {
            return false;
        }
        (live, inside) = (next, next_inside);
    }
    live[end]
}

/// Go's `path.Clean`: no empty and no `.` components, `..` resolved where it can be; empty becomes `.`.
fn clean(path: &[u8]) -> Vec<u8> {
    let rooted = path.starts_with(b"/");
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." if parts.last().is_some_and(|p| *p != b"..") => {
                parts.pop();
            }
            b".." if rooted => {}
            p => parts.push(p),
        }
    }
    let joined = parts.join(&b'/');
    match (rooted, joined.is_empty()) {
        (true, _) => [b"/", &joined[..]].concat(),
        (false, true) => b".".to_vec(),
        (false, false) => joined,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ignore(text: &str) -> Ignore {
        Ignore::parse(text.as_bytes()).unwrap_or_else(|e| panic!("{text:?}: {e}"))
    }

    #[test]
    fn rules() {
        for (text, out, kept) in [
            ("a", &["a", "a/b"][..], &["b", "aa", "b/a"][..]),
            ("/a/", &["a", "a/b/c"], &["b/a"]),
            ("*.md\n!README.md", &["x.md"], &["README.md", "d/x.md"]),
            ("**/*.o", &["x.o", "a/x.o", "a/b/x.o"], &["x.c", "a/o"]),
            ("**/node_modules", &["node_modules/x", "a/node_modules"], &["xnode_modules", "node_modules2"]),
            ("**\n!src", &["x", "a/src"], &["src", "src/a/b"]),
            ("a/**/z", &["a/z", "a/b/z", "a/b/c/z"], &["a", "az", "a/b"]),
            ("docs\n!docs/*.md\ndocs/x.md", &["docs/a", "docs/x.md", "docs/d/y.md"], &["docs/y.md"]),
            ("# c\n #x\n\n  b  \n", &["b", "#x"], &["c", "# c"]),
            ("a/../b/./c", &["b/c"], &["a", "b"]),
            ("dir/**", &["dir/x", "dir/x/y"], &["dir", "dirx"]),
            ("[a-c]?", &["ax", "b1"], &["a", "d1", "a/"]),
            ("\u{feff}x", &["x"], &["\u{feff}x"]),
            ("\\!x", &["!x"], &["x"]),
        ] {
            let i = ignore(text);
            out.iter().for_each(|p| assert!(i.excludes(p.as_bytes()), "{text:?} leaves {p} out"));
            kept.iter().for_each(|p| assert!(!i.excludes(p.as_bytes()), "{text:?} keeps {p}"));
        }
        assert!(Ignore::parse(b"\xff*").unwrap().excludes(b"\xff\xfe"), "names are bytes");
    }

    #[test]
    fn what_leaves_all_out() {
        for text in ["*", "**", "**/*", "a\n/*\n"] {
            assert!(ignore(text).leaves_all_out(), "{text}");
        }
        for text in ["", ".*", "*a", "**/a", "a/**", "!*", "?"] {
            assert!(!ignore(text).leaves_all_out(), "{text}");
        }
        assert!(ignore("a\n!a/b").takes_back() && !ignore("a\n\\!b").takes_back());
    }

    #[test]
    fn bad_files_are_errors() {
        for (text, line) in [("ok\n!", 2), ("[", 1), ("\n\n[Local-Only]/", 3), ("a\\", 1)] {
            let e = Ignore::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(e.contains(&format!("line {line}")), "{text:?}: {e}");
        }
        assert_eq!(Ignore::parse(&vec![b'a'; MAX_BYTES + 1]), Err(IgnoreError::TooLarge));
        assert_eq!(Ignore::parse("a\n".repeat(MAX_PATTERNS + 1).as_bytes()), Err(IgnoreError::TooLarge));
    }

    #[test]
    fn coverage_of_directories() {
        let i = ignore("build\nnode_modules\n!node_modules/keep/x\nsrc/*.tmp");
        assert_eq!(i.coverage(b"build"), Coverage::Nothing);
        assert_eq!(i.coverage(b"node_modules"), Coverage::OnlyBeneath);
        assert_eq!(i.coverage(b"node_modules/keep"), Coverage::OnlyBeneath);
        assert_eq!(i.coverage(b"node_modules/other"), Coverage::Nothing);
        assert_eq!(i.coverage(b"src"), Coverage::Partly);
        assert_eq!(i.coverage(b"lib"), Coverage::Whole);
        assert_eq!(i.coverage(b""), Coverage::Partly);
        assert_eq!(Ignore::default().coverage(b""), Coverage::Whole);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        /// What coverage says of a directory holds for every path beneath it.
        #[test]
        fn coverage_never_lies(
            lines in prop::collection::vec("!?[ab*]{1,3}(/[ab*?]{1,2}){0,2}", 1..5),
            dir in "[ab]{1,2}(/[ab]{1,2}){0,1}",
            rest in "[ab]{1,2}(/[ab]{1,2}){0,1}",
        ) {
            let Ok(i) = Ignore::parse(lines.join("\n").as_bytes()) else { return Ok(()) };
            let beneath = format!("{dir}/{rest}");
            match i.coverage(dir.as_bytes()) {
                Coverage::Whole => prop_assert!(!i.excludes(beneath.as_bytes())),
                Coverage::Nothing => prop_assert!(i.excludes(beneath.as_bytes())),
                Coverage::Partly => prop_assert!(!i.excludes(dir.as_bytes())),
                Coverage::OnlyBeneath => prop_assert!(i.excludes(dir.as_bytes())),
            }
        }
    }
}
