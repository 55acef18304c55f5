//! `pontoon backup`, `restore` and `recover`.

use std::{
    fs::{self, File},
    io::{BufReader, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use clap::Args;
use serde::Serialize;

use super::{Context, client::Client, exit};
use crate::wire::{
    error::Failure,
    v1::{self, admin_client::AdminClient},
};

/// Write the whole replicated state into a file, secrets included
///
/// The file is made with mode 0600, and appears only when it is complete.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  pontoon backup -f pontoon.backup --consistency linearizable")]
pub struct Backup {
    /// The file
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
}

#[derive(Serialize)]
struct Written {
    file: String,
    /// Size in octets.
    bytes: u64,
    /// Revision of the state in it.
    revision: u64,
}

impl Backup {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let path = &self.file;
        let mut client = Client::connect(context).await?;
        let consistency = client.consistency();
        let mut file = beside(path)?;
        let mut chunks = client
            .open("backup", async |channel| {
                AdminClient::new(channel)
                    .backup(v1::BackupRequest { consistency })
                    .await
            })
            .await?;
        let mut bytes = 0;
        loop {
            let chunk = chunks
                .message()
                .await
                .map_err(|s| crate::api::status::failure_of(&s, "backup", false))?;
            let Some(chunk) = chunk else { break };
            file.write_all(&chunk.data)
                .map_err(|e| exit::file(path, e))?;
            bytes += chunk.data.len() as u64;
        }
        file.as_file().sync_all().map_err(|e| exit::file(path, e))?;
        // Read back before it gets its name: a backup that cannot be read is none.
        let reader = File::open(file.path()).map_err(|e| exit::file(path, e))?;
        let state =
            crate::wire::backup::read(BufReader::new(reader)).map_err(|e| exit::file(path, e))?;
        file.persist(path).map_err(|e| exit::file(path, e.error))?;
        let written = Written {
            file: path.display().to_string(),
            bytes,
            revision: state.revision(),
        };
        context.out.result(&written, || {
            format!(
                "wrote {} ({bytes} bytes, revision {})\n",
                written.file, written.revision
            )
        })
    }
}

/// A new file beside `path`, for its owner only.
fn beside(path: &Path) -> Result<tempfile::NamedTempFile, Failure> {
    let dir = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(0o600))
        .tempfile_in(dir)
        .map_err(|e| exit::file(path, e))
}
