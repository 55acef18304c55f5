//! The definition of a health check. Its verdict per node is made by `proxy::health`.

use std::time::Duration;

/// How a node finds out whether a backend works.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HealthCheck {
    pub probe: Probe,
    /// Between probes of a backend that is up, 10 ms to 1 h.
    pub interval: Duration,
    /// Between probes of a backend that is down, 10 ms to 1 h.
    pub down_interval: Duration,
    /// Longest wait for one probe, 1 ms to 60 s.
    pub timeout: Duration,
    /// Successes in a row that bring a backend up, 1 to 100.
    pub rise: u8,
    /// Failures in a row that take it down, 1 to 100.
    pub fall: u8,
}

/// What one probe does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Probe {
    /// Connects by TCP and closes.
    #[default]
    TcpConnect,
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            probe: Probe::TcpConnect,
            interval: Duration::from_secs(2),
            down_interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
        }
    }
}
