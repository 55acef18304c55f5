//! What a new cluster gets from a backup.

use super::*;
use crate::{
    model::{
        node::{ClusterId, NodeId},
        vip::Vip,
    },
    state::command::{NewMember, Secret},
};

fn init(id: &str) -> Change {
    Change::InitCluster {
        cluster: ClusterId(id.into()),
        ca: Secret("secret".into()),
        first: NewMember {
            name: "n1".into(),
            raft_address: ([10, 0, 0, 1], 7000).into(),
            api_address: ([10, 0, 0, 1], 7001).into(),
        },
    }
}

#[test]
fn a_restored_state_is_later_than_anything_served_before() {
    let mut machine = Machine::with(vec![
        init("aa"),
        create("example.", u32::MAX),
        create("gone.", 3),
    ]);
    machine.applied(vec![set("example.", "www.example.", a(1))]);
    let address = [10, 0, 0, 100].into();
    let interface = "vip".parse().expect("a label");
    machine.applied(vec![Change::PutVip {
        vip: Vip { address, interface },
        create: true,
    }]);
    let added_at = machine.state.revision();
    machine.applied(vec![Change::ClaimVips {
        vips: vec![(address, added_at)],
    }]);
    machine.applied(vec![Change::DeleteZone {
        zone: name("gone."),
    }]);
    let old = command(9_999, vec![set("example.", "www.example.", a(9))]);

    let mut restored = Machine {
        state: machine.state.restored(UnixMillis(5), "operator"),
        index: 0,
    };
    assert!(restored.state.revision() > 1 << 32);
    assert!(
        restored
            .serial("example.")
            .is_newer_than(machine.serial("example."))
    );
    assert_eq!(
        restored.state.deleted_serial(&name("gone.")),
        Some(Serial(3 + (1 << 20)))
    );
    assert_eq!(restored.state.cluster(), None);
    let unclaimed = &restored.state.snapshot().unclaimed_vips;
    assert_eq!(
        unclaimed.get(&address),
        Some(&restored.state.revision()),
        "another host may have it since"
    );
    assert!(restored.state.members().is_empty());
    assert_eq!(restored.state.ca(), &Secret::default());
    let records = |m: &Machine| m.state.snapshot().zones[&name("example.")].content_hash;
    assert_eq!(records(&restored), records(&machine));
    assert_eq!(restored.propose(&old), Outcome::Unknown);

    // The log of the new cluster begins anew; revisions go on.
    let before = restored.state.revision();
    let applied = restored.applied(vec![init("bb")]);
    assert_eq!(
        (applied.node, applied.revision),
        (Some(NodeId(1)), before + 1)
    );
    let first = restored
        .state
        .zone_at(&name("example."), Serial(u32::MAX))
        .expect("kept");
    assert_eq!(first.rrset(&name("www.example."), RecordType::A), None);

    let mut bytes = Vec::new();
    restored
        .state
        .encode(&mut bytes)
        .expect("a vector takes everything");
    let again = State::decode(&mut bytes.as_slice()).expect("what was encoded");
    assert_eq!(again.hash(), restored.state.hash());
}
