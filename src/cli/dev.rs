//! `pontoon dev`.

use std::path::PathBuf;

use clap::Args;

use super::exit;
use crate::{
    dev::{self, DevOptions},
    wire::error::Failure,
};

/// Run a local cluster of real node processes on loopback, without root and without configuration
///
/// Node i (1, 2, ...) serves DNS on 127.0.0.1:(base+i), its API on base+100+i, HTTP on base+200+i. DNS on the virtual address
/// is 127.0.53.53:base. A line that begins with `ready` is printed when every node answers. It ends, with all its
/// processes, by Ctrl-C.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pontoon dev
  pontoon dev --nodes 5 --dir /tmp/five --port-base 6300
  pontoon --endpoints http://127.0.0.1:6401 cluster status")]
pub struct Dev {
    /// Number of nodes [default: 3]
    #[arg(long, value_name = "N")]
    nodes: Option<u16>,
    /// Keep the data here, and continue with it when it is there [default: a temporary directory]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// First of the ports that are used [default: 5300]
    #[arg(long, value_name = "PORT")]
    port_base: Option<u16>,
    /// Load no sample site: only the virtual address exists
    #[arg(long)]
    empty: bool,
}

impl Dev {
    pub fn run(self) -> Result<(), Failure> {
        let Self {
            nodes,
            dir,
            port_base,
            empty,
        } = self;
        let options = DevOptions {
            nodes,
            dir,
            port_base,
            empty,
        };
        dev::run(&options).map_err(|error| {
            let hint = error.hint();
            match error.is_usage() {
                true => exit::wrong_argument("dev", error, hint),
                false => exit::invalid("dev", error, hint),
            }
        })
    }
}
