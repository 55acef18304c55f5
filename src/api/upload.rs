//! Uploads in chunks: gathered under a limit, then unpacked under another.

use std::time::Instant;

use bytes::BytesMut;
use futures::{Stream, StreamExt};
use tonic::Status;

use crate::wire::{
    command::decompress,
    error::{Failure, FailureCode},
};

/// Most octets of an upload as it travels, compressed.
const MAX_PACKED: usize = 64 << 20;

/// Gathers compressed chunks until `deadline` and unpacks them to at most `limit` octets. `data` sees every message.
pub async fn gather<M, S>(
    messages: S,
    deadline: Instant,
    limit: usize,
    object: &str,
    data: impl FnMut(M) -> bytes::Bytes,
) -> Result<Vec<u8>, Failure>
where
    S: Stream<Item = Result<M, Status>> + Unpin,
{
    // A client that stalls holds one of few places for uploads.
    let gathered = tokio::time::timeout_at(deadline.into(), packed(messages, object, data)).await;
    let packed = gathered.unwrap_or_else(|_| Err(too_slow(object)))?;
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

async fn packed<M, S>(
    mut messages: S,
    object: &str,
    mut data: impl FnMut(M) -> bytes::Bytes,
) -> Result<bytes::Bytes, Failure>
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
    Ok(packed.freeze())
}

fn broken(object: &str, status: &Status) -> Failure {
    let problem = format!("the upload broke off: {}", status.message());
    Failure::new(FailureCode::Invalid, object, problem, "send it again")
}

fn too_slow(object: &str) -> Failure {
    Failure::new(
        FailureCode::Overloaded,
        object,
        "the upload did not end in time",
        "send it again with a longer --timeout",
    )
}

fn too_large(object: &str, limit: usize) -> Failure {
    Failure::new(
        FailureCode::LimitExceeded,
        object,
        format!("it has more than {limit} octets"),
        "split it",
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_client_that_stalls_is_not_waited_for_beyond_the_deadline() {
        let chunk = Ok(bytes::Bytes::from_static(b"x"));
        let stalled = futures::stream::iter([chunk]).chain(futures::stream::pending());
        let deadline = Instant::now() + Duration::from_millis(1);
        let gathered = gather(stalled, deadline, 10, "request", |data| data);
        let ended = tokio::time::timeout(Duration::from_secs(60), gathered).await;
        let failure = ended.expect("it ends").expect_err("too late");
        assert_eq!(failure.code, FailureCode::Overloaded, "{failure}");
        assert!(failure.problem.contains("in time"), "{failure}");
    }
}
