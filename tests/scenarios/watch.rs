//! A watch outlives the node that it watches.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use serde_json::Value;

use crate::support::{Dev, PONTOON, alone, eventually};

/// A running `pontoon watch`, and the lines it wrote so far. It ends when dropped.
struct Watch {
    child: Child,
    lines: Arc<Mutex<Vec<Value>>>,
}

impl Watch {
    fn start(endpoints: &str, more: &[&str]) -> Self {
        let mut child = Command::new(PONTOON)
            .args(["watch", "-o", "json", "--timeout", "60s"])
            .args(more)
            .env("PONTOON_ENDPOINTS", endpoints)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("`pontoon watch` starts");
        let output = child.stdout.take().expect("a pipe");
        let lines = Arc::<Mutex<Vec<Value>>>::default();
        let sink = Arc::clone(&lines);
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).expect("a line is a document");
                sink.lock().expect("nobody panics").push(line);
            }
        });
        Self { child, lines }
    }

    fn lines(&self) -> Vec<Value> {
        self.lines.lock().expect("nobody panics").clone()
    }

    /// Waits until all changes up to `revision` were told.
    fn wait_for(&self, revision: u64) {
        eventually(&format!("revision {revision} in the watch"), || {
            let caught_up = |line: &Value| {
                line["event"] == "caught_up" && line["revision"].as_u64() >= Some(revision)
            };
            self.lines().iter().any(caught_up).then_some(())
        });
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sets a record; the revision it made.
fn set(dev: &Dev, name: &str) -> u64 {
    let line = ["record", "set", "demo.test", name, "A", "192.0.2.9"];
    let written = dev.json(&[&line[..], &["--timeout", "30s"]].concat());
    written["revision"].as_u64().expect("a revision")
}

/// The names that were told, and how often each was.
fn told(lines: &[Value]) -> BTreeMap<String, usize> {
    let mut told = BTreeMap::new();
    for line in lines {
        let sets = line["put"].as_array().cloned().unwrap_or_default();
        for name in sets.iter().filter_map(|set| set["name"].as_str()) {
            *told.entry(name.to_owned()).or_default() += 1;
        }
    }
    told
}

#[test]
fn a_watch_goes_on_when_its_node_is_killed() {
    let _alone = alone();
    let dir = tempfile::tempdir().expect("a directory");
    let dev = Dev::start(&dir.path().join("d"), 3, &[]);
    // The first endpoint is the one that is watched: once a follower, once the leader.
    let leader = dev.leader();
    let follower = (1..=3).find(|node| *node != leader).expect("a follower");
    let order = |first: u16| {
        let others = (1..=3).filter(|node| *node != first);
        let nodes = std::iter::once(first).chain(others);
        let apis: Vec<String> = nodes.map(|node| dev.api(node).to_string()).collect();
        apis.join(",")
    };
    let watches = [order(follower), order(leader)].map(|order| Watch::start(&order, &[]));
    let mut names = BTreeSet::new();
    let mut write = |prefix: &str| {
        let mut last = 0;
        for number in 0..8 {
            let name = format!("{prefix}{number}");
            last = set(&dev, &name);
            names.insert(format!("{name}.demo.test."));
        }
        last
    };
    for watch in &watches {
        eventually("the beginning of the watch", || {
            (!watch.lines().is_empty()).then_some(())
        });
    }
    let before = write("before");
    watches.iter().for_each(|watch| watch.wait_for(before));
    dev.kill_node(follower);
    let between = write("between");
    watches.iter().for_each(|watch| watch.wait_for(between));
    assert!(dev.wait_for(&format!("node {follower} is started again,")));
    dev.kill_node(leader);
    let after = write("after");
    watches.iter().for_each(|watch| watch.wait_for(after));

    for watch in &watches {
        let lines = watch.lines();
        let told = told(&lines);
        let missed: Vec<&String> = names.iter().filter(|n| !told.contains_key(*n)).collect();
        assert!(missed.is_empty(), "{missed:?} were left out: {lines:#?}");
        let whole = lines.iter().filter(|l| l["event"] == "compacted").count();
        assert_eq!(whole, 0, "the other node knows what follows: {lines:#?}");
        let revisions = lines.iter().filter_map(|line| line["revision"].as_u64());
        assert!(revisions.is_sorted(), "time goes forward: {lines:#?}");
        let changes: Vec<String> = lines
            .iter()
            .filter(|line| line["event"] == "change")
            .map(Value::to_string)
            .collect();
        let once: BTreeSet<&String> = changes.iter().collect();
        assert_eq!(once.len(), changes.len(), "a change came twice: {lines:#?}");
    }

    // Ended by its user, it is resumed where it was.
    let last = set(&dev, "last");
    let from = between.to_string();
    let resumed = Watch::start(&order(3), &["--from", &from]);
    resumed.wait_for(last);
    let told = told(&resumed.lines());
    assert!(told.contains_key("last.demo.test."), "{told:?}");
    for number in 0..8 {
        let name = format!("after{number}.demo.test.");
        assert!(told.contains_key(&name), "{name}: {told:?}");
    }
}
