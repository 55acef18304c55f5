//! `jepsen-like check` on the recorded histories that lie beside the repository, or in `$PONTOON_CASES`, and on files of our own.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use jepsen_like::{
    check,
    checker::{Bounds, Conclusion},
};
use serde_json::{Value, json};

fn check(arguments: &[&str], file: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_jepsen-like"));
    command
        .arg("check")
        .args(arguments)
        .arg(file)
        .output()
        .unwrap()
}

/// The verdicts of `-o json` by id.
fn verdicts(output: &Output) -> BTreeMap<String, String> {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let lines = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .map(|line| {
            let fields: Vec<_> = line.as_object().unwrap().keys().cloned().collect();
            assert_eq!(fields, ["id", "verdict"]);
            (
                line["id"].to_string(),
                line["verdict"].as_str().unwrap().to_owned(),
            )
        })
        .collect()
}

fn shared_cases() -> Option<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let beside = ["../../shared", "../../../shared"].map(|up| here.join(up));
    let named = std::env::var_os("PONTOON_CASES").map(PathBuf::from);
    let found = (named.into_iter().chain(beside))
        .map(|root| root.join("checker-cases/registers.jsonl.gz"))
        .find(|file| file.exists());
    if found.is_none() {
        jepsen_like::lab::skip("no checker-cases in ../shared or PONTOON_CASES");
    }
    found
}

#[test]
fn every_known_verdict_is_reached() {
    let Some(file) = shared_cases() else {
        return;
    };
    let mut text = String::new();
    let packed = std::fs::File::open(&file).unwrap();
    flate2::read::MultiGzDecoder::new(packed)
        .read_to_string(&mut text)
        .unwrap();
    let known: BTreeMap<_, _> = (text.lines())
        .map(|line| {
            let case: Value = serde_json::from_str(line).unwrap();
            let verdict = match case["linearizable"].as_bool().unwrap() {
                true => "linearizable",
                false => "violation",
            };
            (case["id"].to_string(), verdict.to_owned())
        })
        .collect();
    assert!(known.len() > 50);
    let output = check(&["-o", "json"], &file);
    assert_eq!(verdicts(&output), known);
    assert_eq!(output.status.code(), Some(1), "some of them are violations");

    let explained = String::from_utf8(check(&[], &file).stdout).unwrap();
    let violations = known
        .values()
        .filter(|verdict| *verdict == "violation")
        .count();
    assert_eq!(explained.matches("no place for ").count(), violations);
}

/// A compare-and-set that fails although the register holds what it expects.
fn refused(id: &str) -> String {
    let events = json!([
        [0, "invoke", "write", "1"],
        [0, "ok", "write", "1"],
        [0, "invoke", "cas", "[1 3]"],
        [0, "fail", "cas", "[1 3]"],
        [1, "invoke", "read", "nil"],
        [1, "ok", "read", "1"],
    ]);
    json!({"id": id, "events": events}).to_string() + "\n"
}

fn register(id: &str, seen: &str) -> String {
    let events = json!([
        [0, "invoke", "write", "1"],
        [0, "ok", "write", "1"],
        [1, "invoke", "read", "nil"],
        [1, "ok", "read", seen],
    ]);
    json!({"id": id, "events": events}).to_string() + "\n"
}

/// The history of a run with a read that is ok and brought no value.
fn unanswered() -> String {
    let read = json!({"do": "read", "key": "a"});
    let lines = [
        json!({"entry": "run", "format": 1, "seed": 7, "nodes": ["n1"], "workloads": ["register"]}),
        json!({"entry": "invoke", "id": 1, "process": 0, "node": "n1", "at": 10, "call": read}),
        json!({"entry": "complete", "id": 1, "at": 20, "outcome": "ok"}),
        json!({"entry": "end", "at": 60}),
    ];
    lines.map(|line| line.to_string() + "\n").concat()
}

#[test]
fn the_exit_code_tells_violations_from_what_is_not_known() {
    let directory = tempfile::tempdir().unwrap();
    let good = register("good", "1");
    let bad = register("bad", "2");
    for (name, text, code, verdict) in [
        ("good", good.clone(), 0, vec!["linearizable"]),
        (
            "bad",
            good.clone() + &bad,
            1,
            vec!["linearizable", "violation"],
        ),
        ("unreadable", good.clone() + "{}\n", 2, vec!["linearizable"]),
        (
            "bad and unreadable",
            format!("{{}}\n{bad}"),
            1,
            vec!["violation"],
        ),
        ("refused", refused("refused"), 1, vec!["violation"]),
        ("empty", String::new(), 2, vec![]),
        (
            "unreadable for a reply that is missing",
            unanswered(),
            2,
            vec![],
        ),
        (
            "unreadable without a head",
            json!({"entry": "end", "at": 60}).to_string() + "\n",
            2,
            vec![],
        ),
    ] {
        let file = directory.path().join(name);
        std::fs::write(&file, text).unwrap();
        let output = check(&["-o", "json"], &file);
        assert_eq!(output.status.code(), Some(code), "{name}");
        let mut found: Vec<_> = verdicts(&output).into_values().collect();
        found.sort();
        assert_eq!(found, verdict, "{name}");
        let has_error = serde_json::from_slice::<Value>(&output.stderr)
            .is_ok_and(|error| error["code"] == "unreadable");
        assert_eq!(
            has_error,
            name.contains("unreadable") || name == "empty",
            "{name}"
        );
    }
    let absent = check(&[], &directory.path().join("absent"));
    assert_eq!(absent.status.code(), Some(2));
}

#[test]
fn a_search_beyond_its_limits_is_undecided() {
    let file = tempfile::NamedTempFile::new().unwrap();
    // 60 swaps at once, each of known outcome: to find the order takes more than one configuration.
    let mut events = vec![];
    for process in (0..60_u32).rev() {
        let value = format!("[{process} {}]", process + 1);
        events.push(json!([process, "invoke", "cas", value]));
    }
    events.push(json!([99, "invoke", "write", "0"]));
    for process in 0..60_u32 {
        events.push(json!([
            process,
            "ok",
            "cas",
            format!("[{process} {}]", process + 1)
        ]));
    }
    let line = json!({"id": 1, "events": events}).to_string();
    file.as_file().write_all(line.as_bytes()).unwrap();
    assert_eq!(check(&[], file.path()).status.code(), Some(0));
    let output = check(&["-o", "json", "--configurations", "1"], file.path());
    assert_eq!(output.status.code(), Some(4));
    assert_eq!(verdicts(&output)["1"], "undecided");
}

#[test]
fn the_history_of_a_run_is_judged_by_every_checker() {
    let directory = tempfile::tempdir().unwrap();
    let call = json!({"do": "add", "set": "s", "element": 4});
    let last = json!({"do": "elements", "set": "s", "local": true, "final": true});
    let usage = |at: u64| json!({"entry": "usage", "at": at, "node": "n1", "pid": 7, "descriptors": 40, "resident_kib": 9000});
    let history = |workloads: &[&str], seen: Value| {
        let vips = ["10.77.0.100", "fd77::64"];
        let lines = [
            json!({"entry": "run", "format": 1, "seed": 7, "nodes": ["n1"], "vips": vips, "workloads": workloads}),
            json!({"entry": "invoke", "id": 1, "process": 0, "at": 10, "call": call}),
            json!({"entry": "complete", "id": 1, "at": 20, "outcome": "ok", "reply": {"committed": {"revision": 3}}}),
            json!({"entry": "invoke", "id": 2, "process": 0, "node": "n1", "at": 30, "call": last}),
            json!({"entry": "complete", "id": 2, "at": 40, "outcome": "ok", "reply": {"elements": seen}}),
            json!({"entry": "hash", "at": 50, "node": "n1", "index": 9, "hash": "aa", "final": true}),
            json!({"entry": "leader", "at": 1, "node": "n1", "term": 1}),
            usage(10),
            usage(20),
            usage(30),
            usage(40),
            json!({"entry": "end", "at": 60}),
        ];
        lines.map(|line| line.to_string() + "\n").concat()
    };
    // What does not hold; of what the head names and nobody did nothing can be said, and the run has failed.
    let silent = [
        "run: VIOLATED",
        "dns answers: UNDECIDED",
        "serials: UNDECIDED",
        "one responder: UNDECIDED",
        "sessions: UNDECIDED",
    ];
    let unnamed = [
        "linearizability: UNDECIDED",
        "append: UNDECIDED",
        "dns answers: UNDECIDED",
        "serials: UNDECIDED",
        "visibility: UNDECIDED",
        "one responder: UNDECIDED",
        "sessions: UNDECIDED",
    ];
    for (name, workloads, seen, code, wrong) in [
        ("good", &["set"][..], json!([4]), 0, &[][..]),
        ("lost", &["set"], json!([]), 1, &["set: VIOLATED"]),
        (
            "silent",
            &["set", "vip", "sessions"],
            json!([4]),
            1,
            &silent,
        ),
        ("unnamed", &[], json!([4]), 4, &unnamed),
    ] {
        let file = directory.path().join(name);
        std::fs::write(&file, history(workloads, seen)).unwrap();
        let output = check(&[], &file);
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(code), "{name}: {text}");
        for verdict in wrong {
            assert!(text.contains(verdict), "{name}: {verdict}: {text}");
        }
        // Without a fault no hand-over was owed, and that is said.
        assert!(text.contains("hand-over: not exercised (0 "), "{text}");
        let good = [": holds (", ": not exercised ("].map(|word| text.matches(word).count());
        assert_eq!(
            good.iter().sum::<usize>(),
            jepsen_like::checker::ABOUT.len() - wrong.len(),
            "{name}: {text}"
        );
    }
}

/// The lines of a run in which all holds: a session is broken and a stranger answers, and the faults that did it are written when they are
/// healed; a node lags behind, and catches up in time.
fn sound() -> Vec<String> {
    const MS: u64 = 1_000_000;
    let session = |id: u64, node: &str, through_vip: bool, from: u64, to: u64, end: Value| {
        json!({"entry": "session", "id": id, "node": node, "through_vip": through_vip, "opened": from * MS, "ended": to * MS,
            "end": end, "longest_gap_us": 100})
    };
    let fault = |kind: &str, node: &str, from: u64, to: u64| {
        json!({"entry": "fault", "kind": kind, "nodes": [node], "began": from * MS, "healed": to * MS, "hit_leader": kind == "kill",
            "skipped": null})
    };
    let answer = |vip: &str, by: Value, at: u64, kind: &str| json!({"entry": "answer", "vip": vip, "by": by, "earliest": at * MS, "latest": at * MS, "kind": kind});
    let hash = |node: &str, at: u64, index: u64, last: bool| {
        let hash = format!("{index:02x}");
        json!({"entry": "hash", "at": at * MS, "node": node, "index": index, "hash": hash, "final": last})
    };
    let invoke = |id: u64, at: u64, call: Value| json!({"entry": "invoke", "id": id, "process": 0, "node": "n1", "at": at * MS, "call": call});
    let complete = |id: u64, at: u64, reply: Value| json!({"entry": "complete", "id": id, "at": at * MS, "outcome": "ok", "reply": reply});
    let usage = |at: u64| json!({"entry": "usage", "at": at * MS, "node": "n1", "pid": 7, "descriptors": 40, "resident_kib": 9000});
    let write = || json!({"do": "write", "key": "r", "value": "1"});
    let read = || json!({"do": "read", "key": "r"});
    let (four, six) = ("10.77.0.100", "fd77::64");
    let (node, stranger) = (|| json!({"node": "n1"}), json!({"stranger": "02:00"}));
    let closed = || json!("closed");
    let lines = [
        json!({"entry": "run", "format": 1, "seed": 7, "nodes": ["n1", "n2"], "vips": [four, six], "workloads": ["register", "sessions"],
            "nemeses": ["kill", "address-stolen"], "recovery_bound_ms": 1000}),
        invoke(1, 10, write()),
        complete(1, 20, json!({"committed": {"revision": 3}})),
        answer(four, node(), 30, "arp"),
        answer(six, node(), 30, "nd"),
        usage(100),
        hash("n2", 900, 40, false),
        session(1, "n2", false, 500, 1500, json!({"broken": "reset"})),
        fault("kill", "n2", 1000, 2000),
        usage(2100),
        hash("n1", 2500, 50, false),
        answer(four, stranger, 3000, "arp"),
        hash("n2", 3200, 40, false),
        fault("address-stolen", "n1", 2900, 3500),
        usage(3550),
        invoke(2, 3600, read()),
        complete(2, 3610, json!({"value": "1"})),
        invoke(3, 3600, write()),
        complete(3, 3620, json!({"committed": {"revision": 60}})),
        answer(four, node(), 3700, "arp"),
        answer(six, node(), 3700, "nd"),
        hash("n2", 4000, 60, false),
        json!({"entry": "leader", "at": 5 * MS, "node": "n1", "term": 1}),
        usage(4100),
        session(2, "n1", false, 3700, 4800, closed()),
        session(3, "n2", false, 3700, 4800, closed()),
        session(4, "n1", true, 3700, 4800, closed()),
        hash("n1", 4900, 60, true),
        hash("n2", 4900, 60, true),
        json!({"entry": "end", "at": 5000 * MS}),
    ];
    lines.map(|line| line.to_string() + "\n").into()
}

#[test]
fn every_beginning_of_a_sound_history_is_undecided() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("history.jsonl");
    let lines = sound();
    let options = check::Options {
        time_limit: Duration::from_secs(60),
        configurations: 1000,
        bounds: Bounds::default(),
    };
    for count in 1..=lines.len() {
        std::fs::write(&file, lines[..count].concat()).unwrap();
        let expected = match count == lines.len() {
            true => Conclusion::Holds,
            false => Conclusion::Undecided,
        };
        let mut judged = vec![];
        check::check(std::slice::from_ref(&file), &options, |found| {
            judged.push(found.unwrap().clone());
        });
        let conclusions: Vec<_> = judged.iter().map(|one| one.conclusion).collect();
        assert_eq!(conclusions, [expected], "{count} lines: {judged:?}");
    }
    // What is proven by what is there stays a violation, and so does the whole where a fault is absent.
    let lost = json!({"entry": "complete", "id": 2, "at": 3_610_000_000_u64, "outcome": "ok", "reply": {"value": "9"}});
    let mut wrong = lines.clone();
    wrong[16] = lost.to_string() + "\n";
    let mut unexplained = lines.clone();
    unexplained.remove(13);
    assert!(lines[13].contains("address-stolen"));
    for text in [wrong[..20].concat(), unexplained.concat()] {
        std::fs::write(&file, text).unwrap();
        assert_eq!(check(&[], &file).status.code(), Some(1));
    }
}

#[test]
fn a_history_that_does_not_say_who_led_does_not_pass() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("history.jsonl");
    let is_of_leader = |line: &String| line.contains(r#""entry":"leader""#);
    let mut lines = sound();
    lines.retain(|line| !is_of_leader(line));
    assert_eq!(lines.len() + 1, sound().len());
    std::fs::write(&file, lines.concat()).unwrap();
    let output = check(&[], &file);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(4), "{text}");
    for checker in ["run", "leaders"] {
        let told = text
            .lines()
            .find(|line| line.starts_with(&format!("  {checker}: ")));
        let told = told.unwrap_or_default();
        let is_told = told.contains("UNDECIDED") && told.contains(r#"no line "entry": "leader""#);
        assert!(is_told, "{checker}: {text}");
    }
}

#[test]
fn a_fault_that_its_run_cannot_have_had_makes_its_history_unreadable() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("history.jsonl");
    // The kill of n2 from 1 s to 2 s, in the ninth line of a run of 5 s.
    for (from, to) in [
        (r#""healed":2000000000"#, r#""healed":900000000"#),
        (r#""healed":2000000000"#, r#""healed":9000000000"#),
        (r#""began":1000000000"#, r#""began":-1"#),
        (r#""nodes":["n2"]"#, r#""nodes":["n7"]"#),
    ] {
        let mut lines = sound();
        let sound = lines[8].clone();
        lines[8] = sound.replace(from, to);
        assert_ne!(lines[8], sound);
        std::fs::write(&file, lines.concat()).unwrap();
        let output = check(&["-o", "json"], &file);
        assert_eq!(output.status.code(), Some(2), "{to}");
        let error: Value = serde_json::from_slice(&output.stderr).unwrap();
        assert_eq!(error["code"], "unreadable", "{error}");
        assert_eq!(error["object"], format!("{}:9", file.display()), "{error}");
    }
}

#[test]
fn a_list_is_read_as_far_as_its_reader_likes() {
    let list = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_jepsen-like"));
        command.arg("list").args(arguments);
        command
    };
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = list(&[]).stdout(writer).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), said.as_str()), (Some(0), ""));

    let json = list(&["-o", "json"]).output().unwrap().stdout;
    let listed: Value = serde_json::from_slice(&json).unwrap();
    let text = String::from_utf8(list(&[]).output().unwrap().stdout).unwrap();
    let mut count = 4; // the titles
    for kind in ["workloads", "faults", "checkers", "defects"] {
        for named in listed[kind].as_array().unwrap() {
            let name = named["name"].as_str().unwrap();
            assert!(text.contains(&format!("\n  {name}")), "{name}");
            assert!(text.contains(named["about"].as_str().unwrap()), "{name}");
            count += 1;
        }
    }
    assert_eq!(text.lines().count(), count);
}
