//! Runs the operator's command when a VIP is claimed or released.
//!
//! On a thread of its own, one run after another, in the order of the events: the driver never waits for it. A thousand VIPs are claimed
//! within one moment, and a run takes milliseconds: events wait here (`waiting`). A run that takes longer than allowed is killed with
//! everything that it started.

mod waiting;

use std::{
    io,
    net::IpAddr,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use waiting::Waiting;

use crate::model::label::Label;

/// Events that wait for their run: a release and a claim of as many VIPs as a cluster can have.
const QUEUE: usize = 2_000;
/// Between looks at a running command.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The command that is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotifyCommand {
    /// An executable file; it gets no arguments.
    pub path: PathBuf,
    /// After this it is killed.
    pub timeout: Duration,
}

/// What became of a VIP on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Claim,
    Release,
}

/// What a run is told, in its environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub turn: Turn,
    pub address: IpAddr,
    pub interface: Label,
    pub device: Option<String>,
    pub term: u64,
}

impl Notice {
    /// The environment variables of a run, beside the node's own.
    fn environment(&self) -> [(&'static str, String); 5] {
        let event = match self.turn {
            Turn::Claim => "claim",
            Turn::Release => "release",
        };
        [
            ("PONTOON_EVENT", event.to_owned()),
            ("PONTOON_VIP", self.address.to_string()),
            ("PONTOON_INTERFACE", self.interface.to_string()),
            ("PONTOON_DEVICE", self.device.clone().unwrap_or_default()),
            ("PONTOON_TERM", self.term.to_string()),
        ]
    }
}

/// Takes notices. When it is dropped, those that wait are still run.
#[derive(Debug)]
pub struct Notifier {
    queue: SyncSender<Notice>,
}

impl Notifier {
    /// The token is cancelled when the notifier was dropped and its last run has ended.
    pub fn start(command: NotifyCommand) -> io::Result<(Self, CancellationToken)> {
        let (queue, notices) = sync_channel(QUEUE);
        let done = CancellationToken::new();
        let end = done.clone().drop_guard();
        std::thread::Builder::new()
            .name("vip-notify".to_owned())
            .spawn(move || {
                let _end = end;
                run_all(&command, &notices);
            })?;
        Ok((Self { queue }, done))
    }

    pub fn send(&self, notice: Notice) {
        match self.queue.try_send(notice) {
            Ok(()) => {}
            Err(TrySendError::Full(notice) | TrySendError::Disconnected(notice)) => {
                not_told(&notice);
            }
        }
    }
}

fn not_told(notice: &Notice) {
    warn!(
        ?notice,
        "{QUEUE} events wait for the notify command: not told"
    );
}

fn run_all(command: &NotifyCommand, notices: &Receiver<Notice>) {
    let mut waiting = Waiting::new(QUEUE);
    loop {
        take_in(notices, &mut waiting);
        let next = waiting.pop().or_else(|| notices.recv().ok());
        let Some(notice) = next else { return };
        let outcome = run(command, &notice, || take_in(notices, &mut waiting));
        if let Err(problem) = outcome {
            warn!(path = %command.path.display(), vip = %notice.address, turn = ?notice.turn, %problem, "notify command");
        }
    }
}

/// Makes room for those that come.
fn take_in(notices: &Receiver<Notice>, waiting: &mut Waiting) {
    for notice in notices.try_iter() {
        if let Err(notice) = waiting.push(notice) {
            not_told(&notice);
        }
    }
}

/// Why a run did not do what it should.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error("cannot be started: {0}")]
    Start(#[source] io::Error),
    #[error("cannot be waited for: {0}")]
    Wait(#[source] io::Error),
    #[error("was killed after {0:?}")]
    TooSlow(Duration),
    #[error("ended with {0}")]
    Failed(std::process::ExitStatus),
}

/// Runs the command once. `meanwhile` is done every `LOOK_EVERY`.
fn run(
    command: &NotifyCommand,
    notice: &Notice,
    mut meanwhile: impl FnMut(),
) -> Result<(), RunError> {
    let mut child = Command::new(&command.path)
        .envs(notice.environment())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0) // so that what it starts can be killed with it
        .spawn()
        .map_err(RunError::Start)?;
    let deadline = Instant::now() + command.timeout;
    loop {
        match child.try_wait().map_err(RunError::Wait)? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(RunError::Failed(status)),
            None if Instant::now() >= deadline => {
                kill_group(&mut child);
                return Err(RunError::TooSlow(command.timeout));
            }
            None => {
                meanwhile();
                std::thread::sleep(LOOK_EVERY);
            }
        }
    }
}

fn kill_group(child: &mut Child) {
    if let Ok(pid) = i32::try_from(child.id()) {
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL); // ended meanwhile: as well
    }
    let _ = child.kill();
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    fn script(dir: &tempfile::TempDir, text: &str) -> PathBuf {
        let path = dir.path().join("notify");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn notice(turn: Turn, term: u64) -> Notice {
        Notice {
            turn,
            address: [192, 0, 2, 10].into(),
            interface: "vip".parse().unwrap(),
            device: Some("eth0".into()),
            term,
        }
    }

    fn finish(notifier: Notifier, done: &CancellationToken) {
        drop(notifier);
        let deadline = Instant::now() + Duration::from_secs(20);
        while !done.is_cancelled() {
            assert!(Instant::now() < deadline, "the notifier ends");
            std::thread::sleep(LOOK_EVERY);
        }
    }

    #[test]
    fn every_turn_is_told_in_order_and_with_its_facts() {
        let dir = tempfile::tempdir().unwrap();
        let told = dir.path().join("told");
        let line = format!(
            r#"echo "$# $PONTOON_EVENT $PONTOON_VIP $PONTOON_INTERFACE $PONTOON_DEVICE $PONTOON_TERM" >> {}"#,
            told.display()
        );
        let path = script(&dir, &line);
        let timeout = Duration::from_secs(5);
        let (notifier, done) = Notifier::start(NotifyCommand { path, timeout }).unwrap();
        notifier.send(notice(Turn::Claim, 3));
        notifier.send(notice(Turn::Release, 4));
        finish(notifier, &done);
        assert_eq!(
            fs::read_to_string(told).unwrap(),
            "0 claim 192.0.2.10 vip eth0 3\n0 release 192.0.2.10 vip eth0 4\n"
        );
    }

    #[test]
    fn a_run_that_hangs_is_killed_with_what_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("pid");
        let path = script(
            &dir,
            &format!("sleep 600 & echo $! > {}; wait", pid_file.display()),
        );
        let command = NotifyCommand {
            path,
            timeout: Duration::from_millis(500),
        };
        let start = Instant::now();
        let outcome = run(&command, &notice(Turn::Claim, 1), || {});
        assert!(matches!(outcome, Err(RunError::TooSlow(_))), "{outcome:?}");
        assert!(start.elapsed() < Duration::from_secs(10));
        let pid = fs::read_to_string(pid_file).unwrap();
        let stat = PathBuf::from(format!("/proc/{}/stat", pid.trim()));
        let gone = || {
            fs::read_to_string(&stat).map_or(true, |text| {
                text.rsplit(") ")
                    .next()
                    .is_some_and(|rest| rest.starts_with('Z'))
            })
        };
        let deadline = Instant::now() + Duration::from_secs(5);
        while !gone() {
            assert!(Instant::now() < deadline, "its child is killed too");
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// All that a cluster can have, within one moment: a run takes far longer.
    #[test]
    fn a_claim_and_a_release_of_every_vip_are_told() {
        let vips = u32::try_from(crate::state::limits::VIPS).unwrap();
        let (sender, notices) = sync_channel(QUEUE);
        let notifier = Notifier { queue: sender };
        let address = |vip: u32| IpAddr::from(std::net::Ipv4Addr::from(0x0a4d_0000 + vip));
        let all = || (0..vips).map(address);
        let expected: Vec<_> = [Turn::Claim, Turn::Release]
            .into_iter()
            .flat_map(|turn| all().map(move |address| (turn, address)))
            .collect();
        for (turn, address) in &expected {
            notifier.send(Notice {
                address: *address,
                ..notice(*turn, 1)
            });
        }
        drop(notifier);
        let mut waiting = Waiting::new(QUEUE);
        take_in(&notices, &mut waiting);
        let told: Vec<_> = std::iter::from_fn(|| waiting.pop()).collect();
        let told: Vec<_> = told.iter().map(|n| (n.turn, n.address)).collect();
        assert_eq!(told, expected);
    }

    #[test]
    fn sending_never_waits_and_failures_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = script(&dir, "sleep 1");
        let timeout = Duration::from_millis(20);
        let (notifier, done) = Notifier::start(NotifyCommand { path, timeout }).unwrap();
        let start = Instant::now();
        for term in 0..1_000 {
            notifier.send(notice(Turn::Claim, term));
        }
        assert!(start.elapsed() < Duration::from_millis(500));
        finish(notifier, &done);

        let run_with = |path| {
            run(
                &NotifyCommand {
                    path,
                    timeout: Duration::from_secs(5),
                },
                &notice(Turn::Claim, 1),
                || {},
            )
        };
        let failed = run_with(script(&dir, "exit 3"));
        assert!(matches!(failed, Err(RunError::Failed(status)) if status.code() == Some(3)));
        let missing = run_with(dir.path().join("absent"));
        assert!(matches!(missing, Err(RunError::Start(_))));
    }
}
