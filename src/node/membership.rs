//! Coming to be a member: waiting for an identity, and the first entry of a new cluster's log.

use std::{
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crate::{
    api::group::no_group,
    consensus::{Consensus, InitError},
    enrol::{
        IdentityError, IdentityFile, StoredIdentity, identity_file::Bootstrap, vacancy::Vacancy,
    },
    model::node::ClusterId,
    pki::token::hash_secret,
    state::{
        command::{Change, Command, JoinToken, NewMember, RequestId, Secret, UnixMillis},
        outcome::{Outcome, Refusal},
    },
    wire::error::{Failure, FailureCode},
};

/// Between two looks for an identity that `cluster init` or `cluster join` may write.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// Longest wait for one attempt to commit the first entry.
const FIRST_ENTRY: Duration = Duration::from_secs(10);

/// Why a new cluster could not begin.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    #[error("the first entry of the log: {0}")]
    Init(#[from] InitError),
    #[error("the first entry of the log was refused: {0}")]
    Refused(#[from] Refusal),
    #[error("the first entry of the log: its outcome is not known")]
    Unknown,
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Why a node without an identity serves nothing, and what is to be done.
pub(super) fn why_outside(data_dir: &Path) -> String {
    match Vacancy::of(data_dir) {
        Ok(Some(Vacancy::Left { identity })) => format!(
            "this node has left its cluster ({}): {}",
            identity.display(),
            how_to_join_again(data_dir)
        ),
        // One that cannot be looked into has ended, or ends.
        _ => "this node belongs to no cluster yet".into(),
    }
}

/// The same, to whoever asks this node for its cluster.
pub(super) fn outside(data_dir: &Path) -> Failure {
    let not_ready =
        |problem: String, hint: String| Failure::new(FailureCode::NotReady, "node", problem, hint);
    match Vacancy::of(data_dir) {
        Ok(Some(Vacancy::Left { identity })) => not_ready(
            format!("has left its cluster ({})", identity.display()),
            how_to_join_again(data_dir),
        ),
        Ok(None) => not_ready(
            "is a member and takes no part yet: it is being started".into(),
            "try again in a second; its log says what keeps it".into(),
        ),
        // One that cannot be looked into has ended, or ends.
        Ok(Some(Vacancy::Unused | Vacancy::Lost { .. })) | Err(_) => no_group(),
    }
}

fn how_to_join_again(data_dir: &Path) -> String {
    format!(
        "to join one again, stop it, run `find {} -mindepth 1 -delete`, start it and run `pontoon cluster join`",
        data_dir.display()
    )
}

/// Waits until this machine has an identity.
///
/// # Errors
/// When the file is there and cannot be used, or is missing though the log of a node is there.
pub(super) async fn wait_for_identity(data_dir: &Path) -> Result<StoredIdentity, IdentityError> {
    let file = IdentityFile::in_dir(data_dir);
    let mut told = false;
    loop {
        if let Some(identity) = file.load()? {
            return Ok(identity);
        }
        if !told {
            let vacancy = Vacancy::of(data_dir);
            match vacancy.map_err(|source| file.io("cannot be looked for", source))? {
                Some(Vacancy::Lost { log }) => {
                    let path = file.path().to_owned();
                    return Err(IdentityError::Missing { path, log });
                }
                Some(Vacancy::Left { .. }) => tracing::warn!("{}", why_outside(data_dir)),
                // Written at this moment, it is found at the next look.
                Some(Vacancy::Unused) | None => tracing::info!(
                    "this node belongs to no cluster yet; it waits for `pontoon cluster init` or `pontoon cluster join`"
                ),
            }
            told = true;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Commits the first entry of a new cluster, if this node was made by `cluster init` and has not done so yet.
pub(super) async fn begin_cluster(
    consensus: &Consensus,
    file: &IdentityFile,
) -> Result<(), BootstrapError> {
    let Some(identity) = file.load()? else {
        return Ok(());
    };
    let Some(bootstrap) = identity.bootstrap.clone() else {
        return Ok(());
    };
    let born = consensus.state().revision();
    if consensus.state().cluster().is_none() {
        let command = first_command(&identity.cluster, bootstrap, born, SystemTime::now());
        match consensus
            .initialize(command, Instant::now() + FIRST_ENTRY)
            .await?
        {
            Outcome::Applied(_) => {}
            Outcome::Refused(refusal) => return Err(refusal.into()),
            Outcome::Unknown => return Err(BootstrapError::Unknown),
        }
    }
    // The authority's key is in the log now, and here no more.
    file.store(&identity.begun())?;
    Ok(())
}

/// The command that begins a cluster. Its request id follows from the cluster id, so that a restart in the middle repeats
/// the same command.
/// `born` is the revision of the state: that of a restored backup is far from 0.
fn first_command(cluster: &ClusterId, bootstrap: Bootstrap, born: u64, now: SystemTime) -> Command {
    let Bootstrap { authority, members } = bootstrap;
    let mut members = members.into_iter().map(NewMember::from);
    let mut changes = Vec::new();
    if let Some(first) = members.next() {
        changes.push(Change::InitCluster {
            cluster: cluster.clone(),
            ca: Secret(authority),
            first,
        });
    }
    for (number, member) in members.enumerate() {
        changes.extend(admit_directly(number, member));
    }
    let millis = now
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis());
    Command {
        request: RequestId(u128::from_str_radix(&cluster.0, 16).unwrap_or_default()),
        born,
        proposed_at: UnixMillis(u64::try_from(millis).unwrap_or(u64::MAX)),
        author: "cluster init".into(),
        preconditions: Vec::new(),
        changes,
    }
}

/// Further members of a cluster that begins (`pontoon dev`) pass by a token of the same command, which ends with it.
fn admit_directly(number: usize, member: NewMember) -> [Change; 2] {
    let id = format!("{number:016x}");
    let token = JoinToken {
        id: id.clone(),
        // Nobody has a secret of this hash, and the token is used up at once.
        secret_hash: Secret(hash_secret("")),
        expires_at: UnixMillis(0),
        used_by: None,
    };
    [
        Change::CreateToken { token },
        Change::AddMember { token: id, member },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::node::NodeId;

    #[tokio::test]
    async fn a_node_whose_identity_is_gone_does_not_wait_for_another() {
        let dir = tempfile::tempdir().expect("a directory");
        let log = dir.path().join("log");
        std::fs::create_dir_all(log.join("log")).expect("made");
        let refused = wait_for_identity(dir.path()).await.err();
        let told = refused.expect("it must not wait").to_string();
        let file = IdentityFile::in_dir(dir.path());
        for named in [file.path(), &log] {
            assert!(told.contains(&*named.to_string_lossy()), "{told}");
        }
        // With it, it is a node again.
        let identity = StoredIdentity::new(ClusterId("c".into()), NodeId(3), "n3".into());
        file.store(&identity).expect("stored");
        let found = wait_for_identity(dir.path()).await.expect("there");
        assert_eq!(found.node, NodeId(3));
    }

    #[test]
    fn a_node_that_left_says_so_and_what_to_do() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(why_outside(dir.path()).contains("belongs to no cluster yet"));
        assert_eq!(outside(dir.path()), no_group());
        let identity = StoredIdentity::new(ClusterId("c".into()), NodeId(3), "n3".into());
        IdentityFile::in_dir(dir.path())
            .store(&identity)
            .expect("stored");
        let starting = outside(dir.path());
        assert!(starting.problem.contains("being started"), "{starting:?}");
        crate::enrol::vacancy::retire(dir.path()).expect("set aside");
        let told = why_outside(dir.path());
        let failure = outside(dir.path());
        assert_eq!(failure.code, FailureCode::NotReady);
        for text in ["has left its cluster", "identity.left.toml"] {
            assert!(told.contains(text), "{text}: {told}");
            assert!(failure.problem.contains(text), "{text}: {failure:?}");
        }
        for text in ["-delete", "cluster join"] {
            assert!(told.contains(text), "{text}: {told}");
            assert!(failure.hint.contains(text), "{text}: {failure:?}");
        }
    }
}
