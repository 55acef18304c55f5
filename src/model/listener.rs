//! Listeners: addresses that accept connections and hand them to a pool.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use super::label::Label;

/// Where a listener accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ListenAddress {
    /// On every node's own service addresses (`service_addresses` of `node.toml`) and on every VIP.
    EveryNode,
    /// On one address: of a VIP, or one of a node's service addresses. Other nodes do not listen.
    Address(IpAddr),
}

/// An address, a port and the pool that serves them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Listener {
    pub name: Label,
    pub address: ListenAddress,
    /// 1 to 65535; no two listeners may meet on an address and port.
    pub port: u16,
    /// The pool that serves it; it must exist.
    pub pool: Label,
    /// Longest silence of a connection in both directions, 1 s to 24 h.
    pub idle_timeout: Duration,
    /// Connections at one time on one node, 1 to 1,000,000; more are refused at accept.
    pub max_connections: u32,
}

impl Listener {
    pub fn new(name: Label, address: ListenAddress, port: u16, pool: Label) -> Self {
        Self {
            name,
            address,
            port,
            pool,
            idle_timeout: Duration::from_secs(300),
            max_connections: 10_000,
        }
    }

    /// Whether the two would claim one socket address.
    pub fn clashes_with(&self, other: &Listener) -> bool {
        let meet = match (self.address, other.address) {
            (ListenAddress::Address(a), ListenAddress::Address(b)) => a == b,
            _ => true,
        };
        self.port == other.port && meet
    }

    /// The socket addresses to bind, given the node's own service addresses and all VIPs.
    pub fn bind_addresses(&self, own: &[IpAddr], vips: &[IpAddr]) -> Vec<SocketAddr> {
        match self.address {
            ListenAddress::Address(address) => vec![SocketAddr::new(address, self.port)],
            ListenAddress::EveryNode => {
                let mut all: Vec<_> = own
                    .iter()
                    .chain(vips)
                    .map(|ip| SocketAddr::new(*ip, self.port))
                    .collect();
                all.sort_unstable();
                all.dedup();
                all
            }
        }
    }
}
