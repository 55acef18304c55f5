//! Making gRPC channels. Channels connect when first used and again after a failure.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

use super::{Security, credentials::pinned_client_config};
use crate::pki::verify::Expected;

/// Longest wait for a TCP connection and for the TLS handshake, each.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A SYN that was lost is sent again after a second only (RFC 6298, section 2): a link that is whole again by then is found by
/// further attempts beside the first, this long after one another.
const NEXT_ATTEMPT: Duration = Duration::from_millis(300);
/// Attempts beside one another.
const ATTEMPTS: usize = 4;
/// A peer that answers no HTTP/2 ping for the interval plus the timeout is given up.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Sent data unacknowledged for this long ends the connection (TCP_USER_TIMEOUT), so that a vanished peer is noticed.
const USER_TIMEOUT: Duration = Duration::from_secs(4);

/// How a channel is made, apart from where to.
#[derive(Clone)]
pub struct Link {
    /// HTTP/2 settings; its URI plays no part.
    pub endpoint: Endpoint,
    /// The own address that connections leave from: a VIP must never become their source. None: the kernel chooses.
    pub local: Option<IpAddr>,
    /// How long sent data may stay unacknowledged before the connection is given up (TCP_USER_TIMEOUT).
    pub user_timeout: Duration,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            endpoint: default_endpoint(),
            local: None,
            user_timeout: USER_TIMEOUT,
        }
    }
}

/// A channel to `address`, secured as `security` says.
pub fn channel(address: SocketAddr, security: &Security, expected: Expected) -> Channel {
    channel_over(Link::default(), address, security, expected)
}

/// As `channel`, over a link of the caller's making.
pub fn channel_over(
    link: Link,
    address: SocketAddr,
    security: &Security,
    expected: Expected,
) -> Channel {
    let security = security.clone();
    let endpoint = link.endpoint.clone();
    lazy_channel(&endpoint, move || {
        let (link, security, expected) = (link.clone(), security.clone(), expected.clone());
        async move {
            let tcp = connect_tcp(address, &link).await?;
            match security {
                Security::Plain => Ok(TokioIo::new(Io::Plain(tcp))),
                Security::Tls(credentials) => {
                    // Built per connection, so that replaced certificates are used from the next one on.
                    let config = credentials
                        .current()
                        .client_config(expected)
                        .map_err(io::Error::other)?;
                    handshake(tcp, config).await.map(TokioIo::new)
                }
            }
        }
    })
}

/// A channel to a member that is known only by the fingerprint of its authority; for `join`.
///
/// # Errors
/// When TLS cannot be set up in this process.
pub fn pinned_channel(address: SocketAddr, fingerprint: &str) -> Result<Channel, rustls::Error> {
    let config = pinned_client_config(fingerprint)?;
    Ok(lazy_channel(&default_endpoint(), move || {
        let config = config.clone();
        async move {
            handshake(connect_tcp(address, &Link::default()).await?, config)
                .await
                .map(TokioIo::new)
        }
    }))
}

/// A channel over the local unix socket at `path`.
pub fn unix_channel(path: PathBuf) -> Channel {
    lazy_channel(&default_endpoint(), move || {
        let path = path.clone();
        async move {
            let stream = UnixStream::connect(&path).await;
            let named = |e: io::Error| {
                io::Error::new(e.kind(), format!("unix socket {}: {e}", path.display()))
            };
            stream.map(|s| TokioIo::new(Io::Unix(s))).map_err(named)
        }
    })
}

fn lazy_channel<F, Fut>(endpoint: &Endpoint, connect: F) -> Channel
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = io::Result<TokioIo<Io>>> + Send + 'static,
{
    endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| connect()))
}

fn default_endpoint() -> Endpoint {
    // The address is the connector's affair; the URI only fills the `:authority` header.
    Endpoint::from_static("http://pontoon")
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
}

async fn connect_tcp(address: SocketAddr, link: &Link) -> io::Result<TcpStream> {
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, first_connected(address, link.local))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|e: io::Error| io::Error::new(e.kind(), format!("{address}: {e}")))?;
    tune(&stream)?;
    socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(link.user_timeout))?;
    Ok(stream)
}

/// What is said is said at once, and what was lost is sent again before long. The kernel doubles the pause each time: a link that was
/// cut for a second would carry nothing for another one after it is whole again. Of connections that carry little it need not.
pub(super) fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    if let Err(error) = socket2::SockRef::from(stream).set_tcp_thin_linear_timeouts(true) {
        tracing::debug!(%error, "after a cut this link will be silent for longer than need be");
    }
    Ok(())
}

async fn first_connected(address: SocketAddr, local: Option<IpAddr>) -> io::Result<TcpStream> {
    let mut attempts = FuturesUnordered::new();
    loop {
        attempts.push(attempt(address, local));
        let may_go_on = attempts.len() < ATTEMPTS;
        tokio::select! {
            Some(connected) = attempts.next() => return connected,
            () = tokio::time::sleep(NEXT_ATTEMPT), if may_go_on => {}
        }
    }
}

async fn attempt(address: SocketAddr, local: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if let Some(local) = local.filter(|local| local.is_ipv4() == address.is_ipv4()) {
        socket.bind(SocketAddr::new(local, 0))?;
    }
    socket.connect(address).await
}

async fn handshake(tcp: TcpStream, config: ClientConfig) -> io::Result<Io> {
    let address = tcp.peer_addr()?;
    // Never looked at: `pki::verify` goes by the identity in the certificate.
    let name = ServerName::try_from("pontoon").map_err(io::Error::other)?;
    let connecting = TlsConnector::from(Arc::new(config)).connect(name, tcp);
    let tls = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|e| io::Error::new(e.kind(), format!("{address}: TLS: {}", told(&e))))?;
    Ok(Io::Tls(Box::new(tls)))
}

/// What went wrong in a handshake, without what the library puts in front of our own words.
fn told(error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|e| e.downcast_ref());
    match inner {
        Some(rustls::Error::General(ours)) => ours.clone(),
        Some(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)) => {
            "what answers there does not speak TLS".to_owned()
        }
        _ => error.to_string(),
    }
}

/// Any of the three kinds of connection.
enum Io {
    Plain(TcpStream),
    Unix(UnixStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

super::accept::delegate_io!(Io { Plain, Unix, Tls });
