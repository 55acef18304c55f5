//! Whether a node of an existing development cluster is a member of it still, by what its data directory holds.

use std::path::Path;

use crate::enrol::vacancy::Vacancy;

/// How a node stands to its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It has an identity. Whether that can be used, the node says itself.
    Member,
    /// It left, or was removed, and its identity was set aside: started again it could only wait.
    Left,
    /// Its data is lost. To the others it is a member still.
    Lost,
}

impl Standing {
    pub(super) fn of(data_dir: &Path) -> Self {
        match Vacancy::of(data_dir) {
            // One that may not be looked for is no proof of a loss.
            Ok(None) | Err(_) => Self::Member,
            Ok(Some(Vacancy::Left { .. })) => Self::Left,
            Ok(Some(Vacancy::Lost { .. } | Vacancy::Unused)) => Self::Lost,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_node_that_left_is_told_from_one_that_lost_its_data() {
        let dir = tempfile::tempdir().expect("a directory");
        let data = dir.path().join("data");
        assert_eq!(Standing::of(&data), Standing::Lost);
        fs::create_dir(&data).expect("made");
        assert_eq!(Standing::of(&data), Standing::Lost);
        fs::write(data.join("identity.left.toml"), "").expect("written");
        assert_eq!(Standing::of(&data), Standing::Left);
        // It was admitted anew.
        fs::write(data.join("identity.toml"), "").expect("written");
        assert_eq!(Standing::of(&data), Standing::Member);
    }
}
