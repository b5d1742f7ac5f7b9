//! Text of others, made harmless: no control character reaches the terminal.
//!
//! Escape sequences are taken out whole (colours of compilers are the common case), whatever is left of control
//! characters is shown as a visible picture, and characters that turn the direction of text, and so can make a
//! line read as another, likewise. A sequence that never ends is cut at the end of its line.

use std::iter::Peekable;
use std::str::Chars;

/// One line: a line break in it becomes a space, so that one fact stays one line.
pub fn clean(text: &str) -> String {
    scrub(text, " ")
}

/// Several lines, each made harmless; line breaks stay.
pub fn clean_lines(text: &str) -> String {
    scrub(text, "\n")
}

fn scrub(text: &str, line_break: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\n' => out.push_str(line_break),
            // The end of a line on other systems; alone, a progress bar that draws over itself.
            '\r' if chars.peek() == Some(&'\n') => {}
            '\r' => out.push_str(line_break),
            '\t' => out.push_str("    "),
            '\x1b' => skip_escape(&mut chars),
            '\u{9b}' => skip_csi(&mut chars),
            '\u{90}' | '\u{98}' | '\u{9d}' | '\u{9e}' | '\u{9f}' => skip_string(&mut chars),
            '\0'..='\x1f' => out.extend(char::from_u32(0x2400 + c as u32)),
            '\x7f' => out.push('\u{2421}'),
            '\u{80}'..='\u{9f}' => out.push('\u{fffd}'),
            '\u{200e}'
            | '\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}'
            | '\u{2028}'
            | '\u{2029}' => {
                out.push('\u{fffd}');
            }
            c => out.push(c),
        }
    }
    out
}

/// After ESC.
fn skip_escape(chars: &mut Peekable<Chars<'_>>) {
    match chars.peek() {
        Some('[') => {
            chars.next();
            skip_csi(chars);
        }
        Some(']' | 'P' | 'X' | '^' | '_') => {
            chars.next();
            skip_string(chars);
        }
        Some(' '..='/') => {
            while chars.next_if(|c| (' '..='/').contains(c)).is_some() {}
            chars.next_if(|c| ('0'..='~').contains(c));
        }
        Some('0'..='~') => {
            chars.next();
        }
        _ => {}
    }
}

/// Parameters and the final character of a control sequence.
fn skip_csi(chars: &mut Peekable<Chars<'_>>) {
    while chars.next_if(|c| (' '..='?').contains(c)).is_some() {}
    chars.next_if(|c| ('@'..='~').contains(c));
}

/// A string for the terminal (title, clipboard, link), up to its end or the end of the line.
fn skip_string(chars: &mut Peekable<Chars<'_>>) {
    while let Some(&c) = chars.peek() {
        match c {
            '\n' => return,
            '\x07' | '\u{9c}' => {
                chars.next();
                return;
            }
            '\x1b' => {
                chars.next();
                chars.next_if_eq(&'\\');
                return;
            }
            _ => {
                chars.next();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_output_becomes_plain_text() {
        for (given, want) in [
            ("plain", "plain"),
            ("\x1b[31mred\x1b[0m", "red"),
            ("\x1b]8;;javascript:alert(1)\x07link\x1b]8;;\x07", "link"),
            ("\x1b]52;c;cm0gLXJmIC8=\x1b\\after", "after"),
            ("\x1bPq#0;2;0;0;0\x1b\\after", "after"),
            ("\x1b[2A\x1b[2Kstep passed", "step passed"),
            ("\u{9b}2Jgone", "gone"),
            ("\u{9d}0;title\u{9c}x", "x"),
            ("a\0b\x07c\x7f", "a␀b␇c␡"),
            ("\u{202e}gpj.exe", "\u{fffd}gpj.exe"),
            ("50%\r100%", "50% 100%"),
            ("a\tb", "a    b"),
            ("\x1b(Bx\x1b", "x"),
            ("\x1b]0;never ends", ""),
        ] {
            assert_eq!(clean(given), want, "{given:?}");
        }
        assert_eq!(clean_lines("a\r\n\x1b]0;cut here\nb"), "a\n\nb");
        assert_eq!(clean(&"\x1b[1m".repeat(100_000)), "");
    }

    #[test]
    fn no_control_character_survives_whatever_comes() {
        let alphabet: Vec<char> =
            "\x1b\u{9b}\u{9d}\u{90}\u{9c}[]PX^_;0?!@~ \\\x07\r\n\t\0\x7f\u{85}\u{202e}aя".chars().collect();
        // A fixed linear congruence: the same texts every time.
        let mut seed = 7u64;
        for _ in 0..20_000 {
            let mut text = String::new();
            for _ in 0..12 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                text.push(alphabet[(seed >> 33) as usize % alphabet.len()]);
            }
            let bad = |c: char| c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c);
            assert!(!clean(&text).contains(bad), "{text:?}");
            assert!(!clean_lines(&text).replace('\n', "").contains(bad), "{text:?}");
        }
    }
}
