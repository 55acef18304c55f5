//! A short seeded run: every workload, faults of several kinds, every checker.
//!
//! Needs root and nft; says `skipped` without, and fails where `CI=true`.

use std::process::{Command, Output};

use jepsen_like::lab;
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
