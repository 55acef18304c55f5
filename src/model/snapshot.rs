//! The read-only state handed to the servers: what the log says about the service, at one revision.
//!
//! A snapshot is immutable and shared. `state` builds it from the persistent maps by cloning their roots; publishing it is
//! one pointer swap. It holds nothing secret.

use std::{net::IpAddr, sync::Arc};

use imbl::OrdMap;

use super::{
    forwarder::Forwarder, label::Label, listener::Listener, name::Name, network::Network,
    pool::Pool, vip::Vip, zone::Zone,
};

/// The service at one revision. Cloning is cheap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Log index of the last applied change.
    pub revision: u64,
    pub zones: OrdMap<Name, Arc<Zone>>,
    pub forwarders: OrdMap<Name, Arc<Forwarder>>,
    pub pools: OrdMap<Label, Arc<Pool>>,
    pub listeners: OrdMap<Label, Arc<Listener>>,
    pub vips: OrdMap<IpAddr, Vip>,
    /// Those of `vips` that no member has held since they were added, and the revision at which each was: before one is claimed it is
    /// looked whether a foreign host has it.
    pub unclaimed_vips: OrdMap<IpAddr, u64>,
    pub dns: DnsPolicy,
}

/// Settings of the DNS service that hold for the whole cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsPolicy {
    /// Clients that may ask for names outside our own zones.
    pub recursion_allowed: Vec<Network>,
}

impl Default for DnsPolicy {
    /// Recursion for loopback, private (RFC 1918), link-local and unique local networks.
    fn default() -> Self {
        let networks = [
            "127.0.0.0/8",
            "10.0.0.0/8",
            "172.16.0.0/12",
            "192.168.0.0/16",
            "169.254.0.0/16",
            "::1/128",
            "fc00::/7",
            "fe80::/10",
        ];
        let parse = |text: &str| text.parse().expect("a network written in this file");
        Self {
            recursion_allowed: networks.map(parse).to_vec(),
        }
    }
}

impl Snapshot {
    /// The zone with the longest apex that `name` lies in.
    pub fn zone_of(&self, name: &Name) -> Option<&Arc<Zone>> {
        longest_suffix(&self.zones, name)
    }

    /// The forwarder with the longest suffix that `name` lies in.
    pub fn forwarder_of(&self, name: &Name) -> Option<&Arc<Forwarder>> {
        longest_suffix(&self.forwarders, name)
    }

    /// Whether nothing but names and what is said of them may differ. Compares whether the maps are the very same ones: a
    /// change that was taken back counts as one.
    pub fn has_same_front(&self, other: &Self) -> bool {
        let Self {
            revision: _,
            zones: _,
            forwarders: _,
            dns: _,
            pools,
            listeners,
            vips,
            unclaimed_vips,
        } = self;
        pools.ptr_eq(&other.pools)
            && listeners.ptr_eq(&other.listeners)
            && vips.ptr_eq(&other.vips)
            && unclaimed_vips.ptr_eq(&other.unclaimed_vips)
    }

    pub fn vip_addresses(&self) -> Vec<IpAddr> {
        self.vips.keys().copied().collect()
    }
}

fn longest_suffix<'a, V: Clone>(map: &'a OrdMap<Name, V>, name: &Name) -> Option<&'a V> {
    std::iter::successors(Some(name.clone()), Name::parent).find_map(|suffix| map.get(&suffix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_no_part_of_the_front() {
        let before = Snapshot::default();
        let mut named = before.clone();
        named.revision = 7;
        named.dns.recursion_allowed.clear();
        assert!(before.has_same_front(&named));
        let mut held = before.clone();
        let address = IpAddr::from([192, 0, 2, 1]);
        let interface = "vip".parse().expect("a label");
        held.vips.insert(address, Vip { address, interface });
        assert!(!before.has_same_front(&held));
        let mut unclaimed = held.clone();
        unclaimed.unclaimed_vips.insert(address, 7);
        assert!(!held.has_same_front(&unclaimed));
    }
}
