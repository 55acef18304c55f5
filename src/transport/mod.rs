//! Connections between nodes, and from clients to nodes: mutual TLS over TCP, plain TCP for `pontoon dev`, and the local
//! unix socket.
//!
//! `connect` makes gRPC channels, `accept` turns listening sockets into streams of authenticated connections, `port` bounds
//! their number. What is believed is decided in `pki::verify`. Certificates can be replaced while connections live: new ones use the new pair.

pub mod accept;
pub mod connect;
pub mod credentials;
pub mod port;

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
    /// It speaks TLS and showed no certificate: it may join, and ask for health. Never on the Raft port.
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
    use std::{
        sync::Arc,
        time::{Duration, SystemTime},
    };

    use rustls::pki_types::{CertificateDer, pem::PemObject};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
        sync::mpsc,
    };
    use tonic::{Request, Status, transport::Server};
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

    use super::{
        accept::Incoming,
        connect,
        credentials::*,
        port::{Port, PortLimits, Refusal},
        *,
    };
    use crate::{
        model::node::{ClusterId, NodeId},
        pki::{
            authority::{Authority, fingerprint, request},
            verify::{ClientAuth, Expected},
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
    async fn serve(
        security: Security,
        client_auth: ClientAuth,
    ) -> (SocketAddr, mpsc::UnboundedReceiver<Peer>) {
        let port = Port::new("test", PortLimits::of(64));
        serve_at(port, security, client_auth).await
    }

    async fn serve_at(
        port: Arc<Port>,
        security: Security,
        client_auth: ClientAuth,
    ) -> (SocketAddr, mpsc::UnboundedReceiver<Peer>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
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
            .serve_with_incoming(Incoming::tcp(listener, security, client_auth, port));
        tokio::spawn(server);
        (address, peers)
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
        let (address, mut peers) = serve(Security::Tls(server), ClientAuth::Optional).await;

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

    /// As on the Raft port, whose server shares one thread with consensus.
    #[tokio::test]
    async fn handshakes_take_no_time_from_the_runtime_that_serves() {
        let cluster = ClusterId("c1".into());
        let authority = Authority::create(&cluster, SystemTime::now()).expect("authority");
        let of = |id| credentials(&authority, Identity::node(cluster.clone(), NodeId(id)));
        let (server, client) = (of(1), of(2));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let port = Port::new("test", PortLimits::of(8));
        let security = Security::Tls(server);
        let incoming = Incoming::tcp(listener, security, ClientAuth::Mandatory, port);

        let serving = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let (go_on, wait) = std::sync::mpsc::channel::<()>();
        let (busy, is_busy) = tokio::sync::oneshot::channel();
        serving.spawn(async move {
            busy.send(()).expect("the test waits");
            wait.recv().expect("the test says when");
        });
        is_busy.await.expect("it is busy");
        let (_, health) = tonic_health::server::health_reporter();
        serving.spawn(
            Server::builder()
                .add_service(health)
                .serve_with_incoming(incoming),
        );

        let config = client.current().client_config(Expected::Node(NodeId(1)));
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config.expect("TLS")));
        let name = rustls::pki_types::ServerName::IpAddress(address.ip().into());
        let mut tls = connector
            .connect(name, TcpStream::connect(address).await.expect("connected"))
            .await
            .expect("the handshake ends");
        tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
            .await
            .expect("sent");
        go_on.send(()).expect("it waits");
        let mut settings = [0; 9];
        tls.read_exact(&mut settings).await.expect("served");
        assert_eq!(settings[3], 4, "a SETTINGS frame");

        let two = Security::Tls(client);
        check(connect::channel(address, &two, Expected::Node(NodeId(1))))
            .await
            .expect("served");
        serving.shutdown_background();
    }

    #[test]
    fn what_accepts_connections_is_made_once_and_resumes_no_session() {
        let cluster = ClusterId("c1".into());
        let authority = Authority::create(&cluster, SystemTime::now()).expect("authority");
        let credentials = credentials(&authority, Identity::node(cluster, NodeId(1))).current();
        let config = |auth| credentials.server_config(auth).expect("TLS");
        let mandatory = config(ClientAuth::Mandatory);
        assert!(Arc::ptr_eq(&mandatory, &config(ClientAuth::Mandatory)));
        assert!(!Arc::ptr_eq(&mandatory, &config(ClientAuth::Optional)));
        assert!(!mandatory.session_storage.can_cache());
        assert_eq!(mandatory.send_tls13_tickets, 0);
    }

    #[tokio::test]
    async fn where_a_certificate_is_demanded_the_handshake_fails_without_one() {
        let cluster = ClusterId("c1".into());
        let authority = Authority::create(&cluster, SystemTime::now()).expect("authority");
        let of = |identity| Security::Tls(credentials(&authority, identity));
        let node = |id| Identity::node(cluster.clone(), NodeId(id));
        let (address, mut peers) = serve(of(node(1)), ClientAuth::Mandatory).await;

        let root = CertificateDer::from_pem_slice(authority.certificate_pem().as_bytes());
        let pin = fingerprint(&root.expect("a certificate"));
        let nobody = connect::pinned_channel(address, &pin).expect("TLS");
        let refused = check(nobody).await.expect_err("it has no certificate");
        let refused = format!("{refused:?}");
        assert!(refused.contains("CertificateRequired"), "{refused}");

        let two = of(node(2));
        check(connect::channel(address, &two, Expected::Node(NodeId(1))))
            .await
            .expect("a member gets through");
        assert_eq!(peers.recv().await, Some(Peer::Identified(node(2))));
        assert!(peers.try_recv().is_err(), "nobody else was heard");
    }

    #[tokio::test]
    async fn a_stranger_is_refused_and_holds_up_nobody() {
        let cluster = ClusterId("c1".into());
        let authority = Authority::create(&cluster, SystemTime::now()).expect("authority");
        let one = credentials(&authority, Identity::node(cluster.clone(), NodeId(1)));
        let limits = PortLimits {
            unfinished: 8,
            ..PortLimits::of(64)
        };
        let port = Port::new("test", limits);
        let security = Security::Tls(one.clone());
        let (address, mut peers) =
            serve_at(Arc::clone(&port), security, ClientAuth::Optional).await;

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

        // More connections that say nothing than there may be: the oldest of them go, others are served.
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
        assert!(port.refused(Refusal::Unfinished) >= 12);
    }

    #[tokio::test]
    async fn who_does_not_begin_to_speak_is_dropped() {
        let limits = PortLimits {
            begin: Duration::from_millis(50),
            ..PortLimits::of(64)
        };
        let port = Port::new("test", limits);
        let (address, _peers) =
            serve_at(Arc::clone(&port), Security::Plain, ClientAuth::Optional).await;
        for begun in ["", "PRI * HTTP/2.0"] {
            let mut client = TcpStream::connect(address).await.expect("connected");
            client.write_all(begun.as_bytes()).await.expect("sent");
            let mut said = Vec::new();
            let ended = client.read_to_end(&mut said);
            // A reset is an end, too.
            let _ = tokio::time::timeout(Duration::from_secs(20), ended)
                .await
                .expect("the server ends it");
        }
        assert_eq!(port.refused(Refusal::Silent), 2);
    }

    #[tokio::test]
    async fn strangers_cannot_take_all_places() {
        let cluster = ClusterId("c1".into());
        let authority = Authority::create(&cluster, SystemTime::now()).expect("authority");
        let of = |id| {
            let identity = Identity::node(cluster.clone(), NodeId(id));
            Security::Tls(credentials(&authority, identity))
        };
        let limits = PortLimits {
            without_certificate: 1,
            ..PortLimits::of(2)
        };
        let port = Port::new("test", limits);
        let (address, _peers) = serve_at(Arc::clone(&port), of(1), ClientAuth::Optional).await;
        let root = CertificateDer::from_pem_slice(authority.certificate_pem().as_bytes());
        let pin = fingerprint(&root.expect("a certificate"));
        let stranger = || connect::pinned_channel(address, &pin).expect("TLS");
        let first = stranger();
        check(first.clone()).await.expect("one may come");
        check(stranger()).await.expect_err("another one may not");
        let member = connect::channel(address, &of(2), Expected::AnyNode);
        check(member.clone()).await.expect("a member may");
        check(connect::channel(address, &of(3), Expected::AnyNode))
            .await
            .expect_err("all places are taken");
        assert_eq!(port.open(), 2);
        check(first).await.expect("who is in stays");
        assert!(port.refused(Refusal::Limit) >= 2);
    }
}
