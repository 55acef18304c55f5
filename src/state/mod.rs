//! The replicated state machine: commands in, outcomes out, the same on every node.
//!
//! Apply is total and deterministic: ordered maps only, no floats, no clock, no local configuration. Nothing here does I/O.

pub mod command;
pub mod outcome;

use crate::model::{node::ClusterId, snapshot::Snapshot};
use command::Command;
use outcome::Outcome;

/// All replicated state. Cloning shares structure and is cheap.
#[derive(Clone, Debug, Default)]
pub struct State {
    service: Snapshot,
}

/// Why bytes are no encoded state.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error(
        "state snapshot of version {found}; this program reads versions up to {known}: upgrade it"
    )]
    Version { found: u32, known: u32 },
    #[error("state snapshot: {0}")]
    Malformed(String),
}

impl State {
    /// Applies the command of log index `revision`. Total: whatever the command holds, the result is an outcome.
    pub fn apply(&mut self, revision: u64, command: &Command) -> Outcome {
        let _ = (revision, command);
        Outcome::Unknown
    }

    /// What the servers may see.
    pub fn snapshot(&self) -> &Snapshot {
        &self.service
    }

    /// Hash of everything in the state; equal on nodes that applied the same log up to the same index.
    pub fn hash(&self) -> [u8; 16] {
        [0; 16]
    }

    /// The cluster this state belongs to; none before `InitCluster`.
    pub fn cluster(&self) -> Option<&ClusterId> {
        None
    }

    /// Encodes the whole state, piece by piece, into `out`.
    pub fn encode(&self, out: &mut dyn std::io::Write) -> std::io::Result<()> {
        let _ = out;
        Ok(())
    }

    /// Reads what `encode` wrote.
    pub fn decode(input: &mut dyn std::io::Read) -> Result<Self, DecodeError> {
        let _ = input;
        Ok(Self::default())
    }
}
