//! The backup stream.

use std::{
    io::{self, Write},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use pontoon_proto::v1;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tonic::Status;

use super::admin::Pages;
use crate::{
    state::State,
    wire::{
        backup,
        error::{Failure, FailureCode},
    },
};

/// Octets of one message.
const PIECE: usize = 512 << 10;
/// Messages made ahead of the client.
const AHEAD: usize = 4;

/// The backup of a state. Made on a blocking thread, as fast as the client takes it; a client that goes ends it.
pub fn stream(state: Arc<State>, permit: OwnedSemaphorePermit) -> Pages<v1::Chunk> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    // Ends by itself: either the state is written, or the receiver is gone and writing fails.
    tokio::task::spawn_blocking(move || {
        let _permit = permit;
        let mut out = Pieces {
            sender: sender.clone(),
            piece: BytesMut::with_capacity(PIECE),
        };
        if let Err(error) = backup::write(&state, &mut out).and_then(|()| out.flush()) {
            let failure = Failure::new(FailureCode::Internal, "backup", error, "");
            // Nobody is there to be told when the client has gone.
            let _ = sender.blocking_send(Err(failure.into()));
        }
    });
    Box::pin(tokio_stream::wrappers::ReceiverStream::new(receiver))
}

/// Sends what is written in pieces.
struct Pieces {
    sender: mpsc::Sender<Result<v1::Chunk, Status>>,
    piece: BytesMut,
}

impl Pieces {
    fn send(&mut self, data: Bytes) -> io::Result<()> {
        self.sender
            .blocking_send(Ok(v1::Chunk { data }))
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        while self.piece.len() >= PIECE {
            let full = self.piece.split_to(PIECE).freeze();
            self.send(full)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let rest = self.piece.split().freeze();
        self.send(rest)
    }
}
