//! Whole nodes whose disk is full or holds something else than what was written.

use std::{
    fs,
    io::Write,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

use crate::support::{alone, eventually, set::Set};

/// A small file system in memory, unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, mib: u32) -> Self {
        fs::create_dir_all(at).expect("a directory");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "none"])
            .arg(at)
            .status();
        assert!(mounted.is_ok_and(|status| status.success()), "mounted");
        Self(at.to_owned())
    }

    /// Takes all the space there is.
    fn fill(&self) {
        let mut file = fs::File::create(self.filler()).expect("a file");
        for size in [1 << 20, 1 << 12, 1] {
            while file.write_all(&vec![1; size]).is_ok() {}
        }
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} is left mounted", self.0.display());
        }
    }
}

/// What node `node` answers for `www.set.test`.
fn answer(set: &Set, node: usize) -> String {
    address(set, node, "www")
}

/// What it answers for another name of the zone.
fn address(set: &Set, node: usize, name: &str) -> String {
    let server = format!("@127.0.10.{node}");
    let asked = set
        .namespace
        .command("dig")
        .args([&server, "-p", "5300", "+short", "+tries=1", "+time=2"])
        .args([&format!("{name}.set.test"), "A"])
        .output()
        .expect("dig runs");
    String::from_utf8_lossy(&asked.stdout).trim().to_owned()
}

fn state_of(set: &Set, node: u64) -> String {
    let status = set.status().unwrap_or_default();
    let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
    nodes
        .iter()
        .find(|n| n["id"] == node)
        .and_then(|n| n["state"].as_str().map(str::to_owned))
        .unwrap_or_default()
}

/// Three nodes with a record; the processes.
fn three_nodes(set: &mut Set) -> Vec<usize> {
    let processes = vec![set.init(), set.join(2, 1), set.join(3, 2)];
    set.wait_voters(3);
    let zone = set
        .namespace
        .run(&set.all(), &["zone", "create", "set.test"]);
    assert_eq!(zone.code, 0, "{}", zone.stderr);
    set.set_record("www");
    for node in 1..=3 {
        eventually("the answer of every node", || {
            (answer(set, node) == "192.0.2.1").then_some(())
        });
    }
    processes
}

#[test]
fn a_node_with_a_full_disk_goes_on_answering_and_comes_back() {
    let _alone = alone();
    let Some(mut set) = Set::prepare("three-node", 3) else {
        return;
    };
    let disk = SmallDisk::mount(&set.namespace.home().join("three-node/n3"), 48);
    let processes = three_nodes(&mut set);
    disk.fill();

    // The others go on; the node with the full disk leaves the group with a reason, and answers.
    let mut written = 0;
    eventually("node 3 leaves consensus", || {
        // Large, so that what the log's files have in reserve is soon used up.
        set.set_large_record(&format!("r{written}"));
        written += 1;
        (state_of(&set, 3) == "failed").then_some(())
    });
    let status = set.status().expect("a status");
    let problem = status["nodes"][2]["problem"].as_str().unwrap_or_default();
    assert!(problem.contains("No space left"), "{problem}");
    assert_eq!(answer(&set, 3), "192.0.2.1");
    set.set_record("after");

    // Started without space it serves what it has.
    set.namespace.kill_node(processes[2]);
    let config = set.configs[2].clone();
    let third = set.namespace.start_node(&config);
    eventually("an answer of node 3, without space", || {
        (answer(&set, 3) == "192.0.2.1").then_some(())
    });

    // With space it takes part again, and has everything.
    fs::remove_file(disk.filler()).expect("removed");
    set.namespace.kill_node(third);
    set.namespace.start_node(&config);
    set.wait_voters(3);
    for name in (0..written)
        .map(|n| format!("r{n}"))
        .chain(["after".to_owned()])
    {
        eventually(&format!("{name} on node 3"), || {
            set.has_record(3, &name).then_some(())
        });
    }
    eventually("the end of the alarms", || {
        let alarms = set.status()?["alarms"].as_array()?.len();
        (alarms == 0).then_some(())
    });
}

#[test]
fn a_node_with_a_garbled_log_says_so_and_does_not_start() {
    let _alone = alone();
    let Some(mut set) = Set::prepare("three-node", 3) else {
        return;
    };
    let processes = three_nodes(&mut set);
    let log = find(&set.namespace.home().join("three-node/n3"), "db").expect("the log");
    // The file is longer than what was written to it.
    let written = || {
        let whole = fs::read(&log).expect("read");
        let last = whole.iter().rposition(|octet| *octet != 0);
        last.map_or(0, |last| last as u64)
    };
    let earlier = written();
    for number in 0..20 {
        set.set_record(&format!("r{number}"));
    }
    eventually("the last record at the third node", || {
        (address(&set, 3, "r19") == "192.0.2.1").then_some(())
    });
    set.namespace.kill_node(processes[2]);
    let file = fs::OpenOptions::new()
        .write(true)
        .open(&log)
        .expect("opened");
    let length = file.metadata().expect("its size").len();
    let whole = fs::read(&log).expect("read");
    let garble = || {
        for at in (0..length).step_by(600) {
            file.write_all_at(&[0xa5; 24], at).expect("written");
        }
    };
    let truncate = |length: u64| {
        file.write_all_at(&whole, 0).expect("written");
        file.set_len(length).expect("cut");
    };
    let harms: [&dyn Fn(); 4] = [
        &garble,
        &|| truncate(earlier / 2),
        // Only entries that it acknowledged are gone.
        &|| truncate(earlier),
        &|| truncate(0),
    ];
    let config = set.configs[2].clone();
    for (number, harm) in harms.iter().enumerate() {
        harm();
        let third = set.namespace.start_node(&config);
        set.namespace.wait_node(third);
        let told = fs::read_to_string(config.with_extension("log")).expect("its log");
        assert!(told.contains("join anew"), "harm {number}: {told}");
        assert!(told.contains("three-node/n3"), "harm {number}: {told}");
        assert!(!told.contains("panicked"), "harm {number}: {told}");
    }
    // The others do not mind.
    set.set_record("more");
}

#[test]
fn a_node_that_was_away_too_long_waits_for_its_cluster() {
    let _alone = alone();
    let Some(mut set) = Set::prepare("three-node", 3) else {
        return;
    };
    let processes = three_nodes(&mut set);
    let home = set.namespace.home().join("three-node/n3");
    let heard = eventually("the note of when a leader was heard", || {
        find(&home, "heard")
    });
    for process in processes {
        set.namespace.kill_node(process);
    }
    let noted: u64 = fs::read_to_string(&heard)
        .expect("read")
        .trim()
        .parse()
        .expect("seconds");
    let eight_days = 8 * 86_400;
    fs::write(&heard, format!("{}\n", noted - eight_days)).expect("written");
    let config = set.configs[2].clone();
    set.namespace.start_node(&config);
    eventually("its reason", || {
        let told = fs::read_to_string(config.with_extension("log")).ok()?;
        told.contains("longer than max_stale").then_some(())
    });
    assert_ne!(answer(&set, 3), "192.0.2.1", "it serves nothing");
    for node in 0..2 {
        let config = set.configs[node].clone();
        set.namespace.start_node(&config);
    }
    eventually("the answer of node 3, with its cluster", || {
        (answer(&set, 3) == "192.0.2.1").then_some(())
    });
}

fn find(directory: &Path, name: &str) -> Option<PathBuf> {
    fs::read_dir(directory).ok()?.flatten().find_map(|entry| {
        let path = entry.path();
        match path.is_dir() {
            true => find(&path, name),
            false => (entry.file_name() == name).then_some(path),
        }
    })
}
