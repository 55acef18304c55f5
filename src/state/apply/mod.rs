//! Carrying out a command on a copy of the state that replaces it when everything went well.
//!
//! Changes are made one after another; what must be true of the result as a whole (a CNAME alone, ports apart, pools
//! there) is judged at the end, so that one command may pass through what no state may be in.

mod balancing;
mod draft;
mod members;
mod zones;

use std::collections::{BTreeMap, BTreeSet};

use self::draft::ZoneDraft;
use super::{
    State, check,
    cluster::FIRST_FEATURE_LEVEL,
    command::{Change, Command, Precondition},
    history::ZoneVersion,
    outcome::{Applied, Refusal, RefusalKind},
};
use crate::model::{label::Label, name::Name, node::NodeId, rrset::Rrset, serial::Serial};

/// A command being carried out.
struct Work<'a> {
    /// The state as it will be.
    next: State,
    command: &'a Command,
    revision: u64,
    /// Zones the command names, as they are taking shape.
    drafts: BTreeMap<Name, ZoneDraft>,
    /// Pools and listeners to judge at the end.
    pools: BTreeSet<Label>,
    listeners: BTreeSet<Label>,
    /// Whether anything other than a zone differs from before.
    changed: bool,
    /// The id given to a new member.
    node: Option<NodeId>,
    versions: Vec<(Name, Option<ZoneVersion>)>,
}

/// What a command makes of a state.
pub struct Done {
    /// The state after it, but for the histories.
    pub next: State,
    pub applied: Applied,
    /// The new version of each zone that changed; none: its history ends. They are pushed when nobody holds the state before any
    /// more: histories are mostly kept as they are, and what two states share would be copied.
    pub versions: Vec<(Name, Option<ZoneVersion>)>,
}

/// What becomes of the state by `command`, or why it stays as it is.
pub fn apply(state: &State, revision: u64, command: &Command) -> Result<Done, Refusal> {
    check::command(command)?;
    let mut work = Work {
        next: state.clone(),
        command,
        revision,
        drafts: BTreeMap::new(),
        pools: BTreeSet::new(),
        listeners: BTreeSet::new(),
        changed: false,
        node: None,
        versions: Vec::new(),
    };
    for precondition in &command.preconditions {
        work.hold(precondition)?;
    }
    for change in &command.changes {
        work.admit(change)?;
        work.change(change)?;
    }
    work.finish()
}

impl Work<'_> {
    fn hold(&self, precondition: &Precondition) -> Result<(), Refusal> {
        let failed = |object: String, problem: String| {
            let hint = "read it again and decide anew";
            Err(Refusal::new(
                RefusalKind::PreconditionFailed,
                object,
                problem,
                hint,
            ))
        };
        let service = &self.next.service;
        match precondition {
            Precondition::Revision(expected) if service.revision != *expected => failed(
                "state".into(),
                format!("its revision is {}, not {expected}", service.revision),
            ),
            Precondition::Revision(_) => Ok(()),
            Precondition::ZoneSerial { zone, serial } => {
                let object = check::zones::zone_object(zone);
                match service.zones.get(zone) {
                    None => failed(object, "it does not exist".into()),
                    Some(found) if found.serial != *serial => failed(
                        object,
                        format!("its serial is {}, not {serial}", found.serial),
                    ),
                    Some(_) => Ok(()),
                }
            }
            Precondition::Rrset {
                zone,
                name,
                rtype,
                expected,
            } => {
                let found = service.zones.get(zone).and_then(|z| z.rrset(name, *rtype));
                if found == expected.as_ref() {
                    return Ok(());
                }
                let problem = match (found, expected) {
                    (Some(_), None) => "it exists",
                    (None, _) => "it does not exist",
                    _ => "it is not the set that was expected",
                };
                failed(check::zones::record_object(name, *rtype), problem.into())
            }
            Precondition::Backend {
                pool,
                backend,
                address,
            } => {
                let found = service.pools.get(pool);
                let found = found.and_then(|p| p.backends.iter().find(|b| b.name == *backend));
                let problem = match found {
                    Some(found) if found.address == *address => return Ok(()),
                    Some(found) => format!("its address is {}, not {address}", found.address),
                    None => "it does not exist".into(),
                };
                failed(check::balancing::backend_object(pool, backend), problem)
            }
        }
    }

    /// Refuses kinds of change that not every node of the cluster knows yet.
    fn admit(&self, change: &Change) -> Result<(), Refusal> {
        let needed = feature_level(change);
        let level = self.next.cluster.feature_level;
        if needed <= level {
            return Ok(());
        }
        Err(Refusal::new(
            RefusalKind::FeatureLevel,
            "command",
            format!("it needs feature level {needed}, and the cluster is at {level}"),
            "upgrade every node; the level rises by itself then",
        ))
    }

    fn change(&mut self, change: &Change) -> Result<(), Refusal> {
        match change {
            Change::CreateZone { zone, records } => self.create_zone(zone, records),
            Change::ReplaceZone { zone, records } => self.replace_zone(zone, records),
            Change::DeleteZone { zone } => self.delete_zone(zone),
            Change::RollbackZone { zone, serial } => self.rollback_zone(zone, *serial),
            Change::SetRrset { zone, name, rrset } => self.set_rrset(zone, name, rrset),
            Change::AddRecords { zone, name, rrset } => self.add_records(zone, name, rrset),
            Change::SetKeepingTtl { zone, name, rrset } => {
                let set = self.keeping_ttl(zone, name, rrset)?;
                self.set_rrset(zone, name, &set)
            }
            Change::AddKeepingTtl { zone, name, rrset } => {
                let set = self.keeping_ttl(zone, name, rrset)?;
                self.add_records(zone, name, &set)
            }
            Change::DeleteRecords {
                zone,
                name,
                rtype,
                rdata,
            } => self.delete_records(zone, name, *rtype, rdata.as_deref()),
            Change::DeleteName { zone, name } => self.delete_name(zone, name),
            Change::PutPool { pool, create } => self.put_pool(pool, *create),
            Change::DeletePool { pool } => self.delete_pool(pool),
            Change::PutBackend {
                pool,
                backend,
                create,
            } => self.put_backend(pool, backend, *create),
            Change::RemoveBackend { pool, backend } => self.remove_backend(pool, backend),
            Change::SetBackend {
                pool,
                backend,
                weight,
                state,
            } => self.set_backend(pool, backend, *weight, *state),
            Change::PutListener { listener, create } => self.put_listener(listener, *create),
            Change::DeleteListener { listener } => self.delete_listener(listener),
            Change::PutVip { vip, create } => self.put_vip(vip, *create),
            Change::DeleteVip { address } => self.delete_vip(*address),
            Change::PutForwarder { forwarder, create } => self.put_forwarder(forwarder, *create),
            Change::DeleteForwarder { suffix } => self.delete_forwarder(suffix),
            Change::PutDnsPolicy { policy } => self.put_dns_policy(policy),
            Change::InitCluster { cluster, ca, first } => self.init_cluster(cluster, ca, first),
            Change::CreateToken { token } => self.create_token(token),
            Change::DeleteToken { id } => self.delete_token(id),
            Change::AddMember { token, member } => self.add_member(token, member),
            Change::RetireMember { id } => self.retire_member(*id),
            Change::RotateCa { ca } => self.rotate_ca(ca),
            Change::SetProfile { profile } => self.set_profile(*profile),
            Change::ReleaseVips { to, term } => self.release_vips(*to, *term),
            Change::TakeVips { term } => self.take_vips(*term),
            Change::ClaimVips { vips } => self.claim_vips(vips),
            Change::SetPreference { preference } => self.set_preference(*preference),
            Change::SetFeatureLevel { level } => self.set_feature_level(*level),
        }
    }

    fn finish(mut self) -> Result<Done, Refusal> {
        self.judge_balancing()?;
        let mut changed_zones: Vec<(Name, Serial)> = Vec::new();
        let mut unchanged_zones: Vec<(Name, Serial)> = Vec::new();
        let mut changed = self.changed;
        for (name, draft) in std::mem::take(&mut self.drafts) {
            let zone_changed = self.finish_zone(&name, draft)?;
            changed |= zone_changed;
            if let Some(zone) = self.next.service.zones.get(&name) {
                let list = match zone_changed {
                    true => &mut changed_zones,
                    false => &mut unchanged_zones,
                };
                list.push((name, zone.serial));
            }
        }
        self.judge_totals()?;
        if changed {
            self.next.service.revision = self.revision;
        }
        let applied = Applied {
            revision: self.next.service.revision,
            changed,
            serials: match changed {
                true => changed_zones,
                false => unchanged_zones,
            },
            node: self.node,
        };
        Ok(Done {
            next: self.next,
            applied,
            versions: self.versions,
        })
    }
}

/// The feature level from which on a kind of change may be used.
fn feature_level(change: &Change) -> u32 {
    match change {
        Change::CreateZone { .. }
        | Change::ReplaceZone { .. }
        | Change::DeleteZone { .. }
        | Change::RollbackZone { .. }
        | Change::SetRrset { .. }
        | Change::AddRecords { .. }
        | Change::SetKeepingTtl { .. }
        | Change::AddKeepingTtl { .. }
        | Change::DeleteRecords { .. }
        | Change::DeleteName { .. }
        | Change::PutPool { .. }
        | Change::DeletePool { .. }
        | Change::PutBackend { .. }
        | Change::RemoveBackend { .. }
        | Change::SetBackend { .. }
        | Change::PutListener { .. }
        | Change::DeleteListener { .. }
        | Change::PutVip { .. }
        | Change::DeleteVip { .. }
        | Change::PutForwarder { .. }
        | Change::DeleteForwarder { .. }
        | Change::PutDnsPolicy { .. }
        | Change::InitCluster { .. }
        | Change::CreateToken { .. }
        | Change::DeleteToken { .. }
        | Change::AddMember { .. }
        | Change::RetireMember { .. }
        | Change::RotateCa { .. }
        | Change::SetProfile { .. }
        | Change::ReleaseVips { .. }
        | Change::TakeVips { .. }
        | Change::ClaimVips { .. }
        | Change::SetPreference { .. }
        | Change::SetFeatureLevel { .. } => FIRST_FEATURE_LEVEL,
    }
}

fn not_found(object: impl ToString, hint: impl ToString) -> Refusal {
    Refusal::new(RefusalKind::NotFound, object, "it does not exist", hint)
}

fn exists(object: impl ToString, hint: impl ToString) -> Refusal {
    Refusal::new(
        RefusalKind::AlreadyExists,
        object,
        "it exists already",
        hint,
    )
}

fn over_limit(object: impl ToString, what: &str, limit: impl std::fmt::Display) -> Refusal {
    let problem = format!("there would be more than {limit} {what}");
    Refusal::new(RefusalKind::LimitExceeded, object, problem, "")
}

/// The records of both sets, with the TTL of the first.
fn merged(set: &Rrset, others: Option<&Rrset>) -> Rrset {
    let all = set.rdata().chain(others.into_iter().flat_map(Rrset::rdata));
    Rrset::new(set.rtype(), set.ttl(), all).unwrap_or_else(|| set.clone())
}
