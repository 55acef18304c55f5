//! Virtual addresses: held by one node at a time, known to clients.

use std::net::IpAddr;

use super::label::Label;

/// A shared address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Vip {
    pub address: IpAddr,
    /// Logical interface name that each node's `node.toml` maps to a device (`[interfaces]`); the default is `vip`.
    pub interface: Label,
}
