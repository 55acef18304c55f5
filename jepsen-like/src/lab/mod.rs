//! The lab: hosts in network namespaces on a bridge, with real links to cut and real processes to kill.
//!
//! A lab owns everything it makes: namespaces (and with them devices and the processes inside), and a directory for data.
//! Dropping it removes all of it, also when a test panics. What a killed lab leaves behind is removed by the next one, or by
//! `jepsen-like clean`: its name holds the id of the process that made it.

pub mod client;
pub mod cluster;
pub mod disk;
pub mod freeze;
pub mod namespace;
pub mod network;
pub mod program;
pub mod switch;

use std::{
    collections::BTreeMap,
    io,
    path::Path,
    process::ExitStatus,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use nix::{errno::Errno, sys::signal::kill, unistd::Pid};

use self::{namespace::Namespace, network::Network};

/// Namespaces whose names begin like this are ours.
const PREFIX: &str = "pj";

/// Something in the lab did not work: a fault of the harness, and no finding, unless [`LabError::is_of_cluster`].
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    #[error("cannot start {command}: {source}")]
    Start { command: String, source: io::Error },
    #[error("{command} ended with {status}: {stderr}")]
    Failed {
        command: String,
        status: ExitStatus,
        stderr: String,
    },
    #[error("cannot enter namespace {namespace}: {source}")]
    Enter {
        namespace: String,
        source: io::Error,
    },
    #[error("no lab can be made here: {0}")]
    Missing(String),
    #[error("no host named {0} in this lab")]
    NoHost(String),
    #[error("cannot stop threads of process {pid}: {source}")]
    Freeze { pid: i32, source: io::Error },
    #[error("lab directory: {0}")]
    Directory(#[source] io::Error),
    #[error("{what} did not happen within {seconds} s")]
    Waited { what: String, seconds: u64 },
    #[error("a call of a node's API failed: {0}")]
    Call(#[from] tonic::Status),
    #[error("cannot make a runtime for calls: {0}")]
    Runtime(#[source] io::Error),
    #[error("cannot build the node's program: {0}")]
    Program(String),
    #[error("a cluster needs a node")]
    NoNode,
    #[error("{error}; the nodes' last log lines:{logs}")]
    WithLogs { error: Box<LabError>, logs: String },
    #[error("{0} is not running")]
    NotRunning(String),
    #[error(
        "the process of {node} had not ended {seconds} s after SIGKILL: the machine does not get on (its disk, or too much at once)"
    )]
    NotEnded { node: String, seconds: u64 },
    #[error("cannot make sense of what {command} printed: {problem}")]
    Output { command: String, problem: String },
}

impl LabError {
    /// Whether the cluster did not do what was waited for, or refused what it was asked: that is a finding.
    pub fn is_of_cluster(&self) -> bool {
        match self {
            Self::Waited { .. } | Self::Call(_) => true,
            Self::WithLogs { error, .. } => error.is_of_cluster(),
            _ => false,
        }
    }

    /// Whether threads could not be stopped because the process has none such, or has ended.
    pub fn is_without_threads(&self) -> bool {
        use io::ErrorKind::NotFound;
        let is_gone = |source: &io::Error| source.raw_os_error() == Some(libc::ESRCH);
        matches!(self, Self::Freeze { source, .. } if source.kind() == NotFound || is_gone(source))
    }
}

/// Why no lab can be made here; None when one can.
pub fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("network namespaces need root".to_owned());
    }
    for (tool, argument) in [("ip", "-V"), ("bridge", "-V")] {
        if namespace::run(tool, &[argument]).is_err() {
            return Some(format!("{tool} (package iproute2) is not installed"));
        }
    }
    let probe = LabName::next().namespace("probe");
    match Namespace::create(probe) {
        Ok(_) => None,
        Err(error) => Some(format!("network namespaces do not work here: {error}")),
    }
}

/// For tests: true when a lab can be made; otherwise says why not, plainly, and fails where everything must be tried (`CI=true`).
///
/// # Panics
/// With `CI=true`, when no lab can be made.
pub fn available() -> bool {
    let Some(reason) = missing() else {
        return true;
    };
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "this test must not be skipped in CI: {reason}"
    );
    println!("skipped: {reason}");
    false
}

/// `pj<process>x<number>`: tells labs of one machine apart, and the living from the dead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabName(String);

impl LabName {
    fn next() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self(format!("{PREFIX}{}x{number}", std::process::id()))
    }

    fn namespace(&self, host: &str) -> String {
        format!("{}-{host}", self.0)
    }
}

/// The process that made a namespace, if its name is one of ours.
fn maker_of(namespace: &str) -> Option<Pid> {
    let (process, _) = namespace.strip_prefix(PREFIX)?.split_once('x')?;
    process.parse().ok().map(Pid::from_raw)
}

/// Removes what labs left behind whose process has ended. Returns the namespaces.
pub fn clean() -> Result<Vec<String>, LabError> {
    let listed = namespace::run("ip", &["netns", "list"])?;
    let abandoned: Vec<_> = listed
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| maker_of(name).is_some_and(|pid| kill(pid, None) == Err(Errno::ESRCH)))
        .map(ToOwned::to_owned)
        .collect();
    for name in &abandoned {
        namespace::remove(name);
    }
    disk::clean(|name| maker_of(name).is_some_and(|pid| kill(pid, None) == Err(Errno::ESRCH)));
    Ok(abandoned)
}

/// Hosts on one network segment.
#[derive(Debug)]
pub struct Lab {
    name: LabName,
    // Hosts go first: their devices end in the switch.
    hosts: BTreeMap<String, Arc<Namespace>>,
    network: Network,
    directory: tempfile::TempDir,
}

impl Lab {
    /// An empty segment. Also removes what earlier labs left behind.
    pub fn create() -> Result<Self, LabError> {
        clean()?;
        let name = LabName::next();
        Ok(Self {
            network: Network::create(&name)?,
            hosts: BTreeMap::new(),
            directory: tempfile::Builder::new()
                .prefix(&name.0)
                .tempdir()
                .map_err(LabError::Directory)?,
            name,
        })
    }

    /// A host with the addresses of `number`, 1 to 254. It goes when the lab and everybody who was given it are gone.
    pub fn add_host(&mut self, host: &str, number: u8) -> Result<Arc<Namespace>, LabError> {
        let namespace = Arc::new(Namespace::create(self.name.namespace(host))?);
        self.hosts.insert(host.to_owned(), namespace.clone());
        self.network.connect(&namespace, host, number)?;
        Ok(namespace)
    }

    pub fn host(&self, host: &str) -> Result<&Arc<Namespace>, LabError> {
        self.hosts
            .get(host)
            .ok_or_else(|| LabError::NoHost(host.to_owned()))
    }

    /// Cuts, heals, unplugs and plugs the link of a host, by its name.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// For data and logs; gone with the lab.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Keeps data and logs when the lab goes; returns where they are.
    pub fn keep_directory(&mut self) -> &Path {
        self.directory.disable_cleanup(true);
        self.directory.path()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_does_not_get_on_is_no_fault_of_the_cluster() {
        let waited = LabError::Waited {
            what: "a join".into(),
            seconds: 60,
        };
        assert!(waited.is_of_cluster());
        let stuck = LabError::NotEnded {
            node: "n1".into(),
            seconds: 60,
        };
        assert!(!stuck.is_of_cluster());
    }

    #[test]
    fn only_our_namespaces_are_cleaned() {
        assert_eq!(maker_of("pj123x0-n1"), Some(Pid::from_raw(123)));
        for other in ["pj-n1", "pjx0", "pj12a3x0-n1", "web", "", "p123x0"] {
            assert_eq!(maker_of(other), None, "{other}");
        }
    }
}
