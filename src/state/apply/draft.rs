//! A zone while a command changes it.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    model::{
        name::{Name, NameKey},
        rrset::{RecordType, Rrset},
        serial::Serial,
        zone::Zone,
    },
    state::{
        diff::{self, SetChange},
        limits,
        outcome::Refusal,
        records::ZoneRecords,
        rules, soa,
    },
};

/// A zone as it was before the command and as it stands now.
pub struct ZoneDraft {
    base: Option<Arc<Zone>>,
    /// None: there is no such zone.
    records: Option<ZoneRecords>,
    /// Sets that may differ from `base`; meaningless without one.
    touched: BTreeSet<(NameKey, RecordType)>,
    /// The new serial is not below this one.
    floor: Option<Serial>,
    /// A serial that was asked for by itself: moves the zone forward even when nothing else changes.
    asked: Option<Serial>,
    summary: Vec<String>,
    more: usize,
}

impl ZoneDraft {
    /// Begins with the zone as it is, if it is.
    pub fn new(base: Option<Arc<Zone>>) -> Self {
        Self {
            records: base.as_deref().map(ZoneRecords::of),
            base,
            touched: BTreeSet::new(),
            floor: None,
            asked: None,
            summary: Vec::new(),
            more: 0,
        }
    }

    pub fn base(&self) -> Option<&Arc<Zone>> {
        self.base.as_ref()
    }

    pub fn records(&self) -> Option<&ZoneRecords> {
        self.records.as_ref()
    }

    /// Says what was done, for the history.
    pub fn note(&mut self, text: impl FnOnce() -> String) {
        if self.summary.len() < 3 {
            self.summary.push(text());
        } else {
            self.more += 1;
        }
    }

    /// What was done, in a few words.
    pub fn summary(&self) -> String {
        let mut text = self.summary.join(", ");
        if self.more > 0 {
            text.push_str(&format!(", and {} more", self.more));
        }
        text.chars().take(limits::SUMMARY_CHARS).collect()
    }

    pub fn delete(&mut self) {
        self.records = None;
    }

    /// Puts `contents` in place of what there is, keeping every set that is the same.
    pub fn fill(&mut self, contents: ZoneRecords) {
        let soa = contents.find(&NameKey::apex(), RecordType::SOA);
        if let Some(floor) = soa.and_then(soa::serial_of) {
            self.raise_floor(floor);
        }
        if self.records.is_none() {
            self.records = self.base.as_deref().map(ZoneRecords::of);
        }
        let Some(present) = &self.records else {
            self.records = Some(contents);
            return;
        };
        for change in diff::between_nodes(present.nodes(), contents.nodes()) {
            self.carry_out(change);
        }
    }

    /// Makes one change as a difference says.
    pub fn carry_out(&mut self, change: SetChange) {
        match change.after {
            Some(set) => self.set(&change.owner, set),
            None => self.remove(&change.owner, change.rtype),
        }
    }

    /// Puts `set` in place of the owner's set of its type.
    pub fn set(&mut self, owner: &NameKey, set: Rrset) {
        if let Some(records) = &mut self.records {
            self.touched.insert((owner.clone(), set.rtype()));
            records.set(owner, set);
        }
    }

    pub fn remove(&mut self, owner: &NameKey, rtype: RecordType) {
        if let Some(records) = &mut self.records {
            self.touched.insert((owner.clone(), rtype));
            records.remove(owner, rtype);
        }
    }

    /// Asks for a serial, as setting the SOA does.
    pub fn ask_serial(&mut self, serial: Serial) {
        self.raise_floor(serial);
        self.asked = Some(serial);
    }

    fn raise_floor(&mut self, serial: Serial) {
        self.floor = Some(self.floor.map_or(serial, |floor| floor.later(serial)));
    }

    /// Holds the rules that a zone's records must follow together.
    pub fn judge(&self, apex: &Name) -> Result<(), Refusal> {
        let Some(records) = &self.records else {
            return Ok(());
        };
        match &self.base {
            None => rules::whole(apex, records),
            Some(_) => rules::touched(apex, records, self.touched.iter().map(|(key, _)| key)),
        }
    }

    /// What differs from the zone as it was, in canonical order. The serial of the SOA does not count.
    pub fn changes(&self) -> Vec<SetChange> {
        let (Some(base), Some(records)) = (&self.base, &self.records) else {
            return Vec::new();
        };
        let change = |(owner, rtype): &(NameKey, RecordType)| SetChange {
            owner: owner.clone(),
            rtype: *rtype,
            before: base.nodes.get(owner).and_then(|n| n.find(*rtype)).cloned(),
            after: records.find(owner, *rtype).cloned(),
        };
        self.touched
            .iter()
            .map(change)
            .filter(|c| !soa::same_but_serial(c.before.as_ref(), c.after.as_ref()))
            .collect()
    }

    /// Whether the zone has to move to a new serial, given what changed.
    pub fn moves(&self, changes: &[SetChange]) -> bool {
        self.base.as_ref().is_none_or(|base| {
            let asked = self
                .asked
                .is_some_and(|asked| asked.is_newer_than(base.serial));
            asked || !changes.is_empty()
        })
    }

    /// The serial of the changed zone: one step after `last`, or the floor where a secondary that holds `last` takes that as newer
    /// (RFC 1982 section 3.2: not where it is exactly half the circle away). A new zone takes its floor, or 1.
    pub fn serial_after(&self, last: Option<Serial>) -> Serial {
        match (last, self.floor) {
            (None, floor) => floor.unwrap_or(Serial(1)),
            (Some(last), None) => last.next(),
            (Some(last), Some(floor)) if floor.is_newer_than(last) => floor,
            (Some(last), Some(_)) => last.next(),
        }
    }
}
