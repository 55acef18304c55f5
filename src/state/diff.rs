//! Differences: between two contents of a zone, and between two snapshots. Structure that is shared is not looked at.

use std::{collections::BTreeMap, net::IpAddr};

use imbl::{OrdMap, ordmap::DiffItem};

use super::soa;
use crate::model::{
    label::Label,
    name::{Name, NameKey},
    rrset::{RecordType, Rrset},
    snapshot::Snapshot,
    zone::{Node, Zone},
};

/// One set of a zone, before and after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetChange {
    pub owner: NameKey,
    pub rtype: RecordType,
    pub before: Option<Rrset>,
    pub after: Option<Rrset>,
}

impl SetChange {
    /// The records that went, without those whose data stays. All of them when the TTL changed.
    pub fn removed(&self) -> Vec<&[u8]> {
        only_in(self.before.as_ref(), self.after.as_ref())
    }

    /// The records that came.
    pub fn added(&self) -> Vec<&[u8]> {
        only_in(self.after.as_ref(), self.before.as_ref())
    }

    /// The change that undoes this one.
    #[must_use]
    pub fn inverse(&self) -> Self {
        Self {
            owner: self.owner.clone(),
            rtype: self.rtype,
            before: self.after.clone(),
            after: self.before.clone(),
        }
    }

    /// Octets it takes to keep this change.
    pub fn cost(&self) -> u64 {
        let size = |set: &Option<Rrset>| set.as_ref().map_or(0, Rrset::packed_len);
        (96 + self.owner.as_bytes().len() + size(&self.before) + size(&self.after)) as u64
    }
}

fn only_in<'a>(set: Option<&'a Rrset>, other: Option<&Rrset>) -> Vec<&'a [u8]> {
    let same_ttl = |o: &Rrset| set.is_some_and(|s| s.ttl() == o.ttl());
    let other = other.filter(|o| same_ttl(o));
    let kept = |data: &&[u8]| other.is_none_or(|o| !o.contains(data));
    set.into_iter()
        .flat_map(Rrset::rdata)
        .filter(|data| kept(data))
        .collect()
}

/// The sets that differ between two contents of a zone, in canonical order. The serial of the SOA does not count.
pub fn between_nodes(old: &OrdMap<NameKey, Node>, new: &OrdMap<NameKey, Node>) -> Vec<SetChange> {
    old.diff(new)
        .flat_map(|item| match item {
            DiffItem::Add(owner, node) => between_sets(owner, None, Some(node)),
            DiffItem::Remove(owner, node) => between_sets(owner, Some(node), None),
            DiffItem::Update { old, new } => between_sets(new.0, Some(old.1), Some(new.1)),
        })
        .collect()
}

/// The sets that differ between two zones, in canonical order. The serial of the SOA does not count.
pub fn between_zones(old: &Zone, new: &Zone) -> Vec<SetChange> {
    between_nodes(&old.nodes, &new.nodes)
}

fn between_sets(owner: &NameKey, old: Option<&Node>, new: Option<&Node>) -> Vec<SetChange> {
    let find = |node: Option<&Node>, rtype| node.and_then(|n| n.find(rtype)).cloned();
    let mut types: Vec<RecordType> = old
        .into_iter()
        .chain(new)
        .flat_map(Node::rrsets)
        .map(Rrset::rtype)
        .collect();
    types.sort_unstable();
    types.dedup();
    types
        .into_iter()
        .map(|rtype| SetChange {
            owner: owner.clone(),
            rtype,
            before: find(old, rtype),
            after: find(new, rtype),
        })
        .filter(|change| !soa::same_but_serial(change.before.as_ref(), change.after.as_ref()))
        .collect()
}

/// The one change that a run of changes amounts to, in canonical order; what came and went again is left out.
pub fn compose<'a>(steps: impl IntoIterator<Item = &'a SetChange>) -> Vec<SetChange> {
    let mut sum: BTreeMap<(NameKey, RecordType), SetChange> = BTreeMap::new();
    for step in steps {
        sum.entry((step.owner.clone(), step.rtype))
            .and_modify(|change| change.after.clone_from(&step.after))
            .or_insert_with(|| step.clone());
    }
    sum.into_values()
        .filter(|change| !soa::same_but_serial(change.before.as_ref(), change.after.as_ref()))
        .collect()
}

/// What became of one object between two snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Added,
    Changed,
    Removed,
}

/// The objects that differ between two snapshots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotDiff {
    pub zones: Vec<(Name, Fate)>,
    pub forwarders: Vec<(Name, Fate)>,
    pub pools: Vec<(Label, Fate)>,
    pub listeners: Vec<(Label, Fate)>,
    pub vips: Vec<(IpAddr, Fate)>,
    pub dns_policy: bool,
}

/// The objects that differ between two snapshots. Costs what differs, not what there is.
pub fn between_snapshots(old: &Snapshot, new: &Snapshot) -> SnapshotDiff {
    SnapshotDiff {
        zones: fates(&old.zones, &new.zones),
        forwarders: fates(&old.forwarders, &new.forwarders),
        pools: fates(&old.pools, &new.pools),
        listeners: fates(&old.listeners, &new.listeners),
        vips: fates(&old.vips, &new.vips),
        dns_policy: old.dns != new.dns,
    }
}

impl SnapshotDiff {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Values behind an `Arc` that is shared are equal without being read.
fn fates<K: Ord + Clone, V: PartialEq>(old: &OrdMap<K, V>, new: &OrdMap<K, V>) -> Vec<(K, Fate)> {
    old.diff(new)
        .map(|item| match item {
            DiffItem::Add(key, _) => (key.clone(), Fate::Added),
            DiffItem::Remove(key, _) => (key.clone(), Fate::Removed),
            DiffItem::Update { new, .. } => (new.0.clone(), Fate::Changed),
        })
        .collect()
}
