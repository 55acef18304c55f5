//! The whole server on real sockets of the loopback interface, with a made-up upstream.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::model::{
    forwarder::Forwarder, label::Label, rrset::RecordType, snapshot::Snapshot, vip::Vip,
};

use super::{
    DnsConfig, DnsServer, Flush, ForwardLimits, TcpLimits,
    message::{Rcode, flag, upstream::Message},
    respond::{Client, Identity, Transport, respond},
    testing::{add_forwarder, at_revision, lines, name, query, snapshot},
};

const SITE: &str = "
site.test. 600 IN SOA ns1.site.test. admin.site.test. 5 7200 3600 86400 300
site.test. 600 IN NS ns1.site.test.
www.site.test. 60 IN A 192.0.2.80
away.site.test. 60 IN CNAME www.elsewhere.test.
circle.site.test. 60 IN CNAME circle.elsewhere.test.
";

const ELSEWHERE: &str = "
elsewhere.test. 60 IN SOA a. b. 1 1 1 1 30
elsewhere.test. 60 IN NS a.
www.elsewhere.test. 60 IN A 192.0.2.200
old.elsewhere.test. 60 IN DNAME a-longer-name.elsewhere.test.
circle.elsewhere.test. 60 IN CNAME circle.site.test.
hop.elsewhere.test. 60 IN CNAME hop.world.test.
";

/// An alias of the upstream leads here, and on to it.
const WORLD: &str = "
world.test. 60 IN SOA a. b. 1 1 1 1 30
hop.world.test. 60 IN CNAME www.elsewhere.test.
";

pub(super) const PATIENCE: Duration = Duration::from_secs(10);

fn big_site() -> String {
    (0..200).fold(SITE.to_owned(), |text, n| {
        text + &format!("big.site.test. 60 IN A 192.0.2.{n}\n")
    })
}

pub(super) struct Fixture {
    pub server: DnsServer,
    snapshots: watch::Sender<Arc<Snapshot>>,
    v4: SocketAddr,
}

impl Fixture {
    /// A server for `state` on a port of 127.0.0.1, its configuration changed as the test likes.
    pub fn start(state: Snapshot, change: impl FnOnce(&mut DnsConfig)) -> Self {
        let mut config = DnsConfig::new(vec!["127.0.0.1:0".parse().unwrap()]);
        config.workers = 2;
        change(&mut config);
        let (snapshots, receiver) = watch::channel(Arc::new(state));
        let server = DnsServer::start(config, receiver).expect("the server starts");
        let v4 = server.local_addresses()[0];
        Self {
            server,
            snapshots,
            v4,
        }
    }

    /// Serves `state` from now on.
    pub fn publish(&self, state: Snapshot) {
        self.server.serve(&Arc::new(state));
    }

    async fn udp(&self, message: Vec<u8>) -> Option<Message> {
        let server = self.v4;
        let asked = tokio::task::spawn_blocking(move || udp(server, &message));
        asked
            .await
            .expect("no panic")
            .map(|octets| Message::decode(&octets).expect("a reply"))
    }

    /// Asks for an A record with recursion desired.
    pub async fn ask(&self, qname: &str) -> Message {
        let message = query(77, qname, RecordType::A, flag::RD, Some(1232));
        self.udp(message).await.expect("a reply")
    }
}

fn udp(server: SocketAddr, message: &[u8]) -> Option<Vec<u8>> {
    let local = if server.is_ipv4() {
        "127.0.0.1:0"
    } else {
        "[::1]:0"
    };
    let socket = UdpSocket::bind(local).expect("a socket");
    socket.connect(server).expect("connected");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket.send(message).expect("sent");
    let mut octets = vec![0; 65_535];
    let length = socket.recv(&mut octets).ok()?;
    octets.truncate(length);
    Some(octets)
}

fn connect(server: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(server).expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes(), message].concat()
}

fn read_framed(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut octets = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut octets).ok()?;
    Some(octets)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("no panic")
}

/// Waits until `holds`, or fails after a while.
pub(super) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// How a made-up upstream behaves.
#[derive(Clone, Copy, Debug)]
pub(super) enum Manner {
    Honest,
    /// Sends forged replies first: wrong id, wrong question, from another port.
    WithForgeries,
    /// Answers over UDP with the TC flag alone.
    Truncating,
    /// Answers over UDP with the TC flag and part of a record.
    CuttingShort,
    /// Knows no EDNS; without it, answers over UDP with the TC flag alone.
    PlainTruncating,
    Silent,
    Refusing,
    Failing,
    /// Adds a record of another name to each answer.
    Slipping,
    /// Answers with a record of another name alone.
    Elsewhere,
}

/// An upstream for `ELSEWHERE` that counts what it is asked.
pub(super) struct Upstream {
    pub address: SocketAddr,
    asked: Arc<AtomicUsize>,
}

impl Upstream {
    pub fn start(manner: Manner, delay: Duration) -> Self {
        let over_tcp = matches!(
            manner,
            Manner::Truncating | Manner::CuttingShort | Manner::PlainTruncating
        );
        let (socket, listener) = sockets(over_tcp);
        let address = socket.local_addr().expect("an address");
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&asked);
        std::thread::spawn(move || {
            while let Some(Ok((mut stream, _))) = listener.as_ref().map(TcpListener::accept) {
                let Some(message) = read_framed(&mut stream) else {
                    continue;
                };
                let plain = matches!(manner, Manner::PlainTruncating);
                let reply = match plain && has_edns(&message) {
                    true => refusing(&message, Rcode::FORM_ERR),
                    false => elsewhere(&message),
                };
                let _ = stream.write_all(&framed(&reply));
            }
        });
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
                counter.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(delay);
                misbehave(manner, &socket, &buffer[..length], peer);
            }
        });
        Self { address, asked }
    }

    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

pub(super) fn elsewhere(message: &[u8]) -> Vec<u8> {
    let client = Client {
        address: [127, 0, 0, 1].into(),
        transport: Transport::Tcp,
    };
    let mut out = Vec::new();
    respond(
        &snapshot(&[ELSEWHERE]),
        &Identity::default(),
        message,
        client,
        &mut out,
    );
    out
}

/// A UDP socket on a free port, and a listener on the same one if there is to be one. Another test may have that port of TCP.
fn sockets(with_tcp: bool) -> (UdpSocket, Option<TcpListener>) {
    let mut drawn = (0..100).filter_map(|_| {
        let socket = UdpSocket::bind("127.0.0.1:0").ok()?;
        let address = socket.local_addr().ok()?;
        let listener = with_tcp.then(|| TcpListener::bind(address)).transpose();
        Some((socket, listener.ok()?))
    });
    drawn.next().expect("a free port")
}

/// Octets of the OPT record of our queries.
const OPT: usize = 11;

fn has_edns(message: &[u8]) -> bool {
    message[11] > 0
}

/// A reply with a code and no records; without an OPT record when it says that there should be none.
fn refusing(message: &[u8], rcode: Rcode) -> Vec<u8> {
    let mut refused = message.to_vec();
    refused[2] |= 0x80;
    refused[3] |= rcode.0 as u8;
    if rcode == Rcode::FORM_ERR {
        refused.truncate(message.len() - OPT);
        refused[11] = 0;
    }
    refused
}

fn misbehave(manner: Manner, socket: &UdpSocket, message: &[u8], peer: SocketAddr) {
    let honest = elsewhere(message);
    let send = |octets: &[u8]| drop(socket.send_to(octets, peer));
    match manner {
        Manner::Honest => send(&honest),
        Manner::WithForgeries => {
            let forged = |at: usize, change: u8| {
                let mut forged = honest.clone();
                forged[at] ^= change;
                let end = forged.len() - 12;
                forged[end] ^= 1;
                forged
            };
            send(&forged(0, 0x55));
            send(&forged(13, 3));
            send(&forged(2, 0x80));
            let stranger = UdpSocket::bind("127.0.0.1:0").expect("a socket");
            let _ = stranger.send_to(&forged(3, 0), peer);
            send(&honest);
        }
        Manner::PlainTruncating if has_edns(message) => send(&refusing(message, Rcode::FORM_ERR)),
        Manner::Truncating | Manner::PlainTruncating => {
            let mut cut = message.to_vec();
            cut[2] |= 0x82;
            send(&cut);
        }
        Manner::CuttingShort => {
            let mut cut = honest;
            cut[2] |= 0x02;
            cut.truncate(message.len() - OPT + 5);
            send(&cut);
        }
        Manner::Silent => {}
        Manner::Refusing | Manner::Failing => {
            let rcode = match manner {
                Manner::Refusing => Rcode::REFUSED,
                _ => Rcode::SERV_FAIL,
            };
            send(&refusing(message, rcode));
        }
        Manner::Slipping | Manner::Elsewhere => {
            let slipped = b"\x04evil\x05other\0\0\x01\0\x01\0\0\x02\x58\0\x04\x06\x06\x06\x06";
            // In front of whatever follows the question.
            let end = 12 + name("www.elsewhere.test.").as_wire().len() + 4;
            let rest = if matches!(manner, Manner::Slipping) {
                &honest[end..]
            } else {
                &[]
            };
            let mut octets = [&honest[..end], slipped, rest].concat();
            let counts = if matches!(manner, Manner::Slipping) {
                [0, honest[7] + 1]
            } else {
                [0, 1]
            };
            octets[6..8].copy_from_slice(&counts);
            if rest.is_empty() {
                octets[8..12].fill(0);
            }
            send(&octets);
        }
    }
}

pub(super) fn forwarding_to(upstreams: &[SocketAddr]) -> Snapshot {
    let mut state = snapshot(&[SITE]);
    add_forwarder(&mut state, ".", upstreams);
    state
}

/// `state` with another timeout of its forwarders.
pub(super) fn with_timeout(mut state: Snapshot, timeout: Duration) -> Snapshot {
    for (suffix, before) in state.forwarders.clone() {
        let changed = Forwarder {
            timeout,
            ..Forwarder::clone(&before)
        };
        state.forwarders.insert(suffix, Arc::new(changed));
    }
    state
}

/// As `forwarding_to`, where no load of the machine makes an upstream count as silent.
pub(super) fn waiting_for(upstream: &Upstream) -> Snapshot {
    with_timeout(forwarding_to(&[upstream.address]), PATIENCE)
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_are_answered_over_udp_and_tcp_on_both_families() {
    let has_v6 = UdpSocket::bind("[::1]:0").is_ok();
    let fixture = Fixture::start(snapshot(&[SITE]), |config| {
        if has_v6 {
            config.addresses.push("[::1]:0".parse().unwrap());
        }
    });
    let message = query(5, "www.site.test.", RecordType::A, 0, Some(1232));
    for server in fixture.server.local_addresses() {
        let asked = message.clone();
        let (over_udp, over_tcp) = blocking(move || {
            let mut stream = connect(server);
            stream.write_all(&framed(&asked)).expect("sent");
            (udp(server, &asked), read_framed(&mut stream))
        })
        .await;
        assert_eq!(over_udp, over_tcp, "{server}");
        let reply = Message::decode(&over_udp.expect("a reply")).expect("a message");
        assert_eq!(lines(&reply.answer), ["www.site.test. 60 IN A 192.0.2.80"]);
    }
    let stats = fixture.server.stats();
    let expected = if has_v6 { 4 } else { 2 };
    assert_eq!(
        (stats.total_queries(), stats.replies["NOERROR"]),
        (expected, expected)
    );
    assert!(fixture.server.stop(PATIENCE).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_reply_is_whole_over_tcp() {
    let fixture = Fixture::start(snapshot(&[&big_site()]), |_| {});
    let message = query(5, "big.site.test.", RecordType::A, 0, Some(1232));
    let cut = fixture.udp(message.clone()).await.expect("a reply");
    assert!(cut.is_truncated() && cut.answer.is_empty());
    let server = fixture.v4;
    let whole = blocking(move || {
        let mut stream = connect(server);
        stream.write_all(&framed(&message)).expect("sent");
        read_framed(&mut stream)
    })
    .await;
    let whole = whole
        .and_then(|octets| Message::decode(&octets))
        .expect("a message");
    assert_eq!((whole.answer.len(), whole.is_truncated()), (200, false));
    assert_eq!(fixture.server.stats().truncated, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_queries_are_answered_and_a_slow_one_holds_up_none() {
    let upstream = Upstream::start(Manner::Honest, Duration::from_millis(300));
    let mut state = forwarding_to(&[upstream.address]);
    add_forwarder(&mut state, "elsewhere.test.", &[upstream.address]);
    let fixture = Fixture::start(state, |_| {});
    let server = fixture.v4;
    let ids = blocking(move || {
        let mut stream = connect(server);
        let slow = query(1, "www.elsewhere.test.", RecordType::A, flag::RD, None);
        let quick = (2..60u16).map(|id| query(id, "www.site.test.", RecordType::A, 0, None));
        let all: Vec<u8> = [slow]
            .into_iter()
            .chain(quick)
            .flat_map(|q| framed(&q))
            .collect();
        // In pieces that mind no boundary.
        for piece in all.chunks(7) {
            stream.write_all(piece).expect("sent");
        }
        let replies = (1..60).map(|_| read_framed(&mut stream).expect("a reply"));
        replies
            .map(|octets| u16::from_be_bytes([octets[0], octets[1]]))
            .collect::<Vec<_>>()
    })
    .await;
    assert_eq!(ids[..58], (2..60).collect::<Vec<u16>>());
    assert_eq!(ids[58], 1, "the slow one comes last, and comes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_and_never_reads_is_cut_off() {
    let fixture = Fixture::start(snapshot(&[&big_site()]), |config| {
        config.tcp.write = Duration::from_millis(200);
    });
    let server = fixture.v4;
    let message = query(5, "big.site.test.", RecordType::A, 0, None);
    let blocked = blocking(move || {
        let mut stream = connect(server);
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        let many = framed(&message).repeat(1000);
        // Replies are a hundred times as long as queries: this ends in an error, not in memory.
        (0..200).any(|_| stream.write_all(&many).is_err())
    });
    assert!(blocked.await);
    let stats = || fixture.server.stats();
    eventually("the connection ends", || stats().connections_open == 0).await;
    assert_eq!(stats().connections_timed_out, 1);
    assert_eq!(fixture.ask("www.site.test.").await.answer.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_harms_nobody() {
    let fixture = Fixture::start(snapshot(&[SITE]), |_| {});
    let server = fixture.v4;
    blocking(move || {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let mut seed = 1u64;
        for n in 0..3000usize {
            let garbage: Vec<u8> = (0..n % 700)
                .map(|_| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (seed >> 33) as u8
                })
                .collect();
            let _ = socket.send_to(&garbage, server);
        }
        let _ = socket.send_to(&[0; 9000], server);
        let mut stream = connect(server);
        let _ = stream.write_all(&[0xff; 20_000]);
        let mut stream = connect(server);
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    })
    .await;
    let reply = fixture.ask("www.site.test.").await;
    assert_eq!(reply.answer.len(), 1);
    let stats = fixture.server.stats();
    assert!(
        stats.dropped["too_short"] > 0 && stats.dropped["response"] > 0,
        "{stats:?}"
    );
    assert_eq!(stats.dropped["fault"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_limited_and_idle_ones_end() {
    let fixture = Fixture::start(snapshot(&[SITE]), |config| {
        config.tcp = TcpLimits {
            max_connections_per_client: 2,
            idle: Duration::from_millis(200),
            read: Duration::from_millis(200),
            ..TcpLimits::default()
        };
    });
    let server = fixture.v4;
    let ends = blocking(move || {
        let mut open: Vec<TcpStream> = (0..3).map(|_| connect(server)).collect();
        // Half a length: the rest never comes.
        open[0].write_all(&[0]).expect("sent");
        let mut octet = [0];
        // All are read to their end: one that is dropped here would be closed by the client.
        [2, 0, 1].map(|at: usize| open[at].read(&mut octet))
    })
    .await;
    let ended = |read: std::io::Result<usize>| matches!(read, Ok(0) | Err(_));
    assert!(ends.into_iter().all(ended));
    let stats = || fixture.server.stats();
    eventually("connections are given back", || {
        stats().connections_open == 0
    })
    .await;
    assert_eq!(
        (stats().connections_accepted, stats().connections_refused),
        (2, 1)
    );
    assert_eq!(stats().connections_timed_out, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_names_are_forwarded_cached_and_flushed() {
    let upstream = Upstream::start(Manner::Honest, Duration::ZERO);
    let fixture = Fixture::start(forwarding_to(&[upstream.address]), |_| {});
    let reply = fixture.ask("www.elsewhere.test.").await;
    assert_eq!(
        lines(&reply.answer),
        ["www.elsewhere.test. 60 IN A 192.0.2.200"]
    );
    let wanted = flag::QR | flag::RD | flag::RA;
    assert_eq!(reply.flags & (wanted | flag::AA), wanted);
    fixture.ask("WWW.elsewhere.test.").await;
    assert_eq!(upstream.asked(), 1, "from the cache, whatever the spelling");
    // Our alias leads there, too.
    let reply = fixture.ask("away.site.test.").await;
    assert_eq!((reply.answer.len(), upstream.asked()), (2, 1));
    // What does not exist is remembered as well.
    for _ in 0..2 {
        let denied = fixture.ask("nothing.elsewhere.test.").await;
        assert_eq!(
            (denied.rcode, denied.authority.len()),
            (Rcode::NX_DOMAIN, 1)
        );
    }
    assert_eq!(upstream.asked(), 2);
    let wire = |text: &str| name(text).as_wire().into();
    assert_eq!(
        fixture.server.flush(&Flush::Name(wire("elsewhere.test."))),
        0
    );
    assert_eq!(
        fixture
            .server
            .flush(&Flush::Subtree(wire("elsewhere.test."))),
        2
    );
    fixture.ask("www.elsewhere.test.").await;
    assert_eq!(upstream.asked(), 3);
    let asked = name("www.elsewhere.test.");
    let local = fixture.server.query_local(&asked, RecordType::A, true);
    let local = local.await.expect("a reply");
    assert_eq!((local.message.answer.len(), upstream.asked()), (1, 3));
    let without = fixture.server.query_local(&asked, RecordType::A, false);
    assert_eq!(
        without.await.map(|reply| reply.message.rcode),
        Some(Rcode::REFUSED)
    );
    let stats = fixture.server.stats();
    assert_eq!((stats.forward.sent, stats.cache.entries), (3, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_forwarder_is_asked_anew() {
    let (first, second) = (Manner::Honest, Manner::Refusing);
    let first = Upstream::start(first, Duration::ZERO);
    let second = Upstream::start(second, Duration::ZERO);
    let fixture = Fixture::start(forwarding_to(&[first.address]), |_| {});
    assert_eq!(
        fixture.ask("www.elsewhere.test.").await.rcode,
        Rcode::NO_ERROR
    );
    fixture
        .snapshots
        .send_replace(Arc::new(forwarding_to(&[second.address])));
    eventually("the cache is flushed", || {
        fixture.server.stats().cache.entries == 0
    })
    .await;
    assert_eq!(
        fixture.ask("www.elsewhere.test.").await.rcode,
        Rcode::SERV_FAIL
    );
    assert_eq!(second.asked(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_replies_are_ignored() {
    let upstream = Upstream::start(Manner::WithForgeries, Duration::ZERO);
    let fixture = Fixture::start(forwarding_to(&[upstream.address]), |_| {});
    let reply = fixture.ask("www.elsewhere.test.").await;
    assert_eq!(
        lines(&reply.answer),
        ["www.elsewhere.test. 60 IN A 192.0.2.200"]
    );
    // The fourth came from another port: the kernel kept it from us.
    assert_eq!(fixture.server.stats().forward.ignored, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_answer_is_fetched_over_tcp() {
    for (manner, asked_over_udp) in [
        (Manner::Truncating, 1),
        (Manner::CuttingShort, 1),
        (Manner::PlainTruncating, 2),
    ] {
        let upstream = Upstream::start(manner, Duration::ZERO);
        let fixture = Fixture::start(waiting_for(&upstream), |_| {});
        let reply = fixture.ask("www.elsewhere.test.").await;
        assert_eq!(
            (reply.rcode, reply.answer.len()),
            (Rcode::NO_ERROR, 1),
            "{manner:?}"
        );
        let stats = fixture.server.stats().forward;
        assert_eq!((stats.over_tcp, stats.ignored), (1, 0), "{manner:?}");
        assert_eq!(upstream.asked(), asked_over_udp, "{manner:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_a_dname_makes_too_long_is_no_failure_of_the_upstream() {
    let upstream = Upstream::start(Manner::Honest, Duration::ZERO);
    let fixture = Fixture::start(waiting_for(&upstream), |_| {});
    let qname = format!("{}old.elsewhere.test.", "abcdefg.".repeat(29));
    // From the upstream, and from the cache.
    for _ in 0..2 {
        let reply = fixture.ask(&qname).await;
        assert_eq!((reply.rcode, reply.answer.len()), (Rcode::YX_DOMAIN, 1));
    }
    assert_eq!(
        (upstream.asked(), fixture.server.stats().forward.failed),
        (1, 0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_reply_is_counted_though_it_is_a_copy() {
    let fixture = Fixture::start(snapshot(&[&big_site()]), |config| config.workers = 1);
    for _ in 0..4 {
        assert!(fixture.ask("big.site.test.").await.is_truncated());
    }
    let stats = fixture.server.stats();
    assert!(stats.copies_used > 0, "{stats:?}");
    assert_eq!(stats.truncated, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_look_into_the_cache_is_counted_once() {
    let upstream = Upstream::start(Manner::Honest, Duration::ZERO);
    let mut state = waiting_for(&upstream);
    state
        .zones
        .insert(name("world.test."), Arc::new(super::testing::zone(WORLD)));
    let fixture = Fixture::start(state, |_| {});
    let looked = || {
        let cache = fixture.server.stats().cache;
        (cache.hits, cache.misses)
    };
    fixture.ask("www.elsewhere.test.").await;
    assert_eq!(looked(), (0, 1), "nothing was there");
    fixture.ask("away.site.test.").await;
    assert_eq!(looked(), (1, 1), "the alias leads to it");
    // One question leads to another one.
    fixture.ask("hop.elsewhere.test.").await;
    assert_eq!(looked(), (2, 2), "the end is there, the way to it is not");
    fixture.ask("hop.elsewhere.test.").await;
    assert_eq!(looked(), (4, 2));
    assert_eq!(upstream.asked(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_upstream_is_asked_and_failure_is_remembered() {
    let silent = Upstream::start(Manner::Silent, Duration::ZERO);
    let refusing = Upstream::start(Manner::Refusing, Duration::ZERO);
    let honest = Upstream::start(Manner::Honest, Duration::ZERO);
    let all = [silent.address, refusing.address, honest.address];
    let fixture = Fixture::start(forwarding_to(&all), |_| {});
    assert_eq!(fixture.ask("www.elsewhere.test.").await.answer.len(), 1);
    assert_eq!(
        (silent.asked(), refusing.asked(), honest.asked()),
        (1, 1, 1)
    );
    fixture.ask("other.elsewhere.test.").await;
    assert_eq!(
        (silent.asked(), honest.asked()),
        (1, 2),
        "the quick one comes first now"
    );

    let fixture = Fixture::start(forwarding_to(&[silent.address]), |_| {});
    for _ in 0..2 {
        assert_eq!(
            fixture.ask("www.elsewhere.test.").await.rcode,
            Rcode::SERV_FAIL
        );
    }
    assert_eq!(
        silent.asked(),
        3,
        "twice for the first question, not for the second"
    );
    assert_eq!(fixture.ask("www.site.test.").await.answer.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_nobody_asked_for_are_not_passed_on() {
    let upstream = Upstream::start(Manner::Slipping, Duration::ZERO);
    let fixture = Fixture::start(forwarding_to(&[upstream.address]), |_| {});
    // From the upstream, and from the cache.
    for _ in 0..2 {
        let reply = fixture.ask("www.elsewhere.test.").await;
        assert_eq!(
            lines(&reply.answer),
            ["www.elsewhere.test. 60 IN A 192.0.2.200"]
        );
    }
    let upstream = Upstream::start(Manner::Elsewhere, Duration::ZERO);
    let fixture = Fixture::start(forwarding_to(&[upstream.address]), |_| {});
    let reply = fixture.ask("www.elsewhere.test.").await;
    assert_eq!((reply.rcode, reply.answer.len()), (Rcode::SERV_FAIL, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_says_what_the_upstreams_did() {
    let nobody: SocketAddr = {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.local_addr().expect("bound")
    };
    let of = |manner| Upstream::start(manner, Duration::ZERO).address;
    let cases = [
        (
            vec![of(Manner::Silent)],
            "no upstream server answered in time",
        ),
        (vec![of(Manner::Failing)], "answered SERVFAIL"),
        (vec![of(Manner::Refusing)], "answered REFUSED"),
        (vec![of(Manner::Elsewhere)], "does not fit the question"),
        (vec![nobody], "can be reached"),
        (
            vec![of(Manner::Silent), of(Manner::Failing)],
            "answered SERVFAIL",
        ),
    ];
    for (upstreams, expected) in cases {
        let fixture = Fixture::start(forwarding_to(&upstreams), |_| {});
        let message = query(
            9,
            "www.elsewhere.test.",
            RecordType::A,
            flag::RD,
            Some(1232),
        );
        let server = fixture.v4;
        let reply = blocking(move || udp(server, &message))
            .await
            .expect("a reply");
        let text = String::from_utf8_lossy(&reply);
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_query_serves_all_who_wait_for_it() {
    let upstream = Upstream::start(Manner::Honest, Duration::from_millis(150));
    let fixture = Fixture::start(forwarding_to(&[upstream.address]), |_| {});
    let replies = futures::future::join_all((0..50).map(|_| fixture.ask("www.elsewhere.test.")));
    assert!(replies.await.iter().all(|reply| reply.answer.len() == 1));
    assert_eq!(upstream.asked(), 1);
    let stats = fixture.server.stats().forward;
    assert_eq!((stats.sent, stats.outstanding, stats.waiting), (1, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_bounded_and_the_rest_is_told() {
    let upstream = Upstream::start(Manner::Silent, Duration::ZERO);
    let fixture = Fixture::start(forwarding_to(&[upstream.address]), |config| {
        config.forward = ForwardLimits {
            max_waiting_per_client: 5,
            ..ForwardLimits::default()
        };
    });
    let names: Vec<String> = (0..20).map(|n| format!("n{n}.elsewhere.test.")).collect();
    let replies = futures::future::join_all(names.iter().map(|qname| fixture.ask(qname)));
    // All the same code; what differs is that fifteen came at once.
    assert!(
        replies
            .await
            .iter()
            .all(|reply| reply.rcode == Rcode::SERV_FAIL)
    );
    let stats = fixture.server.stats().forward;
    assert!(stats.shed >= 10 && stats.waiting == 0, "{stats:?}");
    assert_eq!(fixture.ask("www.site.test.").await.answer.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_snapshot_is_served_though_copies_were_kept() {
    let fixture = Fixture::start(snapshot(&[SITE]), |config| config.workers = 1);
    for _ in 0..4 {
        fixture.ask("www.site.test.").await;
    }
    assert!(fixture.server.stats().copies_used >= 2);
    let changed = at_revision(snapshot(&[&SITE.replace("192.0.2.80", "192.0.2.81")]), 2);
    fixture.snapshots.send_replace(Arc::new(changed));
    let deadline = Instant::now() + PATIENCE;
    while lines(&fixture.ask("www.site.test.").await.answer)
        != ["www.site.test. 60 IN A 192.0.2.81"]
    {
        assert!(Instant::now() < deadline, "the old record is still served");
    }
}

pub(super) fn with_vips(vips: &[IpAddr]) -> Snapshot {
    let mut state = snapshot(&[SITE]);
    for address in vips {
        let vip = Vip {
            address: *address,
            interface: "vip".parse::<Label>().expect("a label"),
        };
        state.vips.insert(*address, vip);
    }
    state
}

#[tokio::test(flavor = "multi_thread")]
async fn vips_are_bound_and_released_as_snapshots_say() {
    let free = UdpSocket::bind("127.0.0.53:0").expect("a socket");
    let port = free.local_addr().expect("an address").port();
    drop(free);
    // TEST-NET: not an address of this machine, bound beforehand all the same.
    let (vip, absent): (IpAddr, IpAddr) = ([127, 0, 0, 53].into(), [192, 0, 2, 53].into());
    let fixture = Fixture::start(with_vips(&[absent]), |config| config.vip_port = port);
    let bound = |vip: IpAddr| {
        let addresses = fixture.server.local_addresses();
        addresses.contains(&SocketAddr::new(vip, port))
    };
    eventually("the first VIP is bound", || bound(absent)).await;
    fixture
        .snapshots
        .send_replace(Arc::new(with_vips(&[vip, absent])));
    eventually("the second VIP is bound", || bound(vip)).await;
    let server = SocketAddr::new(vip, port);
    let message = query(5, "www.site.test.", RecordType::A, 0, None);
    let reply = blocking(move || udp(server, &message)).await;
    assert!(
        reply.is_some(),
        "a connected socket takes replies from the VIP alone"
    );
    fixture
        .snapshots
        .send_replace(Arc::new(with_vips(&[absent])));
    eventually("the VIP is released", || !bound(vip)).await;
    eventually("its port is free", || UdpSocket::bind(server).is_ok()).await;
    assert!(bound(absent));
    assert_eq!(fixture.ask("www.site.test.").await.answer.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vip_whose_address_is_taken_is_bound_when_it_gets_free() {
    let taken = UdpSocket::bind("127.0.0.54:0").expect("a socket");
    let vip = taken.local_addr().expect("an address");
    let fixture = Fixture::start(with_vips(&[vip.ip()]), |config| {
        config.vip_port = vip.port()
    });
    eventually("the failure shows", || {
        fixture.server.stats().addresses_missing == 1
    })
    .await;
    drop(taken);
    eventually("the VIP is bound", || {
        fixture.server.local_addresses().contains(&vip)
    })
    .await;
    eventually("nothing is missing", || {
        fixture.server.stats().addresses_missing == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_the_tcp_port_of_a_vip_does_not_take_udp_with_it() {
    let taken = TcpListener::bind("127.0.0.56:0").expect("a socket");
    let vip = taken.local_addr().expect("an address");
    let fixture = Fixture::start(with_vips(&[vip.ip()]), |config| {
        config.vip_port = vip.port()
    });
    eventually("the failure shows", || {
        let unbound = fixture.server.unbound();
        unbound
            .iter()
            .any(|u| u.address == vip && u.problem.starts_with("TCP: "))
    })
    .await;
    let message = query(5, "www.site.test.", RecordType::A, 0, None);
    let asked = message.clone();
    assert!(blocking(move || udp(vip, &asked)).await.is_some());
    drop(taken);
    let freed = Instant::now();
    eventually("TCP too", || fixture.server.unbound().is_empty()).await;
    assert!(
        freed.elapsed() < Duration::from_secs(3),
        "{:?}",
        freed.elapsed()
    );
    let reply = blocking(move || {
        let mut stream = connect(vip);
        stream.write_all(&framed(&message)).expect("sent");
        read_framed(&mut stream)
    });
    assert!(reply.await.is_some());
    assert!(fixture.server.stop(PATIENCE).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nodes_share_a_machine_only_held_vips_are_bound() {
    let free = UdpSocket::bind("127.0.0.55:0").expect("a socket");
    let vip = free.local_addr().expect("an address");
    drop(free);
    let (held, receiver) = watch::channel(Default::default());
    let fixture = Fixture::start(with_vips(&[vip.ip()]), |config| {
        config.vip_port = vip.port();
        config.vips_held = Some(receiver);
    });
    let bound = || fixture.server.local_addresses().contains(&vip);
    assert!(!bound());
    held.send_replace([vip.ip()].into());
    eventually("the VIP is bound", bound).await;
    held.send_replace(Default::default());
    eventually("the VIP is released", || !bound()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replies_of_a_socket_on_all_addresses_leave_from_the_one_asked() {
    for (wildcard, asked) in [("0.0.0.0:0", "127.0.0.77"), ("[::]:0", "::1")] {
        if UdpSocket::bind((asked, 0)).is_err() {
            crate::skipped::say(format!("no {asked} here"));
            continue;
        }
        let fixture = Fixture::start(snapshot(&[SITE]), |config| {
            config.addresses = vec![wildcard.parse().unwrap()];
        });
        let server = SocketAddr::new(asked.parse().unwrap(), fixture.v4.port());
        let message = query(5, "www.site.test.", RecordType::A, 0, None);
        // A connected socket takes replies from `server` alone.
        let reply = blocking(move || udp(server, &message)).await;
        assert!(reply.is_some(), "{wildcard}");
        assert!(fixture.server.stop(PATIENCE).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn forwarded_replies_leave_from_the_address_asked_too() {
    let upstream = Upstream::start(Manner::Honest, Duration::ZERO);
    let fixture = Fixture::start(forwarding_to(&[upstream.address]), |config| {
        config.addresses = vec!["0.0.0.0:0".parse().unwrap()];
    });
    let server = SocketAddr::new([127, 0, 0, 78].into(), fixture.v4.port());
    let message = query(5, "www.elsewhere.test.", RecordType::A, flag::RD, None);
    assert!(blocking(move || udp(server, &message)).await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_frees_every_port_though_questions_wait() {
    let upstream = Upstream::start(Manner::Silent, Duration::ZERO);
    let fixture = Fixture::start(forwarding_to(&[upstream.address]), |_| {});
    let server = fixture.v4;
    let waiting = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let message = query(5, "www.elsewhere.test.", RecordType::A, flag::RD, None);
    waiting.send_to(&message, server).expect("sent");
    let idle = blocking(move || connect(server)).await;
    eventually("the question waits", || {
        fixture.server.stats().forward.waiting == 1
    })
    .await;
    assert!(fixture.server.stop(PATIENCE).await);
    drop(idle);
    assert!(UdpSocket::bind(server).is_ok());
    let again = DnsServer::start(
        DnsConfig::new(vec![server]),
        watch::channel(Arc::new(Snapshot::default())).1,
    );
    assert!(again.is_ok_and(|again| again.local_addresses() == [server]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_taken_is_named() {
    let fixture = Fixture::start(Snapshot::default(), |_| {});
    let (_sender, snapshots) = watch::channel(Arc::new(Snapshot::default()));
    let second = DnsServer::start(DnsConfig::new(vec![fixture.v4]), snapshots);
    let error = second.err().expect("the address is taken").to_string();
    assert!(error.contains(&fixture.v4.to_string()), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn dig_understands_us() {
    if std::process::Command::new("dig")
        .arg("-v")
        .output()
        .is_err()
    {
        crate::skipped::skip("no dig");
        return;
    }
    let upstream = Upstream::start(Manner::Honest, Duration::ZERO);
    let mut state = snapshot(&[&big_site()]);
    add_forwarder(&mut state, "elsewhere.test.", &[upstream.address]);
    let fixture = Fixture::start(state, |config| {
        config.identity.version = Some("pontoon".to_owned());
    });
    for (words, expected) in [
        ("www.site.test A", "flags: qr aa rd ra;"),
        ("www.site.test A +short", "192.0.2.80"),
        ("nothing.site.test A", "status: NXDOMAIN"),
        ("big.site.test A", "ANSWER: 200"),
        ("big.site.test A +ignore", "flags: qr aa tc rd ra;"),
        ("big.site.test A +tcp", "ANSWER: 200"),
        ("www.elsewhere.test A", "flags: qr rd ra;"),
        ("www.elsewhere.test A +norec", "EDE: 20"),
        ("www.nowhere.test A", "status: REFUSED"),
        (
            "www.site.test A +edns=1 +noednsnegotiation",
            "status: BADVERS",
        ),
        ("www.site.test A +opcode=notify", "status: NOTIMP"),
        ("version.bind TXT CH +short", "\"pontoon\""),
    ] {
        let port = fixture.v4.port().to_string();
        let arguments: Vec<String> = words.split(' ').map(str::to_owned).collect();
        let output = blocking(move || {
            let mut dig = std::process::Command::new("dig");
            dig.args(["@127.0.0.1", "-p", &port, "+tries=1"])
                .args(arguments)
                .output()
        })
        .await
        .expect("dig runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains(expected), "{words}: {text}");
        assert!(!text.contains("WARNING"), "{words}: {text}");
    }
}
