//! Disaster recovery, on a data directory that no node uses: a new one is given a state, and one whose cluster has lost its
//! majority for ever is made a cluster of its node alone.
//!
//! Both end in the same way: a snapshot whose membership names one voter, ahead of every entry of the log. The node then
//! starts as any node does. Nothing here asks other nodes: whoever calls must know that they are gone.

use std::{collections::BTreeMap, path::Path};

use openraft::{RaftLogReader, impls::leader_id_std::LeaderId, vote::RaftLeaderId};

use super::{
    snapshot_file::{SnapshotError, SnapshotFiles},
    storage::{OpenError, Storage, StorageOptions, watermark_path},
    types::{Entry, LogId, Membership, Peer, SnapshotMeta, StoredMembership},
    watermark::{self, WatermarkFile},
};
use crate::{
    model::node::NodeId,
    state::{
        State,
        command::{Change, Command, RequestId, UnixMillis},
        outcome::{Outcome, Refusal},
    },
    wire::{self, command::CommandDecodeError},
};

/// Entries that are read from the log at a time.
const AT_A_TIME: u64 = 256;

/// Term of the entries that a seeded directory seems to have had.
const FIRST_TERM: u64 = 1;

/// Why a data directory could not be given a state.
#[derive(Debug, thiserror::Error)]
pub enum RescueError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error("the log cannot be read: {0}")]
    Log(#[from] std::io::Error),
    #[error("entry {index} of the log: {cause}")]
    Entry {
        index: u64,
        cause: CommandDecodeError,
    },
    #[error("it holds no state: this node never was a member")]
    Empty,
    #[error("the other members cannot be removed from the state: {0}")]
    Refused(Refusal),
    #[error("the membership of one node: {0}")]
    Membership(String),
}

/// What `recover` found and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Revision of the state that goes on.
    pub revision: u64,
    /// Members that were retired for ever.
    pub retired: Vec<NodeId>,
}

/// Gives an empty data directory a state, as if all of it were in the log of a group whose one member is `me`.
///
/// # Errors
/// When it cannot be written.
pub fn seed(directory: &Path, state: &State, me: (NodeId, Peer)) -> Result<(), RescueError> {
    let (id, peer) = me;
    let leader: LeaderId<u64, u64> = RaftLeaderId::new(FIRST_TERM, id.0);
    let last = LogId::new(RaftLeaderId::to_committed(&leader), state.revision());
    let path = watermark_path(directory);
    WatermarkFile::go_on(&path, &watermark::Found::Missing).map_err(|source| OpenError::File {
        verb: "write",
        path,
        source,
    })?;
    write(directory, state, last, (id, peer))
}

/// Makes the node whose data lies in `directory` a cluster of its own: its whole log is taken for committed, and all other
/// members are retired for ever. Run again, it does the same again.
///
/// # Errors
/// When the directory is in use, damaged or empty, or cannot be written.
pub async fn recover(
    directory: &Path,
    me: (NodeId, Peer),
    at: UnixMillis,
) -> Result<Recovered, RescueError> {
    let (mut state, last) = latest(directory).await?;
    let retired = others(&state, me.0);
    let next = LogId::new(*last.committed_leader_id(), last.index + 1);
    if !retired.is_empty() {
        let command = Command {
            request: RequestId::default(),
            born: state.revision(),
            proposed_at: at,
            author: "recover".to_owned(),
            preconditions: Vec::new(),
            changes: retired
                .iter()
                .map(|id| Change::RetireMember { id: *id })
                .collect(),
        };
        if let Outcome::Refused(refusal) = state.apply(next.index, &command) {
            return Err(RescueError::Refused(refusal));
        }
    }
    write(directory, &state, next, me)?;
    Ok(Recovered {
        revision: state.revision(),
        retired,
    })
}

/// What `recover` would do, without doing it.
///
/// # Errors
/// As `recover`.
pub async fn outlook(directory: &Path, me: NodeId) -> Result<Recovered, RescueError> {
    let (state, _) = latest(directory).await?;
    Ok(Recovered {
        revision: state.revision(),
        retired: others(&state, me),
    })
}

fn others(state: &State, me: NodeId) -> Vec<NodeId> {
    state
        .members()
        .keys()
        .copied()
        .filter(|id| *id != me)
        .collect()
}

/// The state after every entry that lies in a directory, and the last of them.
async fn latest(directory: &Path) -> Result<(State, LogId), RescueError> {
    let (mut log, machine, handles) = Storage::open(directory, StorageOptions::default())?;
    let applied = handles.states.newest();
    let last = handles.recovered.last.ok_or(RescueError::Empty)?;
    let mut state = applied.state.as_ref().clone();
    let mut from = applied.log_id.map_or(0, |id| id.index + 1);
    while from <= last.index {
        let to = (from + AT_A_TIME).min(last.index + 1);
        for entry in log.try_get_log_entries(from..to).await? {
            apply(&mut state, &entry)?;
        }
        from = to;
    }
    drop((log, machine, handles));
    Ok((state, last))
}

fn apply(state: &mut State, entry: &Entry) -> Result<(), RescueError> {
    if let openraft::EntryPayload::Normal(command) = &entry.payload {
        let index = entry.log_id.index;
        let command = wire::command::decode(&command.0);
        let command = command.map_err(|cause| RescueError::Entry { index, cause })?;
        // Its outcome was told, or will never be.
        let _ = state.apply(index, &command);
    }
    Ok(())
}

/// Writes the snapshot, and once more: the log is given up only to the older of two.
fn write(
    directory: &Path,
    state: &State,
    last: LogId,
    me: (NodeId, Peer),
) -> Result<(), RescueError> {
    let (id, peer) = me;
    let membership = Membership::new(vec![[id.0].into()], BTreeMap::from([(id.0, peer)]))
        .map_err(|e| RescueError::Membership(e.to_string()))?;
    let meta = SnapshotMeta {
        last_log_id: Some(last),
        last_membership: StoredMembership::new(Some(last), membership),
    };
    let (files, _) = SnapshotFiles::open(&directory.join("snapshots"))?;
    files.write(&meta, state)?;
    files.write(&meta, state)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        sync::Arc,
        time::{Duration, Instant},
    };

    use tokio::net::TcpListener;
    use tokio_stream::wrappers::TcpListenerStream;

    use super::*;
    use crate::{
        consensus::{
            Certificates, Consensus, ConsensusConfig, LOG_KEPT, Patience,
            plaintext::PlaintextConnector, promise::Ledger,
        },
        model::node::ClusterId,
        state::command::{JoinToken, NewMember, Secret},
    };

    fn peer(id: u64, port: u16) -> Peer {
        let address = ([127, 0, 0, 1], port).into();
        Peer {
            name: format!("n{id}"),
            raft_address: address,
            api_address: address,
        }
    }

    fn command(request: u128, changes: Vec<Change>) -> Command {
        Command {
            request: RequestId(request),
            born: 0,
            proposed_at: UnixMillis(0),
            author: "test".into(),
            preconditions: vec![],
            changes,
        }
    }

    fn forwarder(suffix: &str) -> Change {
        Change::PutForwarder {
            forwarder: crate::model::forwarder::Forwarder {
                suffix: suffix.parse().expect("a name"),
                upstreams: vec!["192.0.2.1:53".parse().expect("an address")],
                timeout: Duration::from_secs(1),
            },
            create: true,
        }
    }

    fn member(id: u64) -> NewMember {
        NewMember {
            name: format!("n{id}"),
            raft_address: ([127, 0, 0, 1], 1000 + id as u16).into(),
            api_address: ([127, 0, 0, 1], 2000 + id as u16).into(),
        }
    }

    fn init() -> Change {
        let cluster = ClusterId("c0ffee00c0ffee00c0ffee00c0ffee00".into());
        let ca = crate::pki::authority::Authority::create(&cluster, std::time::SystemTime::now());
        Change::InitCluster {
            cluster,
            ca: Secret(ca.expect("an authority").to_pem()),
            first: member(1),
        }
    }

    /// Starts node 1 on a directory, proposes, and stops it again.
    async fn run(directory: &Path, commands: Vec<Command>) -> (Vec<Outcome>, State) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let config = ConsensusConfig {
            id: NodeId(1),
            cluster: ClusterId("c0ffee00c0ffee00c0ffee00c0ffee00".into()),
            peer: peer(1, port),
            timing: None,
            ledger: Ledger::default(),
            patience: Patience::default(),
            connector: Arc::new(PlaintextConnector),
            certificates: Certificates::NotUsed,
            log_kept: LOG_KEPT,
        };
        let storage = Storage::open(directory, StorageOptions::default()).expect("opened");
        let consensus = Consensus::start(config, storage).await.expect("started");
        let server = tonic::transport::Server::builder()
            .add_service(consensus.raft_server())
            .serve_with_incoming(TcpListenerStream::new(listener));
        let server = tokio::spawn(server);
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut outcomes = Vec::new();
        for command in commands {
            let outcome = match &command.changes[..] {
                [Change::InitCluster { .. }] => consensus
                    .initialize(command, deadline)
                    .await
                    .map_err(|e| e.to_string()),
                _ => consensus
                    .propose(command, deadline)
                    .await
                    .map_err(|e| e.to_string()),
            };
            outcomes.push(outcome.expect("an outcome"));
        }
        let state = consensus.state().as_ref().clone();
        consensus.shutdown(deadline).await;
        server.abort();
        drop(consensus);
        (outcomes, state)
    }

    #[tokio::test]
    async fn a_seeded_directory_goes_on_with_its_state() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut old = State::default();
        old.apply(1, &command(1, vec![init()]));
        old.apply(2, &command(2, vec![forwarder("a.")]));
        let restored = old.restored(UnixMillis(9), "test");
        seed(dir.path(), &restored, (NodeId(1), peer(1, 1))).expect("seeded");
        let born = |command| Command {
            born: restored.revision(),
            ..command
        };
        let later = vec![
            born(command(11, vec![init()])),
            born(command(12, vec![forwarder("b.")])),
        ];
        let (outcomes, state) = run(dir.path(), later).await;
        assert!(
            outcomes.iter().all(|o| matches!(o, Outcome::Applied(_))),
            "{outcomes:?}"
        );
        assert_eq!(state.snapshot().forwarders.len(), 2);
        assert!(state.revision() > restored.revision());
        let (_, again) = run(dir.path(), vec![]).await;
        assert_eq!(again.snapshot().forwarders.len(), 2);
    }

    #[tokio::test]
    async fn the_last_node_goes_on_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let token = JoinToken {
            id: "0123456789abcdef".into(),
            secret_hash: Secret("ab".repeat(32)),
            expires_at: UnixMillis(1),
            used_by: None,
        };
        let add = Change::AddMember {
            token: token.id.clone(),
            member: member(2),
        };
        let commands = vec![
            command(1, vec![init()]),
            command(2, vec![forwarder("a.")]),
            command(3, vec![Change::CreateToken { token }]),
            command(4, vec![add]),
        ];
        let (outcomes, _) = run(dir.path(), commands).await;
        assert!(
            outcomes.iter().all(|o| matches!(o, Outcome::Applied(_))),
            "{outcomes:?}"
        );
        let me = (NodeId(1), peer(1, 1));
        let expected = outlook(dir.path(), me.0).await.expect("an outlook");
        assert_eq!(expected.retired, [NodeId(2)]);
        let recovered = recover(dir.path(), me.clone(), UnixMillis(5))
            .await
            .expect("recovered");
        assert_eq!(recovered.retired, [NodeId(2)]);
        let again = recover(dir.path(), me, UnixMillis(6))
            .await
            .expect("harmless");
        assert_eq!(again.retired, []);
        let (outcomes, state) = run(dir.path(), vec![command(5, vec![forwarder("b.")])]).await;
        assert!(matches!(outcomes[0], Outcome::Applied(_)), "{outcomes:?}");
        assert_eq!(state.snapshot().forwarders.len(), 2);
        assert_eq!(state.members().len(), 1);
        assert!(state.is_retired(NodeId(2)));
    }

    #[tokio::test]
    async fn an_empty_directory_cannot_be_recovered() {
        let dir = tempfile::tempdir().expect("a directory");
        let ended = recover(dir.path(), (NodeId(1), peer(1, 1)), UnixMillis(0)).await;
        assert!(matches!(ended, Err(RescueError::Empty)));
    }
}
