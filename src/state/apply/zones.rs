//! Changes of zones and their records.

use super::{Work, draft::ZoneDraft, exists, merged, not_found, over_limit};
use crate::{
    defect::{self, Defect},
    model::{
        name::{Name, NameKey},
        rrset::{RecordType, Rrset},
        serial::Serial,
    },
    state::{
        check::zones::{set_size, singleton, zone_object},
        diff::{self, SetChange},
        history::ZoneVersion,
        limits,
        outcome::{Refusal, RefusalKind},
        rules, soa,
    },
};

impl Work<'_> {
    pub(super) fn create_zone(
        &mut self,
        zone: &Name,
        records: &[(Name, Rrset)],
    ) -> Result<(), Refusal> {
        if self.draft(zone).records().is_some() {
            let hint = format!("`zone import {zone} FILE` replaces its contents");
            return Err(exists(zone_object(zone), hint));
        }
        self.fill_zone(zone, records, "created")
    }

    pub(super) fn replace_zone(
        &mut self,
        zone: &Name,
        records: &[(Name, Rrset)],
    ) -> Result<(), Refusal> {
        let done = match self.draft(zone).records() {
            Some(_) => "replaced",
            None => "created",
        };
        self.fill_zone(zone, records, done)
    }

    fn fill_zone(
        &mut self,
        zone: &Name,
        records: &[(Name, Rrset)],
        done: &str,
    ) -> Result<(), Refusal> {
        let contents = rules::gather(zone, records)?;
        let draft = self.draft(zone);
        draft.note(|| format!("{done} with {} records", contents.record_count()));
        // The contents may hold no SOA or NS; the end of the command tells.
        draft.fill(contents);
        Ok(())
    }

    pub(super) fn delete_zone(&mut self, zone: &Name) -> Result<(), Refusal> {
        self.existing(zone)?.delete();
        Ok(())
    }

    pub(super) fn rollback_zone(&mut self, zone: &Name, serial: Serial) -> Result<(), Refusal> {
        self.existing(zone)?;
        let history = self.next.histories.zone(zone).cloned();
        let draft = self.existing(zone)?;
        let then = draft
            .base()
            .zip(history)
            .and_then(|(base, history)| history.zone_at(base, serial));
        let (Some(then), Some(present)) = (then, draft.records()) else {
            return Err(Refusal::new(
                RefusalKind::NotFound,
                zone_object(zone),
                format!("its history has no serial {serial}"),
                format!("`zone history {zone}` lists those it has"),
            ));
        };
        for change in diff::between_nodes(present.nodes(), &then.nodes) {
            draft.carry_out(change);
        }
        draft.note(|| format!("rolled back to serial {serial}"));
        Ok(())
    }

    pub(super) fn set_rrset(
        &mut self,
        zone: &Name,
        name: &Name,
        set: &Rrset,
    ) -> Result<(), Refusal> {
        let key = key_of(zone, name)?;
        let draft = self.existing(zone)?;
        if set.rtype() == RecordType::SOA
            && let Some(serial) = soa::serial_of(set)
        {
            draft.ask_serial(serial);
        }
        draft.note(|| format!("set {name} {}", set.rtype()));
        draft.set(&key, set.clone());
        Ok(())
    }

    pub(super) fn add_records(
        &mut self,
        zone: &Name,
        name: &Name,
        set: &Rrset,
    ) -> Result<(), Refusal> {
        let key = key_of(zone, name)?;
        let draft = self.existing(zone)?;
        let present = draft.records().and_then(|r| r.find(&key, set.rtype()));
        if soa::same_but_serial(present, Some(set)) {
            return Ok(());
        }
        let all = merged(set, present);
        set_size(name, &all)?;
        singleton(name, &all)?;
        draft.note(|| format!("added {name} {}", set.rtype()));
        draft.set(&key, all);
        Ok(())
    }

    /// `set` with the TTL of the set that stands in its place, if one does.
    pub(super) fn keeping_ttl(
        &mut self,
        zone: &Name,
        name: &Name,
        set: &Rrset,
    ) -> Result<Rrset, Refusal> {
        let key = key_of(zone, name)?;
        let records = self.existing(zone)?.records();
        let present = records.and_then(|r| r.find(&key, set.rtype()));
        Ok(set.with_ttl(present.map_or(set.ttl(), Rrset::ttl)))
    }

    pub(super) fn delete_records(
        &mut self,
        zone: &Name,
        name: &Name,
        rtype: RecordType,
        rdata: Option<&[Vec<u8>]>,
    ) -> Result<(), Refusal> {
        let key = key_of(zone, name)?;
        let draft = self.existing(zone)?;
        let Some(present) = draft.records().and_then(|r| r.find(&key, rtype)) else {
            return Ok(());
        };
        let left = rdata.and_then(|gone| {
            let kept = present.rdata().filter(|d| !gone.iter().any(|g| g == d));
            Rrset::new(rtype, present.ttl(), kept)
        });
        draft.note(|| format!("deleted {name} {rtype}"));
        match left {
            Some(set) => draft.set(&key, set),
            None => draft.remove(&key, rtype),
        }
        Ok(())
    }

    pub(super) fn delete_name(&mut self, zone: &Name, name: &Name) -> Result<(), Refusal> {
        let key = key_of(zone, name)?;
        let draft = self.existing(zone)?;
        let node = draft.records().and_then(|r| r.nodes().get(&key)).cloned();
        for set in node.iter().flat_map(|n| n.rrsets()) {
            draft.remove(&key, set.rtype());
        }
        draft.note(|| format!("deleted {name}"));
        Ok(())
    }

    /// The draft of a zone, begun when the command first names it.
    fn draft(&mut self, zone: &Name) -> &mut ZoneDraft {
        let Self { drafts, next, .. } = self;
        drafts
            .entry(zone.clone())
            .or_insert_with(|| ZoneDraft::new(next.service.zones.get(zone).cloned()))
    }

    fn existing(&mut self, zone: &Name) -> Result<&mut ZoneDraft, Refusal> {
        let draft = self.draft(zone);
        if draft.records().is_some() {
            return Ok(draft);
        }
        let hint = format!("`zone create {zone}` makes it, `zone list` shows those there are");
        Err(not_found(zone_object(zone), hint))
    }

    /// Puts a draft into the state; whether the zone differs from before.
    pub(super) fn finish_zone(&mut self, name: &Name, draft: ZoneDraft) -> Result<bool, Refusal> {
        draft.judge(name)?;
        let Some(records) = draft.records() else {
            self.versions.push((name.clone(), None));
            return Ok(self.next.remove_zone(name, self.revision));
        };
        let changes = draft.changes();
        if !draft.moves(&changes) {
            return Ok(false);
        }
        let base = draft.base().map(|zone| zone.serial);
        let deleted = self
            .next
            .deleted
            .serial(name)
            .filter(|_| !defect::is(Defect::SerialRestarts));
        let last = base.or(deleted);
        let mut serial = draft.serial_after(last);
        // Round the circle a serial may come again that the history still holds; there it says what is meant.
        let history = self.next.history(name);
        while history.is_some_and(|history| history.find(serial).is_some()) {
            let newer = |serial: &Serial| last.is_none_or(|last| serial.is_newer_than(last));
            let first = last.map_or(Serial(1), Serial::next);
            serial = Some(serial.next()).filter(newer).unwrap_or(first);
        }
        let zone = records
            .clone()
            .into_zone(name.clone(), serial, self.revision);
        let cost: u64 = changes.iter().map(SetChange::cost).sum();
        // A change larger than a history may be begins the history anew.
        let kept = base.is_some() && cost <= limits::HISTORY_PER_ZONE;
        let version = ZoneVersion {
            serial,
            revision: self.revision,
            at: self.command.proposed_at,
            author: self.command.author.clone(),
            summary: draft.summary(),
            changes: kept.then(|| changes.into()),
        };
        self.next.put_zone(zone);
        self.versions.push((name.clone(), Some(version)));
        Ok(true)
    }

    /// Holds the limits over all zones together.
    pub(super) fn judge_totals(&self) -> Result<(), Refusal> {
        let totals = self.next.totals;
        if self.next.service.zones.len() > limits::ZONES {
            return Err(over_limit("zones", "zones", limits::ZONES));
        }
        if totals.records > limits::RECORDS {
            let what = "records in all zones";
            return Err(over_limit("zones", what, limits::RECORDS));
        }
        if totals.data_bytes > limits::DATA {
            let what = "octets of data in all zones";
            return Err(over_limit("zones", what, limits::DATA));
        }
        Ok(())
    }
}

fn key_of(zone: &Name, name: &Name) -> Result<NameKey, Refusal> {
    NameKey::of(name, zone).ok_or_else(|| rules::outside(zone, name))
}
