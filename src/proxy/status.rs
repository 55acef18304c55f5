//! What the proxy says about itself. Ordinary values, taken from the counters at one moment.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{
    ending::Ending,
    health::Verdict,
    live::{Bounds, Directory, LiveListener, LivePool, Member},
};
use crate::{
    config::reserved::Owner,
    model::{
        label::Label,
        pool::{BackendState, Policy},
    },
};

/// The proxy of this node at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyStatus {
    /// Sorted by name.
    pub listeners: Vec<ListenerStatus>,
    /// Sorted by name.
    pub pools: Vec<PoolStatus>,
    /// Connections of all listeners, those of removed listeners included.
    pub connections: u32,
    /// The most that all listeners may have together.
    pub connection_limit: u32,
    /// Pipes open for splicing, lent or pooled.
    pub pipes_open: u32,
    /// The most pipes that may be open.
    pub pipe_limit: u32,
    /// Health probes under way.
    pub probes_under_way: usize,
    /// Health probes that are due and wait for others to end.
    pub probes_waiting: u32,
    /// The most health probes that may be under way.
    pub probe_limit: usize,
    /// Listening sockets of all listeners.
    pub listening_sockets: u32,
    /// The most listening sockets that there may be.
    pub listening_limit: u32,
}

/// A listener at one moment; counters run since it was added or the node started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerStatus {
    pub name: Label,
    pub pool: Label,
    /// The addresses that this node is to accept on, sorted.
    pub sockets: Vec<(SocketAddr, SocketState)>,
    pub connections: u32,
    pub max_connections: u32,
    /// Accepted and served.
    pub total: u64,
    /// Accepted and reset because the listener or the node was full.
    pub refused: u64,
    /// Failures of accept itself: no file descriptors, no memory.
    pub accept_errors: u64,
    pub bytes_from_clients: u64,
    pub bytes_to_clients: u64,
    /// How connections ended.
    pub endings: Vec<(Ending, u64)>,
}

/// Whether an address is being listened on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SocketState {
    Bound,
    /// Tried so many times in a row; it will be tried again.
    Failed {
        error: String,
        attempts: u32,
    },
    /// Never tried: the node needs the address for itself.
    Withheld {
        by: Owner,
    },
}

/// Attempts to bind an address after which it is no passing obstacle any more, such as a VIP on its way from node to node:
/// some 700 ms.
const LASTING: u32 = 4;

impl SocketState {
    /// Why the address is not listened on; none while it is.
    pub fn problem(&self) -> Option<String> {
        match self {
            Self::Bound => None,
            Self::Failed { error, .. } => Some(error.clone()),
            Self::Withheld { by } => Some(format!(
                "{by} of this node has this address; give the listener another port"
            )),
        }
    }

    /// Whether the obstacle will not go away by itself.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Bound => false,
            Self::Failed { attempts, .. } => *attempts >= LASTING,
            Self::Withheld { .. } => true,
        }
    }
}

/// A pool at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolStatus {
    pub name: Label,
    pub policy: Policy,
    /// Sorted by name.
    pub backends: Vec<BackendStatus>,
}

/// A backend as this node sees it; counters run since it was added or the node started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendStatus {
    pub name: Label,
    pub address: SocketAddr,
    pub weight: u16,
    pub state: BackendState,
    pub verdict: Verdict,
    /// Whether a health check watches it; if not it counts as up.
    pub checked: bool,
    /// The verdict is presumed: no probe has finished yet.
    pub presumed: bool,
    /// Results in a row that speak against the verdict.
    pub against: u8,
    /// For how long the verdict has stood.
    pub verdict_age: Duration,
    /// The last failed probe or connection attempt, and how long ago.
    pub last_error: Option<(String, Duration)>,
    /// Up, enabled and with a weight above zero.
    pub takes_connections: bool,
    pub connections: u32,
    /// Connections made.
    pub total: u64,
    pub connect_failures: u64,
    pub probes: u64,
    pub probes_failed: u64,
    /// Probes that could not be made for want of something on this node; not among `probes`.
    pub probes_unmade: u64,
    pub bytes_from_clients: u64,
    pub bytes_to_clients: u64,
}

impl ProxyStatus {
    pub(super) fn take(directory: &Directory, bounds: &Bounds, now: Instant) -> Self {
        let Bounds {
            connections,
            pipes,
            probes,
            sockets,
        } = bounds;
        let listeners = directory.listeners();
        let pools = directory.pools();
        Self {
            listeners: listeners.iter().map(|l| ListenerStatus::take(l)).collect(),
            pools: pools.iter().map(|p| PoolStatus::take(p, now)).collect(),
            connections: connections.connections(),
            connection_limit: connections.limit(),
            pipes_open: pipes.open(),
            pipe_limit: pipes.limit(),
            probes_under_way: probes.under_way(),
            probes_waiting: probes.waiting(),
            probe_limit: probes.limit(),
            listening_sockets: sockets.open(),
            listening_limit: sockets.limit(),
        }
    }

    pub fn listener(&self, name: &str) -> Option<&ListenerStatus> {
        self.listeners.iter().find(|l| l.name.as_str() == name)
    }

    pub fn backend(&self, pool: &str, name: &str) -> Option<&BackendStatus> {
        let pool = self.pools.iter().find(|p| p.name.as_str() == pool)?;
        pool.backends.iter().find(|b| b.name.as_str() == name)
    }

    /// Whether every listener is bound on every address that this node is to accept on.
    pub fn all_bound(&self) -> bool {
        let mut sockets = self.listeners.iter().flat_map(|l| &l.sockets);
        sockets.all(|(_, state)| *state == SocketState::Bound)
    }
}

impl ListenerStatus {
    fn take(listener: &LiveListener) -> Self {
        let settings = listener.settings.load();
        Self {
            name: listener.name.clone(),
            pool: settings.pool_name.clone(),
            sockets: listener.sockets().into_iter().collect(),
            connections: listener.connections(),
            max_connections: settings.max_connections,
            total: listener.accepted(),
            refused: listener.refused(),
            accept_errors: listener.accept_errors(),
            bytes_from_clients: listener.traffic.upward(),
            bytes_to_clients: listener.traffic.downward(),
            endings: listener.endings().collect(),
        }
    }

    /// How many connections ended in that way.
    pub fn ended(&self, ending: Ending) -> u64 {
        let mut counts = self.endings.iter();
        counts
            .find(|(e, _)| *e == ending)
            .map_or(0, |(_, count)| *count)
    }
}

impl PoolStatus {
    /// Backends that take connections: enabled, with a weight above zero, and up in the eyes of this node.
    pub fn usable(&self) -> usize {
        let backends = self.backends.iter();
        backends.filter(|b| b.takes_connections).count()
    }

    fn take(pool: &LivePool, now: Instant) -> Self {
        let members = pool.members();
        Self {
            name: pool.name.clone(),
            policy: pool.policy(),
            backends: members
                .iter()
                .map(|m| BackendStatus::take(m, now))
                .collect(),
        }
    }
}

/// How long the last error of a backend that is up is worth telling.
const OF_LATE: Duration = Duration::from_secs(60);

impl BackendStatus {
    /// Why it is down; of one that is up, what went wrong with a connection or a probe within the last minute.
    pub fn problem(&self) -> Option<&str> {
        let (error, age) = self.last_error.as_ref()?;
        (self.verdict == Verdict::Down || *age < OF_LATE).then_some(error)
    }

    fn take(member: &Member, now: Instant) -> Self {
        let backend = &member.backend;
        let report = backend.report();
        Self {
            name: backend.name.clone(),
            address: backend.address,
            weight: member.weight,
            state: member.state,
            verdict: report.verdict,
            checked: report.checked,
            presumed: report.presumed,
            against: report.against,
            verdict_age: now.saturating_duration_since(report.since),
            last_error: report
                .last_error
                .map(|(error, at)| (error, now.saturating_duration_since(at))),
            takes_connections: member.may_take_connections(),
            connections: backend.connections(),
            total: backend.connected(),
            connect_failures: backend.connect_failures(),
            probes: backend.probes(),
            probes_failed: backend.probes_failed(),
            probes_unmade: backend.probes_unmade(),
            bytes_from_clients: backend.traffic.upward(),
            bytes_to_clients: backend.traffic.downward(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::pool::Backend, proxy::live::LiveBackend};

    #[test]
    fn the_last_error_is_told_of_a_backend_that_is_down_and_for_a_while_of_one_that_is_up() {
        let backend = Backend {
            name: "b".parse().unwrap(),
            address: "192.0.2.1:80".parse().unwrap(),
            weight: 1,
            state: BackendState::Enabled,
        };
        let begin = Instant::now();
        let member = Member {
            backend: std::sync::Arc::new(LiveBackend::new(&backend, begin)),
            weight: 1,
            state: BackendState::Enabled,
        };
        let mut status = BackendStatus::take(&member, begin);
        assert_eq!(status.problem(), None);
        for (verdict, age, expected) in [
            (Verdict::Down, Duration::from_secs(86_400), Some("refused")),
            (Verdict::Up, Duration::from_secs(59), Some("refused")),
            (Verdict::Up, Duration::from_secs(60), None),
        ] {
            status.verdict = verdict;
            status.last_error = Some(("refused".to_owned(), age));
            assert_eq!(status.problem(), expected, "{verdict:?} {age:?}");
        }
    }
}
