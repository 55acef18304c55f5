//! The cluster itself: members, tokens, the certificate authority, the feature level.

use super::*;
use crate::{
    model::node::{ClusterId, NodeId},
    state::command::{JoinToken, NewMember, Secret},
};

fn member(name: &str, port: u16) -> NewMember {
    NewMember {
        name: name.into(),
        raft_address: ([10, 0, 0, 1], port).into(),
        api_address: ([10, 0, 0, 1], port + 1).into(),
    }
}

fn init() -> Change {
    Change::InitCluster {
        cluster: ClusterId("0123456789abcdef0123456789abcdef".into()),
        ca: Secret(pem("one")),
        first: member("n1", 7000),
    }
}

fn pem(text: &str) -> String {
    format!(
        "-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n\
         -----BEGIN PRIVATE KEY-----\nsecret {text}\n-----END PRIVATE KEY-----\n"
    )
}

fn token(id: &str) -> Change {
    Change::CreateToken {
        token: JoinToken {
            id: id.into(),
            secret_hash: Secret("00ff".into()),
            expires_at: UnixMillis(1),
            used_by: None,
        },
    }
}

fn join(token: &str, name: &str, port: u16) -> Change {
    Change::AddMember {
        token: token.into(),
        member: member(name, port),
    }
}

#[test]
fn a_cluster_begins_with_node_1() {
    let mut machine = Machine::default();
    assert_eq!(machine.state.cluster(), None);
    let applied = machine.applied(vec![init()]);
    assert_eq!(applied.node, Some(NodeId(1)));
    assert_eq!(machine.state.members()[&NodeId(1)].name, "n1");
    assert!(machine.state.cluster().is_some());
    let refusal = machine.refused(vec![init()]);
    assert_eq!(refusal.kind, RefusalKind::AlreadyExists);
}

#[test]
fn nobody_joins_at_the_address_of_a_vip() {
    let own = member("n2", 7100);
    let vip = Change::PutVip {
        vip: crate::model::vip::Vip {
            address: own.raft_address.ip(),
            interface: "vip".parse().unwrap(),
        },
        create: true,
    };
    let mut machine = Machine::with(vec![init(), token("t1"), vip]);
    let refusal = machine.refused(vec![join("t1", "n2", 7100)]);
    assert_eq!(refusal.kind, RefusalKind::Conflict);
    assert!(refusal.problem.contains("is a VIP"), "{refusal}");
}

#[test]
fn a_token_admits_one_member() {
    let mut machine = Machine::with(vec![init(), token("t1")]);
    assert_eq!(
        machine.applied(vec![join("t1", "n2", 7100)]).node,
        Some(NodeId(2))
    );
    assert_eq!(machine.state.tokens()["t1"].used_by, Some(NodeId(2)));
    let refusal = machine.refused(vec![join("t1", "n3", 7200)]);
    assert_eq!(refusal.kind, RefusalKind::Conflict);
    assert!(refusal.problem.contains("node 2"), "{refusal}");
    machine.refused_as(
        RefusalKind::NotFound,
        "token t9",
        vec![join("t9", "n3", 7200)],
    );
    machine.refused_as(RefusalKind::AlreadyExists, "token t1", vec![token("t1")]);
    machine.applied(vec![Change::DeleteToken { id: "t1".into() }]);
    machine.refused_as(
        RefusalKind::NotFound,
        "token t1",
        vec![Change::DeleteToken { id: "t1".into() }],
    );
}

#[test]
fn ids_are_never_given_again() {
    let mut machine = Machine::with(vec![init(), token("a"), token("b")]);
    machine.applied(vec![join("a", "n2", 7100)]);
    let retire = |id| Change::RetireMember { id: NodeId(id) };
    machine.applied(vec![retire(2)]);
    assert!(machine.state.is_retired(NodeId(2)));
    assert!(!machine.applied(vec![retire(2)]).changed, "once more");
    machine.refused_as(RefusalKind::NotFound, "node 3", vec![retire(3)]);
    machine.refused_as(RefusalKind::NotFound, "node 0", vec![retire(0)]);
    // The same name and address may come back, under a new id.
    assert_eq!(
        machine.applied(vec![join("b", "n2", 7100)]).node,
        Some(NodeId(3))
    );
    assert!(!machine.state.is_retired(NodeId(3)) && !machine.state.is_retired(NodeId(4)));
}

#[test]
fn members_differ_in_name_and_address() {
    let mut machine = Machine::with(vec![init(), token("a")]);
    for change in [join("a", "n1", 7100), join("a", "n2", 7000)] {
        let refusal = machine.refused(vec![change]);
        assert_eq!(refusal.kind, RefusalKind::AlreadyExists);
    }
    assert_eq!(
        machine.state.tokens()["a"].used_by,
        None,
        "a refused join uses up nothing"
    );
}

#[test]
fn the_previous_certificate_stays_trusted_without_its_key() {
    let mut machine = Machine::with(vec![init()]);
    let rotate = Change::RotateCa {
        ca: Secret(pem("two")),
    };
    machine.applied(vec![rotate.clone()]);
    assert_eq!(machine.state.ca().0, pem("two"));
    let previous = machine.state.previous_ca().expect("kept");
    assert!(previous.contains("one") && !previous.contains("secret"));
    assert!(!machine.applied(vec![rotate]).changed);
}

#[test]
fn the_feature_level_never_falls() {
    let mut machine = Machine::with(vec![init()]);
    let level = |level| Change::SetFeatureLevel { level };
    assert!(machine.applied(vec![level(3)]).changed);
    assert_eq!(machine.state.feature_level(), 3);
    assert!(!machine.applied(vec![level(3)]).changed);
    machine.refused_as(RefusalKind::Conflict, "cluster", vec![level(2)]);
}

#[test]
fn bad_form_is_refused() {
    let bad_member = |change: &dyn Fn(&mut NewMember)| {
        let mut new = member("n2", 7100);
        change(&mut new);
        Change::AddMember {
            token: "a".into(),
            member: new,
        }
    };
    for change in [
        bad_member(&|m| m.name = String::new()),
        bad_member(&|m| m.name = "a b".into()),
        bad_member(&|m| m.name = "x".repeat(64)),
        bad_member(&|m| m.raft_address = ([0, 0, 0, 0], 7100).into()),
        bad_member(&|m| m.api_address.set_port(0)),
        bad_member(&|m| m.raft_address = "[fd00::1%2]:7000".parse().expect("an address")),
        token(""),
        token(&"x".repeat(129)),
        Change::RotateCa {
            ca: Secret::default(),
        },
    ] {
        let mut machine = Machine::with(vec![init(), super::members::token("a")]);
        assert_eq!(machine.refused(vec![change]).kind, RefusalKind::Invalid);
    }
}

#[test]
fn a_new_name_of_digits_alone_is_refused_and_one_in_a_log_is_not() {
    use crate::state::check;
    let proposed = |changes| super::command(1, changes);
    for name in ["3", "0", "18446744073709551616"] {
        let mut first = init();
        if let Change::InitCluster { first, .. } = &mut first {
            first.name = name.into();
        }
        for change in [first, join("a", name, 7100)] {
            let refusal = check::proposal(&proposed(vec![change])).expect_err(name);
            assert_eq!(refusal.kind, RefusalKind::Invalid, "{refusal}");
            assert_eq!(refusal.object, format!("node {name}"));
            assert!(refusal.hint.contains("node.toml"), "{refusal}");
        }
        // A log of an earlier release comes to the same state as ever.
        Machine::with(vec![init(), token("a")]).applied(vec![join("a", name, 7100)]);
    }
    for name in ["n3", "3n", "3.1", "-"] {
        let joins = vec![join("a", name, 7100)];
        assert_eq!(check::proposal(&proposed(joins)), Ok(()), "{name}");
    }
}

#[test]
fn tokens_are_bounded_and_used_ones_make_room() {
    let mut machine = Machine::with(vec![init(), token("first")]);
    machine.applied(vec![join("first", "n2", 7100)]);
    let many = (1..crate::state::limits::TOKENS).map(|i| token(&format!("t{i}")));
    machine.applied(many.collect());
    machine.applied(vec![token("one-more")]);
    assert!(!machine.state.tokens().contains_key("first"));
    machine.refused_as(
        RefusalKind::LimitExceeded,
        "token too-many",
        vec![token("too-many")],
    );
}

#[test]
fn a_release_is_over_when_a_leader_of_its_term_or_a_later_one_takes_the_vips() {
    for (taken_in, is_over) in [(6, false), (7, true), (8, true)] {
        let mut machine = Machine::default();
        machine.applied(vec![init()]);
        let (to, term) = (NodeId(1), 7);
        machine.applied(vec![Change::ReleaseVips { to, term }]);
        assert!(machine.state.vip_release().is_some());
        machine.applied(vec![Change::TakeVips { term: taken_in }]);
        assert_eq!(machine.state.vip_release().is_none(), is_over, "{taken_in}");
    }
}
