//! Real processes for the scenarios: a development cluster, the command line, and small clients.
//!
//! Everything a scenario starts ends with it, also when it fails: `Dev` kills its process when dropped, and the nodes end
//! with their parent. Ports are drawn, never fixed.

pub mod namespace;
pub mod set;

use std::{
    cell::RefCell,
    fmt::Debug,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query},
    rr::{Name, RData, RecordType},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// The program under test.
pub const PONTOON: &str = env!("CARGO_BIN_EXE_pontoon");
/// Longest wait for anything: far above what it takes on a machine that does nothing else.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A running `pontoon dev`.
pub struct Dev {
    child: Child,
    pub base: u16,
    pub nodes: u16,
    pub dir: PathBuf,
    /// What it prints, a line each.
    lines: mpsc::Receiver<String>,
    heard: RefCell<Vec<String>>,
}

impl Dev {
    /// Starts a cluster in `dir` on ports of its own and waits until it is ready.
    pub fn start(dir: &Path, nodes: u16, more: &[&str]) -> Self {
        // Another process may take a port between our look and the start: draw again.
        for _ in 0..20 {
            if let Some(dev) = Self::try_start(dir, nodes, draw_port_base(), more) {
                return dev;
            }
            let _ = std::fs::remove_dir_all(dir);
        }
        panic!("no development cluster became ready");
    }

    /// Starts on given ports; none when it ends instead of becoming ready.
    pub fn try_start(dir: &Path, nodes: u16, base: u16, more: &[&str]) -> Option<Self> {
        let mut command = Command::new(PONTOON);
        command.args([
            "dev",
            "--nodes",
            &nodes.to_string(),
            "--port-base",
            &base.to_string(),
        ]);
        command.arg("--dir").arg(dir).args(more);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("`pontoon dev` starts");
        let lines = lines_of(child.stdout.take().expect("a pipe"));
        let dev = Self {
            child,
            base,
            nodes,
            dir: dir.to_owned(),
            lines,
            heard: RefCell::default(),
        };
        dev.wait_for("ready ").then_some(dev)
    }

    /// Waits for a line that holds this text; false when the output ends before.
    pub fn wait_for(&self, text: &str) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while let Ok(line) = self
            .lines
            .recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            let found = line.contains(text);
            self.heard.borrow_mut().push(line);
            if found {
                return true;
            }
        }
        false
    }

    /// All that was printed up to what was waited for last.
    pub fn heard(&self) -> String {
        self.heard.borrow().join("\n")
    }

    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    pub fn dns(&self, node: u16) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.base + node).into()
    }

    pub fn vip_dns(&self) -> SocketAddr {
        (Ipv4Addr::new(127, 0, 53, 53), self.base).into()
    }

    pub fn api(&self, node: u16) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.base + 100 + node).into()
    }

    pub fn http(&self, node: u16) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.base + 200 + node).into()
    }

    pub fn endpoints(&self) -> String {
        (1..=self.nodes)
            .map(|node| self.api(node).to_string())
            .collect::<Vec<_>>()
            .join(",")
    }

    /// Runs the command line against all nodes.
    pub fn run(&self, arguments: &[&str]) -> Ended {
        run(&self.endpoints(), arguments)
    }

    /// Runs the command line, which must succeed, and reads its JSON.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let ended = self.run(&[arguments, &["-o", "json"]].concat());
        assert_eq!(ended.code, 0, "{arguments:?}: {}", ended.stderr);
        serde_json::from_str(&ended.stdout)
            .unwrap_or_else(|e| panic!("{arguments:?}: {e}: {}", ended.stdout))
    }

    /// The process id of a node, as its file says.
    pub fn node_pid(&self, node: u16) -> i32 {
        let path = self.dir.join(format!("n{node}/pid"));
        std::fs::read_to_string(path)
            .expect("a pid file")
            .trim()
            .parse()
            .expect("a number")
    }

    pub fn kill_node(&self, node: u16) {
        kill(Pid::from_raw(self.node_pid(node)), Signal::SIGKILL).expect("the node runs");
    }

    /// The leader, once there is one that a majority follows.
    pub fn leader(&self) -> u16 {
        eventually("a leader", || {
            let ended = self.run(&["cluster", "status", "-o", "json"]);
            let status: Value = serde_json::from_str(&ended.stdout).ok()?;
            status["leader"]
                .as_u64()
                .and_then(|id| u16::try_from(id).ok())
        })
    }

    /// Ends the cluster in order.
    pub fn stop(mut self) {
        kill(Pid::from_raw(self.pid()), Signal::SIGTERM).expect("`dev` runs");
        let status = eventually("the end of `dev`", || {
            self.child.try_wait().expect("a child")
        });
        assert!(status.success(), "{status}");
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // Gone already after `stop`.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// Runs the command line against `endpoints`.
pub fn run(endpoints: &str, arguments: &[&str]) -> Ended {
    let mut command = Command::new(PONTOON);
    command
        .args(arguments)
        .env("PONTOON_ENDPOINTS", endpoints)
        .stdin(Stdio::null());
    let output = command.output().expect("the program runs");
    Ended {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Keeps scenarios apart: several clusters at once on two cores would time the machine, not the program.
pub fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    // A scenario that failed leaves nothing behind that the next one could trip over.
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tries until something is there, or fails after a long while.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(
            Instant::now() < deadline,
            "{what} did not come within {PATIENCE:?}"
        );
        thread::sleep(Duration::from_millis(20));
    }
}

/// Asks a name server over UDP; none without an answer within half a second.
pub fn ask(server: SocketAddr, name: &str, rtype: RecordType) -> Option<Message> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
    socket
        .set_read_timeout(Some(Duration::from_millis(500)))
        .expect("a timeout");
    let mut question = Message::new(7, MessageType::Query, OpCode::Query);
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(Name::from_ascii(name).expect("a name"), rtype));
    socket
        .send_to(&question.to_vec().expect("encoded"), server)
        .ok()?;
    let mut buffer = [0; 4096];
    let (length, from) = socket.recv_from(&mut buffer).ok()?;
    assert_eq!(from, server, "the reply leaves from the address asked");
    Some(Message::from_vec(&buffer[..length]).expect("a DNS message"))
}

/// The data of the answers, as text.
pub fn answers(server: SocketAddr, name: &str, rtype: RecordType) -> Option<Vec<String>> {
    let reply = ask(server, name, rtype)?;
    Some(
        reply
            .answers
            .iter()
            .map(|record| data_text(&record.data))
            .collect(),
    )
}

fn data_text(data: &RData) -> String {
    data.to_string()
}

/// Fetches a page over HTTP; none when that fails.
pub fn page(server: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(1)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(3))).ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).ok()?;
    Some(reply)
}

/// A port base whose ports are free now, for as long as nobody else takes them.
pub fn draw_port_base() -> u16 {
    loop {
        let base = 10_000 + 500 * (rand::random::<u16>() % 40);
        let free =
            |offset: u16| std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, base + offset)).is_ok();
        if [1, 2, 3, 101, 201, 301, 400, 490].into_iter().all(free) {
            return base;
        }
    }
}

fn lines_of(output: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// Whether a process with this id exists.
pub fn is_alive(pid: i32) -> bool {
    kill(Pid::from_raw(pid), None).is_ok()
}

/// Says that a test is skipped and why; under `CI` that is a failure. Not by `eprintln!`, which the test harness keeps to itself
/// when the test passes.
pub fn skip(why: &str) {
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "skipped: {why}"
    );
    // Nobody is left to tell when that fails.
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}
