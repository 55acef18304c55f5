//! `cluster init`: a new cluster of this one node.

use std::{
    fs::{self, File},
    io,
    net::IpAddr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use nix::fcntl::{Flock, FlockArg};
use rand::RngExt;

use super::{
    admin_files::{AdminFilesError, StagedAdmin},
    identity_file::{
        Bootstrap, FirstMember, IdentityError, IdentityFile, StoredCertificate, StoredIdentity,
    },
    ownership::give_to_owner,
};
use crate::{
    config::node::NodeConfig,
    model::node::{ClusterId, NodeId},
    pki::{
        PkiError,
        authority::{Authority, request},
        identity::Identity,
    },
};

/// Why no cluster was made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error("{} holds the log of a cluster but no identity, as after `cluster leave`: empty it, and make the new cluster then", data_dir.display())]
    OldData { data_dir: PathBuf },
    #[error("data directory {}: {action}: {source}", data_dir.display())]
    DataDir {
        data_dir: PathBuf,
        action: &'static str,
        source: io::Error,
    },
    #[error("{}: it cannot be given to its owner: {source}", data_dir.display())]
    Owner {
        data_dir: PathBuf,
        source: io::Error,
    },
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// Nothing was changed.
    #[error(transparent)]
    AdminCertificate(AdminFilesError),
    #[error(
        "the cluster is made, but its {source}; start the node, and make another with `pontoon cluster admin create admin` on this machine"
    )]
    AdminNotInPlace { source: AdminFilesError },
}

/// What `init` did.
#[derive(Debug, PartialEq, Eq)]
pub enum Initialised {
    /// A new cluster, and where the first administrator's certificate lies.
    New {
        cluster: ClusterId,
        node: NodeId,
        admin: PathBuf,
        /// Where the certificate of another cluster is kept that had lain there.
        kept: Option<PathBuf>,
    },
    /// This node had an identity already; nothing was changed.
    Already { cluster: ClusterId, node: NodeId },
}

/// Makes a cluster whose first member is this node. Running it again, or several at once, changes nothing more.
///
/// `admin_dir` receives `admin.pem`, `admin.key` and `ca.pem` for the administrator `admin_name`, mode 0600. Those of another
/// cluster that are there are kept in a directory below.
///
/// # Errors
/// When something cannot be read or written; then this machine has no identity yet, and `admin_dir` is as it was, but for
/// `AdminNotInPlace`.
pub fn init(
    config: &NodeConfig,
    admin_dir: &Path,
    admin_name: &str,
    now: SystemTime,
) -> Result<Initialised, InitError> {
    let _alone = alone_in(&config.data_dir)?;
    let file = IdentityFile::in_dir(&config.data_dir);
    if let Some(existing) = file.load()? {
        return Ok(Initialised::Already {
            cluster: existing.cluster,
            node: existing.node,
        });
    }
    let log = config.storage_dir().try_exists();
    let data_dir = config.data_dir.clone();
    match log {
        Ok(false) => establish(config, admin_dir, admin_name, now),
        // A new cluster cannot begin on the log of another one.
        Ok(true) => Err(InitError::OldData { data_dir }),
        Err(source) => Err(failed(&data_dir, "it cannot be looked into")(source)),
    }
}

/// The right to make an identity in `data_dir`, which is made (mode 0700) when it is absent; given back when dropped. Who comes
/// second waits, and finds what the first has made. The lock is on the directory itself: the file `lock` in it belongs to the
/// node, which may run already and wait for its identity.
fn alone_in(data_dir: &Path) -> Result<Flock<File>, InitError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data_dir)
        .map_err(failed(data_dir, "it cannot be made"))?;
    let directory = File::open(data_dir).map_err(failed(data_dir, "it cannot be opened"))?;
    Flock::lock(directory, FlockArg::LockExclusive)
        .map_err(|(_, errno)| failed(data_dir, "it cannot be locked")(errno.into()))
}

fn failed<'a>(data_dir: &'a Path, action: &'static str) -> impl Fn(io::Error) -> InitError + 'a {
    move |source| InitError::DataDir {
        data_dir: data_dir.to_owned(),
        action,
        source,
    }
}

/// The same for a data directory without an identity, whose state, if it has one, is that of the new cluster.
///
/// # Errors
/// As `init`.
pub fn establish(
    config: &NodeConfig,
    admin_dir: &Path,
    admin_name: &str,
    now: SystemTime,
) -> Result<Initialised, InitError> {
    let first = FirstMember {
        name: config.name.clone(),
        raft_address: config.addresses.raft,
        api_address: config.addresses.api,
    };
    let (identity, authority) = new_cluster(vec![first], !config.dev, now)?;
    let cluster = identity.cluster.clone();
    let admin = Identity::admin(cluster.clone(), admin_name);
    let admin = certificate(&authority, &admin, &[], now)?;
    let admin = StagedAdmin::stage(admin_dir, &admin).map_err(InitError::AdminCertificate)?;
    // From here on the node exists.
    IdentityFile::in_dir(&config.data_dir).store(&identity)?;
    // At once: a node that waits for it may look.
    let given = give_to_owner(&config.data_dir);
    let placed = admin.put();
    given.map_err(|source| InitError::Owner {
        data_dir: config.data_dir.clone(),
        source,
    })?;
    Ok(Initialised::New {
        cluster,
        node: identity.node,
        admin: admin_dir.to_owned(),
        kept: placed.map_err(|source| InitError::AdminNotInPlace { source })?,
    })
}

/// The identity of the first of `members`, and the authority of their cluster.
pub fn new_cluster(
    members: Vec<FirstMember>,
    tls: bool,
    now: SystemTime,
) -> Result<(StoredIdentity, Authority), PkiError> {
    let cluster = ClusterId(format!("{:032x}", rand::rng().random::<u128>()));
    let node = NodeId(1);
    let authority = Authority::create(&cluster, now)?;
    let name = members
        .first()
        .map(|first| first.name.clone())
        .unwrap_or_default();
    let addresses: Vec<IpAddr> = members
        .first()
        .map(|first| first.api_address.ip())
        .into_iter()
        .collect();
    let mut identity = StoredIdentity::new(cluster.clone(), node, name);
    if tls {
        identity.tls = Some(certificate(
            &authority,
            &Identity::node(cluster, node),
            &addresses,
            now,
        )?);
    }
    identity.bootstrap = Some(Bootstrap {
        authority: authority.to_pem(),
        members,
    });
    Ok((identity, authority))
}

/// Makes a key and has its certificate signed.
pub fn certificate(
    authority: &Authority,
    identity: &Identity,
    addresses: &[IpAddr],
    now: SystemTime,
) -> Result<StoredCertificate, PkiError> {
    let request = request()?;
    Ok(StoredCertificate {
        certificate: authority.sign(&request.csr_pem, identity, addresses, now)?,
        key: request.key_pem,
        authorities: authority.certificate_pem().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config_of(data_dir: &Path) -> NodeConfig {
        let text = format!(
            "name = \"n1\"\ndata_dir = \"{}\"\n[addresses]\nservice = [\"10.0.0.1\"]\nraft = \"10.0.0.1:1\"\napi = \"10.0.0.1:2\"\n",
            data_dir.display()
        );
        NodeConfig::parse(&text).expect("valid")
    }

    #[test]
    fn an_init_that_fails_takes_no_certificate_away() {
        let dir = tempfile::tempdir().expect("a directory");
        let admin = dir.path().join("admin");
        let first = config_of(&dir.path().join("data"));
        init(&first, &admin, "admin", SystemTime::now()).expect("made");
        let read = || {
            ["admin.pem", "admin.key", "ca.pem"]
                .map(|name| std::fs::read_to_string(admin.join(name)).expect("there"))
        };
        let before = read();
        // Nothing is there, and nothing can be made there, by root neither.
        let nowhere = dir.path().join("nowhere");
        std::os::unix::fs::symlink(dir.path().join("absent"), &nowhere).expect("made");
        let refused = init(&config_of(&nowhere), &admin, "admin", SystemTime::now());
        assert!(
            matches!(refused, Err(InitError::DataDir { .. })),
            "{refused:?}"
        );
        assert_eq!(read(), before);

        let second = config_of(&dir.path().join("data2"));
        let made = init(&second, &admin, "admin", SystemTime::now()).expect("made");
        let Initialised::New {
            kept: Some(kept), ..
        } = made
        else {
            panic!("{made:?}")
        };
        assert_ne!(read(), before);
        let key = std::fs::read_to_string(kept.join("admin.key")).expect("kept");
        assert_eq!(key, before[1]);
    }

    #[test]
    fn a_log_without_an_identity_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let (config, admin) = (
            config_of(&dir.path().join("data")),
            dir.path().join("admin"),
        );
        std::fs::create_dir_all(config.storage_dir()).expect("made");
        let refused = init(&config, &admin, "admin", SystemTime::now());
        assert!(
            matches!(refused, Err(InitError::OldData { .. })),
            "{refused:?}"
        );
        let file = IdentityFile::in_dir(&config.data_dir);
        assert!(file.load().expect("readable").is_none() && !admin.exists());
    }

    #[test]
    fn of_many_at_once_one_makes_the_cluster() {
        const MANY: usize = 6;
        let dir = tempfile::tempdir().expect("a directory");
        let config = config_of(&dir.path().join("data"));
        let admin = dir.path().join("admin");
        let together = std::sync::Barrier::new(MANY);
        let once = || {
            together.wait();
            init(&config, &admin, "admin", SystemTime::now()).expect("made")
        };
        let made: Vec<Initialised> = std::thread::scope(|scope| {
            let all: Vec<_> = (0..MANY).map(|_| scope.spawn(once)).collect();
            all.into_iter()
                .map(|one| one.join().expect("no panic"))
                .collect()
        });
        let stored = IdentityFile::in_dir(&config.data_dir).load();
        let stored = stored.expect("readable").expect("there").cluster;
        let mut new = 0;
        for made in made {
            let told = match made {
                Initialised::New { cluster, kept, .. } => {
                    new += 1;
                    assert_eq!(kept, None);
                    cluster
                }
                Initialised::Already { cluster, .. } => cluster,
            };
            assert_eq!(told, stored);
        }
        assert_eq!(new, 1);
        // No certificate of a cluster that does not exist was there to be kept.
        assert_eq!(fs::read_dir(&admin).expect("listed").count(), 3);
    }

    #[test]
    fn init_makes_a_cluster_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = config_of(&dir.path().join("data"));
        let admin = dir.path().join("admin");
        let made = init(&config, &admin, "admin", SystemTime::now()).expect("made");
        let Initialised::New { cluster, node, .. } = made else {
            panic!("{made:?}")
        };
        let again = init(&config, &admin, "admin", SystemTime::now()).expect("again");
        assert_eq!(
            again,
            Initialised::Already {
                cluster: cluster.clone(),
                node
            }
        );

        let stored = IdentityFile::in_dir(&config.data_dir)
            .load()
            .expect("readable")
            .expect("there");
        let credentials = stored
            .tls
            .expect("certificate")
            .credentials()
            .expect("usable");
        assert_eq!(
            *credentials.identity(),
            Identity::node(cluster.clone(), NodeId(1))
        );
        let read = |name: &str| std::fs::read_to_string(admin.join(name)).expect("written");
        let admin = crate::transport::credentials::Credentials::from_pem(
            &read("admin.pem"),
            &read("admin.key"),
            &read("ca.pem"),
        );
        assert_eq!(
            *admin.expect("usable").identity(),
            Identity::admin(cluster, "admin")
        );
    }
}
