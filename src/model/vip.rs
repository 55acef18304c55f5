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

/// VIPs that no member has held since they were added, and the revision of the state at which each was.
pub type UnclaimedVips = BTreeMap<IpAddr, u64>;

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
    /// Who held the VIPs before this node, and gave them to the next by plan; the last one first.
    pub givers: Vec<NodeId>,
}

impl VipPeers {
    /// The Ethernet addresses of the other members.
    pub fn macs(&self) -> BTreeSet<[u8; 6]> {
        self.macs_without(None)
    }

    /// Every address that is known to be a member's own: what comes from one of them is no client's.
    pub fn own_addresses(&self) -> BTreeSet<IpAddr> {
        let services = self.service_addresses();
        self.addresses.union(&services).copied().collect()
    }

    /// Own addresses of the other members on which services answer.
    pub fn service_addresses(&self) -> BTreeSet<IpAddr> {
        let all = self.facts.values();
        all.flat_map(|facts| facts.addresses.iter().copied())
            .collect()
    }

    /// Where the node is that still serves what an earlier holder of `address` carried, other than `holder`, which holds it now (none:
    /// this node does). Of several the one that held it last: it knows of those before it.
    pub fn old_holder(
        &self,
        address: IpAddr,
        interface: &Label,
        holder: Option<NodeId>,
    ) -> Option<[u8; 6]> {
        let serves = |id: &&NodeId| {
            let facts = self.facts.get(id);
            Some(**id) != holder && facts.is_some_and(|facts| facts.serving.contains(&address))
        };
        let old = self.givers.iter().chain(self.facts.keys()).find(serves)?;
        self.facts.get(old)?.macs.get(interface.as_str()).copied()
    }

    /// The Ethernet addresses of the other members but one.
    pub fn macs_without(&self, one: Option<NodeId>) -> BTreeSet<[u8; 6]> {
        let others = self.facts.iter().filter(|(id, _)| Some(**id) != one);
        others
            .flat_map(|(_, facts)| facts.macs.values().copied())
            .collect()
    }
}
