//! The records of a zone while it is built or changed, with their counts and hash kept in step.

use imbl::OrdMap;

use super::{digest::Sum, snapshot::v1, soa};
use crate::model::{
    name::{Name, NameKey},
    rrset::{RecordType, Rrset},
    serial::Serial,
    zone::{Node, Zone},
};

/// A zone's contents without its serial. Cloning shares structure.
#[derive(Clone, Debug, Default)]
pub struct ZoneRecords {
    nodes: OrdMap<NameKey, Node>,
    record_count: u64,
    data_bytes: u64,
    hash: Sum,
}

impl ZoneRecords {
    pub fn of(zone: &Zone) -> Self {
        Self {
            nodes: zone.nodes.clone(),
            record_count: zone.record_count,
            data_bytes: zone.data_bytes,
            hash: Sum::from_bytes(zone.content_hash),
        }
    }

    /// The zone with these records. The SOA takes `serial`, which the content hash leaves out.
    pub fn into_zone(mut self, apex: Name, serial: Serial, revision: u64) -> Zone {
        let apex_key = NameKey::apex();
        if let Some(node) = self.nodes.get(&apex_key)
            && let Some(soa) = node.find(RecordType::SOA)
            && soa::serial_of(soa) != Some(serial)
        {
            let stamped = node.with(soa::with_serial(soa, serial));
            self.nodes.insert(apex_key, stamped);
        }
        Zone {
            apex,
            serial,
            revision,
            nodes: self.nodes,
            record_count: self.record_count,
            data_bytes: self.data_bytes,
            content_hash: self.hash.to_bytes(),
        }
    }

    pub fn nodes(&self) -> &OrdMap<NameKey, Node> {
        &self.nodes
    }

    /// As `Zone::content_hash`: zones with equal hashes hold the same, but for the serial.
    pub fn content_hash(&self) -> [u8; 16] {
        self.hash.to_bytes()
    }

    pub fn record_count(&self) -> u64 {
        self.record_count
    }

    pub fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    pub fn find(&self, owner: &NameKey, rtype: RecordType) -> Option<&Rrset> {
        self.nodes.get(owner)?.find(rtype)
    }

    /// Puts `set` in place of the owner's set of its type.
    pub fn set(&mut self, owner: &NameKey, set: Rrset) {
        let old = self.nodes.get(owner);
        let replaced = old.and_then(|node| node.find(set.rtype())).cloned();
        let node = match old {
            Some(node) => Some(node.with(set.clone())),
            None => Node::new([set.clone()]),
        };
        self.count_out(owner, replaced.as_ref());
        self.count_in(owner, &set);
        if let Some(node) = node {
            self.nodes.insert(owner.clone(), node);
        }
    }

    /// Takes the owner's set of `rtype` away, and its name with its last set.
    pub fn remove(&mut self, owner: &NameKey, rtype: RecordType) {
        let Some(node) = self.nodes.get(owner) else {
            return;
        };
        let (gone, left) = (node.find(rtype).cloned(), node.without(rtype));
        self.count_out(owner, gone.as_ref());
        match left {
            Some(node) => self.nodes.insert(owner.clone(), node),
            None => self.nodes.remove(owner),
        };
    }

    /// Adds a name with all its sets; false when the name is there already.
    #[must_use]
    pub fn insert_node(&mut self, owner: NameKey, node: Node) -> bool {
        for set in node.rrsets() {
            self.count_in(&owner, set);
        }
        self.nodes.insert(owner, node).is_none()
    }

    fn count_in(&mut self, owner: &NameKey, set: &Rrset) {
        self.record_count += set.len() as u64;
        self.data_bytes += set.packed_len() as u64;
        self.hash.add(content_digest(owner, set));
    }

    fn count_out(&mut self, owner: &NameKey, set: Option<&Rrset>) {
        let Some(set) = set else { return };
        self.record_count -= set.len() as u64;
        self.data_bytes -= set.packed_len() as u64;
        self.hash.remove(content_digest(owner, set));
    }
}

fn content_digest(owner: &NameKey, set: &Rrset) -> u128 {
    match set.rtype() {
        RecordType::SOA => v1::rrset_digest(owner, &soa::with_serial(set, Serial(0))),
        _ => v1::rrset_digest(owner, set),
    }
}
