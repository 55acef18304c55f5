//! The life of one client connection: choose a backend, connect, relay, count how it ended.
//!
//! A client for which there is no backend, or none that answers, is reset at once: it learns that nothing is there, as from a
//! closed port, instead of waiting. What the client sends while we connect waits in the kernel's socket buffer.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::net::{TcpSocket, TcpStream};

use super::{
    ending::{Closing, Ending},
    live::{Admission, BackendSlot, LiveBackend, LiveListener, LivePool},
    pipe::PipePool,
    relay::{Meter, Meters, relay},
};
use crate::{
    shortage::{Shortage, shortage},
    telemetry::throttle::Throttle,
};

/// What every connection needs beside its listener.
#[derive(Clone, Debug)]
pub struct Means {
    pub pipes: Arc<PipePool>,
    pub told: Arc<Told>,
}

/// When the log was last told what this node lacks: it would be told of every connection.
#[derive(Debug, Default)]
pub struct Told {
    pub accepting: Throttle,
    pub connecting: Throttle,
    pub probing: Throttle,
}

/// Serves an accepted connection to its end.
pub async fn serve(mut client: TcpStream, peer: SocketAddr, admission: Admission, means: Means) {
    let listener = admission.listener().clone();
    let closing = forward(&mut client, peer, &listener, &means).await;
    if closing.resets_client() {
        reset(&client);
    }
    let ending = closing.ending;
    listener.count_ending(ending);
    tracing::debug!(listener = %listener.name, client = %peer, %ending, "connection ended");
}

async fn forward(
    client: &mut TcpStream,
    peer: SocketAddr,
    listener: &LiveListener,
    means: &Means,
) -> Closing {
    let settings = listener.settings.load_full();
    let Some(pool) = &settings.pool else {
        return Closing::without_answer(Ending::NoBackend);
    };
    let connected = tokio::select! {
        // A half-made connection is closed by being dropped.
        connected = connect_to_any(pool, peer, &means.told.connecting, connect) => connected,
        () = listener.end.cancelled() => Err(Ending::Ended),
    };
    let (slot, mut backend) = match connected {
        Ok(connected) => connected,
        Err(ending) => return Closing::without_answer(ending),
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
    let closing = tokio::select! {
        // A relay that is dropped has bytes in hand; both sockets are reset.
        closing = relay(client, &mut backend, settings.idle_timeout, &means.pipes, meters) => closing,
        () = slot.ended() => Closing::without_answer(Ending::Ended),
        () = listener.end.cancelled() => Closing::without_answer(Ending::Ended),
    };
    if closing.ending.resets() {
        reset(&backend);
    }
    closing
}

/// Makes the close that follows a reset, which tells the peer that what it got may be incomplete.
pub fn reset(stream: &TcpStream) {
    // Fails only on a socket that is already gone.
    let _ = stream.set_zero_linger();
}

/// Connects to a backend of the pool by `connect`, trying others when one fails or this node has no port left to reach it.
async fn connect_to_any<F>(
    pool: &LivePool,
    client: SocketAddr,
    told: &Throttle,
    connect: impl Fn(SocketAddr, Duration) -> F,
) -> Result<(BackendSlot, TcpStream), Ending>
where
    F: Future<Output = io::Result<TcpStream>>,
{
    let settings = pool.connect_settings();
    let mut tried: Vec<Arc<LiveBackend>> = Vec::new();
    let mut lacked_ports = false;
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
            Err(error) => {
                let lacked = shortage(&error);
                match lacked {
                    None => {
                        tracing::debug!(pool = %pool.name, backend = %backend.name, address = %backend.address, %error, "connecting to a backend failed");
                        backend.note_connect_failure(format!("connecting: {error}"));
                    }
                    Some(lacked) => {
                        if let Some(left_out) = told.admit(Instant::now()) {
                            let advice = lacked.advice();
                            tracing::warn!(pool = %pool.name, backend = %backend.name, %error, left_out, "this node lacks what a connection to a backend needs: {advice}");
                        }
                    }
                }
                if lacked == Some(Shortage::Resources) {
                    return Err(Ending::NoResources);
                }
                lacked_ports |= lacked == Some(Shortage::Ports);
                tried.push(backend);
            }
        }
    }
    Err(if lacked_ports {
        Ending::NoResources
    } else if tried.is_empty() {
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
        })?
        .map_err(|error| told_apart(error, || has_source_for(address)))?;
    // Linux may pick the very port that it connects to when nothing listens there, and then connects to itself.
    if stream.local_addr()? == address {
        reset(&stream);
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(stream)
}

/// Linux answers EADDRNOTAVAIL when no local port to the target is left, and also when no address of this host leads there, as
/// where IPv6 is off. Only the first passes by itself, and is kept as it is; the second becomes an error of the target.
/// `has_source`: whether an address of this host leads there; asked only if it matters.
fn told_apart(error: io::Error, has_source: impl FnOnce() -> bool) -> io::Error {
    if error.raw_os_error() != Some(libc::EADDRNOTAVAIL) || has_source() {
        return error;
    }
    let problem = "this node has no address from which it could be reached";
    io::Error::new(io::ErrorKind::AddrNotAvailable, problem)
}

/// Whether the routes name a source address; asked with a UDP socket, for which the ports of TCP do not matter.
fn has_source_for(target: SocketAddr) -> bool {
    let any: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let asked = UdpSocket::bind((any, 0)).and_then(|socket| socket.connect(target));
    use io::ErrorKind::{AddrNotAvailable, HostUnreachable, NetworkUnreachable};
    !asked.is_err_and(|error| {
        matches!(
            error.kind(),
            AddrNotAvailable | HostUnreachable | NetworkUnreachable
        )
    })
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::{
        model::pool::{Backend, BackendState, Pool},
        proxy::live::Member,
    };

    /// A pool with backends `a` and `b`; `a` is at port 1.
    fn pool() -> LivePool {
        let pool = LivePool::new(&Pool::new("p".parse().unwrap()), 0);
        for (name, port) in [("a", 1), ("b", 2)] {
            let backend = Backend {
                name: name.parse().unwrap(),
                address: SocketAddr::from(([192, 0, 2, 1], port)),
                weight: 1,
                state: BackendState::Enabled,
            };
            pool.add(Member {
                backend: Arc::new(LiveBackend::new(&backend, Instant::now())),
                weight: 1,
                state: BackendState::Enabled,
            });
        }
        pool
    }

    fn failures(pool: &LivePool) -> u64 {
        let members = pool.members();
        members.iter().map(|m| m.backend.connect_failures()).sum()
    }

    #[tokio::test]
    async fn without_ports_to_one_backend_another_is_taken_and_none_is_blamed() {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let there = socket.local_addr().unwrap();
        let (pool, told, client) = (pool(), Throttle::default(), there);
        let only_b = |target: SocketAddr, _: Duration| async move {
            match target.port() {
                1 => Err(io::Error::from_raw_os_error(libc::EADDRNOTAVAIL)),
                _ => TcpStream::connect(there).await,
            }
        };
        for _ in 0..2 {
            let (slot, _) = connect_to_any(&pool, client, &told, &only_b).await.unwrap();
            assert_eq!(slot.backend().name.as_str(), "b");
        }
        assert_eq!(failures(&pool), 0);
    }

    #[tokio::test]
    async fn what_this_node_lacks_ends_the_connection_as_such() {
        let (pool, told) = (pool(), Throttle::default());
        let client = "192.0.2.9:1000".parse().unwrap();
        for (number, ending, blamed) in [
            (libc::EMFILE, Ending::NoResources, 0),
            (libc::EADDRNOTAVAIL, Ending::NoResources, 0),
            (libc::ECONNREFUSED, Ending::ConnectFailed, 2),
        ] {
            let fail = |_: SocketAddr, _: Duration| {
                std::future::ready(Err(io::Error::from_raw_os_error(number)))
            };
            let failed = connect_to_any(&pool, client, &told, fail).await;
            assert_eq!(failed.err(), Some(ending));
            assert_eq!(failures(&pool), blamed);
        }
    }

    #[test]
    fn a_target_without_a_source_address_is_not_taken_for_a_want_of_ports() {
        let told = |number, has_source| {
            let error = io::Error::from_raw_os_error(number);
            shortage(&told_apart(error, || has_source))
        };
        assert_eq!(told(libc::EADDRNOTAVAIL, true), Some(Shortage::Ports));
        assert_eq!(told(libc::EADDRNOTAVAIL, false), None);
        for has_source in [true, false] {
            assert_eq!(told(libc::ECONNREFUSED, has_source), None);
            let lacked = Some(Shortage::Resources);
            assert_eq!(told(libc::EMFILE, has_source), lacked);
        }
        let loopback = "127.0.0.1:9".parse().unwrap();
        assert!(has_source_for(loopback));
    }
}
