//! SOA serial numbers (RFC 1982): a circle of 32 bits, never compared as integers.

use std::{cmp::Ordering, fmt};

/// A zone's serial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Serial(pub u32);

impl Serial {
    /// The next serial: one step forward on the circle.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }

    /// Compares by RFC 1982 section 3.2; none for two serials exactly half the circle apart.
    pub fn compare(self, other: Self) -> Option<Ordering> {
        match self.0.wrapping_sub(other.0) {
            0 => Some(Ordering::Equal),
            1..=0x7fff_ffff => Some(Ordering::Greater),
            0x8000_0000 => None,
            _ => Some(Ordering::Less),
        }
    }

    /// Whether a secondary that holds `other` would take this as newer.
    pub fn is_newer_than(self, other: Self) -> bool {
        self.compare(other) == Some(Ordering::Greater)
    }

    /// The later of the two; `self` where the order is undefined.
    #[must_use]
    pub fn later(self, other: Self) -> Self {
        if other.is_newer_than(self) {
            other
        } else {
            self
        }
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_that_of_rfc_1982() {
        assert!(Serial(1).is_newer_than(Serial(0)));
        assert!(Serial(0).is_newer_than(Serial(u32::MAX)));
        assert!(!Serial(u32::MAX).is_newer_than(Serial(0)));
        assert!(Serial(0x7fff_ffff).is_newer_than(Serial(0)));
        assert_eq!(Serial(0x8000_0000).compare(Serial(0)), None);
        assert_eq!(Serial(7).compare(Serial(7)), Some(Ordering::Equal));
        assert_eq!(Serial(u32::MAX).next(), Serial(0));
        assert_eq!(Serial(5).later(Serial(0x8000_0005)), Serial(5));
    }
}
