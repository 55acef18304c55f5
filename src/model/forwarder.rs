//! Forwarders: the upstream servers asked for names below a suffix.

use std::{net::SocketAddr, time::Duration};

use super::name::Name;

/// Upstreams for a suffix. The longest suffix that matches a question wins; `.` takes what is left.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Forwarder {
    /// Unique among forwarders.
    pub suffix: Name,
    /// Asked in order of measured speed; 1 to 16, each once.
    pub upstreams: Vec<SocketAddr>,
    /// Longest wait for one upstream before the next is tried, 10 ms to 30 s. A question has 10 s for all of them, and each
    /// gets at most an equal share of what is left.
    pub timeout: Duration,
}
