//! Coming to be a member: waiting for an identity, and the first entry of a new cluster's log.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::{
    consensus::{Consensus, InitError},
    enrol::{IdentityError, IdentityFile, StoredIdentity, identity_file::Bootstrap},
    model::node::ClusterId,
    pki::token::hash_secret,
    state::{
        command::{Change, Command, JoinToken, NewMember, RequestId, Secret, UnixMillis},
        outcome::{Outcome, Refusal},
    },
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

/// Waits until this machine has an identity.
///
/// # Errors
/// When the file is there and cannot be used.
pub(super) async fn wait_for_identity(
    file: &IdentityFile,
) -> Result<StoredIdentity, IdentityError> {
    let mut told = false;
    loop {
        if let Some(identity) = file.load()? {
            return Ok(identity);
        }
        if !told {
            tracing::info!(
                "this node belongs to no cluster yet; it waits for `pontoon cluster init` or `pontoon cluster join`"
            );
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
