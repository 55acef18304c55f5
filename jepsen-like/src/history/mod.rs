//! What happened in a run: every operation of every client, every fault, and what was seen from outside.
//!
//! A run appends [`Entry`] lines to its `history.jsonl` while it goes on ([`HistoryWriter`]) and reads them back as one
//! [`History`] ([`read`]), which is all that the checkers get: a finding can be checked again from the file alone.
//! An operation is two lines, its invocation (written *before* the request is sent) and its completion. One whose
//! completion is absent, because the client or the whole run ended first, is of unknown outcome, never failed.

mod entry;
mod plausible;
mod read;
pub mod registers;
mod writer;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use entry::{
    Answer, Breakdown, Call, Entry, Fault, Lateness, LeaderSeen, Micro, Notice, NoticeKind, Reply,
    Responder, Run, SelfTest, Session, SessionEnd, Skip, StateHash, Unhealed, Usage,
};
pub use read::{FILE, Histories, HistoryError, read, read_from, read_head};
#[cfg(test)]
pub(crate) use writer::{FullDisk, Medium};
pub use writer::{HistoryWriter, Rest};

/// Nanoseconds on the run's monotonic clock since the run began.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Moment(pub u64);

impl Moment {
    /// The moment so long after the run began.
    pub fn after(elapsed: std::time::Duration) -> Self {
        Self(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX))
    }

    /// So much later; the last moment there is, at most.
    pub fn later(self, by: std::time::Duration) -> Self {
        Self(self.0.saturating_add(Self::after(by).0))
    }

    /// How long after `earlier`; zero if it is not.
    pub fn since(self, earlier: Self) -> std::time::Duration {
        std::time::Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}.{:06} s",
            self.0 / 1_000_000_000,
            self.0 / 1000 % 1_000_000
        )
    }
}

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It took effect between its invocation and its completion.
    Ok,
    /// It had no effect and never will.
    Fail,
    /// It may have taken effect, may do so at any later time, or never does.
    Unknown,
}

/// One operation: what a client asked for, when, and how it ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Operation {
    /// Counts the operations of a run; an operation's invocation and completion carry the same.
    pub id: u64,
    /// The client; it has one operation under way at a time.
    pub process: u64,
    /// The node that was asked, where one was.
    pub node: Option<String>,
    pub invoked: Moment,
    /// None: it never ended, or nobody was left to write so.
    pub completed: Option<Moment>,
    pub call: Call,
    pub outcome: Outcome,
    /// What came back; only where `outcome` is ok.
    pub reply: Option<Reply>,
    /// Why it failed or is unknown, in the words of the node or the client.
    pub reason: Option<String>,
}

impl Operation {
    /// Whether this ended before the other began.
    pub fn precedes(&self, other: &Self) -> bool {
        self.completed.is_some_and(|end| end < other.invoked)
    }

    pub fn is_ok(&self) -> bool {
        self.outcome == Outcome::Ok
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "operation {} (process {}", self.id, self.process)?;
        if let Some(node) = &self.node {
            write!(f, " at {node}")?;
        }
        write!(f, ", {} to ", self.invoked)?;
        match self.completed {
            Some(completed) => write!(f, "{completed}")?,
            None => write!(f, "the end")?,
        }
        write!(f, "): {}", self.call)?;
        match (self.outcome, &self.reply, &self.reason) {
            (Outcome::Ok, Some(reply), _) => write!(f, " -> {reply}"),
            (Outcome::Ok, None, _) => write!(f, " -> ok"),
            (Outcome::Fail, _, Some(reason)) => write!(f, " -> failed: {reason}"),
            (Outcome::Fail, _, None) => write!(f, " -> failed"),
            (Outcome::Unknown, _, Some(reason)) => write!(f, " -> unknown: {reason}"),
            (Outcome::Unknown, _, None) => write!(f, " -> unknown"),
        }
    }
}

/// A whole run, or what its file holds of it.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub run: Run,
    /// In order of invocation.
    pub operations: Vec<Operation>,
    pub faults: Vec<Fault>,
    pub answers: Vec<Answer>,
    pub leaders: Vec<LeaderSeen>,
    pub hashes: Vec<StateHash>,
    pub usages: Vec<Usage>,
    pub latenesses: Vec<Lateness>,
    pub sessions: Vec<Session>,
    pub notices: Vec<Notice>,
    /// What the cluster owed and did not do in its time.
    pub unhealed: Vec<Unhealed>,
    /// Why the laboratory could not go on.
    pub breakdown: Option<Breakdown>,
    /// The run wrote that it had come to its end.
    pub is_complete: bool,
    /// No line says why it ends: the file is a part of one, or the laboratory was killed. What is written late may be absent, such as a fault,
    /// which is written when it is healed: only what is there proves anything.
    pub is_cut_off: bool,
}

#[cfg(test)]
mod tests;
