//! The names operators give to objects that are not domain names.

use std::fmt;

use super::quoted::quoted;

/// A name an operator gave to a pool, listener, backend or other object: 1 to 63 of `a-z 0-9 - _ .`, the first a letter or digit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Label(std::sync::Arc<str>);

/// Why a text is no object name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} is not a valid name: 1 to 63 of a-z, 0-9, '-', '_' and '.', beginning with a letter or digit",
    quoted(.0)
)]
pub struct LabelError(String);

impl Label {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for Label {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, LabelError> {
        let allowed =
            |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.');
        let first_fits = text
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if first_fits && text.len() <= 63 && text.bytes().all(allowed) {
            Ok(Self(text.into()))
        } else {
            Err(LabelError(text.chars().take(80).collect()))
        }
    }
}

impl TryFrom<String> for Label {
    type Error = LabelError;

    fn try_from(text: String) -> Result<Self, LabelError> {
        text.parse()
    }
}

impl From<Label> for String {
    fn from(label: Label) -> String {
        label.0.as_ref().to_owned()
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_names_are_plain() {
        assert!("web-1.prod_a".parse::<Label>().is_ok());
        for bad in ["", "-web", "Web", "a b", "a/b", &"x".repeat(64)] {
            assert!(bad.parse::<Label>().is_err(), "{bad:?}");
        }
    }
}
