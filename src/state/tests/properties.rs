//! Properties that hold for any run of commands.

use std::{
    collections::BTreeMap,
    net::{Ipv6Addr, SocketAddr, SocketAddrV6},
    time::Duration,
};

use proptest::prelude::*;

use super::*;
use crate::{
    model::{
        forwarder::Forwarder,
        listener::{ListenAddress, Listener},
        node::{ClusterId, NodeId},
        pool::{Backend, BackendState, Pool},
        snapshot::DnsPolicy,
        vip::Vip,
    },
    state::{
        command::{JoinToken, NewMember, Precondition, Secret},
        limits,
    },
};

fn zone_name() -> impl Strategy<Value = Name> {
    prop_oneof![
        8 => Just(name("example.")),
        4 => Just(name("other.test.")),
        1 => Just(name("sub.example.")),
        1 => Just(Name::root()),
    ]
}

fn owner() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(""),
        Just("a."),
        Just("b."),
        Just("x.b."),
        Just("*.b."),
        Just(r"\000\255.")
    ]
    .prop_map(str::to_owned)
}

fn place() -> impl Strategy<Value = (Name, Name)> {
    (zone_name(), owner(), 0..30u8).prop_map(|(zone, owner, stray)| {
        let zone_of_owner = if stray == 0 {
            name("stray.")
        } else {
            zone.clone()
        };
        let full = Name::parse(owner.trim_end_matches('.'), &zone_of_owner);
        (zone, full.unwrap_or(zone_of_owner))
    })
}

fn any_set() -> impl Strategy<Value = Rrset> {
    prop_oneof![
        6 => proptest::collection::vec(0..4u8, 1..4).prop_map(|l| addresses(&l)),
        2 => Just(cname("target.")),
        1 => Just(dname("target.")),
        2 => (0..3u8).prop_map(|i| ns(&format!("ns{i}.example."))),
        2 => any::<u32>().prop_map(soa),
        1 => (any::<u16>(), any::<u32>(), proptest::collection::vec(any::<u8>(), 0..20))
            .prop_map(|(t, ttl, d)| Rrset::new(RecordType(t), ttl, [d]).expect("one record")),
    ]
}

fn contents() -> impl Strategy<Value = (Name, Vec<(Name, Rrset)>)> {
    (
        zone_name(),
        any::<u32>(),
        proptest::collection::vec((owner(), any_set()), 0..4),
    )
        .prop_map(|(zone, serial, more)| {
            let mut records = apex(&zone.to_string(), serial);
            for (owner, set) in more {
                let owner = Name::parse(owner.trim_end_matches('.'), &zone);
                records.push((owner.unwrap_or_else(|_| zone.clone()), set));
            }
            (zone, records)
        })
}

fn zone_change() -> impl Strategy<Value = Change> {
    prop_oneof![
        2 => contents().prop_map(|(zone, records)| Change::CreateZone { zone, records }),
        1 => contents().prop_map(|(zone, records)| Change::ReplaceZone { zone, records }),
        1 => zone_name().prop_map(|zone| Change::DeleteZone { zone }),
        1 => (zone_name(), 0..8u32).prop_map(|(zone, s)| Change::RollbackZone { zone, serial: Serial(s) }),
        6 => (place(), any_set()).prop_map(|((zone, name), rrset)| Change::SetRrset { zone, name, rrset }),
        3 => (place(), any_set()).prop_map(|((zone, name), rrset)| Change::AddRecords { zone, name, rrset }),
        2 => (place(), any_set()).prop_map(|((zone, name), rrset)| Change::SetKeepingTtl { zone, name, rrset }),
        2 => (place(), any_set()).prop_map(|((zone, name), rrset)| Change::AddKeepingTtl { zone, name, rrset }),
        2 => (place(), any_set(), any::<bool>()).prop_map(|((zone, name), set, whole)| Change::DeleteRecords {
            zone,
            name,
            rtype: set.rtype(),
            rdata: (!whole).then(|| set.rdata().map(<[u8]>::to_vec).collect()),
        }),
        1 => place().prop_map(|(zone, name)| Change::DeleteName { zone, name }),
    ]
}

fn any_label() -> impl Strategy<Value = Label> {
    prop_oneof![Just(label("web")), Just(label("api")), Just(label("b1"))]
}

fn any_backend() -> impl Strategy<Value = Backend> {
    (any_label(), any_target(), 0..1100u16).prop_map(|(name, address, weight)| Backend {
        name,
        address,
        weight,
        state: BackendState::Enabled,
    })
}

/// An address of a few, now and then with a scope id, which snapshots do not hold.
fn any_target() -> impl Strategy<Value = SocketAddr> + Clone {
    let scoped = |ip: &str| {
        let ip: Ipv6Addr = ip.parse().expect("an address in a test");
        (0..3u16, 0..3u32)
            .prop_map(move |(port, scope)| SocketAddrV6::new(ip, port, 0, scope).into())
    };
    prop_oneof![
        6 => (0..3u8, 0..3u16).prop_map(|(host, port)| ([10, 0, 0, host], port).into()),
        1 => scoped("fe80::1"),
        1 => scoped("fd00::1"),
    ]
}

fn balancing_change() -> impl Strategy<Value = Change> {
    let pool = (any_label(), proptest::collection::vec(any_backend(), 0..3)).prop_map(
        |(name, backends)| Pool {
            backends,
            ..Pool::new(name)
        },
    );
    let listener = (
        any_label(),
        proptest::option::of(0..2u8),
        0..3u16,
        any_label(),
    )
        .prop_map(|(n, ip, port, pool)| {
            let address = ip.map_or(ListenAddress::EveryNode, |o| {
                ListenAddress::Address([10, 0, 0, o].into())
            });
            Listener::new(n, address, port, pool)
        });
    prop_oneof![
        (pool, any::<bool>()).prop_map(|(pool, create)| Change::PutPool { pool, create }),
        any_label().prop_map(|pool| Change::DeletePool { pool }),
        (any_label(), any_backend(), any::<bool>()).prop_map(|(pool, backend, create)| {
            Change::PutBackend {
                pool,
                backend,
                create,
            }
        }),
        (any_label(), any_label())
            .prop_map(|(pool, backend)| Change::RemoveBackend { pool, backend }),
        (any_label(), any_label(), proptest::option::of(any::<u16>())).prop_map(
            |(pool, backend, weight)| {
                Change::SetBackend {
                    pool,
                    backend,
                    weight,
                    state: Some(BackendState::Drain),
                }
            }
        ),
        (listener, any::<bool>())
            .prop_map(|(listener, create)| Change::PutListener { listener, create }),
        any_label().prop_map(|listener| Change::DeleteListener { listener }),
        (0..3u8, any_label(), any::<bool>()).prop_map(|(o, interface, create)| Change::PutVip {
            vip: Vip {
                address: [10, 0, 0, o].into(),
                interface
            },
            create,
        }),
        (0..3u8).prop_map(|o| Change::DeleteVip {
            address: [10, 0, 0, o].into()
        }),
        (0..3u8, 0..40u64).prop_map(|(o, added_at)| Change::ClaimVips {
            vips: vec![([10, 0, 0, o].into(), added_at)],
        }),
        (zone_name(), any_target(), any::<bool>()).prop_map(|(suffix, upstream, create)| {
            Change::PutForwarder {
                forwarder: Forwarder {
                    suffix,
                    upstreams: vec![upstream],
                    timeout: Duration::from_secs(1),
                },
                create,
            }
        }),
        zone_name().prop_map(|suffix| Change::DeleteForwarder { suffix }),
        any::<bool>().prop_map(|closed| Change::PutDnsPolicy {
            policy: match closed {
                true => DnsPolicy {
                    recursion_allowed: vec![]
                },
                false => DnsPolicy::default(),
            },
        }),
    ]
}

fn member_change() -> impl Strategy<Value = Change> {
    let member = (0..4u16, any_target()).prop_map(|(i, api_address)| NewMember {
        name: format!("n{i}"),
        raft_address: ([10, 0, 0, 1], 7000 + i).into(),
        api_address,
    });
    let token = (0..3u8).prop_map(|i| format!("t{i}"));
    prop_oneof![
        member.clone().prop_map(|first| Change::InitCluster {
            cluster: ClusterId("ab".into()),
            ca: Secret("ca".into()),
            first,
        }),
        token.clone().prop_map(|id| Change::CreateToken {
            token: JoinToken {
                id,
                secret_hash: Secret("00".into()),
                expires_at: UnixMillis(9),
                used_by: None
            },
        }),
        token.clone().prop_map(|id| Change::DeleteToken { id }),
        (token, member).prop_map(|(token, member)| Change::AddMember { token, member }),
        (0..5u64).prop_map(|id| Change::RetireMember { id: NodeId(id) }),
        "[a-z]{0,3}".prop_map(|ca| Change::RotateCa { ca: Secret(ca) }),
        (0..3u32).prop_map(|level| Change::SetFeatureLevel { level }),
    ]
}

fn any_change() -> impl Strategy<Value = Change> {
    prop_oneof![6 => zone_change(), 3 => balancing_change(), 1 => member_change()]
}

fn any_command() -> impl Strategy<Value = Command> {
    let precondition = prop_oneof![
        (0..20u64).prop_map(Precondition::Revision),
        (zone_name(), 0..5u32).prop_map(|(zone, s)| Precondition::ZoneSerial {
            zone,
            serial: Serial(s)
        }),
        (place(), proptest::option::of(any_set())).prop_map(|((zone, name), expected)| {
            Precondition::Rrset {
                zone,
                name,
                rtype: RecordType::A,
                expected,
            }
        }),
        (1..4u8).prop_map(|n| Precondition::Backend {
            pool: label("web"),
            backend: label(&format!("b{n}")),
            address: ([10, 0, 0, n], 80).into(),
        }),
    ];
    let preconditions = prop_oneof![
        9 => Just(Vec::new()),
        1 => proptest::collection::vec(precondition, 1..2),
    ];
    (
        0..40u128,
        preconditions,
        proptest::collection::vec(any_change(), 0..4),
    )
        .prop_map(|(request, preconditions, changes)| Command {
            preconditions,
            ..super::command(request, changes)
        })
}

/// The state put together anew from what it holds: counts and sums are made from scratch.
fn recomputed(state: &State) -> State {
    let mut bytes = Vec::new();
    state.encode(&mut bytes).expect("a vector takes everything");
    State::decode(&mut bytes.as_slice()).expect("what was encoded")
}

fn holds_invariants(state: &State) {
    for (apex, zone) in &state.snapshot().zones {
        assert_eq!(*apex, zone.apex);
        assert_eq!(
            zone.soa().and_then(crate::state::soa::serial_of),
            Some(zone.serial)
        );
        let records: u64 = zone.rrsets().map(|(_, set)| set.len() as u64).sum();
        let data: u64 = zone.rrsets().map(|(_, set)| set.packed_len() as u64).sum();
        assert_eq!((records, data), (zone.record_count, zone.data_bytes));
        let history = state.history(apex).expect("every zone has a history");
        assert_eq!(
            history.versions().next_back().map(|v| v.serial),
            Some(zone.serial)
        );
        for (_, node) in &zone.nodes {
            let alone = node.find(RecordType::CNAME).is_none() || node.rrsets().len() == 1;
            assert!(
                alone
                    || node.find(RecordType::NSEC).is_some()
                    || node.find(RecordType::RRSIG).is_some()
                    || node.find(RecordType(25)).is_some()
            );
        }
    }
    let listeners: Vec<_> = state.snapshot().listeners.values().collect();
    for (i, one) in listeners.iter().enumerate() {
        assert!(state.snapshot().pools.contains_key(&one.pool));
        assert!(
            listeners[i + 1..]
                .iter()
                .all(|other| !one.clashes_with(other))
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn apply_is_total_deterministic_and_keeps_its_sums(commands in proptest::collection::vec(any_command(), 1..30)) {
        let (mut one, mut two) = (Machine::default(), Machine::default());
        let mut serials: BTreeMap<Name, Serial> = BTreeMap::new();
        for (step, command) in commands.iter().enumerate() {
            // The second replica comes back from a snapshot now and then.
            if step % 5 == 4 {
                two.state = recomputed(&two.state);
            }
            let before = one.state.clone();
            let outcome = one.propose(command);
            prop_assert_eq!(&two.propose(command), &outcome);
            prop_assert_eq!(one.state.hash(), two.state.hash());
            prop_assert_eq!(one.state.snapshot(), two.state.snapshot());
            if !matches!(&outcome, Outcome::Applied(a) if a.changed) {
                prop_assert_eq!(one.state.snapshot(), before.snapshot());
            }
            for (apex, zone) in &one.state.snapshot().zones {
                if let Some(last) = serials.insert(apex.clone(), zone.serial) {
                    let forward = zone.serial == last || zone.serial.is_newer_than(last);
                    prop_assert!(forward, "{} went from {} to {}", apex, last, zone.serial);
                    let same = before.snapshot().zones.get(apex).is_some_and(|z| z.revision == zone.revision);
                    prop_assert_eq!(same, zone.serial == last);
                }
            }
            holds_invariants(&one.state);
        }
        let again = recomputed(&one.state);
        prop_assert_eq!(again.hash(), one.state.hash());
        prop_assert_eq!(again.snapshot(), one.state.snapshot());
        prop_assert_eq!(again.totals(), one.state.totals());
    }

    #[test]
    fn history_leads_to_every_version_it_keeps(commands in proptest::collection::vec(
        proptest::collection::vec(zone_change(), 1..3), 1..30)) {
        let mut machine = Machine::with(vec![create("example.", 1)]);
        let first = machine.state.snapshot().zones[&name("example.")].clone();
        let mut seen = BTreeMap::from([(first.serial.0, first)]);
        for changes in commands {
            machine.submit(changes);
            if let Some(zone) = machine.state.snapshot().zones.get(&name("example.")) {
                seen.insert(zone.serial.0, zone.clone());
            }
        }
        let history = machine.state.history(&name("example.")).cloned().unwrap_or_default();
        for version in history.versions() {
            let found = machine.state.zone_at(&name("example."), version.serial);
            let expected = &seen[&version.serial.0];
            prop_assert_eq!(found.as_ref(), Some(expected.as_ref()));
        }
    }

    #[test]
    fn garbage_is_an_error_not_a_state(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(State::decode(&mut bytes.as_slice()).is_err());
    }

    #[test]
    fn a_garbled_or_short_snapshot_is_an_error(at in any::<prop::sample::Index>(), octet in 1..=255u8) {
        let state = Machine::with(vec![create("example.", 1), set("example.", "www.example.", a(1))]).state;
        let mut bytes = Vec::new();
        state.encode(&mut bytes).expect("a vector takes everything");
        let at = at.index(bytes.len());
        prop_assert!(State::decode(&mut &bytes[..at]).is_err(), "cut at {}", at);
        bytes[at] ^= octet;
        // A letter of a name may change its case: names are folded as they are read.
        if let Ok(read) = State::decode(&mut bytes.as_slice()) {
            prop_assert_eq!(read.snapshot(), state.snapshot(), "garbled at {}", at);
            prop_assert_eq!(read.hash(), state.hash(), "garbled at {}", at);
        }
    }
}

#[test]
fn an_unknown_version_is_named() {
    let mut bytes = Vec::new();
    State::default()
        .encode(&mut bytes)
        .expect("a vector takes everything");
    bytes[8] = 9;
    let error = State::decode(&mut bytes.as_slice()).expect_err("version 9");
    assert!(error.to_string().contains("version 9"), "{error}");
}

#[test]
fn deleted_zones_are_forgotten_beyond_a_limit() {
    let mut deleted = crate::state::deleted::DeletedZones::default();
    for i in 0..limits::DELETED_ZONES as u64 + 10 {
        deleted.remember(name(&format!("z{i}.test.")), Serial(1), i);
    }
    assert_eq!(deleted.len(), limits::DELETED_ZONES);
    assert_eq!(deleted.serial(&name("z9.test.")), None);
    assert_eq!(deleted.serial(&name("z10.test.")), Some(Serial(1)));
}
