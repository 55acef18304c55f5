//! The DNS server: owns the workers, the listeners, the manager that follows snapshots, and the way to upstreams.
//!
//! `start` binds the node's own addresses or fails as a whole. VIPs are bound when snapshots name them, and tried again
//! while that fails. `stop` ends every task and thread and frees every port. It opens nothing before it is started; that
//! there is a state to serve is for whoever starts it to see to.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tokio::{net::TcpListener, runtime::Handle, sync::watch, task::JoinHandle};

use crate::model::{name::Name, rrset::RecordType, snapshot::Snapshot};

use super::{
    cache::{Entry, Flush},
    chain::Origin,
    forward::{ForwardLimits, Forwarding},
    message::{
        flag,
        upstream::{Message, UpstreamQuestion},
    },
    respond::{Client, Identity, Transport},
    service::{Progress, Service, TcpLimits},
    socket::{Presence, UdpPort, check_free, listen},
    stats::{Counters, DnsStats, Limits},
    tcp::{Connections, accept},
    udp::Worker,
    under_way::half,
};

/// Between two tries to bind an address of a VIP: first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// Where and how to serve.
#[derive(Clone, Debug)]
pub struct DnsConfig {
    /// The node's own addresses. Port 0 draws one, the same for UDP and TCP.
    pub addresses: Vec<SocketAddr>,
    /// Port on VIPs.
    pub vip_port: u16,
    /// Which VIPs to bind. None: all that the snapshot has, whether this node holds them or not (IP_FREEBIND), so that a
    /// take-over binds nothing. Where all nodes share one machine, only what this node holds.
    pub vips_held: Option<watch::Receiver<BTreeSet<IpAddr>>>,
    /// UDP worker threads; 0: one for each core.
    pub workers: usize,
    pub identity: Identity,
    pub tcp: TcpLimits,
    pub forward: ForwardLimits,
}

impl DnsConfig {
    /// Serves on `addresses`, and on VIPs on the port of the first of them.
    pub fn new(addresses: Vec<SocketAddr>) -> Self {
        Self {
            vip_port: addresses.first().map_or(53, SocketAddr::port),
            addresses,
            vips_held: None,
            workers: 0,
            identity: Identity::default(),
            tcp: TcpLimits::default(),
            forward: ForwardLimits::default(),
        }
    }

    fn limits(&self) -> Limits {
        let forward = &self.forward;
        Limits {
            connections: self.tcp.max_connections as u64,
            connections_per_client: self.tcp.max_connections_per_client as u64,
            cache_bytes: forward.cache.bytes as u64,
            outstanding: forward.max_outstanding as u64,
            outstanding_per_forwarder: half(forward.max_outstanding) as u64,
            waiting: forward.max_waiting as u64,
            waiting_per_client: forward.max_waiting_per_client as u64,
        }
    }
}

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("DNS cannot listen on {address}: {source}; is another name server running there?")]
    Bind {
        address: SocketAddr,
        source: io::Error,
    },
    #[error("DNS cannot start a worker thread: {0}")]
    Worker(io::Error),
    #[error("DNS can only be started from within the runtime that is to run it")]
    NoRuntime,
}

/// A reply that this node gave to itself.
#[derive(Clone, Debug)]
pub struct LocalReply {
    /// The whole message as a client would get it over TCP.
    pub octets: Vec<u8>,
    pub message: Message,
    /// Where it came from; where aliases lead through several, its end.
    pub source: Source,
    pub took: Duration,
}

/// Where an answer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Zone,
    /// localhost, the empty zones of RFC 6303 and the like.
    BuiltIn,
    /// What an upstream had said before.
    Cache,
    /// An upstream was asked for it now.
    Forwarder,
    /// Nobody was asked.
    Refused,
    /// From nowhere: the aliases go in a circle through upstreams, or lead to them too often.
    Endless,
}

impl Source {
    fn of(origin: Origin, waited: bool) -> Self {
        match origin {
            Origin::Zone => Self::Zone,
            Origin::BuiltIn => Self::BuiltIn,
            Origin::Upstream if waited => Self::Forwarder,
            Origin::Upstream => Self::Cache,
            Origin::Nobody => Self::Refused,
            Origin::Endless => Self::Endless,
        }
    }

    /// The word in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Zone => "zone",
            Self::BuiltIn => "built-in",
            Self::Cache => "cache",
            Self::Forwarder => "forwarder",
            Self::Refused => "refused",
            Self::Endless => "endless",
        }
    }
}

/// A running server.
pub struct DnsServer {
    service: Arc<Service>,
    ports: Arc<Ports>,
    shards: Vec<Arc<Counters>>,
    connections: Arc<Connections>,
    publisher: Arc<Publisher>,
    limits: Limits,
    /// None once it was stopped.
    manager: Mutex<Option<JoinHandle<()>>>,
}

impl DnsServer {
    /// Binds `config.addresses` and serves what `snapshots` holds, from now on. Bounds are lowered if too few files may be open
    /// for them. Call within a tokio runtime.
    pub fn start(
        config: DnsConfig,
        snapshots: watch::Receiver<Arc<Snapshot>>,
    ) -> Result<Self, StartError> {
        let runtime = Handle::try_current().map_err(|_| StartError::NoRuntime)?;
        let config = config.fit();
        let first = snapshots.borrow().clone();
        let first_revision = first.revision;
        let snapshot = Arc::new(ArcSwap::new(first));
        let service = Arc::new(Service {
            identity: config.identity.clone(),
            forwarding: Forwarding::new(config.forward.clone(), Arc::clone(&snapshot)),
            snapshot,
            runtime,
        });
        let count = match config.workers {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            count => count,
        };
        let shards: Vec<Arc<Counters>> = (0..=count).map(|_| Arc::default()).collect();
        let connections = Connections::new(config.tcp);
        let mut workers = Vec::with_capacity(count);
        for (at, counters) in shards.iter().enumerate().take(count) {
            let (service, counters) = (Arc::clone(&service), Arc::clone(counters));
            let worker = Worker::start(format!("dns-{at}"), service, counters);
            workers.push(worker.map_err(StartError::Worker)?);
        }
        let ports = Arc::new(Ports {
            service: Arc::clone(&service),
            connections: Arc::clone(&connections),
            counters: Arc::clone(&shards[count]),
            bound: Mutex::new(Bound {
                workers,
                by_address: BTreeMap::new(),
                unbound: BTreeMap::new(),
            }),
        });
        for address in &config.addresses {
            let opened = ports.open_own(*address);
            opened.map_err(|source| StartError::Bind {
                address: *address,
                source,
            })?;
        }
        let limits = config.limits();
        let publisher = Arc::new(Publisher {
            service: Arc::clone(&service),
            served: watch::Sender::new(first_revision),
            turn: Mutex::default(),
        });
        let manager = Manager {
            publisher: Arc::clone(&publisher),
            ports: Arc::clone(&ports),
            config,
            snapshots,
        };
        Ok(Self {
            ports,
            shards,
            connections,
            publisher,
            limits,
            manager: Mutex::new(Some(service.runtime.spawn(manager.run()))),
            service,
        })
    }

    /// Addresses that are bound now, with the ports that port 0 became.
    pub fn local_addresses(&self) -> Vec<SocketAddr> {
        let bound = self.ports.locked();
        let whole = bound
            .by_address
            .values()
            .filter(|l| l.tcp.is_some() && !l.udp.is_empty());
        whole.map(|listening| listening.local).collect()
    }

    /// Revision of the state that answers are made from, as it moves on. A change is served once this has reached it.
    pub fn served(&self) -> watch::Receiver<u64> {
        self.publisher.served.subscribe()
    }

    /// Answers from `snapshot` from now on, unless it is older than what is served. The server follows the channel it was
    /// given by itself, which need not carry snapshots in which only names differ; VIPs are bound when the channel says so.
    pub fn serve(&self, snapshot: &Arc<Snapshot>) {
        self.publisher.publish(snapshot);
    }

    /// Addresses of VIPs that could not be bound so far.
    pub fn unbound(&self) -> Vec<Unbound> {
        self.ports.locked().unbound.values().cloned().collect()
    }

    /// What has been counted since the start.
    pub fn stats(&self) -> DnsStats {
        DnsStats {
            connections_open: self.connections.open() as u64,
            cache: self.service.forwarding.cache_stats(),
            forward: self.service.forwarding.stats(),
            addresses_missing: self.ports.locked().unbound.len() as u64,
            limits: self.limits,
            ..DnsStats::sum(&self.shards)
        }
    }

    /// Forgets cached answers of upstreams and says how many.
    pub fn flush(&self, flush: &Flush) -> u64 {
        self.service.forwarding.flush(flush)
    }

    /// Cached answers of upstreams, at most `limit`.
    pub fn dump(&self, limit: usize) -> Vec<(UpstreamQuestion, Arc<Entry>)> {
        self.service.forwarding.dump(limit)
    }

    /// Answers a question as this node would answer it to a client on its loopback address.
    pub async fn query_local(
        &self,
        name: &Name,
        rtype: RecordType,
        recursion_desired: bool,
    ) -> Option<LocalReply> {
        let started = Instant::now();
        let question = UpstreamQuestion {
            name: name.as_wire().into(),
            rtype,
            dnssec_ok: false,
            checking_disabled: false,
        };
        let mut message = question.encode(rand::random(), true);
        if !recursion_desired {
            message[2] &= !((flag::RD >> 8) as u8);
        }
        let client = Client {
            address: std::net::Ipv4Addr::LOCALHOST.into(),
            transport: Transport::Tcp,
        };
        let mut octets = Vec::new();
        let snapshot = self.service.snapshot.load_full();
        // Not counted: the figures are those of clients.
        let uncounted = Counters::default();
        let progress = self
            .service
            .handle(&snapshot, &message, client, &uncounted, &mut octets);
        let (replied, waited) = match progress {
            Progress::Done(replied) => (replied, false),
            Progress::Wait(pending) => (pending.finish(&uncounted, &mut octets).await, true),
        };
        Some(LocalReply {
            message: Message::decode(&octets)?,
            source: Source::of(replied?.origin, waited),
            octets,
            took: started.elapsed(),
        })
    }

    /// Ends everything and frees all ports; false when that took longer than `deadline`.
    pub async fn stop(&self, deadline: Duration) -> bool {
        let ending = async {
            let manager = self
                .manager
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            if let Some(manager) = manager {
                manager.abort();
                let _ = manager.await;
            }
            let ports = Arc::clone(&self.ports);
            let closing = tokio::task::spawn_blocking(move || ports.close_all());
            self.service.forwarding.stop().await;
            let Ok(accepting) = closing.await else {
                return false;
            };
            // An aborted task gives its listener up when it is next run, not at once.
            for task in accepting {
                let _ = task.await;
            }
            true
        };
        tokio::time::timeout(deadline, ending)
            .await
            .unwrap_or(false)
    }
}

/// What is bound, and by whom it is served.
struct Ports {
    service: Arc<Service>,
    connections: Arc<Connections>,
    counters: Arc<Counters>,
    bound: Mutex<Bound>,
}

struct Bound {
    workers: Vec<Worker>,
    /// By the address that was asked for.
    by_address: BTreeMap<SocketAddr, Listening>,
    /// Addresses of VIPs that could not be bound, or not for both transports, at the last try.
    unbound: BTreeMap<SocketAddr, Unbound>,
}

struct Listening {
    local: SocketAddr,
    /// One for each worker; empty while they could not be bound.
    udp: Vec<Arc<UdpPort>>,
    /// None while it could not be bound.
    tcp: Option<JoinHandle<()>>,
}

/// An address of a VIP on which DNS does not answer, or not over both transports. It is tried again every second at least.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unbound {
    pub address: SocketAddr,
    /// What the system said, by transport.
    pub problem: String,
    /// Tries in a row.
    pub attempts: u32,
}

impl fmt::Display for Unbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DNS on {}: {}", self.address, self.problem)
    }
}

impl Ports {
    fn locked(&self) -> MutexGuard<'_, Bound> {
        self.bound.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Binds an address of this machine for every worker and for TCP, or not at all.
    fn open_own(&self, address: SocketAddr) -> io::Result<()> {
        let mut bound = self.locked();
        let (udp, listener) = bind(address, Presence::Own, bound.workers.len())?;
        let local = udp.first().map_or(address, |port| port.local);
        let tcp = Some(self.accept_on(listener)?);
        // Port 0 may be asked for more than once.
        let asked = if address.port() == 0 { local } else { address };
        bound
            .by_address
            .insert(asked, Listening { local, udp, tcp });
        bound.hand_out();
        tracing::info!(%local, "answering DNS");
        Ok(())
    }

    /// Binds what is still missing of an address of a VIP. Whoever has its TCP port must not take DNS over UDP with it, nor
    /// the other way round. Returns whether all is bound now; what is not is noted.
    fn open_vip(&self, address: SocketAddr) -> bool {
        let mut bound = self.locked();
        let workers = bound.workers.len();
        let mut listening = bound.by_address.remove(&address).unwrap_or(Listening {
            local: address,
            udp: Vec::new(),
            tcp: None,
        });
        let mut problems = Vec::new();
        if listening.udp.is_empty() {
            match bind_udp(address, Presence::Moving, workers) {
                Ok(udp) => listening.udp = udp,
                Err(error) => problems.push(format!("UDP: {error}")),
            }
        }
        if listening.tcp.is_none() {
            let opened = listen(address, Presence::Moving);
            match opened.and_then(|listener| self.accept_on(listener)) {
                Ok(tcp) => listening.tcp = Some(tcp),
                Err(error) => problems.push(format!("TCP: {error}")),
            }
        }
        bound.by_address.insert(address, listening);
        bound.hand_out();
        bound.note(address, problems)
    }

    fn accept_on(&self, listener: std::net::TcpListener) -> io::Result<JoinHandle<()>> {
        let _runtime = self.service.runtime.enter();
        let accepting = accept(
            TcpListener::from_std(listener)?,
            Arc::clone(&self.service),
            Arc::clone(&self.connections),
            Arc::clone(&self.counters),
        );
        Ok(self.service.runtime.spawn(accepting))
    }

    fn close(&self, address: SocketAddr) {
        let mut bound = self.locked();
        bound.unbound.remove(&address);
        if let Some(listening) = bound.by_address.remove(&address) {
            listening.tcp.iter().for_each(JoinHandle::abort);
            bound.hand_out();
            tracing::info!(local = %listening.local, "no longer answering DNS");
        }
    }

    /// Closes every UDP socket, waits for the workers, and tells the tasks that hold the listeners to end.
    fn close_all(&self) -> Vec<JoinHandle<()>> {
        let mut bound = self.locked();
        let listening = std::mem::take(&mut bound.by_address);
        let tcp = listening.values().filter_map(|l| l.tcp.as_ref());
        tcp.for_each(JoinHandle::abort);
        bound.workers.iter().for_each(Worker::stop);
        bound.workers.iter_mut().for_each(Worker::join);
        // With the sockets' last owners gone here, they are closed when this returns.
        listening
            .into_values()
            .filter_map(|listening| listening.tcp)
            .collect()
    }
}

impl Bound {
    /// Gives every worker its sockets.
    fn hand_out(&self) {
        for (at, worker) in self.workers.iter().enumerate() {
            let ports = self.by_address.values();
            worker.set_ports(ports.filter_map(|l| l.udp.get(at).cloned()).collect());
        }
    }

    /// Keeps what could not be bound of an address; says whether there is nothing of the kind.
    fn note(&mut self, address: SocketAddr, problems: Vec<String>) -> bool {
        let before = self.unbound.remove(&address);
        if problems.is_empty() {
            tracing::info!(local = %address, "answering DNS");
            return true;
        }
        let attempts = before.map_or(0, |before| before.attempts).saturating_add(1);
        let problem = problems.join("; ");
        if attempts == 1 {
            tracing::warn!(%address, problem, "DNS cannot listen on a VIP; trying again");
        }
        let unbound = Unbound {
            address,
            problem,
            attempts,
        };
        self.unbound.insert(address, unbound);
        false
    }

    /// VIPs' addresses that lack nothing, and own ones.
    fn whole(&self) -> BTreeSet<SocketAddr> {
        let addresses = self.by_address.keys();
        addresses
            .filter(|address| !self.unbound.contains_key(address))
            .copied()
            .collect()
    }
}

impl Drop for Ports {
    /// A server that was not stopped, or did not quite start, must leave no thread and no listener behind.
    fn drop(&mut self) {
        let bound = self.locked();
        bound.workers.iter().for_each(Worker::stop);
        let tcp = bound.by_address.values().filter_map(|l| l.tcp.as_ref());
        tcp.for_each(JoinHandle::abort);
    }
}

/// UDP sockets for `workers` and a TCP listener on one address; port 0 becomes the same port for both.
fn bind(
    address: SocketAddr,
    presence: Presence,
    workers: usize,
) -> io::Result<(Vec<Arc<UdpPort>>, std::net::TcpListener)> {
    const TRIES: usize = 32;
    let mut tries = if address.port() == 0 { TRIES } else { 1 };
    loop {
        tries -= 1;
        match bind_once(address, presence, workers) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries > 0 => {}
            result => return result,
        }
    }
}

fn bind_once(
    address: SocketAddr,
    presence: Presence,
    workers: usize,
) -> io::Result<(Vec<Arc<UdpPort>>, std::net::TcpListener)> {
    let udp = bind_udp(address, presence, workers)?;
    let local = udp.first().map_or(address, |port| port.local);
    Ok((udp, listen(local, presence)?))
}

/// One socket for each worker, at least one.
fn bind_udp(
    address: SocketAddr,
    presence: Presence,
    workers: usize,
) -> io::Result<Vec<Arc<UdpPort>>> {
    check_free(address, presence)?;
    let first = UdpPort::open(address, presence)?;
    let local = first.local;
    let mut udp = vec![Arc::new(first)];
    for _ in 1..workers {
        udp.push(Arc::new(UdpPort::open(local, presence)?));
    }
    Ok(udp)
}

/// Hands snapshots to the workers, in their order.
struct Publisher {
    service: Arc<Service>,
    served: watch::Sender<u64>,
    /// Held while one is handed over.
    turn: Mutex<()>,
}

impl Publisher {
    /// An older snapshot than the one served changes nothing.
    fn publish(&self, snapshot: &Arc<Snapshot>) {
        let current = || self.service.snapshot.load();
        if current().revision > snapshot.revision || Arc::ptr_eq(&current(), snapshot) {
            return;
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if current().revision > snapshot.revision {
            return;
        }
        let before = self.service.snapshot.swap(Arc::clone(snapshot));
        self.served.send_replace(snapshot.revision);
        if before.forwarders.ptr_eq(&snapshot.forwarders) {
            return;
        }
        let both = before.forwarders.keys().chain(snapshot.forwarders.keys());
        let changed: BTreeSet<&Name> = both
            .filter(|suffix| before.forwarders.get(*suffix) != snapshot.forwarders.get(*suffix))
            .collect();
        for suffix in changed {
            let forgotten = self
                .service
                .forwarding
                .flush(&Flush::Subtree(suffix.as_wire().into()));
            tracing::debug!(%suffix, forgotten, "the forwarder changed");
        }
    }
}

/// The task that follows snapshots: publishes them to the workers, binds and releases VIPs, and forgets what upstreams
/// said that are no longer asked.
struct Manager {
    publisher: Arc<Publisher>,
    ports: Arc<Ports>,
    config: DnsConfig,
    snapshots: watch::Receiver<Arc<Snapshot>>,
}

impl Manager {
    async fn run(mut self) {
        let mut retry = RETRY.0;
        loop {
            let snapshot = self.snapshots.borrow_and_update().clone();
            self.publisher.publish(&snapshot);
            let missing = self.reconcile(&snapshot);
            retry = if missing == 0 {
                RETRY.0
            } else {
                (retry * 2).min(RETRY.1)
            };
            let mut held = self.config.vips_held.clone();
            // Every branch only says that it is time to look again; what a dropped one saw is looked at then too.
            tokio::select! {
                changed = self.snapshots.changed() => {
                    if changed.is_err() {
                        // No further state will come; what is there is served until `stop`.
                        return;
                    }
                }
                () = changed_vips(&mut held) => {
                    self.config.vips_held = held;
                    retry = RETRY.0;
                }
                () = tokio::time::sleep(retry), if missing > 0 => {}
            }
        }
    }

    /// Binds what is wanted and not bound, releases what is bound and no longer wanted, and says how many are missing.
    fn reconcile(&self, snapshot: &Snapshot) -> usize {
        let wanted = self.wanted_vips(snapshot);
        let own = |address: &SocketAddr| self.config.addresses.contains(address);
        let bound: Vec<SocketAddr> = self.ports.locked().by_address.keys().copied().collect();
        let drawn = |address: &SocketAddr| {
            // Addresses whose port was drawn are known by what they became.
            let asked = SocketAddr::new(address.ip(), 0);
            self.config.addresses.contains(&asked) && !wanted.contains(address)
        };
        for address in &bound {
            if !wanted.contains(address) && !own(address) && !drawn(address) {
                self.ports.close(*address);
            }
        }
        let whole = self.ports.locked().whole();
        let lacking = wanted.difference(&whole);
        lacking
            .filter(|address| !self.ports.open_vip(**address))
            .count()
    }

    fn wanted_vips(&self, snapshot: &Snapshot) -> BTreeSet<SocketAddr> {
        let port = self.config.vip_port;
        let vips: BTreeSet<IpAddr> = match &self.config.vips_held {
            Some(held) => held.borrow().clone(),
            None => snapshot.vips.keys().copied().collect(),
        };
        // A socket on all addresses takes the VIPs' packets already.
        let covered = |vip: &IpAddr| {
            self.config.addresses.iter().any(|own| {
                let all = own.ip().is_unspecified() && own.is_ipv4() == vip.is_ipv4();
                own.port() == port && (all || own.ip() == *vip)
            })
        };
        let wanted = vips.into_iter().filter(|vip| !covered(vip));
        wanted.map(|vip| SocketAddr::new(vip, port)).collect()
    }
}

/// Returns when the set of held VIPs has changed; never if it does not matter or will not change again.
async fn changed_vips(held: &mut Option<watch::Receiver<BTreeSet<IpAddr>>>) {
    let changed = match held {
        Some(held) => held.changed().await.is_ok(),
        None => false,
    };
    if !changed {
        std::future::pending::<()>().await;
    }
}
