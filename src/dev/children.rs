//! The node processes of a development cluster: started, watched, restarted after they died, ended with `dev`.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::Path,
    process::Stdio,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, getppid},
};
use tokio::process::{Child, Command};

use super::layout::Layout;

/// Pause before a process that died is started again.
pub(super) const RESTART_PAUSE: Duration = Duration::from_secs(1);
/// How long processes may take to stop before they are killed.
pub(super) const STOP_GRACE: Duration = Duration::from_secs(15);

/// One node and its process.
pub(super) struct NodeProcess {
    node: u16,
    child: Child,
}

/// The end of a node's process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub node: u16,
    /// `exit status: 1`, `signal: 9 (SIGKILL)`.
    pub how: String,
    /// It chose to end: started again as it is, it would do so again.
    pub by_itself: bool,
}

impl NodeProcess {
    /// Starts node `node`. Must be called from the main thread: the kernel ends the child when the thread that started it
    /// ends, which is how the children of a killed `dev` go.
    pub(super) fn start(layout: &Layout, node: u16) -> io::Result<Self> {
        let dir = layout.node_dir(node);
        let log = dir.join("log");
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", log.display())))?;
        let child = spawn(&std::env::current_exe()?, &layout.node_config(node), log)?;
        let pid = child
            .id()
            .ok_or_else(|| io::Error::other("the process ended at once"))?;
        let path = dir.join("pid");
        if let Err(error) = fs::write(&path, format!("{pid}\n")) {
            let path = path.display();
            eprintln!("node {node} runs; {path} does not say that it is process {pid}: {error}");
        }
        Ok(Self { node, child })
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits until the process ends, and says how it ended. Dropping the wait loses nothing.
    pub(super) async fn ended(&mut self) -> End {
        let (how, by_itself) = match self.child.wait().await {
            Ok(status) => (status.to_string(), status.code().is_some()),
            Err(error) => (format!("could not be waited for: {error}"), false),
        };
        End {
            node: self.node,
            how,
            by_itself,
        }
    }

    /// Asks the process to stop in its own time, while the others go on.
    pub(super) fn terminate(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Asks the process to stop, as all others are asked too: nobody is left to take over.
    pub(super) fn quit(&self) {
        self.signal(Signal::SIGQUIT);
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            // It may have ended in this instant, which is what is wanted.
            let _ = kill(Pid::from_raw(pid), signal);
            // A stopped process hears nothing until it goes on.
            let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
        }
    }

    /// Waits for the end of a process that was asked to stop, and kills it when it takes too long.
    pub(super) async fn stopped(mut self) -> io::Result<()> {
        if tokio::time::timeout(STOP_GRACE, self.child.wait())
            .await
            .is_err()
        {
            self.child.kill().await?;
        }
        Ok(())
    }
}

fn spawn(program: &Path, config: &Path, log: File) -> io::Result<Child> {
    let parent = std::process::id();
    let mut command = Command::new(program);
    command.arg("node").arg("--config").arg(config);
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    command.kill_on_drop(true).process_group(0); // Ctrl-C goes to `dev`, which stops them in order
    let die_with_parent = move || {
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        // The parent may have died before the line above.
        if getppid().as_raw().cast_unsigned() != parent {
            Err(io::ErrorKind::BrokenPipe.into())
        } else {
            Ok(())
        }
    };
    // SAFETY: between fork and exec only async-signal-safe calls are made: prctl and getppid; nothing is allocated.
    unsafe { command.pre_exec(die_with_parent) };
    command.spawn()
}
