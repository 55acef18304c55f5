//! The history of each zone: what every committed change did, as far back as the limits allow.
//!
//! A version holds the sets that changed, before and after, so that a history costs what changed. Octets of data are shared
//! with the zone itself. Contents of an older serial are found by undoing versions from the present one.

use std::sync::Arc;

use imbl::{OrdMap, OrdSet, Vector};

use super::{
    command::UnixMillis,
    diff::{self, SetChange},
    digest::Sum,
    limits,
    records::ZoneRecords,
    snapshot::v1,
};
use crate::model::{name::Name, serial::Serial, zone::Zone};

/// One committed change of a zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneVersion {
    /// The serial the change made.
    pub serial: Serial,
    /// The revision that made it.
    pub revision: u64,
    /// Wall-clock time at the proposer.
    pub at: UnixMillis,
    pub author: String,
    /// What was done, in a few words.
    pub summary: String,
    /// The sets that changed since the version before, in canonical order. None where the history begins: the contents
    /// at this serial can be had, those before it cannot.
    pub changes: Option<Arc<[SetChange]>>,
}

impl ZoneVersion {
    /// Octets it takes to keep this version. The summary counts as its limit: nodes whose programs word it otherwise must keep
    /// the same versions.
    pub fn cost(&self) -> u64 {
        let changes = self.changes.iter().flat_map(|c| c.iter());
        256 + (self.author.len() + limits::SUMMARY_CHARS) as u64
            + changes.map(SetChange::cost).sum::<u64>()
    }
}

/// The versions of one zone, the oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ZoneHistory {
    versions: Vector<Arc<ZoneVersion>>,
    cost: u64,
}

impl ZoneHistory {
    /// The oldest first; the last is the present one.
    pub fn versions(&self) -> impl DoubleEndedIterator<Item = &ZoneVersion> + ExactSizeIterator {
        self.versions.iter().map(AsRef::as_ref)
    }

    pub fn find(&self, serial: Serial) -> Option<&ZoneVersion> {
        self.versions().rev().find(|v| v.serial == serial)
    }

    /// What leads from the contents at `from` to those at `to`, either being the older; none when one is not kept.
    pub fn between(&self, from: Serial, to: Serial) -> Option<Vec<SetChange>> {
        let position = |serial| self.versions.iter().rposition(|v| v.serial == serial);
        let (from, to) = (position(from)?, position(to)?);
        let (older, newer) = (from.min(to), from.max(to));
        let steps = self
            .versions
            .iter()
            .take(newer + 1)
            .skip(older + 1)
            .flat_map(|v| v.changes.iter().flat_map(|c| c.iter()));
        let forward = diff::compose(steps);
        Some(match from <= to {
            true => forward,
            false => forward.iter().map(SetChange::inverse).collect(),
        })
    }

    /// The zone as it was at `serial`, found from the zone as it is; none when that is not kept.
    pub fn zone_at(&self, now: &Zone, serial: Serial) -> Option<Zone> {
        let version = self.find(serial)?;
        let mut records = ZoneRecords::of(now);
        for change in self.between(now.serial, serial)? {
            match change.after {
                Some(set) => records.set(&change.owner, set),
                None => records.remove(&change.owner, change.rtype),
            }
        }
        Some(records.into_zone(now.apex.clone(), serial, version.revision))
    }
}

/// The histories of all zones.
#[derive(Clone, Debug, Default)]
pub struct Histories {
    zones: OrdMap<Name, ZoneHistory>,
    /// Zones with a version to give up, by the octets that their histories take.
    largest: OrdSet<(u64, Name)>,
    cost: u64,
    sum: Sum,
}

impl Histories {
    pub fn zone(&self, zone: &Name) -> Option<&ZoneHistory> {
        self.zones.get(zone)
    }

    /// Every version with its zone, zone by zone, the oldest first.
    pub fn all(&self) -> impl Iterator<Item = (&Name, &ZoneVersion)> {
        self.zones
            .iter()
            .flat_map(|(zone, history)| history.versions().map(move |v| (zone, v)))
    }

    pub fn sum(&self) -> Sum {
        self.sum
    }

    /// Octets kept by all histories.
    pub fn cost(&self) -> u64 {
        self.cost
    }

    /// Adds the newest version of `zone` and gives up what the limits no longer allow: of all zones together, the oldest version of
    /// the largest history, so that no zone pays for another.
    pub fn push(&mut self, zone: &Name, version: ZoneVersion) {
        // What was before a version without changes cannot be reached any more.
        if version.changes.is_none() {
            self.forget(zone);
        }
        self.unlist(zone);
        self.count_in(zone, &version);
        let history = self.zones.entry(zone.clone()).or_default();
        history.cost += version.cost();
        history.versions.push_back(Arc::new(version));
        while self.over_zone_limit(zone) {
            self.drop_oldest(zone);
        }
        self.list(zone);
        while self.cost > limits::HISTORY
            && let Some((_, zone)) = self.largest.get_max().cloned()
        {
            self.unlist(&zone);
            self.drop_oldest(&zone);
            self.list(&zone);
        }
    }

    /// Ends the history of a zone.
    pub fn forget(&mut self, zone: &Name) {
        self.unlist(zone);
        if let Some(history) = self.zones.remove(zone) {
            for version in &history.versions {
                self.count_out(zone, version);
            }
        }
    }

    fn over_zone_limit(&self, zone: &Name) -> bool {
        self.zones.get(zone).is_some_and(|h| {
            let many = h.versions.len() > limits::VERSIONS_PER_ZONE;
            h.versions.len() > 1 && (many || h.cost > limits::HISTORY_PER_ZONE)
        })
    }

    /// Gives up the oldest version; the next one becomes the beginning and needs its changes no more.
    fn drop_oldest(&mut self, zone: &Name) {
        let Some(history) = self.zones.get_mut(zone) else {
            return;
        };
        let before = history.cost;
        if let Some(gone) = history.versions.pop_front() {
            history.cost -= gone.cost();
            self.sum.remove(v1::version_digest(zone, &gone));
        }
        if let Some(first) = history.versions.front_mut()
            && first.changes.is_some()
        {
            let alone = ZoneVersion {
                changes: None,
                ..first.as_ref().clone()
            };
            history.cost = history.cost - first.cost() + alone.cost();
            self.sum.remove(v1::version_digest(zone, first));
            self.sum.add(v1::version_digest(zone, &alone));
            *first = Arc::new(alone);
        }
        self.cost = self.cost - before + history.cost;
    }

    fn list(&mut self, zone: &Name) {
        if let Some(key) = self.listing(zone) {
            self.largest.insert(key);
        }
    }

    fn unlist(&mut self, zone: &Name) {
        if let Some(key) = self.listing(zone) {
            self.largest.remove(&key);
        }
    }

    /// The entry of a zone in `largest`; none for a zone with only its present version, which is never given up.
    fn listing(&self, zone: &Name) -> Option<(u64, Name)> {
        let history = self.zones.get(zone).filter(|h| h.versions.len() > 1)?;
        Some((history.cost, zone.clone()))
    }

    fn count_in(&mut self, zone: &Name, version: &ZoneVersion) {
        self.cost += version.cost();
        self.sum.add(v1::version_digest(zone, version));
    }

    fn count_out(&mut self, zone: &Name, version: &ZoneVersion) {
        self.cost -= version.cost();
        self.sum.remove(v1::version_digest(zone, version));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        name::NameKey,
        rrset::{RecordType, Rrset},
    };

    const SET: usize = 60_000;

    /// A change of about so many octets.
    fn version(serial: u32, octets: u64) -> ZoneVersion {
        let set = Rrset::new(RecordType(65_280), 60, [vec![7; SET]]).unwrap();
        let change = SetChange {
            owner: NameKey::apex(),
            rtype: set.rtype(),
            before: None,
            after: Some(set),
        };
        let count = usize::try_from(octets).unwrap() / SET;
        ZoneVersion {
            serial: Serial(serial),
            revision: u64::from(serial),
            at: UnixMillis(0),
            author: "a".to_owned(),
            summary: "s".to_owned(),
            changes: Some(vec![change; count].into()),
        }
    }

    #[test]
    fn what_all_zones_keep_together_is_taken_from_the_largest_history() {
        let names = ["small.", "a.", "b.", "c."].map(|zone| zone.parse::<Name>().unwrap());
        let mut histories = Histories::default();
        // The first and the last serial of each.
        let kept = |histories: &Histories| {
            let of = |zone| {
                histories.zone(zone).map(|h| {
                    let mut serials = h.versions().map(|version| version.serial.0);
                    (serials.next(), serials.next_back())
                })
            };
            names
                .each_ref()
                .map(|zone| of(zone).and_then(|(a, b)| a.zip(b)))
        };
        (1..=9).for_each(|serial| histories.push(&names[0], version(serial, 0)));
        for (place, zone) in names.iter().enumerate().skip(1) {
            for serial in [10, 20, 30] {
                let octets = if serial == 10 { 0 } else { 19 << 20 };
                histories.push(zone, version(serial + place as u32, octets));
            }
        }
        // Six steps of 19 MiB fit into 128 MiB.
        let mut expected = [(1, 9), (11, 31), (12, 32), (13, 33)].map(Some);
        assert_eq!(kept(&histories), expected);
        histories.push(&names[3], version(40, 19 << 20));
        expected[3] = Some((23, 40));
        assert_eq!(kept(&histories), expected);
        assert!(histories.cost() <= limits::HISTORY);
        histories.push(&names[0], version(50, 0));
        expected[0] = Some((1, 50));
        assert_eq!(kept(&histories), expected);
        for zone in &names {
            histories.forget(zone);
        }
        assert_eq!((histories.cost(), histories.sum()), (0, Sum::default()));
        assert!(histories.largest.is_empty());
    }
}
