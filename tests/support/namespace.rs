//! A network namespace of a test's own: the sets under `cluster/` have fixed loopback addresses.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use super::{Ended, PONTOON, eventually};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A namespace with its loopback device up, and the processes started in it. Both end when this is dropped.
pub struct Namespace {
    name: String,
    home: tempfile::TempDir,
    nodes: Vec<Child>,
}

impl Namespace {
    /// None, with a word why, when this user may make none.
    pub fn make() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            super::skip("a network namespace needs root");
            return None;
        }
        let name = format!(
            "pt{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let home = tempfile::tempdir().expect("a directory");
        match Command::new("ip").args(["netns", "add", &name]).status() {
            Ok(status) if status.success() => {}
            other => {
                super::skip(&format!("`ip netns add` does not work here: {other:?}"));
                return None;
            }
        }
        let namespace = Self {
            name,
            home,
            nodes: Vec::new(),
        };
        let up = namespace
            .command("ip")
            .args(["link", "set", "lo", "up"])
            .status();
        assert!(up.is_ok_and(|status| status.success()), "lo is up");
        Some(namespace)
    }

    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// A program inside the namespace, with a home directory of its own.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.name, program])
            .env("HOME", self.home.path())
            .stdin(Stdio::null());
        command.env_remove("XDG_CONFIG_HOME");
        command
    }

    /// Runs the command line inside.
    pub fn run(&self, endpoints: &str, arguments: &[&str]) -> Ended {
        let mut command = self.command(PONTOON);
        command.args(arguments).env_remove("PONTOON_ENDPOINTS");
        if !endpoints.is_empty() {
            command.env("PONTOON_ENDPOINTS", endpoints);
        }
        let output = command.output().expect("the program runs");
        Ended {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Starts a node; its place in the list of processes.
    pub fn start_node(&mut self, config: &Path) -> usize {
        let log = std::fs::File::create(config.with_extension("log")).expect("a log file");
        let mut command = self.command(PONTOON);
        command.args(["node", "--config"]).arg(config);
        let child = command
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the node starts");
        self.nodes.push(child);
        self.nodes.len() - 1
    }

    /// Kills a node as a power cut would.
    pub fn kill_node(&mut self, at: usize) {
        // `ip netns exec` becomes the program it runs: the child is the node itself.
        self.nodes[at].kill().expect("the node runs");
        self.nodes[at].wait().expect("a child");
    }

    /// Waits for a node to end by itself.
    pub fn wait_node(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        eventually("the end of the node", || node.try_wait().expect("a child"));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            // Those that ended already are only waited for.
            let _ = node.kill();
            let _ = node.wait();
        }
        let deleted = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
        if !deleted.is_ok_and(|status| status.success()) {
            eprintln!("network namespace {} is left behind", self.name);
        }
    }
}
