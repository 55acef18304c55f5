//! Membership from the command line, with mutual TLS.

use serde_json::Value;

use crate::support::{alone, eventually, set::Set};

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
fn a_new_authority_takes_over_while_all_run() {
    let _alone = alone();
    let Some(mut set) = Set::prepare("five-node", 5) else {
        return;
    };
    let mut processes = vec![set.init()];
    let early = set.token();
    for (node, member) in [(2, 1), (3, 2)] {
        processes.push(set.join(node, member));
    }
    set.wait_voters(3);
    let certificate = |set: &Set, node: usize| {
        let path = set
            .namespace
            .home()
            .join(format!("five-node/n{node}/identity.toml"));
        std::fs::read_to_string(path).expect("an identity")
    };
    let before: Vec<String> = (1..=3).map(|node| certificate(&set, node)).collect();
    let rotated = set.namespace.run(&set.all(), &["cluster", "ca", "rotate"]);
    assert_eq!(rotated.code, 0, "{rotated:?}");
    // A token made right away is good, whichever authority the members still show.
    let token = set.token();
    processes.push(set.join_by(4, 3, &token));
    set.wait_voters(4);
    for node in 1..=3 {
        // Said once it is in use, which is after it was kept.
        eventually("a certificate of the new authority in use", || {
            let log = set.configs[node - 1].with_extension("log");
            let told = std::fs::read_to_string(log).ok()?;
            let renewed = "this node's certificate was renewed";
            told.contains(renewed).then_some(())
        });
        assert_ne!(certificate(&set, node), before[node - 1]);
    }
    // One of before the rotation says why it is of no use, once everybody has gone over.
    let refused = eventually("the end of the old authority", || {
        let config = set.config(5);
        let peer = &set.endpoints[0];
        let join = ["cluster", "join", "--token", &early, "--peer", peer];
        let ended = set
            .namespace
            .run("", &[&join[..], &["--config", config]].concat());
        assert_ne!(ended.code, 0, "{ended:?}");
        ended.stderr.contains("ca rotate").then_some(ended)
    });
    assert!(refused.stderr.contains("new token"), "{refused:?}");
    // All of them still talk to each other after a restart with the new certificates.
    for process in &processes {
        set.namespace.kill_node(*process);
    }
    for node in 1..=4 {
        let config = set.configs[node - 1].clone();
        set.namespace.start_node(&config);
    }
    set.wait_voters(4);
    // The same join again is no fault.
    let join = [
        "cluster",
        "join",
        "--token",
        &token,
        "--config",
        set.config(4),
    ];
    let peer = ["--peer", &set.endpoints[0], "-o", "json"];
    let again = set.namespace.run("", &[&join[..], &peer[..]].concat());
    let told: Value = serde_json::from_str(&again.stdout).expect("JSON");
    assert_eq!(
        (again.code, &told["changed"]),
        (0, &Value::Bool(false)),
        "{again:?}"
    );
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
        (2, true),
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
    // A name that is taken is not the token's fault: what helps is named.
    let text = std::fs::read_to_string(set.config(3)).expect("a file of the set");
    let named = text.replace("name = \"n3\"", "name = \"n1\"");
    assert_ne!(text, named);
    let path = set.namespace.home().join("taken.toml");
    std::fs::write(&path, named).expect("written");
    let token = set.token();
    let peer = ["--peer", &set.endpoints[0], "--config"];
    let join = [&["cluster", "join", "--token", &token], &peer[..]].concat();
    let taken = set
        .namespace
        .run("", &[&join[..], &[path.to_str().expect("a path")]].concat());
    assert_eq!(taken.code, 1, "{taken:?}");
    for text in ["node 1 has this name", "another `name`", "cluster remove 1"] {
        assert!(taken.stderr.contains(text), "{text}: {taken:?}");
    }
    assert!(!taken.stderr.contains("token create"), "{taken:?}");
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
    let log = set.configs[leader - 1].with_extension("log");
    let told = std::fs::read_to_string(log).expect("its log");
    assert!(
        !told.contains(" ERROR "),
        "a wanted leave is no fault: {told}"
    );
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
