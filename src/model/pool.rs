//! Pools: named backends, the policy that chooses among them and the health check that watches them.

use std::{net::SocketAddr, time::Duration};

use super::{health::HealthCheck, label::Label};

/// How a pool chooses a backend for a new connection or flow.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// Each backend in turn, by smooth weighted round robin.
    #[default]
    RoundRobin,
    /// The backend with the fewest connections for its weight, of this node's.
    LeastConnections,
    /// By a hash of the client's address, so that a client keeps its backend while the set stays.
    SourceHash,
}

/// Whether a backend takes new connections.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum BackendState {
    /// Takes connections while healthy.
    #[default]
    Enabled,
    /// Takes no new connection; those it has go on to their end.
    Drain,
    /// Takes no connection, and those it has are ended.
    Disabled,
}

/// One target of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Backend {
    /// Unique in its pool; by default the address as text with `:` kept out.
    pub name: Label,
    /// Unique in its pool.
    pub address: SocketAddr,
    /// Share of new connections, 0 to 1000; 0 takes none.
    pub weight: u16,
    pub state: BackendState,
}

/// Named backends, how to choose among them and how to tell which of them work.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pool {
    pub name: Label,
    pub policy: Policy,
    /// Sorted by name.
    pub backends: Vec<Backend>,
    /// None: every backend counts as healthy.
    pub health_check: Option<HealthCheck>,
    /// Longest wait for a connection to one backend, 1 ms to 60 s.
    pub connect_timeout: Duration,
    /// Further backends tried when a connection fails, 0 to 10.
    pub connect_retries: u8,
}

impl Pool {
    pub fn new(name: Label) -> Self {
        Self {
            name,
            policy: Policy::default(),
            backends: Vec::new(),
            health_check: Some(HealthCheck::default()),
            connect_timeout: Duration::from_secs(2), // above one SYN retransmission at 1 s
            connect_retries: 2,
        }
    }

    pub fn backend(&self, name: &Label) -> Option<&Backend> {
        self.backends.iter().find(|b| b.name == *name)
    }
}
