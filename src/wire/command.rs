//! Commands as log entries: protobuf, compressed when large.

use bytes::Bytes;

use crate::state::command::Command;

/// Why bytes are no command.
#[derive(Debug, thiserror::Error)]
#[error("command: {0}")]
pub struct CommandDecodeError(pub String);

/// Encodes a command for the log.
pub fn encode(command: &Command) -> Bytes {
    let _ = command;
    Bytes::new()
}

/// Reads what `encode` wrote.
pub fn decode(bytes: &[u8]) -> Result<Command, CommandDecodeError> {
    let _ = bytes;
    Err(CommandDecodeError("not built yet".into()))
}
