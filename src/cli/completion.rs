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

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// What `docs/install.md` has made before a package.
    const MADE: [&str; 3] = [
        "target/release/pontoon",
        "target/package/man/*.1",
        "target/package/pontoon.bash",
    ];

    #[test]
    fn packages_hold_files_that_exist() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let read = |name: &str| std::fs::read_to_string(root.join(name)).expect(name);
        let manifest: toml::Table = read("Cargo.toml").parse().expect("TOML");
        let metadata = &manifest["package"]["metadata"];
        let deb = metadata["deb"]["assets"].as_array().expect("assets");
        let rpm = metadata["generate-rpm"]["assets"]
            .as_array()
            .expect("assets");
        let pairs = |asset: &toml::Value| match asset {
            toml::Value::Array(of) => (of[0].clone(), of[1].clone()),
            asset => (asset["source"].clone(), asset["dest"].clone()),
        };
        for asset in deb.iter().chain(rpm) {
            let (source, dest) = pairs(asset);
            let source = source.as_str().expect("a path");
            let is_there = MADE.contains(&source) || root.join(source).is_file();
            assert!(is_there, "{source}");
            assert!(
                dest.as_str().is_some_and(|dest| dest.contains("usr/")),
                "{dest}"
            );
        }
        assert_eq!(deb.len(), rpm.len());
        let scripts = metadata["deb"]["maintainer-scripts"].as_str();
        assert!(
            root.join(scripts.expect("a directory"))
                .join("postinst")
                .is_file()
        );
        // The commands that make the rest are those that are shown.
        let install = read("docs/install.md");
        for made in [
            "man --dir target/package/man",
            "> target/package/pontoon.bash",
        ] {
            assert!(install.contains(made), "{made}");
        }
    }
}
