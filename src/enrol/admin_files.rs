//! An administrator's certificate on disk: `admin.pem`, `admin.key` and `ca.pem` of one directory, mode 0600.
//!
//! New files are written beside the old ones first, and take their names when everything else has succeeded: what fails
//! leaves the certificate that was there. One of another cluster is copied into a directory below, named by that cluster.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rustls::pki_types::{CertificateDer, pem::PemObject};
use tempfile::NamedTempFile;

use super::identity_file::{StoredCertificate, put_secret, stage_secret, write_secret};
use crate::pki::identity::Identity;

/// In the order in which they take their names: the command line looks for the last.
const FILES: [&str; 3] = ["ca.pem", "admin.key", "admin.pem"];
/// Most certificates that are kept of one cluster.
const MOST_KEPT: u32 = 100;
/// Directory of what is kept when it is no certificate of a cluster.
const UNKNOWN: &str = "unknown";

/// Why the files could not be written.
#[derive(Debug, thiserror::Error)]
#[error("administrator's certificate {}: {action}: {source}", path.display())]
pub struct AdminFilesError {
    path: PathBuf,
    action: &'static str,
    source: io::Error,
}

/// A certificate that is written and has not its names yet. Dropped, it leaves no trace in their place.
#[derive(Debug)]
pub struct StagedAdmin {
    files: Vec<(NamedTempFile, PathBuf)>,
    kept: Option<PathBuf>,
}

impl StagedAdmin {
    /// Writes `made` beside the names in `dir`, which is made (mode 0700) when it is absent. A certificate of another
    /// cluster that is there already is copied first.
    ///
    /// # Errors
    /// When something cannot be read or written; what was there is as it was.
    pub fn stage(dir: &Path, made: &StoredCertificate) -> Result<Self, AdminFilesError> {
        let StoredCertificate {
            certificate,
            key,
            authorities,
        } = made;
        let mut files = Vec::new();
        for (name, text) in FILES.into_iter().zip([authorities, key, certificate]) {
            let path = dir.join(name);
            let staged = stage_secret(&path, text.as_bytes());
            files.push((staged.map_err(failed(&path, "it cannot be written"))?, path));
        }
        let kept = keep(dir, cluster_of(certificate.as_bytes()).as_deref())?;
        Ok(Self { files, kept })
    }

    /// Gives the files their names. Returns where the certificate of another cluster is kept, if there was one.
    ///
    /// # Errors
    /// When a file cannot be renamed.
    pub fn put(self) -> Result<Option<PathBuf>, AdminFilesError> {
        for (file, path) in self.files {
            put_secret(file, &path).map_err(failed(&path, "it cannot be put in place"))?;
        }
        Ok(self.kept)
    }
}

/// Whose certificate lies in `dir`; none: there is none, or it cannot be read.
pub fn holder(dir: &Path) -> Option<Identity> {
    let [_, _, certificate] = FILES;
    let pem = fs::read(dir.join(certificate)).ok()?;
    Identity::of_certificate(&CertificateDer::from_pem_slice(&pem).ok()?)
}

/// Contents of `FILES`; none for one that is absent.
type Contents = [Option<Vec<u8>>; 3];

/// Copies what lies in `dir` into a directory below, unless it is of `ours` or nothing is there.
fn keep(dir: &Path, ours: Option<&str>) -> Result<Option<PathBuf>, AdminFilesError> {
    let found = contents(dir)?;
    let [_, _, certificate] = &found;
    let theirs = certificate.as_deref().and_then(cluster_of);
    let is_ours = theirs.is_some() && theirs.as_deref() == ours;
    if is_ours || found.iter().all(Option::is_none) {
        return Ok(None);
    }
    let name = theirs.as_deref().unwrap_or(UNKNOWN);
    for number in 1..=MOST_KEPT {
        let aside = match number {
            1 => dir.join(name),
            _ => dir.join(format!("{name}-{number}")),
        };
        let there = contents(&aside)?;
        if there == found {
            return Ok(Some(aside));
        }
        if there.iter().all(Option::is_none) {
            copy(&aside, &found)?;
            return Ok(Some(aside));
        }
    }
    let many = io::Error::other(format!("{MOST_KEPT} others of its name are kept already"));
    Err(failed(&dir.join(name), "it cannot be kept")(many))
}

fn copy(aside: &Path, found: &Contents) -> Result<(), AdminFilesError> {
    for (name, octets) in FILES.into_iter().zip(found) {
        if let Some(octets) = octets {
            let path = aside.join(name);
            write_secret(&path, octets).map_err(failed(&path, "it cannot be kept"))?;
        }
    }
    Ok(())
}

fn contents(dir: &Path) -> Result<Contents, AdminFilesError> {
    let read = |name: &str| {
        let path = dir.join(name);
        match fs::read(&path) {
            Ok(octets) => Ok(Some(octets)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(&path, "it cannot be read, so it cannot be kept")(
                error,
            )),
        }
    };
    let [authorities, key, certificate] = FILES;
    Ok([read(authorities)?, read(key)?, read(certificate)?])
}

/// The id of the cluster in a certificate (PEM), when it is fit for the name of a directory.
fn cluster_of(pem: &[u8]) -> Option<String> {
    let der = CertificateDer::from_pem_slice(pem).ok()?;
    let cluster = Identity::of_certificate(&der)?.cluster.0;
    let is_plain = !cluster.is_empty() && cluster.bytes().all(|b| b.is_ascii_alphanumeric());
    is_plain.then_some(cluster)
}

fn failed<'a>(path: &'a Path, action: &'static str) -> impl Fn(io::Error) -> AdminFilesError + 'a {
    move |source| AdminFilesError {
        path: path.to_owned(),
        action,
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt, time::SystemTime};

    use super::*;
    use crate::{enrol::init::certificate, model::node::ClusterId, pki::authority::Authority};

    fn of_cluster(id: &str) -> StoredCertificate {
        let cluster = ClusterId(id.into());
        let authority = Authority::create(&cluster, SystemTime::now()).expect("made");
        let identity = Identity::admin(cluster, "ann");
        certificate(&authority, &identity, &[], SystemTime::now()).expect("signed")
    }

    fn put(dir: &Path, made: &StoredCertificate) -> Option<PathBuf> {
        StagedAdmin::stage(dir, made)
            .expect("staged")
            .put()
            .expect("put")
    }

    fn is_there(dir: &Path, made: &StoredCertificate) -> bool {
        let expected = [&made.authorities, &made.key, &made.certificate];
        contents(dir).expect("readable") == expected.map(|text| Some(text.clone().into_bytes()))
    }

    #[test]
    fn the_certificate_of_another_cluster_is_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = dir.path().join("new");
        let (first, second, third) = (of_cluster("c1"), of_cluster("c2"), of_cluster("c2"));
        assert_eq!(put(&at, &first), None);
        assert_eq!(put(&at, &second), Some(at.join("c1")));
        assert!(is_there(&at, &second) && is_there(&at.join("c1"), &first));
        // A new one of the same cluster takes its place.
        assert_eq!(put(&at, &third), None);
        assert!(is_there(&at, &third));
        // Kept once, however often; and beside another one of its cluster.
        assert_eq!(put(&at, &first), Some(at.join("c2")));
        assert_eq!(put(&at, &second), Some(at.join("c1")));
        assert_eq!(put(&at, &first), Some(at.join("c2-2")));
        assert!(is_there(&at.join("c2"), &third) && is_there(&at.join("c2-2"), &second));
        for file in ["admin.key", "c1/admin.key", "c2-2/ca.pem"] {
            let mode = fs::metadata(at.join(file))
                .expect("there")
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
    }

    #[test]
    fn what_is_no_certificate_is_kept_too() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("admin.pem"), "mine").expect("written");
        let kept = put(dir.path(), &of_cluster("c1")).expect("kept");
        assert_eq!(kept, dir.path().join("unknown"));
        assert_eq!(fs::read(kept.join("admin.pem")).expect("there"), b"mine");
    }

    #[test]
    fn what_is_not_put_in_place_leaves_the_old() {
        let dir = tempfile::tempdir().expect("a directory");
        let old = of_cluster("c1");
        put(dir.path(), &old);
        drop(StagedAdmin::stage(dir.path(), &of_cluster("c2")).expect("staged"));
        assert!(is_there(dir.path(), &old));
        let names = fs::read_dir(dir.path()).expect("listed").count();
        assert_eq!(
            names,
            FILES.len() + 1,
            "the copy, and no part of the new one"
        );
    }
}
