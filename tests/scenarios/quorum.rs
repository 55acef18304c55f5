//! What one node says and does when it is left alone.

use hickory_proto::rr::RecordType;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::support::{Dev, alone, answers, eventually, page, run};

#[test]
fn a_node_without_a_quorum_names_no_leader_and_begins_nothing() {
    let _alone = alone();
    let dir = tempfile::tempdir().expect("a directory");
    let dev = Dev::start(&dir.path().join("d"), 3, &[]);
    let leader = dev.leader();
    // The leader is among those that fall silent in the first round, and left alone in the second.
    for left in [leader % 3 + 1, leader] {
        let others: Vec<u16> = (1..=3).filter(|node| *node != left).collect();
        let signal = |signal: Signal| {
            for node in &others {
                kill(Pid::from_raw(dev.node_pid(*node)), signal).expect("the node runs");
            }
        };
        signal(Signal::SIGSTOP);
        let endpoint = dev.api(left).to_string();
        let status: Value = eventually("no leader", || {
            let shown = run(&endpoint, &["cluster", "status", "-o", "json"]);
            let status: Value = serde_json::from_str(&shown.stdout).ok()?;
            status["leader"].is_null().then_some(status)
        });
        let states: Vec<&Value> = status["nodes"]
            .as_array()
            .expect("nodes")
            .iter()
            .map(|node| &node["state"])
            .collect();
        assert!(states.iter().all(|state| *state != "leader"), "{states:?}");
        let metrics = page(dev.http(left), "/metrics").expect("metrics");
        assert!(metrics.contains("pontoon_raft_leader 0"), "{metrics}");
        for command in [
            vec!["cluster", "transfer"],
            vec!["cluster", "remove", "2"],
            vec!["cluster", "leave"],
        ] {
            let ended = run(
                &endpoint,
                &[command.as_slice(), &["--timeout", "2s"]].concat(),
            );
            assert_eq!(ended.code, 3, "{command:?}: {ended:?}");
        }
        let answered = answers(dev.dns(left), "www.demo.test.", RecordType::A);
        assert!(answered.is_some_and(|found| !found.is_empty()));
        signal(Signal::SIGCONT);
        eventually("writes again", || {
            let set = run(
                &endpoint,
                &["record", "set", "demo.test", "after", "A", "192.0.2.1"],
            );
            (set.code == 0).then_some(())
        });
    }
    let status = dev.json(&["cluster", "status"]);
    assert_eq!(
        status["nodes"].as_array().map(Vec::len),
        Some(3),
        "{status}"
    );
    dev.stop();
}
