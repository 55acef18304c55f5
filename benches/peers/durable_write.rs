//! Durable writes through three nodes, beside etcd with three members on the same disk in the same run, both driven over
//! gRPC by the same kind of client in this process: `cargo bench --bench durable_write`.
//!
//! Each is asked at its leader and at a follower, which forwards. Rounds alternate between the two, so that what else the
//! machine does falls on both. Prints the median of the rounds and the ratio Pontoon / etcd. Needs Debian's `etcd-server`;
//! without it only Pontoon's figures are printed.

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

use clap::Parser;
use pontoon_proto::v1::{self, admin_client::AdminClient, cluster_client::ClusterClient};
use tonic::transport::{Channel, Endpoint};

/// Durable writes through three nodes, beside etcd.
#[derive(Parser)]
struct Options {
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// One client: writes in a round.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(100..))]
    writes: u64,
    /// Many clients: how many.
    #[arg(long, default_value_t = 64)]
    clients: u64,
    /// Many clients: for how many seconds in a round; 0 leaves them out.
    #[arg(long, default_value_t = 3)]
    burst: u64,
    /// Without etcd.
    #[arg(long)]
    alone: bool,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Something that stores a value durably under a number.
#[derive(Clone)]
enum Target {
    Pontoon(AdminClient<Channel>, Channel),
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

/// `etcdserverpb.StatusRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct EtcdStatusRequest {}

/// `etcdserverpb.StatusResponse`, the fields in use.
#[derive(Clone, PartialEq, prost::Message)]
struct EtcdStatus {
    #[prost(message, optional, tag = "1")]
    header: Option<EtcdHeader>,
    #[prost(uint64, tag = "4")]
    leader: u64,
}

/// `etcdserverpb.ResponseHeader`, the field in use.
#[derive(Clone, PartialEq, prost::Message)]
struct EtcdHeader {
    #[prost(uint64, tag = "2")]
    member_id: u64,
}

impl Target {
    /// Whether the node behind it leads.
    async fn leads(&self, node: u64) -> Result<bool, String> {
        match self {
            Self::Pontoon(_, channel) => {
                let status = ClusterClient::new(channel.clone())
                    .status(v1::StatusRequest {})
                    .await;
                let status = status.map_err(|e| e.to_string())?.into_inner();
                Ok(status.leader == Some(node))
            }
            Self::Etcd(channel) => {
                let path = "/etcdserverpb.Maintenance/Status";
                let status: EtcdStatus = ask_etcd(channel, path, EtcdStatusRequest {})
                    .await
                    .map_err(|e| e.to_string())?;
                Ok(status.header.is_some_and(|h| h.member_id == status.leader))
            }
        }
    }

    async fn write(&mut self, number: u64) -> Result<(), String> {
        match self {
            Self::Pontoon(client, _) => client
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
    let request = PutRequest {
        key: format!("r{}.bench.test.", number % 1000).into_bytes(),
        value: vec![b'x'; 64],
    };
    let _: PutResponse = ask_etcd(channel, "/etcdserverpb.KV/Put", request).await?;
    Ok(())
}

async fn ask_etcd<Q, A>(
    channel: &Channel,
    path: &'static str,
    request: Q,
) -> Result<A, tonic::Status>
where
    Q: prost::Message + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready()
        .await
        .map_err(|e| tonic::Status::unavailable(e.to_string()))?;
    let path = http::uri::PathAndQuery::from_static(path);
    let codec = tonic_prost::ProstCodec::<Q, A>::default();
    let reply = grpc
        .unary(tonic::Request::new(request), path, codec)
        .await?;
    Ok(reply.into_inner())
}

/// Latencies of one client that writes one after the other.
async fn single(target: &Target, writes: u64) -> Vec<Duration> {
    let mut target = target.clone();
    let mut latencies = vec![];
    for number in 0..writes {
        let start = Instant::now();
        target.write(number).await.expect("the write succeeds");
        latencies.push(start.elapsed());
    }
    latencies.sort_unstable();
    latencies
}

/// Writes per second of many clients.
async fn many(target: &Target, options: &Options) -> f64 {
    let burst = Duration::from_secs(options.burst);
    let done = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let client = |at: u64| {
        let (mut target, done) = (target.clone(), Arc::clone(&done));
        tokio::spawn(async move {
            let mut number = at * 1_000_000;
            while start.elapsed() < burst {
                target.write(number).await.expect("the write succeeds");
                done.fetch_add(1, Ordering::Relaxed);
                number += 1;
            }
        })
    };
    let clients: Vec<_> = (0..options.clients).map(client).collect();
    for client in clients {
        client.await.expect("a client failed");
    }
    done.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64()
}

/// Processes that end with the benchmark.
struct Processes(Vec<Child>);

impl Processes {
    /// Processor time that they and their children have used, in milliseconds: what the machine does besides changes it little.
    fn processor_ms(&self) -> f64 {
        // Linux counts in hundredths of a second, whatever its timer does.
        const MS_PER_TICK: f64 = 10.0;
        let own: Vec<u32> = self.0.iter().map(Child::id).collect();
        let numbers = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let stats = numbers.filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let text = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            // Behind the name, which may hold anything: state, parent; user and system time are the 12th and 13th.
            let fields: Vec<_> = text.rsplit_once(')')?.1.split_whitespace().collect();
            let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
            let parent = u32::try_from(number(1)?).ok()?;
            let is_ours = own.contains(&pid) || own.contains(&parent);
            Some(if is_ours {
                number(11)? + number(12)?
            } else {
                0
            })
        });
        stats.sum::<u64>() as f64 * MS_PER_TICK
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The program under test; `PONTOON_BIN` names another than that of this build.
fn binary() -> std::ffi::OsString {
    std::env::var_os("PONTOON_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_pontoon").into())
}

fn start_pontoon(dir: &Path) -> (Processes, u16) {
    let base = 20_000 + 500 * (rand::random::<u16>() % 20);
    let mut dev = Command::new(binary());
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

/// The nodes of Pontoon, with a zone to write to.
async fn pontoon_nodes(base: u16) -> Vec<Target> {
    let channels = (1..=3).map(|node| connect((Ipv4Addr::LOCALHOST, base + 100 + node).into()));
    let channels = futures::future::join_all(channels).await;
    create_zone(AdminClient::new(channels[0].clone())).await;
    let target = |channel: Channel| Target::Pontoon(AdminClient::new(channel.clone()), channel);
    channels.into_iter().map(target).collect()
}

async fn create_zone(mut client: AdminClient<Channel>) {
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
}

/// A node that leads, and one that does not.
async fn parted(mut nodes: Vec<Target>) -> [Target; 2] {
    for node in &mut nodes {
        wait_until_ready(node).await;
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        for at in 0..nodes.len() {
            if nodes[at].leads(at as u64 + 1).await == Ok(true) {
                return [nodes[at].clone(), nodes[(at + 1) % nodes.len()].clone()];
            }
        }
        assert!(Instant::now() < deadline, "no leader");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What was measured at one node, a value for each round.
#[derive(Default)]
struct Figures {
    p50: Vec<f64>,
    p99: Vec<f64>,
    /// Of all three nodes, for one write of one client.
    processor: Vec<f64>,
    rate: Vec<f64>,
}

impl Figures {
    async fn measure(&mut self, target: &Target, processes: &Processes, options: &Options) {
        let before = processes.processor_ms();
        let latencies = single(target, options.writes).await;
        let used = processes.processor_ms() - before;
        self.processor.push(used / options.writes as f64);
        self.p50.push(ms(latencies[latencies.len() / 2]));
        self.p99.push(ms(latencies[latencies.len() * 99 / 100]));
        if options.burst > 0 {
            self.rate.push(many(target, options).await);
        }
    }

    fn medians(self) -> [f64; 4] {
        [self.p50, self.p99, self.processor, self.rate].map(median)
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn print(subject: &str, asked: &str, row: [f64; 4], last: usize) {
    let [p50, p99, processor, rate] = row;
    println!(
        "{subject:<10} {asked:<12} {p50:>10.2} {p99:>10.2} {processor:>16.2} {rate:>16.last$}"
    );
}

#[tokio::main]
async fn main() {
    let options = Options::parse();
    let scratch = env!("CARGO_TARGET_TMPDIR");
    std::fs::create_dir_all(scratch).expect("a directory for scratch files");
    let dir = tempfile::tempdir_in(scratch).expect("a directory");
    let (pontoon, base) = start_pontoon(&dir.path().join("pontoon"));
    let mut subjects = vec![("pontoon", parted(pontoon_nodes(base).await).await, pontoon)];
    let etcd = match options.alone {
        true => None,
        false => start_etcd(dir.path()),
    };
    if let Some((etcd, clients)) = etcd {
        let nodes = futures::future::join_all(clients.iter().map(|at| connect(*at))).await;
        let nodes = nodes.into_iter().map(Target::Etcd).collect();
        subjects.push(("etcd", parted(nodes).await, etcd));
    } else if !options.alone {
        println!("etcd is not installed (Debian package etcd-server): no peer to compare with");
    }
    println!(
        "{:<10} {:<12} {:>10} {:>10} {:>16} {:>16}",
        "",
        "asked at",
        "p50 ms",
        "p99 ms",
        "CPU ms a write",
        format!("writes/s at {}", options.clients)
    );
    for (at, asked) in ["the leader", "a follower"].into_iter().enumerate() {
        let mut figures: Vec<_> = subjects.iter().map(|_| Figures::default()).collect();
        for _ in 0..options.rounds {
            for ((_, nodes, processes), figures) in subjects.iter().zip(&mut figures) {
                figures.measure(&nodes[at], processes, &options).await;
            }
        }
        let rows: Vec<_> = figures.into_iter().map(Figures::medians).collect();
        for ((name, ..), row) in subjects.iter().zip(&rows) {
            print(name, asked, *row, 0);
        }
        if let [ours, theirs] = rows.as_slice() {
            let ratios = [0, 1, 2, 3].map(|figure| ours[figure] / theirs[figure]);
            print("ratio", asked, ratios, 2);
        }
    }
}
