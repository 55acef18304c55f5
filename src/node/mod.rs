//! The composition root: builds every part, owns every task, and stops them in order.
//!
//! Coming up: settings, log, data directory, health and local API; then an identity (at once, or when `cluster init` or
//! `cluster join` has written it); then storage, consensus and the peers' ports; then, when there is a state that may be
//! served, DNS, listeners and VIPs. Going down: VIPs are withdrawn, leadership is handed over, listeners and DNS drain, the
//! API ends, consensus ends, and the last lines of the log are written.

mod alarms;
mod commands;
mod connector;
mod control;
mod fitness;
mod group;
mod lock;
mod membership;
mod metrics;
mod ports;
mod renewal;
pub mod rescue;
mod services;
#[cfg(test)]
mod simulation;
mod supervisor;

use std::{
    io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    net::{TcpListener, UnixListener},
    runtime::{Handle, Runtime},
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    api::Api,
    config::{ConfigError, node::NodeConfig},
    consensus::{
        Certificates, Consensus, ConsensusConfig, Findings, LOG_KEPT, Patience, Recovery,
        StartError, StopReason, network,
        promise::Ledger,
        storage::{OpenError, Storage, StorageOptions},
        types,
    },
    dns::DnsServer,
    enrol::{IdentityError, IdentityFile, StoredIdentity, vacancy},
    model::{
        snapshot::Snapshot,
        vip::{UnclaimedVips, VipFacts},
    },
    pki::verify::ClientAuth,
    priority,
    telemetry::{
        http,
        log::{Log, LogError},
        metrics::Metrics,
    },
    transport::{
        Security,
        accept::Incoming,
        credentials::{CredentialsError, SharedCredentials},
    },
};
use connector::Connector;
use control::Control;
use membership::BootstrapError;
use ports::Ports;
use services::{Services, ServicesError};

/// How long the end of consensus is waited for on a node that found no successor.
const RESIGNED_WITHIN: Duration = Duration::from_secs(1);
/// Longest wait for consensus to hand over and end.
const CONSENSUS_STOP: Duration = Duration::from_secs(10);
/// Longest wait for calls under way when the API ends.
const API_STOP: Duration = Duration::from_secs(5);
/// The same, and for connections to be drained, when all nodes stop: nobody goes on elsewhere with what is waited for.
const STOP_OF_ALL: Duration = Duration::from_millis(300);
/// Longest that a stop takes beside the drain of connections.
const STOP_OF_THE_REST: Duration = Duration::from_secs(60);
/// Signals within this time are one request: some supervisors signal a process and its group.
const ASKED_ONCE: Duration = Duration::from_secs(1);
/// Between attempts to commit the first entry of a cluster.
const BEGIN_AGAIN: Duration = Duration::from_secs(1);
/// Between attempts to start the services after their ports were taken.
const START_AGAIN: Duration = Duration::from_secs(1);

/// Why the node ended.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Lock(#[from] lock::LockError),
    #[error("{what} {address}: {source}")]
    Listen {
        what: &'static str,
        address: String,
        source: io::Error,
    },
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("identity {}: it is garbled: {source}", path.display())]
    Credentials {
        path: PathBuf,
        source: CredentialsError,
    },
    #[error(
        "identity {}: node {node} has no certificate; only `dev = true` works without", path.display()
    )]
    NoCertificate {
        path: PathBuf,
        node: crate::model::node::NodeId,
    },
    #[error(transparent)]
    Storage(#[from] OpenError),
    #[error(transparent)]
    Consensus(#[from] StartError),
    #[error(transparent)]
    Services(#[from] ServicesError),
    #[error("the runtime: {0}")]
    Runtime(io::Error),
}

/// Checks a configuration without running it, and whether this process's user can run the executables that it names.
///
/// # Errors
/// Every fault in the file; where there is none, every executable that cannot be run.
pub fn check(config: &Path) -> Result<(), NodeError> {
    let faults = commands::faults(&NodeConfig::load(config)?);
    match faults.is_empty() {
        true => Ok(()),
        false => Err(NodeError::Config(ConfigError::Faults {
            path: config.to_owned(),
            faults,
        })),
    }
}

/// Runs a node until it is told to stop (SIGTERM, SIGINT; SIGQUIT when the others stop too) or has left its cluster. A second such
/// signal ends the connections that the stop still waits for.
///
/// # Errors
/// When a part cannot be built. Faults while running are logged and shown in the status; they do not end the node.
pub fn run(config_path: &Path) -> Result<(), NodeError> {
    let config = NodeConfig::load(config_path)?;
    let log = Log::start(&config.logging)?;
    for fault in commands::faults(&config) {
        tracing::warn!(%fault, "an executable that the configuration names cannot be run now");
    }
    raise_file_limit();
    // Each has threads of its own: a flood of questions must not delay a heartbeat, nor a large import an answer.
    let main = runtime("main", Threads::OnePerCore)?;
    let dns = runtime("dns-tasks", Threads::OnePerCore)?;
    // One thread: the steps of a write follow each other, and every change of threads costs more than most of them.
    let consensus = runtime("consensus", Threads::OnePreferred)?;
    let runtimes = Runtimes {
        dns: dns.handle().clone(),
        consensus: consensus.handle().clone(),
    };
    let node = Node::new(config, config_path.to_owned(), log, runtimes);
    // With it the log, for the last line.
    let control = Arc::clone(&node.control);
    let ended = main.block_on(node.run());
    for runtime in [main, dns, consensus] {
        runtime.shutdown_timeout(Duration::from_secs(1));
    }
    if let Err(error) = &ended {
        tracing::error!(%error, "the node ends");
    }
    drop(control);
    ended
}

/// The threads of a runtime.
enum Threads {
    /// As many as the machine has cores.
    OnePerCore,
    /// One that the scheduler prefers.
    OnePreferred,
}

fn runtime(name: &str, threads: Threads) -> Result<Runtime, NodeError> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Threads::OnePreferred = threads {
        builder
            .worker_threads(1)
            .on_thread_start(prefer_the_first_thread());
    }
    builder
        .enable_all()
        .thread_name(name)
        .build()
        .map_err(NodeError::Runtime)
}

/// What the threads of a runtime do first. Its worker is the first; those for work that blocks, as that of making a snapshot, come
/// later and inherit its place in the scheduler: they have a lot to do, and go back.
fn prefer_the_first_thread() -> impl Fn() + Send + Sync + 'static {
    let is_first = AtomicBool::new(true);
    move || match is_first.swap(false, Ordering::Relaxed) {
        true => priority::prefer_this_thread(),
        false => priority::level_this_thread(),
    }
}

/// Where tasks run that are not on the main runtime.
struct Runtimes {
    dns: Handle,
    /// Consensus and the links to peers.
    consensus: Handle,
}

struct Node {
    config: NodeConfig,
    control: Arc<Control>,
    /// One for both ways in, so that its limits hold for both together.
    api: Api,
    ports: Ports,
    runtimes: Runtimes,
    /// Cancelled when the node is to stop.
    stop: CancellationToken,
    /// Cancelled before `stop` when nothing is to be handed over, as the other nodes stop too.
    all_stop: CancellationToken,
    /// Cancelled when the connections that a stop still waits for are to end.
    cut_short: CancellationToken,
    /// Cancelled when the API and HTTP are to end, after the services.
    close: CancellationToken,
    /// Everything that runs beside `run` and ends with `close`.
    tasks: JoinSet<()>,
}

impl Node {
    fn new(config: NodeConfig, path: PathBuf, log: Log, runtimes: Runtimes) -> Self {
        let stop = CancellationToken::new();
        let control = Arc::new(Control::new(config.clone(), path, log, stop.clone()));
        Self {
            config,
            api: Api::new(control.clone()),
            control,
            ports: Ports::new(),
            runtimes,
            stop,
            all_stop: CancellationToken::new(),
            cut_short: CancellationToken::new(),
            close: CancellationToken::new(),
            tasks: JoinSet::new(),
        }
    }

    async fn run(mut self) -> Result<(), NodeError> {
        tracing::info!(name = %self.config.name, version = env!("CARGO_PKG_VERSION"), process = std::process::id(), "starting");
        let _lock = lock::DataDirLock::take(&self.config.data_dir)?;
        self.follow_signals()?;
        self.serve_http().await?;
        self.serve_local_api()?;
        let stop = self.stop.clone();
        let identity_file = IdentityFile::in_dir(&self.config.data_dir);
        let identity = tokio::select! {
            identity = membership::wait_for_identity(&self.config.data_dir) => Some(identity?),
            // Nothing was begun: dropping the wait loses nothing.
            () = stop.cancelled() => None,
        };
        if let Some(identity) = identity {
            self.run_member(identity, identity_file).await?;
        }
        self.close().await;
        tracing::info!("stopped");
        Ok(())
    }

    /// Runs as the member that `identity` says, until the stop.
    async fn run_member(
        &mut self,
        identity: StoredIdentity,
        file: IdentityFile,
    ) -> Result<(), NodeError> {
        let security = self.security(&identity, &file)?;
        let consensus = self.start_consensus(&identity, security.clone()).await?;
        // Before any peer can ask: the VIPs are not to come where nothing holds them yet.
        consensus.tell_starting();
        self.control.joined(security.clone(), consensus.clone());
        self.serve_peers(&consensus, security.clone()).await?;
        self.serve_api(security.clone()).await?;
        if identity.bootstrap.is_some() {
            self.tasks
                .spawn(begin(consensus.clone(), file.clone(), self.stop.clone()));
        }
        if let Security::Tls(credentials) = security {
            let renewing = renewal::run(consensus.clone(), file.clone(), credentials);
            let close = self.close.clone();
            let renewing = async move {
                close
                    .run_until_cancelled(renewing)
                    .await
                    .unwrap_or_default()
            };
            // It looks at every state.
            self.tasks.spawn_on(renewing, &self.runtimes.consensus);
        }
        self.serve_clients(&consensus).await;
        match self.all_stop.is_cancelled() {
            true => consensus.halt().await,
            false => consensus.shutdown(Instant::now() + CONSENSUS_STOP).await,
        }
        if self.control.has_left() {
            retire(&self.config.data_dir);
        }
        Ok(())
    }

    fn security(
        &self,
        identity: &StoredIdentity,
        file: &IdentityFile,
    ) -> Result<Security, NodeError> {
        let path = || file.path().to_owned();
        let tls = identity
            .credentials()
            .map_err(|source| NodeError::Credentials {
                path: path(),
                source,
            })?;
        match (tls, self.config.dev) {
            (Some(tls), false) => Ok(Security::Tls(SharedCredentials::new(tls))),
            (_, true) => Ok(Security::Plain),
            (None, false) => Err(NodeError::NoCertificate {
                path: path(),
                node: identity.node,
            }),
        }
    }

    async fn start_consensus(
        &self,
        identity: &StoredIdentity,
        security: Security,
    ) -> Result<Consensus, NodeError> {
        let dir = self.config.storage_dir();
        let options = StorageOptions {
            low_space: self.config.storage.min_free,
            snapshot_log_bytes: self.config.storage.snapshot_log_bytes,
            ..StorageOptions::default()
        };
        // Loads the last snapshot: a second of work for a million records.
        let opening = tokio::task::spawn_blocking(move || Storage::open(&dir, options));
        let storage = opening
            .await
            .map_err(|e| NodeError::Runtime(io::Error::other(e)))??;
        let certificates = match security {
            Security::Plain => Certificates::NotUsed,
            Security::Tls(_) => Certificates::Required,
        };
        let local = self.control.own_address();
        let config = ConsensusConfig {
            id: identity.node,
            cluster: identity.cluster.clone(),
            peer: types::Peer {
                name: self.config.name.clone(),
                raft_address: self.config.addresses.raft,
                api_address: self.config.addresses.api,
            },
            timing: None,
            ledger: Ledger::at(self.config.data_dir.join("promise")),
            patience: Patience {
                recovery_wait: self.config.recovery_wait,
                max_stale: self.config.max_stale,
            },
            connector: Arc::new(Connector { security, local }),
            certificates,
            log_kept: LOG_KEPT,
        };
        // openraft's tasks run where it is started.
        let starting = self
            .runtimes
            .consensus
            .spawn(Consensus::start(config, storage));
        let started = starting
            .await
            .map_err(|e| NodeError::Runtime(io::Error::other(e)))?;
        Ok(started?)
    }

    /// Serves DNS, listeners and VIPs whenever there is a state that may be served, until the stop.
    async fn serve_clients(&mut self, consensus: &Consensus) {
        let stop = self.stop.clone();
        let mut recovery = consensus.recovery();
        loop {
            let may_serve = async {
                // Waiting loses nothing when it is dropped: the channel holds the newest value.
                let _ = recovery.wait_for(|recovery| recovery.serves()).await;
                first_snapshot(consensus).await
            };
            let first = tokio::select! {
                biased; // a stop comes first, or the services would start once more
                () = stop.cancelled() => return,
                first = may_serve => first,
            };
            match self.start_services(consensus, first) {
                Ok(services) => self.serve_while_allowed(services, consensus).await,
                Err(error) => {
                    tracing::error!(%error, "DNS and listeners do not start; they are tried again");
                    self.control.not_started(error.to_string());
                    consensus.tell_stopped(error.to_string());
                    // A port in use by something else may be free later.
                    let _ = tokio::time::timeout(START_AGAIN, stop.cancelled()).await;
                }
            }
        }
    }

    fn start_services(
        &mut self,
        consensus: &Consensus,
        first: Arc<Snapshot>,
    ) -> Result<Services, ServicesError> {
        let (front, to_front) = watch::channel(first);
        let disk = consensus.disk();
        let services = Services::start(
            &self.config,
            &self.runtimes.dns,
            to_front,
            consensus.leadership(),
            consensus.vip_peers(),
            Box::new(move || disk.problem()),
        )?;
        // What the checks find comes after it.
        consensus.tell_fitness(Findings::default());
        // Without a change of threads: only the front door has to be woken, and only for what concerns it.
        let names = services.observed().dns;
        let feeding = feed(consensus.snapshots(), names, front);
        self.tasks.spawn_on(feeding, &self.runtimes.consensus);
        let told = tell_of_vips(consensus.clone(), services.vip_facts());
        self.tasks.spawn(told);
        let told = report_claims(consensus.clone(), services.vip_claims());
        self.tasks.spawn(told);
        let told = tell_fitness(consensus.clone(), services.fitness(), self.stop.clone());
        self.tasks.spawn(told);
        // Also while the node stops: its hand-over waits for it.
        let told = report_releases(consensus.clone(), services.released());
        self.tasks.spawn(told);
        self.control.serving(Some(services.observed()));
        tracing::info!("serving DNS and listeners");
        Ok(services)
    }

    async fn serve_while_allowed(&self, services: Services, consensus: &Consensus) {
        let mut recovery = consensus.recovery();
        tokio::select! {
            // Each of these only watches; nothing is lost when one ends the others.
            ended = recovery.wait_for(|recovery| !recovery.serves()) => {
                match ended.as_deref() {
                    // The reason was told when it was learned.
                    Ok(Recovery::Stopped(StopReason::Removed)) => {
                        tracing::warn!("DNS and listeners end");
                    }
                    Ok(Recovery::Stopped(reason)) => {
                        tracing::error!(why = %reason, "DNS and listeners end: the state may be served no longer");
                    }
                    _ => tracing::error!(why = "consensus has ended", "DNS and listeners end"),
                }
            }
            () = self.stop.cancelled() => tracing::info!("stopping"),
        }
        let mut has_resigned = false;
        let hands_over = self.stop.is_cancelled() && !self.all_stop.is_cancelled();
        if hands_over && consensus.present_leader() == Some(consensus.id()) {
            // Before the rest: the VIPs go with leadership, and connections through them are served until they are drained.
            match consensus.step_down(Instant::now() + CONSENSUS_STOP).await {
                Ok(leader) => tracing::info!(%leader, "leadership handed over"),
                Err(error) => {
                    tracing::warn!(%error, "leadership was not handed over");
                    has_resigned = consensus.resign();
                }
            }
        }
        let term = consensus.leadership().borrow().term;
        let withdrawn = services.withdraw().await;
        consensus.acknowledge_release(term);
        if has_resigned {
            // A leader that goes on writing is heard by the others. It may wait for a disk that hangs; what drains does not.
            let ended = tokio::time::timeout(RESIGNED_WITHIN, consensus.halt()).await;
            tracing::info!(
                ended = ended.is_ok(),
                "this node leads no more, and the others elect a leader"
            );
        }
        self.control.serving(None);
        let cut_short = self.cut_short.clone();
        match self.all_stop.is_cancelled() {
            true => withdrawn.stop_within(STOP_OF_ALL, cut_short).await,
            false => withdrawn.stop(cut_short).await,
        }
    }

    async fn serve_http(&mut self) -> Result<(), NodeError> {
        let listener = listen("HTTP", self.config.addresses.http).await?;
        let metrics = Metrics::new(metrics::sources(&self.control, &self.api, &self.ports));
        let served = http::serve(
            listener,
            Arc::clone(&self.ports.http),
            metrics,
            self.control.clone(),
            self.close.clone().cancelled_owned(),
        );
        self.tasks.spawn(async move {
            if let Err(error) = served.await {
                tracing::error!(%error, "HTTP ended");
            }
        });
        Ok(())
    }

    fn serve_local_api(&mut self) -> Result<(), NodeError> {
        let path = &self.config.addresses.socket;
        let failed = |source| NodeError::Listen {
            what: "unix socket",
            address: path.display().to_string(),
            source,
        };
        // The data directory's lock says that whoever bound it before is gone.
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o660)).map_err(failed)?;
        let port = Arc::clone(&self.ports.socket);
        self.spawn_api(Incoming::unix(listener, port));
        Ok(())
    }

    async fn serve_api(&mut self, security: Security) -> Result<(), NodeError> {
        let listener = listen("API", self.config.addresses.api).await?;
        let port = Arc::clone(&self.ports.api);
        self.spawn_api(Incoming::tcp(
            listener,
            security,
            ClientAuth::Optional,
            port,
        ));
        Ok(())
    }

    fn spawn_api(&mut self, incoming: Incoming) {
        let served = self
            .api
            .clone()
            .serve(incoming, self.close.clone().cancelled_owned());
        self.tasks.spawn(async move {
            if let Err(error) = served.await {
                tracing::error!(%error, "the API ended");
            }
        });
    }

    async fn serve_peers(
        &mut self,
        consensus: &Consensus,
        security: Security,
    ) -> Result<(), NodeError> {
        let listener = listen("Raft", self.config.addresses.raft).await?;
        // Accepted here, so that strangers' handshakes take no time from heartbeats; connections go to the runtime that serves them.
        let port = Arc::clone(&self.ports.raft);
        let incoming = Incoming::tcp(listener, security, ClientAuth::Mandatory, port);
        let _runtime = self.runtimes.consensus.enter();
        let served = network::peer_server()
            .add_service(consensus.raft_server())
            .serve_with_incoming_shutdown(incoming, self.close.clone().cancelled_owned());
        let serving = async move {
            if let Err(error) = served.await {
                tracing::error!(%error, "the peers' service ended");
            }
        };
        self.tasks.spawn_on(serving, &self.runtimes.consensus);
        Ok(())
    }

    fn follow_signals(&mut self) -> Result<(), NodeError> {
        let handler = |kind| signal(kind).map_err(NodeError::Runtime);
        let terminate = [
            handler(SignalKind::terminate())?,
            handler(SignalKind::interrupt())?,
        ];
        let others = [handler(SignalKind::quit())?, handler(SignalKind::hangup())?];
        let stops = Stops {
            stop: self.stop.clone(),
            all_stop: self.all_stop.clone(),
            cut_short: self.cut_short.clone(),
            patience: self.config.proxy.drain + STOP_OF_THE_REST,
            asked: None,
        };
        let following = follow_signals(terminate, others, Arc::clone(&self.control), stops);
        let close = self.close.clone();
        self.tasks.spawn(async move {
            close
                .run_until_cancelled(following)
                .await
                .unwrap_or_default()
        });
        Ok(())
    }

    /// Ends the API, HTTP and the peers' service; calls under way may finish.
    async fn close(&mut self) {
        self.close.cancel();
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        let patience = match self.all_stop.is_cancelled() {
            true => STOP_OF_ALL,
            false => API_STOP,
        };
        if tokio::time::timeout(patience, ended).await.is_err() {
            // Streams such as `watch` have no end of their own.
            self.tasks.shutdown().await;
        }
        // The next start would remove it too; a leftover only confuses.
        let _ = std::fs::remove_file(&self.config.addresses.socket);
    }
}

/// Takes as many open files as the system grants: connections need two each.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit on open files could not be raised");
    }
}

async fn listen(what: &'static str, address: SocketAddr) -> Result<TcpListener, NodeError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| NodeError::Listen {
            what,
            address: address.to_string(),
            source,
        })
}

/// What the signals that stop a node cancel.
struct Stops {
    stop: CancellationToken,
    all_stop: CancellationToken,
    cut_short: CancellationToken,
    /// How long a stop may take.
    patience: Duration,
    /// When SIGTERM or SIGINT first came.
    asked: Option<Instant>,
}

impl Stops {
    /// SIGTERM or SIGINT: stops the node; a second one ends the connections that are still waited for.
    fn terminate(&mut self, now: Instant) {
        match self.asked {
            None => {
                self.asked = Some(now);
                if let Err(error) = supervisor::ask_for(self.patience) {
                    tracing::warn!(%error, "systemd could not be asked for time to stop in");
                }
            }
            Some(first) if now.saturating_duration_since(first) >= ASKED_ONCE => {
                self.cut_short.cancel();
            }
            Some(_) => {}
        }
        self.stop.cancel();
    }

    /// SIGQUIT: stops the node without handing anything over; during a stop, ends the connections that are still waited for.
    fn quit(&self) {
        if self.stop.is_cancelled() {
            self.cut_short.cancel();
        }
        self.all_stop.cancel();
        self.stop.cancel();
    }
}

/// Follows the signals that stop the node, and SIGHUP, which reloads it.
async fn follow_signals(
    mut terminate: [Signal; 2],
    mut others: [Signal; 2],
    control: Arc<Control>,
    mut stops: Stops,
) {
    let [term, int] = &mut terminate;
    let [quit, hangup] = &mut others;
    loop {
        tokio::select! {
            // Signals are kept by the kernel's handler until received: none is lost between turns.
            _ = term.recv() => stops.terminate(Instant::now()),
            _ = int.recv() => stops.terminate(Instant::now()),
            _ = quit.recv() => stops.quit(),
            _ = hangup.recv() => match control.reload_settings() {
                Ok(done) => {
                    let (applied, needs_restart) = (done.applied.join(", "), done.needs_restart.join(", "));
                    tracing::info!(applied, needs_restart, "reloaded");
                }
                Err(error) => tracing::error!(%error, "not reloaded"),
            },
        }
    }
}

/// Commits the first entry of a new cluster, as often as it takes.
async fn begin(consensus: Consensus, file: IdentityFile, stop: CancellationToken) {
    let beginning = async {
        while let Err(error) = membership::begin_cluster(&consensus, &file).await {
            match error {
                BootstrapError::Refused(_) => {
                    return tracing::error!(%error, "the cluster does not begin");
                }
                _ => tracing::warn!(%error, "the cluster has not begun yet; it is tried again"),
            }
            tokio::time::sleep(BEGIN_AGAIN).await;
        }
        tracing::info!("the cluster has begun");
    };
    // A start finds what is left to do in the identity file.
    let _ = stop.run_until_cancelled(beginning).await;
}

/// Tells consensus whenever nothing is held any more under a lease that was taken back, so that a hand-over need not wait it
/// out. Ends with the services.
async fn report_releases(consensus: Consensus, mut released: watch::Receiver<u64>) {
    loop {
        let term = *released.borrow_and_update();
        consensus.acknowledge_release(term);
        if released.changed().await.is_err() {
            return;
        }
    }
}

/// Tells the other members what this node says of its VIPs. Ends with the services.
async fn tell_of_vips(consensus: Consensus, mut facts: watch::Receiver<VipFacts>) {
    loop {
        let newest = facts.borrow_and_update().clone();
        consensus.tell_of_vips(newest);
        if facts.changed().await.is_err() {
            return consensus.tell_of_vips(VipFacts::default());
        }
    }
}

/// Tells consensus what the checks found, each time they end. Ends with the services.
async fn tell_fitness(
    consensus: Consensus,
    mut fitness: watch::Receiver<fitness::Report>,
    stop: CancellationToken,
) {
    while fitness.changed().await.is_ok() {
        let found = fitness.borrow_and_update().found.clone();
        consensus.tell_fitness(found);
    }
    let why = match stop.is_cancelled() {
        true => control::STOPPING,
        false => "DNS and listeners are stopped",
    };
    consensus.tell_stopped(why.into());
}

/// The first published snapshot.
async fn first_snapshot(consensus: &Consensus) -> Arc<Snapshot> {
    let mut published = consensus.snapshots();
    match published.wait_for(Option::is_some).await {
        Ok(snapshot) => snapshot.clone().unwrap_or_default(),
        // Consensus keeps the sender as long as it lives, and we hold consensus.
        Err(_) => std::future::pending().await,
    }
}

/// Tells consensus which VIPs this node holds as the first member. Ends with the services.
async fn report_claims(consensus: Consensus, mut claims: watch::Receiver<UnclaimedVips>) {
    loop {
        let newest = claims.borrow_and_update().clone();
        consensus.claim_vips(newest);
        if claims.changed().await.is_err() {
            return consensus.claim_vips(UnclaimedVips::new());
        }
    }
}

/// Hands published snapshots on: each to DNS, and those in which it changed to the front door.
async fn feed(
    mut published: watch::Receiver<Option<Arc<Snapshot>>>,
    names: Arc<DnsServer>,
    front: watch::Sender<Arc<Snapshot>>,
) {
    loop {
        let newest = published.borrow_and_update().clone();
        if let Some(snapshot) = newest {
            names.serve(&snapshot);
            front.send_if_modified(|last| {
                let news = !last.has_same_front(&snapshot);
                *last = snapshot;
                news
            });
        }
        tokio::select! {
            // Either side's end ends the feeding.
            changed = published.changed() => if changed.is_err() { return },
            () = front.closed() => return,
        }
    }
}

/// After leaving: the identity must not be used again, and a restart must not try.
fn retire(data_dir: &Path) {
    match vacancy::retire(data_dir) {
        Ok(()) => tracing::info!("{}", membership::why_outside(data_dir)),
        Err(error) => {
            tracing::error!(%error, "the identity of the node that left could not be set aside")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stops() -> Stops {
        Stops {
            stop: CancellationToken::new(),
            all_stop: CancellationToken::new(),
            cut_short: CancellationToken::new(),
            patience: Duration::ZERO,
            asked: None,
        }
    }

    fn told(stops: &Stops) -> [bool; 3] {
        [&stops.stop, &stops.all_stop, &stops.cut_short].map(CancellationToken::is_cancelled)
    }

    #[test]
    fn a_second_request_to_stop_cuts_the_drain_short() {
        let (mut term, now) = (stops(), Instant::now());
        term.terminate(now);
        assert_eq!(told(&term), [true, false, false]);
        term.terminate(now + ASKED_ONCE / 2);
        assert_eq!(told(&term), [true, false, false], "it is the same request");
        term.terminate(now + ASKED_ONCE);
        assert_eq!(told(&term), [true, false, true]);
    }

    #[test]
    fn sigquit_stops_without_a_drain_and_ends_one_that_has_begun() {
        let quit = stops();
        quit.quit();
        assert_eq!(told(&quit), [true, true, false]);
        let mut draining = stops();
        draining.terminate(Instant::now());
        draining.quit();
        assert_eq!(told(&draining), [true, true, true]);
    }
}
