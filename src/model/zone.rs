//! Zones: an apex name and everything below it down to the next zone (RFC 1034 section 4.2), as a persistent tree.

use std::sync::Arc;

use imbl::OrdMap;

use super::{
    name::{Name, NameKey},
    rrset::{RecordType, Rrset},
    serial::Serial,
};

/// The contents of a zone at one serial. Cloning shares structure; a change costs the logarithm of the size.
///
/// The SOA record's own serial field in `nodes` is kept equal to `serial` by whoever builds the zone (`state`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    pub apex: Name,
    pub serial: Serial,
    /// Revision of the last change of this zone.
    pub revision: u64,
    /// Every name that owns records, in canonical order. Empty non-terminals are implied by the names below them.
    pub nodes: OrdMap<NameKey, Node>,
    /// Number of records (not of sets), for limits and status.
    pub record_count: u64,
    /// Octets of packed record data, for limits and status.
    pub data_bytes: u64,
    /// Order-independent hash over the zone's records, maintained with each change.
    pub content_hash: [u8; 16],
}

/// The sets at one name, sorted by type, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node(Arc<[Rrset]>);

impl Node {
    /// Makes a node of its sets; none when there is none. Of two sets with one type the last wins.
    pub fn new(sets: impl IntoIterator<Item = Rrset>) -> Option<Self> {
        let mut sorted: Vec<Rrset> = Vec::new();
        for set in sets {
            match sorted.binary_search_by_key(&set.rtype(), Rrset::rtype) {
                Ok(at) => sorted[at] = set,
                Err(at) => sorted.insert(at, set),
            }
        }
        (!sorted.is_empty()).then(|| Self(sorted.into()))
    }

    pub fn rrsets(&self) -> &[Rrset] {
        &self.0
    }

    pub fn find(&self, rtype: RecordType) -> Option<&Rrset> {
        self.0
            .binary_search_by_key(&rtype, Rrset::rtype)
            .ok()
            .map(|at| &self.0[at])
    }

    /// This node with `set` in place of what it had of that type.
    #[must_use]
    pub fn with(&self, set: Rrset) -> Self {
        // `new` lets the last set of a type win.
        Self::new(self.0.iter().cloned().chain([set])).unwrap_or_else(|| self.clone())
    }

    /// This node without sets of `rtype`; none when nothing is left.
    pub fn without(&self, rtype: RecordType) -> Option<Self> {
        Self::new(self.0.iter().filter(|s| s.rtype() != rtype).cloned())
    }
}

impl Zone {
    /// The sets at the apex. None only for a zone under construction.
    pub fn apex_node(&self) -> Option<&Node> {
        self.nodes.get([].as_slice())
    }

    pub fn soa(&self) -> Option<&Rrset> {
        self.apex_node()?.find(RecordType::SOA)
    }

    /// The node of `name`; none when it owns nothing here or lies outside.
    pub fn node(&self, name: &Name) -> Option<&Node> {
        self.nodes.get(&NameKey::of(name, &self.apex)?)
    }

    pub fn rrset(&self, name: &Name, rtype: RecordType) -> Option<&Rrset> {
        self.node(name)?.find(rtype)
    }

    /// Every set with its owner, in canonical order, the apex first.
    pub fn rrsets(&self) -> impl Iterator<Item = (Name, &Rrset)> {
        self.nodes.iter().flat_map(|(key, node)| {
            let owner = key.to_name(&self.apex);
            node.rrsets()
                .iter()
                .filter_map(move |set| Some((owner.clone()?, set)))
        })
    }
}
