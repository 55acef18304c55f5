//! Version 1 of the stored state. Frozen: what is here is also what the state hash is taken over.

use std::{io, net::IpAddr, sync::Arc};

use imbl::OrdMap;

use super::codec::{Put, Reader, Writer, malformed};
use crate::{
    model::{
        forwarder::Forwarder,
        health::{HealthCheck, Probe},
        label::Label,
        leadership::Preference,
        listener::{ListenAddress, Listener},
        name::{MAX_NAME, Name, NameKey},
        network::Network,
        node::{ClusterId, Member, NodeId},
        pool::{Backend, BackendState, Policy, Pool},
        rrset::{RecordType, Rrset},
        serial::Serial,
        snapshot::{DnsPolicy, Snapshot},
        timing::{Profile, Timing},
        vip::Vip,
        zone::{Node, Zone},
    },
    state::{
        DecodeError, State,
        cluster::{Cluster, VipRelease},
        command::{JoinToken, RequestId, Secret, UnixMillis},
        deleted::DeletedZones,
        diff::SetChange,
        digest,
        history::{Histories, ZoneVersion},
        limits,
        outcome::{Applied, Outcome, Refusal, RefusalKind},
        records::ZoneRecords,
        requests::{Remembered, Requests},
    },
};

/// Longest text without a limit of its own, in octets.
const TEXT: usize = 64 << 10;
/// Longest packed data of one set, in octets.
const PACKED: usize = 4 << 20;
/// Most items of a list without a limit of its own.
const LIST: usize = 16 << 20;

/// An object with a stored form of its own, which is also what it adds to the state hash.
pub trait Stored: Sized {
    /// Tells kinds apart in the hash.
    const KIND: u8;

    fn write(&self, out: &mut Vec<u8>);

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError>;

    /// What this object adds to a sum of hashes.
    fn digest(&self) -> u128 {
        let mut bytes = Vec::with_capacity(128);
        self.write(&mut bytes);
        digest::part(Self::KIND, &bytes)
    }
}

pub fn write_state(state: &State, out: &mut Writer<'_>) -> io::Result<()> {
    let State {
        service,
        histories,
        deleted,
        requests,
        cluster,
        sum: _,
        totals: _,
    } = state;
    let Snapshot {
        revision,
        zones,
        forwarders,
        pools,
        listeners,
        vips,
        unclaimed_vips,
        dns,
    } = service;
    out.buffer().put_number(*revision);
    write_all(
        zones.values().map(AsRef::as_ref),
        zones.len(),
        out,
        write_zone,
    )?;
    write_stored(forwarders.values().map(AsRef::as_ref), out)?;
    write_stored(pools.values().map(AsRef::as_ref), out)?;
    write_stored(listeners.values().map(AsRef::as_ref), out)?;
    write_stored(vips.values(), out)?;
    write_unclaimed_vips(unclaimed_vips, out.buffer());
    dns.write(out.buffer());
    let versions: Vec<_> = histories.all().collect();
    write_all(
        versions.iter().copied(),
        versions.len(),
        out,
        |(zone, version), out| {
            write_name(zone, out.buffer());
            version.write(out.buffer());
            out.step()
        },
    )?;
    write_stored(deleted.iter(), out)?;
    out.buffer().put_number(requests.forgotten());
    write_stored(requests.iter(), out)?;
    cluster.write(out.buffer());
    out.buffer().put_raw(&state.hash());
    Ok(())
}

pub fn read_state(reader: &mut Reader<'_>) -> Result<State, DecodeError> {
    let revision = reader.number()?;
    let zones = reader.list(LIST, "zones", read_zone)?;
    let forwarders = read_shared::<Forwarder>(reader, "forwarders")?;
    let pools = read_shared::<Pool>(reader, "pools")?;
    let listeners = read_shared::<Listener>(reader, "listeners")?;
    let vips = reader.list(LIST, "VIPs", Vip::read)?;
    let unclaimed_vips = reader.list(LIST, "unclaimed VIPs", |r| Ok((r.ip()?, r.number()?)))?;
    let dns = DnsPolicy::read(reader)?;
    let service = Snapshot {
        revision,
        zones: keyed(zones.into_iter().map(Arc::new), |z| z.apex.clone()),
        forwarders: keyed(forwarders, |f| f.suffix.clone()),
        pools: keyed(pools, |p| p.name.clone()),
        listeners: keyed(listeners, |l| l.name.clone()),
        vips: keyed(vips, |v: &Vip| v.address),
        unclaimed_vips: unclaimed_vips.into_iter().collect(),
        dns,
    };
    let mut histories = Histories::default();
    for (zone, version) in reader.list(LIST, "versions", |r| {
        Ok((read_name(r)?, ZoneVersion::read(r)?))
    })? {
        histories.push(&zone, version);
    }
    let mut deleted = DeletedZones::default();
    for zone in reader.list(LIST, "deleted zones", DeletedZone::read)? {
        deleted.remember(zone.apex, zone.serial, zone.revision);
    }
    let forgotten = reader.number()?;
    let mut requests = Requests::forgotten_before(forgotten);
    for request in reader.list(LIST, "requests", Remembered::read)? {
        requests.remember(request);
    }
    let cluster = Cluster::read(reader)?;
    let state = State::assemble(service, histories, deleted, requests, cluster);
    let written: [u8; 16] = reader.array()?;
    if state.hash() == written {
        Ok(state)
    } else {
        Err(malformed("its contents do not match its hash"))
    }
}

fn keyed<K: Ord + Clone, V: Clone>(
    values: impl IntoIterator<Item = V>,
    key: impl Fn(&V) -> K,
) -> OrdMap<K, V> {
    values.into_iter().map(|v| (key(&v), v)).collect()
}

fn read_shared<T: Stored>(reader: &mut Reader<'_>, what: &str) -> Result<Vec<Arc<T>>, DecodeError> {
    reader.list(LIST, what, |r| T::read(r).map(Arc::new))
}

fn write_all<T>(
    values: impl Iterator<Item = T>,
    count: usize,
    out: &mut Writer<'_>,
    one: impl Fn(T, &mut Writer<'_>) -> io::Result<()>,
) -> io::Result<()> {
    out.buffer().put_count(count);
    for value in values {
        one(value, out)?;
    }
    Ok(())
}

fn write_stored<'a, T: Stored + 'a>(
    values: impl ExactSizeIterator<Item = &'a T>,
    out: &mut Writer<'_>,
) -> io::Result<()> {
    let count = values.len();
    write_all(values, count, out, |value, out| {
        value.write(out.buffer());
        out.step()
    })
}

impl<T: Stored> Stored for Arc<T> {
    const KIND: u8 = T::KIND;

    fn write(&self, out: &mut Vec<u8>) {
        T::write(self, out);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        T::read(reader).map(Arc::new)
    }

    fn digest(&self) -> u128 {
        T::digest(self)
    }
}

// Names, sets and zones.

fn write_name(name: &Name, out: &mut Vec<u8>) {
    out.put_octets(name.as_wire());
}

fn read_name(reader: &mut Reader<'_>) -> Result<Name, DecodeError> {
    Name::from_wire(reader.octets(MAX_NAME, "name")?).map_err(malformed)
}

fn write_key(key: &NameKey, out: &mut Vec<u8>) {
    out.put_octets(key.as_bytes());
}

fn read_key(reader: &mut Reader<'_>) -> Result<NameKey, DecodeError> {
    NameKey::from_bytes(reader.octets(2 * MAX_NAME, "owner")?)
        .ok_or_else(|| malformed("an owner is no name"))
}

fn write_rrset(set: &Rrset, out: &mut Vec<u8>) {
    out.put_number(set.rtype().0.into());
    out.put_number(set.ttl().into());
    out.put_octets(set.packed());
}

fn read_rrset(reader: &mut Reader<'_>) -> Result<Rrset, DecodeError> {
    let rtype = RecordType(reader.number_as("type")?);
    let ttl = reader.number_as("TTL")?;
    let packed = reader.octets(PACKED, "record set")?.into();
    Rrset::from_packed(rtype, ttl, packed).ok_or_else(|| malformed("a record set is not sound"))
}

fn write_zone(zone: &Zone, out: &mut Writer<'_>) -> io::Result<()> {
    let Zone {
        apex,
        serial,
        revision,
        nodes,
        // Counted again as the sets are read.
        record_count: _,
        data_bytes: _,
        content_hash: _,
    } = zone;
    write_name(apex, out.buffer());
    out.buffer().put_number(serial.0.into());
    out.buffer().put_number(*revision);
    out.buffer().put_count(nodes.len());
    for (key, node) in nodes {
        write_key(key, out.buffer());
        out.buffer().put_count(node.rrsets().len());
        for set in node.rrsets() {
            write_rrset(set, out.buffer());
            out.step()?;
        }
    }
    Ok(())
}

fn read_zone(reader: &mut Reader<'_>) -> Result<Zone, DecodeError> {
    let apex = read_name(reader)?;
    let serial = Serial(reader.number_as("serial")?);
    let revision = reader.number()?;
    let mut records = ZoneRecords::default();
    for _ in 0..reader.number()? {
        let key = read_key(reader)?;
        if !key.fits(&apex) {
            return Err(malformed(format!("an owner in zone {apex} is too long")));
        }
        let sets = reader.list(usize::from(u16::MAX), "sets of a name", read_rrset)?;
        let node = Node::new(sets).ok_or_else(|| malformed("a name without record sets"))?;
        if !records.insert_node(key, node) {
            return Err(malformed(format!("a name comes twice in zone {apex}")));
        }
    }
    Ok(records.into_zone(apex, serial, revision))
}

/// What a zone adds to the state hash: its records are already in its content hash.
pub fn zone_digest(zone: &Zone) -> u128 {
    let mut bytes = Vec::with_capacity(64);
    write_name(&zone.apex, &mut bytes);
    bytes.put_number(zone.serial.0.into());
    bytes.put_number(zone.revision);
    bytes.put_raw(&zone.content_hash);
    digest::part(1, &bytes)
}

/// What a set adds to its zone's content hash. The serial of an SOA must be zero here.
pub fn rrset_digest(owner: &NameKey, set: &Rrset) -> u128 {
    let mut bytes = Vec::with_capacity(owner.as_bytes().len() + set.packed_len() + 16);
    write_key(owner, &mut bytes);
    write_rrset(set, &mut bytes);
    digest::part(2, &bytes)
}

/// What a version adds to the state hash: all but its summary, whose words may differ between versions of the program.
pub fn version_digest(zone: &Name, version: &ZoneVersion) -> u128 {
    let mut bytes = Vec::with_capacity(256);
    write_name(zone, &mut bytes);
    write_version(version, "", &mut bytes);
    digest::part(ZoneVersion::KIND, &bytes)
}

fn write_optional<T>(value: Option<&T>, out: &mut Vec<u8>, write: impl Fn(&T, &mut Vec<u8>)) {
    out.put_u8(value.is_some().into());
    if let Some(value) = value {
        write(value, out);
    }
}

fn read_optional<T>(
    reader: &mut Reader<'_>,
    read: impl FnOnce(&mut Reader<'_>) -> Result<T, DecodeError>,
) -> Result<Option<T>, DecodeError> {
    reader.flag("presence")?.then(|| read(reader)).transpose()
}

fn write_set_change(change: &SetChange, out: &mut Vec<u8>) {
    let SetChange {
        owner,
        rtype,
        before,
        after,
    } = change;
    write_key(owner, out);
    out.put_number(rtype.0.into());
    write_optional(before.as_ref(), out, write_rrset);
    write_optional(after.as_ref(), out, write_rrset);
}

fn read_set_change(reader: &mut Reader<'_>) -> Result<SetChange, DecodeError> {
    Ok(SetChange {
        owner: read_key(reader)?,
        rtype: RecordType(reader.number_as("type")?),
        before: read_optional(reader, read_rrset)?,
        after: read_optional(reader, read_rrset)?,
    })
}

fn write_version(version: &ZoneVersion, summary: &str, out: &mut Vec<u8>) {
    let ZoneVersion {
        serial,
        revision,
        at,
        author,
        summary: _,
        changes,
    } = version;
    out.put_number(serial.0.into());
    out.put_number(*revision);
    out.put_number(at.0);
    out.put_text(author);
    out.put_text(summary);
    write_optional(changes.as_ref(), out, |changes, out| {
        out.put_count(changes.len());
        for change in changes.iter() {
            write_set_change(change, out);
        }
    });
}

impl Stored for ZoneVersion {
    const KIND: u8 = 3;

    fn write(&self, out: &mut Vec<u8>) {
        write_version(self, &self.summary, out);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            serial: Serial(reader.number_as("serial")?),
            revision: reader.number()?,
            at: UnixMillis(reader.number()?),
            author: reader.text(TEXT, "author")?,
            summary: reader.text(TEXT, "summary")?,
            changes: read_optional(reader, |r| {
                Ok(r.list(LIST, "changes of a version", read_set_change)?
                    .into())
            })?,
        })
    }
}

/// A zone that is gone, and what its serial was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeletedZone {
    pub apex: Name,
    pub serial: Serial,
    /// When it went.
    pub revision: u64,
}

impl Stored for DeletedZone {
    const KIND: u8 = 4;

    fn write(&self, out: &mut Vec<u8>) {
        let Self {
            apex,
            serial,
            revision,
        } = self;
        write_name(apex, out);
        out.put_number(serial.0.into());
        out.put_number(*revision);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            apex: read_name(reader)?,
            serial: Serial(reader.number_as("serial")?),
            revision: reader.number()?,
        })
    }
}

// Balancing and DNS policy.

fn write_label(label: &Label, out: &mut Vec<u8>) {
    out.put_text(label.as_str());
}

fn read_label(reader: &mut Reader<'_>) -> Result<Label, DecodeError> {
    reader.text(TEXT, "object name")?.parse().map_err(malformed)
}

impl Stored for Backend {
    const KIND: u8 = 5;

    fn write(&self, out: &mut Vec<u8>) {
        let Self {
            name,
            address,
            weight,
            state,
        } = self;
        write_label(name, out);
        out.put_socket(*address);
        out.put_number((*weight).into());
        out.put_u8(match state {
            BackendState::Enabled => 0,
            BackendState::Drain => 1,
            BackendState::Disabled => 2,
        });
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            name: read_label(reader)?,
            address: reader.socket()?,
            weight: reader.number_as("weight")?,
            state: match reader.u8()? {
                0 => BackendState::Enabled,
                1 => BackendState::Drain,
                2 => BackendState::Disabled,
                other => return Err(malformed(format!("backend state {other}"))),
            },
        })
    }
}

impl Stored for HealthCheck {
    const KIND: u8 = 6;

    fn write(&self, out: &mut Vec<u8>) {
        let Self {
            probe,
            interval,
            down_interval,
            timeout,
            rise,
            fall,
        } = self;
        out.put_u8(match probe {
            Probe::TcpConnect => 0,
        });
        out.put_duration(*interval);
        out.put_duration(*down_interval);
        out.put_duration(*timeout);
        out.put_u8(*rise);
        out.put_u8(*fall);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            probe: match reader.u8()? {
                0 => Probe::TcpConnect,
                other => return Err(malformed(format!("health probe {other}"))),
            },
            interval: reader.duration()?,
            down_interval: reader.duration()?,
            timeout: reader.duration()?,
            rise: reader.u8()?,
            fall: reader.u8()?,
        })
    }
}

impl Stored for Pool {
    const KIND: u8 = 7;

    fn write(&self, out: &mut Vec<u8>) {
        let Self {
            name,
            policy,
            backends,
            health_check,
            connect_timeout,
            connect_retries,
        } = self;
        write_label(name, out);
        out.put_u8(match policy {
            Policy::RoundRobin => 0,
            Policy::LeastConnections => 1,
            Policy::SourceHash => 2,
        });
        out.put_count(backends.len());
        for backend in backends {
            backend.write(out);
        }
        write_optional(health_check.as_ref(), out, HealthCheck::write);
        out.put_duration(*connect_timeout);
        out.put_u8(*connect_retries);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            name: read_label(reader)?,
            policy: match reader.u8()? {
                0 => Policy::RoundRobin,
                1 => Policy::LeastConnections,
                2 => Policy::SourceHash,
                other => return Err(malformed(format!("policy {other}"))),
            },
            backends: reader.list(LIST, "backends", Backend::read)?,
            health_check: read_optional(reader, HealthCheck::read)?,
            connect_timeout: reader.duration()?,
            connect_retries: reader.u8()?,
        })
    }
}

impl Stored for Listener {
    const KIND: u8 = 8;

    fn write(&self, out: &mut Vec<u8>) {
        let Self {
            name,
            address,
            port,
            pool,
            idle_timeout,
            max_connections,
        } = self;
        write_label(name, out);
        let one = match address {
            ListenAddress::EveryNode => None,
            ListenAddress::Address(ip) => Some(ip),
        };
        write_optional(one, out, |ip, out| out.put_ip(*ip));
        out.put_number((*port).into());
        write_label(pool, out);
        out.put_duration(*idle_timeout);
        out.put_number((*max_connections).into());
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            name: read_label(reader)?,
            address: read_optional(reader, |r| r.ip())?
                .map_or(ListenAddress::EveryNode, ListenAddress::Address),
            port: reader.number_as("port")?,
            pool: read_label(reader)?,
            idle_timeout: reader.duration()?,
            max_connections: reader.number_as("connections")?,
        })
    }
}

impl Stored for Vip {
    const KIND: u8 = 9;

    fn write(&self, out: &mut Vec<u8>) {
        let Self { address, interface } = self;
        out.put_ip(*address);
        write_label(interface, out);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            address: reader.ip()?,
            interface: read_label(reader)?,
        })
    }
}

/// Those that no member held, and when each was added.
pub fn write_unclaimed_vips(vips: &OrdMap<IpAddr, u64>, out: &mut Vec<u8>) {
    out.put_count(vips.len());
    for (address, added_at) in vips {
        out.put_ip(*address);
        out.put_number(*added_at);
    }
}

impl Stored for Forwarder {
    const KIND: u8 = 10;

    fn write(&self, out: &mut Vec<u8>) {
        let Self {
            suffix,
            upstreams,
            timeout,
        } = self;
        write_name(suffix, out);
        out.put_count(upstreams.len());
        for upstream in upstreams {
            out.put_socket(*upstream);
        }
        out.put_duration(*timeout);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            suffix: read_name(reader)?,
            upstreams: reader.list(LIST, "upstreams", Reader::socket)?,
            timeout: reader.duration()?,
        })
    }
}

impl Stored for DnsPolicy {
    const KIND: u8 = 11;

    fn write(&self, out: &mut Vec<u8>) {
        let Self { recursion_allowed } = self;
        out.put_count(recursion_allowed.len());
        for network in recursion_allowed {
            out.put_ip(network.address());
            out.put_u8(network.prefix());
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let network = |reader: &mut Reader<'_>| {
            let address: IpAddr = reader.ip()?;
            let prefix = reader.u8()?;
            Network::new(address, prefix)
                .ok_or_else(|| malformed(format!("{address}/{prefix} is no network")))
        };
        Ok(Self {
            recursion_allowed: reader.list(LIST, "networks", network)?,
        })
    }
}

// Members.

impl Stored for Member {
    const KIND: u8 = 12;

    fn write(&self, out: &mut Vec<u8>) {
        let Self {
            id,
            name,
            raft_address,
            api_address,
        } = self;
        out.put_number(id.0);
        out.put_text(name);
        out.put_socket(*raft_address);
        out.put_socket(*api_address);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            id: NodeId(reader.number()?),
            name: reader.text(TEXT, "member name")?,
            raft_address: reader.socket()?,
            api_address: reader.socket()?,
        })
    }
}

impl Stored for JoinToken {
    const KIND: u8 = 13;

    fn write(&self, out: &mut Vec<u8>) {
        let Self {
            id,
            secret_hash,
            expires_at,
            used_by,
        } = self;
        out.put_text(id);
        out.put_text(&secret_hash.0);
        out.put_number(expires_at.0);
        write_optional(used_by.as_ref(), out, |node, out| out.put_number(node.0));
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            id: reader.text(TEXT, "token id")?,
            secret_hash: Secret(reader.text(TEXT, "token hash")?),
            expires_at: UnixMillis(reader.number()?),
            used_by: read_optional(reader, |r| r.number())?.map(NodeId),
        })
    }
}

impl Stored for Cluster {
    const KIND: u8 = 14;

    fn write(&self, out: &mut Vec<u8>) {
        let Self {
            id,
            ca,
            previous_ca,
            next_node,
            members,
            tokens,
            feature_level,
            profile,
            vip_release,
            preference,
        } = self;
        write_optional(id.as_ref(), out, |id, out| out.put_text(&id.0));
        out.put_text(&ca.0);
        write_optional(previous_ca.as_ref(), out, |pem, out| out.put_text(pem));
        out.put_number(next_node.0);
        out.put_number((*feature_level).into());
        out.put_count(members.len());
        for member in members.values() {
            member.write(out);
        }
        out.put_count(tokens.len());
        for token in tokens.values() {
            token.write(out);
        }
        let Timing {
            heartbeat,
            election_timeout_min,
            election_timeout_max,
        } = profile.timing();
        for time in [heartbeat, election_timeout_min, election_timeout_max] {
            out.put_duration(time);
        }
        write_optional(vip_release.as_ref(), out, |release, out| {
            let VipRelease { to, term } = release;
            out.put_number(to.0);
            out.put_number(*term);
        });
        write_optional(preference.as_ref(), out, |preference, out| {
            let Preference { node, cool_down } = preference;
            out.put_number(node.0);
            out.put_duration(*cool_down);
        });
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let id = read_optional(reader, |r| r.text(TEXT, "cluster id"))?.map(ClusterId);
        let ca = Secret(reader.text(2 * limits::CA_OCTETS, "certificate authority")?);
        let previous_ca = read_optional(reader, |r| {
            r.text(2 * limits::CA_OCTETS, "previous certificate")
        })?;
        let next_node = NodeId(reader.number()?);
        let feature_level = reader.number_as("feature level")?;
        let members = read_shared::<Member>(reader, "members")?;
        let tokens = read_shared::<JoinToken>(reader, "tokens")?;
        let timing = Timing {
            heartbeat: reader.duration()?,
            election_timeout_min: reader.duration()?,
            election_timeout_max: reader.duration()?,
        };
        let vip_release = read_optional(reader, |r| {
            let to = NodeId(r.number()?);
            let term = r.number()?;
            Ok(VipRelease { to, term })
        })?;
        let preference = read_optional(reader, |r| {
            let node = NodeId(r.number()?);
            let cool_down = r.duration()?;
            Ok(Preference { node, cool_down })
        })?;
        Ok(Self {
            id,
            ca,
            previous_ca,
            next_node,
            members: keyed(members, |m| m.id),
            tokens: keyed(tokens, |t| t.id.clone()),
            feature_level,
            profile: Profile::of_timing(timing),
            vip_release,
            preference,
        })
    }
}

// Outcomes.

impl Stored for Remembered {
    const KIND: u8 = 15;

    fn write(&self, out: &mut Vec<u8>) {
        let Self {
            request,
            revision,
            outcome,
        } = self;
        out.put_raw(&request.0.to_be_bytes());
        out.put_number(*revision);
        write_outcome(outcome, out);
    }

    /// Without the words of a refusal, which may differ between versions of the program.
    fn digest(&self) -> u128 {
        let mut bytes = Vec::with_capacity(64);
        match &self.outcome {
            Outcome::Refused(refusal) => {
                bytes.put_raw(&self.request.0.to_be_bytes());
                bytes.put_number(self.revision);
                bytes.put_u8(REFUSED);
                bytes.put_u8(kind_number(refusal.kind));
            }
            Outcome::Applied(_) | Outcome::Unknown => self.write(&mut bytes),
        }
        digest::part(Self::KIND, &bytes)
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            request: RequestId(u128::from_be_bytes(reader.array()?)),
            revision: reader.number()?,
            outcome: read_outcome(reader)?,
        })
    }
}

const REFUSED: u8 = 1;

fn write_outcome(outcome: &Outcome, out: &mut Vec<u8>) {
    match outcome {
        Outcome::Applied(Applied {
            revision,
            changed,
            serials,
            node,
        }) => {
            out.put_u8(0);
            out.put_number(*revision);
            out.put_u8((*changed).into());
            out.put_count(serials.len());
            for (zone, serial) in serials {
                write_name(zone, out);
                out.put_number(serial.0.into());
            }
            write_optional(node.as_ref(), out, |node, out| out.put_number(node.0));
        }
        Outcome::Refused(Refusal {
            kind,
            object,
            problem,
            hint,
        }) => {
            out.put_u8(REFUSED);
            out.put_u8(kind_number(*kind));
            out.put_text(object);
            out.put_text(problem);
            out.put_text(hint);
        }
        Outcome::Unknown => out.put_u8(2),
    }
}

fn read_outcome(reader: &mut Reader<'_>) -> Result<Outcome, DecodeError> {
    match reader.u8()? {
        0 => Ok(Outcome::Applied(Applied {
            revision: reader.number()?,
            changed: reader.flag("changed")?,
            serials: reader.list(LIST, "serials", |r| {
                Ok((read_name(r)?, Serial(r.number_as("serial")?)))
            })?,
            node: read_optional(reader, |r| r.number())?.map(NodeId),
        })),
        REFUSED => Ok(Outcome::Refused(Refusal {
            kind: kind_of(reader.u8()?)?,
            object: reader.text(TEXT, "object")?,
            problem: reader.text(TEXT, "problem")?,
            hint: reader.text(TEXT, "hint")?,
        })),
        2 => Ok(Outcome::Unknown),
        other => Err(malformed(format!("outcome {other}"))),
    }
}

fn kind_number(kind: RefusalKind) -> u8 {
    match kind {
        RefusalKind::Invalid => 0,
        RefusalKind::NotFound => 1,
        RefusalKind::AlreadyExists => 2,
        RefusalKind::PreconditionFailed => 3,
        RefusalKind::Conflict => 4,
        RefusalKind::LimitExceeded => 5,
        RefusalKind::FeatureLevel => 6,
    }
}

fn kind_of(number: u8) -> Result<RefusalKind, DecodeError> {
    Ok(match number {
        0 => RefusalKind::Invalid,
        1 => RefusalKind::NotFound,
        2 => RefusalKind::AlreadyExists,
        3 => RefusalKind::PreconditionFailed,
        4 => RefusalKind::Conflict,
        5 => RefusalKind::LimitExceeded,
        6 => RefusalKind::FeatureLevel,
        other => return Err(malformed(format!("refusal kind {other}"))),
    })
}
