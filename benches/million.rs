//! 1,000,000 records in 1,000 zones on three nodes, real processes with mutual TLS: `cargo bench --bench million`.
//!
//! Prints the time of the import, the resident memory of each node, how long a killed node takes to serve again, how long a
//! fourth one takes to become a voter, what one change costs beside what it costs with ten records (both in this run), and
//! the longest time without a DNS answer meanwhile. `PONTOON_BENCH_ZONES=100` makes it smaller. Needs nothing but loopback.

use std::{
    fmt::Write,
    fs,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RecordType},
};
use pontoon::{model, transport::connect::unix_channel};
use pontoon_proto::v1::{self, admin_client::AdminClient};
use serde_json::Value;

const PONTOON: &str = env!("CARGO_BIN_EXE_pontoon");
const ZONES: usize = 1000;
const RECORDS_PER_ZONE: usize = 1000;
/// Records of each of the imports whose zone is deleted again, and how many there are.
const PASSING_RECORDS: usize = 200_000;
const PASSING: usize = 3;
/// Changes whose cost is taken.
const CHANGES: u64 = 2000;
/// Starts after a kill.
const RESTARTS: usize = 3;
/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(600);
/// Between two questions, and how long an answer is waited for.
const ASK_EVERY: Duration = Duration::from_micros(500);
const ASK_LIMIT: Duration = Duration::from_millis(200);

/// The nodes, their files, and the end of both.
struct Cluster {
    dir: PathBuf,
    base: u16,
    nodes: Vec<Option<Child>>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.nodes.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Cluster {
    fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            base: 20_000 + 100 * (rand::random::<u16>() % 100),
            nodes: (0..4).map(|_| None).collect(),
        }
    }

    fn config(&self, node: usize) -> PathBuf {
        self.dir.join(format!("n{node}.toml"))
    }

    fn socket(&self, node: usize) -> PathBuf {
        self.dir.join(format!("s{node}"))
    }

    fn address(&self, offset: u16) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.base + offset).into()
    }

    fn dns(&self, node: usize) -> SocketAddr {
        self.address(node as u16)
    }

    fn write_config(&self, node: usize) {
        let offset = node as u16;
        let text = format!(
            "name = \"n{node}\"\ndata_dir = \"{dir}/n{node}\"\n[addresses]\nservice = [\"127.0.0.1\"]\ndns_port = {dns}\nraft = \"{raft}\"\napi = \"{api}\"\nhttp = \"{http}\"\nsocket = \"{socket}\"\n[vip]\nrequire_fence = false\n",
            dir = self.dir.display(),
            dns = self.dns(node).port(),
            raft = self.address(10 + offset),
            api = self.address(20 + offset),
            http = self.address(30 + offset),
            socket = self.socket(node).display(),
        );
        fs::write(self.config(node), text).expect("written");
    }

    /// Starts the process of a node; what it logs goes to a file beside its configuration.
    fn start(&mut self, node: usize) {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.join(format!("n{node}.log")))
            .expect("a log file");
        let child = Command::new(PONTOON)
            .arg("node")
            .arg("--config")
            .arg(self.config(node))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the node starts");
        self.nodes[node - 1] = Some(child);
    }

    fn kill(&mut self, node: usize) {
        if let Some(mut child) = self.nodes[node - 1].take() {
            child.kill().expect("it runs");
            child.wait().expect("a child");
        }
    }

    /// Runs the command line through node 1, as an administrator of this cluster alone.
    fn run(&self, arguments: &[&str]) -> Result<Value, String> {
        let output = Command::new(PONTOON)
            .args(arguments)
            .args(["-o", "json", "--timeout", "300s"])
            .env("XDG_CONFIG_HOME", self.dir.join("admin"))
            .env(
                "PONTOON_ENDPOINTS",
                format!("unix:{}", self.socket(1).display()),
            )
            .stdin(Stdio::null())
            .output()
            .expect("the program runs");
        match output.status.success() {
            true => Ok(serde_json::from_slice(&output.stdout).unwrap_or_default()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    fn done(&self, arguments: &[&str]) -> Value {
        self.run(arguments)
            .unwrap_or_else(|e| panic!("{arguments:?}: {e}"))
    }

    fn init(&mut self) {
        self.write_config(1);
        let config = self.config(1);
        self.done(&["cluster", "init", "--config", text(&config)]);
        self.start(1);
    }

    /// Makes node `node` a member and starts it; returns when it votes.
    fn join(&mut self, node: usize) {
        self.write_config(node);
        let token = eventually("a token", || self.run(&["cluster", "token", "create"]).ok());
        let token = token["token"].as_str().expect("a token").to_owned();
        let peer = self.address(21).to_string();
        let config = self.config(node);
        let join = ["cluster", "join", "--token", &token, "--peer", &peer];
        self.done(&[&join[..], &["--config", text(&config)]].concat());
        self.start(node);
        eventually("the new voter", || {
            let status = self.run(&["cluster", "status"]).ok()?;
            let nodes = status["nodes"].as_array()?;
            let votes = |n: &Value| {
                n["name"] == format!("n{node}") && n["role"] == "voter" && n["lag"] == 0
            };
            nodes.iter().any(votes).then_some(())
        });
    }

    /// Resident memory of a node, in MiB.
    fn resident(&self, node: usize) -> u64 {
        let pid = self.nodes[node - 1].as_ref().expect("it runs").id();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = kib.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
        kib.unwrap_or(0) / 1024
    }

    /// Kills a node and starts it; until it answers `name` again.
    fn restart(&mut self, node: usize, name: &str) -> Duration {
        self.kill(node);
        let start = Instant::now();
        self.start(node);
        let question = question(name);
        eventually("an answer after the start", || {
            ask(&socket(), self.dns(node), &question).then_some(())
        });
        start.elapsed()
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} did not come");
        thread::sleep(Duration::from_millis(10));
    }
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
    socket.set_read_timeout(Some(ASK_LIMIT)).expect("a timeout");
    socket
}

fn question(name: &str) -> Vec<u8> {
    let mut question = Message::new(7, MessageType::Query, OpCode::Query);
    let name = Name::from_ascii(name).expect("a name");
    question.add_query(Query::query(name, RecordType::A));
    question.to_vec().expect("encoded")
}

/// Whether the server answers with a record.
fn ask(socket: &UdpSocket, server: SocketAddr, question: &[u8]) -> bool {
    let mut reply = [0; 1500];
    let received = socket
        .send_to(question, server)
        .and_then(|_| socket.recv_from(&mut reply));
    let message = received.ok().and_then(|(length, _)| {
        let octets = reply.get(..length)?;
        Message::from_vec(octets).ok()
    });
    message
        .is_some_and(|m| m.metadata.response_code == ResponseCode::NoError && !m.answers.is_empty())
}

/// Asks one question again and again; the longest time without an answer.
struct Watcher {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<Duration>,
}

impl Watcher {
    fn start(server: SocketAddr, name: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (until, question) = (Arc::clone(&stop), question(name));
        let thread = thread::spawn(move || {
            let socket = socket();
            let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
            while !until.load(Ordering::Relaxed) {
                if ask(&socket, server, &question) {
                    longest = longest.max(last.elapsed());
                    last = Instant::now();
                }
                thread::sleep(ASK_EVERY);
            }
            longest.max(last.elapsed())
        });
        Self { stop, thread }
    }

    fn longest(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the watcher goes on")
    }
}

/// One change through node 1: an address of one name.
fn change(number: u64, zone: &str) -> v1::ProposeRequest {
    let address = bytes::Bytes::copy_from_slice(&(number as u32).to_be_bytes());
    let set = v1::ZoneRrset {
        zone: zone.to_owned(),
        name: format!("r{}.{zone}", number % 10),
        rrset: Some(v1::Rrset {
            r#type: model::rrset::RecordType::A.0.into(),
            ttl: 300,
            rdata: vec![address],
        }),
    };
    v1::ProposeRequest {
        request_id: rand::random::<u128>().to_be_bytes().to_vec().into(),
        changes: vec![v1::Change {
            kind: Some(v1::change::Kind::SetRrset(set)),
        }],
        ..v1::ProposeRequest::default()
    }
}

/// The median of `CHANGES` changes, one after the other.
fn cost_of_change(runtime: &tokio::runtime::Runtime, socket: PathBuf, zone: &str) -> Duration {
    runtime.block_on(async {
        let mut client = AdminClient::new(unix_channel(socket));
        let mut times = Vec::new();
        for number in 0..CHANGES {
            let start = Instant::now();
            let done = client.propose(change(rand::random(), zone)).await;
            done.unwrap_or_else(|e| panic!("change {number}: {e}"));
            times.push(start.elapsed());
        }
        times.sort_unstable();
        times[times.len() / 2]
    })
}

fn records(zone: &str, count: usize) -> String {
    let mut text = "@ 300 IN SOA ns admin 1 3600 600 86400 60\n@ 300 IN NS ns\n".to_owned();
    let _ = writeln!(text, "ns 300 IN A 192.0.2.1");
    for number in 0..count.saturating_sub(3) {
        let (high, low) = (number / 256 % 256, number % 256);
        let _ = writeln!(text, "r{number} 300 IN A 10.{}.{high}.{low}", zone.len());
    }
    text
}

/// A site of the zone `ten.test` and many more.
fn site(zones: usize) -> String {
    let mut text = String::new();
    let mut add = |zone: &str, count| {
        let records = records(zone, count);
        let _ = write!(
            text,
            "[[zone]]\nname = \"{zone}\"\nrecords = '''\n{records}'''\n"
        );
    };
    add("ten.test", 10);
    for zone in 0..zones {
        add(&format!("z{zone}.test"), RECORDS_PER_ZONE);
    }
    text
}

fn row(what: &str, value: impl std::fmt::Display, goal: &str) {
    println!("{what:<58} {value:>14}   {goal}");
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

fn millis(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}

/// Takes a node's restarts; prints the slowest.
fn restarts(cluster: &mut Cluster, node: usize, name: &str, what: &str) {
    let times: Vec<Duration> = (0..RESTARTS)
        .map(|_| {
            let time = cluster.restart(node, name);
            // The next one starts from a node that follows.
            eventually("the node follows", || {
                let status = cluster.run(&["cluster", "status"]).ok()?;
                let nodes = status["nodes"].as_array()?.clone();
                let follows = |n: &Value| n["name"] == format!("n{node}") && n["lag"] == 0;
                nodes.iter().any(follows).then_some(())
            });
            time
        })
        .collect();
    let slowest = times.iter().max().copied().unwrap_or_default();
    row(what, seconds(slowest), "at most 5 s");
}

fn main() {
    let zones = std::env::var("PONTOON_BENCH_ZONES").ok();
    let zones = zones.and_then(|z| z.parse().ok()).unwrap_or(ZONES);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let mut cluster = Cluster::new(dir.path());
    cluster.init();
    cluster.join(2);
    cluster.join(3);

    let file = dir.path().join("site.toml");
    fs::write(&file, site(0)).expect("written");
    cluster.done(&["apply", "-f", text(&file)]);
    // The first changes warm up what the later ones find warm.
    cost_of_change(&runtime, cluster.socket(1), "ten.test.");
    let few = cost_of_change(&runtime, cluster.socket(1), "ten.test.");

    fs::write(&file, site(zones)).expect("written");
    let watcher = Watcher::start(cluster.dns(2), "r1.ten.test.");
    let start = Instant::now();
    cluster.done(&["apply", "-f", text(&file)]);
    let last = format!("r5.z{}.test.", zones - 1);
    let asked = question(&last);
    for node in 1..=3 {
        eventually("the last zone everywhere", || {
            ask(&socket(), cluster.dns(node), &asked).then_some(())
        });
    }
    let total = zones * RECORDS_PER_ZONE;
    println!("{total} records in {zones} zones, three nodes\n");
    row(
        "import, until every node answers",
        seconds(start.elapsed()),
        "at most 30 s",
    );
    row(
        "longest time without an answer during it",
        millis(watcher.longest()),
        "",
    );

    let watcher = Watcher::start(cluster.dns(2), "r1.ten.test.");
    let many = cost_of_change(&runtime, cluster.socket(1), "z0.test.");
    let gap = watcher.longest();
    let small = cost_of_change(&runtime, cluster.socket(1), "ten.test.");
    row("one change with ten records, median", millis(few), "");
    row("one change with all of them, median", millis(many), "");
    let ratio = |time: Duration| format!("{:.2}", time.as_secs_f64() / few.as_secs_f64());
    row("  ratio", ratio(many), "at most 1.5");
    row("  ratio, to the zone of ten among them", ratio(small), "");
    row(
        "longest time without an answer during the changes",
        millis(gap),
        "",
    );
    for node in 1..=3 {
        let resident = format!("{} MiB", cluster.resident(node));
        row(
            &format!("resident memory of node {node}"),
            resident,
            "at most 600 MiB",
        );
    }

    restarts(
        &mut cluster,
        3,
        &last,
        "restart to serving, slowest of three",
    );
    let start = Instant::now();
    cluster.join(4);
    row(
        "join of a fourth node, until it votes",
        seconds(start.elapsed()),
        "at most 15 s",
    );
    let resident = format!("{} MiB", cluster.resident(4));
    row("resident memory of node 4", resident, "at most 600 MiB");

    let zone = dir.path().join("passing.zone");
    fs::write(&zone, records("passing.test", PASSING_RECORDS)).expect("written");
    for _ in 0..PASSING {
        cluster.done(&["zone", "import", "passing.test", text(&zone)]);
        cluster.done(&["zone", "delete", "passing.test"]);
    }
    restarts(
        &mut cluster,
        3,
        &last,
        "the same after three imports of 200,000 records, deleted",
    );
}
