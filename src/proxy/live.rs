//! What the worker threads share: listeners, pools and backends as they are being served, with their counters.
//!
//! `control` alone adds, changes and removes these; connections hold references and count. The only lock on a connection's
//! way is that of its pool while a backend is chosen; it is never held across an await.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;

use super::{
    ending::Ending,
    health::{Health, Verdict},
    pipe::PipePool,
    probing::ProbeBudget,
    select::{Candidate, Selector},
    status::SocketState,
};
use crate::config::reserved::Owner;
use crate::model::{
    label::Label,
    listener::Listener,
    pool::{Backend, BackendState, Policy, Pool},
};

/// The lock's data even if a holder panicked: everything guarded here is valid between any two statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Everything that is being served, by name. Read by `status` and the metrics.
#[derive(Debug, Default)]
pub struct Directory {
    listeners: Mutex<BTreeMap<Label, Arc<LiveListener>>>,
    pools: Mutex<BTreeMap<Label, Arc<LivePool>>>,
}

impl Directory {
    pub fn listeners(&self) -> Vec<Arc<LiveListener>> {
        lock(&self.listeners).values().cloned().collect()
    }

    pub fn listener(&self, name: &Label) -> Option<Arc<LiveListener>> {
        lock(&self.listeners).get(name).cloned()
    }

    pub fn add_listener(&self, listener: Arc<LiveListener>) {
        lock(&self.listeners).insert(listener.name.clone(), listener);
    }

    pub fn remove_listener(&self, name: &Label) -> Option<Arc<LiveListener>> {
        lock(&self.listeners).remove(name)
    }

    pub fn pools(&self) -> Vec<Arc<LivePool>> {
        lock(&self.pools).values().cloned().collect()
    }

    pub fn pool(&self, name: &Label) -> Option<Arc<LivePool>> {
        lock(&self.pools).get(name).cloned()
    }

    pub fn add_pool(&self, pool: Arc<LivePool>) {
        lock(&self.pools).insert(pool.name.clone(), pool);
    }

    pub fn remove_pool(&self, name: &Label) {
        lock(&self.pools).remove(name);
    }
}

/// Connections of this node over all listeners, and how many there may be.
#[derive(Debug)]
pub struct Budget {
    connections: AtomicU32,
    limit: u32,
}

impl Budget {
    pub fn new(limit: u32) -> Self {
        Self {
            connections: AtomicU32::new(0),
            limit,
        }
    }

    pub fn connections(&self) -> u32 {
        self.connections.load(Relaxed)
    }

    pub fn limit(&self) -> u32 {
        self.limit
    }
}

/// Listening sockets of this node, and how many there may be. `control` alone opens and closes them.
#[derive(Debug)]
pub struct Sockets {
    open: AtomicU32,
    limit: u32,
}

impl Sockets {
    pub fn new(limit: u32) -> Self {
        Self {
            open: AtomicU32::new(0),
            limit,
        }
    }

    pub fn open(&self) -> u32 {
        self.open.load(Relaxed)
    }

    pub fn limit(&self) -> u32 {
        self.limit
    }

    pub fn note_opened(&self, count: usize) {
        self.open.fetch_add(count as u32, Relaxed);
    }

    pub fn note_closed(&self, count: usize) {
        self.open.fetch_sub(count as u32, Relaxed);
    }
}

/// What bounds this node's proxy as a whole.
#[derive(Clone, Debug)]
pub struct Bounds {
    pub connections: Arc<Budget>,
    pub pipes: Arc<PipePool>,
    pub probes: Arc<ProbeBudget>,
    pub sockets: Arc<Sockets>,
}

/// Adds one unless that would exceed the limit.
fn take_one(counter: &AtomicU32, limit: u32) -> bool {
    counter
        .fetch_update(Relaxed, Relaxed, |n| (n < limit).then_some(n + 1))
        .is_ok()
}

/// Bytes moved: from clients, and to clients.
#[derive(Debug, Default)]
pub struct Traffic {
    pub upward: AtomicU64,
    pub downward: AtomicU64,
}

impl Traffic {
    pub fn upward(&self) -> u64 {
        self.upward.load(Relaxed)
    }

    pub fn downward(&self) -> u64 {
        self.downward.load(Relaxed)
    }
}

/// A listener as it is being served.
#[derive(Debug)]
pub struct LiveListener {
    pub name: Label,
    /// For connections accepted from now on; those that exist keep what they began with.
    pub settings: ArcSwap<ListenerSettings>,
    /// Cancelled to end its connections.
    pub end: CancellationToken,
    pub traffic: Traffic,
    connections: AtomicU32,
    accepted: AtomicU64,
    refused: AtomicU64,
    accept_errors: AtomicU64,
    endings: [AtomicU64; Ending::ALL.len()],
    sockets: Mutex<BTreeMap<SocketAddr, SocketState>>,
}

/// What a listener does with a connection.
#[derive(Debug)]
pub struct ListenerSettings {
    pub pool_name: Label,
    /// None if there is no pool of that name.
    pub pool: Option<Arc<LivePool>>,
    pub idle_timeout: Duration,
    pub max_connections: u32,
}

impl ListenerSettings {
    pub fn new(listener: &Listener, pool: Option<Arc<LivePool>>) -> Self {
        Self {
            pool_name: listener.pool.clone(),
            pool,
            idle_timeout: listener.idle_timeout,
            max_connections: listener.max_connections,
        }
    }
}

impl LiveListener {
    pub fn new(name: Label, settings: ListenerSettings, end: CancellationToken) -> Self {
        Self {
            name,
            settings: ArcSwap::from_pointee(settings),
            end,
            traffic: Traffic::default(),
            connections: AtomicU32::new(0),
            accepted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            accept_errors: AtomicU64::new(0),
            endings: Default::default(),
            sockets: Mutex::default(),
        }
    }

    /// A place for one more connection; None, and counted as refused, when the listener or the node is full.
    pub fn admit(self: &Arc<Self>, budget: &Arc<Budget>) -> Option<Admission> {
        let limit = self.settings.load().max_connections;
        if !take_one(&self.connections, limit) {
            self.refused.fetch_add(1, Relaxed);
            return None;
        }
        if !take_one(&budget.connections, budget.limit) {
            self.connections.fetch_sub(1, Relaxed);
            self.refused.fetch_add(1, Relaxed);
            return None;
        }
        self.accepted.fetch_add(1, Relaxed);
        Some(Admission {
            listener: self.clone(),
            budget: budget.clone(),
        })
    }

    pub fn count_accept_error(&self) {
        self.accept_errors.fetch_add(1, Relaxed);
    }

    pub fn count_ending(&self, ending: Ending) {
        if let Some(counter) = self.endings.get(ending as usize) {
            counter.fetch_add(1, Relaxed);
        }
    }

    pub fn connections(&self) -> u32 {
        self.connections.load(Relaxed)
    }

    pub fn accepted(&self) -> u64 {
        self.accepted.load(Relaxed)
    }

    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    pub fn accept_errors(&self) -> u64 {
        self.accept_errors.load(Relaxed)
    }

    pub fn endings(&self) -> impl Iterator<Item = (Ending, u64)> {
        Ending::ALL
            .into_iter()
            .zip(self.endings.iter().map(|count| count.load(Relaxed)))
    }

    pub fn sockets(&self) -> BTreeMap<SocketAddr, SocketState> {
        lock(&self.sockets).clone()
    }

    pub fn note_socket(&self, address: SocketAddr, state: SocketState) {
        lock(&self.sockets).insert(address, state);
    }

    pub fn forget_socket(&self, address: SocketAddr) {
        lock(&self.sockets).remove(&address);
    }

    /// Notes which addresses the node keeps to itself, and returns those that were not noted before.
    pub fn withhold(&self, withheld: &BTreeMap<SocketAddr, Owner>) -> Vec<(SocketAddr, Owner)> {
        let mut sockets = lock(&self.sockets);
        sockets.retain(|address, state| {
            !matches!(state, SocketState::Withheld { .. }) || withheld.contains_key(address)
        });
        let mut news = Vec::new();
        for (address, by) in withheld {
            let before = sockets.insert(*address, SocketState::Withheld { by: *by });
            if before.is_none() {
                news.push((*address, *by));
            }
        }
        news
    }
}

/// A connection's place in its listener's limit and in the node's; given back when dropped.
#[derive(Debug)]
pub struct Admission {
    listener: Arc<LiveListener>,
    budget: Arc<Budget>,
}

impl Admission {
    pub fn listener(&self) -> &Arc<LiveListener> {
        &self.listener
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.listener.connections.fetch_sub(1, Relaxed);
        self.budget.connections.fetch_sub(1, Relaxed);
    }
}

/// A pool as it is being served.
#[derive(Debug)]
pub struct LivePool {
    pub name: Label,
    seed: u64,
    members: Mutex<Members>,
}

#[derive(Debug)]
struct Members {
    policy: Policy,
    connect: ConnectSettings,
    members: Vec<Member>,
    selector: Selector,
    /// Reused by every choice, so that choosing allocates nothing.
    candidates: Vec<Candidate>,
}

/// A backend with what its pool says of it.
#[derive(Clone, Debug)]
pub struct Member {
    pub backend: Arc<LiveBackend>,
    pub weight: u16,
    pub state: BackendState,
}

/// How a pool's backends are connected to.
#[derive(Clone, Copy, Debug)]
pub struct ConnectSettings {
    pub timeout: Duration,
    /// Further backends tried after the first.
    pub retries: u8,
}

impl LivePool {
    /// Without backends; they are added one by one.
    pub fn new(pool: &Pool, seed: u64) -> Self {
        let members = Members {
            policy: pool.policy,
            connect: ConnectSettings {
                timeout: pool.connect_timeout,
                retries: pool.connect_retries,
            },
            members: Vec::new(),
            selector: Selector::new(pool.policy, [], seed),
            candidates: Vec::new(),
        };
        Self {
            name: pool.name.clone(),
            seed,
            members: Mutex::new(members),
        }
    }

    pub fn change_settings(&self, pool: &Pool) {
        let mut members = lock(&self.members);
        members.policy = pool.policy;
        members.connect = ConnectSettings {
            timeout: pool.connect_timeout,
            retries: pool.connect_retries,
        };
        members.start_anew(self.seed);
    }

    pub fn policy(&self) -> Policy {
        lock(&self.members).policy
    }

    pub fn connect_settings(&self) -> ConnectSettings {
        lock(&self.members).connect
    }

    /// Sorted by name.
    pub fn members(&self) -> Vec<Member> {
        lock(&self.members).members.clone()
    }

    pub fn add(&self, member: Member) {
        let mut members = lock(&self.members);
        let name = member.backend.name.clone();
        let place = members.members.partition_point(|m| m.backend.name < name);
        members.members.insert(place, member);
        members.start_anew(self.seed);
    }

    pub fn remove(&self, backend: &Label) -> Option<Arc<LiveBackend>> {
        let mut members = lock(&self.members);
        let place = members
            .members
            .iter()
            .position(|m| m.backend.name == *backend)?;
        let member = members.members.remove(place);
        members.start_anew(self.seed);
        Some(member.backend)
    }

    /// Takes on a changed weight or state. Disabling ends the backend's connections.
    pub fn change(&self, backend: &Backend) {
        let mut members = lock(&self.members);
        let Some(member) = members
            .members
            .iter_mut()
            .find(|m| m.backend.name == backend.name)
        else {
            return;
        };
        member.weight = backend.weight;
        member.state = backend.state;
        if backend.state == BackendState::Disabled {
            member.backend.end_connections();
        }
        members.start_anew(self.seed);
    }

    /// Chooses a backend that is not among `tried` and counts the connection to it.
    pub fn choose(&self, client: IpAddr, tried: &[Arc<LiveBackend>]) -> Option<BackendSlot> {
        let mut members = lock(&self.members);
        members.choose(client, tried)
    }
}

impl Members {
    fn start_anew(&mut self, seed: u64) {
        let names = self.members.iter().map(|m| &m.backend.name);
        self.selector = Selector::new(self.policy, names, seed);
    }

    fn choose(&mut self, client: IpAddr, tried: &[Arc<LiveBackend>]) -> Option<BackendSlot> {
        let candidate = |member: &Member| Candidate {
            available: member.may_take_connections(),
            tried: tried.iter().any(|t| Arc::ptr_eq(t, &member.backend)),
            weight: member.weight,
            connections: member.backend.connections(),
        };
        self.candidates.clear();
        self.candidates.extend(self.members.iter().map(candidate));
        let index = self.selector.choose(&self.candidates, client)?;
        self.members
            .get(index)
            .map(|member| BackendSlot::new(member.backend.clone()))
    }
}

impl Member {
    pub fn may_take_connections(&self) -> bool {
        self.state == BackendState::Enabled && self.weight > 0 && self.backend.is_up()
    }
}

/// A backend as it is being served.
#[derive(Debug)]
pub struct LiveBackend {
    pub name: Label,
    pub address: SocketAddr,
    pub traffic: Traffic,
    up: AtomicBool,
    connections: AtomicU32,
    connected: AtomicU64,
    connect_failures: AtomicU64,
    probes: AtomicU64,
    probes_failed: AtomicU64,
    probes_unmade: AtomicU64,
    report: Mutex<Report>,
    /// Cancelled to end the connections of the moment.
    end: Mutex<CancellationToken>,
}

/// What was last seen of a backend.
#[derive(Clone, Debug)]
pub struct Report {
    pub verdict: Verdict,
    /// When the verdict last changed, or the backend was added.
    pub since: Instant,
    /// Whether a health check watches it; unchecked backends count as up.
    pub checked: bool,
    /// No probe has finished yet.
    pub presumed: bool,
    /// Results in a row that speak against the verdict.
    pub against: u8,
    /// What went wrong at the last failed probe or connection attempt, and when.
    pub last_error: Option<(String, Instant)>,
}

impl LiveBackend {
    pub fn new(backend: &Backend, now: Instant) -> Self {
        Self {
            name: backend.name.clone(),
            address: backend.address,
            traffic: Traffic::default(),
            up: AtomicBool::new(true),
            connections: AtomicU32::new(0),
            connected: AtomicU64::new(0),
            connect_failures: AtomicU64::new(0),
            probes: AtomicU64::new(0),
            probes_failed: AtomicU64::new(0),
            probes_unmade: AtomicU64::new(0),
            report: Mutex::new(Report {
                verdict: Verdict::Up,
                since: now,
                checked: false,
                presumed: true,
                against: 0,
                last_error: None,
            }),
            end: Mutex::default(),
        }
    }

    pub fn is_up(&self) -> bool {
        self.up.load(Relaxed)
    }

    /// Records a probe's outcome and the verdict that follows from it.
    pub fn note_probe(&self, health: &Health, error: Option<String>, now: Instant) {
        self.probes.fetch_add(1, Relaxed);
        self.probes_failed
            .fetch_add(u64::from(error.is_some()), Relaxed);
        self.note_health(health, now);
        if let Some(error) = error {
            lock(&self.report).last_error = Some((error, now));
        }
    }

    /// Records that a probe could not be made for want of something on this node.
    pub fn note_unmade_probe(&self) {
        self.probes_unmade.fetch_add(1, Relaxed);
    }

    /// Records that a health check watches this backend, and what it says so far.
    pub fn note_health(&self, health: &Health, now: Instant) {
        let mut report = lock(&self.report);
        if report.verdict != health.verdict() {
            report.since = now;
        }
        report.verdict = health.verdict();
        report.checked = true;
        report.presumed = health.is_presumed();
        report.against = health.against();
        self.up.store(health.verdict() == Verdict::Up, Relaxed);
    }

    /// Records that no health check watches this backend any more: it counts as up.
    pub fn note_unchecked(&self, now: Instant) {
        let mut report = lock(&self.report);
        if report.verdict != Verdict::Up {
            report.since = now;
        }
        report.verdict = Verdict::Up;
        report.checked = false;
        report.presumed = true;
        report.against = 0;
        self.up.store(true, Relaxed);
    }

    pub fn note_connected(&self) {
        self.connected.fetch_add(1, Relaxed);
    }

    pub fn note_connect_failure(&self, error: String) {
        self.connect_failures.fetch_add(1, Relaxed);
        lock(&self.report).last_error = Some((error, Instant::now()));
    }

    pub fn report(&self) -> Report {
        lock(&self.report).clone()
    }

    pub fn connections(&self) -> u32 {
        self.connections.load(Relaxed)
    }

    pub fn connected(&self) -> u64 {
        self.connected.load(Relaxed)
    }

    pub fn connect_failures(&self) -> u64 {
        self.connect_failures.load(Relaxed)
    }

    pub fn probes(&self) -> u64 {
        self.probes.load(Relaxed)
    }

    pub fn probes_failed(&self) -> u64 {
        self.probes_failed.load(Relaxed)
    }

    pub fn probes_unmade(&self) -> u64 {
        self.probes_unmade.load(Relaxed)
    }

    /// Ends the connections of the moment; later ones are not touched.
    pub fn end_connections(&self) {
        let ended = std::mem::take(&mut *lock(&self.end));
        ended.cancel();
    }
}

/// A connection's place at a backend; given back when dropped.
#[derive(Debug)]
pub struct BackendSlot {
    backend: Arc<LiveBackend>,
    end: CancellationToken,
}

impl BackendSlot {
    fn new(backend: Arc<LiveBackend>) -> Self {
        backend.connections.fetch_add(1, Relaxed);
        let end = lock(&backend.end).clone();
        Self { backend, end }
    }

    pub fn backend(&self) -> &Arc<LiveBackend> {
        &self.backend
    }

    /// Resolves when the backend's connections are to end.
    pub async fn ended(&self) {
        self.end.cancelled().await;
    }
}

impl Drop for BackendSlot {
    fn drop(&mut self) {
        self.backend.connections.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str) -> Member {
        let backend = Backend {
            name: name.parse().unwrap(),
            address: "192.0.2.1:80".parse().unwrap(),
            weight: 1,
            state: BackendState::Enabled,
        };
        Member {
            backend: Arc::new(LiveBackend::new(&backend, Instant::now())),
            weight: 1,
            state: BackendState::Enabled,
        }
    }

    fn pool() -> LivePool {
        let pool = LivePool::new(&Pool::new("p".parse().unwrap()), 0);
        pool.add(member("b"));
        pool.add(member("a"));
        pool
    }

    #[test]
    fn a_choice_is_counted_until_it_is_dropped() {
        let (pool, client) = (pool(), "192.0.2.9".parse().unwrap());
        let first = pool.choose(client, &[]).unwrap();
        assert_eq!(first.backend().name.as_str(), "a");
        assert_eq!(first.backend().connections(), 1);
        let second = pool.choose(client, &[first.backend().clone()]).unwrap();
        assert_eq!(second.backend().name.as_str(), "b");
        let tried = [first.backend().clone(), second.backend().clone()];
        assert!(pool.choose(client, &tried).is_none());
        drop((first, second));
        assert!(tried.iter().all(|b| b.connections() == 0));
    }

    #[tokio::test]
    async fn disabling_ends_the_connections_of_the_moment_only() {
        let (pool, client) = (pool(), "192.0.2.9".parse().unwrap());
        pool.remove(&"b".parse().unwrap());
        let slot = pool.choose(client, &[]).unwrap();
        let change = |state| Backend {
            name: "a".parse().unwrap(),
            address: "192.0.2.1:80".parse().unwrap(),
            weight: 1,
            state,
        };
        pool.change(&change(BackendState::Drain));
        assert!(!slot.end.is_cancelled());
        assert!(pool.choose(client, &[]).is_none());
        pool.change(&change(BackendState::Disabled));
        slot.ended().await;
        assert!(pool.choose(client, &[]).is_none());
        pool.change(&change(BackendState::Enabled));
        assert!(!pool.choose(client, &[]).unwrap().end.is_cancelled());
    }

    #[test]
    fn both_limits_hold_and_refusals_are_counted() {
        let mut of = Listener::new(
            "l".parse().unwrap(),
            crate::model::listener::ListenAddress::EveryNode,
            80,
            "p".parse().unwrap(),
        );
        of.max_connections = 2;
        let live = |name: &str| {
            let settings = ListenerSettings::new(&of, None);
            Arc::new(LiveListener::new(
                name.parse().unwrap(),
                settings,
                CancellationToken::new(),
            ))
        };
        let (a, b, budget) = (live("a"), live("b"), Arc::new(Budget::new(3)));
        let held: Vec<_> = (0..2).filter_map(|_| a.admit(&budget)).collect();
        assert!(a.admit(&budget).is_none(), "the listener is full");
        let last = b.admit(&budget).unwrap();
        assert!(b.admit(&budget).is_none(), "the node is full");
        assert_eq!((a.refused(), b.refused()), (1, 1));
        assert_eq!((b.connections(), budget.connections()), (1, 3));
        drop((held, last));
        assert_eq!(
            (a.connections(), b.connections(), budget.connections()),
            (0, 0, 0)
        );
    }
}
