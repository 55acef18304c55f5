//! Uploads in chunks: gathered under a limit, then unpacked under another.

use bytes::BytesMut;
use futures::{Stream, StreamExt};
use tonic::Status;

use crate::wire::{
    command::decompress,
    error::{Failure, FailureCode},
};

/// Most octets of an upload as it travels, compressed.
const MAX_PACKED: usize = 64 << 20;

/// Gathers compressed chunks and unpacks them to at most `limit` octets. `first` sees the first message.
pub async fn gather<M, S>(
    mut messages: S,
    limit: usize,
    object: &str,
    mut data: impl FnMut(M) -> bytes::Bytes,
) -> Result<Vec<u8>, Failure>
where
    S: Stream<Item = Result<M, Status>> + Unpin,
{
    let mut packed = BytesMut::new();
    while let Some(message) = messages.next().await {
        let chunk = data(message.map_err(|status| broken(object, &status))?);
        if packed.len() + chunk.len() > MAX_PACKED {
            return Err(too_large(object, MAX_PACKED));
        }
        packed.extend_from_slice(&chunk);
    }
    let packed = packed.freeze();
    let unpacked = tokio::task::spawn_blocking(move || decompress(&packed, limit)).await;
    match unpacked {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::FileTooLarge => {
            Err(too_large(object, limit))
        }
        Ok(Err(error)) => {
            let problem = format!("the upload is not compressed by zstd: {error}");
            Err(Failure::new(FailureCode::Invalid, object, problem, ""))
        }
        Err(error) => Err(Failure::new(FailureCode::Internal, object, error, "")),
    }
}

fn broken(object: &str, status: &Status) -> Failure {
    let problem = format!("the upload broke off: {}", status.message());
    Failure::new(FailureCode::Invalid, object, problem, "send it again")
}

fn too_large(object: &str, limit: usize) -> Failure {
    Failure::new(
        FailureCode::LimitExceeded,
        object,
        format!("it has more than {limit} octets"),
        "split it",
    )
}
