//! A network namespace: made for one lab, entered by threads and processes, gone when the value is dropped.

use std::{
    fs::File,
    io,
    os::{fd::AsFd, unix::process::CommandExt},
    path::PathBuf,
    process::{Command, Stdio},
};

use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::LabError;

/// A named network namespace with its loopback device up. Dropping it ends the processes in it and removes it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    pub fn create(name: String) -> Result<Self, LabError> {
        run("ip", &["netns", "add", &name])?;
        let namespace = Self { name };
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// `ip ARGS` in the namespace.
    pub fn ip(&self, arguments: &[&str]) -> Result<String, LabError> {
        run("ip", &[&["-n", &self.name], arguments].concat())
    }

    /// A command that will run in the namespace, in a process group of its own: Ctrl-C in a terminal is for the laboratory, which ends what
    /// it started in order.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command, LabError> {
        let handle = self.open()?;
        let mut command = Command::new(program);
        command.process_group(0);
        let enter =
            move || setns(handle.as_fd(), CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
        #[expect(unsafe_code, reason = "only a hook before exec can enter a namespace")]
        // SAFETY: the hook makes one system call on a descriptor that it owns; it allocates nothing and takes no lock.
        unsafe {
            command.pre_exec(enter);
        }
        Ok(command)
    }

    /// Runs a command in the namespace to its end and returns what it printed.
    pub fn output(&self, program: &str, arguments: &[&str]) -> Result<String, LabError> {
        let mut command = self.command(program)?;
        command.args(arguments);
        finish(command, program, arguments)
    }

    /// Calls `task` on a thread that is in the namespace. Sockets made there stay there, wherever they are used afterwards.
    pub fn enter<T: Send>(&self, task: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        let handle = self.open()?;
        std::thread::scope(|scope| {
            let thread = scope
                .spawn(move || setns(handle.as_fd(), CloneFlags::CLONE_NEWNET).map(|()| task()));
            match thread.join() {
                Ok(entered) => entered.map_err(|error| self.cannot_enter(error.into())),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// The MAC address of a device, as `02:00:..`.
    pub fn mac(&self, device: &str) -> Result<String, LabError> {
        let shown = self.ip(&["-o", "link", "show", "dev", device])?;
        let mut words = shown.split_whitespace();
        let found = words.find(|word| *word == "link/ether").and(words.next());
        found.map(str::to_owned).ok_or_else(|| LabError::Output {
            command: format!("ip link show dev {device}"),
            problem: "no MAC address".to_owned(),
        })
    }

    /// The processes in the namespace.
    pub fn processes(&self) -> Vec<Pid> {
        run("ip", &["netns", "pids", &self.name])
            .unwrap_or_default()
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok().map(Pid::from_raw))
            .collect()
    }

    fn open(&self) -> Result<File, LabError> {
        let path = PathBuf::from("/run/netns").join(&self.name);
        File::open(path).map_err(|error| self.cannot_enter(error))
    }

    fn cannot_enter(&self, source: io::Error) -> LabError {
        LabError::Enter {
            namespace: self.name.clone(),
            source,
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Ends the processes in a namespace of ours and removes it, and with it its devices.
pub(super) fn remove(name: &str) {
    let namespace = std::mem::ManuallyDrop::new(Namespace {
        name: name.to_owned(),
    });
    for pid in namespace.processes() {
        let _ = kill(pid, Signal::SIGKILL); // ended meanwhile: as well
        super::faketime::forget(pid);
    }
    if let Err(error) = run("ip", &["netns", "delete", name]) {
        tracing::warn!(namespace = name, %error, "namespace could not be removed");
    }
}

/// Runs a program to its end; its standard output, or an error with its standard error.
pub(super) fn run(program: &str, arguments: &[&str]) -> Result<String, LabError> {
    let mut command = Command::new(program);
    command.args(arguments);
    finish(command, program, arguments)
}

pub(crate) fn finish(
    mut command: Command,
    program: &str,
    arguments: &[&str],
) -> Result<String, LabError> {
    let line = || format!("{program} {}", arguments.join(" "));
    // A group of its own, as in `Namespace::command`.
    let output = command
        .stdin(Stdio::null())
        .process_group(0)
        .output()
        .map_err(|source| LabError::Start {
            command: line(),
            source,
        })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(LabError::Failed {
        command: line(),
        status: output.status,
        stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_started_is_in_a_process_group_of_its_own() {
        let script = "read -r pid name state parent group rest < /proc/$$/stat; echo $$ $group";
        let told = run("sh", &["-c", script]).unwrap();
        let (process, group) = told.trim().split_once(' ').unwrap();
        assert_eq!(process, group);
    }
}
