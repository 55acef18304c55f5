//! Accepting connections: TCP with TLS or plain, and the unix socket, as a stream that the gRPC server reads.
//!
//! Handshakes run beside each other, each with a deadline and all under a limit, so that a silent client holds up nobody.
//! Dropping the stream stops accepting and abandons unfinished handshakes.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{Semaphore, mpsc},
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;
use tonic::transport::server::Connected;

use super::{Peer, PeerInfo, Security};
use crate::pki::{identity::Identity, verify::ClientAuth};

/// Handshakes under way at one time; further connections wait in the kernel's backlog.
const MAX_HANDSHAKES: usize = 256;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
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
    /// Accepts from a TCP listener. `client_auth` matters to TLS only.
    pub fn tcp(listener: TcpListener, security: Security, client_auth: ClientAuth) -> Self {
        Self::spawn(|ready| accept_tcp(listener, security, client_auth, ready))
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
    client_auth: ClientAuth,
    ready: mpsc::Sender<io::Result<Accepted>>,
) {
    let limit = Arc::new(Semaphore::new(MAX_HANDSHAKES));
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
        let (security, ready) = (security.clone(), ready.clone());
        handshakes.spawn(async move {
            let _permit = permit;
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, secure(tcp, &security, client_auth)).await
            {
                // The server has gone when this cannot be sent; the connection closes.
                Ok(Ok(accepted)) => drop(ready.send(Ok(accepted)).await),
                Ok(Err(error)) => tracing::debug!(%error, "connection refused"),
                Err(_) => tracing::debug!("connection refused: the TLS handshake took too long"),
            }
        });
    }
}

async fn secure(
    tcp: TcpStream,
    security: &Security,
    client_auth: ClientAuth,
) -> io::Result<Accepted> {
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
            });
        }
        Security::Tls(credentials) => credentials.current(),
    };
    let config = credentials
        .server_config(client_auth)
        .map_err(io::Error::other)?;
    let accepting = TlsAcceptor::from(Arc::new(config)).accept(tcp);
    let tls = match accepting.into_fallible().await {
        Ok(tls) => tls,
        Err((error, tcp)) => {
            part(tcp).await;
            return Err(error);
        }
    };
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
    })
}

/// Ends a refused connection so that the client learns why: were what it has sent meanwhile left unread, the kernel would
/// reset the connection, and the TLS alert might be lost.
async fn part(mut tcp: TcpStream) {
    let mut unread = [0; 1024];
    if tcp.shutdown().await.is_ok() {
        while tcp.read(&mut unread).await.is_ok_and(|octets| octets > 0) {}
    }
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
