//! The replicated state machine: commands in, outcomes out, the same on every node.
//!
//! Apply is total and deterministic: ordered maps only, no floats, no clock, no local configuration. Nothing here does I/O.
//! `check` says what is wrong with a command before it is proposed; `apply` decides everything again.

mod apply;
pub mod check;
pub mod cluster;
pub mod command;
pub mod deleted;
pub mod diff;
mod digest;
pub mod history;
pub mod limits;
pub mod outcome;
pub mod records;
pub mod requests;
mod restore;
pub mod rules;
pub mod snapshot;
pub mod soa;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use imbl::OrdMap;

use self::{
    cluster::{Cluster, VipRelease},
    command::{Command, JoinToken, RequestId, Secret},
    deleted::DeletedZones,
    digest::Sum,
    history::{Histories, ZoneHistory},
    outcome::Outcome,
    requests::{Remembered, Requests},
    snapshot::v1::{self, Stored},
};
use crate::defect::{self, Defect};
use crate::model::{
    leadership::Preference,
    name::Name,
    node::{ClusterId, Member, NodeId},
    serial::Serial,
    snapshot::Snapshot,
    timing::Profile,
    zone::Zone,
};

/// All replicated state. Cloning shares structure and is cheap.
#[derive(Clone, Debug, Default)]
pub struct State {
    service: Snapshot,
    histories: Histories,
    deleted: DeletedZones,
    requests: Requests,
    cluster: Arc<Cluster>,
    /// Over the zones, forwarders, pools, listeners and VIPs.
    sum: Sum,
    totals: Totals,
}

/// Sizes of all zones together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub records: u64,
    pub data_bytes: u64,
}

/// Why bytes are no encoded state.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error(
        "state snapshot of version {found}; this program reads versions up to {known}: upgrade it"
    )]
    Version { found: u32, known: u32 },
    #[error("state snapshot: {0}")]
    Malformed(String),
}

impl State {
    /// Applies the command of log index `revision`. Total: whatever the command holds, the result is an outcome.
    ///
    /// The revision it makes is that index, or one more than the last revision where that is later, as it is in a cluster
    /// that was restored from a backup.
    ///
    /// A request id that is remembered gets its first outcome again and changes nothing.
    pub fn apply(&mut self, revision: u64, command: &Command) -> Outcome {
        if let Some(first) = self.requests.find(command.request)
            && !defect::is(Defect::ApplyTwice)
        {
            return first.clone();
        }
        if self.requests.may_have_forgotten(command.born) {
            return Outcome::Unknown;
        }
        let revision = revision.max(self.service.revision.saturating_add(1));
        let outcome = match apply::apply(self, revision, command) {
            Ok(done) => {
                *self = done.next;
                for (zone, version) in done.versions {
                    match version {
                        Some(version) => self.histories.push(&zone, version),
                        None => self.histories.forget(&zone),
                    }
                }
                Outcome::Applied(done.applied)
            }
            Err(refusal) => Outcome::Refused(refusal),
        };
        if command.request != RequestId::default() {
            self.requests.remember(Remembered {
                request: command.request,
                revision: self.service.revision,
                outcome: outcome.clone(),
            });
        }
        outcome
    }

    /// What the servers may see. Cloning it is cheap.
    pub fn snapshot(&self) -> &Snapshot {
        &self.service
    }

    /// Revision of the last change. Commands that change nothing do not move it.
    pub fn revision(&self) -> u64 {
        self.service.revision
    }

    /// Sizes of all zones together.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// The first outcome of a command, while it is remembered.
    pub fn outcome_of(&self, request: RequestId) -> Option<&Outcome> {
        self.requests.find(request)
    }

    /// The versions of a zone, as far back as they are kept.
    pub fn history(&self, zone: &Name) -> Option<&ZoneHistory> {
        self.histories.zone(zone)
    }

    /// A zone as it was at `serial`; none when that is not kept.
    pub fn zone_at(&self, zone: &Name, serial: Serial) -> Option<Zone> {
        let present = self.service.zones.get(zone)?;
        self.histories.zone(zone)?.zone_at(present, serial)
    }

    /// What leads from one serial of a zone to another; none when one of them is not kept.
    pub fn zone_diff(&self, zone: &Name, from: Serial, to: Serial) -> Option<Vec<diff::SetChange>> {
        self.histories.zone(zone)?.between(from, to)
    }

    /// The serial a deleted zone had.
    pub fn deleted_serial(&self, zone: &Name) -> Option<Serial> {
        self.deleted.serial(zone)
    }

    /// The cluster this state belongs to; none before `InitCluster`.
    pub fn cluster(&self) -> Option<&ClusterId> {
        self.cluster.id.as_ref()
    }

    /// Members that have not been retired.
    pub fn members(&self) -> &OrdMap<NodeId, Arc<Member>> {
        &self.cluster.members
    }

    /// Whether `id` belonged to a member and never will again.
    pub fn is_retired(&self, id: NodeId) -> bool {
        self.cluster.is_retired(id)
    }

    pub fn tokens(&self) -> &OrdMap<String, Arc<JoinToken>> {
        &self.cluster.tokens
    }

    /// Certificate and key of the cluster's authority in PEM; empty before `InitCluster`. Never to be shown.
    pub fn ca(&self) -> &Secret {
        &self.cluster.ca
    }

    /// The certificate of the authority before the last rotation, in PEM: still trusted.
    pub fn previous_ca(&self) -> Option<&str> {
        self.cluster.previous_ca.as_deref()
    }

    /// How the group is to count time.
    pub fn profile(&self) -> Profile {
        self.cluster.profile
    }

    /// The last hand-over of the VIPs, unless a later leader has a lease of its own.
    pub fn vip_release(&self) -> Option<VipRelease> {
        self.cluster.vip_release
    }

    /// Where the VIPs are to be; none: wherever they are.
    pub fn preference(&self) -> Option<Preference> {
        self.cluster.preference
    }

    /// Kinds of command up to this level may be proposed.
    pub fn feature_level(&self) -> u32 {
        self.cluster.feature_level
    }

    /// Hash of everything in the state; equal on nodes that applied the same log up to the same index.
    pub fn hash(&self) -> [u8; 16] {
        let mut bytes = Vec::with_capacity(256);
        for sum in [
            self.sum,
            self.histories.sum(),
            self.deleted.sum(),
            self.requests.sum(),
        ] {
            bytes.extend_from_slice(&sum.to_bytes());
        }
        bytes.extend_from_slice(&self.service.revision.to_be_bytes());
        bytes.extend_from_slice(&self.requests.forgotten().to_be_bytes());
        bytes.extend_from_slice(&self.cluster.digest().to_be_bytes());
        bytes.extend_from_slice(&self.service.dns.digest().to_be_bytes());
        v1::write_unclaimed_vips(&self.service.unclaimed_vips, &mut bytes);
        digest::part(0, &bytes).to_be_bytes()
    }

    /// Encodes the whole state, secrets and histories included, piece by piece into `out`.
    pub fn encode(&self, out: &mut dyn std::io::Write) -> std::io::Result<()> {
        snapshot::encode(self, out)
    }

    /// Reads what `encode` wrote; may read `input` beyond it. Bytes that are no state are an error, whatever they are.
    pub fn decode(input: &mut dyn std::io::Read) -> Result<Self, DecodeError> {
        snapshot::decode(input)
    }

    /// Puts a state together, counting and hashing everything anew.
    fn assemble(
        service: Snapshot,
        histories: Histories,
        deleted: DeletedZones,
        requests: Requests,
        cluster: Cluster,
    ) -> Self {
        let mut sum = Sum::default();
        let mut totals = Totals::default();
        for zone in service.zones.values() {
            sum.add(v1::zone_digest(zone));
            totals.records += zone.record_count;
            totals.data_bytes += zone.data_bytes;
        }
        service
            .forwarders
            .values()
            .for_each(|f| sum.add(f.digest()));
        service.pools.values().for_each(|p| sum.add(p.digest()));
        service.listeners.values().for_each(|l| sum.add(l.digest()));
        service.vips.values().for_each(|v| sum.add(v.digest()));
        Self {
            service,
            histories,
            deleted,
            requests,
            cluster: Arc::new(cluster),
            sum,
            totals,
        }
    }

    /// Puts a zone in place of the one of its name.
    fn put_zone(&mut self, zone: Zone) {
        self.totals.records += zone.record_count;
        self.totals.data_bytes += zone.data_bytes;
        self.sum.add(v1::zone_digest(&zone));
        self.deleted.forget(&zone.apex);
        let old = self.service.zones.insert(zone.apex.clone(), Arc::new(zone));
        self.count_out(old.as_deref());
    }

    /// Deletes a zone, remembering its serial; false when there is none.
    fn remove_zone(&mut self, apex: &Name, revision: u64) -> bool {
        let old = self.service.zones.remove(apex);
        self.count_out(old.as_deref());
        if let Some(zone) = &old {
            self.deleted.remember(apex.clone(), zone.serial, revision);
        }
        old.is_some()
    }

    fn count_out(&mut self, zone: Option<&Zone>) {
        if let Some(zone) = zone {
            self.totals.records -= zone.record_count;
            self.totals.data_bytes -= zone.data_bytes;
            self.sum.remove(v1::zone_digest(zone));
        }
    }
}

/// Puts `value` (none: nothing) in place of what `map` has under `key`, keeping `sum` in step; whether they differ.
fn swap<K, V>(map: &mut OrdMap<K, V>, sum: &mut Sum, key: &K, value: Option<V>) -> bool
where
    K: Ord + Clone,
    V: Stored + Clone + PartialEq,
{
    if map.get(key) == value.as_ref() {
        return false;
    }
    if let Some(value) = &value {
        sum.add(value.digest());
    }
    let old = match value {
        Some(value) => map.insert(key.clone(), value),
        None => map.remove(key),
    };
    if let Some(old) = old {
        sum.remove(old.digest());
    }
    true
}
