//! Arguments, and which part of the laboratory they mean.

use std::{net::IpAddr, process::ExitCode};

use clap::{Parser, Subcommand};
use jepsen_like::{
    failover, hold,
    lab::{
        self, LabError,
        cluster::{Cluster, Fault, NAME, vip4, vip6},
    },
};

/// The fault laboratory of Pontoon: network namespaces, real nodes, real links to cut.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Network namespaces on a bridge with real nodes in them.
    #[command(subcommand)]
    Lab(LabCommand),
    /// Loses the leader again and again, and prints how long a client was without an answer.
    Failover {
        /// How often.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        runs: u32,
        /// How the leader is lost.
        #[arg(long, value_enum, default_value_t = Fault::Kill)]
        fault: Fault,
        /// Nodes in the cluster.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=9))]
        nodes: u8,
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Removes the namespaces of labs whose process was killed.
    Clean,
    /// Holds VIPs on a device without a cluster, until killed.
    #[command(hide = true)]
    Hold {
        #[arg(long)]
        device: String,
        #[arg(long = "address", required = true)]
        addresses: Vec<IpAddr>,
    },
}

#[derive(Debug, Subcommand)]
enum LabCommand {
    /// Starts a cluster and keeps it until Ctrl-C.
    Up {
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
        nodes: u8,
        /// Keep data and logs afterwards.
        #[arg(long)]
        keep: bool,
    },
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Output {
    Table,
    Json,
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("jepsen-like: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<(), Box<dyn std::error::Error>> {
    match command {
        Command::Lab(LabCommand::Up { nodes, keep }) => lab_up(nodes, keep)?,
        Command::Failover {
            runs,
            fault,
            nodes,
            output,
        } => measure_failover(runs, fault, nodes, output)?,
        Command::Clean => {
            for name in lab::clean()? {
                println!("removed namespace {name}");
            }
        }
        Command::Hold { device, addresses } => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(hold::hold(&device, &addresses))?;
        }
    }
    Ok(())
}

/// Fails with the reason when no lab can be made here.
fn require_lab() -> Result<(), LabError> {
    lab::missing().map_or(Ok(()), |reason| Err(LabError::Missing(reason)))
}

fn lab_up(nodes: u8, keep: bool) -> Result<(), Box<dyn std::error::Error>> {
    require_lab()?;
    let interrupted = interruption()?;
    let mut cluster = Cluster::start(nodes)?;
    println!("{}", directions(&cluster));
    println!("ready; Ctrl-C ends it");
    interrupted.wait();
    if keep {
        println!("kept {}", cluster.keep().display());
    }
    Ok(())
}

/// How to reach what runs in the lab.
fn directions(cluster: &Cluster) -> String {
    let client = cluster.client().name();
    let mut text = format!(
        "VIPs {} and {}\n  ip netns exec {client} dig @{} {NAME}\n  ip netns exec {client} curl http://{}/\n",
        vip4(),
        vip6(),
        vip4(),
        vip4(),
    );
    for node in cluster.nodes() {
        let (name, host) = (node.name(), node.host().name());
        let (socket, log) = (node.client().socket().display(), node.log());
        let pid = node.pid().map_or(0, nix::unistd::Pid::as_raw);
        text += &format!(
            "{name}: ip netns exec {host} bash; process {pid}; API unix:{socket}; log {}\n",
            log.display()
        );
    }
    text
}

fn measure_failover(
    runs: u32,
    fault: Fault,
    nodes: u8,
    output: Output,
) -> Result<(), Box<dyn std::error::Error>> {
    require_lab()?;
    let interrupted = interruption()?;
    let mut cluster = Cluster::start(nodes)?;
    let mut measured = vec![];
    for run in 1..=runs {
        if interrupted.is_over() {
            return Err("interrupted".into());
        }
        let gaps = failover::once(&mut cluster, fault).map_err(|error| cluster.with_logs(error))?;
        eprintln!("run {run}: {gaps:?}");
        measured.push(gaps);
    }
    let report = failover::Report {
        fault: format!("{fault:?}").to_lowercase(),
        runs: measured,
    };
    match output {
        Output::Table => print!("{report}"),
        Output::Json => println!("{}", report.to_json()),
    }
    Ok(())
}

/// SIGINT and SIGTERM, as something to wait for: the lab is to be taken down by its owner, not by the end of the process.
struct Interruption(std::sync::mpsc::Receiver<()>);

impl Interruption {
    fn wait(&self) {
        let _ = self.0.recv(); // an error is the end of the watcher: as well
    }

    fn is_over(&self) -> bool {
        self.0.try_recv() != Err(std::sync::mpsc::TryRecvError::Empty)
    }
}

fn interruption() -> Result<Interruption, std::io::Error> {
    use tokio::signal::unix::{SignalKind, signal};
    let (sender, receiver) = std::sync::mpsc::channel();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        )
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        let _ = sender.send(());
    });
    Ok(Interruption(receiver))
}
