//! Pools, listeners, VIPs, forwarders.

use std::{net::IpAddr, time::Duration};

use super::*;
use crate::model::{
    forwarder::Forwarder,
    listener::{ListenAddress, Listener},
    pool::{Backend, BackendState, Pool},
    snapshot::DnsPolicy,
    vip::Vip,
};
use crate::state::command::Precondition;

fn backend(name: &str, address: &str) -> Backend {
    Backend {
        name: label(name),
        address: address.parse().expect("an address in a test"),
        weight: 1,
        state: BackendState::Enabled,
    }
}

fn pool(name: &str, backends: Vec<Backend>) -> Pool {
    Pool {
        backends,
        ..Pool::new(label(name))
    }
}

fn put_pool(pool: Pool) -> Change {
    Change::PutPool {
        pool,
        create: false,
    }
}

fn add_backend(name: &str, address: &str) -> Change {
    Change::PutBackend {
        pool: label("web"),
        backend: backend(name, address),
        create: true,
    }
}

fn listener(name: &str, address: Option<&str>, port: u16, pool: &str) -> Listener {
    let address = address.map_or(ListenAddress::EveryNode, |a| {
        ListenAddress::Address(a.parse().expect("an address in a test"))
    });
    Listener::new(label(name), address, port, label(pool))
}

fn put_listener(listener: Listener) -> Change {
    Change::PutListener {
        listener,
        create: true,
    }
}

fn forwarder(upstreams: &[&str]) -> Change {
    Change::PutForwarder {
        forwarder: Forwarder {
            suffix: name("up.test."),
            upstreams: upstreams
                .iter()
                .map(|u| u.parse().expect("an address"))
                .collect(),
            timeout: Duration::from_secs(1),
        },
        create: true,
    }
}

fn vip(address: &str) -> Change {
    Change::PutVip {
        vip: Vip {
            address: address.parse().expect("an address in a test"),
            interface: label("vip"),
        },
        create: true,
    }
}

/// A pool `web` with backends b1 and b2, and a listener `web` on port 80 of every node.
fn sample() -> Machine {
    Machine::with(vec![
        put_pool(pool(
            "web",
            vec![backend("b2", "10.0.0.2:80"), backend("b1", "10.0.0.1:80")],
        )),
        put_listener(listener("web", None, 80, "web")),
        vip("10.0.0.100"),
        forwarder(&["10.0.0.53:53"]),
    ])
}

#[test]
fn a_vip_is_unclaimed_until_a_member_took_it_and_anew_when_it_is_added_anew() {
    let mut machine = Machine::with(vec![vip("10.0.0.100"), vip("10.0.0.101")]);
    let [first, second] = ["10.0.0.100", "10.0.0.101"].map(|ip| ip.parse::<IpAddr>().unwrap());
    let unclaimed = |machine: &Machine| {
        let vips = &machine.state.snapshot().unclaimed_vips;
        vips.iter().map(|(ip, at)| (*ip, *at)).collect::<Vec<_>>()
    };
    let added_at = machine.state.revision();
    let both = vec![(first, added_at), (second, added_at)];
    assert_eq!(unclaimed(&machine), both);

    let claimed = machine.applied(vec![Change::ClaimVips { vips: both.clone() }]);
    assert!(claimed.changed);
    assert_eq!(unclaimed(&machine), []);
    let again = machine.applied(vec![Change::ClaimVips { vips: both.clone() }]);
    assert!(!again.changed);

    // Elsewhere it is the same one.
    machine.applied(vec![Change::PutVip {
        vip: Vip {
            address: first,
            interface: label("wan"),
        },
        create: false,
    }]);
    assert_eq!(unclaimed(&machine), []);

    // Added anew it is another one, and what is said late of the one before counts for nothing.
    machine.applied(vec![Change::DeleteVip { address: first }]);
    let anew = machine.applied(vec![vip("10.0.0.100")]).revision;
    machine.applied(vec![Change::ClaimVips { vips: both }]);
    assert_eq!(unclaimed(&machine), [(first, anew)]);
    let hash = machine.state.hash();
    machine.applied(vec![Change::DeleteVip { address: first }]);
    assert_eq!(unclaimed(&machine), []);
    assert_ne!(machine.state.hash(), hash);
}

#[test]
fn a_backend_is_changed_only_while_it_has_the_expected_address() {
    let expected = |backend: &str, address: &str| Precondition::Backend {
        pool: label("web"),
        backend: label(backend),
        address: address.parse().expect("an address in a test"),
    };
    let remove = |backend: &str| Change::RemoveBackend {
        pool: label("web"),
        backend: label(backend),
    };
    for (backend, address, problem) in [
        ("b1", "10.0.0.1:80", None),
        (
            "b1",
            "10.0.0.9:80",
            Some("its address is 10.0.0.1:80, not 10.0.0.9:80"),
        ),
        ("b9", "10.0.0.1:80", Some("it does not exist")),
    ] {
        let mut machine = sample();
        let command = Command {
            preconditions: vec![expected(backend, address)],
            ..command(99, vec![remove(backend)])
        };
        match (machine.propose(&command), problem) {
            (Outcome::Applied(applied), None) => assert!(applied.changed),
            (Outcome::Refused(refusal), Some(problem)) => {
                assert_eq!(refusal.kind, RefusalKind::PreconditionFailed);
                assert_eq!(refusal.object, format!("backend {backend} of pool web"));
                assert_eq!(refusal.problem, problem);
            }
            (other, _) => panic!("{backend}: {other:?}"),
        }
    }
}

#[test]
fn backends_are_sorted_and_changed_one_by_one() {
    let mut machine = sample();
    let names = |m: &Machine| -> Vec<String> {
        let backends = &m.state.snapshot().pools[&label("web")].backends;
        backends.iter().map(|b| b.name.to_string()).collect()
    };
    assert_eq!(names(&machine), ["b1", "b2"]);
    machine.applied(vec![add_backend("b0", "10.0.0.9:80")]);
    machine.applied(vec![Change::RemoveBackend {
        pool: label("web"),
        backend: label("b1"),
    }]);
    assert_eq!(names(&machine), ["b0", "b2"]);
    let drain = Change::SetBackend {
        pool: label("web"),
        backend: label("b2"),
        weight: Some(7),
        state: Some(BackendState::Drain),
    };
    assert!(machine.applied(vec![drain.clone()]).changed);
    assert!(!machine.applied(vec![drain]).changed);
    let found = machine.state.snapshot().pools[&label("web")]
        .backend(&label("b2"))
        .cloned();
    assert_eq!(
        found.map(|b| (b.weight, b.state)),
        Some((7, BackendState::Drain))
    );
}

#[test]
fn what_clashes_is_refused() {
    let gone = |p: &str| Change::DeletePool { pool: label(p) };
    let cases: Vec<(RefusalKind, &str, Vec<Change>)> = vec![
        (RefusalKind::Conflict, "pool web", vec![gone("web")]),
        (RefusalKind::NotFound, "pool x", vec![gone("x")]),
        (
            RefusalKind::AlreadyExists,
            "pool web",
            vec![Change::PutPool {
                pool: pool("web", vec![]),
                create: true,
            }],
        ),
        (
            RefusalKind::Conflict,
            "backend b of pool p",
            vec![put_pool(pool(
                "p",
                vec![backend("b", "10.0.0.1:1"), backend("b", "10.0.0.1:2")],
            ))],
        ),
        (
            RefusalKind::Conflict,
            "backend c of pool p",
            vec![put_pool(pool(
                "p",
                vec![backend("b", "10.0.0.1:1"), backend("c", "10.0.0.1:1")],
            ))],
        ),
        (
            RefusalKind::AlreadyExists,
            "backend b1 of pool web",
            vec![add_backend("b1", "10.0.0.9:80")],
        ),
        (
            RefusalKind::AlreadyExists,
            "backend b3 of pool web",
            vec![add_backend("b3", "10.0.0.1:80")],
        ),
        (
            RefusalKind::Conflict,
            "backend b2 of pool web",
            vec![Change::PutBackend {
                pool: label("web"),
                backend: backend("b2", "10.0.0.1:80"),
                create: false,
            }],
        ),
        (
            RefusalKind::NotFound,
            "backend b9 of pool web",
            vec![Change::RemoveBackend {
                pool: label("web"),
                backend: label("b9"),
            }],
        ),
        (
            RefusalKind::AlreadyExists,
            "listener web",
            vec![put_listener(listener("web", None, 81, "web"))],
        ),
        (
            RefusalKind::NotFound,
            "listener l",
            vec![put_listener(listener("l", None, 81, "x"))],
        ),
        (
            RefusalKind::Conflict,
            "listener l",
            vec![put_listener(listener("l", None, 80, "web"))],
        ),
        (
            RefusalKind::Conflict,
            "listener l",
            vec![put_listener(listener("l", Some("10.0.0.100"), 80, "web"))],
        ),
        (
            RefusalKind::NotFound,
            "listener l",
            vec![Change::DeleteListener {
                listener: label("l"),
            }],
        ),
        (
            RefusalKind::AlreadyExists,
            "vip 10.0.0.100",
            vec![vip("10.0.0.100")],
        ),
        (
            RefusalKind::Invalid,
            "vip 224.0.0.1",
            vec![vip("224.0.0.1")],
        ),
        (RefusalKind::Invalid, "vip 0.0.0.0", vec![vip("0.0.0.0")]),
        (
            RefusalKind::AlreadyExists,
            "forwarder up.test.",
            vec![forwarder(&["10.0.0.1:53"])],
        ),
    ];
    for (kind, object, changes) in cases {
        sample().refused_as(kind, object, changes);
    }
}

#[test]
fn a_command_is_judged_by_its_end() {
    let mut machine = sample();
    machine.applied(vec![put_listener(listener("other", None, 81, "web"))]);
    let port = |name: &str, port: u16| Change::PutListener {
        listener: listener(name, None, port, "web"),
        create: false,
    };
    assert!(
        machine
            .applied(vec![port("web", 81), port("other", 80)])
            .changed,
        "ports change places"
    );
    let delete = |l: &str| Change::DeleteListener { listener: label(l) };
    machine.applied(vec![
        Change::DeletePool { pool: label("web") },
        delete("web"),
        delete("other"),
    ]);
    assert!(machine.state.snapshot().pools.is_empty());
}

#[test]
fn two_addresses_may_share_a_port() {
    let mut machine = sample();
    machine.applied(vec![
        put_listener(listener("x", Some("10.0.0.100"), 443, "web")),
        put_listener(listener("y", Some("10.0.0.101"), 443, "web")),
    ]);
    machine.refused_as(
        RefusalKind::Conflict,
        "listener z",
        vec![put_listener(listener("z", None, 443, "web"))],
    );
}

#[test]
fn values_out_of_range_are_refused() {
    let valid = pool("web", vec![]);
    let with = |change: &dyn Fn(&mut Pool)| {
        let mut pool = valid.clone();
        change(&mut pool);
        vec![put_pool(pool)]
    };
    let health = |change: &dyn Fn(&mut crate::model::health::HealthCheck)| {
        with(&|pool| {
            let mut check = Default::default();
            change(&mut check);
            pool.health_check = Some(check);
        })
    };
    let with_listener = |change: &dyn Fn(&mut Listener)| {
        let mut l = listener("l", None, 81, "web");
        change(&mut l);
        vec![put_listener(l)]
    };
    let upstream = |u: &[&str]| vec![forwarder(u)];
    let many: Vec<String> = (0..17).map(|i| format!("10.0.0.{i}:53")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let cases = [
        with(&|p| p.connect_timeout = Duration::ZERO),
        with(&|p| p.connect_timeout = Duration::from_secs(61)),
        with(&|p| p.connect_timeout = Duration::from_micros(1500)),
        with(&|p| p.connect_retries = 11),
        with(&|p| {
            p.backends = vec![Backend {
                weight: 1001,
                ..backend("b", "10.0.0.1:1")
            }]
        }),
        with(&|p| p.backends = vec![backend("b", "10.0.0.1:0")]),
        with(&|p| p.backends = vec![backend("b", "0.0.0.0:80")]),
        with(&|p| p.backends = vec![backend("b", "[::]:80")]),
        with(&|p| p.backends = vec![backend("b", "255.255.255.255:80")]),
        with(&|p| p.backends = vec![backend("b", "[::ffff:0.0.0.0]:80")]),
        with(&|p| p.backends = vec![backend("b", "[fd00::1%2]:80")]),
        health(&|h| h.interval = Duration::from_millis(9)),
        health(&|h| h.down_interval = Duration::from_secs(3601)),
        health(&|h| h.timeout = Duration::ZERO),
        health(&|h| h.rise = 0),
        health(&|h| h.fall = 101),
        with_listener(&|l| l.port = 0),
        with_listener(&|l| l.idle_timeout = Duration::from_millis(999)),
        with_listener(&|l| l.max_connections = 0),
        with_listener(&|l| l.max_connections = 1_000_001),
        with_listener(&|l| l.address = ListenAddress::Address("0.0.0.0".parse().expect("ip"))),
        upstream(&[]),
        upstream(&["10.0.0.1:53", "10.0.0.1:53"]),
        upstream(&["10.0.0.1:0"]),
        upstream(&["[fd00::1%2]:53"]),
        upstream(&many),
        vec![Change::SetBackend {
            pool: label("web"),
            backend: label("b1"),
            weight: Some(1001),
            state: None,
        }],
    ];
    for changes in cases {
        let refusal = Machine::with(vec![put_pool(valid.clone())]).refused(changes.clone());
        assert_eq!(refusal.kind, RefusalKind::Invalid, "{changes:?}: {refusal}");
        assert!(!refusal.problem.is_empty() && !refusal.object.is_empty());
    }
}

#[test]
fn new_link_local_addresses_are_refused_and_those_in_a_log_are_not() {
    use crate::state::check;
    let on = |ip: &str| vec![put_listener(listener("l", Some(ip), 81, "web"))];
    let cases = [
        ("vip fe80::10", vec![vip("fe80::10")]),
        ("vip 169.254.7.10", vec![vip("169.254.7.10")]),
        ("listener l", on("fe80::1")),
        (
            "backend b of pool web",
            vec![put_pool(pool("web", vec![backend("b", "[fe80::1]:80")]))],
        ),
        (
            "backend b of pool web",
            vec![add_backend("b", "[fe80::1]:80")],
        ),
        ("forwarder up.test.", vec![forwarder(&["[fe80::1]:53"])]),
    ];
    for (object, changes) in cases {
        let proposed = command(1, changes.clone());
        let refusal = check::proposal(&proposed).expect_err("link-local");
        assert_eq!(refusal.kind, RefusalKind::Invalid, "{refusal}");
        assert_eq!(refusal.object, object);
        assert!(refusal.problem.contains("is link-local"), "{refusal}");
        assert!(changes.iter().all(|c| check::proposed_change(c).is_err()));
        // A log of an earlier release comes to the same state as ever.
        Machine::with(vec![put_pool(pool("web", vec![]))]).applied(changes);
    }
    // Between a node and what is beside it, an IPv4 one is as good as any.
    let beside = forwarder(&["169.254.169.253:53"]);
    let sound = command(1, vec![vip("fd00::10"), vip("10.0.0.9"), beside]);
    assert!(check::proposal(&sound).is_ok());
}

#[test]
fn new_ipv4_mapped_addresses_are_refused_and_those_in_a_log_are_not() {
    use crate::state::check;
    let mapped = "[::ffff:10.0.0.1]:80";
    let cases = [
        (
            "backend b of pool web",
            vec![put_pool(pool("web", vec![backend("b", mapped)]))],
        ),
        ("backend b of pool web", vec![add_backend("b", mapped)]),
        ("forwarder up.test.", vec![forwarder(&[mapped])]),
    ];
    for (object, changes) in cases {
        let proposed = command(1, changes.clone());
        let refusal = check::proposal(&proposed).expect_err("mapped");
        assert_eq!(refusal.kind, RefusalKind::Invalid, "{refusal}");
        assert_eq!(refusal.object, object);
        assert!(refusal.problem.contains("IPv4-mapped"), "{refusal}");
        assert_eq!(refusal.hint, "write 10.0.0.1");
        // A log of an earlier release comes to the same state as ever.
        Machine::with(vec![put_pool(pool("web", vec![]))]).applied(changes);
    }
}

#[test]
fn a_new_vip_is_an_address_that_a_host_can_have() {
    use crate::state::check;
    for address in ["0.1.2.3", "240.0.0.1", "254.1.2.3"] {
        let changes = vec![vip(address)];
        let refusal = check::proposal(&command(1, changes.clone())).expect_err(address);
        assert_eq!(refusal.kind, RefusalKind::Invalid, "{refusal}");
        assert_eq!(refusal.object, format!("vip {address}"));
        Machine::with(vec![]).applied(changes);
    }
    // Those of documentation are for trying, those of the own host for the local cluster.
    for address in ["192.0.2.10", "2001:db8::10", "127.0.0.9", "::1"] {
        assert_eq!(check::proposal(&command(1, vec![vip(address)])), Ok(()));
    }
}

#[test]
fn the_dns_policy_is_put() {
    let mut machine = sample();
    let policy = DnsPolicy {
        recursion_allowed: vec!["10.0.0.0/8".parse().expect("a network")],
    };
    let put = Change::PutDnsPolicy {
        policy: policy.clone(),
    };
    assert!(machine.applied(vec![put.clone()]).changed);
    assert!(!machine.applied(vec![put]).changed);
    assert_eq!(machine.state.snapshot().dns, policy);
}

#[test]
fn a_snapshot_difference_names_what_changed() {
    use crate::state::diff::{Fate, between_snapshots};
    let mut machine = sample();
    let before = machine.state.snapshot().clone();
    assert!(between_snapshots(&before, &before).is_empty());
    machine.applied(vec![
        create("example.", 1),
        add_backend("b3", "10.0.0.3:80"),
        Change::DeleteListener {
            listener: label("web"),
        },
    ]);
    let diff = between_snapshots(&before, machine.state.snapshot());
    assert_eq!(diff.zones, [(name("example."), Fate::Added)]);
    assert_eq!(diff.pools, [(label("web"), Fate::Changed)]);
    assert_eq!(diff.listeners, [(label("web"), Fate::Removed)]);
    assert!(diff.vips.is_empty() && diff.forwarders.is_empty() && !diff.dns_policy);
}
