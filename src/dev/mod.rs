//! `pontoon dev`: a cluster of real node processes on loopback, without root and without configuration.
//!
//! Owns its child processes: it starts them, restarts one that dies, and all end when it ends. The demo services behind
//! the sample site run inside this process. Everything stays on loopback, in plaintext.

mod children;
mod demo;
pub mod layout;
mod probe;
mod progress;
mod seed;
mod tell;

use std::{
    collections::HashMap,
    fs, io,
    net::{SocketAddr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use futures::{StreamExt, stream::FuturesUnordered};
use serde::{Deserialize, Serialize};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
    time::Instant,
};

use crate::{
    enrol::{
        identity_file::{IdentityError, IdentityFile, StoredIdentity},
        init::new_cluster,
        vacancy::Vacancy,
    },
    model::node::NodeId,
    pki::PkiError,
};
use children::{End, NodeProcess, RESTART_PAUSE};
use layout::{Layout, MAX_NODES, MAX_PORT_BASE};
use progress::Progress;
use tell::say;

/// Port base unless one is given.
pub const DEFAULT_PORT_BASE: u16 = 5300;
/// Nodes unless a number is given.
pub const DEFAULT_NODES: u16 = 3;
/// Longest wait for every node to answer.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// What `pontoon dev` was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DevOptions {
    /// 1 to 49; none: as the directory says, else 3.
    pub nodes: Option<u16>,
    /// Kept afterwards; none: a temporary directory, removed at the end.
    pub dir: Option<PathBuf>,
    /// None: as the directory says, else 5300.
    pub port_base: Option<u16>,
    /// Load nothing but the VIP.
    pub empty: bool,
}

/// Why the cluster did not run.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    #[error("--nodes {0}: expected 1 to {MAX_NODES}")]
    Nodes(u16),
    #[error("--port-base {0}: expected 1 to {MAX_PORT_BASE}")]
    PortBase(u16),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("cannot write to standard output: {0}")]
    Output(#[source] io::Error),
    #[error("{} holds a cluster of {nodes} nodes on port base {port_base}; give those or another --dir", dir.display())]
    OtherLayout {
        dir: PathBuf,
        nodes: u16,
        port_base: u16,
    },
    #[error("{}: {problem}; give another --dir, or remove it", path.display())]
    Damaged { path: PathBuf, problem: String },
    #[error(
        "{address} ({what}) is in use: {source}; is another `pontoon dev` running? Give another --port-base"
    )]
    Address {
        address: SocketAddr,
        what: String,
        source: io::Error,
    },
    #[error("node {node} does not start: {source}")]
    Start { node: u16, source: io::Error },
    #[error("not every node answered within {READY_TIMEOUT:?}: {problem}; see the logs in {}", dir.display())]
    NotReady { problem: String, dir: PathBuf },
    #[error("node {node} ended before it served ({how}); {last}its log is {}", log.display())]
    Ended {
        node: u16,
        how: String,
        /// The last line it wrote, as part of a sentence; may be empty.
        last: String,
        log: PathBuf,
    },
    #[error("the sample site was not loaded: {0}")]
    Seed(String),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error("the runtime does not start: {0}")]
    Runtime(io::Error),
}

/// `dev.toml`: what was laid out in a directory.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    nodes: u16,
    port_base: u16,
    /// The first content has been committed.
    seeded: bool,
}

/// Runs the cluster until it is told to stop (SIGINT, SIGTERM). Call it on the main thread.
///
/// # Errors
/// When the cluster cannot be laid out or started, or never becomes ready.
pub fn run(options: &DevOptions) -> Result<(), DevError> {
    let temporary = match &options.dir {
        Some(_) => None,
        None => Some(temporary_dir()?),
    };
    let dir = match (&options.dir, &temporary) {
        (Some(dir), _) => std::path::absolute(dir).map_err(|source| DevError::Io {
            path: dir.clone(),
            source,
        })?,
        (None, Some(temporary)) => temporary.path().to_owned(),
        (None, None) => unreachable!("one of the two was made above"),
    };
    let (layout, seeded) = prepare(options, &dir)?;
    // One thread: the children's end is tied to the thread that started them.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(DevError::Runtime)?;
    runtime.block_on(
        Dev {
            layout,
            seeded,
            empty: options.empty,
        }
        .run(),
    )
}

fn temporary_dir() -> Result<tempfile::TempDir, DevError> {
    let path = std::env::temp_dir();
    tempfile::Builder::new()
        .prefix("pontoon-dev-")
        .tempdir()
        .map_err(|source| DevError::Io { path, source })
}

/// Lays the cluster out in `dir`, or finds what is there. The flag says whether the first content is in.
fn prepare(options: &DevOptions, dir: &Path) -> Result<(Layout, bool), DevError> {
    let path = dir.join("dev.toml");
    let stored = load_stored(&path)?;
    let nodes = options
        .nodes
        .or(stored.map(|s| s.nodes))
        .unwrap_or(DEFAULT_NODES);
    let port_base = options
        .port_base
        .or(stored.map(|s| s.port_base))
        .unwrap_or(DEFAULT_PORT_BASE);
    if !(1..=MAX_NODES).contains(&nodes) {
        return Err(DevError::Nodes(nodes));
    }
    if !(1..=MAX_PORT_BASE).contains(&port_base) {
        return Err(DevError::PortBase(port_base));
    }
    let layout = Layout {
        dir: dir.to_owned(),
        nodes,
        port_base,
    };
    match stored {
        Some(found) if (found.nodes, found.port_base) != (nodes, port_base) => {
            let Stored {
                nodes, port_base, ..
            } = found;
            Err(DevError::OtherLayout {
                dir: dir.to_owned(),
                nodes,
                port_base,
            })
        }
        Some(found) => {
            write_configs(&layout)?;
            Ok((layout, found.seeded))
        }
        None => {
            lay_out(&layout)?;
            store(&layout, false)?;
            Ok((layout, false))
        }
    }
}

fn load_stored(path: &Path) -> Result<Option<Stored>, DevError> {
    match fs::read_to_string(path) {
        Ok(text) => toml::from_str(&text)
            .map(Some)
            .map_err(|e: toml::de::Error| DevError::Damaged {
                path: path.to_owned(),
                problem: e.message().to_owned(),
            }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(DevError::Io {
            path: path.to_owned(),
            source,
        }),
    }
}

fn store(layout: &Layout, seeded: bool) -> Result<(), DevError> {
    let path = layout.dir.join("dev.toml");
    let Layout {
        nodes, port_base, ..
    } = *layout;
    let text = format!("nodes = {nodes}\nport_base = {port_base}\nseeded = {seeded}\n");
    crate::enrol::identity_file::write_secret(&path, &text)
        .map_err(|source| DevError::Io { path, source })
}

/// Writes the files of a new cluster: the first node begins it with all members, the others know who they are.
fn lay_out(layout: &Layout) -> Result<(), DevError> {
    if let Ok(mut entries) = fs::read_dir(&layout.dir)
        && entries.next().is_some()
        && !layout.node_dir(1).exists()
    {
        let problem = "is not empty and holds no development cluster".to_owned();
        return Err(DevError::Damaged {
            path: layout.dir.clone(),
            problem,
        });
    }
    write_configs(layout)?;
    let (first, _) = new_cluster(layout.first_members(), false, SystemTime::now())?;
    let others = layout.numbers().skip(1).map(|node| {
        StoredIdentity::new(
            first.cluster.clone(),
            NodeId(node.into()),
            format!("n{node}"),
        )
    });
    for (node, identity) in layout
        .numbers()
        .zip(std::iter::once(first.clone()).chain(others))
    {
        IdentityFile::in_dir(&layout.node_dir(node).join("data")).store(&identity)?;
    }
    Ok(())
}

fn write_configs(layout: &Layout) -> Result<(), DevError> {
    for node in layout.numbers() {
        let path = layout.node_config(node);
        let failed = |source| DevError::Io {
            path: path.clone(),
            source,
        };
        fs::create_dir_all(layout.node_dir(node)).map_err(failed)?;
        fs::write(&path, layout.config_text(node)).map_err(failed)?;
    }
    Ok(())
}

/// The running cluster.
struct Dev {
    layout: Layout,
    seeded: bool,
    empty: bool,
}

impl Dev {
    async fn run(mut self) -> Result<(), DevError> {
        let stop = stop_signal().map_err(DevError::Runtime)?;
        tokio::pin!(stop);
        self.check_addresses()?;
        let _demo = self.start_demo();
        let mut nodes = HashMap::new();
        for node in self.layout.numbers() {
            nodes.insert(node, self.start(node)?);
        }
        let outcome = tokio::select! {
            outcome = self.supervise(&mut nodes) => outcome,
            // The supervised processes stay in `nodes`; they are stopped below.
            () = &mut stop => Ok(()),
        };
        stop_all(nodes).await;
        outcome
    }

    /// Fails early, and in words, when something else has our ports.
    fn check_addresses(&self) -> Result<(), DevError> {
        let mut addresses = self.layout.all_addresses();
        if !self.seeded && !self.empty {
            addresses.extend(self.layout.sample_listener());
        }
        for (address, what) in addresses {
            let is_free = match what.as_str() {
                layout::DEMO_UPSTREAM => UdpSocket::bind(address).map(drop),
                // Binding a listener also finds a socket of another `dev` that shares its port.
                _ => TcpListener::bind(address).map(drop),
            };
            is_free.map_err(|source| DevError::Address {
                address,
                what,
                source,
            })?;
        }
        Ok(())
    }

    fn start(&self, node: u16) -> Result<NodeProcess, DevError> {
        NodeProcess::start(&self.layout, node).map_err(|source| DevError::Start { node, source })
    }

    /// The demo services; they end when the set is dropped.
    fn start_demo(&self) -> JoinSet<io::Result<()>> {
        let mut demo = JoinSet::new();
        demo.spawn(demo::serve_upstream(self.layout.demo_upstream()));
        for (number, address) in self.layout.demo_backends().into_iter().enumerate() {
            demo.spawn(demo::serve_backend(address, format!("demo-{}", number + 1)));
        }
        demo
    }

    /// Makes the cluster ready, then keeps it so, until dropped.
    async fn supervise(&mut self, nodes: &mut HashMap<u16, NodeProcess>) -> Result<(), DevError> {
        let sound = self.become_ready(nodes).await?;
        self.announce(nodes, &sound)?;
        // Nodes that died, each waiting for its own restart.
        let mut restarts = JoinSet::new();
        loop {
            tokio::select! {
                // An ended process is found again, and a finished pause stays in its set: neither wait loses anything.
                end = first_end(nodes) => {
                    let why = self.last_words_of(&end).unwrap_or_default();
                    let End { node, how, .. } = end;
                    say(format_args!("node {node} ended ({how}){why}; it is started again in {} s", RESTART_PAUSE.as_secs()))?;
                    nodes.remove(&node);
                    restarts.spawn(async move {
                        tokio::time::sleep(RESTART_PAUSE).await;
                        node
                    });
                }
                Some(Ok(node)) = restarts.join_next() => {
                    self.start_again(node, nodes)?;
                }
            }
        }
    }

    fn start_again(
        &self,
        node: u16,
        nodes: &mut HashMap<u16, NodeProcess>,
    ) -> Result<(), DevError> {
        let process = self.start(node)?;
        let pid = process.pid().unwrap_or_default();
        say(format_args!("node {node} is started again, process {pid}"))?;
        nodes.insert(node, process);
        Ok(())
    }

    /// Waits until every node serves that can: a majority goes on without one that does not start.
    async fn become_ready(
        &mut self,
        nodes: &mut HashMap<u16, NodeProcess>,
    ) -> Result<Vec<u16>, DevError> {
        let mut progress = Progress::new(Instant::now(), READY_TIMEOUT);
        let mut sound = self.members()?;
        // The first time, every node has to start.
        let is_first = !self.seeded;
        loop {
            let end = tokio::select! {
                ready = self.make_ready(&sound, is_first, &mut progress) => return ready.map(|()| sound),
                // Only the wait for the nodes' ends is dropped; their processes go on.
                end = first_end(nodes) => end,
            };
            nodes.remove(&end.node);
            if !end.by_itself {
                let End { node, how, .. } = end;
                say(format_args!(
                    "node {node} ended ({how}); it is started again in {} s",
                    RESTART_PAUSE.as_secs()
                ))?;
                tokio::time::sleep(RESTART_PAUSE).await;
                self.start_again(node, nodes)?;
                continue;
            }
            sound.retain(|node| *node != end.node);
            if is_first || !self.is_majority(&sound) {
                return Err(self.ended(end));
            }
            self.say_broken(&end)?;
        }
    }

    /// The nodes that know who they are. Of an existing cluster one may have been emptied, to be admitted anew.
    fn members(&self) -> Result<Vec<u16>, DevError> {
        let all: Vec<u16> = self.layout.numbers().collect();
        // One whose identity alone is gone ends at once, and is told of then.
        let waits = |node: &u16| match Vacancy::of(&self.layout.node_dir(*node).join("data")) {
            Ok(Some(vacancy @ (Vacancy::Unused | Vacancy::Left { .. }))) => Some((*node, vacancy)),
            Ok(None | Some(Vacancy::Lost { .. })) | Err(_) => None,
        };
        let waiting: HashMap<u16, Vacancy> = all.iter().filter_map(waits).collect();
        let is_member = |node: &u16| !waiting.contains_key(node);
        let members: Vec<u16> = all.iter().copied().filter(is_member).collect();
        if !self.seeded || !self.is_majority(&members) {
            return Ok(all);
        }
        for node in all {
            match waiting.get(&node) {
                Some(Vacancy::Left { .. }) => self.say_left(node)?,
                Some(_) => self.say_lost(node)?,
                None => {}
            }
        }
        Ok(members)
    }

    fn is_majority(&self, nodes: &[u16]) -> bool {
        nodes.len() * 2 > usize::from(self.layout.nodes)
    }

    fn ended(&self, end: End) -> DevError {
        let last = self.last_words_of(&end).map(|words| format!("{words}; "));
        let log = self.layout.node_dir(end.node).join("log");
        let End { node, how, .. } = end;
        DevError::Ended {
            node,
            how,
            last: last.unwrap_or_default().trim_start_matches(": ").to_owned(),
            log,
        }
    }

    async fn make_ready(
        &mut self,
        sound: &[u16],
        is_first: bool,
        progress: &mut Progress,
    ) -> Result<(), DevError> {
        let mut revision = 0;
        if !self.seeded {
            revision = seed::load(&self.layout, self.empty, progress)
                .await
                .map_err(DevError::Seed)?;
            store(&self.layout, true)?;
            self.seeded = true;
        }
        if is_first {
            probe::until_voting(&self.layout, progress)
                .await
                .map_err(|problem| self.not_ready(problem))?;
        }
        for node in sound {
            probe::until_serving(&self.layout, *node, revision, progress)
                .await
                .map_err(|problem| self.not_ready(problem))?;
        }
        Ok(())
    }

    fn not_ready(&self, problem: String) -> DevError {
        DevError::NotReady {
            problem,
            dir: self.layout.dir.clone(),
        }
    }
}

/// The first process that ends. Dropping the wait loses nothing: an ended process is found again.
async fn first_end(nodes: &mut HashMap<u16, NodeProcess>) -> End {
    let mut ends: FuturesUnordered<_> = nodes.values_mut().map(NodeProcess::ended).collect();
    match ends.next().await {
        Some(end) => end,
        None => std::future::pending().await,
    }
}

async fn stop_all(nodes: HashMap<u16, NodeProcess>) {
    for process in nodes.values() {
        process.quit();
    }
    let stops: FuturesUnordered<_> = nodes.into_values().map(NodeProcess::stopped).collect();
    for stopped in stops.collect::<Vec<_>>().await {
        if let Err(error) = stopped {
            eprintln!("a node process could not be ended: {error}");
        }
    }
}

/// Completes at SIGINT, SIGTERM or SIGHUP.
fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{enrol::vacancy, model::node::ClusterId};

    #[test]
    fn a_node_that_was_emptied_or_left_is_not_waited_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let layout = Layout {
            dir: dir.path().to_owned(),
            nodes: 5,
            port_base: DEFAULT_PORT_BASE,
        };
        let data = |node| layout.node_dir(node).join("data");
        for node in 1..=4 {
            let identity =
                StoredIdentity::new(ClusterId("c".into()), NodeId(node.into()), "n".into());
            let stored = IdentityFile::in_dir(&data(node)).store(&identity);
            stored.expect("stored");
            fs::create_dir_all(data(node).join("log/log")).expect("made");
        }
        // The fourth left, the fifth is empty. The third will not start, and says why when it ends.
        vacancy::retire(&data(4)).expect("set aside");
        fs::remove_file(data(3).join("identity.toml")).expect("removed");
        let mut dev = Dev {
            layout,
            seeded: true,
            empty: true,
        };
        assert_eq!(dev.members().expect("told"), [1, 2, 3]);
        // Of a new cluster every node has to start.
        dev.seeded = false;
        assert_eq!(dev.members().expect("told"), [1, 2, 3, 4, 5]);
    }
}
