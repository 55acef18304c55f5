//! A copy of a reply is what would be answered anew, whatever has become of the zones since.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use proptest::prelude::*;

use crate::model::{rrset::RecordType, snapshot::Snapshot, zone::Zone};

use super::{
    fast_path::FastPath,
    message::{flag, upstream::Message},
    respond::{Client, Identity, Response, Transport, respond},
    testing::{add_forwarder, lines, name, query, snapshot, zone},
};

const PARENT: &str = "
example.test. 600 IN SOA a. b. 1 1 1 1 30
example.test. 600 IN NS a.
www.example.test. 60 IN CNAME app.sub.example.test.
app.sub.example.test. 60 IN A 192.0.2.1
moved.example.test. 60 IN DNAME sub.example.test.
gone.example.test. 60 IN CNAME none.sub.example.test.
out.example.test. 60 IN CNAME www.other.test.
";

const CHILD: &str = "
sub.example.test. 600 IN SOA a. b. 1 1 1 1 30
sub.example.test. 600 IN NS a.
app.sub.example.test. 60 IN A 192.0.2.2
none.sub.example.test. 60 IN A 192.0.2.3
";

const OTHER: &str = "
other.test. 600 IN SOA a. b. 1 1 1 1 30
other.test. 600 IN NS a.
www.other.test. 60 IN A 192.0.2.4
";

/// A worker's copies, and the state of the moment.
struct Bench {
    fast: FastPath,
    snapshot: Arc<Snapshot>,
}

impl Bench {
    fn new(state: Snapshot) -> Self {
        Self {
            fast: FastPath::new(),
            snapshot: Arc::new(state),
        }
    }

    /// The reply as a worker gives it, whether it was a copy, and the reply made anew; none where nothing is answered.
    fn ask(&mut self, message: &[u8]) -> Option<(Vec<u8>, bool, Vec<u8>)> {
        let client = Client {
            address: [127, 0, 0, 1].into(),
            transport: Transport::Udp,
        };
        let (mut copy, mut anew) = (Vec::new(), Vec::new());
        let used = self
            .fast
            .answer(&self.snapshot, message, client, &mut copy)
            .is_some();
        let identity = Identity::default();
        let response = respond(&self.snapshot, &identity, message, client, &mut anew);
        if used {
            return Some((copy, true, anew));
        }
        let Response::Reply(replied) = response else {
            return None;
        };
        if let Some(source) = replied.source {
            self.fast.keep(&self.snapshot, message, &anew, source);
        }
        Some((anew.clone(), false, anew))
    }

    /// The answer section, as a worker gives it.
    fn answer(&mut self, qname: &str) -> (Vec<String>, bool) {
        let message = query(1, qname, RecordType::A, flag::RD, Some(1232));
        let (reply, copy, _) = self.ask(&message).expect("a reply");
        let reply = Message::decode(&reply).expect("a message");
        (lines(&reply.answer), copy)
    }
}

#[test]
fn a_zone_made_around_an_aliass_target_takes_it_over_at_once() {
    let names = ["www", "app.moved", "gone"].map(|label| format!("{label}.example.test."));
    let mut bench = Bench::new(snapshot(&[PARENT]));
    for name in &names {
        (0..2).for_each(|_| drop(bench.answer(name)));
        assert!(bench.answer(name).1, "{name} is kept");
    }
    // The parent's revision stays.
    bench.snapshot = Arc::new(snapshot(&[PARENT, CHILD]));
    for (name, address) in names.iter().zip(["192.0.2.2", "192.0.2.2", "192.0.2.3"]) {
        let (answer, copy) = bench.answer(name);
        assert!(!copy, "{name}");
        assert!(
            answer.iter().any(|line| line.ends_with(address)),
            "{name}: {answer:?}"
        );
        (0..2).for_each(|_| drop(bench.answer(name)));
        assert!(bench.answer(name).1, "{name} is kept though in two zones");
    }
    bench.snapshot = Arc::new(snapshot(&[PARENT]));
    assert!(!bench.answer("www.example.test.").1, "the zone was deleted");
}

#[test]
fn an_alias_into_another_zone_is_kept_until_either_changes() {
    let out = "out.example.test.";
    let mut bench = Bench::new(snapshot(&[PARENT, OTHER]));
    (0..2).for_each(|_| drop(bench.answer(out)));
    bench.snapshot = Arc::new(snapshot(&[PARENT, OTHER, CHILD]));
    assert!(bench.answer(out).1, "a zone elsewhere changes nothing");
    let mut changed = snapshot(&[PARENT, OTHER]);
    let other = zone(&OTHER.replace("192.0.2.4", "192.0.2.5"));
    changed
        .zones
        .insert(name("other.test."), at(other, 2).into());
    bench.snapshot = Arc::new(changed);
    let (answer, copy) = bench.answer(out);
    assert!(!copy && answer.iter().any(|line| line.ends_with("192.0.2.5")));
}

fn at(zone: Zone, revision: u64) -> Zone {
    Zone { revision, ..zone }
}

const APEXES: [&str; 5] = ["t.", "a.t.", "b.a.t.", "c.t.", "localhost."];
const LABELS: [&str; 8] = ["", "a.", "b.", "b.a.", "w.", "x.w.", "*.", "*.a."];
const NAMES: [&str; 14] = [
    "t.",
    "a.t.",
    "b.a.t.",
    "w.t.",
    "w.a.t.",
    "x.w.a.t.",
    "w.b.a.t.",
    "x.w.b.a.t.",
    "c.t.",
    "w.c.t.",
    "a.c.t.",
    "q.a.t.",
    "localhost.",
    "w.z.",
];
const SUFFIXES: [&str; 3] = [".", "a.t.", "localhost."];
const TYPES: [RecordType; 4] = [
    RecordType::A,
    RecordType::CNAME,
    RecordType::DS,
    RecordType::MX,
];

/// What may become of the state.
#[derive(Clone, Debug)]
enum Change {
    /// A zone with these records: owner, kind, and what they point to.
    Put(usize, Vec<(usize, usize, usize)>),
    Delete(usize),
    Forward(usize),
    ForwardNoMore(usize),
}

fn change() -> impl Strategy<Value = Change> {
    let record = (0..LABELS.len(), 0..5usize, 0..NAMES.len());
    prop_oneof![
        5 => (0..APEXES.len(), proptest::collection::vec(record, 0..8)).prop_map(|(apex, records)| Change::Put(apex, records)),
        3 => (0..APEXES.len()).prop_map(Change::Delete),
        1 => (0..SUFFIXES.len()).prop_map(Change::Forward),
        1 => (0..SUFFIXES.len()).prop_map(Change::ForwardNoMore),
    ]
}

/// A zone of one record for each owner and type.
fn zone_of(apex: &str, records: &[(usize, usize, usize)], revision: u64) -> Zone {
    let mut sets = BTreeMap::new();
    for (label, kind, target) in records {
        let owner = format!("{}{apex}", LABELS[*label]);
        let target = NAMES[*target];
        let (rtype, data) = match kind {
            0 => ("A", format!("192.0.2.{revision}")),
            1 => ("CNAME", target.to_owned()),
            2 => ("DNAME", target.to_owned()),
            3 => ("MX", format!("10 {target}")),
            _ => ("NS", target.to_owned()),
        };
        sets.insert((owner, rtype), data);
    }
    let soa = format!("{apex} 600 IN SOA a. b. 1 1 1 1 30\n");
    let lines = sets
        .iter()
        .map(|((owner, rtype), data)| format!("{owner} 60 IN {rtype} {data}\n"));
    at(zone(&lines.fold(soa, |text, line| text + &line)), revision)
}

fn applied(before: &Snapshot, change: &Change, revision: u64) -> Snapshot {
    let mut state = Snapshot {
        revision,
        ..before.clone()
    };
    match change {
        Change::Put(apex, records) => {
            let apex = APEXES[*apex];
            let zone = zone_of(apex, records, revision);
            state.zones.insert(name(apex), Arc::new(zone));
        }
        Change::Delete(apex) => drop(state.zones.remove(&name(APEXES[*apex]))),
        Change::Forward(suffix) => {
            let upstream = "192.0.2.1:53".parse().expect("an address");
            add_forwarder(&mut state, SUFFIXES[*suffix], &[upstream]);
        }
        Change::ForwardNoMore(suffix) => {
            drop(state.forwarders.remove(&name(SUFFIXES[*suffix])));
        }
    }
    state
}

proptest! {
    /// Whatever is created, changed and deleted: at every state a worker answers what would be answered anew.
    #[test]
    fn a_copy_is_what_would_be_answered_anew(changes in proptest::collection::vec(change(), 1..16)) {
        let mut bench = Bench::new(Snapshot::default());
        let questions: BTreeSet<Vec<u8>> = NAMES
            .iter()
            .flat_map(|name| TYPES.map(|rtype| (name, rtype)))
            .flat_map(|(name, rtype)| [0, flag::RD].map(|flags| query(1, name, rtype, flags, None)))
            .collect();
        for (at, change) in changes.iter().enumerate() {
            bench.snapshot = Arc::new(applied(&bench.snapshot, change, at as u64 + 1));
            for message in questions.iter().cycle().take(questions.len() * 3) {
                if let Some((given, _, anew)) = bench.ask(message) {
                    prop_assert_eq!(given, anew, "{:?}", &message[12..]);
                }
            }
        }
    }
}
