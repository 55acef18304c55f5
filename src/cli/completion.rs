//! `pontoon completion` and `pontoon man`: made from the declarations of the commands.

use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, Context, exit};
use crate::wire::error::Failure;

/// Write a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pontoon completion bash > /etc/bash_completion.d/pontoon
  pontoon completion zsh > \"${fpath[1]}/_pontoon\"")]
pub struct Completion {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Write the manual pages
///
/// Without a directory, the page of `pontoon` itself goes to stdout.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  pontoon man --dir /usr/local/share/man/man1")]
pub struct Man {
    /// Write a page for each command into this directory
    #[arg(long)]
    dir: Option<PathBuf>,
}

impl Completion {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "pontoon", &mut script);
        context.out.text(&String::from_utf8_lossy(&script))
    }
}

impl Man {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        let Some(dir) = self.dir else {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command())
                .render(&mut page)
                .map_err(|e| exit::internal("manual page", e))?;
            return context.out.text(&String::from_utf8_lossy(&page));
        };
        std::fs::create_dir_all(&dir).map_err(|e| exit::file(&dir, &e))?;
        clap_mangen::generate_to(Cli::command(), &dir).map_err(|e| exit::file(&dir, &e))
    }
}
