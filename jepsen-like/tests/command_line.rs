//! The command line as scripts see it: exit codes, errors in JSON, and readers that go away. Needs neither root nor a lab.

use std::{
    fs::File,
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};

fn jepsen_like(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_jepsen-like"));
    command
        .args(arguments)
        .stdin(Stdio::null())
        .env_remove("PONTOON_BIN");
    command
}

/// What nobody reads.
fn closed() -> Stdio {
    let (_, writer) = std::io::pipe().unwrap();
    writer.into()
}

fn full() -> Stdio {
    File::options()
        .write(true)
        .open("/dev/full")
        .unwrap()
        .into()
}

fn text(octets: &[u8]) -> &str {
    std::str::from_utf8(octets).unwrap()
}

/// The only thing on stderr.
fn error_of(output: &Output) -> Value {
    let said = text(&output.stderr);
    serde_json::from_str(said).unwrap_or_else(|_| panic!("not one object: {said:?}"))
}

/// Histories of a register: one that holds, and one that does not.
fn registers(directory: &Path) -> [String; 2] {
    [("good", "1"), ("bad", "2")].map(|(name, seen)| {
        let events = json!([
            [0, "invoke", "write", "1"],
            [0, "ok", "write", "1"],
            [1, "invoke", "read", "nil"],
            [1, "ok", "read", seen],
        ]);
        let file = directory.join(name);
        let line = json!({"id": name, "events": events}).to_string() + "\n";
        std::fs::write(&file, line.repeat(3)).unwrap();
        file.to_str().unwrap().to_owned()
    })
}

#[test]
fn whoever_stops_reading_ends_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let [good, bad] = registers(directory.path());
    for (arguments, code) in [
        (&["list"][..], 0),
        (&["list", "-o", "json"], 0),
        (&["--help"], 0),
        (&["run", "--help"], 0),
        (&["check", &good], 0),
        (&["check", &good, "-o", "json"], 0),
        (&["check", &bad], 1),
        (&["check", &bad, &good, "-o", "json"], 1),
    ] {
        let output = jepsen_like(arguments).stdout(closed()).output().unwrap();
        let found = (output.status.code(), text(&output.stderr));
        assert_eq!(found, (Some(code), ""), "{arguments:?}");
    }
    for (arguments, code) in [
        (&["check", "/absent"][..], 2),
        (&["check", "/absent", "-o", "json"], 2),
        (&["run", "--nodes", "4", "-o", "json"], 2),
        (&["self-test", "--program", "/absent"], 2),
        (&["run", "--nemesis", "none"], 3),
        (&["failover"], 3),
        (&["clean"], 3),
    ] {
        let mut command = jepsen_like(arguments);
        command.env("PATH", "/absent").env("RUST_LOG", "trace");
        let output = command.stdout(closed()).stderr(closed()).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
    }
}

#[test]
fn results_that_cannot_be_written_are_an_error_and_a_violation_stays_one() {
    let directory = tempfile::tempdir().unwrap();
    let [good, bad] = registers(directory.path());
    for (arguments, code) in [
        (&["list", "-o", "json"][..], 3),
        (&["check", &good, "-o", "json"], 3),
        (&["check", &bad, "-o", "json"], 1),
    ] {
        let output = jepsen_like(arguments).stdout(full()).output().unwrap();
        let error = error_of(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        assert_eq!(error["object"], "standard output");
        assert_eq!(error["code"], "unwritten");
    }
}

#[test]
fn every_error_before_a_run_is_one_object_in_json() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (taken, new, file) = (at("taken"), at("new"), at("file"));
    std::fs::write(&file, "").unwrap();
    std::fs::create_dir(&taken).unwrap();
    std::fs::write(at("taken/history.jsonl"), "").unwrap();
    let head = json!({"entry": "run", "format": 1, "nodes": ["n1", "n2"], "duration_ms": 1000});
    std::fs::write(at("two.jsonl"), head.to_string() + "\n").unwrap();
    let head =
        json!({"entry": "run", "format": 1, "nodes": ["n1", "n2", "n3"], "duration_ms": 1000});
    std::fs::write(at("run.jsonl"), head.to_string() + "\n").unwrap();
    let run = at("run.jsonl");
    let [good, _] = registers(directory.path());
    let two = at("two.jsonl");
    let us = env!("CARGO_BIN_EXE_jepsen-like");
    // Nothing is found in the PATH, so that no lab can be made, whoever runs this.
    for (arguments, program, exit, code, object) in [
        (
            &["run", "--nodes", "4"][..],
            None,
            2,
            "usage",
            "command line",
        ),
        (
            &["run", "--nemesis", "kil"],
            None,
            2,
            "usage",
            "command line",
        ),
        (
            &["run", "--workload", "none"],
            None,
            2,
            "usage",
            "command line",
        ),
        (&["flood"], None, 2, "usage", "command line"),
        (
            &["run", "--time", "1", "--seed", "7", "--out", &new],
            None,
            2,
            "usage",
            "--time",
        ),
        (
            &["run", "--nemesis", "none", "--out", &taken],
            None,
            2,
            "usage",
            "--out",
        ),
        (
            &["run", "--nemesis", "none", "--out", &file],
            None,
            2,
            "usage",
            "--out",
        ),
        (&["replay", &run, "--out", &file], None, 2, "usage", "--out"),
        (&["self-test", "--out", &file], None, 2, "usage", "--out"),
        (
            &["run", "--nemesis", "none", "--out", &new],
            None,
            3,
            "unsupported",
            "laboratory",
        ),
        (
            &["run", "--nemesis", "none", "--out", &new],
            Some("/absent/pontoon"),
            2,
            "usage",
            "PONTOON_BIN",
        ),
        (
            &["run", "--nemesis", "none", "--out", &new],
            Some("/"),
            2,
            "usage",
            "PONTOON_BIN",
        ),
        (
            &["run", "--nemesis", "none", "--out", &new],
            Some("/etc/passwd"),
            2,
            "usage",
            "PONTOON_BIN",
        ),
        (
            &["run", "--nemesis", "none", "--out", &new],
            Some(us),
            2,
            "usage",
            "PONTOON_BIN",
        ),
        (
            &["failover"],
            Some("/absent/pontoon"),
            2,
            "usage",
            "PONTOON_BIN",
        ),
        (&["failover"], None, 3, "unsupported", "laboratory"),
        (
            &["lab", "up"],
            Some("/absent/pontoon"),
            2,
            "usage",
            "PONTOON_BIN",
        ),
        (&["lab", "up"], None, 3, "unsupported", "laboratory"),
        (&["clean"], None, 3, "laboratory", "laboratory"),
        (&["replay", "/absent"], None, 2, "unreadable", "/absent"),
        (&["replay", &good], None, 2, "unreadable", &good),
        (&["replay", &two], None, 2, "usage", "history"),
        (&["check", "/absent"], None, 2, "unreadable", "/absent"),
        (&["check", "-"], None, 2, "unreadable", "standard input"),
        (
            &["self-test", "--program", "/absent"],
            None,
            2,
            "usage",
            "--program",
        ),
        (
            &["self-test", "--program", us],
            None,
            2,
            "usage",
            "--program",
        ),
        (
            &["self-test", "--defect", "none"],
            None,
            2,
            "usage",
            "command line",
        ),
        (&["self-test"], None, 3, "unsupported", "laboratory"),
    ] {
        let asked = |json: &[&str]| {
            let mut command = jepsen_like(&[arguments, json].concat());
            command.env("PATH", "/absent");
            if let Some(program) = program {
                command.env("PONTOON_BIN", program);
            }
            command.output().unwrap()
        };
        let output = asked(&["-o", "json"]);
        let error = error_of(&output);
        assert_eq!(output.status.code(), Some(exit), "{arguments:?}: {error}");
        assert_eq!(text(&output.stdout), "", "{arguments:?}");
        assert_eq!(error["code"], code, "{arguments:?}: {error}");
        assert_eq!(error["object"], object, "{arguments:?}: {error}");
        let fields = error.as_object().unwrap();
        assert_eq!(fields.len(), 4, "{error}");
        let has_words = |field: &Value| field.as_str().is_some_and(|words| !words.is_empty());
        assert!(fields.values().all(has_words), "{error}");

        let output = asked(&[]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(exit), "{arguments:?}: {said}");
        let named = format!("jepsen-like: {object}");
        assert!(
            object == "command line" || said.starts_with(&named),
            "{said}"
        );
        assert!(
            !arguments.contains(&file.as_str()) || said.contains(&file),
            "{said}"
        );
    }
    assert!(!Path::new(&new).exists(), "nothing was begun");
}

#[test]
fn a_program_that_is_no_pontoon_is_named_with_what_to_do() {
    let mut command = jepsen_like(&["run", "--nemesis", "none"]);
    command.env("PONTOON_BIN", "/absent/pontoon");
    let output = command.output().unwrap();
    assert_eq!(
        text(&output.stderr),
        "jepsen-like: PONTOON_BIN: /absent/pontoon does not exist\n\
         hint: name a pontoon program by its path; or unset PONTOON_BIN: the program of this source is built then\n"
    );
    let output = jepsen_like(&["self-test", "--program", "/absent"])
        .output()
        .unwrap();
    let said = text(&output.stderr);
    assert!(
        said.starts_with("jepsen-like: --program: /absent does not exist\n"),
        "{said}"
    );
    assert!(!said.contains("NOT CAUGHT") && output.stdout.is_empty());
}

#[test]
fn a_history_that_names_what_there_is_not_is_not_judged() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("history.jsonl");
    let head = json!({"entry": "run", "format": 1, "nodes": ["n1"], "workloads": ["set", "flood"], "nemeses": ["melt"]});
    let end = json!({"entry": "end", "at": 60});
    std::fs::write(&file, format!("{head}\n{end}\n")).unwrap();
    for command in ["check", "replay"] {
        let output = jepsen_like(&[command, "-o", "json"])
            .arg(&file)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{command}");
        let error = error_of(&output);
        assert_eq!(error["code"], "unreadable");
        let problem = error["problem"].as_str().unwrap();
        assert!(
            problem.contains("`flood`") && problem.contains("`melt`"),
            "{problem}"
        );
        assert!(!problem.contains("`set`"), "{problem}");
    }
}

#[test]
fn a_byte_order_mark_before_a_history_is_skipped() {
    let directory = tempfile::tempdir().unwrap();
    let [good, bad] = registers(directory.path());
    for (file, code) in [(good, 0), (bad, 1)] {
        let mut marked = b"\xef\xbb\xbf".to_vec();
        marked.extend(std::fs::read(&file).unwrap());
        let packed = File::create(file.clone() + ".gz").unwrap();
        let mut packed = flate2::write::GzEncoder::new(packed, flate2::Compression::fast());
        packed.write_all(&marked).unwrap();
        packed.finish().unwrap();
        std::fs::write(&file, marked).unwrap();
        for file in [file.clone(), file + ".gz"] {
            let output = jepsen_like(&["check", "-o", "json", &file])
                .output()
                .unwrap();
            assert_eq!(output.status.code(), Some(code), "{file}");
            assert_eq!(text(&output.stdout).lines().count(), 3);
            assert_eq!(text(&output.stderr), "");
        }
    }
}
