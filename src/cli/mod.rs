//! The command line: operator commands and their output. A client of the API, but for the commands that run or prepare
//! this machine's own node.
//!
//! The contract with scripts: one JSON document on stdout with `-o json` (`watch`: one a line), errors, warnings and logs on
//! stderr, errors and warnings as objects, and the exit codes of `exit`. Every command's arguments are declared with `clap`; help, completion, man pages and the
//! check of `docs/cli.md` come from the same declarations.

mod admin;
mod answer;
mod backup;
mod client;
mod cluster;
mod completion;
mod data_dir;
mod data_failure;
mod dev;
mod dns;
mod endpoint;
mod exit;
mod forwarder;
mod input;
mod listener;
mod node;
mod output;
mod pool;
mod record;
mod record_batch;
#[cfg(test)]
mod reference;
mod rrsets;
mod site;
#[cfg(test)]
mod tests;
mod vip;
mod watch;
mod whole_file;
mod write;
mod zone;

use std::{
    ffi::OsString,
    io::{IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum, error::ErrorKind};

use self::{
    endpoint::Endpoints,
    output::{Format, Out},
};
use crate::{config::units::parse_duration, defect, model::quoted::quoted, wire::error::Failure};

/// What is used when nothing says how long to try: longer than a node takes to restart or a cluster to elect a leader, and
/// short enough for a person to wait.
const DEFAULT_TIMEOUT: &str = "10s";

/// DNS, load balancing and virtual addresses from one replicated log.
///
/// A few equal nodes form a group; a replicated log holds all service configuration, the leader holds the virtual address,
/// and every node answers DNS and forwards TCP.
#[derive(Debug, Parser)]
#[command(
    name = "pontoon",
    version,
    propagate_version = true,
    max_term_width = 110,
    after_long_help = "\
Examples:
  pontoon dev                                     # a local cluster of three nodes
  pontoon cluster status                          # how the cluster is
  pontoon zone create example.com                 # a zone with a default SOA and NS
  pontoon record set example.com www A 192.0.2.1  # one record
  pontoon plan -f site.toml                       # what a site document would change

Exit codes: 0 done; 1 refused or failed; 2 wrong usage; 3 no leader, or no node reachable; 4 outcome unknown."
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Nodes to ask, in this order: HOST:PORT (mutual TLS with the client certificate; plaintext for a loopback address
    /// without one), http://HOST:PORT (plaintext, loopback only) or unix:PATH [default: the local unix socket, else
    /// the nodes of `pontoon dev`; also PONTOON_ENDPOINTS]
    #[arg(long, global = true, value_name = "A,B,C")]
    endpoints: Option<Endpoints>,

    /// How results are written to stdout, and errors and warnings to stderr
    #[arg(short = 'o', long = "output", global = true, value_enum, default_value_t = Format::Table)]
    output: Format,

    /// How long to try, while no node answers or none leads: 500ms, 10s, 2m, or a number of seconds
    #[arg(long, global = true, default_value = DEFAULT_TIMEOUT, value_parser = timeout, value_name = "TIME")]
    timeout: Duration,

    /// Reads: the state of the node that is asked, or everything that was acknowledged before (needs a leader)
    #[arg(long, global = true, value_enum, default_value_t = Consistency::Local)]
    consistency: Consistency,

    /// Client certificate in PEM [default: admin.pem in ~/.config/pontoon or /etc/pontoon; also PONTOON_CERT]
    #[arg(long, global = true, value_name = "FILE")]
    cert: Option<PathBuf>,

    /// Its key in PEM [default: admin.key beside the certificate; also PONTOON_KEY]
    #[arg(long, global = true, value_name = "FILE")]
    key: Option<PathBuf>,

    /// The cluster's certificate authority in PEM [default: ca.pem beside the certificate; also PONTOON_CA]
    #[arg(long, global = true, value_name = "FILE")]
    ca: Option<PathBuf>,
}

impl Global {
    /// Puts what the environment says where the command line is silent.
    ///
    /// Not left to `clap`, whose messages would show options as required that the environment only mentions.
    fn with_environment(
        mut self,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, Failure> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        if self.endpoints.is_none()
            && let Some(text) = set("PONTOON_ENDPOINTS")
        {
            let wrong = |problem: String| {
                let hint = "correct or unset it, or give --endpoints";
                exit::wrong_argument("PONTOON_ENDPOINTS", problem, hint)
            };
            let text = text
                .into_string()
                .map_err(|_| wrong("it is no text in UTF-8".into()))?;
            self.endpoints = Some(text.parse().map_err(wrong)?);
        }
        for (file, name) in [
            (&mut self.cert, "PONTOON_CERT"),
            (&mut self.key, "PONTOON_KEY"),
            (&mut self.ca, "PONTOON_CA"),
        ] {
            if file.is_none() {
                *file = set(name).map(PathBuf::from);
            }
        }
        let given = [&self.cert, &self.key, &self.ca];
        let count = given.iter().filter(|file| file.is_some()).count();
        match count {
            0 | 3 => Ok(self),
            _ => Err(exit::wrong_argument(
                "client certificate",
                "only a part of it is given",
                "give --cert, --key and --ca together (or PONTOON_CERT, PONTOON_KEY and PONTOON_CA)",
            )),
        }
    }
}

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Consistency {
    Local,
    Linearizable,
}

impl Consistency {
    fn to_wire(self) -> i32 {
        use crate::wire::v1;
        match self {
            Self::Local => v1::Consistency::Local,
            Self::Linearizable => v1::Consistency::Linearizable,
        }
        .into()
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    Dev(dev::Dev),
    Node(node::Node),
    #[command(subcommand)]
    Cluster(cluster::Cluster),
    #[command(subcommand)]
    Zone(zone::Zone),
    #[command(subcommand)]
    Record(record::Record),
    #[command(subcommand)]
    Pool(pool::Pool),
    #[command(subcommand)]
    Listener(listener::Listener),
    #[command(subcommand)]
    Vip(vip::Vip),
    #[command(subcommand)]
    Forwarder(forwarder::Forwarder),
    #[command(subcommand)]
    Dns(dns::Dns),
    Plan(site::Plan),
    Apply(site::Apply),
    Export(site::Export),
    Backup(backup::Backup),
    Restore(backup::Restore),
    Recover(backup::Recover),
    Watch(watch::Watch),
    Completion(completion::Completion),
    Man(completion::Man),
}

/// What every command is given besides its own arguments.
pub struct Context {
    global: Global,
    out: Out,
}

/// Runs the program.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    if let Err(wrong) = defect::chosen() {
        return wrong_switch(&wrong, &arguments);
    }
    let cli = match parse(&arguments) {
        Ok(cli) => cli,
        Err(error) => return usage_error(&error, &arguments),
    };
    let out = Out::new(cli.global.output, std::io::stdout().is_terminal());
    let global = match cli.global.with_environment(|name| std::env::var_os(name)) {
        Ok(global) => global,
        Err(failure) => {
            out.failure(&failure);
            return exit::code_of(&failure).into();
        }
    };
    let context = Context { global, out };
    match cli.command.run(&context) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            context.out.failure(&failure);
            exit::code_of(&failure).into()
        }
    }
}

/// Reads the command line.
fn parse(arguments: &[OsString]) -> Result<Cli, clap::Error> {
    let matches = Cli::command().try_get_matches_from(arguments)?;
    let cli = Cli::from_arg_matches(&matches)?;
    match cli.without_meaning() {
        Some(problem) => Err(Cli::command().error(ErrorKind::ArgumentConflict, problem)),
        None => Ok(cli),
    }
}

/// Before anything else is looked at: not even help is given under a switch that is refused.
fn wrong_switch(wrong: &defect::SwitchError, arguments: &[OsString]) -> ExitCode {
    let format = match output::asks_for_json(arguments) {
        true => Format::Json,
        false => Format::Table,
    };
    let failure = exit::wrong_argument(defect::VARIABLE, wrong, wrong.hint());
    Out::new(format, false).failure(&failure);
    ExitCode::from(exit::USAGE)
}

/// Help and version are no errors; everything else is wrong usage.
fn usage_error(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    if error.use_stderr() && output::asks_for_json(arguments) {
        Out::new(Format::Json, false).failure(&exit::usage(error));
        return ExitCode::from(exit::USAGE);
    }
    // Nothing can be told to anyone when the terminal is gone.
    let _ = match exit::wrong_value(error) {
        Some(wrong) => writeln!(
            std::io::stderr(),
            "error: {wrong}\n\nFor more information, try '--help'."
        ),
        None => error.print(),
    };
    match error.use_stderr() {
        true => ExitCode::from(exit::USAGE),
        false => ExitCode::SUCCESS,
    }
}

impl Cli {
    /// An option that the command does not heed: it would be wrong to take it in silence.
    fn without_meaning(&self) -> Option<String> {
        let linearizable = self.global.consistency == Consistency::Linearizable;
        match &self.command {
            Command::Node(node) => node.without_meaning(),
            Command::Cluster(cluster) if linearizable => cluster.always_local(),
            Command::Watch(_) if linearizable => {
                Some("`watch` follows the state of the node that is asked: leave --consistency linearizable out".to_owned())
            }
            _ => None,
        }
    }
}

impl Command {
    fn run(self, context: &Context) -> Result<(), Failure> {
        match self {
            // These make their own runtimes.
            Self::Dev(command) => command.run(),
            Self::Node(command) => command.run(context),
            Self::Completion(command) => command.run(context),
            Self::Man(command) => command.run(context),
            other => runtime()?.block_on(other.run_client(context)),
        }
    }

    async fn run_client(self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Cluster(command) => command.run(context).await,
            Self::Zone(command) => command.run(context).await,
            Self::Record(command) => command.run(context).await,
            Self::Pool(command) => command.run(context).await,
            Self::Listener(command) => command.run(context).await,
            Self::Vip(command) => command.run(context).await,
            Self::Forwarder(command) => command.run(context).await,
            Self::Dns(command) => command.run(context).await,
            Self::Plan(command) => command.run(context).await,
            Self::Apply(command) => command.run(context).await,
            Self::Export(command) => command.run(context).await,
            Self::Backup(command) => command.run(context).await,
            Self::Restore(command) => command.run(context),
            Self::Recover(command) => command.run(context).await,
            Self::Watch(command) => command.run(context).await,
            Self::Dev(_) | Self::Node(_) | Self::Completion(_) | Self::Man(_) => Ok(()),
        }
    }
}

/// A command line client needs one thread.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| exit::internal("runtime", e))
}

/// Reads a duration; a bare number counts seconds.
fn duration(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => parse_duration(text),
    }
}

fn timeout(text: &str) -> Result<Duration, String> {
    let timeout = duration(text)?;
    let range = Duration::from_millis(10)..=Duration::from_secs(3600);
    match range.contains(&timeout) {
        true => Ok(timeout),
        false => Err(format!(
            "{text} is not within 10ms to 1h",
            text = quoted(text)
        )),
    }
}
