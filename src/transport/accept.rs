//! Accepting connections: TCP with TLS or plain, and the unix socket, as a stream that the gRPC server reads.
//!
//! Handshakes run beside each other, each with a deadline and all under a limit, so that a silent client holds up nobody.
//! Those that show no certificate have a limit of their own, and their connections an end.
//! Dropping the stream stops accepting and abandons unfinished handshakes.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;
use tonic::transport::server::Connected;

use super::{Peer, PeerInfo, Security};
use crate::pki::identity::Identity;

/// Handshakes under way at one time; further connections wait in the kernel's backlog.
const MAX_HANDSHAKES: usize = 256;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// What those may hold open that show no certificate: machines that join, and monitors that ask for health.
const STRANGERS: Strangers = Strangers {
    most: 256,
    stay: Duration::from_secs(600), // longer than any call of theirs may take
};
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

/// Bounds of connections that show no certificate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Strangers {
    /// At one time on one listening socket; further ones are closed.
    pub(super) most: usize,
    /// After this a connection is closed, whatever goes on in it.
    pub(super) stay: Duration,
}

/// The place of a stranger, and when it has to go.
struct Visit {
    _place: OwnedSemaphorePermit,
    end: Pin<Box<tokio::time::Sleep>>,
}

/// An accepted connection and who made it.
pub struct Accepted {
    io: AcceptedIo,
    info: PeerInfo,
    visit: Option<Visit>,
}

enum AcceptedIo {
    Plain(TcpStream),
    Unix(UnixStream),
    Tls(Box<tokio_rustls::server::TlsStream<TcpStream>>),
}

delegate_io!(AcceptedIo { Plain, Unix, Tls });

impl Connected for Accepted {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.info.clone()
    }
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(visit) = &mut self.visit
            && visit.end.as_mut().poll(cx).is_ready()
        {
            let problem = "connections without a certificate end after a time";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, problem)));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
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
    ready: mpsc::Receiver<io::Result<Accepted>>,
    task: JoinHandle<()>,
}

impl Incoming {
    /// Accepts from a TCP listener.
    pub fn tcp(listener: TcpListener, security: Security) -> Self {
        Self::tcp_within(listener, security, STRANGERS)
    }

    /// As `tcp`, with other bounds.
    pub(super) fn tcp_within(
        listener: TcpListener,
        security: Security,
        strangers: Strangers,
    ) -> Self {
        Self::spawn(move |ready| accept_tcp(listener, security, strangers, ready))
    }

    /// Accepts from a unix listener.
    pub fn unix(listener: UnixListener) -> Self {
        Self::spawn(|ready| accept_unix(listener, ready))
    }

    fn spawn<F: Future<Output = ()> + Send + 'static>(
        accept: impl FnOnce(mpsc::Sender<io::Result<Accepted>>) -> F,
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
        self.ready.poll_recv(cx)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept_tcp(
    listener: TcpListener,
    security: Security,
    strangers: Strangers,
    ready: mpsc::Sender<io::Result<Accepted>>,
) {
    let limit = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    let places = Arc::new(Semaphore::new(strangers.most));
    // Dropped with this task, and the handshakes with it.
    let mut handshakes = tokio::task::JoinSet::new();
    loop {
        while handshakes.try_join_next().is_some() {}
        let Ok(permit) = Arc::clone(&limit).acquire_owned().await else {
            return;
        };
        let tcp = match listener.accept().await {
            Ok((tcp, _)) => tcp,
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (security, ready, places) = (security.clone(), ready.clone(), Arc::clone(&places));
        handshakes.spawn(async move {
            let _permit = permit;
            let secured = tokio::time::timeout(HANDSHAKE_TIMEOUT, secure(tcp, &security)).await;
            match secured.map(|accepted| admitted(accepted?, places, strangers.stay)) {
                // The server has gone when this cannot be sent; the connection closes.
                Ok(Ok(accepted)) => drop(ready.send(Ok(accepted)).await),
                Ok(Err(error)) => tracing::debug!(%error, "connection refused"),
                Err(_) => tracing::debug!("connection refused: the TLS handshake took too long"),
            }
        });
    }
}

/// Gives a stranger a place and an end.
fn admitted(accepted: Accepted, places: Arc<Semaphore>, stay: Duration) -> io::Result<Accepted> {
    if accepted.info.peer != Peer::Anonymous {
        return Ok(accepted);
    }
    let place = places
        .try_acquire_owned()
        .map_err(|_| io::Error::other("too many connections without a certificate are open"))?;
    let visit = Some(Visit {
        _place: place,
        end: Box::pin(tokio::time::sleep(stay)),
    });
    Ok(Accepted { visit, ..accepted })
}

async fn secure(tcp: TcpStream, security: &Security) -> io::Result<Accepted> {
    let address = Some(tcp.peer_addr()?);
    tcp.set_nodelay(true)?;
    let credentials = match security {
        Security::Plain => {
            return Ok(Accepted {
                io: AcceptedIo::Plain(tcp),
                info: PeerInfo {
                    address,
                    peer: Peer::Plain,
                },
                visit: None,
            });
        }
        Security::Tls(credentials) => credentials.current(),
    };
    let config = credentials.server_config().map_err(io::Error::other)?;
    let tls = TlsAcceptor::from(Arc::new(config)).accept(tcp).await?;
    // The verifier has believed the chain; here it only says whose it is.
    let shown = tls
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first());
    let peer = match shown {
        None => Peer::Anonymous,
        Some(leaf) => Identity::of_certificate(leaf).map_or(Peer::Anonymous, Peer::Identified),
    };
    Ok(Accepted {
        io: AcceptedIo::Tls(Box::new(tls)),
        info: PeerInfo { address, peer },
        visit: None,
    })
}

async fn accept_unix(listener: UnixListener, ready: mpsc::Sender<io::Result<Accepted>>) {
    loop {
        let accepted = match listener.accept().await {
            Ok((stream, _)) => stream.peer_cred().map(|cred| Accepted {
                info: PeerInfo {
                    address: None,
                    peer: Peer::Local { uid: cred.uid() },
                },
                io: AcceptedIo::Unix(stream),
                visit: None,
            }),
            Err(error) => Err(error),
        };
        match accepted {
            Ok(accepted) => {
                if ready.send(Ok(accepted)).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "accept on the unix socket failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
