//! `pontoon backup`, `restore` and `recover`.

use std::{
    fs::File,
    io::BufReader,
    path::{Path, PathBuf},
};

use clap::Args;
use serde::Serialize;

use super::{
    Context,
    client::Client,
    cluster::{NODE_TOML, kept_text, load_config},
    data_dir::DataDir,
    data_failure,
    endpoint::admin_dir,
    exit,
    whole_file::{Place, Readers, WholeFile},
};
use crate::{
    config::node::NodeConfig,
    enrol::init::Initialised,
    node::rescue,
    wire::{
        error::{Failure, FailureCode},
        v1::{self, admin_client::AdminClient},
    },
};

/// Write the whole replicated state into a file, secrets included
///
/// The file is made with mode 0600, and appears only when it is complete. It may take longer than `--timeout`, which then
/// limits how long the node may send nothing.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  pontoon backup -f pontoon.backup --consistency linearizable")]
pub struct Backup {
    /// The file
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
}

/// Make a new cluster of a backup, this machine its first node
///
/// The node must not run, and its data directory must hold no node. The cluster has a new id and new certificates; every
/// serial, and the revision, leap past anything that may have been served after the backup. Other machines join anew.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  pontoon restore pontoon.backup --config /etc/pontoon/node.toml"
)]
pub struct Restore {
    /// What `pontoon backup` wrote
    file: PathBuf,
    /// Configuration of this machine's node
    #[arg(long, default_value = NODE_TOML, value_name = "FILE")]
    config: PathBuf,
    /// Where the administrator's certificate goes [default: ~/.config/pontoon]
    #[arg(long, value_name = "DIR")]
    admin_dir: Option<PathBuf>,
    /// Name of the administrator, for history
    #[arg(long, default_value = "admin", value_parser = super::cluster::admin_name)]
    admin: String,
}

/// Go on with this node alone, when the majority of its cluster is gone for ever
///
/// The node must not run. Everything in its log is taken for committed, and all other members are retired: they must never
/// be started again with their old data. Writes that only they had acknowledged are lost. Without `--force` it says what it
/// would do, and ends with exit code 1.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  pontoon recover                  # says what it would do\n  pontoon recover --config /etc/pontoon/node.toml --force"
)]
pub struct Recover {
    /// Configuration of this machine's node
    #[arg(long, default_value = NODE_TOML, value_name = "FILE")]
    config: PathBuf,
    /// Do it: the other members are gone for ever. Without this, what would be done is said and nothing is changed
    #[arg(long)]
    force: bool,
}

#[derive(Serialize)]
struct Restored {
    cluster: String,
    node: u64,
    admin_dir: String,
    /// Where the certificate of another cluster is kept that had lain there.
    kept: Option<String>,
}

impl Restore {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        let config = load_config(&self.config)?;
        let dir = self.admin_dir.unwrap_or_else(admin_dir);
        // First: what is no backup leaves nothing on this machine.
        let state = rescue::read_backup(&self.file).map_err(data_failure::of_rescue)?;
        let data_dir = DataDir::of(context, &config, &self.config);
        data_dir.prepare()?;
        let made =
            rescue::restore(&config, &state, &dir, &self.admin).map_err(data_failure::of_rescue)?;
        data_dir.tell(context);
        let (cluster, node, kept) = match made {
            Initialised::New {
                cluster,
                node,
                kept,
                ..
            } => (cluster, node, kept),
            Initialised::Already { cluster, node } => (cluster, node, None),
        };
        let restored = Restored {
            cluster: cluster.0,
            node: node.0,
            admin_dir: dir.display().to_string(),
            kept: kept.map(|dir| dir.display().to_string()),
        };
        context.out.result(&restored, || {
            format!(
                "made cluster {} of the backup; this machine is node {}\nadministrator's certificate: {}\n{}start the node: pontoon node --config {}\n",
                restored.cluster,
                restored.node,
                restored.admin_dir,
                kept_text(restored.kept.as_deref()),
                self.config.display()
            )
        })
    }
}

#[derive(Serialize)]
struct Recovered {
    revision: u64,
    /// Ids of the members that were retired for ever.
    retired: Vec<u64>,
}

impl Recover {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let config = load_config(&self.config)?;
        if !self.force {
            return Err(unconfirmed(&config).await);
        }
        context.out.warn(
            "the other members must never be started again with their data: they would be a second cluster of the same name",
        );
        let data_dir = DataDir::of(context, &config, &self.config);
        let recovered = rescue::recover(&config)
            .await
            .map_err(data_failure::of_rescue)?;
        data_dir.tell(context);
        let recovered = Recovered {
            revision: recovered.revision,
            retired: recovered.retired.iter().map(|id| id.0).collect(),
        };
        context.out.result(&recovered, || {
            format!(
                "this node goes on alone (revision {}, {} members retired)\nstart the node: pontoon node --config {}\n",
                recovered.revision,
                recovered.retired.len(),
                self.config.display()
            )
        })
    }
}

/// What would be done, as the reason why it was not.
async fn unconfirmed(config: &NodeConfig) -> Failure {
    match rescue::outlook(config).await {
        Err(error) => data_failure::of_rescue(error),
        Ok(outlook) => {
            let retired: Vec<String> = outlook.retired.iter().map(|id| id.0.to_string()).collect();
            let problem = format!(
                "nothing was changed: the node would go on alone from revision {}, and these members would be retired for \
                 ever: {}. What only they had acknowledged would be lost",
                outlook.revision,
                if retired.is_empty() {
                    "none".to_owned()
                } else {
                    retired.join(", ")
                },
            );
            Failure::new(
                FailureCode::PreconditionFailed,
                "recover",
                problem,
                "if they are gone for ever, run it again with --force",
            )
        }
    }
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
        let path = &target(&self.file)?;
        let mut client = Client::connect(context).await?;
        let consistency = client.consistency();
        let mut file = WholeFile::begin(path.clone(), Readers::Owner)?;
        let mut chunks = client
            .open("backup", async |channel| {
                AdminClient::new(channel)
                    .backup(v1::BackupRequest { consistency })
                    .await
            })
            .await?;
        let mut bytes = 0;
        let silence = context.global.timeout;
        while let Some(chunk) = client.next("backup", &mut chunks, silence).await? {
            file.write(&chunk.data)?;
            bytes += chunk.data.len() as u64;
        }
        // Read back before it gets its name: a backup that cannot be read is none.
        let reader = File::open(file.synced()?).map_err(|e| exit::file(path, &e))?;
        let state = crate::wire::backup::read(BufReader::new(reader)).map_err(|e| {
            exit::unusable(
                path,
                e,
                "what was written cannot be read back: check the disk",
            )
        })?;
        file.complete()?;
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

/// Where a backup gets its name: nothing but a file is replaced.
fn target(path: &Path) -> Result<PathBuf, Failure> {
    let hint = "name a file: a backup is read back before it gets its name, which a stream or a device cannot be";
    match Place::of(path)? {
        Place::File(path) => Ok(path),
        Place::Stream => Err(exit::unusable(path, "it is no file", hint)),
    }
}
