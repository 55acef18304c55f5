//! The proxy beside HAProxy: the same clients and backends, in the same run, in turns. Prints ratios only.
//!
//! `cargo bench --bench proxy`. Wants Debian's `haproxy`; says so and ends when it is absent. Clients, backends and both
//! proxies share this machine: the first ratio is of the rates seen, the second of the work done per second of processor time
//! spent by the proxy itself, which says more when the machine is busy.

use std::{
    io::Write,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use pontoon::{
    model::{
        listener::{ListenAddress, Listener},
        pool::{Backend, BackendState, Pool},
        snapshot::Snapshot,
    },
    proxy::{Drain, Proxy, ProxyConfig},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
    task::JoinSet,
};

/// Of one measurement.
const DURATION: Duration = Duration::from_secs(2);
/// Of each proxy; they take turns.
const ROUNDS: usize = 5;
const CLIENTS: usize = 32;
const STREAMS: usize = 4;
const BACKENDS: u8 = 8;

fn main() {
    // `cargo test --all-targets` runs this too, without the argument.
    if !std::env::args().any(|a| a == "--bench") {
        return;
    }
    let installed = Command::new("haproxy").arg("-v").output();
    if !installed.is_ok_and(|o| o.status.success()) {
        println!("skipped: haproxy is not installed");
        return;
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    runtime.block_on(compare());
}

/// What clients do, and how it is counted.
#[derive(Clone, Copy, Debug)]
enum Load {
    /// Connect, one short question and answer, close.
    Connections,
    /// Short questions and answers on connections that stay.
    Questions,
    /// A few endless downloads, in bytes.
    Download,
}

async fn compare() {
    let mut backends = Vec::new();
    let mut tasks = JoinSet::new();
    for number in 1..=BACKENDS {
        let address = SocketAddr::new(Ipv4Addr::new(127, 3, 0, number).into(), 0);
        let socket = TcpListener::bind(address).await.expect("a loopback port");
        backends.push(socket.local_addr().expect("a bound socket has an address"));
        tasks.spawn(backend(socket));
    }
    let ours = free_address(1).await;
    let proxy = start_pontoon(ours, &backends);
    let theirs = free_address(2).await;
    let haproxy = HaProxy::start(theirs, &backends);
    for address in [ours, theirs] {
        wait_for(address).await;
    }
    for (load, what) in [
        (Load::Connections, "connections a second"),
        (Load::Questions, "questions a second on 32 connections"),
        (Load::Download, "bytes a second on 4 downloads"),
    ] {
        let (mut rates, mut costs) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let pontoon = measure(load, ours, our_processor_time).await;
            let other = measure(load, theirs, || haproxy.processor_time()).await;
            rates.push(pontoon.rate / other.rate);
            costs.push(pontoon.per_processor_second / other.per_processor_second);
        }
        let (rates, costs) = (spread(rates), spread(costs));
        println!("{what}: {rates} x haproxy; per processor second: {costs} x haproxy");
    }
    proxy.stop(Drain::until(Instant::now())).await;
}

/// The median, and the range.
fn spread(mut ratios: Vec<f64>) -> String {
    ratios.sort_by(f64::total_cmp);
    let (least, median, most) = (ratios[0], ratios[ROUNDS / 2], ratios[ROUNDS - 1]);
    format!("{median:.2} ({least:.2} to {most:.2})")
}

/// Processor time of a thread or process by its `stat` file, in clock ticks.
fn ticks(stat: &std::path::Path) -> u64 {
    let text = std::fs::read_to_string(stat).unwrap_or_default();
    let fields = text.rsplit(") ").next().unwrap_or_default();
    // utime and stime are fields 14 and 15; the state, field 3, comes right after the name
    let times = fields.split(' ').skip(11).take(2);
    times.filter_map(|t| t.parse::<u64>().ok()).sum()
}

/// Of the worker threads.
fn our_processor_time() -> u64 {
    let threads = std::fs::read_dir("/proc/self/task").expect("Linux");
    threads
        .flatten()
        .map(|thread| thread.path())
        .filter(|path| {
            std::fs::read_to_string(path.join("comm")).is_ok_and(|name| name.starts_with("proxy-"))
        })
        .map(|path| ticks(&path.join("stat")))
        .sum()
}

async fn wait_for(address: SocketAddr) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(address).await.is_err() {
        assert!(Instant::now() < deadline, "nothing listens on {address}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn start_pontoon(address: SocketAddr, backends: &[SocketAddr]) -> Proxy {
    let name = |text: &str| text.parse().expect("a plain name");
    let backend = |(n, address): (usize, &SocketAddr)| Backend {
        name: name(&format!("b{n}")),
        address: *address,
        weight: 1,
        state: BackendState::Enabled,
    };
    let mut pool = Pool::new(name("p"));
    pool.backends = backends.iter().enumerate().map(backend).collect();
    let at = ListenAddress::Address(address.ip());
    let listener = Listener::new(name("l"), at, address.port(), name("p"));
    let mut snapshot = Snapshot::default();
    snapshot.pools.insert(name("p"), Arc::new(pool));
    snapshot.listeners.insert(name("l"), Arc::new(listener));
    let (_, snapshots) = watch::channel(Arc::new(snapshot));
    Proxy::start(ProxyConfig::new(Vec::new()), snapshots).expect("the proxy starts")
}

/// A running haproxy; killed when dropped.
struct HaProxy {
    process: Child,
    _configuration: tempfile::NamedTempFile,
}

impl HaProxy {
    fn start(address: SocketAddr, backends: &[SocketAddr]) -> Self {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let servers: String = (0..)
            .zip(backends)
            .map(|(n, at)| format!("    server b{n} {at} check\n"))
            .collect();
        write!(
            file,
            "global\n    nbthread {threads}\n    maxconn 1000\n\
             defaults\n    mode tcp\n    option splice-auto\n    retries 2\n    timeout connect 2s\n    \
             timeout client 300s\n    timeout server 300s\n\
             listen l\n    bind {address}\n    balance roundrobin\n{servers}"
        )
        .expect("the configuration is written");
        let process = Command::new("haproxy")
            .args(["-db", "-f"])
            .arg(file.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("haproxy starts");
        Self {
            process,
            _configuration: file,
        }
    }
}

impl HaProxy {
    fn processor_time(&self) -> u64 {
        ticks(format!("/proc/{}/stat", self.process.id()).as_ref())
    }
}

impl Drop for HaProxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn free_address(last: u8) -> SocketAddr {
    let ip = IpAddr::V4(Ipv4Addr::new(127, 4, 0, last));
    let socket = TcpListener::bind((ip, 0)).await.expect("a loopback port");
    socket.local_addr().expect("a bound socket has an address")
}

/// Answers each byte `q` with a byte, and anything else with bytes without end.
async fn backend(socket: TcpListener) {
    let mut connections = JoinSet::new();
    while let Ok((mut stream, _)) = socket.accept().await {
        while connections.try_join_next().is_some() {}
        connections.spawn(async move {
            let _ = stream.set_nodelay(true);
            while let Ok(question) = stream.read_u8().await {
                if question == b'q' {
                    let _ = stream.write_u8(b'a').await;
                } else {
                    let block = vec![0; 256 * 1024];
                    while stream.write_all(&block).await.is_ok() {}
                }
            }
        });
    }
}

/// Units of work done.
struct Measured {
    /// In a second.
    rate: f64,
    per_processor_second: f64,
}

async fn measure(load: Load, address: SocketAddr, processor_time: impl Fn() -> u64) -> Measured {
    let done = Arc::new(AtomicU64::new(0));
    let clients = if matches!(load, Load::Download) {
        STREAMS
    } else {
        CLIENTS
    };
    let mut tasks = JoinSet::new();
    for number in 0..clients {
        let done = done.clone();
        tasks.spawn(async move {
            match load {
                Load::Connections => connections(address, number, &done).await,
                Load::Questions => questions(address, number, &done).await,
                Load::Download => download(address, number, &done).await,
            }
        });
    }
    tokio::time::sleep(DURATION / 4).await;
    let (begun, before, ticks_before) = (Instant::now(), done.load(Relaxed), processor_time());
    tokio::time::sleep(DURATION).await;
    let (work, ticks) = (done.load(Relaxed) - before, processor_time() - ticks_before);
    let elapsed = begun.elapsed().as_secs_f64();
    tasks.shutdown().await;
    assert!(work > 0, "nothing went through {address}");
    Measured {
        rate: work as f64 / elapsed,
        per_processor_second: work as f64 * 100.0 / ticks.max(1) as f64, // USER_HZ is 100
    }
}

/// From a source address of its own, so that ports in TIME_WAIT do not run out.
async fn connect(address: SocketAddr, client: usize) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    let source = Ipv4Addr::new(127, 5, 0, (client % 250 + 1) as u8);
    socket.bind(SocketAddr::new(source.into(), 0))?;
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn ask(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_u8(b'q').await?;
    stream.read_u8().await.map(drop)
}

async fn connections(address: SocketAddr, number: usize, done: &AtomicU64) {
    loop {
        if let Ok(mut stream) = connect(address, number).await
            && ask(&mut stream).await.is_ok()
        {
            done.fetch_add(1, Relaxed);
        }
    }
}

async fn questions(address: SocketAddr, number: usize, done: &AtomicU64) {
    if let Ok(mut stream) = connect(address, number).await {
        while ask(&mut stream).await.is_ok() {
            done.fetch_add(1, Relaxed);
        }
    }
}

async fn download(address: SocketAddr, number: usize, done: &AtomicU64) {
    if let Ok(mut stream) = connect(address, number).await
        && stream.write_u8(b'd').await.is_ok()
    {
        let mut buffer = vec![0; 256 * 1024];
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            done.fetch_add(read as u64, Relaxed);
        }
    }
}
