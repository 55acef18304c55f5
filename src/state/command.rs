//! What can be asked of the replicated state. A command is one log entry: all of its changes apply, or none.

use std::net::{IpAddr, SocketAddr};

use crate::model::{
    forwarder::Forwarder,
    label::Label,
    leadership::Preference,
    listener::Listener,
    name::Name,
    node::{ClusterId, NodeId},
    pool::{Backend, BackendState, Pool},
    rrset::{RecordType, Rrset},
    serial::Serial,
    snapshot::DnsPolicy,
    timing::Profile,
    vip::Vip,
};

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Drawn at random by the client; a retry carries the same one and is applied once.
    pub request: RequestId,
    /// Revision of the node that first took the request. When request ids of that age are no longer remembered, the
    /// outcome is `Unknown` and nothing is applied.
    pub born: u64,
    /// Wall-clock time at the proposer, in milliseconds since 1970: an annotation for history that no decision compares.
    pub proposed_at: UnixMillis,
    /// Who asked, for history: the common name of a certificate, or a local user.
    pub author: String,
    /// All must hold at apply, else the command is refused.
    pub preconditions: Vec<Precondition>,
    pub changes: Vec<Change>,
}

/// 128 random bits. Zero stands for none: such a command is not remembered, and a retry of it would be applied again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u128);

/// Milliseconds since 1970-01-01 UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixMillis(pub u64);

/// What must be true of the state when the command is applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// The state's revision is exactly this one.
    Revision(u64),
    /// The zone exists and has this serial.
    ZoneSerial { zone: Name, serial: Serial },
    /// The set is exactly this one; none: it does not exist.
    Rrset {
        zone: Name,
        name: Name,
        rtype: RecordType,
        expected: Option<Rrset>,
    },
    /// The backend exists and has this address.
    Backend {
        pool: Label,
        backend: Label,
        address: SocketAddr,
    },
}

/// One change. Its form has been checked by `state::check` before it is proposed; what depends on the state is decided at apply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Makes a zone of `records`, which hold an SOA and an NS set at the apex. The SOA's serial is a floor. Refused when it exists.
    CreateZone {
        zone: Name,
        records: Vec<(Name, Rrset)>,
    },
    /// Makes the zone, or replaces its contents whole. Equal contents change nothing, whatever the file's serial.
    ReplaceZone {
        zone: Name,
        records: Vec<(Name, Rrset)>,
    },
    DeleteZone {
        zone: Name,
    },
    /// Takes the zone back to its contents at `serial`, with a new serial.
    RollbackZone {
        zone: Name,
        serial: Serial,
    },
    /// Puts `rrset` in place of the set of its name and type.
    SetRrset {
        zone: Name,
        name: Name,
        rrset: Rrset,
    },
    /// Adds records to a set, making it if need be; the TTL becomes that of `rrset`.
    AddRecords {
        zone: Name,
        name: Name,
        rrset: Rrset,
    },
    /// As `SetRrset`, but a set that is there keeps its TTL: that of `rrset` is for a new one.
    SetKeepingTtl {
        zone: Name,
        name: Name,
        rrset: Rrset,
    },
    /// As `AddRecords`, but a set that is there keeps its TTL: that of `rrset` is for a new one.
    AddKeepingTtl {
        zone: Name,
        name: Name,
        rrset: Rrset,
    },
    /// Takes records away; those that are not there are passed over. None in `rdata`: the whole set.
    DeleteRecords {
        zone: Name,
        name: Name,
        rtype: RecordType,
        rdata: Option<Vec<Vec<u8>>>,
    },
    /// Removes every set at a name; refused at the apex.
    DeleteName {
        zone: Name,
        name: Name,
    },

    /// Makes or replaces a pool. With `create`, refused when it exists.
    PutPool {
        pool: Pool,
        create: bool,
    },
    /// Refused while a listener uses it.
    DeletePool {
        pool: Label,
    },
    /// Makes or replaces one backend. With `create`, refused when its name or address is taken.
    PutBackend {
        pool: Label,
        backend: Backend,
        create: bool,
    },
    RemoveBackend {
        pool: Label,
        backend: Label,
    },
    SetBackend {
        pool: Label,
        backend: Label,
        weight: Option<u16>,
        state: Option<BackendState>,
    },
    PutListener {
        listener: Listener,
        create: bool,
    },
    DeleteListener {
        listener: Label,
    },
    PutVip {
        vip: Vip,
        create: bool,
    },
    DeleteVip {
        address: IpAddr,
    },
    PutForwarder {
        forwarder: Forwarder,
        create: bool,
    },
    DeleteForwarder {
        suffix: Name,
    },
    PutDnsPolicy {
        policy: DnsPolicy,
    },

    /// The first change of a cluster: its id, its certificate authority and its first member, who gets node id 1.
    InitCluster {
        cluster: ClusterId,
        ca: Secret,
        first: NewMember,
    },
    /// Remembers a join token; only the hash of its secret is kept.
    CreateToken {
        token: JoinToken,
    },
    DeleteToken {
        id: String,
    },
    /// Uses up a token and allocates the next node id for the member. The outcome holds the id.
    AddMember {
        token: String,
        member: NewMember,
    },
    /// Ends a member for ever; its id is never allocated again.
    RetireMember {
        id: NodeId,
    },
    /// Replaces the certificate authority (certificate and key in PEM), keeping the previous certificate as trusted.
    RotateCa {
        ca: Secret,
    },
    /// Sets how the group counts time.
    SetProfile {
        profile: Profile,
    },
    /// The leader of `term` gives the VIPs up, for `to` to take at once.
    ReleaseVips {
        to: NodeId,
        term: u64,
    },
    /// The leader of `term` holds a lease of its own: a release of that or an earlier term says nothing any more.
    TakeVips {
        term: u64,
    },
    /// A member took these VIPs, of which each was added at the revision beside it. One that is gone, or was added anew, is passed over.
    ClaimVips {
        vips: Vec<(IpAddr, u64)>,
    },
    /// Sets where the VIPs are to be; none: wherever they are.
    SetPreference {
        preference: Option<Preference>,
    },
    /// Lifts the feature level, so that newer kinds of command may be proposed. Refused when it would fall.
    SetFeatureLevel {
        level: u32,
    },
}

/// A text that is not shown: PEM of a key, a hash of a secret.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// A member before it has an id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewMember {
    pub name: String,
    pub raft_address: SocketAddr,
    pub api_address: SocketAddr,
}

/// The replicated half of a join token. Expiry is judged by the leader before it proposes `AddMember`, never in apply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinToken {
    /// The public part, before the dot.
    pub id: String,
    /// SHA-256 of the secret part, in hexadecimal.
    pub secret_hash: Secret,
    pub expires_at: UnixMillis,
    /// Set once a member has used it.
    pub used_by: Option<NodeId>,
}
