//! Tests of the state machine as a whole.

mod balancing;
mod members;
mod properties;
mod restore;
mod scale;
mod zones;

use super::{
    State,
    command::{Change, Command, RequestId, UnixMillis},
    limits,
    outcome::{Applied, Outcome, Refusal, RefusalKind},
    requests::{Remembered, Requests},
};
use crate::model::{
    label::Label,
    name::Name,
    rrset::{RecordType, Rrset},
    serial::Serial,
};

fn name(text: &str) -> Name {
    text.parse().expect("a name in a test")
}

fn label(text: &str) -> Label {
    text.parse().expect("an object name in a test")
}

fn wire(text: &str) -> Vec<u8> {
    name(text).as_wire().to_vec()
}

fn soa(serial: u32) -> Rrset {
    let mut data = [wire("ns1.example."), wire("admin.example.")].concat();
    for number in [serial, 7200, 900, 1_209_600, 300] {
        data.extend_from_slice(&number.to_be_bytes());
    }
    Rrset::new(RecordType::SOA, 3600, [data]).expect("one record")
}

fn ns(target: &str) -> Rrset {
    Rrset::new(RecordType::NS, 3600, [wire(target)]).expect("one record")
}

fn cname(target: &str) -> Rrset {
    Rrset::new(RecordType::CNAME, 3600, [wire(target)]).expect("one record")
}

fn dname(target: &str) -> Rrset {
    Rrset::new(RecordType::DNAME, 3600, [wire(target)]).expect("one record")
}

fn a(last: u8) -> Rrset {
    addresses(&[last])
}

fn addresses(last: &[u8]) -> Rrset {
    let data = last.iter().map(|octet| [192, 0, 2, *octet]);
    Rrset::new(RecordType::A, 300, data).expect("at least one record")
}

fn apex(zone: &str, serial: u32) -> Vec<(Name, Rrset)> {
    vec![(name(zone), soa(serial)), (name(zone), ns("ns1.example."))]
}

fn create(zone: &str, serial: u32) -> Change {
    Change::CreateZone {
        zone: name(zone),
        records: apex(zone, serial),
    }
}

fn set(zone: &str, owner: &str, rrset: Rrset) -> Change {
    Change::SetRrset {
        zone: name(zone),
        name: name(owner),
        rrset,
    }
}

fn command(request: u128, changes: Vec<Change>) -> Command {
    Command {
        request: RequestId(request),
        born: 0,
        proposed_at: UnixMillis(1_700_000_000_000),
        author: "tester".into(),
        preconditions: Vec::new(),
        changes,
    }
}

/// A state and the index of its last entry.
#[derive(Clone, Default)]
struct Machine {
    state: State,
    index: u64,
}

impl Machine {
    fn with(changes: Vec<Change>) -> Self {
        let mut machine = Self::default();
        machine.applied(changes);
        machine
    }

    fn propose(&mut self, command: &Command) -> Outcome {
        self.index += 1;
        self.state.apply(self.index, command)
    }

    fn submit(&mut self, changes: Vec<Change>) -> Outcome {
        let request = u128::from(self.index) + 1;
        self.propose(&Command {
            born: self.state.revision(),
            ..command(request, changes)
        })
    }

    #[track_caller]
    fn applied(&mut self, changes: Vec<Change>) -> Applied {
        match self.submit(changes) {
            Outcome::Applied(applied) => applied,
            other => panic!("not applied: {other:?}"),
        }
    }

    /// Refused, and nothing the servers see has changed.
    #[track_caller]
    fn refused(&mut self, changes: Vec<Change>) -> Refusal {
        let before = self.state.snapshot().clone();
        match self.submit(changes) {
            Outcome::Refused(refusal) => {
                assert_eq!(*self.state.snapshot(), before);
                refusal
            }
            other => panic!("not refused: {other:?}"),
        }
    }

    #[track_caller]
    fn refused_as(&mut self, kind: RefusalKind, object: &str, changes: Vec<Change>) {
        let refusal = self.refused(changes);
        assert_eq!(
            (refusal.kind, refusal.object.as_str()),
            (kind, object),
            "{refusal}"
        );
    }

    #[track_caller]
    fn serial(&self, zone: &str) -> Serial {
        let zone = self
            .state
            .snapshot()
            .zones
            .get(&name(zone))
            .expect("the zone exists");
        let soa = zone.soa().expect("a zone has an SOA");
        assert_eq!(super::soa::serial_of(soa), Some(zone.serial));
        zone.serial
    }

    fn rrset(&self, zone: &str, owner: &str, rtype: RecordType) -> Option<Rrset> {
        let zone = self.state.snapshot().zones.get(&name(zone))?;
        zone.rrset(&name(owner), rtype).cloned()
    }
}

#[test]
fn a_retry_gets_the_first_outcome_and_changes_nothing() {
    let mut machine = Machine::default();
    let first = command(77, vec![create("example.", 5)]);
    let outcome = machine.propose(&first);
    assert!(matches!(&outcome, Outcome::Applied(a) if a.changed));
    let hash = machine.state.hash();
    assert_eq!(machine.propose(&first), outcome);
    assert_eq!(machine.state.hash(), hash);
    assert_eq!(machine.state.outcome_of(RequestId(77)), Some(&outcome));

    let bad = command(78, vec![create("example.", 5)]);
    let refusal = machine.propose(&bad);
    assert!(matches!(&refusal, Outcome::Refused(r) if r.kind == RefusalKind::AlreadyExists));
    machine.applied(vec![Change::DeleteZone {
        zone: name("example."),
    }]);
    assert_eq!(
        machine.propose(&bad),
        refusal,
        "even when it would succeed now"
    );
}

#[test]
fn a_request_older_than_the_memory_is_unknown() {
    let mut machine = Machine::with(vec![create("example.", 1)]);
    machine.state.requests = Requests::forgotten_before(1);
    let stale = command(99, vec![set("example.", "w.example.", a(1))]);
    let hash = machine.state.hash();
    assert_eq!(machine.propose(&stale), Outcome::Unknown);
    assert_eq!(machine.state.hash(), hash);
    let fresh = Command {
        born: machine.state.revision(),
        ..stale
    };
    assert!(matches!(machine.propose(&fresh), Outcome::Applied(_)));
}

/// A memory that took `count` commands, each at its own revision, changing something or not.
fn requests(count: u64, changed: bool) -> Requests {
    let mut requests = Requests::default();
    for i in 1..=count {
        requests.remember(Remembered {
            request: RequestId(i.into()),
            revision: i,
            outcome: Outcome::Applied(Applied {
                revision: i,
                changed,
                ..Applied::default()
            }),
        });
    }
    requests
}

#[test]
fn the_memory_of_requests_is_bounded() {
    let most = limits::REQUESTS as u64;
    let requests = requests(most + 10, true);
    assert_eq!(requests.iter().len(), limits::REQUESTS);
    assert_eq!(requests.find(RequestId(10)), None);
    assert!(requests.find(RequestId(11)).is_some());
    assert!(requests.may_have_forgotten(9) && !requests.may_have_forgotten(10));
}

#[test]
fn commands_that_change_nothing_never_make_new_ones_unknown() {
    let requests = requests(limits::REQUESTS as u64 + 10, false);
    assert_eq!(requests.iter().len(), limits::REQUESTS);
    assert!(!requests.may_have_forgotten(0));
}

/// Two versions of the program may word a refusal, or the summary of a change, otherwise: they still have one state.
#[test]
fn words_of_the_program_are_no_part_of_the_state_hash() {
    let refused = |kind, words: &str| {
        let mut requests = Requests::default();
        for i in 1..=2000 {
            requests.remember(Remembered {
                request: RequestId(i),
                revision: 7,
                outcome: Outcome::Refused(Refusal::new(kind, "zone a.", words, words)),
            });
        }
        requests
    };
    let long = "because ".repeat(1 << 13);
    let brief = refused(RefusalKind::NotFound, "no");
    let wordy = refused(RefusalKind::NotFound, &long);
    assert_eq!(brief.iter().len(), wordy.iter().len());
    assert_eq!(brief.sum(), wordy.sum());
    assert_ne!(brief.sum(), refused(RefusalKind::Conflict, "no").sum());
    let kept = |requests: &Requests| match requests.find(RequestId(1)) {
        Some(Outcome::Refused(refusal)) => refusal.problem.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(kept(&brief), "no");
    assert!(kept(&wordy).starts_with("because because") && kept(&wordy).len() < 500);

    let version = |summary: &str| {
        let machine = Machine::with(vec![create("example.", 1)]);
        let mut version = machine.state.histories.all().next().expect("one").1.clone();
        version.summary = summary.to_owned();
        (
            version.cost(),
            super::snapshot::v1::version_digest(&name("example."), &version),
        )
    };
    assert_eq!(version("created"), version("made"));
}

#[test]
fn all_changes_of_a_command_apply_or_none() {
    let mut machine = Machine::with(vec![create("example.", 1)]);
    machine.refused_as(
        RefusalKind::NotFound,
        "zone nowhere.",
        vec![
            set("example.", "www.example.", a(1)),
            set("nowhere.", "www.nowhere.", a(1)),
        ],
    );
    assert_eq!(
        machine.rrset("example.", "www.example.", RecordType::A),
        None
    );
}

#[test]
fn a_command_without_changes_is_applied_and_changes_nothing() {
    let mut machine = Machine::with(vec![create("example.", 1)]);
    let applied = machine.applied(Vec::new());
    assert_eq!((applied.revision, applied.changed), (1, false));
}
