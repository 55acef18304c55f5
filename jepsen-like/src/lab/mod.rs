//! The lab: hosts in network namespaces on a bridge, with real links to cut and real processes to kill.
//!
//! A lab owns everything it makes: namespaces (and with them devices and the processes inside), disks, and a directory for data.
//! Dropping it removes all of it, also when a test panics. What a killed lab leaves behind is removed by the next one, or by
//! `jepsen-like clean`: its name holds the id of the process that made it. A directory that was to be kept stays.

pub mod client;
pub mod cluster;
pub mod disk;
mod faketime;
pub mod freeze;
pub mod namespace;
pub mod network;
pub mod program;
pub mod switch;

use std::{
    collections::BTreeMap,
    fmt::Display,
    fs,
    io::{self, Write as _},
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
/// The file that says of a lab's directory that it is to be kept.
const KEPT: &str = "kept";
/// What `tempfile` puts behind the lab's name.
const RANDOM: usize = 6;

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
    #[error(transparent)]
    Unusable(#[from] program::Unusable),
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
    skip(reason);
    false
}

/// For tests: says on standard error why one is not run, and fails where everything must be tried (`CI=true`). Not by `println!`, which the
/// test harness keeps to itself when the test passes.
///
/// # Panics
/// With `CI=true`.
pub fn skip(why: impl Display) {
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "this test must not be skipped in CI: {why}"
    );
    // Nobody is left to tell when that fails.
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
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

/// Whether a name is one of ours, and the process that made it has ended.
fn is_abandoned(name: &str) -> bool {
    maker_of(name).is_some_and(|pid| kill(pid, None) == Err(Errno::ESRCH))
}

/// Whether a name is as those of labs' directories are: the lab's name, and what makes it one of its own.
fn is_directory_of_lab(name: &str) -> bool {
    let Some((_, rest)) = name
        .strip_prefix(PREFIX)
        .and_then(|rest| rest.split_once('x'))
    else {
        return false;
    };
    let split = rest.len().checked_sub(RANDOM);
    let Some((number, random)) = split.and_then(|at| rest.split_at_checked(at)) else {
        return false;
    };
    let is_number = !number.is_empty() && number.bytes().all(|octet| octet.is_ascii_digit());
    is_number && random.bytes().all(|octet| octet.is_ascii_alphanumeric())
}

/// Removes what labs left behind whose process has ended: namespaces with their processes, mounted disks, directories. Says what went.
pub fn clean() -> Result<Vec<String>, LabError> {
    let listed = namespace::run("ip", &["netns", "list"])?;
    let names = listed
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    let mut gone = vec![];
    for name in names.filter(|name| is_abandoned(name)) {
        namespace::remove(name);
        gone.push(format!("namespace {name}"));
    }
    disk::clean(is_abandoned);
    let directories = clean_directories(&std::env::temp_dir(), is_abandoned);
    gone.extend(directories.map_err(LabError::Directory)?);
    Ok(gone)
}

/// Removes the abandoned directories of labs in this one, but for those that are to be kept.
fn clean_directories(
    within: &Path,
    is_abandoned: impl Fn(&str) -> bool,
) -> io::Result<Vec<String>> {
    let mut gone = vec![];
    for entry in fs::read_dir(within)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_ours = name.to_str().is_some_and(is_directory_of_lab);
        if !is_ours || !name.to_str().is_some_and(&is_abandoned) {
            continue;
        }
        let path = entry.path();
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if !is_directory || path.join(KEPT).exists() {
            continue;
        }
        match fs::remove_dir_all(&path) {
            Ok(()) => gone.push(format!("directory {}", path.display())),
            // Two labs may begin at once, and both look.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(directory = %path.display(), %error, "directory could not be removed");
            }
        }
    }
    Ok(gone)
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

    /// Keeps data and logs when the lab goes, and says so for those who clean up; returns where they are.
    pub fn keep_directory(&mut self) -> &Path {
        self.directory.disable_cleanup(true);
        let mark = self.directory.path().join(KEPT);
        if let Err(error) = fs::write(&mark, "") {
            tracing::warn!(file = %mark.display(), %error, "the next lab will remove this directory");
        }
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

    #[test]
    fn only_abandoned_directories_of_labs_go_and_those_that_are_kept_stay() {
        let within = tempfile::tempdir().unwrap();
        let names = [
            "pj12x0AbC123", // a dead lab's
            "pj12x10kept00",
            "pj34x0AbC123", // a living one's
            "pj12x0",
            "pj12xAbC123",
            "pj12x0-AbC12",
            "pj12x0AbC.23",
            "web",
        ];
        for name in names {
            let directory = within.path().join(name);
            fs::create_dir_all(directory.join("n1/data")).unwrap();
            fs::write(directory.join("n1/data/log"), "x").unwrap();
        }
        fs::write(within.path().join("pj12x10kept00").join(KEPT), "").unwrap();
        fs::write(within.path().join("pj12x0AAAAAA"), "a file").unwrap();
        let is_dead = |name: &str| maker_of(name) == Some(Pid::from_raw(12));
        let gone = clean_directories(within.path(), is_dead).unwrap();
        let expected = format!("directory {}", within.path().join(names[0]).display());
        assert_eq!(gone, [expected]);
        let is_there = names.map(|name| within.path().join(name).exists());
        assert_eq!(is_there, [false, true, true, true, true, true, true, true]);
        assert!(within.path().join("pj12x0AAAAAA").exists());
    }
}
