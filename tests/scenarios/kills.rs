//! Nothing acknowledged is lost when processes are killed.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use hickory_proto::rr::RecordType;

use crate::support::{Dev, alone, answers, eventually, run};

/// Adds records through every node until told to stop, and remembers those that were acknowledged.
struct Writers {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<BTreeSet<String>>>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Writers {
    fn start(dev: &Dev) -> Self {
        let (stop, acknowledged) = (
            Arc::<AtomicBool>::default(),
            Arc::<Mutex<BTreeSet<String>>>::default(),
        );
        let write = |writer: u16| {
            let (stop, acknowledged) = (Arc::clone(&stop), Arc::clone(&acknowledged));
            let endpoints = dev.endpoints();
            thread::spawn(move || {
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let name = format!("w{writer}-{number}");
                    let set = run(
                        &endpoints,
                        &[
                            "record",
                            "set",
                            "demo.test",
                            &name,
                            "A",
                            "192.0.2.9",
                            "--timeout",
                            "20s",
                        ],
                    );
                    match set.code {
                        0 => drop(acknowledged.lock().expect("no writer panics").insert(name)),
                        3 | 4 => {} // no leader, or the outcome is unknown: nothing was promised
                        _ => panic!("{name}: {}", set.stderr),
                    }
                }
            })
        };
        let threads = (1..=3).map(write).collect();
        Self {
            stop,
            acknowledged,
            threads,
        }
    }

    fn count(&self) -> usize {
        self.acknowledged.lock().expect("no writer panics").len()
    }

    /// Waits until some more writes were acknowledged.
    fn wait_for_more(&self) {
        let before = self.count();
        eventually("acknowledged writes", || {
            (self.count() >= before + 10).then_some(())
        });
    }

    fn finish(self) -> BTreeSet<String> {
        self.stop.store(true, Ordering::Relaxed);
        for writer in self.threads {
            writer.join().expect("a writer failed");
        }
        Arc::into_inner(self.acknowledged)
            .expect("the writers have ended")
            .into_inner()
            .expect("no writer panicked")
    }
}

fn all_found_everywhere(dev: &Dev, names: &BTreeSet<String>) {
    assert!(names.len() >= 20, "too few writes to tell: {}", names.len());
    for node in 1..=dev.nodes {
        for name in names {
            eventually(&format!("{name} on node {node}"), || {
                answers(dev.dns(node), &format!("{name}.demo.test."), RecordType::A)
                    .filter(|found| !found.is_empty())
            });
        }
    }
    let hashes = || {
        let status = dev.json(&["cluster", "status"]);
        let nodes = status["nodes"].as_array().expect("nodes");
        nodes
            .iter()
            .map(|node| node["state_hash"].to_string())
            .collect::<BTreeSet<_>>()
    };
    eventually("equal states", || (hashes().len() == 1).then_some(()));
}

#[test]
fn killing_each_node_in_turn_loses_nothing() {
    let _alone = alone();
    let dir = tempfile::tempdir().expect("a directory");
    let dev = Dev::start(&dir.path().join("d"), 3, &[]);
    let writers = Writers::start(&dev);
    for node in 1..=3 {
        writers.wait_for_more();
        dev.kill_node(node);
        assert!(
            dev.wait_for(&format!("node {node} is started again,")),
            "`dev` restarts a node that died"
        );
    }
    writers.wait_for_more();
    let names = writers.finish();
    all_found_everywhere(&dev, &names);
}

#[test]
fn killing_the_leader_moves_the_vip_and_writes_go_on() {
    let _alone = alone();
    let dir = tempfile::tempdir().expect("a directory");
    let dev = Dev::start(&dir.path().join("d"), 3, &[]);
    let writers = Writers::start(&dev);
    writers.wait_for_more();
    let leader = dev.leader();
    dev.kill_node(leader);
    eventually("DNS on the VIP again", || {
        answers(dev.vip_dns(), "www.demo.test.", RecordType::A)
    });
    writers.wait_for_more();
    let names = writers.finish();
    all_found_everywhere(&dev, &names);
}

#[test]
fn killing_all_nodes_at_once_loses_nothing() {
    let _alone = alone();
    let dir = tempfile::tempdir().expect("a directory");
    let dev = Dev::start(&dir.path().join("d"), 3, &[]);
    let writers = Writers::start(&dev);
    for _ in 0..2 {
        writers.wait_for_more();
        for node in 1..=3 {
            dev.kill_node(node);
        }
        for _ in 1..=3 {
            assert!(
                dev.wait_for("is started again,"),
                "`dev` restarts a node that died"
            );
        }
        writers.wait_for_more();
    }
    let names = writers.finish();
    all_found_everywhere(&dev, &names);
}
