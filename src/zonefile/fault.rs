//! What is wrong with a master file, and where.

use std::{fmt, sync::Arc};

/// How many faults are reported before reading stops.
pub const MAX_FAULTS: usize = 50;

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The name the caller gave, or the name in `$INCLUDE`.
    pub file: Arc<str>,
    /// From 1.
    pub line: u32,
}

/// One thing wrong, or worth a warning, in a master file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub place: Place,
    /// Octets from the start of the line, from 1.
    pub column: u32,
    /// What was wrong and what was expected.
    pub problem: String,
}

/// All that is wrong with a master file, at most `MAX_FAULTS`.
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error)]
pub struct Faults {
    pub list: Vec<Fault>,
    /// Reading stopped here, because there were too many.
    pub incomplete: bool,
}

impl Faults {
    pub(super) fn push(&mut self, fault: Fault) {
        if self.list.len() < MAX_FAULTS {
            self.list.push(fault);
        }
        self.incomplete = self.is_full();
    }

    pub(super) fn is_full(&self) -> bool {
        self.list.len() >= MAX_FAULTS
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.place, self.column, self.problem)
    }
}

impl fmt::Display for Faults {
    /// One fault a line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, fault) in self.list.iter().enumerate() {
            let line_end = if at == 0 { "" } else { "\n" };
            write!(f, "{line_end}{fault}")?;
        }
        if self.incomplete {
            f.write_str("\nmore faults may follow: reading stopped here")?;
        }
        Ok(())
    }
}
