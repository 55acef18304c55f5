//! Forwarding TCP from listeners to pools.
//!
//! Deciding: [`select`] (which backend), [`health`] (up or down), [`reconcile`] (what a new snapshot changes), [`ending`].
//! Doing: `control` (carries out, owns everything), `worker` (threads), `listener` (accept), `connection`, `relay`, `pipe`,
//! `checker`, `probing`; `live` is what they share. [`status`] and [`metrics`] read it.
//!
//! It gets snapshots over a channel and knows nothing of consensus: without a leader it goes on with the last one. It never
//! writes anything anywhere but to sockets, and stops by [`Proxy::stop`], after which no port, thread or file descriptor of
//! it is left.

mod checker;
mod connection;
mod control;
pub mod ending;
pub mod health;
mod listener;
mod live;
pub mod metrics;
mod pipe;
mod probing;
pub mod reconcile;
mod relay;
pub mod select;
pub mod status;
mod worker;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    io,
    net::IpAddr,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tokio::{
    runtime::Handle,
    sync::{oneshot, watch},
};
use tokio_util::sync::CancellationToken;

use self::{
    connection::Means,
    control::{Control, Inputs},
    live::{Bounds, Budget, Directory, Sockets},
    pipe::PipePool,
    probing::ProbeBudget,
    worker::Worker,
};
pub use self::{
    ending::Ending,
    health::Verdict,
    status::{BackendStatus, ListenerStatus, PoolStatus, ProxyStatus, SocketState},
};
use crate::{
    config::{defaults::proxy as defaults, reserved::Reserved},
    model::snapshot::Snapshot,
};

/// What a node's proxy is made from.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// The node's own addresses, for listeners on every node.
    pub service_addresses: Vec<IpAddr>,
    /// Worker threads; 0 means one for each core.
    pub workers: usize,
    pub limits: ProxyLimits,
    pub vip_binding: VipBinding,
    /// What the node needs for itself; listeners never get it.
    pub reserved: Reserved,
}

impl ProxyConfig {
    /// With one worker per core, the usual limits, and VIPs bound always.
    pub fn new(service_addresses: Vec<IpAddr>) -> Self {
        Self {
            service_addresses,
            workers: 0,
            limits: ProxyLimits::default(),
            vip_binding: VipBinding::Always,
            reserved: Reserved::default(),
        }
    }
}

/// When a node listens on VIPs.
#[derive(Clone, Debug)]
pub enum VipBinding {
    /// Always, whether the address is on this host or not (IP_FREEBIND); the kernel brings packets only to the holder.
    Always,
    /// Only on the VIPs in the set, those this node holds now. For nodes that share one machine, where every address is
    /// local: the listener's socket then stands in for holding the address.
    WhenHeld(watch::Receiver<BTreeSet<IpAddr>>),
}

/// Bounds of a node's proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyLimits {
    /// Connections of all listeners together; lowered at start if too few files may be open for it.
    pub connections: u32,
    /// Pipes for splice(2), 256 KiB and two file descriptors each; beyond it connections are copied.
    pub pipes: u32,
    /// Listening sockets of all listeners; lowered at start if too few files may be open for it.
    pub sockets: u32,
    /// Health probes under way at one time, at least 1; beyond it they are late.
    pub probes: usize,
    /// How long connections of a removed backend or listener may go on.
    pub drain: Duration,
}

impl Default for ProxyLimits {
    fn default() -> Self {
        Self {
            connections: defaults::CONNECTIONS,
            pipes: defaults::PIPES,
            sockets: 65_536,
            probes: defaults::PROBES as usize,
            drain: defaults::DRAIN_REMOVED,
        }
    }
}

impl ProxyLimits {
    /// Lowers the limits so that connections (two files each) and pipes (two each) take at most five eighths of the files
    /// that the process may open, and listening sockets an eighth. DNS takes an eighth; peers and storage need the rest.
    pub fn fit_into(self, open_files: u64) -> Self {
        let ours = u32::try_from(open_files / 8 * 5).unwrap_or(u32::MAX);
        let pipes = self.pipes.min(ours / 16);
        Self {
            connections: self.connections.min((ours - 2 * pipes) / 2),
            pipes,
            sockets: self
                .sockets
                .min(u32::try_from(open_files / 8).unwrap_or(u32::MAX)),
            ..self
        }
    }
}

/// Why the proxy could not start. Ports that cannot be bound are no such reason: they are tried again and seen in the status.
#[derive(Debug, thiserror::Error)]
#[error("cannot start the proxy's {what}: {source}; raise the limits on threads and open files")]
pub struct StartError {
    what: &'static str,
    source: io::Error,
}

/// How long connections may go on after a stop was asked for.
#[derive(Clone, Debug)]
pub struct Drain {
    pub deadline: Instant,
    /// Cancelled to end them before the deadline.
    pub cut_short: CancellationToken,
}

impl Drain {
    pub fn until(deadline: Instant) -> Self {
        Self {
            deadline,
            cut_short: CancellationToken::new(),
        }
    }

    async fn is_over(&self) {
        tokio::select! {
            // Both only wait.
            () = tokio::time::sleep_until(self.deadline.into()) => {}
            () = self.cut_short.cancelled() => {}
        }
    }
}

/// A running proxy. Call [`Proxy::stop`] to end it in order; dropping it ends all connections and waits for its threads.
#[derive(Debug)]
pub struct Proxy {
    observer: ProxyObserver,
    stop: Option<oneshot::Sender<Drain>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Proxy {
    /// Starts the threads and begins to serve what the channel holds. Needs no runtime around it.
    pub fn start(
        config: ProxyConfig,
        snapshots: watch::Receiver<Arc<Snapshot>>,
    ) -> Result<Self, StartError> {
        let limits = fit_limits(config.limits);
        let workers = start_workers(config.workers)?;
        let observer = ProxyObserver {
            workers: workers.iter().map(|w| w.runtime.clone()).collect(),
            directory: Arc::default(),
            bounds: Bounds {
                connections: Arc::new(Budget::new(limits.connections)),
                pipes: PipePool::new(limits.pipes),
                probes: ProbeBudget::new(limits.probes),
                sockets: Arc::new(Sockets::new(limits.sockets)),
            },
        };
        let control = Control {
            own: config.service_addresses,
            reserved: config.reserved,
            directory: observer.directory.clone(),
            bounds: observer.bounds.clone(),
            means: Means {
                pipes: observer.bounds.pipes.clone(),
                told: Arc::default(),
            },
            drain: limits.drain,
            seed: rand::random(),
            workers,
            everything: CancellationToken::new(),
            work: control::Work::default(),
        };
        let (stop, stopped) = oneshot::channel();
        let inputs = Inputs {
            snapshots,
            held: match config.vip_binding {
                VipBinding::Always => None,
                VipBinding::WhenHeld(held) => Some(held),
            },
            stop: stopped,
        };
        let thread = start_control(control, inputs)?;
        Ok(Self {
            observer,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// What is being served, with every counter and this node's verdict on every backend.
    pub fn status(&self) -> ProxyStatus {
        self.observer.status()
    }

    /// A reader of the status that outlives this value, for those who answer questions about it.
    pub fn observer(&self) -> ProxyObserver {
        self.observer.clone()
    }

    /// Stops accepting at once, lets connections go on for as long as the drain says at most, and frees everything.
    pub async fn stop(mut self, drain: Drain) {
        self.tell_to_stop(drain);
        if let Some(thread) = self.thread.take() {
            // Fails only if the thread panicked, which `join_control` reports.
            let _ = tokio::task::spawn_blocking(move || join_control(thread)).await;
        }
    }

    fn tell_to_stop(&mut self, drain: Drain) {
        if let Some(stop) = self.stop.take() {
            // Refused only if the thread is gone already.
            let _ = stop.send(drain);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.tell_to_stop(Drain::until(Instant::now()));
        if let Some(thread) = self.thread.take() {
            join_control(thread);
        }
    }
}

/// Reads the status of a proxy owned by someone else.
#[derive(Clone, Debug)]
pub struct ProxyObserver {
    directory: Arc<Directory>,
    bounds: Bounds,
    workers: Arc<[Handle]>,
}

impl ProxyObserver {
    /// Whether every thread that forwards does something that it is given within this time.
    pub async fn answers(&self, within: Duration) -> bool {
        let given: Vec<_> = self.workers.iter().map(|w| w.spawn(async {})).collect();
        let done = futures::future::join_all(given);
        let done = tokio::time::timeout(within, done).await;
        done.is_ok_and(|all| all.iter().all(Result::is_ok))
    }

    pub fn status(&self) -> ProxyStatus {
        ProxyStatus::take(&self.directory, &self.bounds, Instant::now())
    }
}

fn fit_limits(limits: ProxyLimits) -> ProxyLimits {
    use nix::sys::resource::{Resource, getrlimit};
    let Ok((open_files, _)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return limits;
    };
    let wanted = limits.connections;
    let fitted = limits.fit_into(open_files);
    if fitted.connections < wanted {
        let connections = fitted.connections;
        tracing::warn!(
            wanted,
            connections,
            open_files,
            "fewer connections than configured: raise the limit on open files"
        );
    }
    fitted
}

fn start_workers(count: usize) -> Result<Vec<Worker>, StartError> {
    let count = match count {
        0 => thread::available_parallelism().map_or(1, usize::from),
        count => count,
    };
    let mut workers = Vec::with_capacity(count);
    for number in 0..count {
        match Worker::start(number) {
            Ok(worker) => workers.push(worker),
            Err(source) => {
                workers.into_iter().for_each(Worker::join);
                let what = "worker threads";
                return Err(StartError { what, source });
            }
        }
    }
    Ok(workers)
}

fn start_control(control: Control, inputs: Inputs) -> Result<thread::JoinHandle<()>, StartError> {
    let what = "control thread";
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| StartError { what, source })?;
    thread::Builder::new()
        .name("proxy-control".to_owned())
        .spawn(move || runtime.block_on(control.run(inputs)))
        .map_err(|source| StartError { what, source })
}

fn join_control(thread: thread::JoinHandle<()>) {
    if thread.join().is_err() {
        tracing::error!("the proxy's control thread had panicked");
    }
}
