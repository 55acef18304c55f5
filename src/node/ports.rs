//! The ports of a node that its operators and peers connect to, and how many connections each takes. DNS and the proxy bound theirs
//! themselves.

use std::sync::Arc;

use crate::transport::port::{Port, PortLimits};

/// Of the API, and of its unix socket.
const API_CONNECTIONS: usize = 1024;
/// Of these, without a certificate: machines that join, and strangers.
const API_STRANGERS: usize = 128;
/// Every peer has four; a lost one may linger for some seconds beside its successor.
const RAFT_CONNECTIONS: usize = 1024;
const HTTP_CONNECTIONS: usize = 256;

/// The bounds of this node's ports.
#[derive(Clone)]
pub(super) struct Ports {
    pub(super) api: Arc<Port>,
    pub(super) raft: Arc<Port>,
    pub(super) http: Arc<Port>,
    /// The unix socket.
    pub(super) socket: Arc<Port>,
}

impl Ports {
    pub(super) fn new() -> Self {
        let api = PortLimits {
            without_certificate: API_STRANGERS,
            ..PortLimits::of(API_CONNECTIONS)
        };
        Self {
            api: Port::new("api", api),
            raft: Port::new("raft", PortLimits::of(RAFT_CONNECTIONS)),
            http: Port::new("http", PortLimits::of(HTTP_CONNECTIONS)),
            socket: Port::new("socket", PortLimits::of(API_CONNECTIONS)),
        }
    }

    pub(super) fn all(&self) -> [&Port; 4] {
        [&self.api, &self.raft, &self.http, &self.socket]
    }
}
