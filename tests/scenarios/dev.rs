//! `pontoon dev` does what the contract promises.

use hickory_proto::rr::RecordType;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::support::{Dev, alone, answers, ask, eventually, is_alive, page};

#[test]
fn the_sample_site_is_served_by_every_node_and_the_vip() {
    let _alone = alone();
    let dir = tempfile::tempdir().expect("a directory");
    let dev = Dev::start(&dir.path().join("d"), 3, &[]);
    for node in 1..=3 {
        let found = answers(dev.dns(node), "www.demo.test.", RecordType::A);
        assert_eq!(found, Some(vec!["127.0.53.53".to_owned()]), "node {node}");
        let forwarded = answers(dev.dns(node), "any.upstream.test.", RecordType::A);
        assert_eq!(
            forwarded,
            Some(vec!["192.0.2.53".to_owned()]),
            "node {node}"
        );
        let ready = page(dev.http(node), "/readyz?quorum").expect("HTTP answers");
        assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
        let listener = format!("127.0.53.{node}:{}", dev.base + 400)
            .parse()
            .expect("an address");
        let greeting = eventually("the listener", || page(listener, "/"));
        assert!(greeting.contains("hello from demo-"), "{greeting}");
    }
    eventually("DNS on the VIP", || {
        answers(dev.vip_dns(), "www.demo.test.", RecordType::A)
    });
    let vip = format!("127.0.53.53:{}", dev.base + 400)
        .parse()
        .expect("an address");
    eventually("the listener on the VIP", || page(vip, "/"));
    let metrics = page(dev.http(1), "/metrics").expect("metrics");
    let listed = include_str!("../../docs/metrics.md");
    for line in metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
    {
        let name = match line.split_once(' ').expect("a name and a type") {
            (name, "counter") => format!("{name}_total"),
            (name, _) => name.to_owned(),
        };
        assert!(listed.contains(&format!("| `{name}` |")), "{name}");
    }
    let absent = ask(dev.dns(1), "absent.demo.test.", RecordType::A).expect("an answer");
    assert_eq!(
        absent.metadata.response_code.to_string(),
        "Non-Existent Domain"
    );
    assert!(absent.metadata.authoritative);

    let status = dev.json(&["cluster", "status"]);
    let leader = status["leader"].as_u64().expect("a leader");
    assert!((1..=3).contains(&leader));
    assert_eq!(status["nodes"].as_array().map(Vec::len), Some(3));
    let vip = &status["vips"][0];
    assert_eq!(
        (vip["address"].as_str(), vip["holder"].as_u64()),
        (Some("127.0.53.53"), Some(leader)),
        "{status}"
    );
    dev.stop();
}

#[test]
fn a_change_through_one_node_is_answered_by_all() {
    let _alone = alone();
    let dir = tempfile::tempdir().expect("a directory");
    let dev = Dev::start(&dir.path().join("d"), 3, &[]);
    for node in 1..=3 {
        let name = format!("via-{node}");
        let endpoint = dev.api(node).to_string();
        let set = crate::support::run(
            &endpoint,
            &["record", "set", "demo.test", &name, "A", "192.0.2.1"],
        );
        assert_eq!(set.code, 0, "{}", set.stderr);
        // Committed means served: the node that acknowledged answers at once.
        let full = format!("{name}.demo.test.");
        assert_eq!(
            answers(dev.dns(node), &full, RecordType::A),
            Some(vec!["192.0.2.1".to_owned()])
        );
        for other in 1..=3 {
            eventually("the record everywhere", || {
                answers(dev.dns(other), &full, RecordType::A).filter(|found| !found.is_empty())
            });
        }
    }
    let exported = dev.run(&["export"]);
    assert_eq!(exported.code, 0, "{}", exported.stderr);
    let site = dir.path().join("site.toml");
    std::fs::write(&site, &exported.stdout).expect("written");
    let before = dev.json(&["cluster", "status"])["revision"].as_u64();
    let applied = dev.run(&["apply", "-f", site.to_str().expect("a path")]);
    assert_eq!(applied.code, 0, "{}", applied.stderr);
    assert_eq!(
        dev.json(&["cluster", "status"])["revision"].as_u64(),
        before,
        "export then apply changes nothing"
    );
}

#[test]
fn an_empty_cluster_has_the_vip_and_nothing_else_and_continues_with_its_data() {
    let _alone = alone();
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("d");
    let dev = Dev::start(&data, 3, &["--empty"]);
    assert_eq!(
        dev.json(&["zone", "list"])["zones"]
            .as_array()
            .map(Vec::len),
        Some(0)
    );
    eventually("DNS on the VIP", || {
        ask(dev.vip_dns(), "www.demo.test.", RecordType::A)
    });
    let created = dev.run(&["zone", "create", "kept.test"]);
    assert_eq!(created.code, 0, "{}", created.stderr);
    let base = dev.base;
    dev.stop();
    let again = Dev::try_start(&data, 3, base, &["--empty"]).expect("ready again");
    let zones = again.json(&["zone", "list"]);
    assert_eq!(
        zones["zones"][0]["zone"].as_str(),
        Some("kept.test."),
        "{zones}"
    );
    assert_eq!(zones["zones"].as_array().map(Vec::len), Some(1));
}

#[test]
fn the_nodes_end_with_dev_by_whatever_cause() {
    let _alone = alone();
    let dir = tempfile::tempdir().expect("a directory");
    let dev = Dev::start(&dir.path().join("d"), 3, &["--empty"]);
    let pids: Vec<i32> = (1..=3).map(|node| dev.node_pid(node)).collect();
    kill(Pid::from_raw(dev.pid()), Signal::SIGKILL).expect("`dev` runs");
    for pid in pids {
        eventually("the end of a node", || (!is_alive(pid)).then_some(()));
    }
}

#[test]
fn when_nobody_reads_what_it_says_it_goes_on() {
    use std::{
        io::{BufRead, BufReader, Read},
        process::{Command, Stdio},
    };
    let _alone = alone();
    let dir = tempfile::tempdir().expect("a directory");
    let base = crate::support::draw_port_base();
    let mut dev = Command::new(crate::support::PONTOON)
        .args(["dev", "--empty", "--port-base", &base.to_string(), "--dir"])
        .arg(dir.path().join("d"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("`pontoon dev` starts");
    let mut said = BufReader::new(dev.stdout.take().expect("it is piped"));
    let mut first = String::new();
    said.read_line(&mut first).expect("a line");
    assert!(first.starts_with("ready 3 nodes"), "{first}");
    drop(said);

    // It has something to say when a node ends, and starts it again all the same.
    let status = || {
        let endpoint = format!("127.0.0.1:{}", base + 101);
        let output = Command::new(crate::support::PONTOON)
            .args(["--endpoints", &endpoint, "-o", "json", "cluster", "status"])
            .output()
            .expect("the command runs");
        serde_json::from_slice::<serde_json::Value>(&output.stdout).ok()
    };
    let pid_of_second = || status()?["nodes"][1]["pid"].as_i64().filter(|pid| *pid > 0);
    let second = eventually("the second node", pid_of_second);
    let id = Pid::from_raw(i32::try_from(second).expect("a process id"));
    kill(id, Signal::SIGKILL).expect("the node runs");
    eventually("the second node again", || {
        pid_of_second().filter(|pid| *pid != second)
    });

    let own = Pid::from_raw(i32::try_from(dev.id()).expect("a process id"));
    kill(own, Signal::SIGTERM).expect("`dev` runs");
    let ended = eventually("the end of `dev`", || dev.try_wait().expect("a child"));
    let mut errors = String::new();
    let mut stderr = dev.stderr.take().expect("it is piped");
    stderr.read_to_string(&mut errors).expect("text");
    assert!(
        ended.success() && !errors.contains("panicked"),
        "{ended}: {errors}"
    );
}

/// The disk of one node went bad while the cluster was down: the others are a majority.
#[test]
fn one_bad_node_does_not_keep_the_others_from_starting_and_is_replaced() {
    let _alone = alone();
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("d");
    let dev = Dev::start(&data, 3, &["--empty"]);
    let created = dev.run(&["zone", "create", "kept.test"]);
    assert_eq!(created.code, 0, "{}", created.stderr);
    let base = dev.base;
    dev.stop();
    for node in 1..=3 {
        let log = std::fs::read_to_string(data.join(format!("n{node}/log"))).expect("its log");
        // There is nobody to hand over to: trying to takes seconds.
        assert!(!log.contains("not handed over"), "{log}");
        assert!(log.contains("stopped"), "{log}");
    }
    let third = data.join("n3/data");
    std::fs::write(third.join("identity.toml"), b"\xffgarbage").expect("written");

    let dev = Dev::try_start(&data, 3, base, &["--empty"]).expect("two are enough");
    let heard = dev.heard();
    let join = format!("127.0.0.1:{},127.0.0.1:{}", base + 101, base + 102);
    for told in [
        "node 3 does not start (exit status: 1)",
        "n3/data/identity.toml: it is garbled: no text in UTF-8",
        "cluster remove n3",
        "cluster join --token",
        &join,
        "ready 2 of 3 nodes",
    ] {
        assert!(heard.contains(told), "{told:?} in {heard}");
    }
    let zones = dev.json(&["zone", "list"]);
    assert_eq!(zones["zones"][0]["zone"], "kept.test.", "{zones}");

    // What it said to do.
    let api = format!("127.0.0.1:{}", base + 101);
    let removed = crate::support::run(&api, &["cluster", "remove", "n3"]);
    assert_eq!(removed.code, 0, "{}", removed.stderr);
    std::fs::remove_dir_all(&third).expect("removed");
    let token = crate::support::run(&api, &["cluster", "token", "create"]).stdout;
    let config = data.join("n3/node.toml");
    let joined = crate::support::run(
        &api,
        &[
            "cluster",
            "join",
            "--token",
            token.trim(),
            "--peer",
            &join,
            "--config",
            config.to_str().expect("a path"),
        ],
    );
    assert_eq!(joined.code, 0, "{}", joined.stderr);
    dev.stop();
    let dev = Dev::try_start(&data, 3, base, &["--empty"]).expect("all three");
    assert!(dev.heard().contains("ready 3 nodes"), "{}", dev.heard());
    let status = dev.json(&["cluster", "status"]);
    let ids: Vec<_> = status["nodes"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|node| node["id"].as_u64())
        .collect();
    assert_eq!(ids, [Some(1), Some(2), Some(4)], "{status}");
    dev.stop();
}

/// What it says to do makes a member of a node that left, which is started then and not before.
#[test]
fn a_node_that_left_is_started_again_when_it_is_admitted_anew() {
    let _alone = alone();
    let dir = tempfile::tempdir().expect("a directory");
    let dev = Dev::start(&dir.path().join("it's a dir"), 3, &["--empty"]);
    let left = crate::support::run(&dev.api(3).to_string(), &["cluster", "leave"]);
    assert_eq!(left.code, 0, "{}", left.stderr);
    assert!(
        dev.wait_for("node 3 has left the cluster"),
        "{}",
        dev.heard()
    );
    assert!(dev.wait_for("cluster join"), "{}", dev.heard());
    let heard = dev.heard();
    let (before, commands) = heard
        .split_once("node 3 has left")
        .expect("it was waited for");
    assert!(!before.contains("node 3 is started again"), "{heard}");
    let commands: Vec<&str> = commands.lines().skip(1).collect();
    let program = std::path::Path::new(crate::support::PONTOON);
    let programs = program.parent().expect("a directory").display();
    let path = std::env::var("PATH").expect("a search path");
    let ended = std::process::Command::new("sh")
        .args(["-ec", &commands.join("\n")])
        .env("PATH", format!("{programs}:{path}"))
        .output()
        .expect("a shell");
    assert!(ended.status.success(), "{commands:?}: {ended:?}");
    assert!(dev.wait_for("node 3 is started again"), "{}", dev.heard());
    eventually("the new member", || {
        let status = dev.json(&["cluster", "status"]);
        let nodes = status["nodes"].as_array()?;
        let ids: Vec<_> = nodes.iter().map(|node| node["id"].as_u64()).collect();
        (ids == [Some(1), Some(2), Some(4)]).then_some(())
    });
    dev.stop();
}

/// It ran, and serves nothing any more: nobody else ends it, and its data is in the way.
#[test]
fn a_running_node_that_is_removed_is_ended_and_keeps_no_start_from_succeeding() {
    let _alone = alone();
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("d");
    let dev = Dev::start(&data, 3, &["--empty"]);
    let (base, third) = (dev.base, dev.node_pid(3));
    let removed = crate::support::run(&dev.api(1).to_string(), &["cluster", "remove", "n3"]);
    assert_eq!(removed.code, 0, "{}", removed.stderr);
    let told = "node 3 has left the cluster, or was removed from it";
    assert!(dev.wait_for(told), "{}", dev.heard());
    assert!(dev.wait_for("cluster join"), "{}", dev.heard());
    assert!(!is_alive(third));
    assert!(!dev.heard().contains("started again, process"));
    dev.stop();

    // As an earlier release left it, or a `dev` that was killed at that moment.
    let identity = data.join("n3/data/identity.toml");
    std::fs::rename(identity.with_extension("left.toml"), &identity).expect("put back");
    for waits_for_it in [true, false] {
        let dev = Dev::try_start(&data, 3, base, &["--empty"]).expect("two are enough");
        if waits_for_it && !dev.heard().contains(told) {
            assert!(dev.wait_for(told), "{}", dev.heard());
        }
        assert!(
            dev.heard().contains("ready 2 of 3 nodes"),
            "{}",
            dev.heard()
        );
        assert!(dev.heard().contains(told), "{}", dev.heard());
        dev.stop();
    }
}

/// With fewer than a majority nothing could be changed: it says what is wrong, and ends.
#[test]
fn a_minority_of_sound_nodes_does_not_start() {
    let _alone = alone();
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("d");
    let dev = Dev::start(&data, 3, &["--empty"]);
    let base = dev.base;
    dev.stop();
    for node in 2..=3 {
        let identity = data.join(format!("n{node}/data/identity.toml"));
        std::fs::write(identity, "version = 1\n").expect("written");
    }
    assert!(Dev::try_start(&data, 3, base, &["--empty"]).is_none());
}
