//! What is said when `init`, `restore` or `recover` did nothing with this machine's data: of which object, what is wrong with it, and what to do next.

use std::{io, path::Path};

use super::{cluster::emptied, exit};
use crate::{
    consensus::{
        features::TooOld, rescue::RescueError, snapshot_file::SnapshotError, storage::OpenError,
    },
    enrol::{IdentityError, init::InitError},
    node::rescue::{LockError, NodeRescueError},
    wire::{
        backup::BackupError,
        error::{Failure, FailureCode},
    },
};

/// What stops another process that has the data.
const STOP_IT: &str = "stop that process first; `systemctl stop pontoon`, if it is the node";
/// What is left when the log of this node cannot be used.
const ANOTHER_WAY: &str = "take the data of another node that is left, or make a new cluster of a backup: `pontoon restore FILE`, with an empty data directory";

/// Why nothing was restored or recovered.
pub fn of_rescue(error: NodeRescueError) -> Failure {
    match error {
        NodeRescueError::Lock(LockError::Held { path, holder }) => Failure::new(
            FailureCode::Conflict,
            directory(&path),
            format!("another process uses it (process {holder})"),
            STOP_IT,
        ),
        NodeRescueError::Lock(LockError::Directory { path, source }) => {
            in_directory(&path, &source)
        }
        NodeRescueError::Identity(error) => of_identity(&error),
        NodeRescueError::File { path, source } => exit::file(&path, &source),
        NodeRescueError::Backup { path, source } => of_backup(&path, &source),
        NodeRescueError::NotEmpty { data_dir } => Failure::new(
            FailureCode::Conflict,
            directory(&data_dir),
            "it holds a node already; a backup is restored into an empty directory only",
            format!(
                "to go on with that node alone, run `pontoon recover`; to give it up, {}",
                emptied(&data_dir)
            ),
        ),
        NodeRescueError::NoNode { data_dir } => Failure::new(
            FailureCode::NotFound,
            directory(&data_dir),
            "it holds no node",
            "check `data_dir` in the configuration; `pontoon restore` makes a node of a backup",
        ),
        NodeRescueError::Init(error) => of_init(error),
        NodeRescueError::Rescue(error) => of_data(error),
    }
}

/// Why no cluster was made.
pub fn of_init(error: InitError) -> Failure {
    let cluster =
        |code, problem: String, hint: String| Failure::new(code, "cluster", problem, hint);
    match &error {
        InitError::OldData { data_dir } => {
            let hint = emptied(data_dir);
            cluster(FailureCode::Conflict, error.to_string(), hint)
        }
        InitError::Identity(error) => of_identity(error),
        InitError::DataDir { source, .. } | InitError::Owner { source, .. } => {
            let hint = hint_of(source);
            cluster(FailureCode::Invalid, error.to_string(), hint)
        }
        InitError::AdminCertificate(_) => {
            let hint = "name a directory that can be written: --admin-dir DIR";
            cluster(FailureCode::Invalid, error.to_string(), hint.to_owned())
        }
        InitError::AdminNotInPlace { source } => {
            let problem = format!("it is made, but its {source}");
            let hint = "start the node, and make another with `pontoon cluster admin create admin` on this machine";
            cluster(FailureCode::Internal, problem, hint.to_owned())
        }
        InitError::Pki(_) => cluster(FailureCode::Internal, error.to_string(), String::new()),
    }
}

/// Why the data of a node could not be read or written.
fn of_data(error: RescueError) -> Failure {
    let failed = |code, problem: String, hint: &str| Failure::new(code, "node", problem, hint);
    match error {
        RescueError::Open(OpenError::File { path, source, .. })
        | RescueError::Snapshot(SnapshotError::File { path, source, .. })
        | RescueError::Open(OpenError::Snapshot(SnapshotError::File { path, source, .. })) => {
            exit::file(&path, &source)
        }
        RescueError::Open(OpenError::Busy { place }) => failed(
            FailureCode::Conflict,
            format!("the log in {place} is in use by another process"),
            STOP_IT,
        ),
        RescueError::Open(OpenError::NoSpace { place }) => failed(
            FailureCode::Internal,
            format!("no space left to open the log in {place}"),
            "make room and run it again",
        ),
        RescueError::Open(OpenError::Corrupt { place, problem }) => failed(
            FailureCode::Invalid,
            format!("the log in {place} is corrupt: {problem}"),
            ANOTHER_WAY,
        ),
        RescueError::Open(OpenError::TooOld(TooOld { level, known })) => failed(
            FailureCode::FeatureLevel,
            format!(
                "its cluster is at feature level {level}, and this program knows {known} at most"
            ),
            "install the release that the members ran, and run it again",
        ),
        RescueError::Empty => failed(
            FailureCode::Invalid,
            "it holds no state: this node never was a member".to_owned(),
            ANOTHER_WAY,
        ),
        RescueError::Refused(refusal) => refusal.into(),
        error @ (RescueError::Open(OpenError::Engine(_) | OpenError::Snapshot(_))
        | RescueError::Snapshot(_)
        | RescueError::Log(_)
        | RescueError::Entry { .. }) => {
            failed(FailureCode::Invalid, error.to_string(), ANOTHER_WAY)
        }
        error @ RescueError::Membership(_) => failed(FailureCode::Internal, error.to_string(), ""),
    }
}

fn of_identity(error: &IdentityError) -> Failure {
    let hint = match error {
        IdentityError::Io { source, .. } => hint_of(source),
        IdentityError::Malformed { .. } | IdentityError::Missing { .. } => {
            format!("put back a copy of the file if there is one; else {ANOTHER_WAY}")
        }
        IdentityError::Version { path, found } => {
            let object = format!("identity {}", path.display());
            let problem = format!("a newer release wrote it (version {found})");
            return exit::invalid(object, problem, "upgrade the program");
        }
    };
    exit::invalid("node", error, hint)
}

fn of_backup(path: &Path, error: &BackupError) -> Failure {
    match error {
        BackupError::Io(error) => exit::file(path, error),
        BackupError::Magic | BackupError::Damaged | BackupError::State(_) => exit::unusable(
            path,
            error,
            "name a file that `pontoon backup` of this release or an earlier one wrote",
        ),
    }
}

fn directory(path: &Path) -> String {
    format!("data directory {}", path.display())
}

fn in_directory(path: &Path, error: &io::Error) -> Failure {
    Failure {
        object: directory(path),
        ..exit::file(path, error)
    }
}

/// What to do about a file or directory, whichever it is.
fn hint_of(error: &io::Error) -> String {
    exit::file(Path::new(""), error).hint
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lacking() -> io::Error {
        io::Error::from_raw_os_error(libc::EISDIR)
    }

    /// All that operators meet, and what of it is to be read in the object and in what to do next.
    fn met() -> Vec<(NodeRescueError, &'static str, &'static str)> {
        let path = || Path::new("/d").to_owned();
        let identity = IdentityError::Version {
            path: path(),
            found: 9,
        };
        let open = |error| NodeRescueError::Rescue(RescueError::Open(error));
        vec![
            (
                NodeRescueError::Lock(LockError::Held {
                    path: path(),
                    holder: "7".into(),
                }),
                "data directory /d",
                "stop that process",
            ),
            (
                NodeRescueError::Lock(LockError::Directory {
                    path: path(),
                    source: lacking(),
                }),
                "data directory /d",
                "",
            ),
            (
                NodeRescueError::Identity(identity),
                "identity /d",
                "upgrade",
            ),
            (
                NodeRescueError::File {
                    path: path(),
                    source: lacking(),
                },
                "file /d",
                "name a file",
            ),
            (
                NodeRescueError::Backup {
                    path: path(),
                    source: BackupError::Io(lacking()),
                },
                "file /d",
                "name a file",
            ),
            (
                NodeRescueError::Backup {
                    path: path(),
                    source: BackupError::Damaged,
                },
                "file /d",
                "`pontoon backup`",
            ),
            (
                NodeRescueError::NotEmpty { data_dir: path() },
                "data directory /d",
                "find /d -mindepth 1 -delete",
            ),
            (
                NodeRescueError::NoNode { data_dir: path() },
                "data directory /d",
                "`pontoon restore`",
            ),
            (
                NodeRescueError::Init(InitError::OldData { data_dir: path() }),
                "cluster",
                "find /d -mindepth 1 -delete",
            ),
            (
                open(OpenError::Busy { place: "/d".into() }),
                "node",
                "stop that process",
            ),
            (
                open(OpenError::NoSpace { place: "/d".into() }),
                "node",
                "make room",
            ),
            (
                open(OpenError::TooOld(TooOld { level: 9, known: 1 })),
                "node",
                "install the release",
            ),
            (
                NodeRescueError::Rescue(RescueError::Empty),
                "node",
                "`pontoon restore FILE`",
            ),
        ]
    }

    #[test]
    fn every_failure_of_a_rescue_names_its_object_and_what_helps() {
        for (error, object, helps) in met() {
            let failure = of_rescue(error);
            assert_eq!(failure.object, object, "{failure:?}");
            assert!(
                !failure.hint.is_empty() && failure.hint.contains(helps),
                "{failure:?}"
            );
            let told = exit::advised(failure);
            assert!(!told.hint.contains("--help"), "{told:?}");
        }
    }
}
