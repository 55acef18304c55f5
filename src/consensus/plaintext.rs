//! Links without TLS, for tests on loopback.

use std::{io, net::SocketAddr};

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tonic::transport::Channel;

use super::network::{PeerConnector, peer_endpoint};
use crate::model::node::NodeId;

/// Speaks plaintext HTTP/2 to peers.
pub struct PlaintextConnector;

impl PeerConnector for PlaintextConnector {
    fn channel(&self, _to: NodeId, address: SocketAddr) -> Channel {
        let dialer =
            tower::service_fn(move |_| async move { dial(address).await.map(TokioIo::new) });
        peer_endpoint().connect_with_connector_lazy(dialer)
    }
}

/// Opens a TCP connection that sends at once, as a peer link does.
pub async fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
