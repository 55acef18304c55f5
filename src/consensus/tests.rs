//! Clusters of several nodes in this process: real sockets on free ports, logs in memory, links that can be cut.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, RwLock},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};
use hyper_util::rt::TokioIo;
use openraft::{
    network::{RPCOption, RaftNetworkFactory, v2::RaftNetworkV2},
    raft::AppendEntriesRequest,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::{
    administer::{AdministerError, NotDone},
    engine_memory::MemoryEngine,
    fitness::Unfit,
    leaderless::Leaderless,
    membership::RemovalRefused,
    messages::{GrantRequest, GroupChange},
    network::{Lane, Network, PeerLinks, peer_endpoint},
    plaintext::{PlaintextConnector, dial},
    storage::{Storage, StorageOptions},
    succession::Heirs,
    *,
};
use crate::{
    model::vip::Vip,
    state::{
        command::{Change as StateChange, JoinToken, NewMember, RequestId, Secret, UnixMillis},
        outcome::Applied,
    },
};

/// Slower than the default: many tests share few cores.
const TIMING: Timing = Timing {
    heartbeat: Duration::from_millis(60),
    election_timeout_min: Duration::from_millis(400),
    election_timeout_max: Duration::from_millis(800),
};

const LONG: Duration = Duration::from_secs(30);

fn soon() -> Instant {
    Instant::now() + LONG
}

/// Directed links that carry nothing.
type Cuts = Arc<RwLock<HashSet<(u64, u64)>>>;

/// How often one node has called another.
type Dials = Arc<Mutex<HashMap<(u64, u64), u32>>>;

/// Plaintext links of one node that respect the cuts.
struct CuttableConnector {
    from: u64,
    cuts: Cuts,
    dials: Dials,
}

impl PeerConnector for CuttableConnector {
    fn channel(&self, to: NodeId, address: SocketAddr) -> Channel {
        let (link, cuts) = ((self.from, to.0), Arc::clone(&self.cuts));
        let dials = Arc::clone(&self.dials);
        let dialer = tower::service_fn(move |_| {
            let cuts = Arc::clone(&cuts);
            *dials.lock().unwrap().entry(link).or_default() += 1;
            async move {
                let stream = CuttableStream {
                    stream: dial(address).await?,
                    link,
                    cuts,
                };
                stream.check()?;
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        });
        peer_endpoint().connect_with_connector_lazy(dialer)
    }
}

struct CuttableStream {
    stream: TcpStream,
    link: (u64, u64),
    cuts: Cuts,
}

impl CuttableStream {
    fn check(&self) -> std::io::Result<()> {
        match self.cuts.read().unwrap().contains(&self.link) {
            true => Err(std::io::ErrorKind::ConnectionReset.into()),
            false => Ok(()),
        }
    }
}

impl AsyncRead for CuttableStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for CuttableStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A node that runs.
struct TestNode {
    consensus: Consensus,
    serving: CancellationToken,
    server: JoinHandle<()>,
}

/// What a node keeps over a restart.
struct Disk {
    directory: tempfile::TempDir,
    engine: Arc<MemoryEngine>,
    address: SocketAddr,
}

struct Cluster {
    id: ClusterId,
    cuts: Cuts,
    dials: Dials,
    disks: BTreeMap<u64, Disk>,
    nodes: BTreeMap<u64, TestNode>,
    patience: Patience,
    options: StorageOptions,
    log_kept: u64,
    silence: SenderSilence,
}

impl Cluster {
    fn new() -> Self {
        // RUST_LOG shows what the nodes say.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt()
            .with_test_writer()
            .with_env_filter(filter)
            .try_init();
        Self {
            id: ClusterId("c0ffee".into()),
            cuts: Cuts::default(),
            dials: Dials::default(),
            disks: BTreeMap::new(),
            nodes: BTreeMap::new(),
            patience: Patience {
                recovery_wait: Duration::from_secs(3),
                ..Patience::default()
            },
            options: StorageOptions {
                low_space: Some(0),
                ballast: Some(0),
                ..StorageOptions::default()
            },
            log_kept: LOG_KEPT,
            silence: SenderSilence::default(),
        }
    }

    /// A cluster of `size` voters.
    async fn of(size: u64) -> Self {
        let mut cluster = Self::new();
        cluster.grow(size).await;
        cluster
    }

    async fn grow(&mut self, size: u64) {
        if self.nodes.is_empty() {
            self.found().await;
        }
        while (self.nodes.len() as u64) < size {
            self.join().await;
        }
        let voters = |status: &ClusterStatus| {
            status
                .nodes
                .iter()
                .filter(|node| node.role == MemberRole::Voter)
                .count() as u64
        };
        let want = size.min(5);
        eventually("enough voters", || {
            let settled = |n: &TestNode| {
                let metrics = n.consensus.core.metrics();
                metrics.membership_config.get_joint_config().len() == 1
            };
            self.nodes
                .values()
                .all(|n| voters(&n.consensus.status()) == want && settled(n))
        })
        .await;
    }

    async fn found(&mut self) {
        let address = self.boot(1).await;
        let first = member("n1", address);
        let init = StateChange::InitCluster {
            cluster: self.id.clone(),
            ca: Secret("ca".into()),
            first,
        };
        let outcome = self
            .node(1)
            .initialize(command(vec![init]), soon())
            .await
            .unwrap();
        assert_eq!(applied(outcome).node, Some(NodeId(1)));
    }

    /// Adds one member by the state alone; the group follows.
    async fn join(&mut self) -> u64 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let any = *self.nodes.keys().next().unwrap();
        let token = format!("t{}", address.port());
        let create = StateChange::CreateToken {
            token: JoinToken {
                id: token.clone(),
                secret_hash: Secret("hash".into()),
                expires_at: UnixMillis(u64::MAX),
                used_by: None,
            },
        };
        let add = StateChange::AddMember {
            token,
            member: member(&format!("n{}", address.port()), address),
        };
        let outcome = self
            .node(any)
            .propose(command(vec![create]), soon())
            .await
            .unwrap();
        applied(outcome);
        let outcome = self
            .node(any)
            .propose(command(vec![add]), soon())
            .await
            .unwrap();
        let id = applied(outcome).node.unwrap().0;
        self.boot_on(id, listener).await;
        id
    }

    async fn boot(&mut self, id: u64) -> SocketAddr {
        let address = match self.disks.get(&id) {
            Some(disk) => disk.address,
            None => "127.0.0.1:0".parse().unwrap(),
        };
        let listener = bind_again(address).await;
        self.boot_on(id, listener).await
    }

    async fn boot_on(&mut self, id: u64, listener: TcpListener) -> SocketAddr {
        let address = listener.local_addr().unwrap();
        let disk = self.disks.entry(id).or_insert_with(|| Disk {
            directory: tempfile::tempdir().unwrap(),
            engine: Arc::new(MemoryEngine::new()),
            address,
        });
        let engine = Arc::clone(&disk.engine);
        let storage =
            Storage::open_on(disk.directory.path(), self.options.clone(), engine).unwrap();
        let config = ConsensusConfig {
            id: NodeId(id),
            cluster: self.id.clone(),
            peer: Peer {
                name: format!("n{id}"),
                raft_address: address,
                api_address: address,
            },
            timing: Some(TIMING),
            ledger: Default::default(),
            patience: self.patience,
            connector: Arc::new(CuttableConnector {
                from: id,
                cuts: Arc::clone(&self.cuts),
                dials: Arc::clone(&self.dials),
            }),
            certificates: Certificates::NotUsed,
            log_kept: self.log_kept,
        };
        let consensus = Consensus::start(config, storage).await.unwrap();
        let serving = CancellationToken::new();
        let stopped = serving.clone().cancelled_owned();
        let service = RaftService::server(Arc::clone(&consensus.core), self.silence);
        let server = network::peer_server()
            .add_service(service)
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stopped);
        let server = tokio::spawn(async move { server.await.unwrap() });
        self.nodes.insert(
            id,
            TestNode {
                consensus,
                serving,
                server,
            },
        );
        address
    }

    fn node(&self, id: u64) -> &Consensus {
        &self.nodes[&id].consensus
    }

    fn ids(&self) -> Vec<u64> {
        self.nodes.keys().copied().collect()
    }

    /// The leader that all of `among` agree on.
    async fn leader_among(&self, among: &[u64]) -> u64 {
        let agreed = || {
            let leaders: HashSet<_> = among.iter().map(|id| self.node(*id).leader()).collect();
            let leader = leaders.iter().next().copied().flatten()?;
            if leaders.len() > 1 || !among.contains(&leader.0) {
                return None; // perhaps one that was stopped and is still believed in
            }
            let leads = self
                .node(leader.0)
                .leadership()
                .borrow()
                .holds(Instant::now());
            leads.then_some(leader.0)
        };
        eventually("a leader", || agreed().is_some()).await;
        match agreed() {
            Some(leader) => leader,
            None => Box::pin(self.leader_among(among)).await,
        }
    }

    async fn leader(&self) -> u64 {
        self.leader_among(&self.ids()).await
    }

    async fn followers(&self) -> Vec<u64> {
        let leader = self.leader().await;
        self.ids().into_iter().filter(|id| *id != leader).collect()
    }

    fn cut(&self, one: u64) {
        let mut cuts = self.cuts.write().unwrap();
        for other in self.ids() {
            cuts.extend([(one, other), (other, one)]);
        }
    }

    fn heal(&self) {
        self.cuts.write().unwrap().clear();
    }

    /// Stops a node without handing anything over, as a crash would.
    async fn crash(&mut self, id: u64) {
        let node = self.nodes.remove(&id).unwrap();
        self.cut(id);
        node.consensus.core.stop.cancel();
        node.consensus.core.raft.shutdown().await.unwrap();
        node.consensus.core.tasks.close();
        node.consensus.core.tasks.wait().await;
        node.serving.cancel();
        node.server.await.unwrap();
        let mut cuts = self.cuts.write().unwrap();
        cuts.retain(|(from, to)| *from != id && *to != id);
    }

    async fn stop(self) {
        for node in self.nodes.values() {
            node.consensus.core.stop.cancel();
        }
        for node in self.nodes.into_values() {
            node.consensus.shutdown(Instant::now()).await;
            node.serving.cancel();
            node.server.await.unwrap();
        }
    }

    async fn same_state(&self) {
        let hashes = || {
            let states = self
                .nodes
                .values()
                .map(|node| node.consensus.state().hash());
            states.collect::<HashSet<_>>().len()
        };
        eventually("equal states", || hashes() == 1).await;
    }
}

/// The port of a stopped node is free only once its server has ended.
async fn bind_again(address: SocketAddr) -> TcpListener {
    let until = soon();
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) => assert!(Instant::now() < until, "{address}: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = soon();
    while !holds() {
        assert!(Instant::now() < until, "not in {LONG:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn member(name: &str, address: SocketAddr) -> NewMember {
    NewMember {
        name: name.into(),
        raft_address: address,
        api_address: address,
    }
}

fn command(changes: Vec<StateChange>) -> Command {
    Command {
        request: RequestId(rand::random()),
        born: 0,
        proposed_at: UnixMillis(0),
        author: "test".into(),
        preconditions: Vec::new(),
        changes,
    }
}

/// A command whose second application would be refused: a token of another secret can be made once.
fn make_once(name: &str) -> Command {
    command(vec![StateChange::CreateToken {
        token: JoinToken {
            id: name.into(),
            secret_hash: Secret(format!("{:032x}", rand::random::<u128>())),
            expires_at: UnixMillis(u64::MAX),
            used_by: None,
        },
    }])
}

fn applied(outcome: Outcome) -> Applied {
    match outcome {
        Outcome::Applied(applied) => applied,
        other => panic!("{other:?}"),
    }
}

fn has(consensus: &Consensus, token: &str) -> bool {
    consensus.state().tokens().contains_key(token)
}

#[tokio::test(flavor = "multi_thread")]
async fn any_node_takes_writes_and_shows_them_at_once() {
    let cluster = Cluster::of(3).await;
    for id in cluster.ids() {
        let name = format!("by-{id}");
        let revision = applied(
            cluster
                .node(id)
                .propose(make_once(&name), soon())
                .await
                .unwrap(),
        )
        .revision;
        assert!(
            has(cluster.node(id), &name),
            "node {id} answered before it applied"
        );
        let served = cluster.node(id).snapshots().borrow().clone().unwrap();
        assert!(
            served.revision >= revision,
            "node {id} answered before it published"
        );
        for reader in cluster.ids() {
            let read = cluster.node(reader).read_revision(soon()).await.unwrap();
            assert!(
                read >= revision && has(cluster.node(reader), &name),
                "read on {reader} after a write on {id}"
            );
        }
    }
    cluster.same_state().await;
    cluster.stop().await;
}

/// openraft takes an error at the end for a fault of the request that it has ready by then; two that wait for each other's
/// answers then replicate the same entries for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_entries_ends_with_the_answer_to_its_last_request() {
    let cluster = Cluster::of(3).await;
    let leader = &cluster.node(cluster.leader().await).core;
    let follower = NodeId(cluster.followers().await[0]);
    let request = AppendEntriesRequest {
        vote: leader.metrics().vote,
        prev_log_id: None,
        entries: vec![],
        leader_commit: None,
    };
    for count in 1..4 {
        let requests = stream::iter(vec![request.clone(); count]);
        let target = leader.target_of(follower).unwrap();
        let opened = append_stream::open(&leader.links, target, requests).await;
        let answers: Vec<_> = opened.unwrap().collect().await;
        // All end at the same entry: an answer that would pass for one to a later request is kept back.
        assert!((1..=count).contains(&answers.len()), "{answers:?}");
        assert!(
            answers.iter().all(|answer| matches!(answer, Ok(Ok(_)))),
            "{answers:?}"
        );
    }
    cluster.stop().await;
}

/// openraft sends heartbeats as streams too. Those wait for an answer before they send anything, and for entries before them.
#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_is_one_call_on_a_lane_of_its_own() {
    let cluster = Cluster::of(3).await;
    let leader = &cluster.node(cluster.leader().await).core;
    let follower = NodeId(cluster.followers().await[0]);
    // The leader that began the cluster has asked nobody for a vote.
    eventually("openraft's own heartbeats on their lane", || {
        leader.links.lanes_to(follower).contains(&Lane::Heartbeat)
    })
    .await;

    let connector = CuttableConnector {
        from: leader.id.0,
        cuts: Arc::clone(&cluster.cuts),
        dials: Dials::default(),
    };
    let mut network = Network {
        links: Arc::new(PeerLinks::new(leader.links.me.clone(), Arc::new(connector))),
    };
    network.links.set_refusal(TIMING.election_timeout_max);
    let target = leader.target_of(follower).unwrap();
    let peer = Peer {
        name: "follower".into(),
        raft_address: target.address,
        api_address: target.address,
    };
    let mut client = network.new_client(follower.0, &peer).await;
    let heartbeat = AppendEntriesRequest {
        vote: leader.metrics().vote,
        prev_log_id: None,
        entries: vec![],
        leader_commit: None,
    };
    let once = Box::pin(stream::once(async { heartbeat }));
    let answers = client.stream_append(once, RPCOption::new(LONG)).await;
    let answers: Vec<_> = answers.unwrap().collect().await;
    assert!(matches!(&answers[..], [Ok(Ok(None))]), "{answers:?}");
    assert_eq!(network.links.lanes_to(follower), [Lane::Heartbeat]);
    assert!(network.links.promised(follower).is_some());
    cluster.stop().await;
}

/// The stream may come before the next heartbeat, and would have openraft take the loss for a log that never was longer.
/// Called without a pause, a dead peer takes all of a processor, and the lease goes for want of one.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_down_is_called_at_pauses() {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let down = cluster.followers().await[0];
    cluster.crash(down).await;
    let dials = || {
        let dials = cluster.dials.lock().unwrap();
        dials.get(&(leader, down)).copied().unwrap_or_default()
    };
    let before = dials();
    let start = Instant::now();
    let mut written = 0;
    while start.elapsed() < Duration::from_secs(2) {
        let outcome = cluster
            .node(leader)
            .propose(make_once(&format!("w{written}")), soon());
        applied(outcome.await.unwrap());
        written += 1;
    }
    // A heartbeat calls each time, entries four times a second, the status once: twice as often is still far from a loop.
    let heartbeats = start.elapsed().as_millis() / TIMING.heartbeat.as_millis();
    let allowed = 2 * (heartbeats as u32 + 8) + 20;
    let called = dials() - before;
    assert!(
        (1..=allowed).contains(&called),
        "called {called} times, {allowed} at most"
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_of_entries_tells_a_node_what_it_has_lost() {
    let cluster = Cluster::of(3).await;
    let leader = &cluster.node(cluster.leader().await).core;
    let follower = NodeId(cluster.followers().await[0]);
    let vote = leader.metrics().vote;
    eventually("what the follower acknowledged", || {
        leader.links.acknowledged(follower, &vote).is_some()
    })
    .await;
    leader.links.note_acknowledged(follower, vote, 1000);
    let request = AppendEntriesRequest {
        vote,
        prev_log_id: None,
        entries: vec![],
        leader_commit: None,
    };
    let target = leader.target_of(follower).unwrap();
    let opened = append_stream::open(&leader.links, target, stream::iter([request])).await;
    let answers: Vec<_> = opened.unwrap().collect().await;
    assert!(matches!(&answers[..], [Err(_)]), "{answers:?}");
    let mut recovery = cluster.node(follower.0).recovery();
    let stopped = Recovery::Stopped(StopReason::LogLost);
    let told = recovery.wait_for(|recovery| *recovery == stopped);
    tokio::time::timeout(LONG, told).await.unwrap().unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_that_no_clock_reaches_is_not_taken() {
    let cluster = Cluster::of(3).await;
    let leader = NodeId(cluster.leader().await);
    let heir = &cluster.node(cluster.followers().await[0]).core;
    let term = heir.metrics().current_term;
    let grant = GrantRequest {
        term,
        noted: heir.note_offer(leader, term),
        lasts: Duration::MAX,
        facts: Default::default(),
        others: Default::default(),
        givers: Default::default(),
    };
    assert!(!heir.take_grant(leader, grant));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_told_as_one_and_a_retry_is_applied_once() {
    let cluster = Cluster::of(3).await;
    let follower = cluster.followers().await[0];
    let first = make_once("a");
    let one = applied(
        cluster
            .node(follower)
            .propose(first.clone(), soon())
            .await
            .unwrap(),
    );
    let again = applied(cluster.node(follower).propose(first, soon()).await.unwrap());
    assert_eq!(one, again);
    let clash = cluster
        .node(follower)
        .propose(make_once("a"), soon())
        .await
        .unwrap();
    assert!(matches!(clash, Outcome::Refused(_)), "{clash:?}");
    cluster.stop().await;
}

/// Many share a message of the stream to the leader; a large one has a call of its own.
#[tokio::test(flavor = "multi_thread")]
async fn of_many_at_once_each_gets_its_own_answer() {
    let cluster = Cluster::of(3).await;
    let follower = cluster.node(cluster.followers().await[0]).clone();
    let large = || {
        let tokens = (0..500).map(|n| make_once(&format!("large{n}")));
        command(tokens.flat_map(|command| command.changes).collect())
    };
    let all = (0..300).map(|n| match n {
        150 => large(),
        n => make_once(&format!("t{}", n / 2)),
    });
    let all = futures::future::join_all(all.map(|command| follower.propose(command, soon()))).await;
    let mut revisions = Vec::new();
    for pair in all.chunks(2) {
        let pair: Vec<_> = pair
            .iter()
            .map(|outcome| outcome.as_ref().unwrap())
            .collect();
        let done = pair.iter().filter_map(|outcome| match outcome {
            Outcome::Applied(applied) => Some(applied.revision),
            _ => None,
        });
        let before = revisions.len();
        revisions.extend(done);
        assert_ne!(revisions.len(), before, "{pair:?}");
    }
    revisions.sort_unstable();
    revisions.dedup();
    assert_eq!(revisions.len(), 151, "each its own");
    assert!((0..150).all(|n| has(&follower, &format!("t{n}"))) && has(&follower, "large499"));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_under_way_when_the_leader_is_lost_is_written_once() {
    let cluster = Arc::new(Cluster::of(3).await);
    let leader = cluster.leader().await;
    let writer = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
    let writers: Vec<_> = (0..8)
        .map(|writer_no| {
            let consensus = cluster.node(writer).clone();
            tokio::spawn(async move {
                for n in 0..40 {
                    let command = make_once(&format!("w{writer_no}-{n}"));
                    applied(consensus.propose(command, soon()).await.unwrap());
                }
            })
        })
        .collect();
    eventually("writes are under way", || {
        (0..8).all(|writer_no| has(cluster.node(writer), &format!("w{writer_no}-5")))
    })
    .await;
    cluster.cut(leader);
    let mut rest = cluster.ids();
    rest.retain(|id| *id != leader);
    cluster.leader_among(&rest).await;
    cluster.heal();
    for writer in writers {
        writer.await.unwrap();
    }
    cluster.same_state().await;
    Arc::into_inner(cluster).unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_go_on_exactly_once_while_leaders_are_lost() {
    let cluster = Arc::new(Cluster::of(3).await);
    let leader = cluster.leader().await;
    let writer = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
    let writing = tokio::spawn({
        let consensus = cluster.node(writer).clone();
        async move {
            for n in 0..150 {
                let outcome = consensus.propose(make_once(&format!("w{n}")), soon()).await;
                // A second application would be refused as "exists already".
                applied(outcome.unwrap());
            }
        }
    });
    eventually("writes are under way", || has(cluster.node(writer), "w20")).await;
    cluster.cut(leader);
    let rest: Vec<u64> = cluster
        .ids()
        .into_iter()
        .filter(|id| *id != leader)
        .collect();
    cluster.leader_among(&rest).await;
    cluster.heal();
    writing.await.unwrap();
    cluster.same_state().await;
    assert!((0..150).all(|n| has(cluster.node(leader), &format!("w{n}"))));
    Arc::into_inner(cluster).unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_quorum_writes_nothing_and_goes_on_serving() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    applied(
        cluster
            .node(leader)
            .propose(make_once("before"), soon())
            .await
            .unwrap(),
    );
    cluster.cut(leader);
    let lone = cluster.node(leader);
    let rest: Vec<u64> = cluster
        .ids()
        .into_iter()
        .filter(|id| *id != leader)
        .collect();
    let next = cluster.leader_among(&rest).await;
    assert!(
        !lone.leadership().borrow().holds(Instant::now()),
        "two leases at a time"
    );

    let short = Instant::now() + Duration::from_millis(600);
    let write = lone.propose(make_once("lone"), short).await.unwrap_err();
    assert!(
        matches!(
            write,
            ProposeError::NoLeader { .. } | ProposeError::Unknown { .. }
        ),
        "{write:?}"
    );
    let short = Instant::now() + Duration::from_millis(600);
    assert!(matches!(
        lone.read_revision(short).await,
        Err(ReadError::NoLeader { .. })
    ));
    assert!(has(lone, "before") && lone.snapshots().borrow().is_some());
    eventually("marked stale", || {
        *lone.recovery().borrow() == Recovery::Stale
    })
    .await;

    applied(
        cluster
            .node(next)
            .propose(make_once("majority"), soon())
            .await
            .unwrap(),
    );
    cluster.heal();
    eventually("caught up", || has(lone, "majority")).await;
    eventually("current again", || {
        *lone.recovery().borrow() == Recovery::Current
    })
    .await;
    cluster.same_state().await;
    assert_eq!(has(lone, "lone"), has(cluster.node(next), "lone"));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_no_instant_do_two_nodes_hold_a_lease() {
    let cluster = Cluster::of(3).await;
    let overlaps = Arc::new(Mutex::new(Vec::new()));
    let leases = Arc::new(Mutex::new(BTreeMap::<u64, Instant>::new()));
    let watchers: Vec<_> = cluster
        .ids()
        .into_iter()
        .map(|id| {
            let mut leadership = cluster.node(id).leadership();
            let (leases, overlaps) = (Arc::clone(&leases), Arc::clone(&overlaps));
            tokio::spawn(async move {
                while leadership.changed().await.is_ok() {
                    let mut leases = leases.lock().unwrap();
                    let now = Instant::now();
                    let Some(until) = leadership.borrow_and_update().lease_until else {
                        // Given up of its own will, after whoever relied on it was told.
                        leases.remove(&id);
                        continue;
                    };
                    let others = leases
                        .iter()
                        .filter(|(other, until)| **other != id && **until > now);
                    overlaps
                        .lock()
                        .unwrap()
                        .extend(others.map(|(other, _)| (id, *other)));
                    leases.insert(id, until);
                }
            })
        })
        .collect();
    for _ in 0..3 {
        let leader = cluster.leader().await;
        cluster.cut(leader);
        let rest: Vec<u64> = cluster
            .ids()
            .into_iter()
            .filter(|id| *id != leader)
            .collect();
        let next = cluster.leader_among(&rest).await;
        cluster.heal();
        let moved = cluster.node(next).transfer(None, soon()).await;
        assert!(
            moved.is_ok() || matches!(moved, Err(AdministerError::Unfinished { .. })),
            "{moved:?}"
        );
    }
    assert_eq!(*overlaps.lock().unwrap(), []);
    watchers.iter().for_each(JoinHandle::abort);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_moves_to_where_it_is_sent() {
    let cluster = Cluster::of(3).await;
    for _ in 0..2 {
        let followers = cluster.followers().await;
        let (asked, to) = (followers[0], followers[1]);
        let term = cluster.node(to).leadership().borrow().term;
        let leader = cluster
            .node(asked)
            .transfer(Some(NodeId(to)), soon())
            .await
            .unwrap();
        assert_eq!(leader, NodeId(to));
        let leadership = cluster.node(to).leadership();
        eventually("the lease of the new term", || {
            leadership.borrow().holds(Instant::now())
        })
        .await;
        assert!(leadership.borrow().term > term);
        assert_eq!(
            cluster.node(to).transfer(Some(NodeId(to)), soon()).await,
            Ok(NodeId(to))
        );
    }
    let nobody = cluster.node(1).transfer(Some(NodeId(9)), soon()).await;
    assert_eq!(
        nobody,
        Err(AdministerError::Refused(ChangeRefused::NotMember(NodeId(
            9
        ))))
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_moves_on_to_nobody_that_is_unfit() {
    let cluster = Cluster::of(3).await;
    let followers = cluster.followers().await;
    let leader = cluster.leader().await;
    let telling = followers.iter().map(|id| {
        let consensus = cluster.node(*id).clone();
        tokio::spawn(async move {
            loop {
                consensus.tell_fitness(found(Some("no carrier"), None));
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
    });
    let telling: Vec<JoinHandle<()>> = telling.collect();
    for asked in [leader, followers[0]] {
        let node = &cluster.node(asked).core;
        let unfit =
            |id: u64| id == asked || super::core::lock(&node.peers).unfit(NodeId(id)).is_some();
        eventually("it is heard", || followers.iter().all(|id| unfit(*id))).await;
        let refused = cluster.node(asked).move_on(soon()).await;
        let words = refused.unwrap_err().to_string();
        for id in &followers {
            assert!(words.contains(&format!("node {id}: no carrier")), "{words}");
        }
    }
    assert_eq!(cluster.leader().await, leader);
    for task in telling {
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
    }
    cluster.node(followers[0]).tell_fitness(Findings::default());
    let fit = NodeId(followers[0]);
    eventually("it is heard", || {
        super::core::lock(&cluster.node(leader).core.peers).is_fit(fit)
    })
    .await;
    assert_eq!(cluster.node(leader).move_on(soon()).await, Ok(fit));
    cluster.stop().await;
}

fn found(unfit: Option<&str>, doubt: Option<&str>) -> Findings {
    let [unfit, doubt] = [unfit, doubt].map(|why| why.map(str::to_owned));
    Findings { unfit, doubt }
}

/// What befalls all at one moment is counted by each in its own time: who has not counted to the end takes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn the_vips_go_to_nobody_whose_check_has_just_failed_and_who_is_fit_still() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let followers = cluster.followers().await;
    let (doubtful, other) = (followers[0], followers[1]);
    assert!(doubtful < other, "of two alike it would be chosen");
    let consensus = cluster.node(doubtful).clone();
    let telling = tokio::spawn(async move {
        loop {
            consensus.tell_fitness(found(None, Some("no carrier")));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    eventually("it is told", || {
        let fitness = super::core::lock(&cluster.node(doubtful).core.fitness).clone();
        fitness.takes_none(Instant::now()).is_some()
    })
    .await;
    assert_eq!(heard_unfit(&cluster, leader, doubtful), None);
    let went = cluster.node(leader).move_on(soon()).await;
    assert_eq!(went, Ok(NodeId(other)));
    telling.abort();
    assert!(telling.await.unwrap_err().is_cancelled());
    cluster.stop().await;
}

/// What another said of itself lately, as a node heard it.
fn heard_unfit(cluster: &Cluster, by: u64, of: u64) -> Option<Unfit> {
    super::core::lock(&cluster.node(by).core.peers).unfit(NodeId(of))
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_does_not_move_on_to_an_unfit_node_while_a_fit_one_is_away() {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let followers = cluster.followers().await;
    let (fit, unfit) = (followers[0], followers[1]);
    cluster.node(unfit).tell_stopped("no carrier".into());
    eventually("it is heard", || {
        heard_unfit(&cluster, leader, unfit).is_some()
    })
    .await;
    cluster.crash(fit).await;
    let refused = cluster.node(unfit).move_on(soon()).await.unwrap_err();
    assert!(
        matches!(
            refused,
            AdministerError::Refused(ChangeRefused::NoneReady { .. })
        ),
        "{refused}"
    );
    let words = refused.to_string();
    for told in [
        format!("node {unfit}: no carrier"),
        format!("node {fit}: it does not answer"),
    ] {
        assert!(words.contains(&told), "{words}");
    }
    assert_eq!(cluster.leader().await, leader);
    cluster.stop().await;
}

/// It serves nothing yet, though it has caught up.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_starting_is_given_no_leadership() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let followers = cluster.followers().await;
    let (starting, other) = (followers[0], followers[1]);
    assert!(starting < other, "of two alike it would be chosen");
    cluster.node(starting).tell_starting();
    eventually("it is heard", || {
        heard_unfit(&cluster, leader, starting) == Some(Unfit::Starting)
    })
    .await;
    let sent = cluster
        .node(leader)
        .transfer(Some(NodeId(starting)), soon())
        .await;
    let refused = ChangeRefused::Starting(NodeId(starting));
    assert_eq!(sent, Err(AdministerError::Refused(refused)));
    let left = cluster.node(leader).step_down(soon()).await;
    assert_eq!(left, Ok(NodeId(other)));
    cluster.node(starting).tell_fitness(Findings::default());
    let sent = cluster
        .node(other)
        .transfer(Some(NodeId(starting)), soon())
        .await;
    assert_eq!(sent, Ok(NodeId(starting)));
    cluster.stop().await;
}

/// The leader reaches it. Given leadership it would hold the VIPs for a moment, and nobody would after that.
#[tokio::test(flavor = "multi_thread")]
async fn leadership_is_given_to_nobody_whom_too_few_would_elect() {
    let cluster = Cluster::of(5).await;
    let leader = cluster.leader().await;
    let followers = cluster.followers().await;
    let lonely = followers[0];
    let away = followers[1..].iter().map(|other| (lonely, *other));
    cluster.cuts.write().unwrap().extend(away);
    let leadership = cluster.node(leader).leadership();
    let term = leadership.borrow().term;
    let sent = cluster
        .node(leader)
        .transfer(Some(NodeId(lonely)), soon())
        .await;
    let Err(AdministerError::Refused(ChangeRefused::Declined { id, problem })) = sent else {
        panic!("{sent:?}");
    };
    let votes = format!("node {lonely} would get 2 of 5 votes");
    assert!(
        id == NodeId(lonely) && problem.contains(&votes),
        "{problem}"
    );
    {
        let still = leadership.borrow();
        assert!(still.holds(Instant::now()) && still.term == term);
    }
    // Who only wants to get rid of it finds another at once.
    let next = cluster.node(leader).step_down(soon()).await.unwrap();
    assert_ne!(next, NodeId(lonely));
    cluster.heal();
    let sent = cluster
        .node(next.0)
        .transfer(Some(NodeId(lonely)), soon())
        .await;
    assert_eq!(sent, Ok(NodeId(lonely)));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_is_given_to_nobody_whose_disk_hangs() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let followers = cluster.followers().await;
    let (stuck, other) = (followers[0], followers[1]);
    cluster.disks[&stuck].engine.hold(true);
    let leadership = cluster.node(leader).leadership();
    let term = leadership.borrow().term;
    let sent = cluster
        .node(leader)
        .transfer(Some(NodeId(stuck)), soon())
        .await;
    let refused = ChangeRefused::NotWritten(NodeId(stuck));
    assert_eq!(sent, Err(AdministerError::Refused(refused)));
    assert_eq!(leadership.borrow().term, term);
    eventually("the lease was kept, or is there again", || {
        leadership.borrow().holds(Instant::now())
    })
    .await;
    // Who only wants to get rid of it finds the other, though that would not be chosen first.
    super::core::lock(&cluster.node(leader).core.peers)
        .declined
        .clear();
    let left = cluster.node(leader).step_down(soon()).await;
    assert_eq!(left, Ok(NodeId(other)));
    cluster.disks[&stuck].engine.hold(false);
    cluster.stop().await;
}

/// The leader has not heard so: the answer is a second old, or as old as a cut that was just healed.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_unfit_declines_leadership_though_the_leader_has_not_heard_of_it() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let followers = cluster.followers().await;
    let (unfit, other) = (followers[0], followers[1]);
    cluster.node(unfit).tell_stopped("no carrier".into());
    let forget = || {
        let core = &cluster.node(leader).core;
        super::core::lock(&core.peers).reports.clear();
    };
    forget();
    let sent = cluster
        .node(leader)
        .transfer(Some(NodeId(unfit)), soon())
        .await;
    let refused = sent.expect_err("it is unfit").to_string();
    assert!(refused.contains("no carrier"), "{refused}");
    assert_eq!(cluster.leader().await, leader);
    // Who stops would rather give it to that one than to nobody.
    cluster.node(other).tell_stopped("no carrier".into());
    forget();
    assert!(cluster.node(leader).step_down(soon()).await.is_ok());
    cluster.stop().await;
}

/// A disk on which no write ends until this is let go.
struct HeldDisk(std::path::PathBuf);

impl HeldDisk {
    /// Opening a pipe waits for somebody who reads.
    fn hold(disk: &Disk) -> Self {
        let probe = disk.directory.path().join("probe");
        let pipe = disk.directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::fs::rename(&pipe, &probe).unwrap();
        Self(probe)
    }
}

impl Drop for HeldDisk {
    fn drop(&mut self) {
        let aside = self.0.with_extension("aside");
        std::fs::rename(&self.0, &aside).unwrap();
        // It may be opened by the one that waits, or by nobody yet.
        std::fs::File::options()
            .read(true)
            .write(true)
            .open(&aside)
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_own_disk_hangs_says_so_and_begins_no_hand_over() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let asked = cluster.followers().await[0];
    let held = HeldDisk::hold(&cluster.disks[&leader]);
    let core = &cluster.node(leader).core;
    eventually("a write does not end", || {
        core.disk.busy_for() > Duration::from_secs(1)
    })
    .await;
    let term = core.metrics().current_term;
    for to in [Some(NodeId(asked)), None] {
        let sent = match to {
            Some(_) => cluster.node(asked).transfer(to, soon()).await,
            None => cluster.node(asked).move_on(soon()).await,
        };
        let Err(AdministerError::Refused(ChangeRefused::OwnDisk { id, silent_ms })) = sent else {
            panic!("{sent:?}");
        };
        assert!(id == NodeId(leader) && silent_ms >= 1000, "{silent_ms}");
    }
    eventually("every node tells of it", || {
        let tells = |id: &u64| {
            let alarms = cluster.node(*id).status().alarms;
            let named = format!("node {leader}: its disk has not answered for");
            alarms.iter().any(|alarm| alarm.contains(&named))
        };
        cluster.ids().iter().all(tells)
    })
    .await;
    assert_eq!(core.metrics().current_term, term);
    drop(held);
    eventually("it answers again", || core.disk.problem().is_none()).await;
    let sent = cluster.node(asked).transfer(Some(NodeId(asked)), soon());
    assert_eq!(sent.await, Ok(NodeId(asked)));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_hears_no_leader_behind_its_own_disk_says_so() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let stuck = cluster.followers().await[0];
    cluster.disks[&stuck].engine.hold(true);
    let written = cluster.node(leader).propose(command(vec![]), soon()).await;
    assert!(written.is_ok());
    let core = &cluster.node(stuck).core;
    eventually("it hears no leader", || {
        core.disk.busy_for() > Duration::from_secs(1) && core.present_leader().is_none()
    })
    .await;
    let asked = cluster.node(stuck);
    let deadline = || Instant::now() + Duration::from_millis(500);
    let moved = [
        asked.transfer(Some(NodeId(leader)), deadline()).await,
        asked.move_on(deadline()).await,
    ];
    for moved in moved {
        let Err(AdministerError::NoLeader(why)) = moved else {
            panic!("{moved:?}");
        };
        assert!(
            matches!(why, Leaderless::OwnDisk { id, .. } if id == NodeId(stuck)),
            "{why}"
        );
    }
    cluster.disks[&stuck].engine.hold(false);
    eventually("it hears the leader again", || {
        core.present_leader().is_some()
    })
    .await;
    cluster.stop().await;
}

/// As a leader does whose own disk hangs when it is to stop.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_resigns_is_followed_by_another() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let followers = cluster.followers().await;
    cluster.disks[&leader].engine.hold(true);
    let leadership = cluster.node(leader).leadership();
    assert!(cluster.node(leader).resign());
    assert!(!leadership.borrow().holds(Instant::now()));
    let another = |id: &u64| {
        cluster
            .node(*id)
            .leader()
            .is_some_and(|it| it != NodeId(leader))
    };
    eventually("another leads", || followers.iter().all(another)).await;
    cluster.disks[&leader].engine.hold(false);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_silent_and_says_why_is_refused_with_that_reason() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let stuck = cluster.followers().await[0];
    let core = &cluster.node(leader).core;
    cluster.disks[&stuck].engine.hold(true);
    cluster.node(stuck).tell_stopped("its disk stands".into());
    let written = cluster.node(leader).propose(command(vec![]), soon()).await;
    assert!(written.is_ok());
    eventually("it answers no heartbeat, and says why", || {
        let is_silent = !core.group(&core.metrics()).alive.contains(&NodeId(stuck));
        let unfit = super::core::lock(&core.peers).unfit(NodeId(stuck));
        is_silent && unfit == Some(Unfit::Because("its disk stands".into()))
    })
    .await;
    let sent = cluster
        .node(leader)
        .transfer(Some(NodeId(stuck)), Instant::now() + Duration::from_secs(3))
        .await;
    let refused = ChangeRefused::Unfit {
        id: NodeId(stuck),
        problem: "its disk stands".into(),
    };
    assert_eq!(sent, Err(AdministerError::Refused(refused)));
    cluster.disks[&stuck].engine.hold(false);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voter_whose_disk_hangs_would_elect_nobody() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let followers = cluster.followers().await;
    let (asks, other) = (
        &cluster.node(followers[0]).core,
        &cluster.node(followers[1]).core,
    );
    assert_eq!(asks.canvass().await, Ok(()));
    let held = [leader, followers[1]].map(|id| HeldDisk::hold(&cluster.disks[&id]));
    let until = soon();
    let problem = loop {
        assert!(Instant::now() < until, "it would be elected");
        match asks.canvass().await {
            Ok(()) => tokio::time::sleep(Duration::from_millis(50)).await,
            Err(problem) => break problem,
        }
    };
    assert!(problem.contains("1 of 3 votes"), "{problem}");
    assert!(problem.contains("its disk does not answer"), "{problem}");
    drop(held);
    eventually("their disks answer", || other.disk.busy_for().is_zero()).await;
    assert_eq!(asks.canvass().await, Ok(()));
    cluster.stop().await;
}

/// What is told of the leader may lag behind the term that is known: two nodes would seem to lead in one.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_is_reported_in_its_own_term_alone() {
    let cluster = Cluster::of(3).await;
    let follower = cluster.followers().await[0];
    let core = &cluster.node(follower).core;
    core.leader.send_replace(Some(NodeId(follower)));
    assert_eq!(cluster.node(follower).status().leader, None);
    core.leader
        .send_replace(Some(NodeId(cluster.leader().await)));
    let status = cluster.node(follower).status();
    assert_eq!(status.leader, Some(NodeId(cluster.leader().await)));
    cluster.stop().await;
}

/// Until the log has failed for good a minute would pass.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_for_whose_disk_writes_wait_lets_another_lead() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let followers = cluster.followers().await;
    let core = Arc::clone(&cluster.node(leader).core);
    let leadership = cluster.node(leader).leadership();
    let term = leadership.borrow().term;
    {
        // Who could not write either is no help.
        let held: Vec<HeldDisk> = followers
            .iter()
            .map(|id| HeldDisk::hold(&cluster.disks[id]))
            .collect();
        eventually("their writes do not end", || {
            let hangs = |id: &u64| cluster.node(*id).core.disk.busy_for() > Duration::ZERO;
            followers.iter().all(hangs)
        })
        .await;
        let refused = core.give_way(soon()).await;
        assert!(
            matches!(
                refused,
                Err(NotDone::Refused(ChangeRefused::Declined { .. }))
            ),
            "{refused:?}"
        );
        assert_eq!(leadership.borrow().term, term);
        assert!(leadership.borrow().holds(Instant::now()));
        drop(held);
    }
    cluster.disks[&leader].engine.hold(true);
    let client = cluster.node(followers[0]);
    let writing = client.propose(command(vec![]), soon());
    let mut writing = Box::pin(writing);
    assert!(futures::poll!(&mut writing).is_pending());
    eventually("a write waits for long", || core.disk.holds_up_writes()).await;
    let leads = |id: &u64| {
        let metrics = cluster.node(*id).core.metrics();
        metrics.current_leader == Some(*id) && metrics.current_term > term
    };
    eventually("another leads", || followers.iter().any(leads)).await;
    assert!(!leadership.borrow().holds(Instant::now()));
    assert!(writing.await.is_ok(), "what waited is written");
    cluster.disks[&leader].engine.hold(false);
    cluster.stop().await;
}

/// A command that waits for a move that is under way, or whose answer was lost, is made of the next leader too.
#[tokio::test(flavor = "multi_thread")]
async fn leadership_that_has_left_a_node_is_not_moved_on_again() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let to = NodeId(cluster.followers().await[1]);
    let core = Arc::clone(&cluster.node(leader).core);
    let under_way = core.changing.lock().await;
    let mut moving = Box::pin(cluster.node(leader).move_on(soon()));
    assert!(futures::poll!(&mut moving).is_pending());
    let given = core.transfer_here(Heirs::Named(to), soon()).await;
    assert_eq!(given, Ok(Change::Made));
    drop(under_way);
    assert_eq!(moving.await, Ok(to));
    // Of whom leadership was lost to nothing is asked at a stop either.
    assert_eq!(cluster.node(leader).step_down(soon()).await, Ok(to));
    assert_eq!(cluster.leader().await, to.0);
    cluster.stop().await;
}

/// A command line that was interrupted, or a follower that was asked and crashed.
#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_goes_on_though_nobody_waits_for_it_any_more() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let core = Arc::clone(&cluster.node(leader).core);
    drop(core.changing.lock().await);
    let change = GroupChange::MoveOn {
        from: core.id,
        only_fit: false,
    };
    let mut asking = Box::pin(core.administer_here(change, soon()));
    assert!(futures::poll!(&mut asking).is_pending());
    drop(asking);
    eventually("another leads", || {
        core.leader().is_some_and(|id| id != core.id)
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_no_abdication_followed_is_taken_back() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let heir = cluster.followers().await[0];
    let core = &cluster.node(leader).core;
    let release = StateChange::ReleaseVips {
        to: NodeId(heir),
        term: core.metrics().current_term,
    };
    let at_work = core.changing.lock().await;
    core.commit_change(release, soon()).await.unwrap();
    eventually("it is applied", || {
        cluster.node(leader).state().vip_release().is_some()
    })
    .await;
    drop(at_work);
    eventually("it is over", || {
        cluster.node(leader).state().vip_release().is_none()
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reported_release_shortens_the_hand_over() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let mut leadership = cluster.node(leader).leadership();
    let releasing = tokio::spawn({
        let consensus = cluster.node(leader).clone();
        async move {
            let ended = leadership
                .wait_for(|l| l.lease_until.is_none())
                .await
                .unwrap()
                .term;
            consensus.acknowledge_release(ended);
        }
    });
    let moved = cluster.node(leader).transfer(None, soon()).await.unwrap();
    assert_ne!(moved, NodeId(leader));
    releasing.await.unwrap();
    assert!(
        !cluster
            .node(leader)
            .leadership()
            .borrow()
            .holds(Instant::now())
    );
    cluster.stop().await;
}

/// What a node says of its VIPs.
fn vip_facts(id: u64, serving: &[[u8; 4]]) -> VipFacts {
    VipFacts {
        macs: [("vip".to_owned(), [2, 0, 0, 0, 0, id as u8])].into(),
        serving: serving.iter().map(|vip| (*vip).into()).collect(),
        addresses: Default::default(),
    }
}

/// The connections through the VIPs that it gave away go on while it still serves them.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_left_is_asked_for_as_long_as_it_serves_connections() {
    const VIP: [u8; 4] = [192, 0, 2, 10];
    const OTHER: [u8; 4] = [192, 0, 2, 11];
    let cluster = Cluster::of(3).await;
    for id in cluster.ids() {
        cluster.node(id).tell_of_vips(vip_facts(id, &[]));
    }
    let leader = cluster.leader().await;
    let known = |at: u64, of: u64| {
        let peers = cluster.node(at).vip_peers();
        let known = peers.borrow().clone();
        known.facts.get(&NodeId(of)).cloned()
    };
    let mut rest = cluster.ids();
    rest.retain(|id| *id != leader);
    // What is told with the grant are the VIPs of the state.
    let vip = Vip {
        address: VIP.into(),
        interface: "vip".parse().unwrap(),
    };
    let put = command(vec![StateChange::PutVip { vip, create: true }]);
    applied(cluster.node(leader).propose(put, soon()).await.unwrap());
    let serving = vip_facts(leader, &[VIP]);
    cluster.node(leader).tell_of_vips(serving.clone());
    eventually("they know of each other", || {
        let mut others = rest.iter();
        others
            .all(|id| known(*id, leader).as_ref() == Some(&serving) && known(leader, *id).is_some())
    })
    .await;
    assert_eq!(cluster.node(leader).leave(soon()).await, Ok(Change::Made));
    let stopped = Recovery::Stopped(StopReason::Removed);
    eventually("the node knows", || {
        *cluster.node(leader).recovery().borrow() == stopped
    })
    .await;
    let next = cluster.leader_among(&rest).await;
    eventually("it is no member", || {
        cluster.node(next).status().nodes.len() == 2
    })
    .await;
    // It is heard all the same, and has not forgotten the others.
    let newer = vip_facts(leader, &[VIP, OTHER]);
    cluster.node(leader).tell_of_vips(newer.clone());
    eventually("what it says next is heard", || {
        known(next, leader).as_ref() == Some(&newer)
    })
    .await;
    for id in rest {
        assert_eq!(known(leader, id), Some(vip_facts(id, &[])), "node {id}");
    }
    cluster.node(leader).tell_of_vips(VipFacts::default());
    eventually("it is forgotten when it serves no more", || {
        known(next, leader).is_none()
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_leaves_and_its_id_is_never_used_again() {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    assert_eq!(cluster.node(leader).leave(soon()).await, Ok(Change::Made));
    let stopped = Recovery::Stopped(StopReason::Removed);
    eventually("the node knows", || {
        *cluster.node(leader).recovery().borrow() == stopped
    })
    .await;
    // The first answer may have been lost.
    let again = cluster.node(leader).leave(soon()).await;
    assert_eq!(again, Ok(Change::Unneeded));
    cluster.crash(leader).await;
    let rest = cluster.ids();
    let next = cluster.leader_among(&rest).await;
    eventually("two nodes are left", || {
        cluster.node(next).status().nodes.len() == 2
    })
    .await;
    assert_eq!(
        cluster.node(rest[0]).remove(NodeId(leader), soon()).await,
        Ok(Change::Unneeded)
    );
    assert!(cluster.node(next).state().is_retired(NodeId(leader)));
    let joined = cluster.join().await;
    assert!(joined > 3, "id {joined}");
    applied(
        cluster
            .node(joined)
            .propose(make_once("after"), soon())
            .await
            .unwrap(),
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_node_is_replaced_but_a_needed_one_is_not_removed() {
    let mut cluster = Cluster::of(3).await;
    let dead = cluster.followers().await[0];
    cluster.crash(dead).await;
    let alive = cluster.ids();
    let leader = cluster.leader_among(&alive).await;
    let other = alive.iter().copied().find(|id| *id != leader).unwrap();
    eventually("its death is noticed", || {
        let core = &cluster.node(leader).core;
        !core.alive(&core.metrics()).contains(&NodeId(dead))
    })
    .await;
    for needed in [other, leader] {
        let refused = cluster.node(other).remove(NodeId(needed), soon()).await;
        let quorum = Err(AdministerError::Refused(ChangeRefused::Quorum(
            RemovalRefused::QuorumLost {
                id: NodeId(needed),
                voters: 2,
                alive: 1,
                silent: vec![NodeId(dead)],
            },
        )));
        assert_eq!(refused, quorum);
    }
    assert_eq!(
        cluster.node(other).remove(NodeId(dead), soon()).await,
        Ok(Change::Made)
    );
    cluster.grow(3).await;
    applied(
        cluster
            .node(other)
            .propose(make_once("after"), soon())
            .await
            .unwrap(),
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_voter_cannot_be_removed() {
    let cluster = Cluster::of(1).await;
    let last = cluster.node(1).leave(soon()).await;
    let refused = ChangeRefused::Quorum(RemovalRefused::LastVoter { id: NodeId(1) });
    assert_eq!(last, Err(AdministerError::Refused(refused)));
    applied(
        cluster
            .node(1)
            .propose(make_once("still"), soon())
            .await
            .unwrap(),
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn five_vote_and_a_sixth_follows() {
    let cluster = Cluster::of(6).await;
    let learner = |status: ClusterStatus| {
        let mut nodes = status.nodes.into_iter();
        nodes
            .find(|node| node.role == MemberRole::Learner)
            .map(|node| node.id.0)
    };
    let sixth = learner(cluster.node(1).status()).unwrap();
    applied(
        cluster
            .node(sixth)
            .propose(make_once("by the learner"), soon())
            .await
            .unwrap(),
    );
    let refused = cluster.node(1).promote(NodeId(sixth), soon()).await;
    assert_eq!(
        refused,
        Err(AdministerError::Refused(ChangeRefused::EnoughVoters(5)))
    );
    let leader = cluster.leader().await;
    let other = cluster
        .ids()
        .into_iter()
        .find(|id| *id != leader && *id != sixth)
        .unwrap();
    cluster.cut(leader);
    cluster.cut(other);
    let rest: Vec<u64> = cluster
        .ids()
        .into_iter()
        .filter(|id| *id != leader && *id != other)
        .collect();
    cluster.leader_among(&rest).await;
    applied(
        cluster
            .node(sixth)
            .propose(make_once("three of five"), soon())
            .await
            .unwrap(),
    );
    cluster.heal();
    cluster.same_state().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_feature_level_rises_when_every_program_knows_more() {
    let mut cluster = Cluster::of(3).await;
    let level = |cluster: &Cluster, id| cluster.node(id).state().feature_level();
    cluster.options.feature_level = 2;
    for id in [3, 2, 1] {
        // Until the last of them is another program, they keep to what it knows.
        assert_eq!(level(&cluster, id), 1);
        cluster.crash(id).await;
        cluster.boot(id).await;
        cluster.leader().await;
        let outcome = cluster
            .node(id)
            .propose(make_once(&format!("by {id}")), soon());
        applied(outcome.await.unwrap());
    }
    eventually("level 2", || {
        [1, 2, 3].iter().all(|id| level(&cluster, *id) == 2)
    })
    .await;
    let fourth = cluster.join().await;
    eventually("the newcomer's", || level(&cluster, fourth) == 2).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_restart_and_nothing_acknowledged_is_lost() {
    let mut cluster = Cluster::of(3).await;
    for n in 0..20 {
        applied(
            cluster
                .node(1)
                .propose(make_once(&format!("w{n}")), soon())
                .await
                .unwrap(),
        );
    }
    for id in cluster.ids() {
        cluster.crash(id).await;
    }
    for id in [1, 2, 3] {
        cluster.boot(id).await;
    }
    for id in [1, 2, 3] {
        let recovery = cluster.node(id).recovery();
        eventually("confirmed", || *recovery.borrow() == Recovery::Current).await;
        assert!((0..20).all(|n| has(cluster.node(id), &format!("w{n}"))));
    }
    applied(
        cluster
            .node(2)
            .propose(make_once("after"), soon())
            .await
            .unwrap(),
    );
    cluster.stop().await;
}

/// A node that nobody answers.
fn lone_config(ledger: Ledger) -> ConsensusConfig {
    let address = "127.0.0.1:1".parse().unwrap();
    ConsensusConfig {
        id: NodeId(1),
        cluster: Cluster::new().id,
        peer: Peer {
            name: "n1".into(),
            raft_address: address,
            api_address: address,
        },
        timing: None,
        ledger,
        patience: Patience::default(),
        connector: Arc::new(CuttableConnector {
            dials: Dials::default(),
            from: 1,
            cuts: Arc::default(),
        }),
        certificates: Certificates::NotUsed,
        log_kept: LOG_KEPT,
    }
}

/// A full disk must never mean that nobody is answered.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_any_space_starts_and_promises_nothing() {
    let dir = tempfile::tempdir().unwrap();
    drop(Storage::open(dir.path(), StorageOptions::default()).unwrap());
    let config = lone_config(Ledger::at(dir.path().join("absent/promise")));
    let storage = Storage::open_without_space(dir.path(), StorageOptions::default());
    let consensus = Consensus::start(config, storage.unwrap()).await.unwrap();
    let status = consensus.status();
    assert_eq!(status.nodes[0].state, NodeState::Failed);
    consensus.shutdown(Instant::now()).await;
}

/// The log fits, and what a start writes beside it does not.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_space_for_its_promise_or_watermark_starts_and_takes_no_part() {
    for file in ["promise.new", "watermark"] {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/full", dir.path().join(file)).unwrap();
        let config = lone_config(Ledger::at(dir.path().join("promise")));
        let storage = Storage::open(dir.path(), StorageOptions::default()).unwrap();
        let consensus = Consensus::start(config, storage).await.unwrap();
        let own = consensus.status().nodes.remove(0);
        assert_eq!(own.state, NodeState::Failed, "{file}");
        let named = file.trim_end_matches(".new");
        assert!(own.problem.contains(named), "{}", own.problem);
        consensus.shutdown(Instant::now()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_consensus_panicked_says_so_and_takes_no_writes() {
    let cluster = Cluster::of(1).await;
    let node = cluster.node(1);
    // What openraft leaves behind then: no word more, and the last one was that all is well.
    node.core
        .is_mute
        .store(true, std::sync::atomic::Ordering::Release);
    let status = node.status();
    let own = status.nodes.iter().find(|own| own.id == NodeId(1)).unwrap();
    assert_eq!(own.state, NodeState::Failed);
    assert!(own.problem.contains("panicked"), "{}", own.problem);
    let refused = node.propose(make_once("late"), soon()).await.unwrap_err();
    assert!(refused.to_string().contains("panicked"), "{refused}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_alone_recovers_stale() {
    let mut cluster = Cluster::of(3).await;
    applied(
        cluster
            .node(1)
            .propose(make_once("there"), soon())
            .await
            .unwrap(),
    );
    cluster.same_state().await;
    for id in cluster.ids() {
        cluster.crash(id).await;
    }
    cluster.boot(2).await;
    let lone = cluster.node(2);
    assert!(
        lone.snapshots().borrow().is_none(),
        "served before it recovered"
    );
    eventually("stale", || *lone.recovery().borrow() == Recovery::Stale).await;
    assert!(lone.snapshots().borrow().is_some() && has(lone, "there"));
    assert!(
        lone.status()
            .nodes
            .iter()
            .any(|node| node.id == NodeId(2) && node.stale)
    );
    cluster.boot(3).await;
    eventually("current", || {
        *cluster.node(2).recovery().borrow() == Recovery::Current
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_node_votes_for_nobody_at_first() {
    let mut cluster = Cluster::of(1).await;
    cluster.crash(1).await;
    let before = Instant::now();
    cluster.boot(1).await;
    assert_eq!(cluster.node(1).leader(), None);
    cluster.leader().await;
    let gate = TIMING.election_timeout_max * 11 / 10;
    assert!(
        before.elapsed() >= gate,
        "it led after {:?}",
        before.elapsed()
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_nobody_is_named_leader_and_no_change_of_the_group_is_begun() {
    let mut cluster = Cluster::of(3).await;
    // A follower is left alone in the first round, the leader in the second.
    for alone_leads in [false, true] {
        let leader = cluster.leader().await;
        let follower = cluster.followers().await[0];
        let left = if alone_leads { leader } else { follower };
        for other in cluster.ids() {
            if other != left {
                cluster.crash(other).await;
            }
        }
        let alone = cluster.node(left);
        eventually("no leader", || alone.status().leader.is_none()).await;
        let own = || {
            alone
                .status()
                .nodes
                .into_iter()
                .find(|node| node.id == NodeId(left))
        };
        eventually("it does not say that it leads", || {
            own().is_some_and(|node| node.state != NodeState::Leader)
        })
        .await;
        let deadline = || Instant::now() + Duration::from_millis(500);
        let no_leader = |result: Result<Change, AdministerError>| {
            assert!(
                matches!(result, Err(AdministerError::NoLeader { .. })),
                "{result:?}"
            );
        };
        let moved = alone.transfer(None, deadline()).await;
        assert!(
            matches!(moved, Err(AdministerError::NoLeader { .. })),
            "{moved:?}"
        );
        no_leader(alone.remove(NodeId(left % 3 + 1), deadline()).await);
        no_leader(alone.promote(NodeId(left), deadline()).await);
        no_leader(alone.leave(deadline()).await);
        for other in 1..=3 {
            if other != left {
                cluster.boot(other).await;
            }
        }
        let back = cluster.leader().await;
        eventually("a leader is named", || {
            cluster.node(left).status().leader == Some(NodeId(back))
        })
        .await;
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_node_is_told_to_join_anew() {
    let mut cluster = Cluster::of(3).await;
    applied(
        cluster
            .node(1)
            .propose(make_once("there"), soon())
            .await
            .unwrap(),
    );
    // With the leader that knows what the node had, and with one that does not.
    for change_leader in [false, true] {
        let wiped = cluster.followers().await[0];
        cluster.crash(wiped).await;
        if change_leader {
            let leader = cluster.leader_among(&cluster.ids()).await;
            cluster.node(leader).transfer(None, soon()).await.unwrap();
        }
        let address = cluster.disks.remove(&wiped).unwrap().address;
        cluster.boot_on(wiped, bind_again(address).await).await;
        let lost = Recovery::Stopped(StopReason::LogLost);
        eventually("it knows", || {
            *cluster.node(wiped).recovery().borrow() == lost
        })
        .await;
        assert!(cluster.node(wiped).snapshots().borrow().is_none());
        let rest: Vec<u64> = cluster
            .ids()
            .into_iter()
            .filter(|id| *id != wiped)
            .collect();
        let told = || {
            let nodes = cluster.node(rest[0]).status().nodes;
            let node = nodes
                .into_iter()
                .find(|node| node.id == NodeId(wiped))
                .unwrap();
            node.state == NodeState::Failed && node.problem.contains("join it anew")
        };
        eventually("its status tells", told).await;
        applied(
            cluster
                .node(rest[0])
                .propose(make_once(&format!("then-{wiped}")), soon())
                .await
                .unwrap(),
        );
        assert_eq!(
            cluster.node(rest[0]).remove(NodeId(wiped), soon()).await,
            Ok(Change::Made)
        );
        cluster.crash(wiped).await;
        cluster.grow(3).await;
    }
    cluster.same_state().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_learns_it_and_stops() {
    let cluster = Cluster::of(3).await;
    let removed = cluster.followers().await[0];
    let other = cluster.ids().into_iter().find(|id| *id != removed).unwrap();
    assert_eq!(
        cluster.node(other).remove(NodeId(removed), soon()).await,
        Ok(Change::Made)
    );
    let stopped = Recovery::Stopped(StopReason::Removed);
    eventually("it knows", || {
        *cluster.node(removed).recovery().borrow() == stopped
    })
    .await;
    let write = cluster
        .node(removed)
        .propose(make_once("late"), soon())
        .await;
    assert!(
        matches!(write, Err(ProposeError::Ended { .. })),
        "{write:?}"
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_stops_hands_over_first() {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let term = cluster.node(leader).leadership().borrow().term;
    let node = cluster.nodes.remove(&leader).unwrap();
    node.consensus.shutdown(soon()).await;
    let rest = cluster.ids();
    let next = cluster.leader_among(&rest).await;
    assert_ne!(next, leader);
    assert_eq!(node.consensus.leadership().borrow().lease_until, None);
    applied(
        cluster
            .node(rest[0])
            .propose(make_once("at once"), soon())
            .await
            .unwrap(),
    );
    // One election, by the hand-over: nobody had to notice a silence.
    assert_eq!(cluster.node(rest[0]).leadership().borrow().term, term + 1);
    node.serving.cancel();
    node.server.await.unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_disk_ends_consensus_but_not_serving() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    applied(
        cluster
            .node(leader)
            .propose(make_once("before"), soon())
            .await
            .unwrap(),
    );
    cluster.disks[&leader].engine.fail_after(0);
    let rest: Vec<u64> = cluster
        .ids()
        .into_iter()
        .filter(|id| *id != leader)
        .collect();
    let broken = cluster.node(leader);
    let write = broken
        .propose(make_once("lost"), Instant::now() + Duration::from_secs(5))
        .await
        .unwrap_err();
    assert!(
        matches!(
            write,
            ProposeError::Unknown { .. } | ProposeError::Ended { .. }
        ),
        "{write:?}"
    );
    cluster.leader_among(&rest).await;
    assert!(!broken.leadership().borrow().holds(Instant::now()));
    applied(
        cluster
            .node(rest[0])
            .propose(make_once("after"), soon())
            .await
            .unwrap(),
    );
    assert!(broken.snapshots().borrow().is_some() && has(broken, "before"));
    let own = broken.status();
    let told = own
        .nodes
        .iter()
        .find(|node| node.id == NodeId(leader))
        .unwrap();
    assert_eq!(told.state, NodeState::Failed);
    assert!(told.problem.contains("storage failed"), "{}", told.problem);
    let refused = broken.propose(make_once("more"), soon()).await;
    assert!(
        matches!(refused, Err(ProposeError::Ended { .. })),
        "{refused:?}"
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_disk_short_of_space_stops_nobody_and_does_not_lead() {
    let mut cluster = Cluster::new();
    cluster.grow(2).await;
    cluster.options.low_space = Some(u64::MAX);
    cluster.grow(3).await;
    let first = cluster.node(1);
    let told = || {
        let status = first.status();
        let third = status.nodes.iter().find(|node| node.id == NodeId(3));
        third.is_some_and(|node| node.problem.contains("watermark"))
    };
    eventually("it is told", told).await;
    applied(first.propose(make_once("with"), soon()).await.unwrap());

    first.transfer(Some(NodeId(3)), soon()).await.unwrap();
    let third = cluster.node(3);
    eventually("it hands over", || {
        third.leader().is_some_and(|leader| leader != NodeId(3))
    })
    .await;
    applied(first.propose(make_once("after"), soon()).await.unwrap());

    // Without the second node there is a quorum only with the one that is short of space.
    cluster.crash(2).await;
    cluster.leader_among(&[1, 3]).await;
    let refused = loop {
        match cluster.node(1).propose(make_once("more"), soon()).await {
            Err(ProposeError::Refused(refused)) => break refused,
            Ok(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            Err(other) => panic!("{other}"),
        }
    };
    assert!(
        matches!(
            refused,
            ProposalRefused::LowSpace {
                node: NodeId(3),
                ..
            }
        ),
        "{refused:?}"
    );
    let away = StateChange::DeleteToken { id: "with".into() };
    let away = command(vec![away]);
    applied(cluster.node(1).propose(away, soon()).await.unwrap());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_gets_a_snapshot_when_the_log_is_gone() {
    let mut cluster = Cluster::new();
    cluster.options.snapshot_log_entries = 40;
    cluster.log_kept = 5;
    cluster.grow(1).await;
    for n in 0..200 {
        applied(
            cluster
                .node(1)
                .propose(make_once(&format!("w{n}")), soon())
                .await
                .unwrap(),
        );
    }
    let purged = || {
        cluster
            .node(1)
            .core
            .metrics()
            .purged
            .map_or(0, |id| id.index)
    };
    eventually("the log is purged", || purged() > 0).await;
    cluster.grow(3).await;
    cluster.same_state().await;
    assert!((0..200).all(|n| has(cluster.node(3), &format!("w{n}"))));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_that_falls_silent_keeps_no_other_from_sending_a_snapshot() {
    use pontoon_proto::v1::{RaftMessage, raft_client::RaftClient};
    let mut cluster = Cluster::new();
    cluster.options.snapshot_log_entries = 40;
    cluster.log_kept = 5;
    cluster.silence = SenderSilence {
        first: LONG,
        between: Duration::from_millis(300),
    };
    cluster.grow(1).await;
    for n in 0..100 {
        let write = make_once(&format!("w{n}"));
        applied(cluster.node(1).propose(write, soon()).await.unwrap());
    }
    let purged = || cluster.node(1).core.metrics().purged.is_some();
    eventually("the log is purged", purged).await;
    cluster.cuts.write().unwrap().insert((1, 2)); // the leader's snapshot waits
    assert_eq!(cluster.join().await, 2);
    let channel = PlaintextConnector.channel(NodeId(2), cluster.disks[&2].address);
    let client = RaftClient::new(channel);
    let mut says_nothing = client.clone();
    let says_nothing =
        tokio::spawn(async move { says_nothing.snapshot(stream::pending()).await.map(drop) });
    let head = network::SnapshotHead {
        vote: types::Vote::new_committed(1, 1),
        meta: types::SnapshotMeta::default(),
        bytes: 10,
    };
    let head = RaftMessage {
        cluster_id: cluster.id.0.clone(),
        from: 1,
        to: 2,
        protocol: network::PROTOCOL,
        payload: postcard::to_stdvec(&head).unwrap().into(),
        election_timeout_max_ms: 800,
        to_is_voter: false,
        acknowledged: None,
    };
    let begun = stream::iter([head]).chain(stream::pending());
    let given_up = client.clone().snapshot(begun).await.unwrap_err();
    assert_eq!(given_up.code(), tonic::Code::DeadlineExceeded, "{given_up}");
    assert!(!says_nothing.is_finished());
    cluster.heal();
    eventually("the leader's snapshot is there", || {
        has(cluster.node(2), "w99")
    })
    .await;
    says_nothing.abort();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_tells_every_node_and_a_silent_one() {
    let mut cluster = Cluster::of(3).await;
    let healthy = |status: &ClusterStatus| {
        status.nodes.len() == 3
            && status
                .nodes
                .iter()
                .all(|n| n.pid == Some(std::process::id()) && n.lag == Some(0))
            && status.alarms.is_empty()
    };
    for id in cluster.ids() {
        eventually("all answer", || healthy(&cluster.node(id).status())).await;
    }
    let dead = cluster.followers().await[0];
    cluster.crash(dead).await;
    for id in cluster.ids() {
        let state = || {
            let nodes = cluster.node(id).status().nodes;
            nodes
                .into_iter()
                .find(|node| node.id == NodeId(dead))
                .map(|node| node.state)
        };
        eventually("its silence is told", || {
            state() == Some(NodeState::Unreachable)
        })
        .await;
    }
    cluster.stop().await;
}

/// A leader of another cluster has the address where the leader of ours is believed to be.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_foreign_leader_refuses_is_certainly_not_written() {
    let (ours, mut foreign) = (Cluster::of(1).await, Cluster::new());
    foreign.id = ClusterId("decaf".into());
    foreign.grow(1).await;
    let target = network::Target {
        id: NodeId(1),
        address: foreign.disks[&1].address,
    };
    let forwarder = &ours.node(1).core.forwarder;
    let many = (0..50).map(|n| {
        let command = make_once(&format!("w{n}"));
        let request = messages::ProposeRequest {
            command: types::EncodedCommand(crate::wire::command::encode(&command)),
            wait_ms: 1000,
        };
        forwarder.forward(target, request, LONG)
    });
    for answer in futures::future::join_all(many).await {
        let Err(network::CallError::Refused { problem, .. }) = answer else {
            panic!("{answer:?}")
        };
        assert!(problem.contains("belongs to cluster"), "{problem}");
    }
    foreign.stop().await;
    ours.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_and_strangers_are_refused() {
    use pontoon_proto::v1::{RaftMessage, raft_client::RaftClient};
    let cluster = Cluster::of(1).await;
    let address = cluster.disks[&1].address;
    let channel = PlaintextConnector.channel(NodeId(1), address);
    let mut client = RaftClient::new(channel);
    let good = RaftMessage {
        cluster_id: cluster.id.0.clone(),
        from: 2,
        to: 1,
        protocol: network::PROTOCOL,
        payload: vec![0xff; 100].into(),
        election_timeout_max_ms: 800,
        to_is_voter: false,
        acknowledged: None,
    };
    let garbage = client.heartbeat(good.clone()).await.unwrap_err();
    assert_eq!(garbage.code(), tonic::Code::InvalidArgument, "{garbage}");
    let stream = tokio_stream::iter([good.clone()]);
    let mut answers = client.append(stream).await.unwrap().into_inner();
    let garbage = answers.message().await.unwrap_err();
    assert_eq!(garbage.code(), tonic::Code::InvalidArgument, "{garbage}");
    let stranger = RaftMessage {
        cluster_id: "other".into(),
        ..good.clone()
    };
    let stranger = client.vote(stranger).await.unwrap_err();
    assert_eq!(stranger.code(), tonic::Code::PermissionDenied, "{stranger}");
    assert!(stranger.message().contains("cluster other"), "{stranger}");
    let other = client
        .status(RaftMessage {
            to: 7,
            ..good.clone()
        })
        .await
        .unwrap_err();
    assert!(other.message().contains("meant for node 7"), "{other}");
    let parts = vec![good.clone(), good];
    let snapshot = client
        .snapshot(tokio_stream::iter(parts))
        .await
        .unwrap_err();
    assert_eq!(snapshot.code(), tonic::Code::InvalidArgument, "{snapshot}");
    {
        use tokio::io::AsyncWriteExt;
        let mut raw = TcpStream::connect(address).await.unwrap();
        raw.write_all(&[0xa5; 4096]).await.unwrap();
    }
    applied(
        cluster
            .node(1)
            .propose(make_once("alive"), soon())
            .await
            .unwrap(),
    );
    cluster.stop().await;
}
