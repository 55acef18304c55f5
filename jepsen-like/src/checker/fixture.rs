//! Histories written down in tests.

use super::{Verdict, register::Limits};
use crate::{
    history::{Call, Fault, History, LeaderSeen, Moment, Operation, Outcome, Reply, Run},
    workload::Workload,
};

/// Limits that no test reaches.
pub const PATIENT: Limits<'static> = Limits {
    configurations: 1_000_000,
    begin: &|| {},
    give_up: &|| false,
};

pub fn history(operations: impl IntoIterator<Item = Operation>) -> History {
    let mut operations: Vec<_> = operations.into_iter().collect();
    operations.sort_by_key(|operation| operation.invoked);
    History {
        operations,
        ..History::default()
    }
}

fn operation(id: u64, from: u64, to: u64, call: Call, outcome: Outcome) -> Operation {
    Operation {
        id,
        process: id,
        node: None,
        invoked: Moment(from),
        completed: Some(Moment(to)),
        call,
        outcome,
        reply: None,
        reason: None,
    }
}

pub fn ok(id: u64, from: u64, to: u64, call: Call, reply: Reply) -> Operation {
    let mut operation = operation(id, from, to, call, Outcome::Ok);
    operation.reply = Some(reply);
    operation
}

pub fn failed(id: u64, from: u64, to: u64, call: Call) -> Operation {
    operation(id, from, to, call, Outcome::Fail)
}

pub fn unknown(id: u64, from: u64, to: u64, call: Call) -> Operation {
    operation(id, from, to, call, Outcome::Unknown)
}

pub fn at(node: &str, mut operation: Operation) -> Operation {
    operation.node = Some(node.to_owned());
    operation
}

pub fn read(key: &str) -> Call {
    Call::Read { key: key.into() }
}

pub fn write(key: &str, value: &str) -> Call {
    Call::Write {
        key: key.into(),
        value: Some(value.into()),
    }
}

pub fn compare_and_set(key: &str, expected: &str, value: &str) -> Call {
    Call::CompareAndSet {
        key: key.into(),
        expected: Some(expected.into()),
        value: Some(value.into()),
    }
}

/// A lookup at a node or a VIP that succeeds at once.
pub fn look_up(id: u64, place: &str, from: u64) -> Operation {
    let call = Call::Lookup { key: "r".into() };
    let reply = Reply::Dns {
        node: None,
        value: None,
        serial: None,
        stale: false,
    };
    at(place, ok(id, from, from + 10, call, reply))
}

pub fn value(value: &str) -> Reply {
    Reply::Value(Some(value.into()))
}

pub fn committed(revision: u64) -> Reply {
    Reply::Committed {
        revision,
        serial: None,
    }
}

/// Of one node.
pub fn fault(kind: &str, node: &str, began: u64, healed: u64, hit_leader: bool) -> Fault {
    Fault {
        kind: kind.into(),
        nodes: [node.to_owned()].into(),
        began: Moment(began),
        healed: Some(Moment(healed)),
        hit_leader,
        skipped: None,
    }
}

/// The head of a run of these workloads, with two nodes and a VIP of each family.
pub fn planned(workloads: &[Workload]) -> Run {
    let names = workloads.iter().map(ToString::to_string);
    Run {
        nodes: ["n1", "n2"].map(str::to_owned).into(),
        vips: ["10.77.0.100", "fd77::64"].map(str::to_owned).into(),
        workloads: names.collect(),
        ..Run::default()
    }
}

/// A complete run with these faults, which n1 leads.
pub fn tried(faults: Vec<Fault>, operations: Vec<Operation>) -> History {
    let mut history = history(operations);
    history.run.nemeses = ["kill".to_owned()].into();
    history.run.recovery_bound_ms = 1;
    history.faults = faults;
    history.leaders = vec![LeaderSeen {
        at: Moment(0),
        node: "n1".into(),
        term: 1,
    }];
    history.is_complete = true;
    history
}

/// What kinds of findings a verdict has, in order.
pub fn kinds(verdict: &Verdict) -> Vec<&'static str> {
    verdict
        .findings
        .iter()
        .map(|finding| finding.kind)
        .collect()
}
