//! The site document: the whole desired state of the service in one TOML text.
//!
//! `document` reads it and reports all its faults together, `plan` finds what must change to reach it, `export` writes the
//! state as a document. Nothing here touches disk: whoever has a document with `file` keys or `$INCLUDE` turns it into one
//! that stands alone with `bundle`, giving a loader for the files.

pub mod bundle;
pub mod document;
pub mod export;
mod lines;
pub mod plan;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, net::IpAddr};

use crate::model::{
    forwarder::Forwarder,
    label::Label,
    listener::Listener,
    name::Name,
    pool::Pool,
    rrset::Rrset,
    snapshot::{DnsPolicy, Snapshot},
    vip::Vip,
};

/// Where every key of the document is described.
pub(crate) const MANUAL: &str = "docs/site.md";

/// Everything a site document says. What is absent from it is not to exist.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Site {
    pub dns: DnsPolicy,
    /// The sets of each zone, sorted by owner and type.
    pub zones: BTreeMap<Name, Vec<(Name, Rrset)>>,
    pub forwarders: BTreeMap<Name, Forwarder>,
    pub pools: BTreeMap<Label, Pool>,
    pub listeners: BTreeMap<Label, Listener>,
    pub vips: BTreeMap<IpAddr, Vip>,
}

impl Site {
    /// What the service is now.
    pub fn of(snapshot: &Snapshot) -> Self {
        let records = |zone: &crate::model::zone::Zone| {
            let sets = zone.rrsets().map(|(owner, set)| (owner, set.clone()));
            sets.collect()
        };
        let Snapshot {
            revision: _,
            zones,
            forwarders,
            pools,
            listeners,
            vips,
            unclaimed_vips: _,
            dns,
        } = snapshot;
        Self {
            dns: dns.clone(),
            zones: zones.iter().map(|(n, z)| (n.clone(), records(z))).collect(),
            forwarders: forwarders
                .iter()
                .map(|(n, f)| (n.clone(), f.as_ref().clone()))
                .collect(),
            pools: pools
                .iter()
                .map(|(n, p)| (n.clone(), p.as_ref().clone()))
                .collect(),
            listeners: listeners
                .iter()
                .map(|(n, l)| (n.clone(), l.as_ref().clone()))
                .collect(),
            vips: vips.iter().map(|(a, v)| (*a, v.clone())).collect(),
        }
    }

    /// Puts another port in place of every port of listeners, backends and upstreams: for a local cluster, which lays
    /// out its ports around a base of its own.
    pub fn map_ports(&mut self, map: impl Fn(u16) -> u16) {
        for listener in self.listeners.values_mut() {
            listener.port = map(listener.port);
        }
        for backend in self.pools.values_mut().flat_map(|p| &mut p.backends) {
            backend.address.set_port(map(backend.address.port()));
        }
        for upstream in self.forwarders.values_mut().flat_map(|f| &mut f.upstreams) {
            upstream.set_port(map(upstream.port()));
        }
    }
}
