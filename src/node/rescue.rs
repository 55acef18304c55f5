//! Disaster recovery of this machine's node, while it does not run: `pontoon restore` and `pontoon recover`.

use std::{
    fs::File,
    io::{self, BufReader},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use super::lock::DataDirLock;
pub use super::lock::LockError;
use crate::{
    config::node::NodeConfig,
    consensus::{
        rescue::{self, Recovered, RescueError},
        types::Peer,
    },
    enrol::{
        IdentityError, IdentityFile,
        init::{self, InitError, Initialised},
        ownership::give_to_owner,
    },
    model::node::NodeId,
    state::{State, command::UnixMillis},
    wire::backup::{self, BackupError},
};

/// Why nothing was restored or recovered.
#[derive(Debug, thiserror::Error)]
pub enum NodeRescueError {
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{}: {source}", path.display())]
    Backup { path: PathBuf, source: BackupError },
    #[error("{} holds a node already; a backup is restored into an empty directory only", data_dir.display())]
    NotEmpty { data_dir: PathBuf },
    #[error("{} holds no node; `pontoon restore` makes one of a backup", data_dir.display())]
    NoNode { data_dir: PathBuf },
    #[error(transparent)]
    Init(#[from] InitError),
    #[error(transparent)]
    Rescue(#[from] RescueError),
}

/// The state in a backup.
///
/// # Errors
/// When the file cannot be read or is no backup.
pub fn read_backup(file: &Path) -> Result<State, NodeRescueError> {
    let opened = File::open(file).map_err(|source| NodeRescueError::File {
        path: file.to_owned(),
        source,
    })?;
    backup::read(BufReader::new(opened)).map_err(|source| NodeRescueError::Backup {
        path: file.to_owned(),
        source,
    })
}

/// Makes this machine the first node of a new cluster with the service of `state`, which was read of a backup. Serials and the
/// revision leap past anything the old cluster may have served. `admin_dir` receives the administrator's certificate, as with
/// `cluster init`.
///
/// # Errors
/// When the data directory is not empty, or something cannot be written; then this machine has no identity yet, and the call may
/// be made again.
pub fn restore(
    config: &NodeConfig,
    state: &State,
    admin_dir: &Path,
    admin: &str,
) -> Result<Initialised, NodeRescueError> {
    let _lock = DataDirLock::take(&config.data_dir)?;
    let made = restore_locked(config, state, admin_dir, admin);
    and_given(config, made)
}

fn restore_locked(
    config: &NodeConfig,
    state: &State,
    admin_dir: &Path,
    admin: &str,
) -> Result<Initialised, NodeRescueError> {
    let identity = IdentityFile::in_dir(&config.data_dir);
    let storage = config.storage_dir();
    // A log without an identity is a node's all the same: it is for a person to remove.
    if identity.load()?.is_some() || storage.join("log").exists() {
        return Err(NodeRescueError::NotEmpty {
            data_dir: config.data_dir.clone(),
        });
    }
    // Snapshots alone are what an interrupted `restore` left.
    if storage.exists() {
        std::fs::remove_dir_all(&storage).map_err(|source| NodeRescueError::File {
            path: storage.clone(),
            source,
        })?;
    }
    std::fs::create_dir_all(&storage).map_err(|source| NodeRescueError::File {
        path: storage.clone(),
        source,
    })?;
    let restored = state.restored(now(), admin);
    rescue::seed(&storage, &restored, (NodeId(1), peer(config)))?;
    // Last: from here on the node exists.
    Ok(init::establish(
        config,
        admin_dir,
        admin,
        SystemTime::now(),
    )?)
}

/// Makes this node a cluster of its own, when the majority of its cluster is gone for ever.
///
/// # Errors
/// When it runs, is no member, or its data cannot be read or written.
pub async fn recover(config: &NodeConfig) -> Result<Recovered, NodeRescueError> {
    let me = (own_id(config)?, peer(config));
    let _lock = DataDirLock::take(&config.data_dir)?;
    let recovered = rescue::recover(&config.storage_dir(), me, now()).await;
    and_given(config, recovered)
}

/// What `recover` would do, without doing it. It opens the log, which may write what a start of the node would.
///
/// # Errors
/// As `recover`.
pub async fn outlook(config: &NodeConfig) -> Result<Recovered, NodeRescueError> {
    let me = own_id(config)?;
    let _lock = DataDirLock::take(&config.data_dir)?;
    let outlook = rescue::outlook(&config.storage_dir(), me).await;
    and_given(config, outlook)
}

/// Whatever came of it, the files that were made or written are the service's.
fn and_given<T, E: Into<NodeRescueError>>(
    config: &NodeConfig,
    found: Result<T, E>,
) -> Result<T, NodeRescueError> {
    let given = give_to_owner(&config.data_dir).map_err(|source| NodeRescueError::File {
        path: config.data_dir.clone(),
        source,
    });
    let found = found.map_err(Into::into)?;
    given.map(|()| found)
}

fn own_id(config: &NodeConfig) -> Result<NodeId, NodeRescueError> {
    let identity = IdentityFile::in_dir(&config.data_dir).load()?;
    let identity = identity.ok_or_else(|| NodeRescueError::NoNode {
        data_dir: config.data_dir.clone(),
    })?;
    Ok(identity.node)
}

fn peer(config: &NodeConfig) -> Peer {
    Peer {
        name: config.name.clone(),
        raft_address: config.addresses.raft,
        api_address: config.addresses.api,
    }
}

fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    UnixMillis(since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config_in(dir: &Path) -> NodeConfig {
        let text = format!(
            "name = \"n1\"\ndata_dir = \"{}\"\n[addresses]\nservice = [\"10.0.0.1\"]\nraft = \"10.0.0.1:1\"\napi = \"10.0.0.1:2\"\n",
            dir.join("data").display()
        );
        NodeConfig::parse(&text).expect("valid")
    }

    #[tokio::test]
    async fn a_look_at_a_node_leaves_nothing_of_root_behind() {
        use std::os::unix::fs::{MetadataExt, lchown};
        if !nix::unistd::geteuid().is_root() {
            return crate::skipped::skip("only root gives files away");
        }
        let dir = tempfile::tempdir().expect("a directory");
        let config = config_in(dir.path());
        // Where no node is, nothing is made.
        let nothing = outlook(&config).await;
        assert!(matches!(nothing, Err(NodeRescueError::NoNode { .. })));
        assert!(!config.data_dir.exists());
        let cluster = crate::model::node::ClusterId("c".into());
        let identity = crate::enrol::StoredIdentity::new(cluster, NodeId(1), "n1".into());
        let file = IdentityFile::in_dir(&config.data_dir);
        file.store(&identity).expect("stored");
        lchown(&config.data_dir, Some(65_534), Some(65_534)).expect("given");
        // A node that never was a member: its log is opened, and made.
        let empty = outlook(&config).await;
        assert!(matches!(
            empty,
            Err(NodeRescueError::Rescue(RescueError::Empty))
        ));
        let mut seen = 0;
        let mut dirs = vec![config.data_dir.clone()];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).expect("listed").flatten() {
                let found = entry.metadata().expect("there");
                assert_eq!(found.uid(), 65_534, "{:?}", entry.path());
                seen += 1;
                if found.is_dir() {
                    dirs.push(entry.path());
                }
            }
        }
        assert!(seen > 3, "only {seen} files");
    }

    #[test]
    fn a_backup_is_restored_once_into_an_empty_directory() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = config_in(dir.path());
        let (file, admin) = (dir.path().join("backup"), dir.path().join("admin"));
        let mut octets = Vec::new();
        backup::write(&State::default(), &mut octets).expect("written");
        std::fs::write(&file, octets).expect("written");
        let state = read_backup(&file).expect("read");
        let made = restore(&config, &state, &admin, "ann").expect("restored");
        assert!(
            matches!(made, Initialised::New { kept: None, .. }),
            "{made:?}"
        );
        assert!(admin.join("admin.pem").exists() && config.storage_dir().exists());
        let again = restore(&config, &state, &admin, "ann");
        assert!(matches!(again, Err(NodeRescueError::NotEmpty { .. })));
    }

    #[test]
    fn a_refused_restore_leaves_nothing_of_root_behind() {
        use std::os::unix::fs::{MetadataExt, lchown};
        if !nix::unistd::geteuid().is_root() {
            return crate::skipped::skip("only root gives files away");
        }
        let dir = tempfile::tempdir().expect("a directory");
        let config = config_in(dir.path());
        let cluster = crate::model::node::ClusterId("c".into());
        let identity = crate::enrol::StoredIdentity::new(cluster, NodeId(1), "n1".into());
        let file = IdentityFile::in_dir(&config.data_dir);
        file.store(&identity).expect("stored");
        lchown(&config.data_dir, Some(65_534), Some(65_534)).expect("given");
        let refused = restore(&config, &State::default(), dir.path(), "ann");
        assert!(matches!(refused, Err(NodeRescueError::NotEmpty { .. })));
        // The service is to be able to lock it.
        let lock = std::fs::metadata(config.data_dir.join("lock")).expect("there");
        assert_eq!(lock.uid(), 65_534);
    }

    #[test]
    fn a_directory_is_no_backup_and_is_called_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let Err(error) = read_backup(dir.path()) else {
            panic!("read a directory");
        };
        assert!(error.to_string().contains("Is a directory"), "{error}");
    }
}
