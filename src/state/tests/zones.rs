//! Zones: what is applied and refused, serials, history.

use super::*;
use crate::state::{command::Precondition, diff::SetChange, limits};

const ZONE: &str = "example.";
const WWW: &str = "www.example.";

fn rrset(rtype: RecordType, data: &[&[u8]]) -> Rrset {
    Rrset::new(rtype, 60, data).expect("at least one record")
}

fn delete(owner: &str, rtype: RecordType, rdata: Option<Vec<Vec<u8>>>) -> Change {
    Change::DeleteRecords {
        zone: name(ZONE),
        name: name(owner),
        rtype,
        rdata,
    }
}

fn add(owner: &str, rrset: Rrset) -> Change {
    Change::AddRecords {
        zone: name(ZONE),
        name: name(owner),
        rrset,
    }
}

fn replace(records: Vec<(Name, Rrset)>) -> Change {
    Change::ReplaceZone {
        zone: name(ZONE),
        records,
    }
}

#[test]
fn sets_are_put_added_to_and_taken_away() {
    let mut machine = Machine::with(vec![create(ZONE, 1)]);
    machine.applied(vec![set(ZONE, WWW, addresses(&[1, 2]))]);
    machine.applied(vec![add(WWW, addresses(&[2, 3]))]);
    let found = |m: &Machine| m.rrset(ZONE, WWW, RecordType::A);
    assert_eq!(found(&machine), Some(addresses(&[1, 2, 3])));
    machine.applied(vec![delete(
        WWW,
        RecordType::A,
        Some(vec![vec![192, 0, 2, 1], vec![192, 0, 2, 9]]),
    )]);
    assert_eq!(found(&machine), Some(addresses(&[2, 3])));
    machine.applied(vec![delete(WWW, RecordType::A, None)]);
    assert_eq!(found(&machine), None);
    let zone = &machine.state.snapshot().zones[&name(ZONE)];
    assert_eq!((zone.nodes.len(), zone.record_count), (1, 2));
}

#[test]
fn adding_takes_the_new_ttl_and_adding_again_changes_nothing() {
    let mut machine = Machine::with(vec![create(ZONE, 1), set(ZONE, WWW, a(1))]);
    machine.applied(vec![add(WWW, a(2).with_ttl(77))]);
    assert_eq!(
        machine.rrset(ZONE, WWW, RecordType::A).map(|s| s.ttl()),
        Some(77)
    );
    let again = machine.applied(vec![add(WWW, a(2).with_ttl(77))]);
    assert!(!again.changed);
}

fn keeping(owner: &str, rrset: Rrset) -> [Change; 2] {
    let (zone, owner) = (name(ZONE), name(owner));
    [
        Change::SetKeepingTtl {
            zone: zone.clone(),
            name: owner.clone(),
            rrset: rrset.clone(),
        },
        Change::AddKeepingTtl {
            zone,
            name: owner,
            rrset,
        },
    ]
}

#[test]
fn a_set_keeps_its_ttl_as_the_changes_before_left_it() {
    let found = |m: &Machine| {
        m.rrset(ZONE, WWW, RecordType::A)
            .map(|s| (s.ttl(), s.len()))
    };
    let [put, more] = [
        keeping(WWW, a(1).with_ttl(7)),
        keeping(WWW, a(2).with_ttl(7)),
    ];
    for (first, records) in [(&put[0], 1), (&more[1], 2)] {
        let mut machine = Machine::with(vec![create(ZONE, 1), set(ZONE, WWW, a(1).with_ttl(60))]);
        machine.applied(vec![first.clone()]);
        assert_eq!(found(&machine), Some((60, records)));
        // Without a set there is no TTL to keep, however its records went.
        let address = || Some(vec![vec![192, 0, 2, 1]]);
        for gone in [
            vec![delete(WWW, RecordType::A, None)],
            vec![
                delete(WWW, RecordType::A, address()),
                delete(WWW, RecordType::A, Some(vec![vec![192, 0, 2, 2]])),
            ],
        ] {
            machine.applied(vec![set(ZONE, WWW, addresses(&[1, 2]))]);
            machine.applied([gone, vec![first.clone()]].concat());
            assert_eq!(found(&machine), Some((7, 1)));
        }
    }
    let mut machine = Machine::with(vec![create(ZONE, 1)]);
    machine.applied(vec![
        more[1].clone(),
        set(ZONE, WWW, a(3).with_ttl(9)),
        put[0].clone(),
    ]);
    assert_eq!(found(&machine), Some((9, 1)));
    assert!(!machine.applied(vec![put[1].clone()]).changed);
    let gone = Change::DeleteZone { zone: name(ZONE) };
    machine.applied(vec![gone]);
    machine.refused_as(RefusalKind::NotFound, "zone example.", put.to_vec());
}

#[test]
fn a_name_is_emptied_whole_but_never_the_apex() {
    let mut machine = Machine::with(vec![
        create(ZONE, 1),
        set(ZONE, WWW, a(1)),
        set(ZONE, WWW, rrset(RecordType::TXT, &[b"\x02hi"])),
    ]);
    let gone = |owner: &str| Change::DeleteName {
        zone: name(ZONE),
        name: name(owner),
    };
    machine.applied(vec![gone(WWW)]);
    assert!(
        machine.state.snapshot().zones[&name(ZONE)]
            .node(&name(WWW))
            .is_none()
    );
    assert!(!machine.applied(vec![gone(WWW)]).changed);
    machine.refused_as(RefusalKind::Invalid, "name example.", vec![gone(ZONE)]);
}

#[test]
fn each_command_moves_the_serial_forward_once() {
    let mut machine = Machine::with(vec![create(ZONE, 41)]);
    assert_eq!(machine.serial(ZONE), Serial(41));
    let applied = machine.applied(vec![
        set(ZONE, WWW, a(1)),
        set(ZONE, "b.example.", a(1)),
        set(ZONE, "c.example.", a(1)),
    ]);
    assert_eq!(applied.serials, [(name(ZONE), Serial(42))]);
    assert_eq!(machine.serial(ZONE), Serial(42));
    let nothing = machine.applied(vec![set(ZONE, WWW, a(1))]);
    assert_eq!(nothing.serials, [(name(ZONE), Serial(42))]);
    assert_eq!((nothing.changed, nothing.revision), (false, 2));
    assert_eq!(machine.serial(ZONE), Serial(42));
    assert_eq!(machine.state.revision(), 2);
}

#[test]
fn a_change_that_is_undone_in_the_same_command_changes_nothing() {
    let mut machine = Machine::with(vec![create(ZONE, 1)]);
    let applied = machine.applied(vec![set(ZONE, WWW, a(1)), delete(WWW, RecordType::A, None)]);
    assert!(!applied.changed);
    assert_eq!(machine.serial(ZONE), Serial(1));
}

#[test]
fn the_serial_wraps_around() {
    let mut machine = Machine::with(vec![create(ZONE, u32::MAX)]);
    machine.applied(vec![set(ZONE, WWW, a(1))]);
    assert_eq!(machine.serial(ZONE), Serial(0));
}

#[test]
fn an_imported_serial_is_a_floor() {
    // (serial now, serial of the file, serial after)
    for (now, file, after) in [
        (10, 5, 11),
        (10, 10, 11),
        (10, 11, 11),
        (10, 2_024_010_100, 2_024_010_100),
        (u32::MAX, 3, 3),
        (3, u32::MAX, 4),
        (5, 0x8000_0006, 6), // neither is newer: one step forward
        (5, 0x8000_0005, 6), // newer than the next serial, but not to a secondary that has 5
    ] {
        let mut machine = Machine::with(vec![create(ZONE, now)]);
        let mut records = apex(ZONE, file);
        let unchanged = machine.applied(vec![replace(records.clone())]);
        assert!(!unchanged.changed, "the same contents with serial {file}");
        records.push((name(WWW), a(1)));
        machine.applied(vec![replace(records)]);
        assert_eq!(machine.serial(ZONE), Serial(after), "{now} and {file}");
    }
}

#[test]
fn a_serial_that_comes_again_is_passed_over_while_the_history_holds_it() {
    let mut machine = Machine::with(vec![create(ZONE, 2)]);
    for (host, file, after) in [
        (1, 0x8000_0000, 0x8000_0000),
        (2, 0xffff_fffe, 0xffff_fffe),
        (3, 2, 3),
    ] {
        let mut records = apex(ZONE, file);
        records.push((name(WWW), a(host)));
        machine.applied(vec![replace(records)]);
        assert_eq!(machine.serial(ZONE), Serial(after), "{file}");
    }
    machine.applied(vec![Change::RollbackZone {
        zone: name(ZONE),
        serial: Serial(2),
    }]);
    assert_eq!(machine.rrset(ZONE, WWW, RecordType::A), None);

    // What is passed over must not lead to one that no secondary takes.
    let mut machine = Machine::with(vec![create(ZONE, 2)]);
    for (host, file, after) in [
        (1, 0x8000_0001, 0x8000_0001),
        (2, 0x8000_0003, 0x8000_0003),
        (3, 2, 0x8000_0004),
    ] {
        let mut records = apex(ZONE, file);
        records.push((name(WWW), a(host)));
        machine.applied(vec![replace(records)]);
        assert_eq!(machine.serial(ZONE), Serial(after), "{file}");
    }
}

#[test]
fn setting_the_soa_may_move_the_serial_forward_but_not_back() {
    let mut machine = Machine::with(vec![create(ZONE, 10)]);
    assert!(!machine.applied(vec![set(ZONE, ZONE, soa(9))]).changed);
    assert!(!machine.applied(vec![set(ZONE, ZONE, soa(10))]).changed);
    assert!(machine.applied(vec![set(ZONE, ZONE, soa(50))]).changed);
    assert_eq!(machine.serial(ZONE), Serial(50));
    machine.applied(vec![set(ZONE, ZONE, soa(7).with_ttl(5))]);
    assert_eq!(machine.serial(ZONE), Serial(51));
}

#[test]
fn a_zone_made_again_goes_on_from_its_last_serial() {
    let gone = || Change::DeleteZone { zone: name(ZONE) };
    let mut machine = Machine::with(vec![create(ZONE, 100)]);
    machine.applied(vec![gone()]);
    assert_eq!(machine.state.deleted_serial(&name(ZONE)), Some(Serial(100)));
    machine.applied(vec![create(ZONE, 1)]);
    assert_eq!(machine.serial(ZONE), Serial(101));
    assert_eq!(machine.state.deleted_serial(&name(ZONE)), None);
    let mut records = apex(ZONE, 1);
    records.push((name(WWW), a(1)));
    machine.applied(vec![
        gone(),
        Change::CreateZone {
            zone: name(ZONE),
            records,
        },
    ]);
    assert_eq!(machine.serial(ZONE), Serial(102), "in one command");
    assert!(
        !machine
            .applied(vec![
                gone(),
                replace({
                    let mut records = apex(ZONE, 1);
                    records.push((name(WWW), a(1)));
                    records
                })
            ])
            .changed,
        "deleted and made again as it was"
    );
}

#[test]
fn a_zone_is_made_once() {
    let mut machine = Machine::with(vec![create(ZONE, 1)]);
    machine.refused_as(
        RefusalKind::AlreadyExists,
        "zone example.",
        vec![create(ZONE, 1)],
    );
    let gone = Change::DeleteZone { zone: name(ZONE) };
    machine.applied(vec![gone.clone()]);
    machine.refused_as(RefusalKind::NotFound, "zone example.", vec![gone]);
    machine.refused_as(
        RefusalKind::NotFound,
        "zone example.",
        vec![set(ZONE, WWW, a(1))],
    );
}

#[test]
fn what_a_zone_may_not_hold_is_refused() {
    let kinds = RefusalKind::Invalid;
    let conflict = RefusalKind::Conflict;
    let target = name("t.example.");
    let cases: Vec<(RefusalKind, &str, Vec<Change>)> = vec![
        (
            conflict,
            "record www.example. CNAME",
            vec![set(ZONE, WWW, cname("x."))],
        ),
        (
            conflict,
            "record c.example. CNAME",
            vec![set(ZONE, "c.example.", a(1))],
        ),
        (
            conflict,
            "record n.example. CNAME",
            vec![
                set(ZONE, "n.example.", cname("x.")),
                set(ZONE, "n.example.", a(1)),
            ],
        ),
        (
            conflict,
            "record example. CNAME",
            vec![set(ZONE, ZONE, cname("x."))],
        ),
        (
            kinds,
            "record c.example. CNAME",
            vec![add("c.example.", cname("other."))],
        ),
        (
            kinds,
            "record n.example. CNAME",
            vec![set(
                ZONE,
                "n.example.",
                Rrset::new(RecordType::CNAME, 1, [wire("x."), wire("y.")]).expect("two"),
            )],
        ),
        (
            conflict,
            "record d.example. DNAME",
            vec![set(ZONE, "x.d.example.", a(1))],
        ),
        (
            conflict,
            "record example. DNAME",
            vec![set(ZONE, ZONE, dname("x."))],
        ),
        (
            conflict,
            "record sub.example. DNAME",
            vec![set(ZONE, "sub.example.", dname("x."))],
        ),
        (
            conflict,
            "record new.example. DNAME",
            vec![
                set(ZONE, "new.example.", dname("x.")),
                set(ZONE, "a.b.new.example.", a(1)),
            ],
        ),
        (
            kinds,
            "zone example.",
            vec![delete(ZONE, RecordType::SOA, None)],
        ),
        (
            kinds,
            "zone example.",
            vec![delete(ZONE, RecordType::NS, None)],
        ),
        (
            kinds,
            "record www.example. SOA",
            vec![set(ZONE, WWW, soa(1))],
        ),
        (
            kinds,
            "record example. DS",
            vec![set(
                ZONE,
                ZONE,
                rrset(RecordType::DS, &[&[0, 1, 8, 2, 0xaa]]),
            )],
        ),
        (
            kinds,
            "name www.example.org.",
            vec![set(ZONE, "www.example.org.", a(1))],
        ),
        (
            kinds,
            "record www.example. A",
            vec![set(ZONE, WWW, a(1).with_ttl(0x8000_0000))],
        ),
        (
            kinds,
            "record www.example. A",
            vec![set(ZONE, WWW, rrset(RecordType::A, &[b"abc"]))],
        ),
        (
            kinds,
            "record www.example. ANY",
            vec![set(ZONE, WWW, rrset(RecordType::ANY, &[b""]))],
        ),
        (
            kinds,
            "record www.example. OPT",
            vec![set(ZONE, WWW, rrset(RecordType::OPT, &[b""]))],
        ),
        (
            kinds,
            "record t.example. A",
            vec![replace({
                let mut twice = apex(ZONE, 1);
                twice.extend([(target.clone(), a(1)), (target, a(2))]);
                twice
            })],
        ),
        (
            kinds,
            "zone example.",
            vec![replace(vec![(name(ZONE), soa(1))])],
        ),
        (
            kinds,
            "zone new.",
            vec![Change::CreateZone {
                zone: name("new."),
                records: vec![],
            }],
        ),
    ];
    for (kind, object, changes) in cases {
        let mut machine = Machine::with(vec![
            create(ZONE, 1),
            set(ZONE, WWW, a(1)),
            set(ZONE, "c.example.", cname("x.")),
            set(ZONE, "d.example.", dname("x.")),
            set(ZONE, "sub.example.", ns("ns.sub.example.")),
        ]);
        machine.refused_as(kind, object, changes);
    }
}

#[test]
fn what_only_looks_forbidden_is_applied() {
    let changes = [
        vec![
            delete(WWW, RecordType::A, None),
            set(ZONE, WWW, cname("x.")),
        ],
        vec![
            set(ZONE, WWW, cname("x.")),
            delete(WWW, RecordType::A, None),
        ],
        vec![
            set(ZONE, "sub.example.", ns("ns.sub.example.")),
            set(ZONE, "ns.sub.example.", a(1)),
        ],
        vec![
            set(ZONE, "d.example.", dname("x.")),
            set(ZONE, "d.example.", a(1)),
        ],
        vec![
            set(ZONE, "dd.example.", dname("x.")),
            set(ZONE, "add.example.", a(1)),
        ],
        vec![set(ZONE, "*.example.", a(1))],
        vec![
            set(ZONE, "c.example.", cname("x.")),
            set(
                ZONE,
                "c.example.",
                rrset(RecordType::NSEC, &[b"\x00\x00\x01\x40"]),
            ),
        ],
        vec![set(
            ZONE,
            WWW,
            rrset(RecordType(65280), &[b"", b"anything"]),
        )],
        vec![
            set(ZONE, WWW, a(1).with_ttl(0)),
            set(ZONE, WWW, a(1).with_ttl(0x7fff_ffff)),
        ],
        vec![
            delete(ZONE, RecordType::NS, None),
            set(ZONE, ZONE, ns("other.")),
        ],
    ];
    for changes in changes {
        let mut machine = Machine::with(vec![create(ZONE, 1), set(ZONE, WWW, a(1))]);
        assert!(machine.applied(changes).changed);
    }
}

#[test]
fn a_set_must_fit_a_message() {
    let mut machine = Machine::with(vec![create(ZONE, 1)]);
    let many = |count: u16| {
        let data = (0..count).map(|i| {
            let [high, low] = i.to_be_bytes();
            [10, 0, high, low]
        });
        Rrset::new(RecordType::A, 60, data).expect("at least one")
    };
    let most = (limits::RRSET_WIRE_OCTETS / 16) as u16;
    machine.applied(vec![set(ZONE, WWW, many(most))]);
    machine.refused_as(
        RefusalKind::LimitExceeded,
        "record www.example. A",
        vec![set(ZONE, WWW, many(most + 1))],
    );
    machine.refused_as(
        RefusalKind::LimitExceeded,
        "record www.example. A",
        vec![add(WWW, a(1))],
    );
}

#[test]
fn preconditions_are_held_before_anything_changes() {
    let zone = name(ZONE);
    let rrset = |expected| Precondition::Rrset {
        zone: name(ZONE),
        name: name(WWW),
        rtype: RecordType::A,
        expected,
    };
    let serial = |serial| Precondition::ZoneSerial {
        zone: zone.clone(),
        serial: Serial(serial),
    };
    let elsewhere = Precondition::ZoneSerial {
        zone: name("nowhere."),
        serial: Serial(1),
    };
    for (precondition, object) in [
        (Precondition::Revision(1), None),
        (Precondition::Revision(0), Some("state")),
        (serial(1), None),
        (serial(2), Some("zone example.")),
        (elsewhere, Some("zone nowhere.")),
        (rrset(Some(a(1))), None),
        (rrset(Some(a(2))), Some("record www.example. A")),
        (rrset(None), Some("record www.example. A")),
    ] {
        let mut machine = Machine::with(vec![create(ZONE, 1), set(ZONE, WWW, a(1))]);
        let command = Command {
            preconditions: vec![precondition.clone()],
            ..command(99, vec![set(ZONE, WWW, a(7))])
        };
        match (machine.propose(&command), object) {
            (Outcome::Applied(applied), None) => assert!(applied.changed),
            (Outcome::Refused(refusal), Some(object)) => {
                assert_eq!(refusal.kind, RefusalKind::PreconditionFailed);
                assert_eq!(refusal.object, object);
            }
            (other, _) => panic!("{precondition:?}: {other:?}"),
        }
    }
}

#[test]
fn history_tells_what_was_done_and_leads_back() {
    let mut machine = Machine::with(vec![create(ZONE, 1)]);
    machine.applied(vec![set(ZONE, WWW, a(1))]);
    machine.applied(vec![set(ZONE, WWW, a(2)), set(ZONE, "b.example.", a(1))]);
    machine.applied(vec![delete(WWW, RecordType::A, None)]);
    let history = machine.state.history(&name(ZONE)).expect("a history");
    let told: Vec<_> = history
        .versions()
        .map(|v| (v.serial.0, v.summary.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            (1, "created with 2 records"),
            (2, "set www.example. A"),
            (3, "set www.example. A, set b.example. A"),
            (4, "deleted www.example. A"),
        ]
    );
    assert!(history.versions().all(|v| v.author == "tester"));

    let then = machine.state.zone_at(&name(ZONE), Serial(2)).expect("kept");
    assert_eq!(then.serial, Serial(2));
    assert_eq!(then.rrset(&name(WWW), RecordType::A), Some(&a(1)));
    assert_eq!(then.rrset(&name("b.example."), RecordType::A), None);
    assert_eq!(machine.state.zone_at(&name(ZONE), Serial(9)), None);

    let forward = machine
        .state
        .zone_diff(&name(ZONE), Serial(2), Serial(4))
        .expect("kept");
    let backward = machine
        .state
        .zone_diff(&name(ZONE), Serial(4), Serial(2))
        .expect("kept");
    assert_eq!(forward.len(), 2);
    assert_eq!(
        forward.iter().map(SetChange::inverse).collect::<Vec<_>>(),
        backward
    );

    let back = Change::RollbackZone {
        zone: name(ZONE),
        serial: Serial(2),
    };
    machine.applied(vec![back.clone()]);
    assert_eq!(machine.serial(ZONE), Serial(5));
    assert_eq!(machine.rrset(ZONE, WWW, RecordType::A), Some(a(1)));
    assert_eq!(machine.rrset(ZONE, "b.example.", RecordType::A), None);
    assert!(!machine.applied(vec![back]).changed, "it is there already");
    let lost = Change::RollbackZone {
        zone: name(ZONE),
        serial: Serial(77),
    };
    machine.refused_as(RefusalKind::NotFound, "zone example.", vec![lost]);
}

#[test]
fn a_rollback_brings_back_the_soa_but_not_its_serial() {
    let mut machine = Machine::with(vec![create(ZONE, 1)]);
    machine.applied(vec![set(ZONE, ZONE, soa(1).with_ttl(5))]);
    machine.applied(vec![Change::RollbackZone {
        zone: name(ZONE),
        serial: Serial(1),
    }]);
    assert_eq!(machine.serial(ZONE), Serial(3));
    assert_eq!(machine.rrset(ZONE, ZONE, RecordType::SOA), Some(soa(3)));
}

#[test]
fn history_is_bounded_by_count_and_by_octets() {
    let mut machine = Machine::with(vec![create(ZONE, 1)]);
    for i in 0..limits::VERSIONS_PER_ZONE + 20 {
        machine.applied(vec![set(ZONE, WWW, a((i % 2) as u8))]);
    }
    let history = machine.state.history(&name(ZONE)).expect("a history");
    assert_eq!(history.versions().len(), limits::VERSIONS_PER_ZONE);
    let oldest = history.versions().next().expect("not empty").serial;
    assert!(machine.state.zone_at(&name(ZONE), oldest).is_some());
    assert!(machine.state.zone_at(&name(ZONE), Serial(1)).is_none());

    let large = |fill: u8| rrset(RecordType(65280), &[&[fill; 60_000]]);
    for fill in 0..8u8 {
        let of = |i: u8| set(ZONE, &format!("l{i}.example."), large(fill));
        machine.applied((0..100).map(of).collect());
    }
    let history = machine.state.history(&name(ZONE)).expect("a history");
    let cost: u64 = history.versions().map(|v| v.cost()).sum();
    assert!(cost <= limits::HISTORY_PER_ZONE && history.versions().len() < 8);
}

#[test]
fn a_change_larger_than_a_history_begins_it_anew() {
    let mut machine = Machine::with(vec![create(ZONE, 1), set(ZONE, WWW, a(1))]);
    let large = |i: u16| {
        let owner = format!("l{i}.example.");
        set(ZONE, &owner, rrset(RecordType(65280), &[&[7; 60_000]]))
    };
    machine.applied((0..1_200).map(large).collect());
    let history = machine.state.history(&name(ZONE)).expect("a history");
    assert_eq!(history.versions().len(), 1);
    machine.applied(vec![delete(WWW, RecordType::A, None)]);
    assert!(machine.state.zone_at(&name(ZONE), Serial(2)).is_some());
}
