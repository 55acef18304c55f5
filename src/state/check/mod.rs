//! Form and limits of a command: everything that can be said of it without the state.
//!
//! Called before a command is proposed, so that what can never be applied does not enter the log, and once more by apply,
//! which trusts nothing. Both must come to the same verdict on every node: no rule here depends on the program's release.
//! What only new commands must keep to, since logs may hold others, is in [`proposal`], which apply does not ask.

pub mod addresses;
pub mod balancing;
pub mod members;
pub mod zones;

use super::{
    command::{Change, Command, Precondition},
    limits,
    outcome::{Refusal, RefusalKind},
};

/// Checks the form of a whole command. The first fault is the answer.
pub fn command(command: &Command) -> Result<(), Refusal> {
    let at_most = |what: &str, count: usize, limit: usize| {
        if count <= limit {
            return Ok(());
        }
        Err(Refusal::new(
            RefusalKind::LimitExceeded,
            "command",
            format!("it has {count} {what}; at most {limit} are allowed"),
            "split it",
        ))
    };
    at_most(
        "changes",
        command.changes.len(),
        limits::CHANGES_PER_COMMAND,
    )?;
    at_most(
        "preconditions",
        command.preconditions.len(),
        limits::PRECONDITIONS_PER_COMMAND,
    )?;
    at_most(
        "octets of author",
        command.author.len(),
        limits::AUTHOR_OCTETS,
    )?;
    command.preconditions.iter().try_for_each(precondition)?;
    command.changes.iter().try_for_each(change)
}

/// Checks the form of a command that is to be proposed. The first fault is the answer.
pub fn proposal(command: &Command) -> Result<(), Refusal> {
    self::command(command)?;
    command.changes.iter().try_for_each(only_new)
}

/// Checks the form of one change that is to be proposed.
pub fn proposed_change(change: &Change) -> Result<(), Refusal> {
    self::change(change)?;
    only_new(change)
}

/// What changes in a log need not keep to.
fn only_new(change: &Change) -> Result<(), Refusal> {
    addresses::change(change)?;
    match change {
        Change::InitCluster { first: member, .. } | Change::AddMember { member, .. } => {
            members::new_name(&member.name)
        }
        _ => Ok(()),
    }
}

fn precondition(precondition: &Precondition) -> Result<(), Refusal> {
    match precondition {
        Precondition::Revision(_)
        | Precondition::ZoneSerial { .. }
        | Precondition::Backend { .. } => Ok(()),
        Precondition::Rrset { zone, name, .. } => zones::owner(zone, name),
    }
}

/// Checks the form of one change.
pub fn change(change: &Change) -> Result<(), Refusal> {
    match change {
        Change::CreateZone { zone, records } | Change::ReplaceZone { zone, records } => {
            zones::contents(zone, records)
        }
        Change::DeleteZone { .. } | Change::RollbackZone { .. } => Ok(()),
        Change::SetRrset { zone, name, rrset }
        | Change::AddRecords { zone, name, rrset }
        | Change::SetKeepingTtl { zone, name, rrset }
        | Change::AddKeepingTtl { zone, name, rrset } => zones::rrset(zone, name, rrset),
        Change::DeleteRecords {
            zone, name, rtype, ..
        } => zones::owner(zone, name).and_then(|()| zones::data_type(name, *rtype)),
        Change::DeleteName { zone, name } => zones::deletable_name(zone, name),
        Change::PutPool { pool, .. } => balancing::pool(pool),
        Change::PutBackend { pool, backend, .. } => balancing::backend(pool, backend),
        Change::SetBackend {
            pool,
            backend,
            weight,
            ..
        } => balancing::weight(pool, backend, weight.unwrap_or(0)),
        Change::DeletePool { .. }
        | Change::RemoveBackend { .. }
        | Change::DeleteListener { .. }
        | Change::DeleteVip { .. }
        | Change::DeleteForwarder { .. } => Ok(()),
        Change::PutListener { listener, .. } => balancing::listener(listener),
        Change::PutVip { vip, .. } => balancing::vip(vip),
        Change::PutForwarder { forwarder, .. } => balancing::forwarder(forwarder),
        Change::PutDnsPolicy { policy } => balancing::dns_policy(policy),
        Change::InitCluster { cluster, ca, first } => members::init(cluster, ca, first),
        Change::CreateToken { token } => members::token(token),
        Change::DeleteToken { .. } | Change::RetireMember { .. } => Ok(()),
        Change::AddMember { member, .. } => members::member(member),
        Change::RotateCa { ca } => members::ca(ca),
        Change::SetProfile { profile } => members::profile(*profile),
        Change::ReleaseVips { .. } | Change::TakeVips { .. } | Change::ClaimVips { .. } => Ok(()),
        Change::SetPreference { preference } => {
            preference.as_ref().map_or(Ok(()), members::preference)
        }
        Change::SetFeatureLevel { .. } => Ok(()),
    }
}

fn invalid(object: impl ToString, problem: impl ToString, hint: impl ToString) -> Refusal {
    Refusal::new(RefusalKind::Invalid, object, problem, hint)
}

fn too_many(object: impl ToString, problem: impl ToString) -> Refusal {
    Refusal::new(RefusalKind::LimitExceeded, object, problem, "")
}
