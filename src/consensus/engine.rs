//! What the log store needs of a disk: ordered writes, one barrier, reads.
//!
//! The trait is narrow so that a test can put an engine that fails, or loses power, in place of the real one. Engines keep
//! records as opaque bytes; versions and checksums are `record`'s.
//!
//! The contract every engine keeps: operations take effect in the order written, across calls. After a loss of power some
//! prefix of them is found, and all of those written before the last successful `barrier`. After the first error of a
//! write, a barrier or a `settle` every further one fails: what reached the disk is then unknown.

use std::{fmt, ops::Range};

use bytes::Bytes;

/// Storage for one log and its metadata.
pub trait Engine: Send + Sync + 'static {
    /// Writes in order. Visible to reads and durable after the next `barrier`; perhaps visible before.
    fn write(&self, operations: &[Operation]) -> Result<(), EngineError>;

    /// Makes everything written before durable.
    fn barrier(&self) -> Result<(), EngineError>;

    /// Does what can be done while nobody waits for it, after a barrier. Changes nothing that is seen.
    fn settle(&self) -> Result<(), EngineError> {
        Ok(())
    }

    /// Entries of `range` that exist, in ascending order: at least one if there is one, then until `max_bytes` are passed.
    fn read(&self, range: Range<u64>, max_bytes: usize) -> Result<Vec<(u64, Bytes)>, EngineError>;

    fn metadata(&self, key: MetadataKey) -> Result<Option<Bytes>, EngineError>;

    /// Where it all lies, for messages.
    fn place(&self) -> String;
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Adds the entry at `index`, where the log ends. What an engine has from there on is removed.
    Append {
        index: u64,
        record: Bytes,
    },
    /// Removes the entries from `from` on, the last one first.
    Truncate {
        from: u64,
    },
    /// Removes the entries up to and including `through`, the first one first.
    Purge {
        through: u64,
    },
    Put {
        key: MetadataKey,
        record: Bytes,
    },
}

/// What is stored beside the entries. The numbers are part of the stored format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum MetadataKey {
    Vote = 1,
    /// The last log id known to be committed.
    Committed = 2,
    /// The last log id removed from the front of the log.
    Purged = 3,
}

impl MetadataKey {
    /// The key of a number; none: of no key.
    pub fn of(number: u8) -> Option<Self> {
        let keys = [Self::Vote, Self::Committed, Self::Purged];
        keys.into_iter().find(|key| *key as u8 == number)
    }
}

/// A storage engine could not do something.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} {subject} in {place}: {reason}")]
pub struct EngineError {
    pub verb: Verb,
    pub subject: Subject,
    pub place: String,
    pub fault: Fault,
    pub reason: String,
}

/// What kind of trouble it is: what to do about it depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The disk is full.
    NoSpace,
    /// Another process has it open.
    Busy,
    /// What was stored is not what was written.
    Corrupt,
    /// The engine failed before, or has been closed.
    Ended,
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Open,
    Read,
    Write,
    Flush,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    Log,
    Entries(Range<u64>),
    Metadata(MetadataKey),
}

impl Operation {
    /// Bytes it adds, roughly.
    pub fn size(&self) -> usize {
        match self {
            Self::Append { record, .. } | Self::Put { record, .. } => record.len() + 32,
            Self::Truncate { .. } | Self::Purge { .. } => 32,
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
        })
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Log => f.write_str("the log"),
            Self::Entries(range) => write!(f, "log entries {}..{}", range.start, range.end),
            Self::Metadata(MetadataKey::Vote) => f.write_str("the vote"),
            Self::Metadata(MetadataKey::Committed) => f.write_str("the committed index"),
            Self::Metadata(MetadataKey::Purged) => f.write_str("the purged index"),
        }
    }
}
