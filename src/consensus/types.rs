//! The types openraft is instantiated with, and the aliases the rest of `consensus` uses.
//!
//! A log entry holds an *encoded* command: replication, storage and the log reader move bytes and never look inside; only
//! the state machine decodes. Leader ids are those of textbook Raft: at most one leader in a term, so "term" alone names
//! a leadership (`vip` relies on it).

use std::{fmt, net::SocketAddr};

use bytes::Bytes;

use super::machine_store::MachineStore;
use crate::state::outcome::Outcome;

openraft::declare_raft_types!(
    /// openraft, as Pontoon uses it.
    pub TypeConfig:
        D = EncodedCommand,
        R = Response,
        NodeId = u64,
        Node = Peer,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>,
        AsyncRuntime = openraft::TokioRuntime,
);

pub type Raft = openraft::Raft<TypeConfig, MachineStore>;
pub type Entry = openraft::alias::EntryOf<TypeConfig>;
pub type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub type Vote = openraft::alias::VoteOf<TypeConfig>;
pub type Membership = openraft::Membership<u64, Peer>;
pub type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
pub type Snapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotData>;

/// A command as `wire::command::encode` wrote it.
#[derive(Clone, PartialEq, Eq)]
pub struct EncodedCommand(pub Bytes);

/// What apply answers for one entry. None for entries without a command (blank, membership).
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Response(pub Option<Outcome>);

/// What the membership says of a node: how to reach it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Peer {
    pub name: String,
    /// Where peers reach it.
    pub raft_address: SocketAddr,
    /// Where its API is reached.
    pub api_address: SocketAddr,
}

/// A whole encoded snapshot file (header, compressed body, checksum), as the state machine's store writes and verifies it.
#[derive(Clone, PartialEq, Eq)]
pub struct SnapshotData(pub Bytes);

impl fmt::Debug for EncodedCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EncodedCommand({} bytes)", self.0.len())
    }
}

impl fmt::Display for EncodedCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl fmt::Debug for SnapshotData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SnapshotData({} bytes)", self.0.len())
    }
}

impl fmt::Display for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            None => f.write_str("no command"),
            Some(Outcome::Applied(applied)) => write!(f, "applied at {}", applied.revision),
            Some(Outcome::Refused(refusal)) => write!(f, "refused: {refusal}"),
            Some(Outcome::Unknown) => f.write_str("unknown"),
        }
    }
}

/// As one run of bytes, not as a sequence of numbers.
impl serde::Serialize for EncodedCommand {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for EncodedCommand {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_byte_buf(CommandBytes)
    }
}

struct CommandBytes;

impl serde::de::Visitor<'_> for CommandBytes {
    type Value = EncodedCommand;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an encoded command")
    }

    fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<EncodedCommand, E> {
        Ok(EncodedCommand(Bytes::copy_from_slice(bytes)))
    }

    fn visit_byte_buf<E: serde::de::Error>(self, bytes: Vec<u8>) -> Result<EncodedCommand, E> {
        Ok(EncodedCommand(bytes.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use openraft::{EntryPayload, entry::RaftEntry};

    #[test]
    fn entries_survive_postcard() {
        let command = EncodedCommand(Bytes::from_static(b"\x00\xff command"));
        let id = LogId::new(openraft::vote::RaftLeaderId::to_committed(&leader(3, 2)), 7);
        for payload in [
            EntryPayload::Blank,
            EntryPayload::Normal(command),
            EntryPayload::Membership(membership()),
        ] {
            let entry = Entry::new(id, payload);
            let bytes = postcard::to_stdvec(&entry).unwrap();
            assert_eq!(postcard::from_bytes::<Entry>(&bytes).unwrap(), entry);
            for cut in 0..bytes.len() {
                assert!(
                    postcard::from_bytes::<Entry>(&bytes[..cut]).is_err(),
                    "{cut}"
                );
            }
        }
    }

    fn leader(term: u64, node: u64) -> openraft::impls::leader_id_std::LeaderId<u64, u64> {
        openraft::vote::RaftLeaderId::new(term, node)
    }

    fn membership() -> Membership {
        let peer = Peer {
            name: "n1".into(),
            raft_address: "127.0.0.1:1".parse().unwrap(),
            api_address: "[::1]:2".parse().unwrap(),
        };
        Membership::new(
            vec![[1].into()],
            std::collections::BTreeMap::from([(1, peer)]),
        )
        .unwrap()
    }
}
