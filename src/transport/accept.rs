//! Accepting connections: TCP with TLS or plain, and the unix socket, as a stream that the gRPC server reads.
//!
//! Handshakes run beside each other, each with a deadline and all under the limits of `port`, so that a silent client holds up
//! nobody: neither before its handshake, nor when it does not begin to speak HTTP/2 after it. Dropping the stream stops
//! accepting and abandons unfinished handshakes.
//!
//! Accepting and handshakes are the work of the runtime in which the stream is made. A connection then goes to the one in which it is
//! taken from the stream: strangers' handshakes need not run where heartbeats do.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::mpsc,
    task::{AbortHandle, JoinHandle},
    time::Sleep,
};
use tokio_rustls::{TlsAcceptor, server};
use tonic::transport::server::Connected;

use super::{
    Peer, PeerInfo, Security,
    port::{Place, Port, Refusal, Unfinished},
};
use crate::pki::{identity::Identity, verify::ClientAuth};

/// Longest wait for the client of a refused connection to read why.
const PART_LIMIT: Duration = Duration::from_secs(1);
/// Octets of the preface with which an HTTP/2 client begins (RFC 9113, section 3.4). hyper waits for it without a limit, and
/// sends pings only after it.
const PREFACE: usize = 24;
/// Pause after `accept` itself failed, for instance for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Implements `AsyncRead` and `AsyncWrite` for an enum of streams.
macro_rules! delegate_io {
    ($type:ident { $($variant:ident),* }) => {
        impl tokio::io::AsyncRead for $type {
            fn poll_read(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                buf: &mut tokio::io::ReadBuf<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                match self.get_mut() { $(Self::$variant(io) => std::pin::Pin::new(io).poll_read(cx, buf),)* }
            }
        }

        impl tokio::io::AsyncWrite for $type {
            fn poll_write(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                buf: &[u8],
            ) -> std::task::Poll<std::io::Result<usize>> {
                match self.get_mut() { $(Self::$variant(io) => std::pin::Pin::new(io).poll_write(cx, buf),)* }
            }

            fn poll_flush(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                match self.get_mut() { $(Self::$variant(io) => std::pin::Pin::new(io).poll_flush(cx),)* }
            }

            fn poll_shutdown(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                match self.get_mut() { $(Self::$variant(io) => std::pin::Pin::new(io).poll_shutdown(cx),)* }
            }
        }
    };
}
pub(super) use delegate_io;

/// An accepted connection and who made it.
pub struct Accepted {
    io: AcceptedIo,
    info: PeerInfo,
    /// Until the client has begun to speak.
    beginning: Option<Beginning>,
    place: Place,
}

/// What a client still has to send, and until when.
struct Beginning {
    octets: usize,
    until: Pin<Box<Sleep>>,
}

/// What clients of a port speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    /// The server waits for its first request under a limit of its own.
    Http1,
    Http2,
}

impl Protocol {
    fn beginning(self, limit: Duration) -> Option<Beginning> {
        (self == Self::Http2).then(|| Beginning {
            octets: PREFACE,
            until: Box::pin(tokio::time::sleep(limit)),
        })
    }
}

enum AcceptedIo {
    Plain(Movable),
    Unix(UnixStream),
    Tls(Box<server::TlsStream<Movable>>),
}

delegate_io!(AcceptedIo { Plain, Unix, Tls });

impl AcceptedIo {
    fn movable(&mut self) -> Option<&mut Movable> {
        match self {
            Self::Plain(tcp) => Some(tcp),
            Self::Tls(tls) => Some(tls.get_mut().0),
            Self::Unix(_) => None,
        }
    }
}

/// A TCP connection that can go from one runtime to another, in between which nothing is read or written.
enum Movable {
    Here(TcpStream),
    Between(Option<std::net::TcpStream>),
}

impl Movable {
    /// Takes it out of the present runtime.
    fn lift(&mut self) -> io::Result<()> {
        if let Self::Here(tcp) = std::mem::replace(self, Self::Between(None)) {
            *self = Self::Between(Some(tcp.into_std()?));
        }
        Ok(())
    }

    /// Puts it into the present runtime.
    fn land(&mut self) -> io::Result<()> {
        if let Self::Between(tcp) = self {
            let tcp = tcp.take().ok_or(io::ErrorKind::NotConnected)?;
            *self = Self::Here(TcpStream::from_std(tcp)?);
        }
        Ok(())
    }

    fn here(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        match self {
            Self::Here(tcp) => Ok(Pin::new(tcp)),
            Self::Between(_) => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl AsyncRead for Movable {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.get_mut().here()?.poll_read(cx, buf)
    }
}

impl AsyncWrite for Movable {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().here()?.poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().here()?.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().here()?.poll_shutdown(cx)
    }
}

/// A connection on its way to the runtime of its server.
struct Arriving {
    io: AcceptedIo,
    info: PeerInfo,
    protocol: Protocol,
    place: Place,
}

impl Arriving {
    fn land(mut self) -> io::Result<Accepted> {
        if let Some(tcp) = self.io.movable() {
            tcp.land()?;
        }
        let limit = self.place.port().limits().begin;
        Ok(Accepted {
            io: self.io,
            info: self.info,
            beginning: self.protocol.beginning(limit),
            place: self.place,
        })
    }
}

impl Connected for Accepted {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.info.clone()
    }
}

impl AsyncRead for Accepted {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut this.io).poll_read(cx, buf);
        let Some(beginning) = &mut this.beginning else {
            return read;
        };
        let received = buf.filled().len().saturating_sub(before);
        beginning.octets = beginning.octets.saturating_sub(received);
        match read {
            Poll::Pending => {
                ready!(beginning.until.as_mut().poll(cx));
                this.place.port().refuse(Refusal::Silent);
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
            read => {
                if beginning.octets == 0 {
                    this.beginning = None;
                }
                read
            }
        }
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// A stream of accepted connections; it owns the task that accepts.
pub struct Incoming {
    ready: mpsc::Receiver<Arriving>,
    task: JoinHandle<()>,
}

impl Incoming {
    /// Accepts clients that speak HTTP/2 from a TCP listener. `client_auth` matters to TLS only.
    pub fn tcp(
        listener: TcpListener,
        security: Security,
        client_auth: ClientAuth,
        port: Arc<Port>,
    ) -> Self {
        let door = Door {
            security,
            client_auth,
            protocol: Protocol::Http2,
            port,
        };
        Self::spawn(|ready| accept_tcp(listener, door, ready))
    }

    /// Accepts clients that speak HTTP/1 from a TCP listener, without TLS. Who reads from these connections has to limit the wait
    /// for requests.
    pub fn http1(listener: TcpListener, port: Arc<Port>) -> Self {
        let door = Door {
            security: Security::Plain,
            client_auth: ClientAuth::Optional,
            protocol: Protocol::Http1,
            port,
        };
        Self::spawn(|ready| accept_tcp(listener, door, ready))
    }

    /// Accepts clients that speak HTTP/2 from a unix listener.
    pub fn unix(listener: UnixListener, port: Arc<Port>) -> Self {
        Self::spawn(|ready| accept_unix(listener, port, ready))
    }

    fn spawn<F: Future<Output = ()> + Send + 'static>(
        accept: impl FnOnce(mpsc::Sender<Arriving>) -> F,
    ) -> Self {
        let (sender, ready) = mpsc::channel(16);
        Self {
            ready,
            task: tokio::spawn(accept(sender)),
        }
    }
}

impl futures::Stream for Incoming {
    type Item = io::Result<Accepted>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let Some(arriving) = ready!(self.ready.poll_recv(cx)) else {
                return Poll::Ready(None);
            };
            match arriving.land() {
                Ok(accepted) => return Poll::Ready(Some(Ok(accepted))),
                Err(error) => tracing::warn!(%error, "a connection was lost before it was served"),
            }
        }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// On what terms connections are accepted.
#[derive(Clone)]
struct Door {
    security: Security,
    client_auth: ClientAuth,
    protocol: Protocol,
    port: Arc<Port>,
}

async fn accept_tcp(listener: TcpListener, door: Door, ready: mpsc::Sender<Arriving>) {
    // Dropped with this task, and the handshakes with it.
    let mut handshakes = tokio::task::JoinSet::new();
    let mut unfinished = Unfinished::<AbortHandle>::new(door.port.limits().unfinished);
    loop {
        let (tcp, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        while handshakes.try_join_next().is_some() {}
        unfinished.retain(|handshake| !handshake.is_finished());
        let handshake = handshakes.spawn(door.clone().hand_over(tcp, address, ready.clone()));
        if let Some(oldest) = unfinished.add(address.ip(), handshake) {
            oldest.abort();
            door.port.refuse(Refusal::Unfinished);
        }
    }
}

impl Door {
    /// Hands a connection to the server once its client has begun to speak.
    async fn hand_over(self, tcp: TcpStream, address: SocketAddr, ready: mpsc::Sender<Arriving>) {
        let limit = self.port.limits().begin;
        match tokio::time::timeout(limit, self.secure(tcp, address)).await {
            // The server has gone when this cannot be sent; the connection closes.
            Ok(Ok(Some(arriving))) => drop(ready.send(arriving).await),
            Ok(Ok(None)) => {} // counted where it was refused
            Ok(Err(error)) => tracing::debug!(%address, %error, "connection refused"),
            Err(_) => self.port.refuse(Refusal::Silent),
        }
    }

    /// None when there is no place for the connection.
    async fn secure(&self, tcp: TcpStream, address: SocketAddr) -> io::Result<Option<Arriving>> {
        super::connect::tune(&tcp)?;
        // All clients speak first. Who says nothing takes no place from those who do, and costs little.
        if tcp.peek(&mut [0]).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let tcp = Movable::Here(tcp);
        let (mut io, peer) = match &self.security {
            Security::Plain => (AcceptedIo::Plain(tcp), Peer::Plain),
            Security::Tls(credentials) => {
                let config = credentials.current().server_config(self.client_auth);
                let tls = handshake(tcp, config.map_err(io::Error::other)?).await?;
                let peer = certified(&tls);
                (AcceptedIo::Tls(Box::new(tls)), peer)
            }
        };
        let Some(place) = self.port.admit(peer != Peer::Anonymous) else {
            return Ok(None);
        };
        if let Some(tcp) = io.movable() {
            tcp.lift()?;
        }
        Ok(Some(Arriving {
            io,
            info: PeerInfo {
                address: Some(address),
                peer,
            },
            protocol: self.protocol,
            place,
        }))
    }
}

async fn handshake(
    tcp: Movable,
    config: Arc<ServerConfig>,
) -> io::Result<server::TlsStream<Movable>> {
    let accepting = TlsAcceptor::from(config).accept(tcp);
    match accepting.into_fallible().await {
        Ok(tls) => Ok(tls),
        Err((error, tcp)) => {
            // Whether it read that in time matters to nobody here.
            let _ = tokio::time::timeout(PART_LIMIT, part(tcp)).await;
            Err(error)
        }
    }
}

/// Whose certificate was shown. The verifier has believed the chain.
fn certified(tls: &server::TlsStream<Movable>) -> Peer {
    let chain = tls.get_ref().1.peer_certificates();
    let leaf = chain.and_then(|chain| chain.first());
    leaf.and_then(|leaf| Identity::of_certificate(leaf))
        .map_or(Peer::Anonymous, Peer::Identified)
}

/// Ends a refused connection so that the client learns why: were what it has sent meanwhile left unread, the kernel would
/// reset the connection, and the TLS alert might be lost.
async fn part(mut tcp: Movable) {
    let mut unread = [0; 1024];
    if tcp.shutdown().await.is_ok() {
        while tcp.read(&mut unread).await.is_ok_and(|octets| octets > 0) {}
    }
}

async fn accept_unix(listener: UnixListener, port: Arc<Port>, ready: mpsc::Sender<Arriving>) {
    loop {
        let accepted = match listener.accept().await {
            Ok((stream, _)) => stream.peer_cred().map(|cred| (stream, cred.uid())),
            Err(error) => Err(error),
        };
        let (stream, uid) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accept on the unix socket failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Closed at once when there is no place for it.
        let Some(place) = port.admit(true) else {
            continue;
        };
        let arriving = Arriving {
            io: AcceptedIo::Unix(stream),
            info: PeerInfo {
                address: None,
                peer: Peer::Local { uid },
            },
            protocol: Protocol::Http2,
            place,
        };
        if ready.send(arriving).await.is_err() {
            return;
        }
    }
}
