//! Text that came from outside, as messages repeat it: in quotation marks, on one line, and otherwise as it was written.
//!
//! Backslashes stay single: `a\\300b` in a message is what the operator typed, where Rust's own quoting would double them.

use std::fmt;

/// Most characters that are repeated.
const MOST: usize = 255;

/// A text in quotation marks. Control characters are written as in master files, `\\007`.
#[derive(Clone, Copy, Debug)]
pub struct Quoted<'t>(&'t str);

pub fn quoted(text: &(impl AsRef<str> + ?Sized)) -> Quoted<'_> {
    Quoted(text.as_ref())
}

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"")?;
        for c in self.0.chars().take(MOST) {
            match c.is_control() {
                true => write!(f, "\\{:03}", u32::from(c))?,
                false => write!(f, "{c}")?,
            }
        }
        let cut = self.0.chars().nth(MOST).is_some();
        f.write_str(if cut { "...\"" } else { "\"" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_repeated_as_it_was_written() {
        for (text, expected) in [
            ("", "\"\""),
            ("a\\300b", "\"a\\300b\""),
            ("a b\"c", "\"a b\"c\""),
            ("\u{1b}[1m\n", "\"\\027[1m\\010\""),
            ("gr\u{fc}n", "\"gr\u{fc}n\""),
        ] {
            assert_eq!(quoted(text).to_string(), expected);
        }
        let long = quoted(&"x".repeat(300)).to_string();
        assert_eq!(long.len(), 255 + 5);
    }
}
