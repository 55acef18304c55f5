//! Commands: as messages, and as log entries (protobuf behind a version octet, compressed when large).

use std::{
    io::Read,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

use super::{
    WireError, balancing, narrowed, parsed,
    records::{owned_rrset, owned_rrset_from, record_type},
    required,
    v1::{self, claim_vips::Claimed},
};
use crate::{
    model::{
        leadership::Preference,
        name::Name,
        network::without_scope,
        node::{ClusterId, NodeId},
        rrset::Rrset,
        serial::Serial,
        timing::{Profile, Timing},
    },
    state::command::{
        Change, Command, JoinToken, NewMember, Precondition, RequestId, Secret, UnixMillis,
    },
};

/// Largest protobuf form of a command, in octets: a million records in one atomic change.
pub const MAX_COMMAND: usize = 128 << 20;
/// Largest log entry, in octets, after compression. Proposals beyond it are refused.
pub const MAX_ENTRY: usize = 48 << 20;
/// What an entry may unpack to: a command as large as allowed, and its author and times.
const MAX_UNPACKED: usize = MAX_COMMAND + (1 << 20);
/// Entries below this many octets are not worth compressing.
const COMPRESS_FROM: usize = 4096;
/// zstd level: the default's ratio within a few percent at twice its speed.
const LEVEL: i32 = 1;

/// First octet of an entry: protobuf as it is.
const PLAIN: u8 = 1;
/// First octet of an entry: protobuf compressed by zstd.
const ZSTD: u8 = 2;

/// Why bytes are no command.
#[derive(Debug, thiserror::Error)]
#[error("command: {0}")]
pub struct CommandDecodeError(pub String);

/// Encodes a command for the log.
pub fn encode(command: &Command) -> Bytes {
    let plain = to_message_bytes(command);
    if plain.len() >= COMPRESS_FROM
        && let Ok(packed) = zstd::bulk::compress(plain.get(1..).unwrap_or_default(), LEVEL)
        && packed.len() + 1 < plain.len()
    {
        let mut entry = BytesMut::with_capacity(packed.len() + 1);
        entry.put_u8(ZSTD);
        entry.put_slice(&packed);
        return entry.freeze();
    }
    plain
}

/// Reads what `encode` wrote. What unpacks to more than a command may have is refused.
pub fn decode(bytes: &[u8]) -> Result<Command, CommandDecodeError> {
    let fault = |text: String| CommandDecodeError(text);
    let message = match bytes.split_first() {
        Some((&PLAIN, rest)) => v1::Command::decode(Bytes::copy_from_slice(rest)),
        Some((&ZSTD, rest)) => {
            let plain = decompress(rest, MAX_UNPACKED).map_err(|e| fault(e.to_string()))?;
            v1::Command::decode(Bytes::from(plain))
        }
        Some((version, _)) => {
            return Err(fault(format!(
                "entry of encoding {version}; this program reads {PLAIN} and {ZSTD}: upgrade it"
            )));
        }
        None => return Err(fault("empty entry".to_owned())),
    };
    let message = message.map_err(|e| fault(e.to_string()))?;
    let mut command: Command = message
        .try_into()
        .map_err(|e: WireError| fault(e.to_string()))?;
    // Snapshots hold no scope ids: a node that reads one must come to the same state as a node that reads the log.
    command.changes.iter_mut().for_each(without_scopes);
    Ok(command)
}

/// Takes scope ids out of a change. None is accepted any more, but logs may hold some.
fn without_scopes(change: &mut Change) {
    let plain = |address: &mut SocketAddr| *address = without_scope(*address);
    match change {
        Change::PutPool { pool, .. } => {
            let backends = pool.backends.iter_mut();
            backends.for_each(|backend| plain(&mut backend.address));
        }
        Change::PutBackend { backend, .. } => plain(&mut backend.address),
        Change::PutForwarder { forwarder, .. } => forwarder.upstreams.iter_mut().for_each(plain),
        Change::InitCluster { first: member, .. } | Change::AddMember { member, .. } => {
            plain(&mut member.raft_address);
            plain(&mut member.api_address);
        }
        _ => {} // no socket address in it
    }
}

/// Octets of an entry once it is unpacked: what it costs to apply grows with them, and compression hides them.
pub fn unpacked_len(entry: &[u8]) -> usize {
    let told = match entry.split_first() {
        Some((&ZSTD, rest)) => zstd::zstd_safe::get_frame_content_size(rest).ok().flatten(),
        _ => None,
    };
    let told = told.and_then(|octets| usize::try_from(octets).ok());
    // A header may say anything.
    told.map_or(entry.len(), |octets| octets.min(MAX_UNPACKED))
}

/// What the records of a command take in protobuf, in octets, at most. Other changes are small, and bounded by `state::limits`.
pub fn size_of_records(command: &Command) -> usize {
    let of_set = |(name, set): &(Name, Rrset)| {
        name.to_string().len() + set.packed_len() + 8 * set.len() + 40
    };
    let of_change = |change: &Change| match change {
        Change::CreateZone { records, .. } | Change::ReplaceZone { records, .. } => {
            records.iter().map(of_set).sum::<usize>() + 300
        }
        _ => 0,
    };
    command.changes.iter().map(of_change).sum()
}

/// Unpacks zstd without ever holding more than `limit` octets of the result.
pub fn decompress(packed: &[u8], limit: usize) -> std::io::Result<Vec<u8>> {
    let mut plain = Vec::new();
    let cap = u64::try_from(limit).unwrap_or(u64::MAX);
    zstd::stream::read::Decoder::with_buffer(packed)?
        .take(cap.saturating_add(1))
        .read_to_end(&mut plain)?;
    if plain.len() > limit {
        return Err(std::io::Error::new(
            std::io::ErrorKind::FileTooLarge,
            format!("unpacks to more than {limit} octets"),
        ));
    }
    Ok(plain)
}

/// The plain entry. Changes are converted one at a time, so that a large command is not held as messages besides.
fn to_message_bytes(command: &Command) -> Bytes {
    const CHANGES_FIELD: u32 = 6;
    let mut out = BytesMut::with_capacity(256);
    out.put_u8(PLAIN);
    head(command).encode_raw(&mut out);
    for change in &command.changes {
        prost::encoding::message::encode(CHANGES_FIELD, &v1::Change::from(change), &mut out);
    }
    out.freeze()
}

/// Everything but the changes.
fn head(command: &Command) -> v1::Command {
    let Command {
        request,
        born,
        proposed_at,
        author,
        preconditions,
        changes: _,
    } = command;
    v1::Command {
        request_id: request_id_bytes(*request),
        born: *born,
        proposed_at_ms: proposed_at.0,
        author: author.clone(),
        preconditions: preconditions.iter().map(Into::into).collect(),
        changes: Vec::new(),
    }
}

/// A request id as octets.
pub fn request_id_bytes(request: RequestId) -> Bytes {
    Bytes::copy_from_slice(&request.0.to_be_bytes())
}

/// Reads a request id: exactly 16 octets.
pub fn request_id(bytes: &[u8]) -> Result<RequestId, WireError> {
    let octets: [u8; 16] = bytes.try_into().map_err(|_| {
        WireError::new(
            "request_id",
            format!("must have 16 octets, has {}", bytes.len()),
        )
    })?;
    Ok(RequestId(u128::from_be_bytes(octets)))
}

impl From<&Command> for v1::Command {
    fn from(command: &Command) -> Self {
        Self {
            changes: command.changes.iter().map(Into::into).collect(),
            ..head(command)
        }
    }
}

impl TryFrom<v1::Command> for Command {
    type Error = WireError;

    fn try_from(message: v1::Command) -> Result<Self, WireError> {
        let v1::Command {
            request_id: request,
            born,
            proposed_at_ms,
            author,
            preconditions,
            changes,
        } = message;
        Ok(Self {
            request: request_id(&request)?,
            born,
            proposed_at: UnixMillis(proposed_at_ms),
            author,
            preconditions: all(preconditions)?,
            changes: all(changes)?,
        })
    }
}

/// Converts a list of messages; the first bad one ends it.
pub fn all<M, T: TryFrom<M, Error = WireError>>(messages: Vec<M>) -> Result<Vec<T>, WireError> {
    messages.into_iter().map(T::try_from).collect()
}

impl From<&Precondition> for v1::Precondition {
    fn from(precondition: &Precondition) -> Self {
        use v1::precondition::Kind;
        let kind = match precondition {
            Precondition::Revision(revision) => Kind::Revision(*revision),
            Precondition::ZoneSerial { zone, serial } => {
                Kind::ZoneSerial(zone_serial(zone, *serial))
            }
            Precondition::Rrset {
                zone,
                name,
                rtype,
                expected,
            } => Kind::Rrset(v1::ExpectedRrset {
                zone: zone.to_string(),
                name: name.to_string(),
                r#type: rtype.0.into(),
                expected: expected.as_ref().map(Into::into),
            }),
            Precondition::Backend {
                pool,
                backend,
                address,
            } => Kind::Backend(v1::ExpectedBackend {
                pool: pool.to_string(),
                backend: backend.to_string(),
                address: address.to_string(),
            }),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<v1::Precondition> for Precondition {
    type Error = WireError;

    fn try_from(message: v1::Precondition) -> Result<Self, WireError> {
        use v1::precondition::Kind;
        let v1::Precondition { kind } = message;
        Ok(match required("precondition.kind", kind)? {
            Kind::Revision(revision) => Self::Revision(revision),
            Kind::ZoneSerial(v1::ZoneSerial { zone, serial }) => Self::ZoneSerial {
                zone: zone_name(&zone)?,
                serial: Serial(serial),
            },
            Kind::Rrset(v1::ExpectedRrset {
                zone,
                name,
                r#type,
                expected,
            }) => Self::Rrset {
                zone: zone_name(&zone)?,
                name: parsed("name", &name)?,
                rtype: record_type(r#type)?,
                expected: expected.map(Rrset::try_from).transpose()?,
            },
            Kind::Backend(v1::ExpectedBackend {
                pool,
                backend,
                address,
            }) => Self::Backend {
                pool: parsed("pool", &pool)?,
                backend: parsed("backend", &backend)?,
                address: parsed("address", &address)?,
            },
        })
    }
}

impl From<&Change> for v1::Change {
    fn from(change: &Change) -> Self {
        use v1::change::Kind;
        let kind = match change {
            Change::CreateZone { zone, records } => Kind::CreateZone(contents(zone, records)),
            Change::ReplaceZone { zone, records } => Kind::ReplaceZone(contents(zone, records)),
            Change::DeleteZone { zone } => Kind::DeleteZone(v1::DeleteZone {
                zone: zone.to_string(),
            }),
            Change::RollbackZone { zone, serial } => Kind::RollbackZone(zone_serial(zone, *serial)),
            Change::SetRrset { zone, name, rrset } => Kind::SetRrset(zone_rrset(zone, name, rrset)),
            Change::AddRecords { zone, name, rrset } => {
                Kind::AddRecords(zone_rrset(zone, name, rrset))
            }
            Change::SetKeepingTtl { zone, name, rrset } => {
                Kind::SetKeepingTtl(zone_rrset(zone, name, rrset))
            }
            Change::AddKeepingTtl { zone, name, rrset } => {
                Kind::AddKeepingTtl(zone_rrset(zone, name, rrset))
            }
            Change::DeleteRecords {
                zone,
                name,
                rtype,
                rdata,
            } => Kind::DeleteRecords(v1::DeleteRecords {
                zone: zone.to_string(),
                name: name.to_string(),
                r#type: rtype.0.into(),
                records: rdata.as_ref().map(|list| v1::RdataList {
                    rdata: list.iter().map(|r| Bytes::copy_from_slice(r)).collect(),
                }),
            }),
            Change::DeleteName { zone, name } => Kind::DeleteName(v1::DeleteName {
                zone: zone.to_string(),
                name: name.to_string(),
            }),
            Change::PutPool { pool, create } => Kind::PutPool(v1::PutPool {
                pool: Some(pool.into()),
                create: *create,
            }),
            Change::DeletePool { pool } => Kind::DeletePool(v1::DeletePool {
                pool: pool.to_string(),
            }),
            Change::PutBackend {
                pool,
                backend,
                create,
            } => Kind::PutBackend(v1::PutBackend {
                pool: pool.to_string(),
                backend: Some(backend.into()),
                create: *create,
            }),
            Change::RemoveBackend { pool, backend } => Kind::RemoveBackend(v1::RemoveBackend {
                pool: pool.to_string(),
                backend: backend.to_string(),
            }),
            Change::SetBackend {
                pool,
                backend,
                weight,
                state,
            } => Kind::SetBackend(v1::SetBackend {
                pool: pool.to_string(),
                backend: backend.to_string(),
                weight: weight.map(Into::into),
                state: state
                    .map_or(v1::BackendState::Unspecified, Into::into)
                    .into(),
            }),
            Change::PutListener { listener, create } => Kind::PutListener(v1::PutListener {
                listener: Some(listener.into()),
                create: *create,
            }),
            Change::DeleteListener { listener } => Kind::DeleteListener(v1::DeleteListener {
                listener: listener.to_string(),
            }),
            Change::PutVip { vip, create } => Kind::PutVip(v1::PutVip {
                vip: Some(vip.into()),
                create: *create,
            }),
            Change::DeleteVip { address } => Kind::DeleteVip(v1::DeleteVip {
                address: address.to_string(),
            }),
            Change::PutForwarder { forwarder, create } => Kind::PutForwarder(v1::PutForwarder {
                forwarder: Some(forwarder.into()),
                create: *create,
            }),
            Change::DeleteForwarder { suffix } => Kind::DeleteForwarder(v1::DeleteForwarder {
                suffix: suffix.to_string(),
            }),
            Change::PutDnsPolicy { policy } => Kind::PutDnsPolicy(policy.into()),
            Change::InitCluster { cluster, ca, first } => Kind::InitCluster(v1::InitCluster {
                cluster_id: cluster.0.clone(),
                ca_pem: ca.0.clone(),
                first: Some(first.into()),
            }),
            Change::CreateToken { token } => Kind::CreateToken(token.into()),
            Change::DeleteToken { id } => Kind::DeleteToken(v1::DeleteToken { id: id.clone() }),
            Change::AddMember { token, member } => Kind::AddMember(v1::AddMember {
                token: token.clone(),
                member: Some(member.into()),
            }),
            Change::RetireMember { id } => Kind::RetireMember(v1::RetireMember { id: id.0 }),
            Change::RotateCa { ca } => Kind::RotateCa(v1::RotateCa {
                ca_pem: ca.0.clone(),
            }),
            Change::SetProfile { profile } => Kind::SetProfile(profile.timing().into()),
            Change::ReleaseVips { to, term } => Kind::ReleaseVips(v1::ReleaseVips {
                to: to.0,
                term: *term,
            }),
            Change::TakeVips { term } => Kind::TakeVips(v1::TakeVips { term: *term }),
            Change::ClaimVips { vips } => {
                let vips = vips.iter().map(|(address, added_at)| Claimed {
                    address: address.to_string(),
                    added_at: *added_at,
                });
                Kind::ClaimVips(v1::ClaimVips {
                    vips: vips.collect(),
                })
            }
            Change::SetPreference { preference } => {
                Kind::SetPreference(preference.map_or_else(v1::Preference::default, Into::into))
            }
            Change::SetFeatureLevel { level } => {
                Kind::SetFeatureLevel(v1::SetFeatureLevel { level: *level })
            }
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<v1::Change> for Change {
    type Error = WireError;

    fn try_from(message: v1::Change) -> Result<Self, WireError> {
        use v1::change::Kind;
        let v1::Change { kind } = message;
        Ok(match required("change.kind", kind)? {
            Kind::CreateZone(message) => {
                let (zone, records) = contents_from(message)?;
                Self::CreateZone { zone, records }
            }
            Kind::ReplaceZone(message) => {
                let (zone, records) = contents_from(message)?;
                Self::ReplaceZone { zone, records }
            }
            Kind::DeleteZone(v1::DeleteZone { zone }) => Self::DeleteZone {
                zone: zone_name(&zone)?,
            },
            Kind::RollbackZone(v1::ZoneSerial { zone, serial }) => Self::RollbackZone {
                zone: zone_name(&zone)?,
                serial: Serial(serial),
            },
            Kind::SetRrset(message) => {
                let (zone, name, rrset) = zone_rrset_from(message)?;
                Self::SetRrset { zone, name, rrset }
            }
            Kind::AddRecords(message) => {
                let (zone, name, rrset) = zone_rrset_from(message)?;
                Self::AddRecords { zone, name, rrset }
            }
            Kind::SetKeepingTtl(message) => {
                let (zone, name, rrset) = zone_rrset_from(message)?;
                Self::SetKeepingTtl { zone, name, rrset }
            }
            Kind::AddKeepingTtl(message) => {
                let (zone, name, rrset) = zone_rrset_from(message)?;
                Self::AddKeepingTtl { zone, name, rrset }
            }
            Kind::DeleteRecords(v1::DeleteRecords {
                zone,
                name,
                r#type,
                records,
            }) => Self::DeleteRecords {
                zone: zone_name(&zone)?,
                name: parsed("name", &name)?,
                rtype: record_type(r#type)?,
                rdata: records
                    .map(|v1::RdataList { rdata }| rdata.into_iter().map(Vec::from).collect()),
            },
            Kind::DeleteName(v1::DeleteName { zone, name }) => Self::DeleteName {
                zone: zone_name(&zone)?,
                name: parsed("name", &name)?,
            },
            Kind::PutPool(v1::PutPool { pool, create }) => Self::PutPool {
                pool: required("pool", pool)?.try_into()?,
                create,
            },
            Kind::DeletePool(v1::DeletePool { pool }) => Self::DeletePool {
                pool: parsed("pool", &pool)?,
            },
            Kind::PutBackend(v1::PutBackend {
                pool,
                backend,
                create,
            }) => Self::PutBackend {
                pool: parsed("pool", &pool)?,
                backend: required("backend", backend)?.try_into()?,
                create,
            },
            Kind::RemoveBackend(v1::RemoveBackend { pool, backend }) => Self::RemoveBackend {
                pool: parsed("pool", &pool)?,
                backend: parsed("backend", &backend)?,
            },
            Kind::SetBackend(v1::SetBackend {
                pool,
                backend,
                weight,
                state,
            }) => Self::SetBackend {
                pool: parsed("pool", &pool)?,
                backend: parsed("backend", &backend)?,
                weight: weight.map(|w| narrowed("weight", w)).transpose()?,
                state: balancing::backend_state(state)?,
            },
            Kind::PutListener(v1::PutListener { listener, create }) => Self::PutListener {
                listener: required("listener", listener)?.try_into()?,
                create,
            },
            Kind::DeleteListener(v1::DeleteListener { listener }) => Self::DeleteListener {
                listener: parsed("listener", &listener)?,
            },
            Kind::PutVip(v1::PutVip { vip, create }) => Self::PutVip {
                vip: required("vip", vip)?.try_into()?,
                create,
            },
            Kind::DeleteVip(v1::DeleteVip { address }) => Self::DeleteVip {
                address: parsed::<IpAddr>("address", &address)?,
            },
            Kind::PutForwarder(v1::PutForwarder { forwarder, create }) => Self::PutForwarder {
                forwarder: required("forwarder", forwarder)?.try_into()?,
                create,
            },
            Kind::DeleteForwarder(v1::DeleteForwarder { suffix }) => Self::DeleteForwarder {
                suffix: parsed("suffix", &suffix)?,
            },
            Kind::PutDnsPolicy(policy) => Self::PutDnsPolicy {
                policy: policy.try_into()?,
            },
            Kind::InitCluster(v1::InitCluster {
                cluster_id,
                ca_pem,
                first,
            }) => Self::InitCluster {
                cluster: ClusterId(cluster_id),
                ca: Secret(ca_pem),
                first: required("first", first)?.try_into()?,
            },
            Kind::CreateToken(token) => Self::CreateToken {
                token: token.into(),
            },
            Kind::DeleteToken(v1::DeleteToken { id }) => Self::DeleteToken { id },
            Kind::AddMember(v1::AddMember { token, member }) => Self::AddMember {
                token,
                member: required("member", member)?.try_into()?,
            },
            Kind::RetireMember(v1::RetireMember { id }) => Self::RetireMember { id: NodeId(id) },
            Kind::RotateCa(v1::RotateCa { ca_pem }) => Self::RotateCa { ca: Secret(ca_pem) },
            Kind::SetFeatureLevel(v1::SetFeatureLevel { level }) => Self::SetFeatureLevel { level },
            Kind::SetProfile(timing) => Self::SetProfile {
                profile: Profile::of_timing(timing.into()),
            },
            Kind::ReleaseVips(v1::ReleaseVips { to, term }) => Self::ReleaseVips {
                to: NodeId(to),
                term,
            },
            Kind::TakeVips(v1::TakeVips { term }) => Self::TakeVips { term },
            Kind::ClaimVips(v1::ClaimVips { vips }) => {
                let read = |Claimed { address, added_at }: Claimed| {
                    Ok((parsed::<IpAddr>("address", &address)?, added_at))
                };
                Self::ClaimVips {
                    vips: vips
                        .into_iter()
                        .map(read)
                        .collect::<Result<_, WireError>>()?,
                }
            }
            Kind::SetPreference(v1::Preference { node, cool_down_ms }) => Self::SetPreference {
                preference: node.map(|node| Preference {
                    node: NodeId(node),
                    cool_down: Duration::from_millis(cool_down_ms),
                }),
            },
        })
    }
}

impl From<&NewMember> for v1::NewMember {
    fn from(member: &NewMember) -> Self {
        let NewMember {
            name,
            raft_address,
            api_address,
        } = member;
        Self {
            name: name.clone(),
            raft_address: raft_address.to_string(),
            api_address: api_address.to_string(),
        }
    }
}

impl TryFrom<v1::NewMember> for NewMember {
    type Error = WireError;

    fn try_from(message: v1::NewMember) -> Result<Self, WireError> {
        let v1::NewMember {
            name,
            raft_address,
            api_address,
        } = message;
        Ok(Self {
            name,
            raft_address: parsed("raft_address", &raft_address)?,
            api_address: parsed("api_address", &api_address)?,
        })
    }
}

impl From<&JoinToken> for v1::JoinToken {
    fn from(token: &JoinToken) -> Self {
        let JoinToken {
            id,
            secret_hash,
            expires_at,
            used_by,
        } = token;
        Self {
            id: id.clone(),
            secret_hash: secret_hash.0.clone(),
            expires_at_ms: expires_at.0,
            used_by: used_by.map(|node| node.0),
        }
    }
}

impl From<v1::JoinToken> for JoinToken {
    fn from(message: v1::JoinToken) -> Self {
        let v1::JoinToken {
            id,
            secret_hash,
            expires_at_ms,
            used_by,
        } = message;
        Self {
            id,
            secret_hash: Secret(secret_hash),
            expires_at: UnixMillis(expires_at_ms),
            used_by: used_by.map(NodeId),
        }
    }
}

fn zone_name(text: &str) -> Result<Name, WireError> {
    parsed("zone", text)
}

fn zone_serial(zone: &Name, serial: Serial) -> v1::ZoneSerial {
    v1::ZoneSerial {
        zone: zone.to_string(),
        serial: serial.0,
    }
}

fn contents(zone: &Name, records: &[(Name, Rrset)]) -> v1::ZoneContents {
    v1::ZoneContents {
        zone: zone.to_string(),
        records: records
            .iter()
            .map(|(name, set)| owned_rrset(name, set))
            .collect(),
    }
}

fn contents_from(message: v1::ZoneContents) -> Result<(Name, Vec<(Name, Rrset)>), WireError> {
    let v1::ZoneContents { zone, records } = message;
    let records: Result<_, _> = records.into_iter().map(owned_rrset_from).collect();
    Ok((zone_name(&zone)?, records?))
}

fn zone_rrset(zone: &Name, name: &Name, rrset: &Rrset) -> v1::ZoneRrset {
    v1::ZoneRrset {
        zone: zone.to_string(),
        name: name.to_string(),
        rrset: Some(rrset.into()),
    }
}

fn zone_rrset_from(message: v1::ZoneRrset) -> Result<(Name, Name, Rrset), WireError> {
    let v1::ZoneRrset { zone, name, rrset } = message;
    let rrset = required("rrset", rrset)?.try_into()?;
    Ok((zone_name(&zone)?, parsed("name", &name)?, rrset))
}

impl From<Preference> for v1::Preference {
    fn from(preference: Preference) -> Self {
        let Preference { node, cool_down } = preference;
        Self {
            node: Some(node.0),
            cool_down_ms: super::millis(cool_down),
        }
    }
}

impl From<Timing> for v1::Timing {
    fn from(timing: Timing) -> Self {
        let Timing {
            heartbeat,
            election_timeout_min,
            election_timeout_max,
        } = timing;
        Self {
            heartbeat_ms: super::millis(heartbeat),
            election_timeout_min_ms: super::millis(election_timeout_min),
            election_timeout_max_ms: super::millis(election_timeout_max),
        }
    }
}

impl From<v1::Timing> for Timing {
    fn from(timing: v1::Timing) -> Self {
        let v1::Timing {
            heartbeat_ms,
            election_timeout_min_ms,
            election_timeout_max_ms,
        } = timing;
        Self {
            heartbeat: Duration::from_millis(heartbeat_ms),
            election_timeout_min: Duration::from_millis(election_timeout_min_ms),
            election_timeout_max: Duration::from_millis(election_timeout_max_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, SocketAddrV6};

    use proptest::{collection::vec, option, prelude::*};

    use super::*;
    use crate::model::{
        forwarder::Forwarder,
        health::{HealthCheck, Probe},
        label::Label,
        listener::{ListenAddress, Listener},
        network::Network,
        pool::{Backend, BackendState, Policy, Pool},
        rrset::{MAX_TTL, RecordType},
        snapshot::DnsPolicy,
        vip::Vip,
    };

    fn name() -> impl Strategy<Value = Name> {
        vec(vec(any::<u8>(), 1..8), 0..5)
            .prop_map(|labels| Name::from_labels(labels.iter().map(Vec::as_slice)).expect("short"))
    }

    fn label() -> impl Strategy<Value = Label> {
        "[a-z0-9][a-z0-9_.-]{0,20}".prop_map(|text| text.parse().expect("a label"))
    }

    fn rrset() -> impl Strategy<Value = Rrset> {
        (
            any::<u16>(),
            0..=MAX_TTL,
            vec(vec(any::<u8>(), 0..40), 1..4),
        )
            .prop_map(|(rtype, ttl, rdata)| {
                Rrset::new(RecordType(rtype), ttl, rdata).expect("some")
            })
    }

    fn records() -> impl Strategy<Value = Vec<(Name, Rrset)>> {
        vec((name(), rrset()), 0..6)
    }

    fn backend() -> impl Strategy<Value = Backend> {
        let state = prop_oneof![
            Just(BackendState::Enabled),
            Just(BackendState::Drain),
            Just(BackendState::Disabled)
        ];
        (label(), address(), any::<u16>(), state).prop_map(|(name, address, weight, state)| {
            Backend {
                name,
                address,
                weight,
                state,
            }
        })
    }

    fn address() -> impl Strategy<Value = SocketAddr> {
        let scoped = (any::<Ipv6Addr>(), any::<u16>(), any::<u32>())
            .prop_map(|(ip, port, scope)| SocketAddrV6::new(ip, port, 0, scope).into());
        prop_oneof![
            (any::<IpAddr>(), any::<u16>()).prop_map(SocketAddr::from),
            scoped
        ]
    }

    fn unscoped(mut command: Command) -> Command {
        command.changes.iter_mut().for_each(without_scopes);
        command
    }

    fn some_millis() -> impl Strategy<Value = Duration> {
        any::<u32>().prop_map(|ms| Duration::from_millis(ms.into()))
    }

    fn health_check() -> impl Strategy<Value = HealthCheck> {
        (
            some_millis(),
            some_millis(),
            some_millis(),
            any::<u8>(),
            any::<u8>(),
        )
            .prop_map(
                |(interval, down_interval, timeout, rise, fall)| HealthCheck {
                    probe: Probe::TcpConnect,
                    interval,
                    down_interval,
                    timeout,
                    rise,
                    fall,
                },
            )
    }

    fn pool() -> impl Strategy<Value = Pool> {
        let policy = prop_oneof![
            Just(Policy::RoundRobin),
            Just(Policy::LeastConnections),
            Just(Policy::SourceHash)
        ];
        (
            label(),
            policy,
            vec(backend(), 0..4),
            option::of(health_check()),
            some_millis(),
            any::<u8>(),
        )
            .prop_map(
                |(name, policy, mut backends, health_check, timeout, retries)| {
                    backends.sort_by(|a, b| a.name.cmp(&b.name));
                    Pool {
                        name,
                        policy,
                        backends,
                        health_check,
                        connect_timeout: timeout,
                        connect_retries: retries,
                    }
                },
            )
    }

    fn listener() -> impl Strategy<Value = Listener> {
        let address = prop_oneof![
            Just(ListenAddress::EveryNode),
            any::<IpAddr>().prop_map(ListenAddress::Address)
        ];
        (
            label(),
            address,
            any::<u16>(),
            label(),
            some_millis(),
            any::<u32>(),
        )
            .prop_map(
                |(name, address, port, pool, idle_timeout, max_connections)| Listener {
                    name,
                    address,
                    port,
                    pool,
                    idle_timeout,
                    max_connections,
                },
            )
    }

    fn forwarder() -> impl Strategy<Value = Forwarder> {
        (name(), vec(address(), 0..4), some_millis()).prop_map(|(suffix, upstreams, timeout)| {
            Forwarder {
                suffix,
                upstreams,
                timeout,
            }
        })
    }

    fn dns_policy() -> impl Strategy<Value = DnsPolicy> {
        vec((any::<IpAddr>(), 0u8..=128), 0..4).prop_map(|networks| DnsPolicy {
            recursion_allowed: networks
                .into_iter()
                .filter_map(|(address, prefix)| Network::new(address, prefix))
                .collect(),
        })
    }

    fn member() -> impl Strategy<Value = NewMember> {
        (".*", address(), address()).prop_map(|(name, raft_address, api_address)| NewMember {
            name,
            raft_address,
            api_address,
        })
    }

    fn zone_change() -> impl Strategy<Value = Change> {
        let rdata = option::of(vec(vec(any::<u8>(), 0..9), 0..3));
        prop_oneof![
            (name(), records()).prop_map(|(zone, records)| Change::CreateZone { zone, records }),
            (name(), records()).prop_map(|(zone, records)| Change::ReplaceZone { zone, records }),
            name().prop_map(|zone| Change::DeleteZone { zone }),
            (name(), any::<u32>()).prop_map(|(zone, serial)| Change::RollbackZone {
                zone,
                serial: Serial(serial)
            }),
            (name(), name(), rrset()).prop_map(|(zone, name, rrset)| Change::SetRrset {
                zone,
                name,
                rrset
            }),
            (name(), name(), rrset()).prop_map(|(zone, name, rrset)| Change::AddRecords {
                zone,
                name,
                rrset
            }),
            (name(), name(), rrset()).prop_map(|(zone, name, rrset)| Change::SetKeepingTtl {
                zone,
                name,
                rrset
            }),
            (name(), name(), rrset()).prop_map(|(zone, name, rrset)| Change::AddKeepingTtl {
                zone,
                name,
                rrset
            }),
            (name(), name(), any::<u16>(), rdata).prop_map(|(zone, name, rtype, rdata)| {
                Change::DeleteRecords {
                    zone,
                    name,
                    rtype: RecordType(rtype),
                    rdata,
                }
            }),
            (name(), name()).prop_map(|(zone, name)| Change::DeleteName { zone, name }),
        ]
    }

    fn balancing_change() -> impl Strategy<Value = Change> {
        let state = option::of(backend().prop_map(|b| b.state));
        prop_oneof![
            (pool(), any::<bool>()).prop_map(|(pool, create)| Change::PutPool { pool, create }),
            label().prop_map(|pool| Change::DeletePool { pool }),
            (label(), backend(), any::<bool>()).prop_map(|(pool, backend, create)| {
                Change::PutBackend {
                    pool,
                    backend,
                    create,
                }
            }),
            (label(), label()).prop_map(|(pool, backend)| Change::RemoveBackend { pool, backend }),
            (label(), label(), option::of(any::<u16>()), state).prop_map(
                |(pool, backend, weight, state)| Change::SetBackend {
                    pool,
                    backend,
                    weight,
                    state
                }
            ),
            (listener(), any::<bool>())
                .prop_map(|(listener, create)| Change::PutListener { listener, create }),
            label().prop_map(|listener| Change::DeleteListener { listener }),
            (any::<IpAddr>(), label(), any::<bool>()).prop_map(|(address, interface, create)| {
                Change::PutVip {
                    vip: Vip { address, interface },
                    create,
                }
            }),
            any::<IpAddr>().prop_map(|address| Change::DeleteVip { address }),
            (forwarder(), any::<bool>())
                .prop_map(|(forwarder, create)| Change::PutForwarder { forwarder, create }),
            name().prop_map(|suffix| Change::DeleteForwarder { suffix }),
            dns_policy().prop_map(|policy| Change::PutDnsPolicy { policy }),
        ]
    }

    fn member_change() -> impl Strategy<Value = Change> {
        let token = (".*", ".*", any::<u64>(), option::of(any::<u64>())).prop_map(
            |(id, hash, expires, used_by)| JoinToken {
                id,
                secret_hash: Secret(hash),
                expires_at: UnixMillis(expires),
                used_by: used_by.map(NodeId),
            },
        );
        prop_oneof![
            (".*", ".*", member()).prop_map(|(id, ca, first)| Change::InitCluster {
                cluster: ClusterId(id),
                ca: Secret(ca),
                first
            }),
            token.prop_map(|token| Change::CreateToken { token }),
            ".*".prop_map(|id| Change::DeleteToken { id }),
            (".*", member()).prop_map(|(token, member)| Change::AddMember { token, member }),
            any::<u64>().prop_map(|id| Change::RetireMember { id: NodeId(id) }),
            ".*".prop_map(|ca| Change::RotateCa { ca: Secret(ca) }),
            any::<u32>().prop_map(|level| Change::SetFeatureLevel { level }),
            (0u64..100_000, 0u64..100_000, 0u64..100_000).prop_map(|(heartbeat, min, max)| {
                let timing = v1::Timing {
                    heartbeat_ms: heartbeat,
                    election_timeout_min_ms: min,
                    election_timeout_max_ms: max,
                };
                Change::SetProfile {
                    profile: Profile::of_timing(timing.into()),
                }
            }),
            (any::<u64>(), any::<u64>()).prop_map(|(to, term)| Change::ReleaseVips {
                to: NodeId(to),
                term
            }),
            any::<u64>().prop_map(|term| Change::TakeVips { term }),
            vec((any::<IpAddr>(), any::<u64>()), 0..4).prop_map(|vips| Change::ClaimVips { vips }),
            option::of((any::<u64>(), 0u64..100_000_000)).prop_map(|preference| {
                let preference = preference.map(|(node, ms)| Preference {
                    node: NodeId(node),
                    cool_down: Duration::from_millis(ms),
                });
                Change::SetPreference { preference }
            }),
        ]
    }

    fn precondition() -> impl Strategy<Value = Precondition> {
        prop_oneof![
            any::<u64>().prop_map(Precondition::Revision),
            (name(), any::<u32>()).prop_map(|(zone, serial)| Precondition::ZoneSerial {
                zone,
                serial: Serial(serial)
            }),
            (name(), name(), any::<u16>(), option::of(rrset())).prop_map(
                |(zone, name, rtype, expected)| Precondition::Rrset {
                    zone,
                    name,
                    rtype: RecordType(rtype),
                    expected,
                }
            ),
            (label(), label(), address()).prop_map(|(pool, backend, address)| {
                Precondition::Backend {
                    pool,
                    backend,
                    address,
                }
            }),
        ]
    }

    fn command() -> impl Strategy<Value = Command> {
        let change = prop_oneof![zone_change(), balancing_change(), member_change()];
        (
            any::<u128>(),
            any::<u64>(),
            any::<u64>(),
            ".*",
            vec(precondition(), 0..3),
            vec(change, 0..6),
        )
            .prop_map(
                |(request, born, at, author, preconditions, changes)| Command {
                    request: RequestId(request),
                    born,
                    proposed_at: UnixMillis(at),
                    author,
                    preconditions,
                    changes,
                },
            )
    }

    fn large() -> Command {
        let set = Rrset::new(RecordType::TXT, 60, [vec![b'x'; 200]]).expect("one record");
        let owner =
            |i: u32| Name::from_labels([i.to_string().as_bytes(), b"example"]).expect("short");
        Command {
            request: RequestId(7),
            born: 1,
            proposed_at: UnixMillis(2),
            author: "admin".into(),
            preconditions: vec![],
            changes: vec![Change::ReplaceZone {
                zone: "example.".parse().expect("a name"),
                records: (0..1000).map(|i| (owner(i), set.clone())).collect(),
            }],
        }
    }

    #[test]
    fn a_large_command_is_compressed() {
        let command = large();
        let entry = encode(&command);
        assert_eq!(entry.first(), Some(&ZSTD));
        assert!(entry.len() < 40_000, "{}", entry.len());
        assert_eq!(decode(&entry).expect("decodes"), command);
    }

    #[test]
    fn an_entry_that_unpacks_beyond_the_limit_is_refused() {
        let bomb = zstd::bulk::compress(&vec![0; 1 << 20], 1).expect("compresses");
        assert!(decompress(&bomb, (1 << 20) - 1).is_err());
        assert_eq!(
            decompress(&bomb, 1 << 20).map(|v| v.len()).ok(),
            Some(1 << 20)
        );
    }

    #[test]
    fn unknown_encodings_name_the_remedy() {
        for bad in [
            &b""[..],
            b"\x00",
            b"\x03abc",
            b"\x02not zstd",
            b"\x01\xff\xff",
        ] {
            assert!(decode(bad).is_err(), "{bad:?}");
        }
        assert!(decode(b"\x09").unwrap_err().to_string().contains("upgrade"));
    }

    #[test]
    fn a_log_entry_has_no_scope_id_but_a_request_keeps_it_to_be_refused() {
        let backend = Backend {
            name: "b".parse().expect("a label"),
            address: "[fd00::1%2]:80".parse().expect("an address"),
            weight: 1,
            state: BackendState::Enabled,
        };
        let change = Change::PutBackend {
            pool: "web".parse().expect("a label"),
            backend: backend.clone(),
            create: true,
        };
        let command = Command {
            changes: vec![change],
            ..large()
        };
        let asked = Command::try_from(v1::Command::from(&command));
        assert_eq!(asked, Ok(command.clone()));
        let read = decode(&encode(&command)).expect("decodes");
        let [Change::PutBackend { backend: found, .. }] = &read.changes[..] else {
            panic!("another change: {read:?}");
        };
        assert_eq!(found.address.to_string(), "[fd00::1]:80");
    }

    #[test]
    fn a_request_id_has_16_octets() {
        assert!(request_id(&[0; 15]).is_err());
        assert!(request_id(&[0; 17]).is_err());
        assert_eq!(
            request_id(&request_id_bytes(RequestId(5))),
            Ok(RequestId(5))
        );
    }

    proptest! {
        #[test]
        fn commands_come_back(command in command()) {
            let read = decode(&encode(&command)).expect("decodes");
            prop_assert_eq!(read, unscoped(command.clone()));
            let message = v1::Command::from(&command);
            prop_assert_eq!(Command::try_from(message), Ok(command));
        }

        #[test]
        fn the_log_form_is_the_message_behind_one_octet(command in command()) {
            let plain = to_message_bytes(&command);
            prop_assert_eq!(&plain[1..], &v1::Command::from(&command).encode_to_vec()[..]);
        }

        #[test]
        fn the_size_of_records_is_an_upper_bound(zone in name(), records in records()) {
            let change = Change::ReplaceZone { zone, records };
            let encoded = v1::Change::from(&change).encoded_len();
            let command = Command { changes: vec![change], ..large() };
            prop_assert!(encoded <= size_of_records(&command) + 1100, "a name in text has at most 1100 octets");
        }

        #[test]
        fn garbage_is_an_error_and_no_panic(bytes in vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
            let mut plain = vec![PLAIN];
            plain.extend(&bytes);
            let _ = decode(&plain);
        }

        #[test]
        fn a_damaged_entry_is_never_a_panic(command in command(), at in any::<prop::sample::Index>(), flip in 1u8..) {
            let mut entry = encode(&command).to_vec();
            let at = at.index(entry.len());
            entry[at] ^= flip;
            if let Ok(read) = decode(&entry) {
                // What was read is a command again.
                let again = encode(&read);
                prop_assert_eq!(decode(&again).expect("decodes"), read);
            }
        }
    }
}
