//! `pontoon node`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{Context, client::Client, cluster::NODE_TOML, exit, runtime};
use crate::{
    consensus::storage::OpenError,
    enrol::IdentityError,
    node,
    wire::{
        error::{Failure, FailureCode},
        v1::{self, node_client::NodeClient},
    },
};

/// Run this machine's node, or speak to one
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pontoon node --config /etc/pontoon/node.toml
  pontoon node --config node.toml --check
  pontoon node reload
  pontoon node probe")]
pub struct Node {
    /// Configuration of this machine's node, without a command: run it [default: /etc/pontoon/node.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Without a command: only check the configuration, and that the executables it names can be run; every fault is named, nothing is started
    #[arg(long)]
    check: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(Run),
    Reload(Reload),
    Probe(Probe),
}

/// Run this machine's node
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pontoon node run --config /etc/pontoon/node.toml
  pontoon node run --config node.toml --check")]
pub struct Run {
    /// Its configuration
    #[arg(long, default_value = NODE_TOML, value_name = "FILE")]
    config: PathBuf,
    /// Only check the configuration, and that the executables it names can be run: every fault is named, nothing is started
    #[arg(long)]
    check: bool,
}

/// Make this node (the first endpoint) read logging settings and certificates again, as SIGHUP does
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  pontoon node reload --endpoints unix:/var/lib/pontoon/pontoon.sock"
)]
pub struct Reload {}

/// Ask whether this node (the first endpoint) serves: exit 0 when DNS answers and every listener is bound
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  pontoon node probe && echo serving")]
pub struct Probe {}

impl Node {
    /// An option of the node itself in front of a command that does not heed it. Not left to `clap`, which would refuse the
    /// options of every command there as well.
    pub fn without_meaning(&self) -> Option<String> {
        let option = match (&self.command, &self.config, self.check) {
            (None, ..) | (Some(_), None, false) => return None,
            (Some(_), Some(_), _) => "--config",
            (Some(_), None, true) => "--check",
        };
        Some(match &self.command {
            Some(Command::Run(_)) => format!("give {option} behind `run`"),
            _ => format!(
                "{option} is for a node that is run, and this command asks one that runs: leave it out"
            ),
        })
    }

    pub fn run(self, context: &Context) -> Result<(), Failure> {
        match self.command {
            None => {
                let config = self.config.unwrap_or_else(|| NODE_TOML.into());
                let check = self.check;
                Run { config, check }.run(context)
            }
            Some(Command::Run(command)) => command.run(context),
            Some(Command::Reload(Reload {})) => runtime()?.block_on(reload(context)),
            Some(Command::Probe(Probe {})) => runtime()?.block_on(probe(context)),
        }
    }
}

#[derive(Serialize)]
struct Checked<'a> {
    config: &'a str,
    ok: bool,
}

/// How a node whose data is lost becomes a member again.
const JOIN_ANEW: &str = "remove it on a member (`pontoon cluster remove NODE`), empty its data directory (`find DIR -mindepth 1 -delete`), and join anew: \
    `pontoon cluster token create` on the member, `pontoon cluster join --token TOKEN --peer MEMBER --config FILE` here; it gets a new id";

impl Run {
    fn run(self, context: &Context) -> Result<(), Failure> {
        let failed = |error: node::NodeError| {
            use node::NodeError;
            if let NodeError::Storage(OpenError::Corrupt { place, problem }) = &error {
                let problem = format!(
                    "the log in {place} is corrupt: {problem}; what this node acknowledged may be lost"
                );
                let hint = format!("it must not take part under its id again: {JOIN_ANEW}");
                return exit::invalid("node", problem, hint);
            }
            if let NodeError::Identity(
                IdentityError::Malformed { .. } | IdentityError::Missing { .. },
            )
            | NodeError::Credentials { .. }
            | NodeError::NoCertificate { .. } = &error
            {
                let hint = format!("put back a copy of the file if there is one, else {JOIN_ANEW}");
                return exit::invalid("node", error, hint);
            }
            let hint = match &error {
                NodeError::Config(_) => "docs/configuration.md describes every key",
                _ => "correct it, or look whether another node runs here; then start it again",
            };
            exit::invalid("node", error, hint)
        };
        if !self.check {
            return node::run(&self.config).map_err(failed);
        }
        node::check(&self.config).map_err(failed)?;
        let config = self.config.display().to_string();
        let checked = Checked {
            config: &config,
            ok: true,
        };
        context.out.result(&checked, || format!("{config}: OK\n"))
    }
}

#[derive(Serialize)]
struct Reloaded {
    applied: Vec<String>,
    needs_restart: Vec<String>,
}

async fn reload(context: &Context) -> Result<(), Failure> {
    let mut client = Client::connect_to_first(context).await?;
    // Reading the same settings again is harmless.
    let reply = client
        .write("node", async |attempt| {
            NodeClient::new(attempt.channel.clone())
                .reload(attempt.request(v1::ReloadRequest {}))
                .await
        })
        .await?
        .into_inner();
    let reloaded = Reloaded {
        applied: reply.applied,
        needs_restart: reply.needs_restart,
    };
    context.out.result(&reloaded, || {
        let mut text = String::new();
        for line in &reloaded.applied {
            text.push_str(&format!("took effect: {line}\n"));
        }
        for line in &reloaded.needs_restart {
            text.push_str(&format!("needs a restart: {line}\n"));
        }
        match text.is_empty() {
            true => "nothing has changed\n".to_owned(),
            false => text,
        }
    })
}

#[derive(Serialize)]
struct Probed {
    serving: bool,
    stale: bool,
    revision: u64,
    problems: Vec<String>,
}

async fn probe(context: &Context) -> Result<(), Failure> {
    let mut client = Client::connect_to_first(context).await?;
    let reply = client
        .read("node", async |attempt| {
            NodeClient::new(attempt.channel.clone())
                .probe(attempt.request(v1::ProbeRequest {}))
                .await
        })
        .await?
        .into_inner();
    let probed = Probed {
        serving: reply.serving,
        stale: reply.stale,
        revision: reply.revision,
        problems: reply.problems,
    };
    if !probed.serving {
        let problem = format!("does not serve: {}", probed.problems.join("; "));
        return Err(Failure::new(FailureCode::NotReady, "node", problem, ""));
    }
    context.out.result(&probed, || {
        let stale = if probed.stale { ", stale" } else { "" };
        format!("serving (revision {}{stale})\n", probed.revision)
    })
}
