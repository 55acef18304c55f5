//! Generated protobuf types and their conversions to domain values, one file per message family.
//!
//! Every field is named in both directions, so that a new one breaks the build and not production. A missing or malformed
//! field is refused with `WireError`. Nothing here does I/O, and nothing judges what depends on the state.

use crate::model::quoted::quoted;
pub mod backup;
pub mod balancing;
pub mod command;
pub mod error;
pub mod outcome;
pub mod records;

pub use pontoon_proto::v1;

/// Why a message is no domain value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct WireError {
    /// The field, by its name in the `.proto` file.
    pub field: &'static str,
    pub problem: String,
}

impl WireError {
    pub fn new(field: &'static str, problem: impl ToString) -> Self {
        Self {
            field,
            problem: problem.to_string(),
        }
    }

    pub fn missing(field: &'static str) -> Self {
        Self::new(field, "is missing")
    }
}

/// Takes a message field that must be present.
pub(crate) fn required<T>(field: &'static str, value: Option<T>) -> Result<T, WireError> {
    value.ok_or_else(|| WireError::missing(field))
}

/// Reads a text field.
pub(crate) fn parsed<T>(field: &'static str, text: &str) -> Result<T, WireError>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|e| {
        let shown: String = text.chars().take(300).collect();
        WireError::new(field, format!("{shown}: {e}", shown = quoted(&shown)))
    })
}

/// Narrows a number field.
pub(crate) fn narrowed<T, N>(field: &'static str, value: N) -> Result<T, WireError>
where
    T: TryFrom<N>,
    N: std::fmt::Display + Copy,
{
    T::try_from(value).map_err(|_| WireError::new(field, format!("{value} is out of range")))
}

/// A duration field in milliseconds.
pub(crate) fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
