//! Ports and addresses that listeners may not have, and what is said of it.

use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    process::{Command, Stdio},
    sync::mpsc,
    thread,
};

use hickory_proto::rr::RecordType;

use crate::support::{Dev, PATIENCE, PONTOON, alone, answers, eventually, run};

#[test]
fn a_listener_never_gets_what_the_node_needs() {
    let _alone = alone();
    let dir = tempfile::tempdir().expect("a directory");
    let dev = Dev::start(&dir.path().join("d"), 3, &[]);
    let port = |offset: u16| (dev.base + offset).to_string();
    let create = |more: &[&str]| {
        let arguments = [&["listener", "create", "steal", "--pool", "web"], more].concat();
        dev.run(&arguments)
    };
    for (more, problem) in [
        (vec!["--port", &port(0)], "DNS has port"),
        (
            vec!["--port", &port(0), "--address", "127.0.53.53"],
            "DNS has port",
        ),
        (
            vec!["--port", "8080", "--address", "8.8.8.8"],
            "8.8.8.8 is no VIP",
        ),
    ] {
        let refused = create(&more);
        assert_eq!(refused.code, 1, "{more:?}: {refused:?}");
        assert!(refused.stderr.contains(problem), "{refused:?}");
    }
    let planned = dir.path().join("site.toml");
    let exported = dev.run(&["export"]).stdout;
    let listener = format!(
        "\n[[listener]]\nname = \"steal\"\nport = {}\npool = \"web\"\n",
        dev.base
    );
    std::fs::write(&planned, exported + &listener).expect("written");
    // What apply refuses, plan shows.
    for command in ["plan", "apply"] {
        let refused = dev.run(&[command, "-f", planned.to_str().expect("a path")]);
        assert_eq!(refused.code, 1, "{refused:?}");
        assert!(refused.stderr.contains("DNS has port"), "{refused:?}");
    }
    // On the node that has the address, and on no other.
    let created = create(&["--port", &port(401), "--address", "127.0.53.2"]);
    assert_eq!(created.code, 0, "{created:?}");
    for node in 1..=3 {
        let probed = run(&dev.api(node).to_string(), &["node", "probe"]);
        assert_eq!(probed.code, 0, "node {node}: {probed:?}");
    }
    for _ in 0..3 {
        assert_eq!(dev.run(&["cluster", "transfer"]).code, 0);
        eventually("DNS on the VIP", || {
            answers(dev.vip_dns(), "www.demo.test.", RecordType::A)
        });
    }
    let warned = dev.run(&["forwarder", "create", "inner.demo.test", "192.0.2.1:53"]);
    assert_eq!(warned.code, 0, "{warned:?}");
    assert!(warned.stderr.contains("is never asked"), "{warned:?}");
    dev.stop();
}

#[test]
fn dev_says_which_node_ended_at_once() {
    let _alone = alone();
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("d");
    // Of three nodes two would do.
    Dev::start(&data, 1, &["--empty"]).stop();
    std::fs::write(data.join("n1/data/identity.toml"), "garbled =").expect("written");
    // Should it not end, it is ended, and has not said this.
    let limit = PATIENCE.as_secs().to_string();
    let ended = Command::new("timeout")
        .args([limit.as_str(), PONTOON, "dev", "--dir"])
        .arg(&data)
        .stdin(Stdio::null())
        .output()
        .expect("`pontoon dev` runs");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(!ended.status.success(), "{said}");
    let log = data.join("n1/log");
    for text in [
        "node 1 ended before it served (exit status: 1)",
        "identity.toml",
        log.to_str().expect("a path"),
    ] {
        assert!(said.contains(text), "{text}: {said}");
    }
    assert!(!said.contains("within 60s"), "{said}");
}

#[test]
fn dev_says_why_it_is_not_ready() {
    let _alone = alone();
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("d");
    let dev = Dev::start(&data, 1, &[]);
    let base = dev.base;
    dev.stop();
    let taken = eventually("the port is free", || {
        TcpListener::bind(("127.0.53.1", base + 400)).ok()
    });
    let mut child = Command::new(PONTOON)
        .args(["dev", "--dir"])
        .arg(&data)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("`pontoon dev` starts");
    let (sender, lines) = mpsc::channel();
    let outputs: [Box<dyn std::io::Read + Send>; 2] = [
        Box::new(child.stdout.take().expect("a pipe")),
        Box::new(child.stderr.take().expect("a pipe")),
    ];
    for output in outputs {
        let sender = sender.clone();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
    }
    let until = |text: &str| {
        std::iter::from_fn(|| lines.recv_timeout(PATIENCE).ok()).find(|line| line.contains(text))
    };
    let said = until("not ready after");
    drop(taken);
    let ready = until("ready 1 node");
    child.kill().expect("it runs");
    child.wait().expect("a child");
    let said = said.expect("it says what it waits for");
    let port = format!("127.0.53.1:{}", base + 400);
    assert!(said.contains("listener") && said.contains(&port), "{said}");
    assert!(ready.is_some(), "ready once the port is free");
}
