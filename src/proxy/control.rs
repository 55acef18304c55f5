//! Carrying out what `reconcile` decides, on a thread of its own. Owns the workers, the listening sockets, the health checks
//! and what is on its way out; nobody else adds, changes or removes anything.
//!
//! What becomes of connections when things change:
//! - backend in drain, weight 0, or down by its health check: it takes no new ones, those it has go on to their end;
//! - backend disabled: those it has are reset at once;
//! - backend or listener removed (a changed address is another backend): those it has go on for at most the drain time,
//!   then they are reset;
//! - a listener's pool, timeout or limit changed: those that exist keep what they began with.
//!
//! Ends when told to stop, never by itself: when nobody sends snapshots any more, the last one goes on being served.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::{
    Drain,
    checker::Checker,
    connection::Means,
    listener::{Acceptor, BindError, bind},
    live::{Bounds, Directory, ListenerSettings, LiveBackend, LiveListener, LivePool, Member},
    reconcile::{Action, Addresses, Plan, bind_retry_delay, reconcile, sockets_for_address},
    status::SocketState,
    worker::Worker,
};
use crate::config::reserved::Reserved;
use crate::model::{
    health::HealthCheck, label::Label, listener::Listener, pool::Backend, snapshot::Snapshot,
};

/// What decides which sockets to bind and where to forward, and the word to stop.
#[derive(Debug)]
pub struct Inputs {
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// None: VIPs are bound always.
    pub held: Option<watch::Receiver<BTreeSet<IpAddr>>>,
    /// Carries how long connections may go on.
    pub stop: oneshot::Receiver<Drain>,
}

/// The doing part of the proxy.
#[derive(Debug)]
pub struct Control {
    pub own: Vec<IpAddr>,
    pub reserved: Reserved,
    pub directory: Arc<Directory>,
    pub bounds: Bounds,
    pub means: Means,
    pub drain: Duration,
    pub seed: u64,
    pub workers: Vec<Worker>,
    /// Parent of every listener's token.
    pub everything: CancellationToken,
    pub work: Work,
}

/// What changes from snapshot to snapshot.
#[derive(Debug, Default)]
pub struct Work {
    plan: Plan,
    sockets: BTreeMap<(Label, SocketAddr), SocketWork>,
    checkers: BTreeMap<(Label, Label), Checker>,
    leaving: Vec<Leaving>,
}

/// An address to listen on.
#[derive(Debug)]
enum SocketWork {
    Accepting {
        stop: CancellationToken,
        acceptors: Vec<JoinHandle<()>>,
    },
    Waiting {
        failures: u32,
        again: Instant,
    },
}

/// Something removed whose connections have not ended yet.
#[derive(Debug)]
struct Leaving {
    until: Instant,
    what: Removed,
}

#[derive(Debug)]
enum Removed {
    Listener(Arc<LiveListener>),
    Backend(Arc<LiveBackend>),
}

impl Removed {
    fn connections(&self) -> u32 {
        match self {
            Self::Listener(listener) => listener.connections(),
            Self::Backend(backend) => backend.connections(),
        }
    }

    fn end_connections(&self) {
        match self {
            Self::Listener(listener) => listener.end.cancel(),
            Self::Backend(backend) => backend.end_connections(),
        }
    }
}

impl Control {
    /// Follows the snapshots until told to stop, then stops everything.
    pub async fn run(mut self, mut inputs: Inputs) {
        let mut seen: Option<(Arc<Snapshot>, Option<BTreeSet<IpAddr>>)> = None;
        let drain = loop {
            let snapshot = inputs.snapshots.borrow_and_update().clone();
            let held = inputs
                .held
                .as_mut()
                .map(|held| held.borrow_and_update().clone());
            let same = seen.as_ref().is_some_and(|(last, last_held)| {
                *last_held == held && same_balancing(last, &snapshot)
            });
            if !same {
                self.follow(&snapshot, held.as_ref()).await;
            }
            seen = Some((snapshot, held));
            self.bind_what_is_due();
            self.end_what_is_due();
            tokio::select! {
                // No branch holds anything: all is read anew from the channels and the clock.
                drain = &mut inputs.stop => break drain.unwrap_or_else(|_| Drain::until(Instant::now())),
                () = changed(&mut inputs.snapshots) => {}
                () = held_changed(&mut inputs.held) => {}
                () = sleep_until(self.next_deadline()) => {}
            }
        };
        self.stop(drain).await;
    }

    async fn follow(&mut self, snapshot: &Snapshot, held: Option<&BTreeSet<IpAddr>>) {
        let addresses = Addresses {
            own: &self.own,
            held,
            reserved: &self.reserved,
        };
        let plan = Plan::new(snapshot, &addresses);
        let actions = reconcile(&self.work.plan, &plan);
        self.work.plan = plan;
        for action in actions {
            tracing::debug!(revision = snapshot.revision, ?action, "reconciling");
            self.carry_out(action).await;
        }
        self.relink();
        self.note_withheld();
    }

    /// Says of every listener which addresses it cannot have on this node.
    fn note_withheld(&self) {
        for (name, planned) in &self.work.plan.listeners {
            let Some(live) = self.directory.listener(name) else {
                continue;
            };
            for (address, owner) in live.withhold(&planned.withheld) {
                tracing::error!(listener = %name, %address, "not listened on: {owner} of this node has this address; give the listener another port");
            }
        }
    }

    async fn carry_out(&mut self, action: Action) {
        match action {
            Action::Unbind { listener, address } => self.unbind(listener, address).await,
            Action::RemoveListener { listener } => {
                let removed = self.directory.remove_listener(&listener);
                self.let_go(removed.map(Removed::Listener));
            }
            Action::RemoveBackend { pool, backend } => self.remove_backend(pool, backend),
            Action::RemovePool { pool } => self.directory.remove_pool(&pool),
            Action::AddPool { pool } => {
                let live = LivePool::new(&pool, self.seed);
                self.directory.add_pool(Arc::new(live));
            }
            Action::ChangePool { pool } => {
                if let Some(live) = self.directory.pool(&pool.name) {
                    live.change_settings(&pool);
                }
            }
            Action::ChangeCheck { pool, check } => self.change_check(&pool, check.as_ref()),
            Action::AddBackend {
                pool,
                backend,
                check,
            } => self.add_backend(&pool, &backend, check),
            Action::ChangeBackend { pool, backend } => {
                if let Some(live) = self.directory.pool(&pool) {
                    live.change(&backend);
                }
            }
            Action::AddListener { listener } => self.add_listener(&listener),
            Action::ChangeListener { listener } => self.change_listener(&listener),
            Action::Bind { listener, address } => self.bind(listener, address, 0),
        }
    }

    /// Gives listeners their pools anew where a pool came or went under its name.
    fn relink(&self) {
        for live in self.directory.listeners() {
            let settings = live.settings.load();
            let pool = self.directory.pool(&settings.pool_name);
            let same = match (&settings.pool, &pool) {
                (Some(a), Some(b)) => Arc::ptr_eq(a, b),
                (None, None) => true,
                _ => false,
            };
            if !same && let Some(planned) = self.work.plan.listeners.get(&live.name) {
                self.change_listener(&planned.listener);
            }
        }
    }

    fn settings(&self, listener: &Listener) -> ListenerSettings {
        ListenerSettings::new(listener, self.directory.pool(&listener.pool))
    }

    fn add_listener(&self, listener: &Listener) {
        let live = LiveListener::new(
            listener.name.clone(),
            self.settings(listener),
            self.everything.child_token(),
        );
        self.directory.add_listener(Arc::new(live));
    }

    fn change_listener(&self, listener: &Listener) {
        if let Some(live) = self.directory.listener(&listener.name) {
            live.settings.store(Arc::new(self.settings(listener)));
        }
    }

    fn add_backend(&mut self, pool: &Label, backend: &Backend, check: Option<HealthCheck>) {
        let Some(live_pool) = self.directory.pool(pool) else {
            return;
        };
        let live = Arc::new(LiveBackend::new(backend, Instant::now()));
        if let Some(check) = check {
            self.start_check(pool, live.clone(), check);
        }
        live_pool.add(Member {
            backend: live,
            weight: backend.weight,
            state: backend.state,
        });
    }

    fn remove_backend(&mut self, pool: Label, backend: Label) {
        let removed = self.directory.pool(&pool).and_then(|p| p.remove(&backend));
        self.work.checkers.remove(&(pool, backend));
        self.let_go(removed.map(Removed::Backend));
    }

    fn start_check(&mut self, pool: &Label, backend: Arc<LiveBackend>, check: HealthCheck) {
        let key = (pool.clone(), backend.name.clone());
        let places = self.bounds.probes.clone();
        let checker = Checker::start(
            pool.clone(),
            backend,
            check,
            places,
            self.means.told.clone(),
            rand::random(),
        );
        self.work.checkers.insert(key, checker);
    }

    fn change_check(&mut self, pool: &Label, check: Option<&HealthCheck>) {
        let Some(live) = self.directory.pool(pool) else {
            return;
        };
        for Member { backend, .. } in live.members() {
            let key = (pool.clone(), backend.name.clone());
            match (check, self.work.checkers.get(&key)) {
                (Some(check), Some(checker)) => checker.redefine(check.clone()),
                (Some(check), None) => self.start_check(pool, backend, check.clone()),
                (None, _) => {
                    self.work.checkers.remove(&key);
                    backend.note_unchecked(Instant::now());
                }
            }
        }
    }

    fn let_go(&mut self, removed: Option<Removed>) {
        if let Some(what) = removed {
            let until = Instant::now() + self.drain;
            self.work.leaving.push(Leaving { until, what });
        }
    }

    fn bind(&mut self, name: Label, address: SocketAddr, failures_before: u32) {
        let Some(listener) = self.directory.listener(&name) else {
            return;
        };
        let (state, work) = match self.open_sockets(address) {
            Ok(sockets) => {
                tracing::info!(listener = %name, %address, sockets = sockets.len(), "listening");
                (SocketState::Bound, self.accept(&listener, sockets))
            }
            Err(error) => {
                let failures = failures_before.saturating_add(1);
                if failures == 1 {
                    tracing::warn!(listener = %name, %error, "trying again until it works");
                }
                let state = SocketState::Failed {
                    error: error.to_string(),
                    attempts: failures,
                };
                let again = Instant::now() + bind_retry_delay(failures);
                (state, SocketWork::Waiting { failures, again })
            }
        };
        listener.note_socket(address, state);
        self.work.sockets.insert((name, address), work);
    }

    /// The sockets that this node can have on one more address.
    fn open_sockets(&self, address: SocketAddr) -> Result<Vec<std::net::TcpListener>, BindError> {
        let bound = &self.bounds.sockets;
        let (limit, open) = (bound.limit(), bound.open());
        let workers = self.workers.len();
        let addresses = self.work.plan.address_count();
        match sockets_for_address(workers, limit as usize, addresses, open as usize) {
            0 => Err(BindError::NoneLeft { address, limit }),
            count => bind(address, count),
        }
    }

    fn accept(
        &self,
        listener: &Arc<LiveListener>,
        sockets: Vec<std::net::TcpListener>,
    ) -> SocketWork {
        let stop = CancellationToken::new();
        let start = |(worker, socket): (&Worker, _)| {
            let acceptor = Acceptor {
                listener: listener.clone(),
                budget: self.bounds.connections.clone(),
                means: self.means.clone(),
                connections: worker.connections.clone(),
            };
            worker.runtime.spawn(acceptor.run(socket, stop.clone()))
        };
        // Where there are fewer sockets than workers, each listener begins with another worker.
        let count = sockets.len();
        let first = self.bounds.sockets.open() as usize % self.workers.len().max(1);
        let workers = self.workers.iter().cycle().skip(first);
        let acceptors: Vec<_> = workers.zip(sockets).map(start).collect();
        self.bounds.sockets.note_opened(count);
        SocketWork::Accepting { stop, acceptors }
    }

    async fn unbind(&mut self, listener: Label, address: SocketAddr) {
        if let Some(live) = self.directory.listener(&listener) {
            live.forget_socket(address);
        }
        if let Some(work) = self.work.sockets.remove(&(listener, address)) {
            let count = work.sockets();
            work.close().await;
            self.bounds.sockets.note_closed(count);
        }
    }

    fn bind_what_is_due(&mut self) {
        let now = Instant::now();
        let is_due = |work: &SocketWork| match work {
            SocketWork::Waiting { failures, again } if *again <= now => Some(*failures),
            _ => None,
        };
        let due: Vec<_> = self
            .work
            .sockets
            .iter()
            .filter_map(|(key, work)| Some((key.clone(), is_due(work)?)))
            .collect();
        for ((name, address), failures) in due {
            self.bind(name, address, failures);
        }
    }

    fn end_what_is_due(&mut self) {
        let now = Instant::now();
        self.work.leaving.retain(|leaving| {
            if leaving.until <= now {
                leaving.what.end_connections();
            }
            leaving.until > now && leaving.what.connections() > 0
        });
    }

    fn next_deadline(&self) -> Option<Instant> {
        let binds = self.work.sockets.values().filter_map(|work| match work {
            SocketWork::Waiting { again, .. } => Some(*again),
            SocketWork::Accepting { .. } => None,
        });
        let ends = self.work.leaving.iter().map(|leaving| leaving.until);
        binds.chain(ends).min()
    }

    /// Stops accepting, lets connections go on until the drain is over, ends the rest, and joins every worker.
    async fn stop(mut self, drain: Drain) {
        let sockets = std::mem::take(&mut self.work.sockets);
        for (_, work) in sockets {
            work.close().await;
        }
        self.work.checkers.clear();
        for worker in &self.workers {
            worker.connections.close();
        }
        let all_ended =
            futures::future::join_all(self.workers.iter().map(|w| w.connections.wait()));
        tokio::select! {
            // Both only wait.
            _ = all_ended => {}
            () = drain.is_over() => {
                let connections = self.bounds.connections.connections();
                tracing::info!(connections, "ending the connections that are left");
            }
        }
        self.everything.cancel();
        // Blocks this thread, on which nothing else is left to do.
        self.workers.into_iter().for_each(Worker::join);
    }
}

impl SocketWork {
    /// Sockets that are open for it.
    fn sockets(&self) -> usize {
        match self {
            Self::Accepting { acceptors, .. } => acceptors.len(),
            Self::Waiting { .. } => 0,
        }
    }

    /// Returns when the port is free.
    async fn close(self) {
        if let Self::Accepting { stop, acceptors } = self {
            stop.cancel();
            futures::future::join_all(acceptors).await;
        }
    }
}

/// Whether nothing that concerns the proxy differs; most changes of a snapshot are of zones.
fn same_balancing(a: &Snapshot, b: &Snapshot) -> bool {
    a.pools.ptr_eq(&b.pools) && a.listeners.ptr_eq(&b.listeners) && a.vips.ptr_eq(&b.vips)
}

async fn changed<T>(channel: &mut watch::Receiver<T>) {
    if channel.changed().await.is_err() {
        // Nobody will send any more: what was last said stands.
        std::future::pending().await
    }
}

async fn held_changed(held: &mut Option<watch::Receiver<BTreeSet<IpAddr>>>) {
    match held {
        Some(held) => changed(held).await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
