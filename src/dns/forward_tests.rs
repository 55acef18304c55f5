//! Forwarding on real sockets of the loopback interface: which upstream is asked when, and from which address.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::mpsc,
    time::Duration,
};

use crate::{
    alone::{run_alone, take_all_files},
    model::{rrset::RecordType, snapshot::Snapshot},
};

use super::{
    ForwardLimits, ForwardStats, Source,
    message::Rcode,
    server_tests::{
        Fixture, Manner, PATIENCE, Upstream, elsewhere, eventually, forwarding_to, waiting_for,
        with_timeout, with_vips,
    },
    testing::{add_forwarder, name},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_second_upstream_is_asked_in_time_however_long_the_timeout_is() {
    let silent = Upstream::start(Manner::Silent, Duration::ZERO);
    let honest = Upstream::start(Manner::Honest, Duration::ZERO);
    let state = forwarding_to(&[silent.address, honest.address]);
    let state = with_timeout(state, Duration::from_secs(30));
    let fixture = Fixture::start(state, |config| {
        config.forward = ForwardLimits {
            total: Duration::from_secs(2),
            ..ForwardLimits::default()
        };
    });
    let reply = fixture.ask("www.elsewhere.test.").await;
    assert_eq!((reply.rcode, reply.answer.len()), (Rcode::NO_ERROR, 1));
    fixture.ask("other.elsewhere.test.").await;
    assert_eq!(
        (silent.asked(), honest.asked()),
        (1, 2),
        "the silence is remembered"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silence_that_takes_all_the_time_is_remembered() {
    let silent = Upstream::start(Manner::Silent, Duration::ZERO);
    let honest = Upstream::start(Manner::Honest, Duration::ZERO);
    let state = with_timeout(forwarding_to(&[silent.address]), Duration::from_secs(30));
    let fixture = Fixture::start(state, |config| {
        config.forward = ForwardLimits {
            total: Duration::from_secs(1),
            ..ForwardLimits::default()
        };
    });
    let reply = fixture.ask("www.elsewhere.test.").await;
    assert_eq!(reply.rcode, Rcode::SERV_FAIL);
    assert_eq!(fixture.server.stats().forward.timed_out, 1);
    fixture.publish(forwarding_to(&[silent.address, honest.address]));
    let reply = fixture.ask("www.elsewhere.test.").await;
    assert_eq!(reply.rcode, Rcode::NO_ERROR);
    assert_eq!((silent.asked(), honest.asked()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_does_not_wait_for_servers_that_were_replaced() {
    let silent = Upstream::start(Manner::Silent, Duration::ZERO);
    let honest = Upstream::start(Manner::Honest, Duration::ZERO);
    let state = with_timeout(forwarding_to(&[silent.address]), Duration::from_secs(30));
    let fixture = Fixture::start(state, |_| {});
    let qname = name("www.elsewhere.test.");
    let before = fixture.server.query_local(&qname, RecordType::A, true);
    let after = async {
        eventually("the first servers are asked", || silent.asked() == 1).await;
        fixture.publish(Snapshot {
            revision: 1,
            ..waiting_for(&honest)
        });
        fixture.ask("www.elsewhere.test.").await
    };
    // The first goes on as it began; it is dropped when the second has its answer.
    tokio::select! {
        reply = before => panic!("nobody answered the first: {reply:?}"),
        reply = after => assert_eq!((reply.rcode, reply.answer.len()), (Rcode::NO_ERROR, 1)),
    }
    let forward = || fixture.server.stats().forward;
    assert_eq!(forward().coalesced, 0);
    eventually("the second query ends alone", || forward().outstanding == 1).await;
    assert!(fixture.server.stop(PATIENCE).await);
    assert_eq!(forward().outstanding, 0);
}

/// Questions for two suffixes, of which one has servers that never answer, within narrow limits.
struct Slow {
    fixture: Fixture,
    _silent: Upstream,
    _honest: Upstream,
}

impl Slow {
    fn start(limit: impl FnOnce(&mut ForwardLimits)) -> Self {
        let silent = Upstream::start(Manner::Silent, Duration::ZERO);
        let honest = Upstream::start(Manner::Honest, Duration::ZERO);
        let mut state = forwarding_to(&[silent.address]);
        add_forwarder(&mut state, "elsewhere.test.", &[honest.address]);
        let state = with_timeout(state, Duration::from_secs(30));
        let fixture = Fixture::start(state, |config| limit(&mut config.forward));
        Self {
            fixture,
            _silent: silent,
            _honest: honest,
        }
    }

    /// Asks four questions of the slow suffix; when `full` says so, one of the other, which is answered.
    async fn ask(&self, full: impl Fn(&ForwardStats) -> bool) {
        let names = ["a.slow.", "b.slow.", "c.slow.", "d.slow."];
        let slow = futures::future::join_all(names.map(|qname| asked(&self.fixture, qname)));
        let quick = async {
            let stats = || self.fixture.server.stats().forward;
            eventually("the slow ones are taken or shed", || full(&stats())).await;
            // From the same address as the others.
            asked(&self.fixture, "www.elsewhere.test.").await
        };
        tokio::select! {
            _ = slow => panic!("two of them wait for ten seconds"),
            reply = quick => assert_eq!(reply, Rcode::NO_ERROR),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_servers_of_one_suffix_leave_room_for_others() {
    let slow = Slow::start(|limits| limits.max_outstanding = 4);
    slow.ask(|stats| stats.outstanding + stats.shed >= 4).await;
    let stats = slow.fixture.server.stats();
    let (forward, limits) = (stats.forward, stats.limits);
    assert_eq!((forward.most_of_one, forward.shed), (2, 2), "{forward:?}");
    assert_eq!(
        (limits.outstanding, limits.outstanding_per_forwarder),
        (4, 2)
    );
    assert!(slow.fixture.server.stop(PATIENCE).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_for_one_suffix_leave_a_client_places_for_others() {
    let slow = Slow::start(|limits| limits.max_waiting_per_client = 4);
    slow.ask(|stats| stats.waiting + stats.shed >= 4).await;
    assert_eq!(slow.fixture.server.stats().forward.shed, 2);
    assert!(slow.fixture.server.stop(PATIENCE).await);
}

/// Who asks after a flush is told nothing from before it; what it does not cover is shared and kept.
#[tokio::test(flavor = "multi_thread")]
async fn a_flush_leaves_answers_under_way_alone_that_it_does_not_cover() {
    let (www, alias) = ("www.elsewhere.test.", "x.old.elsewhere.test.");
    let target = "x.a-longer-name.elsewhere.test.";
    // What is asked, what is flushed while it is under way, and the queries that the upstream gets then.
    for (qname, flushed, queries) in [
        (www, "other.elsewhere.test.", 1),
        (www, www, 2),
        (alias, "other.elsewhere.test.", 1),
        (alias, target, 2),
    ] {
        let upstream = Upstream::start(Manner::Honest, Duration::from_millis(200));
        let state = with_timeout(forwarding_to(&[upstream.address]), PATIENCE);
        let fixture = Fixture::start(state, |_| {});
        let after = async {
            eventually("it is under way", || upstream.asked() == 1).await;
            let name = name(flushed).as_wire().into();
            fixture.server.flush(&super::Flush::Name(name));
            asked(&fixture, qname).await
        };
        let (before, after) = tokio::join!(asked(&fixture, qname), after);
        assert_ne!(before, Rcode::SERV_FAIL);
        assert_eq!(
            (after, upstream.asked()),
            (before, queries),
            "{qname} {flushed}"
        );
        assert_eq!(asked(&fixture, qname).await, before);
        assert_eq!(upstream.asked(), queries, "{qname} {flushed}: it is kept");
        assert!(fixture.server.stop(PATIENCE).await);
    }
}

/// The reply to a question over loopback, without a socket of the client's.
async fn asked(fixture: &Fixture, qname: &str) -> Rcode {
    let qname = name(qname);
    let asked = fixture.server.query_local(&qname, RecordType::A, true);
    asked.await.expect("a reply").message.rcode
}

const WITHOUT_FILES: &str =
    "dns::forward_tests::a_want_of_files_is_no_fault_of_a_server_and_is_over_when_there_are_some";

/// In a process of its own, since no file is left to any of its threads.
#[test]
fn a_want_of_files_is_no_fault_of_a_server_and_is_over_when_there_are_some() {
    run_alone(WITHOUT_FILES, async {
        let honest = Upstream::start(Manner::Honest, Duration::ZERO);
        let fixture = Fixture::start(forwarding_to(&[honest.address]), |_| {});
        let address = fixture.server.local_addresses()[0];
        let client = socket2::Socket::new(
            socket2::Domain::for_address(address),
            socket2::Type::STREAM,
            None,
        );
        let client = client.expect("a socket");
        let taken = take_all_files();
        assert_eq!(
            asked(&fixture, "www.elsewhere.test.").await,
            Rcode::SERV_FAIL
        );
        client.connect(&address.into()).expect("the kernel accepts");
        eventually("accepting fails", || {
            fixture.server.stats().accept_errors > 0
        })
        .await;
        drop(taken);
        assert_eq!(
            asked(&fixture, "www.elsewhere.test.").await,
            Rcode::NO_ERROR
        );
        eventually("the connection is taken", || {
            fixture.server.stats().connections_accepted == 1
        })
        .await;
        let forward = fixture.server.stats().forward;
        assert_eq!(
            (forward.unasked, forward.failed, forward.timed_out),
            (1, 0, 0)
        );
        assert!(fixture.server.stop(PATIENCE).await);
    });
}

/// An honest upstream that tells where each query came from.
fn watching() -> (SocketAddr, mpsc::Receiver<IpAddr>) {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let address = socket.local_addr().expect("an address");
    let (peers, seen) = mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&elsewhere(&buffer[..length]), peer);
            if peers.send(peer.ip()).is_err() {
                return;
            }
        }
    });
    (address, seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_leave_from_where_the_routes_say_but_never_from_a_vip() {
    let (upstream, seen) = watching();
    let own: IpAddr = [127, 0, 0, 7].into();
    // An address of a network from which the upstream cannot be reached comes first.
    let sources: Vec<IpAddr> = vec![[192, 0, 2, 7].into(), own];
    let fixture = Fixture::start(forwarding_to(&[upstream]), |config| {
        config.forward.sources = sources;
    });
    let came_from = |reply: Rcode| {
        assert_eq!(reply, Rcode::NO_ERROR);
        seen.recv_timeout(PATIENCE).expect("it was asked")
    };
    let by_route: IpAddr = [127, 0, 0, 1].into();
    let reply = fixture.ask("www.elsewhere.test.").await;
    assert_eq!(came_from(reply.rcode), by_route);
    let mut with_vip = with_vips(&[by_route]);
    add_forwarder(&mut with_vip, ".", &[upstream]);
    fixture.publish(with_vip);
    fixture.server.flush(&super::Flush::All);
    let reply = fixture.ask("www.elsewhere.test.").await;
    assert_eq!(came_from(reply.rcode), own);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_to_ourselves_says_where_its_data_came_from() {
    let honest = Upstream::start(Manner::Honest, Duration::ZERO);
    let fixture = Fixture::start(forwarding_to(&[honest.address]), |_| {});
    for (qname, expected) in [
        ("www.site.test.", Source::Zone),
        ("none.site.test.", Source::Zone),
        ("localhost.", Source::BuiltIn),
        // An alias of ours that the upstream completes.
        ("away.site.test.", Source::Forwarder),
        ("away.site.test.", Source::Cache),
        ("www.elsewhere.test.", Source::Cache),
        ("circle.site.test.", Source::Endless),
    ] {
        let qname = name(qname);
        let asked = fixture.server.query_local(&qname, RecordType::A, true);
        let reply = asked.await.expect("a reply");
        assert_eq!(reply.source, expected, "{qname}");
    }
    let foreign = name("www.example.");
    let asked = fixture.server.query_local(&foreign, RecordType::A, false);
    assert_eq!(asked.await.map(|reply| reply.source), Some(Source::Refused));
}
