//! What a data directory without an identity says of its machine.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::IdentityFile;

/// Why a machine has no identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vacancy {
    /// It has been no member yet: it waits for `init` or `join`.
    Unused,
    /// It left its cluster. What it was is in this file; its data has to go before it joins one again.
    Left { identity: PathBuf },
    /// It holds the log of a node, and does not say of which: it must not go on as if it were new.
    Lost { log: PathBuf },
}

impl Vacancy {
    /// Looks into `data_dir`; none: there is an identity, sound or not.
    ///
    /// # Errors
    /// When the directory cannot be looked into.
    pub fn of(data_dir: &Path) -> io::Result<Option<Self>> {
        // Snapshots alone, without the log in it, are what an interrupted `restore` leaves.
        let log = data_dir.join("log");
        let has_log = log.join("log").try_exists()?;
        let left = left_path(data_dir);
        // Last: an identity may be written meanwhile.
        if IdentityFile::in_dir(data_dir).path().try_exists()? {
            return Ok(None);
        }
        Ok(Some(match (left.try_exists()?, has_log) {
            (true, _) => Self::Left { identity: left },
            (false, true) => Self::Lost { log },
            (false, false) => Self::Unused,
        }))
    }
}

/// After leaving: sets the identity aside, so that a restart does not use it again.
///
/// # Errors
/// When it cannot be renamed.
pub fn retire(data_dir: &Path) -> io::Result<()> {
    fs::rename(IdentityFile::in_dir(data_dir).path(), left_path(data_dir))
}

fn left_path(data_dir: &Path) -> PathBuf {
    data_dir.join("identity.left.toml")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        enrol::StoredIdentity,
        model::node::{ClusterId, NodeId},
    };

    #[test]
    fn a_machine_that_left_is_told_from_one_that_lost_its_identity() {
        let dir = tempfile::tempdir().expect("a directory");
        let data = dir.path().join("data");
        let vacancy = || Vacancy::of(&data).expect("looked");
        assert_eq!(vacancy(), Some(Vacancy::Unused), "nothing is there");

        let file = IdentityFile::in_dir(&data);
        let identity = StoredIdentity::new(ClusterId("c".into()), NodeId(3), "n3".into());
        file.store(&identity).expect("stored");
        let log = data.join("log");
        fs::create_dir_all(log.join("log")).expect("made");
        assert_eq!(vacancy(), None);
        retire(&data).expect("set aside");
        let left = Vacancy::Left {
            identity: data.join("identity.left.toml"),
        };
        assert_eq!(vacancy(), Some(left));

        fs::remove_file(left_path(&data)).expect("removed");
        assert_eq!(vacancy(), Some(Vacancy::Lost { log: log.clone() }));
        fs::remove_dir(log.join("log")).expect("removed");
        assert_eq!(vacancy(), Some(Vacancy::Unused), "as `restore` leaves it");
    }
}
