//! A short seeded run: every workload, faults of several kinds, every checker.
//!
//! Needs root and nft; says `skipped` without, and fails where `CI=true`.

use std::{
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use jepsen_like::lab;
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use serde_json::Value;

/// Of each family one that is quick: frames are dropped, rules are flushed, a disk stalls, an address is taken.
const FAULTS: &str =
    "transfer,partition-halves,partition-one-way,loss,flush,slow-disk,address-stolen";

fn jepsen_like(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_jepsen-like"));
    command.args(arguments).output().unwrap()
}

fn available() -> bool {
    if !lab::available() {
        return false;
    }
    let has_nft = Command::new("nft").arg("--version").output().is_ok();
    assert!(
        has_nft || std::env::var("CI").as_deref() != Ok("true"),
        "this test must not be skipped in CI: nft is not installed"
    );
    if !has_nft {
        lab::say_skipped("nft is not installed");
    }
    has_nft
}

#[test]
fn a_short_mix_of_faults_breaks_no_promise() {
    if !available() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("run");
    let ran = jepsen_like(&[
        "run",
        "--nodes",
        "3",
        "--workload",
        "all",
        "--nemesis",
        FAULTS,
        "--time",
        "20",
        "--seed",
        "7",
        "--recovery-bound",
        "30",
        "-o",
        "json",
        "--out",
        out.to_str().unwrap(),
    ]);
    let text = String::from_utf8_lossy(&ran.stdout);
    let errors = String::from_utf8_lossy(&ran.stderr);
    let document: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}{errors}"));
    if !ran.status.success() {
        // Kept, to be looked at.
        let kept = directory.keep();
        panic!("seed 7, kept in {}: {document:#}", kept.display());
    }
    assert_eq!(document["verdict"], "holds");
    assert!(document["operations"]["ok"].as_u64().unwrap() > 300);
    assert!(document["leader_hits"].as_u64().unwrap() > 0);
    assert_eq!(document["skipped_faults"], serde_json::json!({}));
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("leads in term") && page.contains("one responder"));

    // The history alone gives the same verdict again.
    let history = out.join("history.jsonl");
    let checked = jepsen_like(&["check", history.to_str().unwrap()]);
    assert_eq!(checked.status.code(), Some(0));
}

/// What a history says by now.
fn written(history: &Path) -> String {
    std::fs::read_to_string(history).unwrap_or_default()
}

#[test]
fn ctrl_c_ends_a_run_and_no_node_of_it() {
    if !lab::available() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("run");
    let history = out.join("history.jsonl");
    let mut command = Command::new(env!("CARGO_BIN_EXE_jepsen-like"));
    command
        .args(["run", "--workload", "set", "--nemesis", "none"])
        .args(["--time", "600", "--seed", "7", "-o", "json", "--out"])
        .arg(&out)
        // As a terminal's foreground group.
        .process_group(0)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut running = command.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    while !written(&history).contains("\"outcome\":\"ok\"") {
        let ended = running.try_wait().unwrap();
        assert!(ended.is_none() && Instant::now() < deadline, "{ended:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    let group = Pid::from_raw(running.id().try_into().unwrap());
    killpg(group, Signal::SIGINT).unwrap();
    let ran = running.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&ran.stdout);
    let errors = String::from_utf8_lossy(&ran.stderr);
    let document: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}{errors}"));
    // Nothing is violated, and what was not shown is open.
    assert_eq!(document["verdict"], "undecided", "{document:#}");
    assert_eq!(ran.status.code(), Some(4));
    assert!(out.join("report.html").is_file());
    let told = written(&history);
    assert!(told.contains("\"final\":true") && !told.contains("\"entry\":\"notice\""));
}

#[test]
fn what_can_be_run_is_listed_and_anything_else_refused() {
    let listed = jepsen_like(&["list"]);
    let text = String::from_utf8(listed.stdout).unwrap();
    for name in ["append", "partition-bridge", "linearizability"] {
        assert!(text.contains(&format!("  {name} ")), "{text}");
    }
    for wrong in [
        ["--workload", "regster"],
        ["--nemesis", "kil"],
        ["--nodes", "4"],
    ] {
        let refused = jepsen_like(&[&["run"], &wrong[..]].concat());
        assert!(!refused.status.success());
    }
    for defect in pontoon::defect::Defect::ALL {
        assert!(text.contains(&format!("  {} ", defect.name())), "{text}");
    }
    let refused = jepsen_like(&["self-test", "--defect", "bare-transfr"]);
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        said.contains("bare-transfr") && said.contains("jepsen-like list"),
        "{said}"
    );
}
