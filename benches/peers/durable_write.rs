//! Durable writes through three nodes, beside etcd with three members on the same disk in the same run, both driven over
//! gRPC by the same kind of client in this process: `cargo bench --bench durable_write`.
//!
//! Rounds alternate between the two, so that what else the machine does falls on both. Prints the median of the rounds and
//! the ratio Pontoon / etcd. Needs Debian's `etcd-server`; without it only Pontoon's figures are printed.

use std::{
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use pontoon_proto::v1::{self, admin_client::AdminClient};
use tonic::transport::{Channel, Endpoint};

const ROUNDS: usize = 5;
/// One client: writes per round.
const SINGLE: usize = 1000;
/// Many clients: how many, and for how long per round.
const CLIENTS: usize = 64;
const BURST: Duration = Duration::from_secs(3);

/// Something that stores a value durably under a number.
#[derive(Clone)]
enum Target {
    Pontoon(AdminClient<Channel>),
    Etcd(Channel),
}

/// `etcdserverpb.PutRequest`, the fields in use.
#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `etcdserverpb.PutResponse`; its fields do not matter here.
#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {}

impl Target {
    async fn write(&mut self, number: u64) -> Result<(), String> {
        match self {
            Self::Pontoon(client) => client
                .propose(set_record(number))
                .await
                .map(|_| ())
                .map_err(|e| e.to_string()),
            Self::Etcd(channel) => put(channel, number).await.map_err(|e| e.to_string()),
        }
    }
}

/// Sets one A record, as `pontoon record set` does.
fn set_record(number: u64) -> v1::ProposeRequest {
    let rrset = v1::Rrset {
        r#type: 1,
        ttl: 300,
        rdata: vec![bytes::Bytes::copy_from_slice(
            &(number as u32).to_be_bytes(),
        )],
    };
    let set = v1::ZoneRrset {
        zone: "bench.test.".into(),
        name: format!("r{}.bench.test.", number % 1000),
        rrset: Some(rrset),
    };
    v1::ProposeRequest {
        request_id: rand::random::<u128>().to_be_bytes().to_vec().into(),
        born: 0,
        preconditions: Vec::new(),
        changes: vec![v1::Change {
            kind: Some(v1::change::Kind::SetRrset(set)),
        }],
    }
}

/// Stores a value of about the size of that command.
async fn put(channel: &Channel, number: u64) -> Result<(), tonic::Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready()
        .await
        .map_err(|e| tonic::Status::unavailable(e.to_string()))?;
    let request = PutRequest {
        key: format!("r{}.bench.test.", number % 1000).into_bytes(),
        value: vec![b'x'; 64],
    };
    let path = http::uri::PathAndQuery::from_static("/etcdserverpb.KV/Put");
    let codec = tonic_prost::ProstCodec::<PutRequest, PutResponse>::default();
    grpc.unary(tonic::Request::new(request), path, codec)
        .await
        .map(|_| ())
}

/// Latencies of one client that writes one after the other.
async fn single(target: &Target) -> Vec<Duration> {
    let mut target = target.clone();
    let mut latencies = Vec::with_capacity(SINGLE);
    for number in 0..SINGLE as u64 {
        let start = Instant::now();
        target.write(number).await.expect("the write succeeds");
        latencies.push(start.elapsed());
    }
    latencies.sort_unstable();
    latencies
}

/// Writes per second of many clients.
async fn many(target: &Target) -> f64 {
    let done = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let client = |at: u64| {
        let (mut target, done) = (target.clone(), Arc::clone(&done));
        tokio::spawn(async move {
            let mut number = at * 1_000_000;
            while start.elapsed() < BURST {
                target.write(number).await.expect("the write succeeds");
                done.fetch_add(1, Ordering::Relaxed);
                number += 1;
            }
        })
    };
    let clients: Vec<_> = (0..CLIENTS as u64).map(client).collect();
    for client in clients {
        client.await.expect("a client failed");
    }
    done.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64()
}

/// Processes that end with the benchmark.
struct Processes(Vec<Child>);

impl Drop for Processes {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn start_pontoon(dir: &Path) -> (Processes, u16) {
    let base = 20_000 + 500 * (rand::random::<u16>() % 20);
    let mut dev = Command::new(env!("CARGO_BIN_EXE_pontoon"));
    dev.args(["dev", "--empty", "--port-base", &base.to_string()])
        .arg("--dir")
        .arg(dir);
    let mut dev = dev
        .stdout(Stdio::piped())
        .spawn()
        .expect("`pontoon dev` starts");
    let mut lines = BufReader::new(dev.stdout.take().expect("it is piped"))
        .lines()
        .map_while(Result::ok);
    let ready = lines.any(|line| line.starts_with("ready "));
    assert!(ready, "`pontoon dev` ended before it was ready");
    // What else it says must have somewhere to go.
    std::thread::spawn(move || lines.for_each(drop));
    (Processes(vec![dev]), base)
}

fn start_etcd(dir: &Path) -> Option<(Processes, Vec<SocketAddr>)> {
    let free = || {
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .and_then(|l| l.local_addr())
            .expect("a free port")
    };
    let (clients, peers): (Vec<_>, Vec<_>) = (0..3).map(|_| (free(), free())).unzip();
    let members: Vec<String> = peers
        .iter()
        .enumerate()
        .map(|(at, peer)| format!("m{at}=http://{peer}"))
        .collect();
    let mut processes = Processes(Vec::new());
    for at in 0..3 {
        let (client, peer) = (
            format!("http://{}", clients[at]),
            format!("http://{}", peers[at]),
        );
        let mut member = Command::new("etcd");
        member.args([
            "--name",
            &format!("m{at}"),
            "--initial-cluster",
            &members.join(","),
        ]);
        member.args([
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
        ]);
        member.args([
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
        ]);
        member.arg("--data-dir").arg(dir.join(format!("m{at}")));
        processes.0.push(
            member
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .ok()?,
        );
    }
    Some((processes, clients))
}

async fn connect(address: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{address}"))
        .expect("an address")
        .tcp_nodelay(true)
        .connect_lazy()
}

/// Waits until `target` takes a write.
async fn wait_until_ready(target: &mut Target) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while let Err(error) = target.write(0).await {
        assert!(Instant::now() < deadline, "not ready: {error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn pontoon_target(base: u16) -> Target {
    let mut client = AdminClient::new(connect((Ipv4Addr::LOCALHOST, base + 101).into()).await);
    let origin = pontoon::model::name::Name::root();
    let wire = |rtype, text: &str| {
        pontoon::model::rdata::parse(rtype, text, &origin)
            .expect("valid")
            .into()
    };
    let set = |rtype: pontoon::model::rrset::RecordType, text: &str| v1::OwnedRrset {
        name: "bench.test.".into(),
        rrset: Some(v1::Rrset {
            r#type: rtype.0.into(),
            ttl: 300,
            rdata: vec![wire(rtype, text)],
        }),
    };
    use pontoon::model::rrset::RecordType as T;
    let zone = v1::ZoneContents {
        zone: "bench.test.".into(),
        records: vec![
            set(T::SOA, "ns.bench.test. h.bench.test. 1 1 1 1 1"),
            set(T::NS, "ns.other.test."),
        ],
    };
    let create = v1::ProposeRequest {
        request_id: rand::random::<u128>().to_be_bytes().to_vec().into(),
        changes: vec![v1::Change {
            kind: Some(v1::change::Kind::CreateZone(zone)),
        }],
        ..v1::ProposeRequest::default()
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    while let Err(error) = client.propose(create.clone()).await {
        assert!(Instant::now() < deadline, "not ready: {error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Target::Pontoon(client)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

struct Figures {
    p50: Vec<f64>,
    p99: Vec<f64>,
    rate: Vec<f64>,
}

async fn measure(target: &Target, figures: &mut Figures) {
    let latencies = single(target).await;
    figures.p50.push(latencies[SINGLE / 2].as_secs_f64() * 1e3);
    figures
        .p99
        .push(latencies[SINGLE * 99 / 100].as_secs_f64() * 1e3);

    figures.rate.push(many(target).await);
}

#[tokio::main]
async fn main() {
    let scratch = env!("CARGO_TARGET_TMPDIR");
    std::fs::create_dir_all(scratch).expect("a directory for scratch files");
    let dir = tempfile::tempdir_in(scratch).expect("a directory");
    let (_pontoon, base) = start_pontoon(&dir.path().join("pontoon"));
    let mut targets = vec![("pontoon", pontoon_target(base).await)];
    let etcd = start_etcd(dir.path());
    if let Some((_, clients)) = &etcd {
        targets.push(("etcd", Target::Etcd(connect(clients[0]).await)));
    } else {
        println!("etcd is not installed (Debian package etcd-server): no peer to compare with");
    }
    let mut figures: Vec<Figures> = targets
        .iter()
        .map(|_| Figures {
            p50: Vec::new(),
            p99: Vec::new(),
            rate: Vec::new(),
        })
        .collect();
    for (_, target) in &mut targets {
        wait_until_ready(target).await;
    }
    for _ in 0..ROUNDS {
        for ((_, target), figures) in targets.iter().zip(&mut figures) {
            measure(target, figures).await;
        }
    }
    println!(
        "{:<10} {:>12} {:>12} {:>16}",
        "", "p50 ms", "p99 ms", "writes/s at 64"
    );
    let rows: Vec<[f64; 3]> = figures
        .into_iter()
        .map(|f| [median(f.p50), median(f.p99), median(f.rate)])
        .collect();
    for ((name, _), row) in targets.iter().zip(&rows) {
        println!(
            "{name:<10} {:>12.2} {:>12.2} {:>16.0}",
            row[0], row[1], row[2]
        );
    }
    if let [ours, theirs] = rows.as_slice() {
        println!(
            "{:<10} {:>12.2} {:>12.2} {:>16.2}",
            "ratio",
            ours[0] / theirs[0],
            ours[1] / theirs[1],
            ours[2] / theirs[2]
        );
    }
}
