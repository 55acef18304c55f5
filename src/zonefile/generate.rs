//! `$GENERATE`: a record made many times over, with a number that counts up (a BIND extension).
//!
//! `$` in a template stands for the number, `$$` and `\$` for a dollar sign, and `${offset,width,base}` for the number
//! plus the offset, with at least so many digits, in base `d`, `o`, `x`, `X`, or as reversed nibbles with dots (`n`, `N`).

use crate::model::rdata::number_of;

/// Most records one `$GENERATE` makes.
pub const MAX_STEPS: u64 = 1_000_000;
/// Most digits a number is filled up to.
const MAX_WIDTH: usize = 255;
/// Longest text one step makes, in octets.
const MAX_EXPANDED: usize = 1 << 16;

/// The numbers of `start-stop[/step]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    start: u32,
    stop: u32,
    step: u32,
}

impl Range {
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        let expected = || {
            format!(
                "expected a range start-stop or start-stop/step of numbers up to {}",
                i32::MAX
            )
        };
        let text = std::str::from_utf8(text).map_err(|_| expected())?;
        let (range, step) = text.split_once('/').unwrap_or((text, "1"));
        let (start, stop) = range.split_once('-').ok_or_else(expected)?;
        let number = |text| {
            number_of::<u32>(text)
                .filter(|n| i32::try_from(*n).is_ok())
                .ok_or_else(expected)
        };
        let range = Self {
            start: number(start)?,
            stop: number(stop)?,
            step: number(step)?,
        };
        if range.start > range.stop || range.step == 0 {
            return Err("expected a range that counts up, with a step of at least 1".to_owned());
        }
        let steps = u64::from(range.stop - range.start) / u64::from(range.step) + 1;
        if steps > MAX_STEPS {
            return Err(format!("{steps} records: expected at most {MAX_STEPS}"));
        }
        Ok(range)
    }

    pub(super) fn numbers(self) -> impl Iterator<Item = u32> {
        (self.start..=self.stop).step_by(self.step as usize)
    }
}

/// Text with places for the number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(Vec<u8>),
    Number {
        offset: i64,
        width: usize,
        base: Base,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Base {
    Decimal,
    Octal,
    Hexadecimal { upper: bool },
    Nibbles { upper: bool },
}

impl Template {
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut plain = Vec::new();
        let mut rest = text;
        while let Some((&octet, tail)) = rest.split_first() {
            rest = tail;
            match (octet, rest.first()) {
                // The escape is left for whoever reads the expanded text.
                (b'\\', Some(&escaped)) => {
                    plain.extend_from_slice(&[b'\\', escaped]);
                    rest = &rest[1..];
                }
                (b'$', Some(b'$')) => {
                    plain.push(b'$');
                    rest = &rest[1..];
                }
                (b'$', next) => {
                    let piece = match next {
                        Some(b'{') => take_modifier(&mut rest)?,
                        _ => Piece::Number {
                            offset: 0,
                            width: 0,
                            base: Base::Decimal,
                        },
                    };
                    pieces.push(Piece::Text(std::mem::take(&mut plain)));
                    pieces.push(piece);
                }
                _ => plain.push(octet),
            }
        }
        pieces.push(Piece::Text(plain));
        Ok(Self(pieces))
    }

    /// The text for one number.
    pub(super) fn expand(&self, number: u32) -> Result<Vec<u8>, String> {
        let mut text = Vec::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(plain) => text.extend_from_slice(plain),
                Piece::Number {
                    offset,
                    width,
                    base,
                } => {
                    let value = i64::from(number) + offset;
                    let written = base.write(value, *width);
                    text.extend_from_slice(written.as_bytes());
                }
            }
            if text.len() > MAX_EXPANDED {
                return Err(format!("expected at most {MAX_EXPANDED} octets in a step"));
            }
        }
        Ok(text)
    }
}

/// Reads `{offset[,width[,base]]}`.
fn take_modifier(rest: &mut &[u8]) -> Result<Piece, String> {
    let expected = || {
        format!(
            "expected ${{offset,width,base}} with a width up to {MAX_WIDTH} and a base of d, o, x, X, n or N"
        )
    };
    let end = rest.iter().position(|o| *o == b'}').ok_or_else(expected)?;
    let inside = std::str::from_utf8(&rest[1..end]).map_err(|_| expected())?;
    *rest = &rest[end + 1..];
    let mut parts = inside.split(',');
    let offset = parts.next().unwrap_or_default();
    let width = parts.next().unwrap_or("0");
    let base = match parts.next().unwrap_or("d") {
        "d" => Base::Decimal,
        "o" => Base::Octal,
        "x" => Base::Hexadecimal { upper: false },
        "X" => Base::Hexadecimal { upper: true },
        "n" => Base::Nibbles { upper: false },
        "N" => Base::Nibbles { upper: true },
        _ => return Err(expected()),
    };
    let width = number_of::<usize>(width).filter(|w| *w <= MAX_WIDTH);
    match (offset.parse::<i32>(), width, parts.next()) {
        (Ok(offset), Some(width), None) => Ok(Piece::Number {
            offset: i64::from(offset),
            width,
            base,
        }),
        _ => Err(expected()),
    }
}

impl Base {
    /// Numbers below 0 have a sign in decimal; in the other bases they are written as their 32 bits, as BIND does.
    fn write(self, value: i64, width: usize) -> String {
        // What an offset of 31 bits makes of a number of 31 bits is within these.
        let bits = (value & i64::from(u32::MAX)).cast_unsigned();
        match self {
            Self::Decimal => format!("{value:0width$}"),
            Self::Octal => format!("{bits:0width$o}"),
            Self::Hexadecimal { upper: false } => format!("{bits:0width$x}"),
            Self::Hexadecimal { upper: true } => format!("{bits:0width$X}"),
            Self::Nibbles { upper } => nibbles(bits, width, upper),
        }
    }
}

/// The lowest nibble first, a dot between any two; the width counts dots too.
fn nibbles(mut value: u64, width: usize, upper: bool) -> String {
    let mut text = String::new();
    loop {
        let digit = char::from_digit((value & 0xf) as u32, 16).unwrap_or('0');
        text.push(if upper {
            digit.to_ascii_uppercase()
        } else {
            digit
        });
        value >>= 4;
        if value == 0 && text.len() >= width {
            return text;
        }
        text.push('.');
        if value == 0 && text.len() >= width {
            return text;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expand(template: &str, number: u32) -> Result<String, String> {
        let text = Template::parse(template.as_bytes())?.expand(number)?;
        Ok(String::from_utf8(text).expect("templates of ASCII give ASCII"))
    }

    #[test]
    fn numbers_are_written_as_the_modifiers_say() {
        for (template, number, text) in [
            ("host-$", 7, "host-7"),
            ("$.$", 7, "7.7"),
            ("a$$b", 7, "a$b"),
            (r"a\$b$", 7, r"a\$b7"),
            ("${0}", 7, "7"),
            ("${-5,3}", 7, "002"),
            ("g${-5,3,d}", 0, "g-05"),
            ("${-8}", 7, "-1"),
            ("${10,4,d}", 7, "0017"),
            ("${0,0,o}", 8, "10"),
            ("${0,4,x}", 255, "00ff"),
            ("${0,2,X}", 255, "FF"),
            ("${0,0,n}", 0x1ab, "b.a.1"),
            ("${0,7,N}.x", 0x1ab, "B.A.1.0.x"),
            ("${0,3,n}", 0, "0.0"),
            ("${0,4,n}", 0, "0.0."),
            ("${-5,0,x}", 1, "fffffffc"),
            ("${-5,12,x}", 1, "0000fffffffc"),
            ("${-5,0,X}", 1, "FFFFFFFC"),
            ("${-5,0,o}", 1, "37777777774"),
            ("${-5,4,n}", 1, "c.f.f.f.f.f.f.f"),
            ("${-5,12,N}", 1, "C.F.F.F.F.F.F.F"),
            ("${-2147483648,0,x}", 1, "80000001"),
        ] {
            assert_eq!(expand(template, number), Ok(text.to_owned()), "{template}");
        }
        for bad in ["${", "${}", "${0,256}", "${0,1,q}", "${0,1,d,1}", "${x}"] {
            assert!(expand(bad, 7).is_err(), "{bad}");
        }
    }

    #[test]
    fn ranges_count_up_and_are_bounded() {
        let numbers = |text: &str| Range::parse(text.as_bytes()).map(|r| r.numbers().collect());
        assert_eq!(numbers("1-3"), Ok(vec![1, 2, 3]));
        assert_eq!(numbers("0-10/4"), Ok(vec![0, 4, 8]));
        assert_eq!(numbers("5-5"), Ok(vec![5]));
        assert_eq!(numbers("2147483647-2147483647"), Ok(vec![2_147_483_647]));
        for bad in [
            "",
            "1",
            "3-1",
            "1-3/0",
            "a-b",
            "-1-2",
            "0-1000000",
            "0-4294967295/1",
        ] {
            assert!(Range::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
