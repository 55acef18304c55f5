//! Node-local configuration: `node.toml` says only where this node is. Everything about the service is in the log.
//!
//! Two types: the text as written (read by `reader`) and the checked value (`node::NodeConfig`). All faults are reported
//! together, each naming its key; unknown keys are refused; nothing is bound before the file passes.

pub mod defaults;
pub mod node;
pub(crate) mod reader;
pub mod reserved;
pub mod units;

use std::path::PathBuf;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{}: {source}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{}: {}", path.display(), faults_text(faults))]
    Faults { path: PathBuf, faults: Vec<Fault> },
}

/// One thing that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The key with its section, `addresses.dns_port`; empty for the file as a whole.
    pub key: String,
    pub problem: String,
    /// The line of the file, from 1, where that is known.
    pub line: Option<u32>,
    /// The line within the text that the key holds, from 1, when the problem is in it.
    pub within: Option<u32>,
}

impl Fault {
    pub fn new(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            problem: problem.into(),
            line: None,
            within: None,
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        if let Some(within) = self.within {
            write!(f, "line {within}: ")?;
        }
        f.write_str(&self.problem)
    }
}

fn faults_text(faults: &[Fault]) -> String {
    let lines: Vec<String> = faults.iter().map(|fault| format!("\n  {fault}")).collect();
    let count = faults.len();
    format!(
        "{count} fault{}{}",
        if count == 1 { "" } else { "s" },
        lines.concat()
    )
}
