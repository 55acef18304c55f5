//! Binding a listener's sockets and accepting on them.
//!
//! Every worker has its own socket for every address (SO_REUSEPORT), so the kernel spreads new connections and workers share
//! no accept queue. Addresses that are not on this host yet are bound all the same (IP_FREEBIND): when the VIP arrives,
//! nothing has to be bound.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    connection::{Means, reset, serve},
    live::{Budget, LiveListener},
};

/// Connections whose handshake is done and that wait to be accepted, per socket; the kernel caps it at `somaxconn`.
const BACKLOG: i32 = 4096;

/// Rest after an accept that failed for want of file descriptors or memory; clients wait in the backlog meanwhile.
const REST_AFTER_FAILURE: Duration = Duration::from_millis(100);

/// Why an address cannot be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("cannot listen on {address}: {}", explain(source))]
    Refused {
        address: SocketAddr,
        source: io::Error,
    },
    #[error(
        "cannot listen on {address}: this node has the {limit} listening sockets that it may have; restart it, which shares them out anew, raise the limit on open files, or have fewer listeners or VIPs"
    )]
    NoneLeft { address: SocketAddr, limit: u32 },
}

fn explain(error: &io::Error) -> String {
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "; another process or listener has this port: stop it or choose another port"
        }
        io::ErrorKind::PermissionDenied => "; ports below 1024 need root or CAP_NET_BIND_SERVICE",
        io::ErrorKind::AddrNotAvailable => "; the address is not of a kind that can be listened on",
        io::ErrorKind::InvalidInput => {
            "; a link-local address cannot be listened on without a device: use a global or unique local one"
        }
        _ => "",
    };
    format!("{error}{hint}")
}

/// So many listening sockets, at least one, all on `address`: one for each worker that accepts there.
pub fn bind(address: SocketAddr, count: usize) -> Result<Vec<std::net::TcpListener>, BindError> {
    let all = || -> io::Result<Vec<_>> {
        make_sure_it_is_free(address)?;
        (0..count.max(1)).map(|_| bind_one(address)).collect()
    };
    all().map_err(|source| BindError::Refused { address, source })
}

/// With SO_REUSEPORT alone, a second node started by mistake would silently take every other connection. So the address
/// is first bound without it, which fails while anyone listens there, and released.
fn make_sure_it_is_free(address: SocketAddr) -> io::Result<()> {
    unbound(address)?.bind(&address.into())
}

fn bind_one(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = unbound(address)?;
    socket.set_reuse_port(true)?;
    socket.set_tcp_nodelay(true)?; // inherited by what is accepted
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn unbound(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?; // connections in TIME_WAIT do not hinder a restart
    match address {
        SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
        SocketAddr::V6(_) => {
            socket.set_only_v6(true)?;
            socket.set_freebind_v6(true)?;
        }
    }
    Ok(socket)
}

/// What accepting needs.
#[derive(Clone, Debug)]
pub struct Acceptor {
    pub listener: Arc<LiveListener>,
    pub budget: Arc<Budget>,
    pub means: Means,
    /// Owns the tasks of the connections.
    pub connections: TaskTracker,
}

impl Acceptor {
    /// Accepts until told to stop; then takes those whose handshake is already done, and closes the socket. Must run on
    /// the worker whose socket it is.
    pub async fn run(self, socket: std::net::TcpListener, stop: CancellationToken) {
        let socket = match TcpListener::from_std(socket) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::error!(listener = %self.listener.name, %error, "a listening socket cannot be used");
                return;
            }
        };
        loop {
            let accepted = tokio::select! {
                // A dropped accept has taken nothing from the queue.
                () = stop.cancelled() => break,
                accepted = socket.accept() => accepted,
            };
            if !self.take(accepted) {
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = tokio::time::sleep(REST_AFTER_FAILURE) => {}
                }
            }
        }
        self.take_what_waits(socket);
    }

    /// Takes the connections whose handshake is done; closing the socket would reset them. The kernel is asked itself: the
    /// runtime may not know of the newest yet, and lets a task do only so much at a time.
    fn take_what_waits(&self, socket: TcpListener) {
        let socket = match socket.into_std() {
            Ok(socket) => socket,
            Err(error) => {
                tracing::warn!(listener = %self.listener.name, %error, "connections that waited are reset");
                return;
            }
        };
        for _ in 0..BACKLOG {
            let accepted = socket.accept().and_then(|(client, peer)| {
                client.set_nonblocking(true)?;
                Ok((TcpStream::from_std(client)?, peer))
            });
            match accepted {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                accepted => {
                    if !self.take(accepted) {
                        return;
                    }
                }
            }
        }
    }

    /// Starts serving an accepted connection, or refuses it. Returns whether to go on at once.
    fn take(&self, accepted: io::Result<(TcpStream, SocketAddr)>) -> bool {
        match accepted {
            Ok((client, peer)) => {
                match self.listener.admit(&self.budget) {
                    Some(admission) => {
                        let means = self.means.clone();
                        self.connections
                            .spawn(serve(client, peer, admission, means));
                    }
                    None => reset(&client),
                }
                true
            }
            Err(error) if is_of_one_connection(&error) => true,
            Err(error) => {
                self.listener.count_accept_error();
                if let Some(left_out) = self.means.told.accepting.admit(Instant::now()) {
                    tracing::warn!(listener = %self.listener.name, %error, left_out, "accepting failed; trying again shortly");
                }
                false
            }
        }
    }
}

/// Errors of accept(2) that concern a connection which is gone already.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_noticed_although_ports_are_shared_among_workers() {
        let first = bind("127.0.0.1:0".parse().unwrap(), 1).unwrap();
        let address = first[0].local_addr().unwrap();
        let error = bind(address, 2).unwrap_err().to_string();
        assert!(error.contains("another process"), "{error}");
        drop(first);
        assert_eq!(bind(address, 2).unwrap().len(), 2);
    }

    #[test]
    fn an_address_not_on_this_host_is_bound_beforehand() {
        assert!(bind("192.0.2.77:0".parse().unwrap(), 1).is_ok());
    }

    #[tokio::test]
    async fn all_that_wait_are_taken_before_the_socket_closes() {
        use crate::{
            model::listener::{ListenAddress, Listener},
            proxy::{connection::Told, live::ListenerSettings, pipe::PipePool},
        };
        // More than a task of the runtime may do in one turn.
        const WAITING: u64 = 200;
        let socket = bind("127.0.0.1:0".parse().unwrap(), 1).unwrap().remove(0);
        let address = socket.local_addr().unwrap();
        let clients: Vec<_> = (0..WAITING)
            .map(|_| std::net::TcpStream::connect(address).unwrap())
            .collect();
        let of = Listener::new(
            "l".parse().unwrap(),
            ListenAddress::EveryNode,
            80,
            "p".parse().unwrap(),
        );
        let acceptor = Acceptor {
            listener: Arc::new(LiveListener::new(
                of.name.clone(),
                ListenerSettings::new(&of, None),
                CancellationToken::new(),
            )),
            budget: Arc::new(Budget::new(1000)),
            means: Means {
                pipes: PipePool::new(0),
                told: Arc::new(Told::default()),
            },
            connections: TaskTracker::new(),
        };
        let listener = acceptor.listener.clone();
        let stop = CancellationToken::new();
        stop.cancel();
        acceptor.run(socket, stop).await;
        assert_eq!(listener.accepted(), WAITING);
        drop(clients);
    }
}
