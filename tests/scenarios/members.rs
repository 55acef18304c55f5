//! Membership from the command line, with mutual TLS: the sets under `cluster/` as they stand, each in a network namespace
//! of its own. Only the data directories are moved.

use std::{
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::support::{PATIENCE, alone, eventually, namespace::Namespace};

/// A set from `cluster/` with its nodes.
struct Set {
    namespace: Namespace,
    configs: Vec<PathBuf>,
    endpoints: Vec<String>,
}

impl Set {
    /// Copies the set's files with the data directories under the test's own.
    fn prepare(name: &str, nodes: usize) -> Option<Self> {
        let namespace = Namespace::make()?;
        let from = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("cluster")
            .join(name);
        let mut configs = Vec::new();
        let mut endpoints = Vec::new();
        for node in 1..=nodes {
            let text = std::fs::read_to_string(from.join(format!("n{node}.toml")))
                .expect("a file of the set");
            let moved = text.replace("/var/tmp/pontoon", &namespace.home().display().to_string());
            assert_ne!(
                moved, text,
                "the data directory is where the test expects it"
            );
            let path = namespace.home().join(format!("n{node}.toml"));
            std::fs::write(&path, &moved).expect("written");
            let api = moved
                .lines()
                .find_map(|line| line.strip_prefix("api = "))
                .expect("an API address");
            endpoints.push(api.trim_matches('"').to_owned());
            configs.push(path);
        }
        Some(Self {
            namespace,
            configs,
            endpoints,
        })
    }

    fn config(&self, node: usize) -> &str {
        self.configs[node - 1].to_str().expect("a path")
    }

    fn all(&self) -> String {
        self.endpoints.join(",")
    }

    /// Makes the cluster of node 1 and starts it.
    fn init(&mut self) -> usize {
        let made = self
            .namespace
            .run("", &["cluster", "init", "--config", self.config(1)]);
        assert_eq!(made.code, 0, "{}", made.stderr);
        let again = self
            .namespace
            .run("", &["cluster", "init", "--config", self.config(1)]);
        assert_eq!(again.code, 0, "a second time is harmless: {}", again.stderr);
        let config = self.configs[0].clone();
        self.namespace.start_node(&config)
    }

    fn token(&self) -> String {
        let made = eventually("a token", || {
            let ended = self
                .namespace
                .run(&self.all(), &["cluster", "token", "create", "-o", "json"]);
            (ended.code == 0).then_some(ended.stdout)
        });
        let made: Value = serde_json::from_str(&made).expect("JSON");
        made["token"].as_str().expect("a token").to_owned()
    }

    /// Admits a node by a member and starts it.
    fn join(&mut self, node: usize, member: usize) -> usize {
        let token = self.token();
        let peer = self.endpoints[member - 1].clone();
        // The member may have been started a moment ago; the same join again is the same join.
        eventually(&format!("the join of node {node}"), || {
            let joined = self.namespace.run(
                "",
                &[
                    "cluster",
                    "join",
                    "--token",
                    &token,
                    "--peer",
                    &peer,
                    "--config",
                    self.config(node),
                ],
            );
            match joined.code {
                0 => Some(()),
                3 => None,
                _ => panic!("node {node}: {}", joined.stderr),
            }
        });
        let config = self.configs[node - 1].clone();
        self.namespace.start_node(&config)
    }

    fn status(&self) -> Option<Value> {
        let ended = self
            .namespace
            .run(&self.all(), &["cluster", "status", "-o", "json"]);
        serde_json::from_str(&ended.stdout).ok()
    }

    /// Waits until the cluster has exactly these voters, all of them well.
    fn wait_voters(&self, count: usize) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status();
            if let Some(status) = status.as_ref().filter(|status| all_vote(status, count)) {
                return status.clone();
            }
            assert!(
                Instant::now() < deadline,
                "{count} voters did not come: {status:#?}"
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn set_record(&self, name: &str) {
        let set = self.namespace.run(
            &self.all(),
            &[
                "record",
                "set",
                "set.test",
                name,
                "A",
                "192.0.2.1",
                "--timeout",
                "30s",
            ],
        );
        assert_eq!(set.code, 0, "{name}: {}", set.stderr);
    }

    fn has_record(&self, node: usize, name: &str) -> bool {
        let listed = self.namespace.run(
            &self.endpoints[node - 1],
            &["record", "list", "set.test", name, "A", "-o", "json"],
        );
        listed.code == 0 && listed.stdout.contains("192.0.2.1")
    }
}

fn all_vote(status: &Value, count: usize) -> bool {
    let Some(nodes) = status["nodes"].as_array() else {
        return false;
    };
    let well = |node: &Value| {
        node["role"] == "voter" && (node["state"] == "leader" || node["state"] == "follower")
    };
    nodes.len() == count && nodes.iter().all(well) && status["leader"].is_u64()
}

#[test]
fn the_three_node_set_starts_as_it_stands() {
    let _alone = alone();
    let Some(mut set) = Set::prepare("three-node", 3) else {
        return;
    };
    set.init();
    set.join(2, 1);
    set.join(3, 2);
    set.wait_voters(3);
    let zone = set
        .namespace
        .run(&set.all(), &["zone", "create", "set.test"]);
    assert_eq!(zone.code, 0, "{}", zone.stderr);
    set.set_record("www");
    for node in 1..=3 {
        eventually("the record on every node", || {
            set.has_record(node, "www").then_some(())
        });
    }
}

#[test]
fn strangers_are_refused_with_the_reason() {
    let _alone = alone();
    let Some(mut set) = Set::prepare("three-node", 3) else {
        return;
    };
    set.init();
    let token = set.token();
    let join = |token: &str| {
        set.namespace.run(
            "",
            &[
                "cluster",
                "join",
                "--token",
                token,
                "--peer",
                &set.endpoints[0],
                "--config",
                set.config(2),
            ],
        )
    };

    let garbled = join(&token[1..]);
    assert_eq!(
        (garbled.code, garbled.stderr.contains("token")),
        (1, true),
        "{garbled:?}"
    );
    let mut wrong_secret = token.clone();
    let digit = if wrong_secret.as_bytes()[20] == b'0' {
        "1"
    } else {
        "0"
    };
    wrong_secret.replace_range(20..21, digit);
    let wrong = join(&wrong_secret);
    assert_eq!(wrong.code, 1, "{wrong:?}");
    let mut wrong_cluster = token.clone();
    let last = token.len() - 1;
    let digit = if token.ends_with('0') { "1" } else { "0" };
    wrong_cluster.replace_range(last.., digit);
    let foreign = join(&wrong_cluster);
    assert!(
        foreign.code != 0 && foreign.stderr.contains("authority"),
        "{foreign:?}"
    );

    let good = join(&token);
    assert_eq!(good.code, 0, "{good:?}");
    let used = set.namespace.run(
        "",
        &[
            "cluster",
            "join",
            "--token",
            &token,
            "--peer",
            &set.endpoints[0],
            "--config",
            set.config(3),
        ],
    );
    assert!(used.code == 1 && used.stderr.contains("used"), "{used:?}");
    let without_certificate = set
        .namespace
        .command(crate::support::PONTOON)
        .env("HOME", "/nonexistent")
        .env("PONTOON_ENDPOINTS", &set.endpoints[0])
        .args(["cluster", "status"])
        .output()
        .expect("the program runs");
    assert!(
        !without_certificate.status.success(),
        "{without_certificate:?}"
    );
}

#[test]
fn five_nodes_come_and_go_and_no_write_is_lost() {
    let _alone = alone();
    let Some(mut set) = Set::prepare("five-node", 5) else {
        return;
    };
    let mut processes = vec![set.init()];
    processes.push(set.join(2, 1));
    processes.push(set.join(3, 1));
    set.wait_voters(3);
    let zone = set
        .namespace
        .run(&set.all(), &["zone", "create", "set.test"]);
    assert_eq!(zone.code, 0, "{}", zone.stderr);
    let mut written = Vec::new();
    let write = |set: &Set, written: &mut Vec<String>| {
        let name = format!("r{}", written.len());
        set.set_record(&name);
        written.push(name);
    };
    write(&set, &mut written);
    processes.push(set.join(4, 2));
    write(&set, &mut written);
    processes.push(set.join(5, 3));
    let status = set.wait_voters(5);
    write(&set, &mut written);

    // The leader leaves: it hands over first, and its process ends.
    let leader = usize::try_from(status["leader"].as_u64().expect("a leader")).expect("small");
    let left = set
        .namespace
        .run(&set.endpoints[leader - 1], &["cluster", "leave"]);
    assert_eq!(left.code, 0, "{}", left.stderr);
    set.namespace.wait_node(processes[leader - 1]);
    set.wait_voters(4);
    write(&set, &mut written);

    // Another dies for good: it is removed, and its machine joins anew, under a new id.
    let dead = if leader == 5 { 4 } else { 5 };
    set.namespace.kill_node(processes[dead - 1]);
    write(&set, &mut written);
    let removed = eventually("the removal", || {
        let ended = set
            .namespace
            .run(&set.all(), &["cluster", "remove", &dead.to_string()]);
        (ended.code == 0).then_some(ended)
    });
    assert_eq!(removed.code, 0);
    set.wait_voters(3);
    let data = set.namespace.home().join(format!("five-node/n{dead}"));
    let old = set.namespace.run(
        "",
        &[
            "cluster",
            "join",
            "--token",
            &set.token(),
            "--peer",
            &set.endpoints[dead % 4],
            "--config",
            set.config(dead),
        ],
    );
    assert_eq!(old.code, 1, "the old data must go first: {old:?}");
    std::fs::remove_dir_all(&data).expect("removed");
    let member = (1..=5)
        .find(|node| *node != leader && *node != dead)
        .expect("a member");
    set.join(dead, member);
    let status = set.wait_voters(4);
    let ids: Vec<u64> = status["nodes"]
        .as_array()
        .expect("nodes")
        .iter()
        .filter_map(|n| n["id"].as_u64())
        .collect();
    assert!(ids.contains(&6), "ids are never used again: {ids:?}");
    write(&set, &mut written);
    for node in (1..=5).filter(|node| *node != leader) {
        for name in &written {
            eventually(&format!("{name} on machine {node}"), || {
                set.has_record(node, name).then_some(())
            });
        }
    }
}
