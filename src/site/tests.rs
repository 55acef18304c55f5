use std::{collections::BTreeMap, io, time::Duration};

use super::{
    Site,
    bundle::bundle,
    export::export,
    plan::{Action, MAX_DETAIL_OCTETS, WantedZones, plan, plan_with},
};
use crate::{
    model::{
        listener::{ListenAddress, Listener},
        name::Name,
        pool::{Backend, BackendState, Policy, Pool},
        rrset::{RecordType, Rrset},
        snapshot::Snapshot,
    },
    state::{
        State,
        command::{Change, Command, RequestId, UnixMillis},
        outcome::{Applied, Outcome, RefusalKind},
    },
    zonefile::{Loader, include::Nothing},
};

const SAMPLE: &str = include_str!("../../cluster/sample-site.toml");

const ZONE: &str = "
[[zone]]
name = \"example.\"
records = '''
@ 60 SOA ns1 admin 7 1 1 1 1
@ 60 NS ns1
ns1 60 A 192.0.2.1
'''
";

fn name(text: &str) -> Name {
    text.parse().expect("a name in a test")
}

fn site(text: &str) -> Site {
    Site::parse(text).unwrap_or_else(|faults| panic!("{faults:#?}"))
}

fn faults(text: &str) -> Vec<String> {
    let faults = Site::parse(text).expect_err("faulty");
    let unplaced = |fault: &crate::config::Fault| {
        let text = fault.to_string();
        match fault.line {
            Some(line) => text.replacen(&format!("line {line}: "), "", 1),
            None => text,
        }
    };
    faults.iter().map(unplaced).collect()
}

#[track_caller]
fn apply(state: &mut State, changes: Vec<Change>) -> Applied {
    let index = state.revision() + 1;
    let command = Command {
        request: RequestId(index.into()),
        born: state.revision(),
        proposed_at: UnixMillis(0),
        author: "tester".into(),
        preconditions: Vec::new(),
        changes,
    };
    match state.apply(index, &command) {
        Outcome::Applied(applied) => applied,
        other => panic!("not applied: {other:?}"),
    }
}

/// A state that is as the document says.
#[track_caller]
fn state_of(text: &str) -> State {
    let mut state = State::default();
    let plan = plan(state.snapshot(), &site(text)).expect("a sound document");
    apply(&mut state, plan.changes);
    state
}

#[track_caller]
fn assert_reached(snapshot: &Snapshot, site: &Site) {
    let rest = plan(snapshot, site).expect("a sound document");
    assert!(rest.is_empty(), "{:#?}", rest.differences);
    assert!(rest.differences.is_empty());
}

#[test]
fn the_sample_is_applied_and_then_changes_nothing() {
    let state = state_of(SAMPLE);
    assert_reached(state.snapshot(), &site(SAMPLE));
    let zone = &state.snapshot().zones[&name("demo.test.")];
    for (owner, rtype) in [
        ("www.demo.test.", RecordType::A),
        ("www.demo.test.", RecordType::AAAA),
        ("*.apps.demo.test.", RecordType::A),
        ("web.demo.test.", RecordType::CNAME),
        ("demo.test.", RecordType::MX),
        ("demo.test.", RecordType::TXT),
        ("sub.demo.test.", RecordType::NS),
        ("ns.sub.demo.test.", RecordType::A),
    ] {
        assert!(zone.rrset(&name(owner), rtype).is_some(), "{owner} {rtype}");
    }
    let listeners: Vec<_> = state
        .snapshot()
        .listeners
        .values()
        .map(|l| l.port)
        .collect();
    assert_eq!(listeners, [5700]);
}

#[test]
fn an_export_is_a_document_of_the_same_state() {
    let state = state_of(SAMPLE);
    let text = export(state.snapshot());
    assert_reached(state.snapshot(), &site(&text));
    assert_eq!(site(&text).to_toml(), text);
    assert_eq!(site(&text), Site::of(state.snapshot()));
}

#[test]
fn odd_names_and_data_survive_export() {
    let mut state = state_of(ZONE);
    let txt = Rrset::new(
        RecordType::TXT,
        60,
        [b"\x06'''\"\\\x00".as_slice(), b"\x02\xc3\xa9"],
    );
    let set = |owner: &str, rrset: Rrset| Change::SetRrset {
        zone: name("example."),
        name: name(owner),
        rrset,
    };
    let unknown = Rrset::new(RecordType(65280), 1, [b"\x00\xff".as_slice(), b""]);
    apply(
        &mut state,
        vec![
            set(r"\000\255\.'.example.", txt.clone().expect("two records")),
            set(r"'''.example.", txt.expect("two records")),
            set("u.example.", unknown.expect("two records")),
            Change::PutPool {
                pool: Pool {
                    policy: Policy::SourceHash,
                    health_check: None,
                    connect_timeout: Duration::from_millis(1),
                    backends: vec![Backend {
                        name: "b.1".parse().expect("a label"),
                        address: "[2001:db8::1]:80".parse().expect("an address"),
                        weight: 0,
                        state: BackendState::Disabled,
                    }],
                    ..Pool::new("p-1".parse().expect("a label"))
                },
                create: true,
            },
            Change::PutListener {
                listener: Listener::new(
                    "l".parse().expect("a label"),
                    ListenAddress::Address("2001:db8::2".parse().expect("an address")),
                    65535,
                    "p-1".parse().expect("a label"),
                ),
                create: true,
            },
        ],
    );
    let text = export(state.snapshot());
    assert_eq!(site(&text), Site::of(state.snapshot()), "{text}");
    assert_reached(state.snapshot(), &site(&text));
}

#[test]
fn an_empty_document_is_refused_with_words_how_to_delete_everything() {
    for text in ["", "\n \n", "# nothing\n"] {
        let found = faults(text);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("write the one line `[dns]`"), "{found:?}");
        assert!(bundle(text, &mut Nothing).is_err());
    }
    let mut state = state_of(SAMPLE);
    let plan = plan(state.snapshot(), &site("[dns]\n")).expect("a sound document");
    assert!(plan.differences.iter().all(|d| d.action == Action::Delete));
    let objects: Vec<&str> = plan.differences.iter().map(|d| d.object.as_str()).collect();
    assert_eq!(
        objects,
        [
            "zone demo.test.",
            "forwarder upstream.test.",
            "pool web",
            "listener web",
            "vip 127.0.53.53"
        ]
    );
    apply(&mut state, plan.changes);
    assert_eq!(Site::of(state.snapshot()), Site::default());
}

#[test]
fn differences_are_told_line_by_line() {
    let state = state_of(SAMPLE);
    let text = SAMPLE
        .replace(
            "www         IN A     127.0.53.53",
            "www         IN A     127.0.53.54",
        )
        .replace("127.0.0.1:5792\"", "127.0.0.1:5793\"\nweight = 7");
    let plan = plan(state.snapshot(), &site(&text)).expect("a sound document");
    let told: Vec<String> = plan.differences.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "update zone demo.test.\n  - www.demo.test. 300 A 127.0.53.53\n  + www.demo.test. 300 A 127.0.53.54",
            "update pool web\n  - address = \"127.0.0.1:5792\"\n  - weight = 1\n  + address = \"127.0.0.1:5793\"\n  + weight = 7",
        ]
    );
    assert_eq!(plan.changes.len(), 2);
}

#[test]
fn an_apply_of_zones_stands_back_only_for_changes_of_the_same_zones() {
    let other = ZONE.replace("\"example.\"", "\"other.\"");
    let moved = |text: &str| text.replace("192.0.2.1", "192.0.2.9");
    let write = |apex: &str| Change::SetRrset {
        zone: name(apex),
        name: name(&format!("new.{apex}")),
        rrset: Rrset::new(RecordType::A, 60, [[192, 0, 2, 7]]).expect("one record"),
    };
    let make = |text: &str| {
        plan(&Snapshot::default(), &site(text))
            .expect("sound")
            .changes
    };
    let pool = "[[pool]]\nname = \"p\"\n";
    let both = format!("{ZONE}{other}");
    for (document, between, refused) in [
        (
            format!("{}{other}", moved(ZONE)),
            vec![write("other.")],
            None,
        ),
        (
            format!("{}{other}", moved(ZONE)),
            vec![write("example.")],
            Some(RefusalKind::PreconditionFailed),
        ),
        // A zone to be deleted, and one to be made.
        (ZONE.to_owned(), vec![write("example.")], None),
        (
            ZONE.to_owned(),
            vec![write("other.")],
            Some(RefusalKind::PreconditionFailed),
        ),
        (
            both.replace("\"other.\"", "\"new.\""),
            make(&other.replace("\"other.\"", "\"new.\"")),
            Some(RefusalKind::AlreadyExists),
        ),
        (
            format!("{both}{pool}"),
            vec![write("other.")],
            Some(RefusalKind::PreconditionFailed),
        ),
    ] {
        let mut state = state_of(&both);
        let planned = plan(state.snapshot(), &site(&document)).expect("sound");
        let (preconditions, changes) = planned.guarded(state.snapshot());
        apply(&mut state, between);
        let command = Command {
            request: RequestId(99),
            born: state.revision(),
            proposed_at: UnixMillis(0),
            author: "tester".into(),
            preconditions,
            changes,
        };
        let kind = match state.apply(state.revision() + 1, &command) {
            Outcome::Refused(refusal) => Some(refusal.kind),
            _ => None,
        };
        assert_eq!(kind, refused, "{document}");
    }
}

#[test]
fn a_zone_is_compared_again_only_when_it_moved() {
    let text = format!("{ZONE}{}", ZONE.replace("\"example.\"", "\"other.\""));
    let mut state = state_of(&text);
    let wanted = text.replacen("192.0.2.1", "192.0.2.9", 1);
    let wanted = site(&wanted);
    let mut zones = WantedZones::gather(&wanted).expect("sound");
    let first = plan_with(state.snapshot(), &wanted, &mut zones);
    assert_eq!(first.differences.len(), 1);
    // Zones whose revision, or whose hash, says that nothing happened are not looked into.
    let mut odd = state.snapshot().clone();
    for apex in ["example.", "other."] {
        let mut zone = odd.zones[&name(apex)].as_ref().clone();
        zone.nodes = imbl::OrdMap::new();
        odd.zones.insert(name(apex), std::sync::Arc::new(zone));
    }
    assert_eq!(plan_with(&odd, &wanted, &mut zones), first);
    for apex in ["example.", "other."] {
        let set = Change::SetRrset {
            zone: name(apex),
            name: name(&format!("new.{apex}")),
            rrset: Rrset::new(RecordType::A, 60, [[192, 0, 2, 7]]).expect("one record"),
        };
        apply(&mut state, vec![set]);
        let anew = plan(state.snapshot(), &wanted).expect("sound");
        assert_eq!(plan_with(state.snapshot(), &wanted, &mut zones), anew);
        assert_ne!(anew, first);
    }
}

#[test]
fn the_details_of_a_difference_fit_a_message() {
    let mut state = state_of(ZONE);
    let large = |at: u8| Change::SetRrset {
        zone: name("example."),
        name: name(&format!("x{at}.example.")),
        rrset: Rrset::new(RecordType(65280), 1, [[at; 60_000]]).expect("one record"),
    };
    apply(&mut state, (0..20).map(large).collect());
    let plan = plan(state.snapshot(), &site(ZONE)).expect("a sound document");
    let details = &plan.differences[0].details;
    let octets: usize = details.iter().map(String::len).sum();
    assert!(octets < MAX_DETAIL_OCTETS + 100, "{octets}");
    let shown = details.len() - 1;
    assert!(shown > 0);
    assert_eq!(details[shown], format!("and {} more", 20 - shown));
}

#[test]
fn a_serial_in_the_document_does_not_count() {
    let mut state = state_of(ZONE);
    let set = Rrset::new(RecordType::A, 60, [[192, 0, 2, 1]]).expect("one record");
    let owner = |text: &str| Change::SetRrset {
        zone: name("example."),
        name: name(text),
        rrset: set.clone(),
    };
    apply(&mut state, vec![owner("x.example.")]);
    let gone = Change::DeleteName {
        zone: name("example."),
        name: name("x.example."),
    };
    apply(&mut state, vec![gone]);
    assert_eq!(state.snapshot().zones[&name("example.")].serial.0, 9);
    assert_reached(state.snapshot(), &site(ZONE));
}

#[test]
fn all_faults_are_told_together_with_their_keys() {
    let text = "
colour = 1
[dns]
recursion_allowed = [\"10.0.0.1/8\"]
[[zone]]
name = \"bad..name\"
records = ''
[[zone]]
name = \"example.\"
file = \"x\"
records = '''
@ 60 SOA ns1 admin 7 1 1 1 1
www 60 A 192.0.2.300
'''
[[pool]]
name = \"web\"
policy = \"best\"
weight = 3
[pool.health_check]
rise = 0
[[pool.backend]]
address = \"192.0.2.1\"
[[listener]]
name = \"Web\"
port = 70000
[[vip]]
address = \"x\"
";
    let found = faults(text);
    for key in [
        "colour",
        "dns.recursion_allowed",
        "zone[bad..name].name",
        "zone[example.].file",
        "zone[example.].records: column 10: A data",
        "zone[example.].records: zone example.: expected NS records",
        "pool[web].policy",
        "pool[web].weight",
        "pool[web].health_check.rise",
        "pool[web].backend[1].name",
        "pool[web].backend[1].address",
        "listener[Web].name",
        "listener[Web].port",
        "listener[Web].pool",
        "vip[x].address",
    ] {
        assert!(
            found.iter().any(|f| f.starts_with(key)),
            "{key} in {found:#?}"
        );
    }
}

#[test]
fn objects_are_held_against_one_another() {
    let cases = [
        (
            "[[listener]]\nname = \"a\"\nport = 1\npool = \"p\"",
            "listener[a]: its pool p",
        ),
        (
            "[[pool]]\nname = \"p\"\n[[listener]]\nname = \"a\"\nport = 1\npool = \"p\"\n\
             [[listener]]\nname = \"b\"\nport = 1\npool = \"p\"",
            "listener[b]: listener a has port 1",
        ),
        (
            "[[pool]]\nname = \"p\"\n[[pool]]\nname = \"p\"",
            "pool[p]: is given twice",
        ),
        (
            "[[pool]]\nname = \"p\"\nconnect_timeout = \"2m\"",
            "pool[p]: a connect timeout of 120s",
        ),
        (
            "[[forwarder]]\nsuffix = \".\"\nupstreams = []",
            "forwarder[.]: 0 upstreams",
        ),
        (
            "[[zone]]\nname = \"e.\"\nrecords = '@ 60 NS ns1'",
            "zone[e.].records: zone e.: expected SOA",
        ),
        ("[[zone]]\nname = \"e.\"", "zone[e.].records: missing"),
        ("[dns", "this is no TOML"),
        ("zone = 3", "zone: expected [[zone]] tables, found integer"),
    ];
    for (text, expected) in cases {
        let found = faults(text);
        assert!(
            found.iter().any(|f| f.starts_with(expected)),
            "{expected} in {found:#?}"
        );
    }
}

#[test]
fn names_that_differ_in_case_are_one_zone() {
    let upper = ZONE.replace("\"example.\"", "\"EXAMPLE\"");
    let found = faults(&format!("{ZONE}{upper}"));
    assert_eq!(found, ["zone[example.]: is given twice"]);
}

struct Files(BTreeMap<&'static str, &'static str>);

impl Loader for Files {
    fn load(&mut self, file: &str) -> io::Result<Vec<u8>> {
        let text = self.0.get(file).ok_or(io::ErrorKind::NotFound)?;
        Ok(text.as_bytes().to_vec())
    }
}

#[test]
fn files_are_put_in_their_place() {
    let mut files = Files(BTreeMap::from([
        (
            "example.zone",
            "@ 60 SOA ns1 admin 7 1 1 1 1\n@ 60 NS ns1\n$INCLUDE hosts\n",
        ),
        ("hosts", "ns1 60 A 192.0.2.1\n"),
    ]));
    let text = "[[zone]]\nname = \"example.\"\nfile = \"example.zone\"\n";
    let alone = bundle(text, &mut files).expect("the files are there");
    assert_eq!(site(&alone.text), site(ZONE));

    let inline = ZONE.replace("ns1 60 A 192.0.2.1", "$include hosts");
    let alone = bundle(&inline, &mut files).expect("the files are there");
    assert_eq!(site(&alone.text), site(ZONE));

    let same = bundle(SAMPLE, &mut Nothing).expect("it needs no files");
    assert_eq!(same.text, SAMPLE);
    for (text, key) in [
        (
            "[[zone]]\nname = \"e.\"\nfile = \"../x\"",
            "zone[e.].file: \"../x\" is no plain file name",
        ),
        (
            "[[zone]]\nname = \"e.\"\nfile = \"none\"",
            "zone[e.].file: none:",
        ),
        (
            "[[zone]]\nname = \"e.\"\nfile = 3",
            "zone[e.].file: expected a text",
        ),
        (
            "[[zone]]\nname = \"e.\"\nfile = \"hosts\"\nrecords = ''",
            "zone[e.].file: is given beside",
        ),
        ("[[zone]]\nfile = \"hosts\"", "zone[1].name"),
    ] {
        let found = bundle(text, &mut files).expect_err("faulty");
        assert!(
            found.iter().any(|f| f.to_string().contains(key)),
            "{key} in {found:?}"
        );
    }
}

#[test]
fn ports_can_be_moved_together() {
    let mut moved = site(SAMPLE);
    moved.map_ports(|port| port + 1_000);
    let text = moved.to_toml();
    for port in [
        "port = 6700",
        "127.0.0.1:6790",
        "127.0.0.1:6791",
        "127.0.0.1:6792",
    ] {
        assert!(text.contains(port), "{port}");
    }
    assert_eq!(site(&text), moved);
}

#[test]
fn faults_of_every_kind_come_in_one_round_with_their_lines() {
    let text = "\
[[zone]]
name = \"a.test\"
file = \"../etc/passwd\"
[[zone]]
name = \"b.test\"
records = '''
@ 60 SOA ns1 admin 7 1 1 1 1
x 60 A 192.0.2.300
y 60 A 192.0.2.1
y 60 CNAME z
'''
[[pool]]
name = \"p\"
connect_timeout = \"2m\"
[[pool.backend]]
name = \"x\"
address = \"192.0.2.1:1\"
[[pool.backend]]
name = \"y\"
address = \"192.0.2.1:1\"
weight = 5000
[[listener]]
name = \"l\"
port = 1
pool = \"none\"
[[listener]]
name = \"m\"
port = 1
pool = \"p\"
[[vip]]
address = \"192.0.2.9\"
[[vip]]
address = \"192.0.2.9\"
";
    let found = bundle(text, &mut Nothing).expect_err("faulty");
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    for start in [
        "line 3: zone[a.test].file: ",
        "line 6: zone[b.test].records: zone b.test.: expected NS",
        "line 8: zone[b.test].records: column 8: A data",
        "line 10: zone[b.test].records: y.b.test. CNAME: ",
        "line 33: vip[192.0.2.9]: is given twice",
        "line 13: pool[p]: a connect timeout",
        "line 19: pool[p].backend[y]: another backend",
        "line 21: pool[p].backend[y].weight: ",
        "line 23: listener[l]: its pool none",
        "line 27: listener[m]: listener l has port 1",
    ] {
        assert!(
            found.iter().any(|f| f.starts_with(start)),
            "{start} in {found:#?}"
        );
    }
    let broken = bundle("a = \nb = 1\n[c\n", &mut Nothing).expect_err("no TOML");
    assert!(
        broken[0].to_string().starts_with("line 1: this is no TOML"),
        "{broken:?}"
    );
}

#[test]
fn data_outside_of_its_zone_is_ignored_with_a_warning() {
    let text = ZONE.replace("ns1 60 A", "www.example.org. 60 A 192.0.2.2\nns1 60 A");
    let bundled = bundle(&text, &mut Nothing).expect("fine");
    assert_eq!(bundled.warnings.len(), 1, "{:?}", bundled.warnings);
    assert!(
        bundled.warnings[0].contains("www.example.org. A"),
        "{:?}",
        bundled.warnings
    );
    assert_eq!(site(&bundled.text), site(ZONE));
}
