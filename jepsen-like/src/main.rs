//! Arguments, and which part of the laboratory they mean.

use std::{net::IpAddr, process::ExitCode};

use clap::{Parser, Subcommand};
use jepsen_like::{hold, lab};

/// The fault laboratory of Pontoon: network namespaces, real nodes, real links to cut.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
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
