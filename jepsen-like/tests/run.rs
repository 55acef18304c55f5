//! A short seeded run: every workload, faults of several kinds, every checker.
//!
//! Needs root and nft; says `skipped` without, and fails where `CI=true`.

use std::{
    fs::File,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output},
    time::Duration,
};

use jepsen_like::{lab, waiting::wait_until};
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::{
        signal::{Signal, killpg},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
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

/// A run without faults in a process group of its own, as a terminal's foreground group. What it complains of goes to a file: a pipe that nobody
/// reads would fill, and hold up the run.
fn quiet_run(workloads: &str, seconds: &str, out: &Path, complained: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_jepsen-like"));
    command
        .args(["run", "--workload", workloads, "--nemesis", "none"])
        .args(["--time", seconds, "--seed", "7", "-o", "json", "--out"])
        .arg(out)
        .process_group(0)
        .stderr(File::create(complained).unwrap());
    command
}

fn available() -> bool {
    if !lab::available() {
        return false;
    }
    let has_nft = Command::new("nft").arg("--version").output().is_ok();
    if !has_nft {
        lab::skip("nft is not installed");
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

/// A program in a process group of its own, as a shell's. Where a test breaks off, the group is killed, and its lab is taken down.
struct Group(Child);

impl Group {
    fn id(&self) -> Pid {
        Pid::from_raw(self.0.id().try_into().unwrap())
    }

    /// It stays to be waited for: until then its id is nobody else's.
    fn has_ended(&self) -> bool {
        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        waitid(Id::Pid(self.id()), look).unwrap() != WaitStatus::StillAlive
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            let _ = killpg(self.id(), Signal::SIGKILL); // ended already: as well
            let _ = self.0.wait();
        }
        let _ = lab::clean(); // what it cannot remove is for the next lab
    }
}

/// Far above what it takes: a test is no benchmark, and CI's machine is busy.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a file says by now.
fn written(file: &Path) -> String {
    std::fs::read_to_string(file).unwrap_or_default()
}

#[test]
fn what_a_test_that_breaks_off_has_started_ends_with_it() {
    let mut command = Command::new("sh");
    command.args(["-c", "sleep 1000 & wait"]).process_group(0);
    let running = Group(command.spawn().unwrap());
    let group = running.id();
    assert!(!running.has_ended());
    drop(running);
    let has_ended = || killpg(group, None) == Err(Errno::ESRCH);
    wait_until("the end of the group", PATIENCE, has_ended);
}

#[test]
fn ctrl_c_ends_a_run_and_no_node_of_it() {
    if !lab::available() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("run");
    let history = out.join("history.jsonl");
    let (said, complained) = (directory.path().join("out"), directory.path().join("err"));
    let mut command = quiet_run("set", "600", &out, &complained);
    command.stdout(File::create(&said).unwrap());
    let mut running = Group(command.spawn().unwrap());
    wait_until("an operation", PATIENCE, || {
        assert!(!running.has_ended(), "{}", written(&complained));
        written(&history).contains("\"outcome\":\"ok\"")
    });
    killpg(running.id(), Signal::SIGINT).unwrap();
    wait_until("the end of the run", PATIENCE, || running.has_ended());
    let status = running.0.wait().unwrap();
    let (text, errors) = (written(&said), written(&complained));
    let document: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}{errors}"));
    // Nothing is violated, and what was not shown is open.
    assert_eq!(document["verdict"], "undecided", "{document:#}");
    assert_eq!(status.code(), Some(4));
    assert!(out.join("report.html").is_file());
    let told = written(&history);
    assert!(told.contains("\"final\":true") && !told.contains("\"entry\":\"notice\""));
}

/// The namespaces of the labs of a process.
fn namespaces_of(process: Pid) -> Vec<String> {
    let listed = Command::new("ip").args(["netns", "list"]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let ours = format!("pj{process}x");
    let names = listed.lines().filter(|line| line.starts_with(&ours));
    names.map(str::to_owned).collect()
}

#[test]
fn a_run_that_nobody_reads_is_done_to_its_end() {
    if !lab::available() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("run");
    let complained = directory.path().join("err");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = quiet_run("set", "1", &out, &complained);
    command.stdout(writer);
    let mut running = Group(command.spawn().unwrap());
    drop(command);
    wait_until("the end of the run", PATIENCE, || running.has_ended());
    let status = running.0.wait().unwrap();
    let errors = written(&complained);
    // A run so short leaves things open.
    assert!(matches!(status.code(), Some(0 | 4)), "{status}: {errors}");
    assert_eq!(errors, "");
    assert!(out.join("report.html").is_file());
    assert_eq!(namespaces_of(running.id()), [""; 0]);
}

/// A disk of its own, in memory; gone with this.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf, size: &str) -> Self {
        std::fs::create_dir(&at).unwrap();
        let options = format!("size={size}");
        let flags = MsFlags::empty();
        mount(
            Some("tmpfs"),
            &at,
            Some("tmpfs"),
            flags,
            Some(options.as_str()),
        )
        .unwrap();
        Self(at)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH); // the directory's removal fails then, and says so
    }
}

#[test]
fn a_disk_that_fills_up_ends_a_run_with_a_verdict_and_names_the_file() {
    if !lab::available() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    // The witness writes some 50 KiB a second.
    let disk = SmallDisk::mount(directory.path().join("disk"), "1m");
    let out = disk.0.join("run");
    let (said, complained) = (directory.path().join("out"), directory.path().join("err"));
    let mut command = quiet_run("set,vip", "600", &out, &complained);
    command.stdout(File::create(&said).unwrap());
    let mut running = Group(command.spawn().unwrap());
    wait_until("the end of the run", PATIENCE, || running.has_ended());
    let status = running.0.wait().unwrap();
    let (text, errors) = (written(&said), written(&complained));
    let document: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}{errors}"));
    assert_eq!(status.code(), Some(3), "{document:#}{errors}");
    assert_eq!(document["verdict"], "undecided", "{document:#}");
    assert!(document["operations"]["ok"].as_u64().unwrap() > 0);
    let error = &document["error"];
    assert_eq!(error["code"], "unwritten");
    let history = out.join("history.jsonl");
    assert_eq!(error["object"], format!("file {}", history.display()));
    assert_eq!(serde_json::from_str::<Value>(&errors).unwrap(), *error);
    assert!(written(&history).ends_with('\n'));
    assert_eq!(namespaces_of(running.id()), [""; 0]);
}

#[test]
fn a_disk_that_is_full_is_found_before_anything_is_started() {
    if !lab::available() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(directory.path().join("disk"), "16k");
    let out = disk.0.join("run");
    let ran = jepsen_like(&[
        "run",
        "--nemesis",
        "none",
        "--time",
        "1",
        "-o",
        "json",
        "--out",
        out.to_str().unwrap(),
    ]);
    assert_eq!(ran.status.code(), Some(3));
    let error: Value = serde_json::from_slice(&ran.stderr).unwrap();
    assert_eq!(error["code"], "unwritten", "{error}");
    assert!(ran.stdout.is_empty());
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
