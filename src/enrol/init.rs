//! `cluster init`: a new cluster of this one node.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::SystemTime,
};

use rand::RngExt;

use super::{
    identity_file::{
        Bootstrap, FirstMember, IdentityError, IdentityFile, StoredCertificate, StoredIdentity,
        write_secret,
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
    #[error("{}: it cannot be given to its owner: {source}", data_dir.display())]
    Owner {
        data_dir: PathBuf,
        source: std::io::Error,
    },
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error("administrator's certificate {}: {source}", path.display())]
    AdminCertificate {
        path: PathBuf,
        source: std::io::Error,
    },
}

/// What `init` did.
#[derive(Debug, PartialEq, Eq)]
pub enum Initialised {
    /// A new cluster, and where the first administrator's certificate lies.
    New {
        cluster: ClusterId,
        node: NodeId,
        admin: PathBuf,
    },
    /// This node had an identity already; nothing was changed.
    Already { cluster: ClusterId, node: NodeId },
}

/// Makes a cluster whose first member is this node. Running it again changes nothing.
///
/// `admin_dir` receives `admin.pem`, `admin.key` and `ca.pem` for the administrator `admin_name`, mode 0600.
pub fn init(
    config: &NodeConfig,
    admin_dir: &Path,
    admin_name: &str,
    now: SystemTime,
) -> Result<Initialised, InitError> {
    let file = IdentityFile::in_dir(&config.data_dir);
    if let Some(existing) = file.load()? {
        return Ok(Initialised::Already {
            cluster: existing.cluster,
            node: existing.node,
        });
    }
    let first = FirstMember {
        name: config.name.clone(),
        raft_address: config.addresses.raft,
        api_address: config.addresses.api,
    };
    let (identity, authority) = new_cluster(vec![first], !config.dev, now)?;
    let cluster = identity.cluster.clone();
    write_admin(&authority, &cluster, admin_dir, admin_name, now)?;
    // Last: from here on the node exists.
    file.store(&identity)?;
    give_to_owner(&config.data_dir).map_err(|source| InitError::Owner {
        data_dir: config.data_dir.clone(),
        source,
    })?;
    Ok(Initialised::New {
        cluster,
        node: identity.node,
        admin: admin_dir.to_owned(),
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

fn write_admin(
    authority: &Authority,
    cluster: &ClusterId,
    dir: &Path,
    name: &str,
    now: SystemTime,
) -> Result<(), InitError> {
    let made = certificate(authority, &Identity::admin(cluster.clone(), name), &[], now)?;
    let StoredCertificate {
        certificate,
        key,
        authorities,
    } = made;
    for (file, text) in [
        ("admin.pem", certificate),
        ("admin.key", key),
        ("ca.pem", authorities),
    ] {
        let path = dir.join(file);
        write_secret(&path, &text)
            .map_err(|source| InitError::AdminCertificate { path, source })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn init_makes_a_cluster_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let text = format!(
            "name = \"n1\"\ndata_dir = \"{}\"\n[addresses]\nservice = [\"10.0.0.1\"]\nraft = \"10.0.0.1:1\"\napi = \"10.0.0.1:2\"\n",
            dir.path().join("data").display()
        );
        let config = NodeConfig::parse(&text).expect("valid");
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
