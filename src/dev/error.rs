//! Why a development cluster does not run, and what to do about each cause.

use std::{io, net::SocketAddr, path::PathBuf};

use super::{
    READY_TIMEOUT,
    layout::{MAX_NODES, MAX_PORT_BASE, MAX_SOCKET_PATH},
};
use crate::{enrol::identity_file::IdentityError, pki::PkiError};

/// Why the cluster did not run.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    #[error("--nodes {0}: expected 1 to {MAX_NODES}")]
    Nodes(u16),
    #[error("--port-base {0}: expected 1 to {MAX_PORT_BASE}")]
    PortBase(u16),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("no temporary directory can be made in {}: {source}", path.display())]
    Temporary { path: PathBuf, source: io::Error },
    #[error("the output could not be written: {0}")]
    Output(#[source] io::Error),
    #[error("{} holds a cluster of {nodes} nodes on port base {port_base}", dir.display())]
    OtherLayout {
        dir: PathBuf,
        nodes: u16,
        port_base: u16,
    },
    #[error("{}: {problem}", path.display())]
    Damaged { path: PathBuf, problem: String },
    #[error(
        "the socket {} would have a path of {length} octets; the system takes {MAX_SOCKET_PATH}",
        path.display()
    )]
    LongPath { path: PathBuf, length: usize },
    #[error("{address} ({what}) cannot be bound: {source}")]
    Address {
        address: SocketAddr,
        what: String,
        source: io::Error,
    },
    #[error("of the {nodes} nodes in {} only {members} are members still: no majority", dir.display())]
    NoMajority {
        dir: PathBuf,
        nodes: u16,
        members: usize,
    },
    #[error("node {node} does not start: {source}")]
    Start { node: u16, source: io::Error },
    #[error("not every node answered within {READY_TIMEOUT:?}: {problem}; see the logs in {}", dir.display())]
    NotReady { problem: String, dir: PathBuf },
    #[error("node {node} ended before it served ({how}); {last}its log is {}", log.display())]
    Ended {
        node: u16,
        how: String,
        /// The last line it wrote, as part of a sentence; may be empty.
        last: String,
        log: PathBuf,
    },
    #[error("the sample site was not loaded: {0}")]
    Seed(String),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error("the runtime does not start: {0}")]
    Runtime(io::Error),
}

impl DevError {
    /// What to do next.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Nodes(_) | Self::PortBase(_) => "`pontoon dev --help` shows the options",
            Self::Io { .. } | Self::Identity(_) => "give a --dir in which files can be written",
            Self::Temporary { .. } => {
                "set TMPDIR to a directory in which files can be written, or give --dir"
            }
            Self::Output(_) => "make room where its output goes, or send it elsewhere",
            Self::OtherLayout { .. } => {
                "leave --nodes and --port-base out to go on with it, or give another --dir"
            }
            Self::Damaged { .. } => "give another --dir, or remove this one",
            Self::LongPath { .. } => "give a --dir (or TMPDIR) with a shorter path",
            Self::Address { source, .. } => match source.kind() {
                io::ErrorKind::AddrInUse => {
                    "stop what uses it (another `pontoon dev`?), or give another --port-base"
                }
                io::ErrorKind::PermissionDenied => "give a --port-base of at least 1024",
                _ => "loopback needs all of 127.0.0.0/8",
            },
            Self::NoMajority { .. } => "give another --dir: it begins with new nodes",
            Self::Start { .. } => "see whether the machine lacks memory or processes",
            Self::NotReady { .. } | Self::Seed(_) => "see the logs of the nodes for the cause",
            Self::Ended { .. } => "mend what it says; another --dir begins with new nodes",
            Self::Pki(_) => "another --dir begins with new nodes",
            Self::Runtime(_) => "see whether the machine lacks memory or open files",
        }
    }

    /// Whether no state of the machine makes these arguments right.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Nodes(_) | Self::PortBase(_))
    }
}
