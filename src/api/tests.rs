use std::time::{Duration, Instant};

use super::*;

#[test]
fn the_answer_comes_before_the_caller_gives_up() {
    for (text, expected) in [
        ("1S", Some(Duration::from_secs(1))),
        ("250m", Some(Duration::from_millis(250))),
        ("99999999u", Some(Duration::from_micros(99_999_999))),
        ("2M", Some(Duration::from_secs(120))),
        ("", None),
        ("S", None),
        ("-1S", None),
        ("1x", None),
        ("123456789S", None),
    ] {
        assert_eq!(grpc_timeout(text), expected, "{text:?}");
    }
    let mut request = tonic::Request::new(());
    request.set_timeout(Duration::from_secs(10));
    let left = deadline_of(&request) - Instant::now();
    assert!(left <= Duration::from_secs(9) && left > Duration::from_secs(8));
    let left = deadline_of(&tonic::Request::new(())) - Instant::now();
    assert!(left <= DEFAULT_PATIENCE && left > DEFAULT_PATIENCE / 2);
}

#[test]
fn our_own_descriptors_can_be_reflected() {
    for builder in [(); 2].map(|()| {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    }) {
        assert!(builder.build_v1().is_ok());
    }
}

async fn admin(
    served: &testing::Served,
) -> v1::admin_client::AdminClient<tonic::transport::Channel> {
    let address = format!("http://{}", served.address);
    v1::admin_client::AdminClient::connect(address)
        .await
        .expect("connected")
}

fn delete_zone(name: &str) -> v1::Change {
    v1::Change {
        kind: Some(v1::change::Kind::DeleteZone(v1::DeleteZone {
            zone: name.into(),
        })),
    }
}

#[tokio::test]
async fn bad_proposals_are_refused_before_the_log() {
    let served = testing::Served::start().await;
    let mut admin = admin(&served).await;
    let retire = v1::Change {
        kind: Some(v1::change::Kind::RetireMember(v1::RetireMember { id: 1 })),
    };
    let request = |changes: Vec<v1::Change>, id: &'static [u8]| v1::ProposeRequest {
        request_id: bytes::Bytes::from_static(id),
        changes,
        ..v1::ProposeRequest::default()
    };
    for (message, code) in [
        (request(vec![], b""), FailureCode::Invalid),
        (
            request(vec![v1::Change { kind: None }], b""),
            FailureCode::Invalid,
        ),
        (
            request(vec![delete_zone("a..b")], b""),
            FailureCode::Invalid,
        ),
        (
            request(vec![delete_zone("a.")], b"short"),
            FailureCode::Invalid,
        ),
        (request(vec![retire], b""), FailureCode::PermissionDenied),
    ] {
        let status = admin.propose(message).await.expect_err("refused");
        let failure = Failure::from_details(status.details()).expect("details");
        assert_eq!(failure.code, code, "{failure}");
    }
    assert_eq!(
        served
            .group
            .proposals
            .load(std::sync::atomic::Ordering::SeqCst),
        0
    );
    let status = admin.propose(request(vec![delete_zone("a.")], b"")).await;
    let status = status.expect_err("there is no such zone");
    assert_eq!(status.code(), tonic::Code::NotFound);
}

#[tokio::test]
async fn garbage_in_uploads_is_refused() {
    let served = testing::Served::start().await;
    let mut admin = admin(&served).await;
    let bomb = zstd::bulk::compress(&vec![0u8; 300 << 20], 1).expect("compresses");
    let garbage_message = zstd::bulk::compress(&[0xff; 100], 1).expect("compresses");
    for data in [b"garbage".to_vec(), vec![], bomb, garbage_message] {
        let chunk = v1::Chunk { data: data.into() };
        let sent = admin.propose_chunked(tokio_stream::iter([chunk])).await;
        let failure = Failure::from_details(sent.expect_err("refused").details());
        let code = failure.expect("details").code;
        assert!(
            matches!(code, FailureCode::Invalid | FailureCode::LimitExceeded),
            "{code:?}"
        );
    }
}

#[tokio::test]
async fn reflection_and_health_are_served() {
    let served = testing::Served::start().await;
    let channel = tonic::transport::Channel::from_shared(format!("http://{}", served.address))
        .expect("a URI")
        .connect()
        .await
        .expect("connected");
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
    let reply = health
        .check(tonic_health::pb::HealthCheckRequest::default())
        .await;
    assert_eq!(reply.expect("healthy").into_inner().status, 1);
    for service in ["Admin", "Cluster", "Node", "Watch", "Bootstrap", "Peer"] {
        let service = format!("pontoon.v1.{service}");
        let asked = tonic_health::pb::HealthCheckRequest {
            service: service.clone(),
        };
        let reply = health.check(asked).await;
        assert_eq!(reply.expect(&service).into_inner().status, 1, "{service}");
    }
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let request = ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..ServerReflectionRequest::default()
    };
    let mut reflection = ServerReflectionClient::new(channel);
    let replies = reflection
        .server_reflection_info(tokio_stream::iter([request]))
        .await;
    let reply = replies.expect("a stream").into_inner().message().await;
    let Some(MessageResponse::ListServicesResponse(list)) =
        reply.expect("a message").and_then(|m| m.message_response)
    else {
        panic!("no list of services");
    };
    let names: Vec<&str> = list.service.iter().map(|s| s.name.as_str()).collect();
    for service in ["Admin", "Cluster", "Node", "Watch", "Bootstrap", "Peer"] {
        assert!(
            names.contains(&format!("pontoon.v1.{service}").as_str()),
            "{service}: {names:?}"
        );
    }
}

#[tokio::test]
async fn a_node_that_was_removed_tells_nothing_of_its_state_and_ends_what_it_told() {
    use v1::watch_client::WatchClient;
    let served = testing::Served::start().await;
    let mut admin = admin(&served).await;
    let mut watch = WatchClient::connect(format!("http://{}", served.address))
        .await
        .expect("connected");
    let from_now = v1::WatchRequest::default();
    let mut events = watch.watch(from_now).await.expect("a stream").into_inner();
    events.message().await.expect("caught up").expect("goes on");
    admin
        .list_zones(v1::ListZonesRequest::default())
        .await
        .expect("told");

    let why = Failure::new(
        FailureCode::NotReady,
        "this node",
        "was removed",
        "join it anew",
    );
    served.group.gone.send_replace(Some(why.clone()));
    let told = |status: &tonic::Status| Failure::from_details(status.details());
    let ended = events.message().await.expect_err("it ends");
    assert_eq!(told(&ended), Some(why.clone()));
    let refused = admin.list_zones(v1::ListZonesRequest::default()).await;
    assert_eq!(told(&refused.expect_err("refused")), Some(why.clone()));
    let again = watch.watch(v1::WatchRequest::default()).await;
    assert_eq!(told(&again.expect_err("refused")), Some(why));
}

#[tokio::test]
async fn a_watcher_sees_the_state_and_then_each_change() {
    use v1::{watch_change::Object, watch_client::WatchClient, watch_event::Kind};
    let served = testing::Served::start().await;
    let mut admin = admin(&served).await;
    let mut watch = WatchClient::connect(format!("http://{}", served.address))
        .await
        .expect("connected");
    let forwarder = |suffix: &str| v1::ProposeRequest {
        changes: vec![v1::Change {
            kind: Some(v1::change::Kind::PutForwarder(v1::PutForwarder {
                forwarder: Some(v1::Forwarder {
                    suffix: suffix.into(),
                    upstreams: vec!["192.0.2.1:53".into()],
                    timeout_ms: 1000,
                }),
                create: true,
            })),
        }],
        ..v1::ProposeRequest::default()
    };
    admin.propose(forwarder("a.")).await.expect("applied");
    let request = v1::WatchRequest {
        after_revision: Some(0),
    };
    let mut events = watch.watch(request).await.expect("a stream").into_inner();
    let mut seen = Vec::new();
    let mut changed_later = false;
    let last = loop {
        let event = events.message().await.expect("an event").expect("goes on");
        match event.kind.expect("a kind") {
            Kind::Change(change) => match change.object.expect("an object") {
                Object::Forwarder(f) => seen.push(f.suffix),
                Object::DnsPolicy(_) => seen.push("policy".into()),
                other => panic!("{other:?}"),
            },
            Kind::CaughtUp(_) if !changed_later => {
                assert_eq!(seen, ["policy", "a."]);
                admin.propose(forwarder("b.")).await.expect("applied");
                changed_later = true;
            }
            Kind::CaughtUp(caught_up) => {
                let super::group::Applied { index, state } = served.group.applied();
                assert_eq!(caught_up.applied, index);
                assert_eq!(caught_up.state_hash, state.hash().to_vec());
                break event.revision;
            }
            Kind::Compacted(_) => panic!("nothing was lost"),
        }
    };
    assert_eq!(seen, ["policy", "a.", "b."]);
    drop(events);
    admin.propose(forwarder("c.")).await.expect("applied");
    let request = v1::WatchRequest {
        after_revision: Some(last),
    };
    let mut events = watch.watch(request).await.expect("a stream").into_inner();
    // The newest change may still be on its way when the stream begins.
    let change = loop {
        let event = events.message().await.expect("an event").expect("goes on");
        match event.kind {
            Some(Kind::CaughtUp(_)) => assert_eq!(event.revision, last),
            other => break other,
        }
    };
    let Some(Kind::Change(v1::WatchChange {
        object: Some(Object::Forwarder(f)),
    })) = change
    else {
        panic!("{change:?}");
    };
    assert_eq!(f.suffix, "c.");
    let ahead = v1::WatchRequest {
        after_revision: Some(last + 1000),
    };
    assert!(watch.watch(ahead).await.is_err());
}

#[tokio::test]
async fn a_caller_without_a_certificate_may_ask_for_health_and_hold_nothing_open() {
    use crate::{
        model::node::{ClusterId, NodeId},
        pki::{
            authority::{Authority, fingerprint, request},
            identity::Identity,
        },
        transport::{
            Security, connect,
            credentials::{Credentials, SharedCredentials},
        },
    };
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    };
    let cluster = ClusterId("c".into());
    let now = std::time::SystemTime::now();
    let authority = Authority::create(&cluster, now).expect("authority");
    let asked = request().expect("request");
    let identity = Identity::node(cluster, NodeId(1));
    let certificate = authority.sign(&asked.csr_pem, &identity, &[], now);
    let root = authority.certificate_pem();
    let credentials = Credentials::from_pem(&certificate.expect("signed"), &asked.key_pem, root);
    let shared = SharedCredentials::new(credentials.expect("credentials"));
    let anywhere = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let served = testing::Served::start_secured(anywhere, Security::Tls(shared)).await;
    let pin = fingerprint(&CertificateDer::from_pem_slice(root.as_bytes()).expect("a certificate"));
    let stranger = connect::pinned_channel(served.address, &pin).expect("TLS");

    let mut health = tonic_health::pb::health_client::HealthClient::new(stranger.clone());
    let question = tonic_health::pb::HealthCheckRequest::default();
    let reply = health.check(question.clone()).await;
    assert_eq!(reply.expect("answered").into_inner().status, 1);
    let watched = health.watch(question).await.map(|_| ());
    let unknown = |result: Result<(), tonic::Status>| {
        assert_eq!(
            result.expect_err("refused").code(),
            tonic::Code::Unauthenticated
        );
    };
    unknown(watched);
    let mut reflection = ServerReflectionClient::new(stranger.clone());
    let questions = tokio_stream::iter([ServerReflectionRequest::default()]);
    unknown(
        reflection
            .server_reflection_info(questions)
            .await
            .map(|_| ()),
    );
    let mut cluster = v1::cluster_client::ClusterClient::new(stranger);
    unknown(cluster.status(v1::StatusRequest {}).await.map(|_| ()));
}

#[tokio::test]
async fn a_long_answer_of_another_node_is_read() {
    use crate::{
        model::{
            node::{Member, NodeId},
            pool::{Backend, BackendState, Pool},
        },
        state::command::{Change, Command, RequestId, UnixMillis},
    };
    let served = testing::Served::start().await;
    // With what the node says of each, more than the 4 MiB that gRPC takes unless it is told otherwise.
    let pools = (0..30).map(|pool: u32| Change::PutPool {
        pool: Pool {
            backends: (0..1000_u16)
                .map(|number| Backend {
                    name: format!("{number:0>63}").parse().expect("a label"),
                    address: ([10, 0, 0, 1], number + 1).into(),
                    weight: 1,
                    state: BackendState::Enabled,
                })
                .collect(),
            ..Pool::new(format!("{pool:0>63}").parse().expect("a label"))
        },
        create: true,
    });
    let command = Command {
        request: RequestId(2),
        born: 0,
        proposed_at: UnixMillis(0),
        author: "test".into(),
        preconditions: vec![],
        changes: pools.collect(),
    };
    let outcome = served
        .group
        .propose(command, Instant::now() + Duration::from_secs(60))
        .await;
    assert!(matches!(outcome, Ok(Outcome::Applied(_))), "{outcome:?}");
    let api = Api::new(Arc::new(testing::MemoryNode(
        served.group.clone(),
        crate::transport::Security::Plain,
    )));
    let other = Member {
        id: NodeId(2),
        name: "n2".into(),
        raft_address: served.address,
        api_address: served.address,
    };
    let reply = api.client(&other).status(v1::NodeStatusRequest {}).await;
    let reply = reply.expect("an answer").into_inner();
    assert_eq!(reply.backends.len(), 30_000);
    assert!(prost::Message::encoded_len(&reply) > 4 << 20);
}

/// A request of the user of this machine.
fn local<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.extensions_mut().insert(crate::transport::PeerInfo {
        address: None,
        peer: crate::transport::Peer::Local { uid: 0 },
    });
    request
}

#[tokio::test]
async fn a_name_that_no_member_has_is_told_with_those_that_are_there() {
    use v1::cluster_server::Cluster;
    let group = testing::MemoryGroup::new();
    let node = testing::MemoryNode(group, crate::transport::Security::Plain);
    let api = Api::new(Arc::new(node));
    let request = v1::FindMemberRequest { name: "n9".into() };
    let status = api.find_member(local(request)).await.expect_err("unknown");
    let failure = Failure::from_details(status.details()).expect("details");
    assert_eq!(failure.code, FailureCode::NotFound);
    assert!(failure.object.contains("n9"), "{failure:?}");
    for told in ["n1 (1)", "by its id alone"] {
        assert!(failure.hint.contains(told), "{told}: {failure:?}");
    }
}

#[tokio::test]
async fn no_task_outlives_the_api() {
    use v1::watch_server::Watch;
    let group = testing::MemoryGroup::new();
    let known = Arc::downgrade(&group);
    let node = testing::MemoryNode(group, crate::transport::Security::Plain);
    let api = Api::new(Arc::new(node));
    let watching = api.watch(local(v1::WatchRequest::default())).await;
    drop((watching.expect("a stream"), api));
    let ended = async {
        while known.strong_count() > 0 {
            tokio::task::yield_now().await;
        }
    };
    let ended = tokio::time::timeout(Duration::from_secs(30), ended).await;
    assert!(ended.is_ok(), "a task still has the group");
}

#[tokio::test]
async fn a_leave_of_a_node_that_was_removed_already_ends_it() {
    use v1::cluster_server::Cluster;
    let group = testing::MemoryGroup::new();
    let node = testing::MemoryNode(Arc::clone(&group), crate::transport::Security::Plain);
    let api = Api::new(Arc::new(node));
    let gone = |problem: &str| {
        let why = Failure::new(FailureCode::NotReady, "this node", problem, "");
        group.gone.send_replace(Some(why));
    };

    // Its removal is refused, as by a node that takes no part for another reason.
    gone("its log is gone");
    let refused = api.leave(local(v1::LeaveRequest {})).await;
    let status = refused.expect_err("refused");
    let failure = Failure::from_details(status.details()).expect("details");
    assert_eq!(failure.problem, "its log is gone");
    assert!(!*group.stopped.borrow());

    gone("it was removed");
    let removal = testing::Removal::default();
    removal.go_on.notify_one();
    *group.removal.lock().expect("unused") = Some(removal);
    let left = api.leave(local(v1::LeaveRequest {})).await;
    assert_eq!(left.expect("left").into_inner().node_id, 1);
    assert!(*group.stopped.borrow());
}

#[tokio::test]
async fn a_leave_goes_on_when_its_caller_goes_away() {
    use v1::cluster_server::Cluster;
    let group = testing::MemoryGroup::new();
    let removal = testing::Removal::default();
    *group.removal.lock().expect("unused") = Some(removal.clone());
    let node = testing::MemoryNode(Arc::clone(&group), crate::transport::Security::Plain);
    let api = Api::new(Arc::new(node));
    let mut call = api.leave(local(v1::LeaveRequest {}));
    tokio::select! {
        ended = &mut call => panic!("before the removal ended: {ended:?}"),
        () = removal.begun.notified() => {}
    }
    drop(call);
    removal.go_on.notify_one();
    let mut stopped = group.stopped.subscribe();
    let stopped = stopped.wait_for(|stopped| *stopped);
    let stopped = tokio::time::timeout(Duration::from_secs(30), stopped).await;
    assert!(stopped.is_ok(), "the node was removed and goes on");
}

#[tokio::test]
async fn a_loopback_vip_is_taken_only_by_a_cluster_in_plaintext() {
    let plain = testing::MemoryNode(
        testing::MemoryGroup::new(),
        crate::transport::Security::Plain,
    );
    let secured = testing::MemoryNode::with_certificate();
    for (node, is_taken) in [(plain, true), (secured, false)] {
        let state = node.0.state();
        let api = Api::new(Arc::new(node));
        let vip = crate::model::vip::Vip {
            address: "127.0.0.9".parse().expect("an address"),
            interface: "vip".parse().expect("a label"),
        };
        let put = Change::PutVip { vip, create: true };
        let deadline = Instant::now() + Duration::from_secs(10);
        let advised = api.advise_on(&state, &[put], deadline).await;
        assert_eq!(advised.is_ok(), is_taken, "{advised:?}");
    }
}

#[tokio::test]
async fn only_what_can_be_signed_becomes_an_administrator() {
    let served = testing::Served::start_with_certificate().await;
    let own = served.group.certificate(
        &crate::pki::identity::Identity::admin(served.group.cluster(), "root"),
        SystemTime::now(),
    );
    let security = crate::transport::Security::Tls(
        crate::transport::credentials::SharedCredentials::new(own.credentials().expect("sound")),
    );
    let channel = crate::transport::connect::channel(
        served.address,
        &security,
        crate::pki::verify::Expected::AnyNode,
    );
    let mut cluster = v1::cluster_client::ClusterClient::new(channel);
    let csr_pem = crate::pki::authority::request().expect("made").csr_pem;
    let sound = csr_pem.as_str();
    for (name, csr_pem) in [("", sound), ("a/b", sound), ("ann", ""), ("ann", "garbled")] {
        let (name, csr_pem) = (name.to_owned(), csr_pem.to_owned());
        let asked = cluster.create_admin(v1::CreateAdminRequest { name, csr_pem });
        let status = asked.await.expect_err("refused");
        let failure = Failure::from_details(status.details()).expect("details");
        assert_eq!(failure.code, FailureCode::Invalid, "{failure}");
    }
}
