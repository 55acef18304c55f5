//! `pontoon dev`: a cluster of real node processes on loopback, without root and without configuration.
//!
//! Owns its child processes: it starts them, restarts one that dies, and all end when it ends. The demo services behind
//! the sample site run inside this process. Everything stays on loopback, in plaintext.

mod children;
mod demo;
mod error;
pub mod layout;
mod probe;
mod progress;
mod seed;
mod standing;
mod tell;

use std::{
    collections::{BTreeSet, HashMap},
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use futures::{StreamExt, stream::FuturesUnordered};
use serde::{Deserialize, Serialize};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
    time::{Instant, MissedTickBehavior},
};

use crate::{
    enrol::{
        identity_file::{IdentityFile, StoredIdentity},
        init::new_cluster,
        vacancy,
    },
    model::node::NodeId,
};
use children::{End, NodeProcess, RESTART_PAUSE};
pub use error::DevError;
use layout::{Layout, MAX_NODES, MAX_PORT_BASE, MAX_SOCKET_PATH};
use probe::Lack;
use progress::Progress;
use standing::Standing;
use tell::say;

/// Port base unless one is given.
pub const DEFAULT_PORT_BASE: u16 = 5300;
/// Nodes unless a number is given.
pub const DEFAULT_NODES: u16 = 3;
/// Longest wait for every node to answer.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two looks whether a node without an identity was admitted anew.
const LOOK_EVERY: Duration = Duration::from_secs(1);

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
            absent: BTreeSet::new(),
            removed: BTreeSet::new(),
        }
        .run(),
    )
}

fn temporary_dir() -> Result<tempfile::TempDir, DevError> {
    let path = std::env::temp_dir();
    tempfile::Builder::new()
        .prefix("pontoon-dev-")
        .tempdir()
        .map_err(|source| DevError::Temporary { path, source })
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
    check_socket_paths(&layout)?;
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

/// A node would find that its socket cannot be bound only after others were started.
fn check_socket_paths(layout: &Layout) -> Result<(), DevError> {
    let path = layout.socket(layout.nodes);
    let length = path.as_os_str().as_bytes().len();
    match length <= MAX_SOCKET_PATH {
        true => Ok(()),
        false => Err(DevError::LongPath { path, length }),
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
        IdentityFile::in_dir(&layout.node_data(node)).store(&identity)?;
    }
    Ok(())
}

fn write_configs(layout: &Layout) -> Result<(), DevError> {
    layout
        .numbers()
        .try_for_each(|node| write_config(layout, node))
}

fn write_config(layout: &Layout, node: u16) -> Result<(), DevError> {
    let path = layout.node_config(node);
    let failed = |source| DevError::Io {
        path: path.clone(),
        source,
    };
    fs::create_dir_all(layout.node_dir(node)).map_err(failed)?;
    fs::write(&path, layout.config_text(node)).map_err(failed)
}

/// The running cluster.
struct Dev {
    layout: Layout,
    seeded: bool,
    empty: bool,
    /// Nodes without an identity: they are started when they have one.
    absent: BTreeSet<u16>,
    /// Nodes that the cluster has removed, whose processes were asked to end.
    removed: BTreeSet<u16>,
}

/// Nodes that are started again after a pause, each after its own.
type Restarts = JoinSet<u16>;

/// What ends a wait for the cluster to be ready.
enum Turn {
    Ready(Readiness),
    Ended(End),
    /// The pause of a node that died is over.
    Restart(u16),
}

/// How the nodes that were waited for are.
enum Readiness {
    AllServe,
    /// The cluster has removed this one: it never will.
    Removed(u16),
}

impl Dev {
    async fn run(mut self) -> Result<(), DevError> {
        let stop = stop_signal().map_err(DevError::Runtime)?;
        tokio::pin!(stop);
        self.check_addresses()?;
        let members = self.members()?;
        let _demo = self.start_demo();
        let mut nodes = HashMap::new();
        for node in &members {
            nodes.insert(*node, self.start(*node)?);
        }
        let outcome = tokio::select! {
            outcome = self.supervise(&mut nodes, members) => outcome,
            // The supervised processes stay in `nodes`; they are stopped below.
            () = &mut stop => Ok(()),
        };
        stop_all(nodes).await;
        outcome
    }

    /// Fails early, and in words, when something else has our ports.
    fn check_addresses(&self) -> Result<(), DevError> {
        let mut places = self.layout.all_places();
        if !self.seeded && !self.empty {
            places.extend(self.layout.sample_listener());
        }
        for place in places {
            place.check_free().map_err(|source| DevError::Address {
                address: place.address,
                what: place.what,
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
    async fn supervise(
        &mut self,
        nodes: &mut HashMap<u16, NodeProcess>,
        members: Vec<u16>,
    ) -> Result<(), DevError> {
        let mut restarts = Restarts::new();
        let sound = self.become_ready(nodes, members, &mut restarts).await?;
        self.announce(nodes, &sound)?;
        // Who is asked whether the cluster has removed it.
        let mut asked = JoinSet::new();
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                // An ended process is found again, a finished pause and an answer stay in their sets, and a look is made again: no
                // wait loses anything.
                end = first_end(nodes) => {
                    nodes.remove(&end.node);
                    self.retire_removed(end.node)?;
                    if self.is_no_member(end.node)? {
                        continue;
                    }
                    let why = self.last_words_of(&end).unwrap_or_default();
                    let End { node, how, .. } = end;
                    say(format_args!("node {node} ended ({how}){why}; it is started again in {} s", RESTART_PAUSE.as_secs()))?;
                    restart_later(node, &mut restarts);
                }
                Some(Ok(node)) = restarts.join_next() => {
                    self.start_again(node, nodes, &mut restarts)?;
                }
                Some(answer) = asked.join_next() => {
                    if let Ok(Some(node)) = answer {
                        self.end_removed(node, nodes)?;
                    }
                }
                _ = look.tick() => {
                    for node in self.admitted() {
                        self.start_again(node, nodes, &mut restarts)?;
                    }
                    if asked.is_empty() {
                        self.ask_who_is_removed(nodes, &mut asked);
                    }
                }
            }
        }
    }

    /// Starts a node again if it has an identity. When that fails it is tried again: the others go on.
    fn start_again(
        &mut self,
        node: u16,
        nodes: &mut HashMap<u16, NodeProcess>,
        restarts: &mut Restarts,
    ) -> Result<(), DevError> {
        if self.is_no_member(node)? {
            return Ok(());
        }
        match self.start(node) {
            Ok(process) => {
                let pid = process.pid().unwrap_or_default();
                nodes.insert(node, process);
                say(format_args!("node {node} is started again, process {pid}"))
            }
            Err(error) => {
                restart_later(node, restarts);
                let pause = RESTART_PAUSE.as_secs();
                say(format_args!("{error}; it is tried again in {pause} s"))
            }
        }
    }

    fn ask_who_is_removed(
        &self,
        nodes: &HashMap<u16, NodeProcess>,
        asked: &mut JoinSet<Option<u16>>,
    ) {
        for node in nodes.keys().filter(|node| !self.removed.contains(node)) {
            let (node, api) = (*node, self.layout.api(*node));
            asked.spawn(async move { probe::is_removed(api).await.then_some(node) });
        }
    }

    /// Asks a node to end that the cluster has removed: it serves nothing, and its data is in the way of joining anew.
    fn end_removed(
        &mut self,
        node: u16,
        nodes: &HashMap<u16, NodeProcess>,
    ) -> Result<(), DevError> {
        match nodes.get(&node) {
            Some(process) if self.removed.insert(node) => {
                process.terminate();
                say(format_args!(
                    "node {node} is no member any more: its process ends"
                ))
            }
            _ => Ok(()),
        }
    }

    /// Sets aside the identity of a node that was removed, once its process has ended: it stands as one that left.
    fn retire_removed(&mut self, node: u16) -> Result<(), DevError> {
        // One that left by itself has done so.
        if !self.removed.remove(&node) || self.standing(node) != Standing::Member {
            return Ok(());
        }
        let data = self.layout.node_data(node);
        match vacancy::retire(&data) {
            Ok(()) => Ok(()),
            Err(error) => {
                let data = data.display();
                say(format_args!(
                    "node {node} was removed, and its identity in {data} cannot be set aside: {error}; remove that directory"
                ))
            }
        }
    }

    /// Waits until every node serves that can: a majority goes on without one that does not start.
    async fn become_ready(
        &mut self,
        nodes: &mut HashMap<u16, NodeProcess>,
        mut sound: Vec<u16>,
        restarts: &mut Restarts,
    ) -> Result<Vec<u16>, DevError> {
        let mut progress = Progress::new(Instant::now(), READY_TIMEOUT);
        // The first time, every node has to start.
        let is_first = !self.seeded;
        loop {
            let turn = tokio::select! {
                ready = self.make_ready(&sound, is_first, &mut progress) => Turn::Ready(ready?),
                // Only the wait for the nodes' ends is dropped; their processes go on.
                end = first_end(nodes) => Turn::Ended(end),
                // A pause that is over stays in the set.
                Some(Ok(node)) = restarts.join_next() => Turn::Restart(node),
            };
            let end = match turn {
                Turn::Ready(Readiness::AllServe) => return Ok(sound),
                Turn::Ready(Readiness::Removed(node)) => {
                    sound.retain(|other| *other != node);
                    self.end_removed(node, nodes)?;
                    continue;
                }
                Turn::Restart(node) => {
                    self.start_again(node, nodes, restarts)?;
                    // The others go on without one that cannot be started now.
                    let rest = sound.iter().copied().filter(|other| *other != node);
                    let rest: Vec<u16> = rest.collect();
                    if !nodes.contains_key(&node) && !is_first && self.is_majority(&rest) {
                        sound = rest;
                    }
                    continue;
                }
                Turn::Ended(end) => end,
            };
            nodes.remove(&end.node);
            self.retire_removed(end.node)?;
            let is_gone = !is_first && self.is_no_member(end.node)?;
            if !end.by_itself && !is_gone {
                let End { node, how, .. } = end;
                say(format_args!(
                    "node {node} ended ({how}); it is started again in {} s",
                    RESTART_PAUSE.as_secs()
                ))?;
                restart_later(node, restarts);
                continue;
            }
            sound.retain(|node| *node != end.node);
            if is_first || !self.is_majority(&sound) {
                return Err(self.ended(end));
            }
            if !is_gone {
                self.say_broken(&end)?;
            }
        }
    }

    /// The nodes that are to be started: of an existing cluster those that have an identity. The others are told of.
    fn members(&mut self) -> Result<Vec<u16>, DevError> {
        let all = self.layout.numbers();
        if !self.seeded {
            return Ok(all.collect());
        }
        let (members, others): (Vec<u16>, Vec<u16>) =
            all.partition(|node| self.standing(*node) == Standing::Member);
        if !self.is_majority(&members) {
            return Err(DevError::NoMajority {
                dir: self.layout.dir.clone(),
                nodes: self.layout.nodes,
                members: members.len(),
            });
        }
        self.absent.extend(&others);
        for node in others {
            self.is_no_member(node)?;
        }
        Ok(members)
    }

    fn standing(&self, node: u16) -> Standing {
        Standing::of(&self.layout.node_data(node))
    }

    /// Whether a node has no identity, so that it could do nothing but wait. If so it is told of and not started.
    fn is_no_member(&mut self, node: u16) -> Result<bool, DevError> {
        let standing = self.standing(node);
        if standing == Standing::Member {
            return Ok(false);
        }
        self.absent.insert(node);
        // The commands that are told need its configuration.
        if !self.layout.node_config(node).exists()
            && let Err(error) = write_config(&self.layout, node)
        {
            say(format_args!(
                "the configuration of node {node} cannot be written: {error}"
            ))?;
        }
        self.say_absent(node, standing)?;
        Ok(true)
    }

    /// Those of the absent nodes that were admitted meanwhile; they are absent no more.
    fn admitted(&mut self) -> BTreeSet<u16> {
        let absent = std::mem::take(&mut self.absent).into_iter();
        let (admitted, absent) = absent.partition(|node| self.standing(*node) == Standing::Member);
        self.absent = absent;
        admitted
    }

    /// Of those that did not leave.
    fn is_majority(&self, nodes: &[u16]) -> bool {
        let all = self.layout.numbers();
        let all = all.filter(|node| self.standing(*node) != Standing::Left);
        nodes.len() * 2 > all.count()
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
    ) -> Result<Readiness, DevError> {
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
            match probe::until_serving(&self.layout, *node, revision, progress).await {
                Ok(()) => {}
                Err(Lack::Removed) => return Ok(Readiness::Removed(*node)),
                Err(Lack::Other(problem)) => return Err(self.not_ready(problem)),
            }
        }
        Ok(Readiness::AllServe)
    }

    fn not_ready(&self, problem: String) -> DevError {
        DevError::NotReady {
            problem,
            dir: self.layout.dir.clone(),
        }
    }
}

fn restart_later(node: u16, restarts: &mut Restarts) {
    restarts.spawn(async move {
        tokio::time::sleep(RESTART_PAUSE).await;
        node
    });
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

    fn options(nodes: Option<u16>) -> DevOptions {
        DevOptions {
            nodes,
            ..DevOptions::default()
        }
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_refused_before_anything_is_written() {
        let base = tempfile::tempdir().expect("a directory");
        let dir = base.path().join("d".repeat(MAX_SOCKET_PATH));
        let error = prepare(&options(None), &dir).expect_err("refused");
        assert!(matches!(error, DevError::LongPath { .. }), "{error}");
        assert!(error.hint().contains("shorter"), "{}", error.hint());
        assert!(!dir.exists());
        // As long as may be.
        let most = |length: usize| Layout {
            dir: format!("/{}", "d".repeat(length - 1)).into(),
            nodes: 10,
            port_base: 1,
        };
        let rest = "/n10/sock".len();
        assert!(check_socket_paths(&most(MAX_SOCKET_PATH - rest)).is_ok());
        assert!(check_socket_paths(&most(MAX_SOCKET_PATH - rest + 1)).is_err());
    }

    #[test]
    fn each_cause_has_its_own_hint() {
        let base = tempfile::tempdir().expect("a directory");
        let dir = base.path().join("d");
        prepare(&options(Some(2)), &dir).expect("laid out");
        let other = prepare(&options(Some(3)), &dir).expect_err("another size");
        assert!(other.hint().contains("leave --nodes"), "{}", other.hint());
        let file = base.path().join("file");
        fs::write(&file, "").expect("written");
        let unwritten = prepare(&options(None), &file.join("d")).expect_err("no directory");
        assert!(unwritten.hint().contains("--dir"), "{}", unwritten.hint());
        assert!(!unwritten.hint().contains("port"), "{}", unwritten.hint());
    }

    fn laid_out(dir: &Path) -> Dev {
        let (layout, _) = prepare(&options(Some(3)), dir).expect("laid out");
        Dev {
            layout,
            seeded: true,
            empty: true,
            absent: BTreeSet::new(),
            removed: BTreeSet::new(),
        }
    }

    #[tokio::test]
    async fn a_node_that_cannot_be_started_now_is_tried_again() {
        let base = tempfile::tempdir().expect("a directory");
        let mut dev = laid_out(&base.path().join("d"));
        let (mut nodes, mut restarts) = (HashMap::new(), Restarts::new());
        let third = dev.layout.node_dir(3);
        fs::create_dir(third.join("log")).expect("made");
        let error = dev.start(3).err().expect("no log can be written");
        assert!(error.to_string().contains("n3/log"), "{error}");
        dev.start_again(3, &mut nodes, &mut restarts).expect("told");
        assert_eq!((nodes.len(), restarts.len()), (0, 1));

        // Its data was removed meanwhile: it waits to be admitted anew, for which its configuration is needed.
        fs::remove_dir_all(&third).expect("removed");
        dev.start_again(3, &mut nodes, &mut restarts).expect("told");
        assert_eq!((nodes.len(), restarts.len()), (0, 1));
        assert_eq!(dev.absent, BTreeSet::from([3]));
        assert!(dev.layout.node_config(3).exists());
    }

    #[test]
    fn a_node_that_was_removed_stands_as_one_that_left() {
        let base = tempfile::tempdir().expect("a directory");
        let mut dev = laid_out(&base.path().join("d"));
        dev.retire_removed(3).expect("nothing to do");
        assert_eq!(dev.standing(3), Standing::Member);
        dev.removed.insert(3);
        dev.retire_removed(3).expect("set aside");
        assert_eq!(dev.standing(3), Standing::Left);
        assert_eq!(dev.members().expect("both"), [1, 2]);
        assert!(dev.is_majority(&[1, 2]) && !dev.is_majority(&[1]));
    }

    #[test]
    fn a_node_that_left_is_not_started_and_counts_no_more() {
        let base = tempfile::tempdir().expect("a directory");
        let mut dev = laid_out(&base.path().join("d"));
        assert_eq!(dev.members().expect("all"), [1, 2, 3]);
        let identity = |node| {
            IdentityFile::in_dir(&dev.layout.node_data(node))
                .path()
                .to_owned()
        };
        let (first, second) = (identity(1), identity(2));
        fs::rename(&first, first.with_extension("left.toml")).expect("set aside");
        assert_eq!(dev.members().expect("both"), [2, 3]);
        assert_eq!(dev.absent, BTreeSet::from([1]));
        assert!(dev.admitted().is_empty());
        // Of two members one is no majority.
        let kept = fs::read(&second).expect("read");
        fs::remove_file(&second).expect("removed");
        let error = dev.members().expect_err("no majority");
        assert!(
            matches!(error, DevError::NoMajority { members: 1, .. }),
            "{error}"
        );
        fs::write(&second, kept).expect("written");
        // It was admitted anew.
        fs::copy(&second, &first).expect("written");
        assert_eq!(dev.admitted(), BTreeSet::from([1]));
        assert!(dev.absent.is_empty());
    }
}
