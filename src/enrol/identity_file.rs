//! `identity.toml` in the data directory: which node of which cluster this machine is, its certificate and key.
//!
//! One file, written whole and renamed into place, so that a crash leaves the old identity or the new one. Mode 0600: it
//! holds the private key. Its first line is a comment with a checksum of the rest: one bit less could make another node of this
//! one. A file without that line, of a version before, is believed.

use std::{
    fs,
    io::{self, Write},
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    model::node::{ClusterId, NodeId},
    pki::identity::Identity,
    state::command::NewMember,
    transport::credentials::{Credentials, CredentialsError},
};

const FORMAT: u32 = 1;
/// Begins the line with the checksum: CRC-32C of what follows the line, in eight hexadecimal digits.
const CHECKSUM: &str = "# crc32c ";

/// Why the identity cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("identity {}: {action}: {source}", path.display())]
    Io {
        path: PathBuf,
        action: &'static str,
        source: io::Error,
    },
    #[error("identity {}: {problem}", path.display())]
    Malformed { path: PathBuf, problem: String },
    #[error("identity {}: it is missing, and the log of a node is in {}: which node that is cannot be told", path.display(), log.display())]
    Missing { path: PathBuf, log: PathBuf },
    #[error("identity {}: written by a newer version ({found}; this program reads {FORMAT}): upgrade the program", path.display())]
    Version { path: PathBuf, found: u32 },
}

/// Who this node is.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredIdentity {
    version: u32,
    pub cluster: ClusterId,
    pub node: NodeId,
    pub name: String,
    /// None only in `pontoon dev`, which speaks plaintext on loopback.
    pub tls: Option<StoredCertificate>,
    /// Id of the join token by which this node was admitted; none for the first one.
    #[serde(default)]
    pub joined_by: Option<String>,
    /// Set by `init` until the first entry of the log is committed.
    pub bootstrap: Option<Bootstrap>,
}

/// Certificate, key and trusted authorities, in PEM.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredCertificate {
    pub certificate: String,
    pub key: String,
    pub authorities: String,
}

/// What the first entry of a new cluster's log says.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bootstrap {
    /// Certificate and key of the authority. Secret.
    pub authority: String,
    /// The first members; their ids count from 1 and this node is the first.
    pub members: Vec<FirstMember>,
}

/// A member of a cluster that begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FirstMember {
    pub name: String,
    pub raft_address: SocketAddr,
    pub api_address: SocketAddr,
}

impl From<FirstMember> for NewMember {
    fn from(first: FirstMember) -> Self {
        let FirstMember {
            name,
            raft_address,
            api_address,
        } = first;
        Self {
            name,
            raft_address,
            api_address,
        }
    }
}

impl StoredIdentity {
    pub fn new(cluster: ClusterId, node: NodeId, name: String) -> Self {
        Self {
            version: FORMAT,
            cluster,
            node,
            name,
            tls: None,
            joined_by: None,
            bootstrap: None,
        }
    }
}

impl StoredIdentity {
    /// This identity with another certificate.
    #[must_use]
    pub fn with_certificate(&self, tls: StoredCertificate) -> Self {
        Self {
            tls: Some(tls),
            ..self.clone()
        }
    }

    /// Certificate and key, read and checked; none in `pontoon dev`.
    ///
    /// # Errors
    /// When they cannot be read, or are those of another node.
    pub fn credentials(&self) -> Result<Option<Credentials>, CredentialsError> {
        let Some(tls) = &self.tls else {
            return Ok(None);
        };
        let credentials = tls.credentials()?;
        let stated = Identity::node(self.cluster.clone(), self.node);
        match *credentials.identity() == stated {
            true => Ok(Some(credentials)),
            false => Err(CredentialsError::OtherIdentity {
                stated: stated.to_uri(),
                certified: credentials.identity().to_uri(),
            }),
        }
    }

    /// This identity once its cluster has begun.
    #[must_use]
    pub fn begun(&self) -> Self {
        Self {
            bootstrap: None,
            ..self.clone()
        }
    }
}

impl StoredCertificate {
    /// Checks and reads the three texts.
    pub fn credentials(&self) -> Result<Credentials, CredentialsError> {
        Credentials::from_pem(&self.certificate, &self.key, &self.authorities)
    }
}

/// The file in its data directory.
#[derive(Clone, Debug)]
pub struct IdentityFile(PathBuf);

impl IdentityFile {
    pub fn in_dir(data_dir: &Path) -> Self {
        Self(data_dir.join("identity.toml"))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The identity; none when this machine has none yet.
    ///
    /// # Errors
    /// When the file is there and cannot be used.
    pub fn load(&self) -> Result<Option<StoredIdentity>, IdentityError> {
        let octets = match fs::read(&self.0) {
            Ok(octets) => octets,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(self.io("cannot be read", source)),
        };
        let malformed = |problem: String| IdentityError::Malformed {
            path: self.0.clone(),
            problem: format!("it is garbled: {problem}"),
        };
        let text = String::from_utf8(octets).map_err(|_| malformed("no text in UTF-8".into()))?;
        let text = unseal(&text).map_err(|problem| malformed(problem.into()))?;
        let table: toml::Table = text
            .parse()
            .map_err(|e: toml::de::Error| malformed(e.message().to_owned()))?;
        // Looked at first: a newer format may not fit the fields below.
        let version = table
            .get("version")
            .and_then(toml::Value::as_integer)
            .and_then(|v| u32::try_from(v).ok());
        match version {
            Some(FORMAT) => {}
            Some(found) if found > FORMAT => {
                return Err(IdentityError::Version {
                    path: self.0.clone(),
                    found,
                });
            }
            _ => return Err(malformed("no version number".into())),
        }
        table
            .try_into()
            .map(Some)
            .map_err(|e: toml::de::Error| malformed(e.message().to_owned()))
    }

    /// Writes the identity durably, making the data directory (mode 0700) if need be.
    ///
    /// # Errors
    /// When a directory or file cannot be written or synced; the old identity then stands.
    pub fn store(&self, identity: &StoredIdentity) -> Result<(), IdentityError> {
        let text = toml::to_string(identity).map_err(|e| IdentityError::Malformed {
            path: self.0.clone(),
            problem: e.to_string(),
        })?;
        write_secret(&self.0, seal(&text)).map_err(|source| self.io("cannot be written", source))
    }

    pub(crate) fn io(&self, action: &'static str, source: io::Error) -> IdentityError {
        IdentityError::Io {
            path: self.0.clone(),
            action,
            source,
        }
    }
}

fn seal(text: &str) -> String {
    let checksum = crc32c::crc32c(text.as_bytes());
    format!("{CHECKSUM}{checksum:08x}\n{text}")
}

/// What was sealed.
fn unseal(sealed: &str) -> Result<&str, &'static str> {
    let Some(rest) = sealed.strip_prefix(CHECKSUM) else {
        return Ok(sealed);
    };
    let (checksum, text) = rest.split_once('\n').ok_or("it ends in its first line")?;
    let expected = u32::from_str_radix(checksum, 16).ok();
    match expected == Some(crc32c::crc32c(text.as_bytes())) {
        true => Ok(text),
        false => Err("its checksum does not match"),
    }
}

/// Writes a file that only its owner may read: a new file, synced, renamed into place, the directory synced. Makes the
/// directory (mode 0700) when it is absent.
pub fn write_secret(path: &Path, contents: impl AsRef<[u8]>) -> io::Result<()> {
    put_secret(stage_secret(path, contents.as_ref())?, path)
}

/// The first half of `write_secret`: a new file beside `path`, synced. Dropped, it is gone.
pub fn stage_secret(path: &Path, contents: &[u8]) -> io::Result<tempfile::NamedTempFile> {
    let directory = directory_of(path)?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let mut file = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .tempfile_in(directory)?;
    file.write_all(contents)?;
    file.as_file().sync_all()?;
    Ok(file)
}

/// The second half of `write_secret`.
pub fn put_secret(staged: tempfile::NamedTempFile, path: &Path) -> io::Result<()> {
    staged.persist(path).map_err(|e| e.error)?;
    fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY)
        .open(directory_of(path)?)?
        .sync_all()
}

fn directory_of(path: &Path) -> io::Result<&Path> {
    match path.parent().ok_or(io::ErrorKind::InvalidInput)? {
        here if here.as_os_str().is_empty() => Ok(Path::new(".")),
        parent => Ok(parent),
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt, time::SystemTime};

    use super::*;
    use crate::pki::authority::{Authority, request};

    #[test]
    fn an_identity_is_read_back_and_kept_private() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = IdentityFile::in_dir(&dir.path().join("new"));
        assert!(file.load().expect("absent").is_none());
        let mut identity = StoredIdentity::new(ClusterId("c1".into()), NodeId(3), "n3".into());
        identity.bootstrap = Some(Bootstrap {
            authority: "pem\n".into(),
            members: vec![FirstMember {
                name: "n3".into(),
                raft_address: "127.0.0.1:1".parse().unwrap(),
                api_address: "127.0.0.1:2".parse().unwrap(),
            }],
        });
        file.store(&identity).expect("stored");
        assert!(file.load().expect("loaded") == Some(identity));
        let mode = |path: &Path| fs::metadata(path).expect("exists").permissions().mode() & 0o777;
        assert_eq!(mode(file.path()), 0o600);
        assert_eq!(mode(file.path().parent().unwrap()), 0o700);
    }

    /// A node must not start as another one.
    #[test]
    fn no_flipped_bit_makes_another_identity() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = IdentityFile::in_dir(dir.path());
        let identity = StoredIdentity::new(ClusterId("c1".into()), NodeId(1), "n1".into());
        file.store(&identity).expect("stored");
        let whole = fs::read(file.path()).expect("read");
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(file.path(), &flipped).expect("written");
            match file.load() {
                Ok(read) => assert!(read.as_ref() == Some(&identity), "bit {bit}"),
                Err(error) => assert!(error.to_string().contains("it is garbled"), "{error}"),
            }
        }
        let text = String::from_utf8(whole).expect("text");
        let (_, without) = text.split_once('\n').expect("several lines");
        fs::write(file.path(), without).expect("written");
        assert!(file.load().expect("as a version before wrote it") == Some(identity));
    }

    #[test]
    fn a_certificate_of_another_node_is_refused() {
        let cluster = ClusterId("c1".into());
        let now = SystemTime::now();
        let authority = Authority::create(&cluster, now).expect("authority");
        let request = request().expect("request");
        let certified = Identity::node(cluster.clone(), NodeId(1));
        let certificate = authority.sign(&request.csr_pem, &certified, &[], now);
        let tls = StoredCertificate {
            certificate: certificate.expect("signed"),
            key: request.key_pem,
            authorities: authority.certificate_pem().to_owned(),
        };
        for (id, is_own) in [(1, true), (3, false)] {
            let identity = StoredIdentity::new(cluster.clone(), NodeId(id), "n".into());
            let credentials = identity.with_certificate(tls.clone()).credentials();
            assert_eq!(credentials.is_ok(), is_own, "node {id}");
            if let Err(error) = credentials {
                let text = error.to_string();
                assert!(
                    text.contains("/node/1") && text.contains("/node/3"),
                    "{text}"
                );
            }
        }
    }

    #[test]
    fn a_damaged_or_newer_file_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = IdentityFile::in_dir(dir.path());
        for (text, expected) in [
            ("\0\u{1}", "identity"),
            ("", "no version number"),
            ("version = 1\nnode = 1", "missing field"),
            ("version = 9", "newer version"),
        ] {
            fs::write(file.path(), text).expect("written");
            let error = file.load().err().expect("refused").to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
