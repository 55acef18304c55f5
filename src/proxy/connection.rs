//! The life of one client connection: choose a backend, connect, relay, count how it ended.
//!
//! A client for which there is no backend, or none that answers, is reset at once: it learns that nothing is there, as from a
//! closed port, instead of waiting. What the client sends while we connect waits in the kernel's socket buffer.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::net::{TcpSocket, TcpStream};

use super::{
    ending::{Ending, lacks_resources},
    live::{Admission, BackendSlot, LiveBackend, LiveListener, LivePool},
    pipe::PipePool,
    relay::{Meter, Meters, relay},
};

/// What every connection needs beside its listener.
#[derive(Clone, Debug)]
pub struct Means {
    pub pipes: Arc<PipePool>,
}

/// Serves an accepted connection to its end.
pub async fn serve(mut client: TcpStream, peer: SocketAddr, admission: Admission, means: Means) {
    let listener = admission.listener().clone();
    let ending = forward(&mut client, peer, &listener, &means).await;
    if ending.resets() {
        reset(&client);
    }
    listener.count_ending(ending);
    tracing::debug!(listener = %listener.name, client = %peer, %ending, "connection ended");
}

async fn forward(
    client: &mut TcpStream,
    peer: SocketAddr,
    listener: &LiveListener,
    means: &Means,
) -> Ending {
    let settings = listener.settings.load_full();
    let Some(pool) = &settings.pool else {
        return Ending::NoBackend;
    };
    let connected = tokio::select! {
        // A half-made connection is closed by being dropped.
        connected = connect_to_any(pool, peer) => connected,
        () = listener.end.cancelled() => Err(Ending::Ended),
    };
    let (slot, mut backend) = match connected {
        Ok(connected) => connected,
        Err(ending) => return ending,
    };
    let (ours, theirs) = (&listener.traffic, &slot.backend().traffic);
    let meters = Meters {
        from_client: Meter {
            listener: &ours.upward,
            backend: &theirs.upward,
        },
        to_client: Meter {
            listener: &ours.downward,
            backend: &theirs.downward,
        },
    };
    let ending = tokio::select! {
        // A relay that is dropped has bytes in hand; both sockets are reset.
        ending = relay(client, &mut backend, settings.idle_timeout, &means.pipes, meters) => ending,
        () = slot.ended() => Ending::Ended,
        () = listener.end.cancelled() => Ending::Ended,
    };
    if ending.resets() {
        reset(&backend);
    }
    ending
}

/// Makes the close that follows a reset, which tells the peer that what it got may be incomplete.
pub fn reset(stream: &TcpStream) {
    // Fails only on a socket that is already gone.
    let _ = stream.set_zero_linger();
}

/// Connects to a backend of the pool, trying others when one fails.
async fn connect_to_any(
    pool: &LivePool,
    client: SocketAddr,
) -> Result<(BackendSlot, TcpStream), Ending> {
    let settings = pool.connect_settings();
    let mut tried: Vec<Arc<LiveBackend>> = Vec::new();
    for _ in 0..=settings.retries {
        let Some(slot) = pool.choose(client.ip(), &tried) else {
            break;
        };
        let backend = slot.backend().clone();
        let attempt = tokio::select! {
            // The half-made connection is closed by being dropped.
            attempt = connect(backend.address, settings.timeout) => attempt,
            () = slot.ended() => Err(io::Error::other("the backend was disabled meanwhile")),
        };
        match attempt {
            Ok(stream) => {
                backend.note_connected();
                return Ok((slot, stream));
            }
            Err(error) if lacks_resources(&error) => {
                tracing::warn!(pool = %pool.name, backend = %backend.name, %error, "no resources to connect to a backend");
                return Err(Ending::NoResources);
            }
            Err(error) => {
                tracing::debug!(pool = %pool.name, backend = %backend.name, address = %backend.address, %error, "connecting to a backend failed");
                backend.note_connect_failure(format!("connecting: {error}"));
                tried.push(backend);
            }
        }
    }
    Err(if tried.is_empty() {
        Ending::NoBackend
    } else {
        Ending::ConnectFailed
    })
}

/// Connects within `timeout`, with TCP_NODELAY: small questions must not wait for acknowledgements (RFC 896).
pub async fn connect(address: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_nodelay(true)?;
    let stream = tokio::time::timeout(timeout, socket.connect(address))
        .await
        .map_err(|_| {
            let problem = format!("no answer within {timeout:?}");
            io::Error::new(io::ErrorKind::TimedOut, problem)
        })??;
    // Linux may pick the very port that it connects to when nothing listens there, and then connects to itself.
    if stream.local_addr()? == address {
        reset(&stream);
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(stream)
}
