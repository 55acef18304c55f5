//! A group of one in memory, and a node around it: for tests of the API and of its clients.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use tokio::{
    net::TcpListener,
    sync::{Notify, watch},
    task::JoinHandle,
};
use tonic::transport::Channel;

use super::{
    Api,
    group::{
        Applied, BackendHealth, BackendVerdict, DnsAnswer, FlushScope, Group, HeldVip, NodeControl,
        NodeReport, Reloaded, Standing,
    },
};
use crate::{
    config::reserved::Reserved,
    enrol::identity_file::StoredCertificate,
    model::{
        name::Name,
        node::{ClusterId, Member, NodeId},
        rrset::RecordType,
    },
    pki::{identity::Identity, verify::ClientAuth},
    state::{
        State,
        command::{Change, Command, NewMember, RequestId, Secret, UnixMillis},
        outcome::Outcome,
    },
    transport::{
        Security,
        accept::Incoming,
        credentials::SharedCredentials,
        port::{Port, PortLimits},
    },
    wire::error::{Failure, FailureCode},
};

/// A group whose log is a counter.
pub struct MemoryGroup {
    states: watch::Sender<Applied>,
    applying: Mutex<()>,
    /// How many of the next proposals find no leader.
    pub leaderless: AtomicU32,
    /// How many of the next proposals are applied, and their answers lost.
    pub lossy: AtomicU32,
    /// Proposals that came.
    pub proposals: AtomicU32,
    /// Reads of the newest state that came.
    pub catch_ups: AtomicU32,
    /// What this node shows until it catches up; none: the newest.
    behind: Mutex<Option<Applied>>,
    /// When set, the state here is the cluster's no longer, and this is why.
    pub gone: watch::Sender<Option<Failure>>,
    /// When set, the node has no group, and this is why.
    pub outside: Mutex<Option<Failure>>,
    /// Whether the node is asked to stop.
    pub stopped: watch::Sender<bool>,
    /// When set, a removal succeeds as soon as this is notified.
    pub removal: Mutex<Option<Removal>>,
}

/// A removal that a test holds up.
#[derive(Clone, Default)]
pub struct Removal {
    pub begun: Arc<Notify>,
    pub go_on: Arc<Notify>,
}

impl MemoryGroup {
    /// A cluster of one node.
    pub fn new() -> Arc<Self> {
        let cluster = ClusterId("c0ffee00c0ffee00c0ffee00c0ffee00".into());
        let authority =
            crate::pki::authority::Authority::create(&cluster, std::time::SystemTime::now());
        let first = NewMember {
            name: "n1".into(),
            raft_address: "127.0.0.1:1".parse().expect("an address"),
            api_address: "127.0.0.1:2".parse().expect("an address"),
        };
        let command = Command {
            request: RequestId(1),
            born: 0,
            proposed_at: UnixMillis(0),
            author: "init".into(),
            preconditions: vec![],
            changes: vec![Change::InitCluster {
                cluster,
                ca: Secret(authority.expect("an authority").to_pem()),
                first,
            }],
        };
        let mut state = State::default();
        let outcome = state.apply(1, &command);
        assert!(matches!(outcome, Outcome::Applied(_)), "{outcome:?}");
        Arc::new(Self {
            states: watch::Sender::new(Applied {
                index: 1,
                state: Arc::new(state),
            }),
            applying: Mutex::new(()),
            leaderless: AtomicU32::new(0),
            lossy: AtomicU32::new(0),
            proposals: AtomicU32::new(0),
            catch_ups: AtomicU32::new(0),
            behind: Mutex::default(),
            gone: watch::Sender::default(),
            outside: Mutex::default(),
            stopped: watch::Sender::new(false),
            removal: Mutex::default(),
        })
    }

    /// The id of the cluster.
    pub fn cluster(&self) -> ClusterId {
        self.state().cluster().expect("it has begun").clone()
    }

    /// A certificate of the cluster's authority, made at `now`.
    pub fn certificate(&self, identity: &Identity, now: SystemTime) -> StoredCertificate {
        let authority = super::cluster::authority(&self.state()).expect("an authority");
        crate::enrol::init::certificate(&authority, identity, &[], now).expect("signed")
    }

    fn take(counter: &AtomicU32) -> bool {
        counter
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
            .is_ok()
    }

    /// From now on this node shows the present state, whatever is applied, until somebody asks for the newest.
    pub fn fall_behind(&self) {
        let present = self.states.borrow().clone();
        *self.behind.lock().expect("no test panics here") = Some(present);
    }

    /// Applies changes that another node took.
    pub fn apply_elsewhere(&self, changes: Vec<Change>) {
        let command = Command {
            request: super::group::random_request(),
            born: 1,
            proposed_at: UnixMillis(0),
            author: "another node".into(),
            preconditions: vec![],
            changes,
        };
        let outcome = self.apply(&command);
        assert!(matches!(outcome, Outcome::Applied(_)), "{outcome:?}");
    }

    fn apply(&self, command: &Command) -> Outcome {
        let _guard = self.applying.lock().expect("no test panics while applying");
        let Applied { index, state } = self.states.borrow().clone();
        let mut state = state.as_ref().clone();
        let outcome = state.apply(index + 1, command);
        self.states.send_replace(Applied {
            index: index + 1,
            state: Arc::new(state),
        });
        outcome
    }
}

#[tonic::async_trait]
impl Group for MemoryGroup {
    async fn propose(&self, command: Command, _: Instant) -> Result<Outcome, Failure> {
        self.proposals.fetch_add(1, Ordering::SeqCst);
        if Self::take(&self.leaderless) {
            return Err(Failure::new(
                FailureCode::NoLeader,
                "cluster",
                "no leader",
                "",
            ));
        }
        let outcome = self.apply(&command);
        match Self::take(&self.lossy) {
            true => Err(Failure::new(
                FailureCode::UnknownOutcome,
                "cluster",
                "lost",
                "",
            )),
            false => Ok(outcome),
        }
    }

    async fn catch_up(&self, _: Instant) -> Result<(), Failure> {
        self.catch_ups.fetch_add(1, Ordering::SeqCst);
        *self.behind.lock().expect("no test panics here") = None;
        Ok(())
    }

    fn applied(&self) -> Applied {
        let behind = self.behind.lock().expect("no test panics here").clone();
        behind.unwrap_or_else(|| self.states.borrow().clone())
    }

    async fn applied_after(&self, revision: u64) -> Option<Applied> {
        let mut states = self.states.subscribe();
        let newer = states
            .wait_for(|applied| applied.state.revision() > revision)
            .await;
        newer.ok().map(|applied| applied.clone())
    }

    fn standing(&self) -> Standing {
        Standing {
            id: NodeId(1),
            leader: Some(NodeId(1)),
            term: 1,
            role: "leader",
            voters: [NodeId(1)].into(),
            stale: false,
            problem: String::new(),
            unfit: String::new(),
            refusal: std::time::Duration::from_millis(280),
            flush: std::time::Duration::from_millis(2),
        }
    }

    fn gone(&self) -> Option<Failure> {
        self.gone.borrow().clone()
    }

    async fn until_gone(&self) -> Failure {
        let mut gone = self.gone.subscribe();
        let why = gone.wait_for(Option::is_some).await;
        why.expect("the group lives").clone().expect("just seen")
    }

    async fn transfer(&self, to: Option<NodeId>, _: Instant) -> Result<NodeId, Failure> {
        self.proposals.fetch_add(1, Ordering::SeqCst);
        if Self::take(&self.leaderless) {
            let problem = "no leader";
            return Err(Failure::new(FailureCode::NoLeader, "cluster", problem, ""));
        }
        if Self::take(&self.lossy) {
            let problem = "lost";
            return Err(Failure::new(
                FailureCode::UnknownOutcome,
                "cluster",
                problem,
                "",
            ));
        }
        Ok(to.unwrap_or(NodeId(1)))
    }

    async fn promote(&self, _: NodeId, _: Instant) -> Result<bool, Failure> {
        Ok(false)
    }

    async fn remove(&self, id: NodeId, _: Instant) -> Result<bool, Failure> {
        let held = self.removal.lock().expect("no test panics here").clone();
        if let Some(Removal { begun, go_on }) = held {
            begun.notify_one();
            go_on.notified().await;
            return Ok(true);
        }
        let problem = "is the only voter";
        Err(Failure::new(
            FailureCode::Conflict,
            format!("node {id}"),
            problem,
            "",
        ))
    }
}

/// A node around a group, and how its API is secured.
pub struct MemoryNode(pub Arc<MemoryGroup>, pub Security);

impl MemoryNode {
    /// With a certificate of its own cluster's authority.
    pub fn with_certificate() -> Self {
        let group = MemoryGroup::new();
        let own = Identity::node(group.cluster(), NodeId(1));
        let credentials = group.certificate(&own, SystemTime::now()).credentials();
        let security = Security::Tls(SharedCredentials::new(credentials.expect("sound")));
        Self(group, security)
    }
}

#[tonic::async_trait]
impl NodeControl for MemoryNode {
    fn group(&self) -> Option<Arc<dyn Group>> {
        let outside = self.0.outside.lock().expect("no test panics here");
        outside.is_none().then(|| self.0.clone() as Arc<dyn Group>)
    }

    fn outside(&self) -> Failure {
        let outside = self.0.outside.lock().expect("no test panics here");
        outside.clone().unwrap_or_else(super::group::no_group)
    }

    fn report(&self) -> NodeReport {
        let state = self.0.state();
        let backends = state.snapshot().pools.values().flat_map(|pool| {
            let name = pool.name.to_string();
            pool.backends.iter().map(move |backend| BackendVerdict {
                pool: name.clone(),
                backend: backend.name.to_string(),
                health: BackendHealth::Down,
                connections: 2,
                problem: "health check: Connection refused".into(),
                since: Duration::from_secs(61),
            })
        });
        let held = state.snapshot().vips.keys().map(|address| HeldVip {
            address: *address,
            fence: "loopback".into(),
        });
        NodeReport {
            name: "n1".into(),
            pid: std::process::id(),
            api_address: "127.0.0.1:2".parse().ok(),
            backends: backends.collect(),
            held_vips: held.collect(),
            ..NodeReport::default()
        }
    }

    fn reserved(&self) -> Reserved {
        Reserved::default()
    }

    fn channel(&self, member: &Member) -> Channel {
        Channel::from_shared(format!("http://{}", member.api_address))
            .expect("a URI")
            .connect_lazy()
    }

    fn authority_fingerprint(&self) -> Option<String> {
        match &self.1 {
            Security::Tls(shared) => shared.current().authority_fingerprint(),
            Security::Plain => None,
        }
    }

    async fn reload(&self) -> Result<Reloaded, Failure> {
        Ok(Reloaded {
            applied: vec!["logging.level = \"debug\"".into()],
            needs_restart: vec![],
        })
    }

    fn dns_counters(&self) -> Vec<(String, u64)> {
        vec![("cache_hits".into(), 3), ("queries_udp_ipv4".into(), 7)]
    }

    fn dns_flush(&self, what: &FlushScope) -> u64 {
        match what {
            FlushScope::All => 10,
            FlushScope::Name(_) => 1,
            FlushScope::Subtree(_) => 2,
        }
    }

    async fn dns_query(&self, name: &Name, rtype: RecordType) -> Result<DnsAnswer, Failure> {
        use hickory_proto::op::{Message, OpCode};
        // Its upstream servers never answer.
        if name.to_string().starts_with("silent.") {
            std::future::pending::<()>().await;
        }
        let mut message = Message::response(0, OpCode::Query);
        message.metadata.authoritative = true;
        let name = hickory_proto::rr::Name::from_ascii(name.to_string()).expect("plain");
        let rtype = hickory_proto::rr::RecordType::from(rtype.0);
        message.add_query(hickory_proto::op::Query::query(name, rtype));
        Ok(DnsAnswer {
            message: message.to_vec().expect("encodes"),
            source: "zone".into(),
        })
    }

    fn stop(&self) {
        self.0.stopped.send_replace(true);
    }
}

/// An API over plain TCP on a free port. It ends when this is dropped.
pub struct Served {
    pub address: SocketAddr,
    pub group: Arc<MemoryGroup>,
    task: JoinHandle<()>,
}

impl Served {
    pub async fn start() -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    /// As `start`, at an address.
    pub async fn start_at(address: SocketAddr) -> Self {
        Self::start_secured(address, Security::Plain).await
    }

    pub async fn start_secured(address: SocketAddr, security: Security) -> Self {
        Self::start_of(MemoryGroup::new(), address, security).await
    }

    /// A node with a certificate of its own cluster's authority.
    pub async fn start_with_certificate() -> Self {
        let MemoryNode(group, security) = MemoryNode::with_certificate();
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        Self::start_of(group, anywhere, security).await
    }

    async fn start_of(group: Arc<MemoryGroup>, address: SocketAddr, security: Security) -> Self {
        let listener = TcpListener::bind(address).await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let port = Port::new("api", PortLimits::of(64));
        let node = MemoryNode(Arc::clone(&group), security.clone());
        let incoming = Incoming::tcp(listener, security, ClientAuth::Optional, port);
        let api = Api::new(Arc::new(node));
        let task = tokio::spawn(async move {
            let ended = api.serve(incoming, std::future::pending()).await;
            assert!(ended.is_ok(), "{ended:?}");
        });
        Self {
            address,
            group,
            task,
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}
