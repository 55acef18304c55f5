//! Virtual addresses: held by one node at a time, known to clients.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{label::Label, node::NodeId};

/// A shared address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Vip {
    pub address: IpAddr,
    /// Logical interface name that each node's `node.toml` maps to a device (`[interfaces]`); the default is `vip`.
    pub interface: Label,
}

/// What a node says of the VIPs on its devices, for the other members.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct VipFacts {
    /// The Ethernet address of the device behind each logical interface.
    pub macs: BTreeMap<String, [u8; 6]>,
    /// VIPs whose old connections it still answers for, on behalf of their holder.
    pub serving: BTreeSet<IpAddr>,
    /// Own addresses of the node on which services answer.
    pub addresses: BTreeSet<IpAddr>,
}

/// The same of all other members that answer, as far as this node knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VipPeers {
    pub facts: BTreeMap<NodeId, VipFacts>,
    /// The members' own addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Who gave the VIPs to this node.
    pub given_by: Option<NodeId>,
}

impl VipPeers {
    /// The Ethernet addresses of the other members.
    pub fn macs(&self) -> BTreeSet<[u8; 6]> {
        let all = self.facts.values();
        all.flat_map(|facts| facts.macs.values().copied()).collect()
    }

    /// Own addresses of the other members on which services answer.
    pub fn service_addresses(&self) -> BTreeSet<IpAddr> {
        let all = self.facts.values();
        all.flat_map(|facts| facts.addresses.iter().copied())
            .collect()
    }

    /// Where the node is that still serves what an earlier holder of `address` carried. Of several the one that gave it to
    /// this node: it can have passed on none of the others' connections, since a frame is passed on once only.
    pub fn old_holder(&self, address: IpAddr, interface: &Label) -> Option<[u8; 6]> {
        let serves = |facts: &&VipFacts| facts.serving.contains(&address);
        let giver = self.given_by.and_then(|id| self.facts.get(&id));
        let old = giver
            .filter(serves)
            .or_else(|| self.facts.values().find(serves))?;
        old.macs.get(interface.as_str()).copied()
    }
}
