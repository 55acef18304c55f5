//! The sets under `cluster/` as they stand, each in a network namespace of its own. Only the data directories are moved.

use std::{
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{PATIENCE, eventually, namespace::Namespace};

/// A set from `cluster/` with its nodes.
pub struct Set {
    pub namespace: Namespace,
    pub configs: Vec<PathBuf>,
    pub endpoints: Vec<String>,
}

impl Set {
    /// Copies the set's files with the data directories under the test's own.
    pub fn prepare(name: &str, nodes: usize) -> Option<Self> {
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

    pub fn config(&self, node: usize) -> &str {
        self.configs[node - 1].to_str().expect("a path")
    }

    pub fn all(&self) -> String {
        self.endpoints.join(",")
    }

    /// Makes the cluster of node 1 and starts it.
    pub fn init(&mut self) -> usize {
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

    pub fn token(&self) -> String {
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
    pub fn join(&mut self, node: usize, member: usize) -> usize {
        let token = self.token();
        self.join_by(node, member, &token)
    }

    /// The same by a token that there is already.
    pub fn join_by(&mut self, node: usize, member: usize, token: &str) -> usize {
        let peer = self.endpoints[member - 1].clone();
        // The member may have been started a moment ago; the same join again is the same join.
        eventually(&format!("the join of node {node}"), || {
            let joined = self.namespace.run(
                "",
                &[
                    "cluster",
                    "join",
                    "--token",
                    token,
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

    pub fn status(&self) -> Option<Value> {
        let ended = self
            .namespace
            .run(&self.all(), &["cluster", "status", "-o", "json"]);
        serde_json::from_str(&ended.stdout).ok()
    }

    /// Waits until the cluster has exactly these voters, all of them well.
    pub fn wait_voters(&self, count: usize) -> Value {
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

    pub fn set_record(&self, name: &str) {
        self.set_addresses(name, &["192.0.2.1".to_owned()]);
    }

    /// A record set of 2,000 addresses, the one of `set_record` among them: about 12 KiB in the log.
    pub fn set_large_record(&self, name: &str) {
        let others = (1..2000).map(|n| format!("198.18.{}.{}", n / 250, n % 250));
        let addresses: Vec<_> = std::iter::once("192.0.2.1".to_owned())
            .chain(others)
            .collect();
        self.set_addresses(name, &addresses);
    }

    fn set_addresses(&self, name: &str, addresses: &[String]) {
        let mut command = vec!["record", "set", "set.test", name, "A"];
        command.extend(addresses.iter().map(String::as_str));
        command.extend(["--timeout", "30s"]);
        let set = self.namespace.run(&self.all(), &command);
        assert_eq!(set.code, 0, "{name}: {}", set.stderr);
    }

    pub fn has_record(&self, node: usize, name: &str) -> bool {
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
