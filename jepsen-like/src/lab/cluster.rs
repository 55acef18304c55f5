//! A cluster of real node processes, a host for each, with a client's and a backend's host beside them.
//!
//! Made as an operator would: `cluster init` on the first, `token create` and `cluster join` for each other one.

use std::{
    fs::{self, File},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use pontoon::{
    model::{
        health::HealthCheck,
        label::Label,
        listener::{ListenAddress, Listener},
        name::Name,
        pool::{Backend as PoolBackend, BackendState, Pool},
        rdata,
        rrset::{RecordType, Rrset},
        vip::Vip,
    },
    state::command::Change,
};
use pontoon_proto::v1::{Role, StatusReply};

use super::{
    Lab, LabError,
    client::Client,
    disk::Disk,
    faketime,
    namespace::{self, Namespace},
    network, program,
};
use crate::backend::Backend;

/// The name every node answers for.
pub const NAME: &str = "www.lab.test.";
/// The client's host.
pub const CLIENT: &str = "client";
/// The host of the backends.
pub const BACKEND: &str = "backend";
const DNS_PORT: u16 = 53;
const PAGE_PORT: u16 = 80;
const SHORT: Duration = Duration::from_secs(5);
/// A start waits 5 s for recovery through a leader, and a machine under load is slow.
const LONG: Duration = Duration::from_secs(60);
/// From its start until a process catches the signals that end it.
const BEGINS_WITHIN: Duration = Duration::from_secs(2);
/// SIGKILL needs no leave of the process: only a machine that does not get on takes so long.
const KILLED_WITHIN: Duration = Duration::from_secs(60);

/// The IPv4 VIP of the lab.
pub fn vip4() -> IpAddr {
    network::ipv4(100).into()
}

/// The IPv6 VIP of the lab.
pub fn vip6() -> IpAddr {
    network::ipv6(100).into()
}

/// Where DNS answers on a VIP.
pub fn dns_at(vip: IpAddr) -> SocketAddr {
    SocketAddr::new(vip, DNS_PORT)
}

/// Where the proxied page is on a VIP.
pub fn page_at(vip: IpAddr) -> SocketAddr {
    SocketAddr::new(vip, PAGE_PORT)
}

/// A node: its host, its files and its process, if it runs.
#[derive(Debug)]
pub struct Node {
    name: String,
    host: Arc<Namespace>,
    directory: PathBuf,
    client: Client,
    process: Option<Child>,
    program: PathBuf,
    environment: Vec<(String, String)>,
    disk: Option<Disk>,
}

impl Node {
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    pub fn host(&self) -> &Namespace {
        &self.host
    }

    pub fn log(&self) -> PathBuf {
        self.directory.join("log")
    }

    pub fn config(&self) -> PathBuf {
        self.directory.join("node.toml")
    }

    /// Everything the node keeps.
    pub fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// The disk its data is on, if it has one of its own.
    pub fn disk(&self) -> Option<&Disk> {
        self.disk.as_ref()
    }

    /// The process has ended since it was started; how. Told once.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.process.as_mut()?.try_wait().ok().flatten();
        if status.is_some() {
            self.forget();
            self.process = None;
        }
        status
    }

    /// What a process that was killed has left outside of the node's directory.
    fn forget(&self) {
        self.pid().into_iter().for_each(faketime::forget);
    }

    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// Waits for a process that is about to end by itself; how it did. None: none was there.
    pub fn wait_end(&mut self) -> Result<Option<ExitStatus>, LabError> {
        let name = self.name.clone();
        wait_for(&format!("the end of {name}"), LONG, || {
            let ended = self.ended();
            Ok((ended.is_some() || !self.is_running()).then_some(ended))
        })
    }

    /// Removes all data of a node that does not run.
    pub fn wipe(&self) -> Result<(), LabError> {
        let entries = fs::read_dir(self.data()).map_err(LabError::Directory)?;
        for entry in entries.flatten().map(|entry| entry.path()) {
            let removed = match entry.is_dir() {
                true => fs::remove_dir_all(&entry),
                false => fs::remove_file(&entry),
            };
            removed.map_err(LabError::Directory)?;
        }
        Ok(())
    }

    pub fn pid(&self) -> Option<Pid> {
        let id = self.process.as_ref()?.id();
        i32::try_from(id).ok().map(Pid::from_raw)
    }

    /// Whether an address is on one of its devices now.
    pub fn has_address(&self, address: IpAddr) -> Result<bool, LabError> {
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        let shown = self.host.ip(&["-o", "address", "show"])?;
        Ok(shown.contains(&format!(" {address}/{prefix} ")))
    }

    /// `pontoon ARGS --config node.toml` on the host, to its end.
    fn run(&self, arguments: &[&str]) -> Result<String, LabError> {
        let config = self.config();
        let arguments = [arguments, &["--config", path_text(&config)]].concat();
        let mut command = self.host.command(&self.program)?;
        command.args(&arguments).envs(self.variables());
        namespace::finish(command, path_text(&self.program), &arguments)
    }

    fn variables(&self) -> impl Iterator<Item = (&str, &str)> {
        let pairs = self.environment.iter();
        pairs.map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Starts the process. It is ended with the lab.
    pub fn start(&mut self) -> Result<(), LabError> {
        let log = File::options().create(true).append(true).open(self.log());
        let log = log.map_err(LabError::Directory)?;
        let mut command = self.host.command(&self.program)?;
        command
            .args(["node", "--config", path_text(&self.config())])
            .envs(self.variables())
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(LabError::Directory)?)
            .stderr(log);
        let process = command.spawn().map_err(|source| LabError::Start {
            command: format!("pontoon node of {}", self.name),
            source,
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// SIGKILL, and waits for the end. How it ended: one that had ended by itself just before did not end by this signal.
    ///
    /// # Errors
    /// [`LabError::NotEnded`], which is the machine's fault and not the cluster's.
    pub fn kill(&mut self) -> Result<ExitStatus, LabError> {
        self.end_with(Signal::SIGKILL, KILLED_WITHIN)
            .map_err(|error| match error {
                LabError::Waited { seconds, .. } => LabError::NotEnded {
                    node: self.name.clone(),
                    seconds,
                },
                other => other,
            })
    }

    /// SIGTERM, and waits for the end. How it ended. A process that has just begun and does not catch the signal yet is given a moment:
    /// no program could end well then.
    pub fn stop(&mut self) -> Result<ExitStatus, LabError> {
        let pid = self.pid();
        let begun = || {
            Ok(pid
                .is_none_or(|pid| catches(pid, Signal::SIGTERM))
                .then_some(()))
        };
        match wait_for("a process that catches SIGTERM", BEGINS_WITHIN, begun) {
            // What it is then is for whoever judges its end to say.
            Ok(()) | Err(LabError::Waited { .. }) => self.end_with(Signal::SIGTERM, LONG),
            Err(other) => Err(other),
        }
    }

    /// SIGSTOP.
    pub fn pause(&self) -> Result<(), LabError> {
        self.signal(Signal::SIGSTOP)
    }

    /// SIGCONT.
    pub fn resume(&self) -> Result<(), LabError> {
        self.signal(Signal::SIGCONT)
    }

    fn end_with(&mut self, signal: Signal, within: Duration) -> Result<ExitStatus, LabError> {
        self.signal(signal)?;
        let what = format!("the end of {} by {signal}", self.name);
        wait_for(&what, within, || Ok(self.ended()))
    }

    fn signal(&self, signal: Signal) -> Result<(), LabError> {
        let pid = self.pid();
        let pid = pid.ok_or_else(|| LabError::NotRunning(self.name.clone()))?;
        kill(pid, signal).map_err(|_| LabError::NotRunning(self.name.clone()))
    }
}

/// Whether a process catches a signal; one that has ended does not keep anybody waiting.
fn catches(pid: Pid, signal: Signal) -> bool {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else {
        return true;
    };
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    caught.is_none_or(|mask| mask >> (signal as i32 - 1) & 1 == 1)
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(disk) = &self.disk {
            let _ = disk.resume(); // a process that waits for its disk does not end
        }
        if let Some(process) = &mut self.process {
            let _ = process.kill(); // ended already: as well
            let _ = process.wait();
        }
        self.forget();
    }
}

/// Which link or process a fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Fault {
    /// `kill -9` of the node's process.
    Kill,
    /// The node's link passes nothing; its carrier stays.
    Cut,
    /// The node's process is stopped (SIGSTOP) and later goes on.
    Pause,
}

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct Options {
    /// Nodes at the beginning, all voters, 1 to 9.
    pub nodes: u8,
    /// Hosts for nodes that may join later; nodes and spares are at most 9.
    pub spares: u8,
    /// Each node's data is on a disk of its own, which can fill up and stall.
    pub has_disks: bool,
    /// libfaketime, for wall clocks that can be set (see [`Cluster::set_clock`]).
    pub faketime: Option<PathBuf>,
    /// What the nodes run, if it is not the program of this source as [`program::pontoon`] finds it.
    pub program: Option<PathBuf>,
    /// Set for every process of a node.
    pub environment: Vec<(String, String)>,
    /// Further sections of each `node.toml`.
    pub configuration: String,
}

impl Default for Options {
    /// Three nodes and nothing else.
    fn default() -> Self {
        Self {
            nodes: 3,
            spares: 0,
            has_disks: false,
            faketime: None,
            program: None,
            environment: vec![],
            configuration: String::new(),
        }
    }
}

/// A running cluster with its hosts.
#[derive(Debug)]
pub struct Cluster {
    // Processes end before their namespaces go.
    nodes: Vec<Node>,
    spares: Vec<Node>,
    backend: Backend,
    client: Arc<Namespace>,
    lab: Lab,
}

impl Cluster {
    /// Starts `count` nodes (1 to 9), all voters, that serve a zone, a page behind a pool, and a VIP of each family.
    pub fn start(count: u8) -> Result<Self, LabError> {
        Self::start_with(&Options {
            nodes: count,
            ..Options::default()
        })
    }

    /// As `start`.
    pub fn start_with(options: &Options) -> Result<Self, LabError> {
        // Built before anything is measured in time.
        let program = match &options.program {
            Some(program) => program.clone(),
            None => program::pontoon()?,
        };
        let mut lab = Lab::create()?;
        let client = lab.add_host(CLIENT, 200)?;
        let backend_host = lab.add_host(BACKEND, 210)?;
        let backend = Backend::serve(&backend_host, (network::ipv4(210), 8080).into(), "backend")?;
        let mut nodes = (1..=options.nodes + options.spares)
            .map(|number| prepare(&mut lab, number, &program, options))
            .collect::<Result<Vec<_>, _>>()?;
        let spares = nodes.split_off(options.nodes.into());
        let mut cluster = Self {
            nodes,
            spares,
            backend,
            client,
            lab,
        };
        match cluster.form() {
            Ok(()) => Ok(cluster),
            Err(error) => Err(cluster.with_logs(error)),
        }
    }

    fn form(&mut self) -> Result<(), LabError> {
        let (first, others) = self.nodes.split_first_mut().ok_or(LabError::NoNode)?;
        let admin = first.directory.join("admin");
        first.run(&["cluster", "init", "--admin-dir", path_text(&admin)])?;
        first.start()?;
        let peer = api_address(1).to_string();
        for node in others {
            // The first one is refused until the cluster has begun.
            let token = wait_for("a join token", LONG, || {
                Ok(first.client.create_token(SHORT).ok())
            })?;
            node.run(&["cluster", "join", "--token", &token, "--peer", &peer])?;
            node.start()?;
        }
        self.wait_until_whole()?;
        let site = site(self.backend.address());
        self.leader()?.client.propose(&site, SHORT)?;
        self.wait_for_holder().map(drop)
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub fn node(&self, name: &str) -> Result<&Node, LabError> {
        let found = self.nodes.iter().find(|node| node.name == name);
        found.ok_or_else(|| LabError::NoHost(name.to_owned()))
    }

    pub fn node_mut(&mut self, name: &str) -> Result<&mut Node, LabError> {
        let found = self.nodes.iter_mut().find(|node| node.name == name);
        found.ok_or_else(|| LabError::NoHost(name.to_owned()))
    }

    pub fn client(&self) -> &Arc<Namespace> {
        &self.client
    }

    /// Nodes that may join.
    pub fn spares(&self) -> &[Node] {
        &self.spares
    }

    /// A further host on the segment, `number` 201 to 209 or 220.
    pub fn add_host(&mut self, host: &str, number: u8) -> Result<Arc<Namespace>, LabError> {
        self.lab.add_host(host, number)
    }

    /// Makes the first spare a member and starts it; returns its name. `peer` is a running member.
    pub fn join_spare(&mut self, peer: &str) -> Result<String, LabError> {
        if self.spares.is_empty() {
            return Err(LabError::NoNode);
        }
        let spare = self.spares.remove(0);
        let name = spare.name.clone();
        self.nodes.push(spare);
        self.admit(&name, peer)?;
        Ok(name)
    }

    /// A node that is no member any more, and does not run, is a spare again.
    pub fn retire(&mut self, name: &str) -> Result<(), LabError> {
        let place = self.nodes.iter().position(|node| node.name == name);
        let place = place.ok_or_else(|| LabError::NoHost(name.to_owned()))?;
        let node = self.nodes.remove(place);
        node.wipe()?;
        self.spares.insert(0, node);
        Ok(())
    }

    /// Makes a node without data a member and starts it.
    pub fn admit(&mut self, name: &str, peer: &str) -> Result<(), LabError> {
        let number = number_of(peer)?;
        let member = self.node(peer)?;
        let token = wait_for("a join token", LONG, || {
            Ok(member.client.create_token(SHORT).ok())
        })?;
        let peer = api_address(number).to_string();
        let node = self.node_mut(name)?;
        // Refused while there is no leader.
        let mut refusal = String::new();
        let joined = wait_for("a join", LONG, || {
            match node.run(&["cluster", "join", "--token", &token, "--peer", &peer]) {
                Ok(_) => Ok(Some(())),
                Err(LabError::Failed { stderr, .. }) => {
                    refusal = stderr;
                    std::thread::sleep(Duration::from_millis(500));
                    Ok(None)
                }
                Err(error) => Err(error),
            }
        });
        joined.map_err(|error| match error {
            LabError::Waited { what, seconds } => LabError::Waited {
                what: format!(
                    "{what} of {name} by {peer} (refused last: {})",
                    refusal.trim()
                ),
                seconds,
            },
            other => other,
        })?;
        node.start()
    }

    /// Removes a member by its name, through `by`.
    pub fn remove_member(&self, name: &str, by: &str) -> Result<(), LabError> {
        let by = self.node(by)?;
        wait_for(&format!("the removal of {name}"), LONG, || {
            let Ok(status) = by.client.status(SHORT) else {
                return Ok(None);
            };
            match status.nodes.iter().find(|node| node.name == name) {
                // One that has just started knows of no members yet.
                None => Ok((!status.nodes.is_empty()).then_some(())),
                Some(node) => Ok(by.client.remove(node.id, SHORT).ok()),
            }
        })
    }

    /// Waits until a node is a voter (or, beyond five, a learner) that keeps up.
    pub fn wait_for_member(&self, name: &str, within: Duration) -> Result<(), LabError> {
        let role = match self.nodes.len() {
            ..=5 => Role::Voter,
            _ => Role::Learner,
        };
        wait_for(&format!("{name} as {}", role.as_str_name()), within, || {
            let status = self.leader_now().map(|node| node.client.status(SHORT));
            let Some(Ok(status)) = status else {
                return Ok(None);
            };
            let mut nodes = status.nodes.iter();
            let is_well = nodes.any(|node| {
                node.name == name && node.role() == role && node.lag.is_some_and(|lag| lag < 100)
            });
            Ok(is_well.then_some(()))
        })
    }

    /// Sets the wall clock of a node so many seconds before or after the true one. Needs `Options::faketime`.
    pub fn set_clock(&self, name: &str, offset: f64) -> Result<(), LabError> {
        let file = clock_file(&self.node(name)?.directory);
        let new = file.with_extension("new");
        fs::write(&new, format!("{offset:+.3}\n")).map_err(LabError::Directory)?;
        fs::rename(new, file).map_err(LabError::Directory)
    }

    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The node that leads in the newest term that any node knows of. One that was cut off may still take itself for the
    /// leader of an older one.
    pub fn leader(&self) -> Result<&Node, LabError> {
        wait_for("a leader", LONG, || Ok(self.leader_now()))
    }

    /// The same, if there is one now.
    pub fn leader_now(&self) -> Option<&Node> {
        // What each says of itself: for a status of the cluster it would wait for those that are cut off.
        let patience = Duration::from_millis(500);
        let running = self.nodes.iter().filter(|node| node.process.is_some());
        let (node, _, leads) = running
            .filter_map(|node| {
                let status = node.client.own_status(patience).ok()?;
                let leads = status.node.is_some_and(|own| Some(own.id) == status.leader);
                Some((node, status.term, leads))
            })
            .max_by_key(|(_, term, leads)| (*term, *leads))?;
        leads.then_some(node)
    }

    /// Waits until every node is a voter that has applied what the leader has.
    pub fn wait_until_whole(&self) -> Result<(), LabError> {
        let count = self.nodes.len();
        wait_for("every node a voter that keeps up", LONG, || {
            let status = self
                .nodes
                .iter()
                .find_map(|node| node.client.status(SHORT).ok());
            Ok(status.filter(|status| is_whole(status, count)).map(drop))
        })
    }

    /// Whether every node is a voter that has applied what the leader has, as the leader sees it now.
    pub fn is_whole_now(&self) -> bool {
        let status = self.leader_now().map(|node| node.client.status(SHORT));
        matches!(status, Some(Ok(status)) if is_whole(&status, self.nodes.len()))
    }

    /// Waits until one node has the VIPs on its device, and says which.
    pub fn wait_for_holder(&self) -> Result<&Node, LabError> {
        wait_for("a holder of the VIPs", LONG, || {
            for node in &self.nodes {
                if node.has_address(vip4())? && node.has_address(vip6())? {
                    return Ok(Some(node));
                }
            }
            Ok(None)
        })
    }

    /// Applies a fault to a node.
    pub fn inject(&mut self, fault: Fault, node: &str) -> Result<(), LabError> {
        match fault {
            Fault::Kill => self.node_mut(node)?.kill().map(drop),
            Fault::Cut => self.lab.network().cut(node),
            Fault::Pause => self.node_mut(node)?.pause(),
        }
    }

    /// Takes the fault back.
    pub fn heal(&mut self, fault: Fault, node: &str) -> Result<(), LabError> {
        match fault {
            Fault::Kill => self.node_mut(node)?.start(),
            Fault::Cut => self.lab.network().heal(node),
            Fault::Pause => self.node_mut(node)?.resume(),
        }
    }

    /// Keeps data and logs when the lab goes.
    pub fn keep(&mut self) -> &Path {
        self.lab.keep_directory()
    }

    /// An error with the last lines of every node's log: a lab that is gone can tell nothing more.
    pub fn with_logs(&self, error: LabError) -> LabError {
        let logs = self.nodes.iter().map(|node| {
            let text = fs::read_to_string(node.log()).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            let last = lines.get(lines.len().saturating_sub(15)..).unwrap_or(&[]);
            format!("\n--- {}\n{}", node.name, last.join("\n"))
        });
        LabError::WithLogs {
            error: Box::new(error),
            logs: logs.collect(),
        }
    }
}

/// A host with a configuration for its node.
fn prepare(lab: &mut Lab, number: u8, program: &Path, options: &Options) -> Result<Node, LabError> {
    let name = format!("n{number}");
    let host = lab.add_host(&name, 10 + number)?;
    let directory = lab.directory().join(&name);
    fs::create_dir_all(&directory).map_err(LabError::Directory)?;
    let socket = directory.join("sock");
    let disk = match options.has_disks {
        true => Some(Disk::mount(
            &directory.join("disk"),
            &directory.join("data"),
        )?),
        false => None,
    };
    let mut environment = options.environment.clone();
    if let Some(library) = &options.faketime {
        environment.extend(faked_clock(library, &directory)?);
    }
    let node = Node {
        disk,
        program: program.to_owned(),
        environment,
        client: Client::to(&socket)?,
        name,
        host,
        directory,
        process: None,
    };
    let mut text = configuration(&node, number, &socket);
    text.push_str(&options.configuration);
    fs::write(node.config(), text).map_err(LabError::Directory)?;
    Ok(node)
}

/// What makes a process take its wall clock, and only that, from a file.
fn faked_clock(library: &Path, directory: &Path) -> Result<Vec<(String, String)>, LabError> {
    let file = clock_file(directory);
    fs::write(&file, "+0\n").map_err(LabError::Directory)?;
    let variables = [
        ("LD_PRELOAD", path_text(library)),
        ("FAKETIME_TIMESTAMP_FILE", path_text(&file)),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("FAKETIME_CACHE_DURATION", "1"),
    ];
    let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    Ok(variables.map(owned).to_vec())
}

fn clock_file(directory: &Path) -> PathBuf {
    directory.join("clock")
}

/// The number in the name that `prepare` gave.
fn number_of(name: &str) -> Result<u8, LabError> {
    let number = name
        .strip_prefix('n')
        .and_then(|digits| digits.parse().ok());
    number.ok_or_else(|| LabError::NoHost(name.to_owned()))
}

/// The number of a node's host, by its name.
pub fn host_number(name: &str) -> Result<u8, LabError> {
    Ok(10 + number_of(name)?)
}

/// The IPv4 address of a node's services, by its name.
pub fn service_address(name: &str) -> Result<IpAddr, LabError> {
    Ok(network::ipv4(host_number(name)?).into())
}

fn api_address(number: u8) -> SocketAddr {
    (network::ipv4(10 + number), 7401).into()
}

fn configuration(node: &Node, number: u8, socket: &Path) -> String {
    let (own4, own6) = (network::ipv4(10 + number), network::ipv6(10 + number));
    let (name, device) = (&node.name, network::DEVICE);
    let (data, socket) = (node.directory.join("data"), socket.display());
    let data = data.display();
    format!(
        "name = \"{name}\"\ndata_dir = \"{data}\"\n\n\
         [addresses]\nservice = [\"{own4}\", \"{own6}\"]\ndns_port = {DNS_PORT}\nraft = \"{own4}:7400\"\n\
         api = \"{own4}:7401\"\nhttp = \"{own4}:7402\"\nsocket = \"{socket}\"\n\n\
         [interfaces]\nvip = \"{device}\"\n\n[logging]\nlevel = \"info\"\n"
    )
}

/// What the cluster serves: `www.lab.test`, a page on every VIP and node, and the VIPs.
fn site(backend: SocketAddr) -> Vec<Change> {
    let mut pool = Pool::new(label("web"));
    pool.backends = vec![PoolBackend {
        name: label("backend"),
        address: backend,
        weight: 1,
        state: BackendState::Enabled,
    }];
    pool.health_check = Some(HealthCheck::default());
    let listener = Listener::new(
        label("page"),
        ListenAddress::EveryNode,
        PAGE_PORT,
        label("web"),
    );
    let mut changes = vec![
        zone(),
        Change::PutPool { pool, create: true },
        Change::PutListener {
            listener,
            create: true,
        },
    ];
    changes.extend([vip4(), vip6()].map(|address| Change::PutVip {
        vip: Vip {
            address,
            interface: label("vip"),
        },
        create: true,
    }));
    changes
}

fn zone() -> Change {
    let apex = name("lab.test.");
    let soa = "ns.lab.test. admin.lab.test. 1 3600 600 86400 60";
    Change::CreateZone {
        records: vec![
            (apex.clone(), record(RecordType::SOA, soa)),
            (apex.clone(), record(RecordType::NS, "ns.lab.test.")),
            (name("ns.lab.test."), record(RecordType::A, "10.77.0.11")),
            (name(NAME), record(RecordType::A, "192.0.2.80")),
        ],
        zone: apex,
    }
}

/// A write that changes something: the TXT set of a name in the lab's zone.
pub fn write_of(text: &str) -> Change {
    Change::SetRrset {
        zone: name("lab.test."),
        name: name("write.lab.test."),
        rrset: record(RecordType::TXT, text),
    }
}

fn record(rtype: RecordType, text: &str) -> Rrset {
    let data = rdata::parse(rtype, text, &Name::root()).expect("a record written in this file");
    Rrset::new(rtype, 60, [data]).expect("a set of one record")
}

fn name(text: &str) -> Name {
    Name::parse(text, &Name::root()).expect("a name written in this file")
}

fn label(text: &str) -> Label {
    text.parse().expect("a label written in this file")
}

/// Whether the node that answered leads.
fn is_whole(status: &StatusReply, count: usize) -> bool {
    status.nodes.len() == count
        && status.leader.is_some()
        && status
            .nodes
            .iter()
            .all(|node| node.role() == Role::Voter && node.lag.is_some_and(|lag| lag == 0))
}

/// Calls `attempt` until it has something.
pub fn wait_for<T>(
    what: &str,
    within: Duration,
    mut attempt: impl FnMut() -> Result<Option<T>, LabError>,
) -> Result<T, LabError> {
    let start = Instant::now();
    loop {
        if let Some(value) = attempt()? {
            return Ok(value);
        }
        if start.elapsed() > within {
            return Err(LabError::Waited {
                what: what.to_owned(),
                seconds: within.as_secs(),
            });
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn path_text(path: &Path) -> &str {
    path.to_str().expect("the lab's own paths are ASCII")
}
