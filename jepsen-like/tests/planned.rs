//! Planned moves of a real VIP between real nodes: no connection through it is lost, and a client hardly notices.
//!
//! Needs root; says `skipped` without, and fails where `CI=true`.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use jepsen_like::{
    lab::{
        self, LabError,
        cluster::{BACKEND, Cluster, NAME, dns_at, vip4, wait_for},
        namespace::Namespace,
        network,
    },
    probe::Prober,
};
use pontoon::{
    model::{
        listener::{ListenAddress, Listener},
        pool::{Backend as PoolBackend, BackendState, Pool},
    },
    state::command::Change,
};

/// Far above what is measured: a test is no benchmark, and CI's machine is busy.
const BOUND: Duration = Duration::from_secs(10);
const ECHO: u16 = 7007;
/// Connections at a time. Issue targets are measured with a thousand; a test on two cores makes fewer.
const CONNECTIONS: usize = 200;
const SILENCE: Duration = Duration::from_secs(8);

/// Sends back what comes, on the backend's host.
fn serve_echo(host: &Namespace, address: SocketAddr) -> Result<(), LabError> {
    let listener = host
        .enter(|| TcpListener::bind(address))?
        .unwrap_or_else(|error| panic!("{address}: {error}"));
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            std::thread::Builder::new()
                .stack_size(64 << 10)
                .spawn(move || {
                    let _ = stream.set_nodelay(true);
                    let mut octets = [0; 256];
                    while let Ok(read @ 1..) = stream.read(&mut octets) {
                        if stream.write_all(&octets[..read]).is_err() {
                            break;
                        }
                    }
                })
                .unwrap();
        }
    });
    Ok(())
}

/// A listener on the VIP in front of it.
fn add_echo(cluster: &Cluster, backend: SocketAddr) {
    let name = |text: &str| text.parse().unwrap();
    let mut pool = Pool::new(name("echo"));
    pool.backends = vec![PoolBackend {
        name: name("echo"),
        address: backend,
        weight: 1,
        state: BackendState::Enabled,
    }];
    let listener = Listener::new(name("echo"), ListenAddress::EveryNode, ECHO, name("echo"));
    let changes = [
        Change::PutPool { pool, create: true },
        Change::PutListener {
            listener,
            create: true,
        },
    ];
    let leader = cluster.leader().unwrap();
    leader.client().propose(&changes, BOUND).unwrap();
}

/// Connections with traffic, until they are told to end.
struct Traffic {
    over: Arc<AtomicBool>,
    exchanges: Arc<AtomicU64>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Traffic {
    fn start(client: &Namespace, count: usize) -> Self {
        let streams: Vec<TcpStream> = client
            .enter(|| {
                let connect = |_| {
                    let stream = TcpStream::connect_timeout(&SocketAddr::new(vip4(), ECHO), BOUND);
                    stream.unwrap_or_else(|error| panic!("a connection through the VIP: {error}"))
                };
                (0..count).map(connect).collect()
            })
            .unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let exchanges = Arc::new(AtomicU64::new(0));
        let threads = streams
            .into_iter()
            .enumerate()
            .map(|(number, stream)| {
                let (over, exchanges) = (over.clone(), exchanges.clone());
                std::thread::Builder::new()
                    .stack_size(64 << 10)
                    .spawn(move || talk(stream, number, &over, &exchanges))
                    .unwrap()
            })
            .collect();
        Self {
            over,
            exchanges,
            threads,
        }
    }

    /// How many came to an end before they were told to, and why.
    fn finish(self) -> Vec<String> {
        self.over.store(true, Ordering::Relaxed);
        let ends = self
            .threads
            .into_iter()
            .map(|thread| thread.join().unwrap());
        ends.filter_map(|end| end.err().map(|e| e.to_string()))
            .collect()
    }

    fn wait_for_exchanges(&self, more: u64) {
        let wanted = self.exchanges.load(Ordering::Relaxed) + more;
        wait_for("traffic", BOUND * 3, || {
            Ok((self.exchanges.load(Ordering::Relaxed) >= wanted).then_some(()))
        })
        .unwrap();
    }
}

fn talk(
    mut stream: TcpStream,
    number: usize,
    over: &AtomicBool,
    exchanges: &AtomicU64,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE))?;
    let sent = [u8::try_from(number % 251).unwrap_or(0); 100];
    while !over.load(Ordering::Relaxed) {
        stream.write_all(&sent)?;
        let mut came = [0; 100];
        stream.read_exact(&mut came)?;
        if came != sent {
            return Err(io::Error::other("other octets came back"));
        }
        exchanges.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(100)); // the pace of the traffic
    }
    Ok(())
}

fn holder(cluster: &Cluster) -> String {
    cluster.wait_for_holder().unwrap().name().to_owned()
}

#[test]
fn a_planned_move_loses_no_connection() {
    if !lab::available() {
        return;
    }
    let cluster = Cluster::start(3).unwrap_or_else(|error| panic!("{error}"));
    let backend_host = cluster.lab().host(BACKEND).unwrap();
    let backend_ip = backend_address(&cluster);
    let backend = SocketAddr::new(backend_ip, ECHO);
    serve_echo(backend_host, backend).unwrap();
    add_echo(&cluster, backend);
    let client = cluster.client().clone();
    let first = holder(&cluster);
    wait_for("the listener on the VIP", BOUND, || {
        let tried = client.enter(|| {
            TcpStream::connect_timeout(&SocketAddr::new(vip4(), ECHO), Duration::from_millis(300))
        })?;
        Ok(tried.is_ok().then_some(()))
    })
    .unwrap_or_else(|error| panic!("{}", cluster.with_logs(error)));
    let prober = Prober::dns(&client, dns_at(vip4()), NAME, Duration::from_millis(2)).unwrap();
    prober.wait_until_live("DNS from the VIP", BOUND).unwrap();
    let old = Traffic::start(&client, CONNECTIONS);
    old.wait_for_exchanges(2 * CONNECTIONS as u64);

    let from = Instant::now();
    let leader = cluster.leader().unwrap();
    leader
        .client()
        .transfer(BOUND)
        .unwrap_or_else(|error| panic!("{error}"));
    let moved = wait_for("another holder", BOUND, || {
        let now = holder(&cluster);
        Ok((now != first).then_some(now))
    })
    .unwrap_or_else(|error| panic!("{}", cluster.with_logs(error)));
    prober.wait_until_live("DNS from the VIP", BOUND).unwrap();
    old.wait_for_exchanges(4 * CONNECTIONS as u64);
    let new = Traffic::start(&client, CONNECTIONS / 10);
    new.wait_for_exchanges(CONNECTIONS as u64);

    let (_, gap) = prober.finish().longest_gap(from, Instant::now());
    let lost = old.finish();
    let lost_new = new.finish();
    println!(
        "moved from {first} to {moved}: {} of {CONNECTIONS} connections lost, longest gap {gap:?}",
        lost.len()
    );
    if !lost.is_empty() || !lost_new.is_empty() {
        let error = LabError::Waited {
            what: format!(
                "an end of all connections (old {:?}, new {lost_new:?})",
                lost.first()
            ),
            seconds: BOUND.as_secs(),
        };
        panic!("connections were lost: {}", cluster.with_logs(error));
    }
    assert!(gap < BOUND, "{gap:?}");
}

fn backend_address(cluster: &Cluster) -> std::net::IpAddr {
    let shown = cluster.lab().host(BACKEND).unwrap();
    let shown = shown.ip(&["-br", "-4", "address"]).unwrap();
    let found = shown
        .split_whitespace()
        .filter_map(|word| word.split('/').next()?.parse::<std::net::Ipv4Addr>().ok())
        .find(|address| !address.is_loopback());
    found.unwrap_or_else(|| network::ipv4(2)).into()
}
