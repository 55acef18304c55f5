//! Connections between nodes, and from clients to nodes: mutual TLS over TCP, plain TCP for `pontoon dev`, and the local
//! unix socket.
//!
//! `connect` makes gRPC channels, `accept` turns listening sockets into streams of authenticated connections. What is
//! believed is decided in `pki::verify`. Certificates can be replaced while connections live: new ones use the new pair.

pub mod accept;
pub mod connect;
pub mod credentials;

use std::net::SocketAddr;

use crate::pki::identity::Identity;

/// Who is at the other end of an accepted connection. Found in the extensions of each request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerInfo {
    /// None on the unix socket.
    pub address: Option<SocketAddr>,
    pub peer: Peer,
}

/// What is known of the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// It holds a certificate of our authority.
    Identified(Identity),
    /// It speaks TLS and showed no certificate: it may join, and ask for health.
    Anonymous,
    /// A process of this machine, over the unix socket (whose file mode is the permission).
    Local { uid: u32 },
    /// Plain TCP on loopback: `pontoon dev` only.
    Plain,
}

/// How connections are secured.
#[derive(Clone)]
pub enum Security {
    /// Loopback only, `pontoon dev`.
    Plain,
    Tls(credentials::SharedCredentials),
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant, SystemTime};

    use rustls::pki_types::{CertificateDer, pem::PemObject};
    use tokio::{net::TcpListener, sync::mpsc};
    use tonic::{Request, Status, transport::Server};
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

    use super::{
        accept::{Incoming, Strangers},
        connect,
        credentials::*,
        *,
    };
    use crate::{
        model::node::{ClusterId, NodeId},
        pki::{
            authority::{Authority, fingerprint, request},
            verify::Expected,
        },
    };

    fn credentials(authority: &Authority, identity: Identity) -> SharedCredentials {
        let request = request().expect("request");
        let certificate = authority
            .sign(&request.csr_pem, &identity, &[], SystemTime::now())
            .expect("signed");
        let roots = authority.certificate_pem();
        let credentials = Credentials::from_pem(&certificate, &request.key_pem, roots);
        SharedCredentials::new(credentials.expect("credentials"))
    }

    /// A health service on a free port that reports who calls it.
    async fn serve(security: Security) -> (SocketAddr, mpsc::UnboundedReceiver<Peer>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        (address, serve_from(Incoming::tcp(listener, security)))
    }

    fn serve_from(incoming: Incoming) -> mpsc::UnboundedReceiver<Peer> {
        let (seen, peers) = mpsc::unbounded_channel();
        let (_, health) = tonic_health::server::health_reporter();
        let spy = move |request: Request<()>| {
            let info = request.extensions().get::<PeerInfo>().cloned();
            let info = info.ok_or_else(|| Status::internal("no peer info"))?;
            seen.send(info.peer).expect("the test listens");
            Ok(request)
        };
        let server = Server::builder()
            .layer(tonic::service::InterceptorLayer::new(spy))
            .add_service(health)
            .serve_with_incoming(incoming);
        tokio::spawn(server);
        peers
    }

    async fn check(channel: tonic::transport::Channel) -> Result<(), Status> {
        let mut client = HealthClient::new(channel);
        client
            .check(HealthCheckRequest::default())
            .await
            .map(|_| ())
    }

    #[tokio::test]
    async fn both_ends_know_each_other() {
        let cluster = ClusterId("c1".into());
        let authority = Authority::create(&cluster, SystemTime::now()).expect("authority");
        let node = |id| Identity::node(cluster.clone(), NodeId(id));
        let server = credentials(&authority, node(1));
        let (address, mut peers) = serve(Security::Tls(server)).await;

        let two = Security::Tls(credentials(&authority, node(2)));
        check(connect::channel(address, &two, Expected::Node(NodeId(1))))
            .await
            .expect("node 2 reaches node 1");
        assert_eq!(peers.recv().await, Some(Peer::Identified(node(2))));

        let wrong = check(connect::channel(address, &two, Expected::Node(NodeId(3)))).await;
        let wrong = format!("{:?}", wrong.expect_err("node 1 is not node 3"));
        assert!(wrong.contains("expected node 3"), "{wrong}");

        let root = CertificateDer::from_pem_slice(authority.certificate_pem().as_bytes());
        let pin = fingerprint(&root.expect("a certificate"));
        let pinned = connect::pinned_channel(address, &pin).expect("TLS");
        check(pinned).await.expect("a joiner gets through");
        assert_eq!(peers.recv().await, Some(Peer::Anonymous));
        let other_pin = connect::pinned_channel(address, &"0".repeat(64)).expect("TLS");
        assert!(check(other_pin).await.is_err());
    }

    #[tokio::test]
    async fn a_stranger_is_refused_and_holds_up_nobody() {
        let cluster = ClusterId("c1".into());
        let authority = Authority::create(&cluster, SystemTime::now()).expect("authority");
        let one = credentials(&authority, Identity::node(cluster.clone(), NodeId(1)));
        let (address, mut peers) = serve(Security::Tls(one.clone())).await;

        let forger = Authority::create(&cluster, SystemTime::now()).expect("authority");
        let forged = credentials(&forger, Identity::node(cluster.clone(), NodeId(2)));
        let forged = Security::Tls(forged);
        assert!(
            check(connect::channel(address, &forged, Expected::AnyNode))
                .await
                .is_err()
        );
        assert!(
            check(connect::channel(
                address,
                &Security::Plain,
                Expected::AnyNode
            ))
            .await
            .is_err()
        );

        // Connections that say nothing stay open while others are served.
        let _silent: Vec<_> = (0..20)
            .map(|_| std::net::TcpStream::connect(address).expect("connected"))
            .collect();
        check(connect::channel(
            address,
            &Security::Tls(one),
            Expected::AnyNode,
        ))
        .await
        .expect("served beside silent connections");
        assert!(matches!(peers.recv().await, Some(Peer::Identified(_))));
        assert!(peers.try_recv().is_err());
    }

    #[tokio::test]
    async fn strangers_hold_few_connections_open_and_not_for_ever() {
        let cluster = ClusterId("c1".into());
        let authority = Authority::create(&cluster, SystemTime::now()).expect("authority");
        let one = credentials(&authority, Identity::node(cluster, NodeId(1)));
        let listen = async |stay| {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let address = listener.local_addr().expect("bound");
            let strangers = Strangers { most: 1, stay };
            let security = Security::Tls(one.clone());
            let incoming = Incoming::tcp_within(listener, security, strangers);
            (address, serve_from(incoming))
        };
        let root = CertificateDer::from_pem_slice(authority.certificate_pem().as_bytes());
        let pin = fingerprint(&root.expect("a certificate"));
        let stranger = |address| connect::pinned_channel(address, &pin).expect("TLS");

        let (address, _peers) = listen(Duration::from_secs(600)).await;
        let first = stranger(address);
        check(first.clone()).await.expect("there is a place");
        assert!(check(stranger(address)).await.is_err(), "one more");
        let member = connect::channel(address, &Security::Tls(one.clone()), Expected::AnyNode);
        check(member).await.expect("a member needs no place");
        check(first).await.expect("who had the place keeps it");

        let (address, _peers) = listen(Duration::from_millis(50)).await;
        let first = stranger(address);
        check(first.clone()).await.expect("there is a place");
        let deadline = Instant::now() + Duration::from_secs(30);
        while check(stranger(address)).await.is_err() {
            assert!(Instant::now() < deadline, "the place is held for ever");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        drop(first);
    }
}
