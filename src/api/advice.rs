//! What the state alone cannot judge of a batch, and what an operator should know of one that was applied.
//!
//! Which addresses and ports a node has stands in its `node.toml`, not in the replicated state, so apply cannot look at
//! them. The node that takes a batch can: it knows its own, and asks the others for theirs. It refuses what could never
//! work, before the log. What passes all the same (another `node.toml`, a node that did not answer) is shown by the
//! node concerned as an alarm. `judge` and `of_applied` are pure; `Api::advise` gathers what they need.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use super::{Api, group::Group};
use crate::{
    config::{reserved::Reserved, units::format_duration},
    model::{
        leadership::Preference,
        listener::{ListenAddress, Listener},
        name::{Name, NameKey},
        network::Network,
        node::NodeId,
        rrset::RecordType,
        snapshot::Snapshot,
        vip::Vip,
    },
    state::{
        State,
        check::balancing::{listener_object, vip_object},
        command::{Change, Command},
        limits,
        outcome::Applied,
    },
    wire::{
        error::{Failure, FailureCode},
        v1,
    },
};

/// Service addresses of every member; none of those that did not tell.
type Services = BTreeMap<NodeId, Option<Vec<IpAddr>>>;

/// Logical names of interfaces that each member maps to devices; none of those that did not tell.
type Interfaces = BTreeMap<NodeId, BTreeSet<String>>;

/// Addresses that somebody else has put on a device of a member: by address, each such member with a device.
type Occupied = BTreeMap<IpAddr, Vec<(String, String)>>;

/// What the members say of themselves.
struct Told {
    services: Services,
    interfaces: Interfaces,
    occupied: Occupied,
}

/// What a batch makes of listeners and VIPs.
struct Intent<'a> {
    listeners: Vec<&'a Listener>,
    /// VIPs that are put on an interface on which they are not.
    placed: Vec<&'a Vip>,
    new_vips: BTreeSet<IpAddr>,
    /// VIPs as they will be.
    vips: BTreeSet<IpAddr>,
}

impl<'a> Intent<'a> {
    fn of(state: &State, changes: &'a [Change]) -> Self {
        let before = state.snapshot();
        let mut intent = Self {
            listeners: Vec::new(),
            placed: Vec::new(),
            new_vips: BTreeSet::new(),
            vips: before.vips.keys().copied().collect(),
        };
        for change in changes {
            match change {
                // One that is as it was takes nothing from anybody.
                Change::PutListener { listener, .. }
                    if before.listeners.get(&listener.name).map(Arc::as_ref) != Some(listener) =>
                {
                    intent.listeners.push(listener);
                }
                Change::PutVip { vip, .. } => {
                    if before.vips.get(&vip.address) != Some(vip) {
                        intent.placed.push(vip);
                    }
                    intent.vips.insert(vip.address);
                }
                Change::DeleteVip { address } => drop(intent.vips.remove(address)),
                _ => {}
            }
        }
        let is_new = |address: &&IpAddr| !before.vips.contains_key(*address);
        intent.new_vips = intent.vips.iter().filter(is_new).copied().collect();
        intent
    }

    fn is_empty(&self) -> bool {
        self.listeners.is_empty() && self.placed.is_empty()
    }

    /// Whether the other nodes have to be asked for their addresses and interfaces.
    fn needs_others(&self, own: &[IpAddr]) -> bool {
        let is_elsewhere = |listener: &&Listener| match listener.address {
            ListenAddress::Address(ip) => !self.vips.contains(&ip) && !own.contains(&ip),
            ListenAddress::EveryNode => false,
        };
        !self.placed.is_empty() || self.listeners.iter().any(is_elsewhere)
    }
}

impl Api {
    /// Refuses what no node, or not this one, could serve. Returns what may turn out so.
    pub(super) async fn advise(
        &self,
        group: &Arc<dyn Group>,
        command: &Command,
        deadline: Instant,
    ) -> Result<Vec<String>, Failure> {
        let state = group.state();
        if state.outcome_of(command.request).is_some() {
            return Ok(Vec::new());
        }
        let first = self.advise_on(&state, &command.changes, deadline).await;
        if first.is_ok() {
            return first;
        }
        // This node may be behind, or the batch a retry of one that was applied: neither must be called a refusal.
        group.catch_up(deadline).await?;
        let state = group.state();
        if state.outcome_of(command.request).is_some() {
            return Ok(Vec::new());
        }
        self.advise_on(&state, &command.changes, deadline).await
    }

    /// The same for changes to `state` that nobody proposes yet.
    pub(super) async fn advise_on(
        &self,
        state: &Arc<State>,
        changes: &[Change],
        deadline: Instant,
    ) -> Result<Vec<String>, Failure> {
        let mut warnings = Vec::new();
        if let Some(preference) = preferred(changes) {
            let reports = self.all_reports(state, deadline).await;
            warnings.extend(unfit_preferred(preference, &reports));
        }
        let intent = Intent::of(state, changes);
        if intent.is_empty() {
            return Ok(warnings);
        }
        if self.speaks_tls() {
            loopback_is_no_vip(&intent)?;
        }
        let own = self.node().report().service_addresses;
        let told = match intent.needs_others(&own) {
            true => self.told(state, deadline).await,
            false => Told {
                services: Services::from([(self.id(), Some(own.clone()))]),
                interfaces: Interfaces::new(),
                occupied: Occupied::new(),
            },
        };
        let reserved = self.node().reserved();
        warnings.extend(judge(state, &intent, &own, &reserved, &told.services)?);
        if !intent.placed.is_empty() {
            warnings.extend(no_hosts(&intent, &self.node().networks()));
        }
        let members = state.members().len();
        warnings.extend(unmapped(&intent, members, &told.interfaces));
        warnings.extend(taken_elsewhere(&intent, &told.occupied));
        Ok(warnings)
    }

    /// Asks every member for its addresses and interfaces.
    async fn told(&self, state: &Arc<State>, deadline: Instant) -> Told {
        let reports = self.all_reports(state, deadline).await;
        let occupied = occupied(&reports);
        let mut services: Services = state.members().keys().map(|id| (*id, None)).collect();
        let mut interfaces = Interfaces::new();
        for report in reports {
            let addresses = report.service_addresses.iter();
            let addresses: Vec<IpAddr> = addresses.filter_map(|text| text.parse().ok()).collect();
            let id = NodeId(report.node.map_or(0, |node| node.id));
            interfaces.insert(id, report.interfaces.into_iter().collect());
            // A node of an earlier release says nothing of them.
            services.insert(id, Some(addresses).filter(|a| !a.is_empty()));
        }
        Told {
            services,
            interfaces,
            occupied,
        }
    }
}

/// A node of an earlier release says nothing of it.
fn occupied(reports: &[v1::NodeStatusReply]) -> Occupied {
    let mut occupied = Occupied::new();
    for report in reports {
        let Some(node) = &report.node else { continue };
        for one in &report.occupied {
            if let Ok(address) = one.address.parse() {
                let who = format!("node {} ({})", node.id, node.name);
                let there: &mut Vec<_> = occupied.entry(address).or_default();
                there.push((who, one.device.clone()));
            }
        }
    }
    occupied
}

/// The VIPs that somebody else has put on a device of a member: that one can hold none of them.
fn taken_elsewhere(intent: &Intent<'_>, occupied: &Occupied) -> Vec<String> {
    let mut warnings = Vec::new();
    for vip in &intent.placed {
        for (who, device) in occupied.get(&vip.address).into_iter().flatten() {
            warnings.push(format!(
                "VIP {}: {who} has this address on its device {device}, put there by somebody else, and cannot hold the VIP: remove it \
                 there, or choose another address",
                vip.address
            ));
        }
    }
    warnings
}

fn judge(
    state: &State,
    intent: &Intent<'_>,
    own: &[IpAddr],
    reserved: &Reserved,
    services: &Services,
) -> Result<Vec<String>, Failure> {
    let mut warnings = Vec::new();
    let mut refused = Vec::new();
    for listener in &intent.listeners {
        refused.extend(port_is_free(state, intent, listener, own, reserved).err());
        if let ListenAddress::Address(ip) = listener.address
            && !intent.vips.contains(&ip)
            && !own.contains(&ip)
        {
            match somebody_has(listener, ip, services) {
                Ok(doubt) => warnings.extend(doubt),
                Err(failure) => refused.push(failure),
            }
        }
    }
    let vips = intent.new_vips.iter();
    refused.extend(vips.filter_map(|vip| is_a_nodes_own(state, *vip, services)));
    let others = state.snapshot().listeners.values();
    for listener in others.filter(|l| reserved.vip_owner(l.port).is_some()) {
        let meets = match listener.address {
            ListenAddress::EveryNode => !intent.new_vips.is_empty(),
            ListenAddress::Address(ip) => intent.new_vips.contains(&ip),
        };
        if meets && !intent.listeners.iter().any(|l| l.name == listener.name) {
            refused.extend(port_is_free(state, intent, listener, own, reserved).err());
        }
    }
    match together(refused) {
        None => Ok(warnings),
        Some(failure) => Err(failure),
    }
}

/// The VIPs whose interface some node maps to no device: that node is unfit to hold any VIP.
fn unmapped(intent: &Intent<'_>, members: usize, interfaces: &Interfaces) -> Vec<String> {
    // Those of a local cluster are on no device.
    let placed = intent
        .placed
        .iter()
        .filter(|vip| !vip.address.is_loopback());
    let warning = |vip: &&&Vip| {
        let interface = vip.interface.to_string();
        let without = interfaces
            .iter()
            .filter(|(_, maps)| !maps.contains(&interface));
        let without: Vec<String> = without.map(|(id, _)| id.to_string()).collect();
        let (who, unfit) = match without.len() {
            0 => return None,
            all if all == members => ("no node maps".to_owned(), "every node".to_owned()),
            1 => (format!("node {} does not map", without[0]), "it".to_owned()),
            _ => (
                format!("nodes {} do not map", without.join(", ")),
                "each of them".to_owned(),
            ),
        };
        Some(format!(
            "VIP {}: {who} interface {interface} to a device ([interfaces] in node.toml): {unfit} is unfit to hold any VIP until it does",
            vip.address
        ))
    };
    placed.filter_map(|vip| warning(&vip)).collect()
}

/// The preferred holder that a batch names.
fn preferred(changes: &[Change]) -> Option<Preference> {
    let last = changes.iter().rev().find_map(|change| match change {
        Change::SetPreference { preference } => Some(*preference),
        _ => None,
    });
    last.flatten()
}

/// That the VIPs will not go to the preferred node for the time being.
fn unfit_preferred(preference: Preference, reports: &[v1::NodeStatusReply]) -> Option<String> {
    let id = preference.node.0;
    let mut nodes = reports.iter().filter_map(|report| report.node.as_ref());
    let why = match nodes.find(|node| node.id == id) {
        None => "does not answer".to_owned(),
        Some(node) if !node.unfit.is_empty() => {
            format!("is unfit to hold the VIPs: {}", node.unfit)
        }
        Some(node) if node.role == i32::from(v1::Role::Learner) => {
            "is a learner, and holds no VIPs until it is promoted".to_owned()
        }
        Some(node) if ["starting", "failed"].contains(&node.state.as_str()) => {
            format!("is {}", node.state)
        }
        Some(_) => return None,
    };
    Some(format!(
        "node {id} {why}; the VIPs go there when it has been fit and caught up for {}",
        format_duration(preference.cool_down)
    ))
}

/// The VIPs that no host can have on their interface, by the networks in which this node has an address there.
fn no_hosts(intent: &Intent<'_>, networks: &BTreeMap<String, BTreeSet<Network>>) -> Vec<String> {
    let warning = |vip: &&Vip| {
        let interface = vip.interface.to_string();
        let mut there = networks.get(&interface)?.iter();
        let (network, why) = there.find_map(|it| Some((it, it.no_host_of_it(vip.address)?)))?;
        Some(format!(
            "VIP {}: it {why} of {network}, in which this node has an address on interface {interface}: clients there do not reach a \
             host by it; take a free address of that network",
            vip.address
        ))
    };
    intent.placed.iter().filter_map(warning).collect()
}

/// Every host has the loopback addresses for itself: behind the fence of a VIP it would not hear itself. Only the VIPs of a
/// local cluster, which has no fence, are loopback addresses.
fn loopback_is_no_vip(intent: &Intent<'_>) -> Result<(), Failure> {
    let own = intent.new_vips.iter().filter(|vip| vip.is_loopback());
    let refused = own.map(|vip| {
        Failure::new(
            FailureCode::Invalid,
            vip_object(*vip),
            format!("{vip} is a loopback address, which every host has for itself alone"),
            "take a free address of the clients' network",
        )
    });
    together(refused.collect()).map_or(Ok(()), Err)
}

/// One failure as it is; several as one, a line each.
fn together(mut failures: Vec<Failure>) -> Option<Failure> {
    let first = failures.first()?;
    if failures.len() == 1 {
        return failures.pop();
    }
    let lines = failures
        .iter()
        .map(|f| format!("{f} ({})", f.hint))
        .collect::<Vec<_>>()
        .join("\n");
    Some(Failure::new(
        first.code,
        format!("{} listeners or VIPs", failures.len()),
        format!("nothing could answer there\n{lines}"),
        "correct them, and try again",
    ))
}

/// Whether this node needs none of the listener's addresses for itself, and no member has it for its peers or API.
fn port_is_free(
    state: &State,
    intent: &Intent<'_>,
    listener: &Listener,
    own: &[IpAddr],
    reserved: &Reserved,
) -> Result<(), Failure> {
    let port = listener.port;
    let on_vips = match listener.address {
        ListenAddress::EveryNode => true,
        ListenAddress::Address(ip) => intent.vips.contains(&ip),
    };
    if let Some(owner) = reserved.vip_owner(port).filter(|_| on_vips) {
        return Err(taken(
            listener,
            format!("{owner} has port {port} of every VIP"),
        ));
    }
    let here: Vec<SocketAddr> = listener.bind_addresses(own, &[]);
    for address in here {
        let member = state
            .members()
            .values()
            .find(|member| [member.raft_address, member.api_address].contains(&address));
        if let Some(member) = member {
            let problem = format!("node {} has {address} for peers or its API", member.id);
            return Err(taken(listener, problem));
        }
        if let Some(owner) = reserved.owner(address) {
            return Err(taken(listener, format!("{owner} has {address}")));
        }
    }
    Ok(())
}

/// Why an address can be no VIP: a node has it, and would be cut off by the fence, or by whoever holds the VIP.
fn is_a_nodes_own(state: &State, vip: IpAddr, services: &Services) -> Option<Failure> {
    let mut members = state.members().values();
    let member = members.find(|m| [m.raft_address.ip(), m.api_address.ip()].contains(&vip));
    let needs = member.map(|m| format!("node {} has it for its peers or its API", m.id));
    let serves = || {
        let mut told = services.iter();
        let (id, _) = told.find(|(_, told)| told.as_ref().is_some_and(|a| a.contains(&vip)))?;
        Some(format!("node {id} has it among its service addresses"))
    };
    Some(Failure::new(
        FailureCode::Conflict,
        format!("VIP {vip}"),
        needs.or_else(serves)?,
        "take an address that no node has",
    ))
}

fn taken(listener: &Listener, problem: String) -> Failure {
    Failure::new(
        FailureCode::Conflict,
        listener_object(&listener.name),
        problem,
        "take another port",
    )
}

/// Whether a node has the address; a text when that cannot be told.
fn somebody_has(
    listener: &Listener,
    ip: IpAddr,
    services: &Services,
) -> Result<Option<String>, Failure> {
    let told = services.values().flatten();
    if told.flatten().any(|address| *address == ip) {
        return Ok(None);
    }
    let silent: Vec<String> = services
        .iter()
        .filter(|(_, told)| told.is_none())
        .map(|(id, _)| id.to_string())
        .collect();
    if silent.is_empty() {
        return Err(Failure::new(
            FailureCode::Invalid,
            listener_object(&listener.name),
            format!("{ip} is no VIP, and no node has it among its service addresses"),
            "add the VIP first, take an address of `addresses.service` in some node.toml, or leave the address out to listen on every node",
        ));
    }
    Ok(Some(format!(
        "listener {}: {ip} is no VIP, and nodes {} did not tell their service addresses: if it is none of these, nobody listens on it",
        listener.name,
        silent.join(", ")
    )))
}

/// The parts of a batch that are looked at again once it is applied.
pub(super) struct Subjects {
    forwarders: Vec<Name>,
    zones: Vec<Name>,
    gone_vips: Vec<IpAddr>,
}

impl Subjects {
    pub(super) fn of(before: &Snapshot, changes: &[Change]) -> Self {
        let mut subjects = Self {
            forwarders: Vec::new(),
            zones: Vec::new(),
            gone_vips: Vec::new(),
        };
        for change in changes {
            match change {
                Change::PutForwarder { forwarder, .. } => {
                    subjects.forwarders.push(forwarder.suffix.clone());
                }
                Change::CreateZone { zone, .. } | Change::ReplaceZone { zone, .. }
                    if !before.zones.contains_key(zone) =>
                {
                    subjects.zones.push(zone.clone());
                }
                Change::DeleteVip { address } => subjects.gone_vips.push(*address),
                _ => {}
            }
        }
        subjects
    }

    /// What an operator should know of `after`, the state that shows the batch.
    pub(super) fn warnings(&self, after: &Snapshot) -> Vec<String> {
        let mut hidden: BTreeMap<&Name, &Name> = BTreeMap::new();
        for suffix in &self.forwarders {
            hidden.extend(hiding(after, suffix).map(|zone| (suffix, zone)));
        }
        for (suffix, zone) in after
            .forwarders
            .keys()
            .filter_map(|suffix| Some((suffix, hiding(after, suffix)?)))
        {
            if self.zones.contains(zone) {
                hidden.insert(suffix, zone);
            }
        }
        let hidden = hidden.into_iter().map(|(suffix, zone)| {
            format!("forwarder {suffix} is never asked: zone {zone} answers for its names")
        });
        let stranded = after.listeners.values().filter_map(|listener| {
            let ListenAddress::Address(ip) = listener.address else {
                return None;
            };
            let gone = self.gone_vips.contains(&ip) && !after.vips.contains_key(&ip);
            gone.then(|| {
                format!("listener {} is on {ip}, which is no VIP any more: nobody listens on it unless a node has the address", listener.name)
            })
        });
        hidden.chain(stranded).collect()
    }
}

/// The zones that were there `before` and cannot be taken back beyond what was `applied`, because the change is larger than a
/// history may be.
pub(super) fn lost_histories(before: &State, after: &State, applied: &Applied) -> Vec<String> {
    let lost = |zone: &Name, serial| {
        let version = after.history(zone)?.find(serial)?;
        let gone = version.changes.is_none() && before.snapshot().zones.contains_key(zone);
        gone.then(|| {
            format!(
                "zone {zone}: the change is larger than a history may be ({} MiB), so its history begins anew with serial {serial}: \
                 `zone rollback` reaches no earlier one, only a backup does",
                limits::HISTORY_PER_ZONE >> 20
            )
        })
    };
    let changed = applied.serials.iter().filter(|_| applied.changed);
    changed
        .filter_map(|(zone, serial)| lost(zone, *serial))
        .collect()
}

/// The zone of ours that answers for all of `suffix`, so that a forwarder for it is never asked. A delegation above it, at it
/// or below it lets it be asked.
fn hiding<'a>(snapshot: &'a Snapshot, suffix: &Name) -> Option<&'a Name> {
    let zone = snapshot.zone_of(suffix)?;
    let mut name = suffix.clone();
    while name != zone.apex {
        if zone.rrset(&name, RecordType::NS).is_some() {
            return None;
        }
        name = name.parent()?;
    }
    let top = NameKey::of(suffix, &zone.apex)?;
    let mut below = zone
        .nodes
        .range(top.clone()..)
        .take_while(|(key, _)| key.is_within(&top))
        .skip_while(|(key, _)| **key == top);
    let delegates = below.any(|(_, node)| node.find(RecordType::NS).is_some());
    (!delegates).then_some(&zone.apex)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::node::NodeConfig, model::forwarder::Forwarder, site::Site};

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn listener(address: ListenAddress, port: u16) -> Change {
        let listener = Listener::new("l".parse().unwrap(), address, port, "p".parse().unwrap());
        Change::PutListener {
            listener,
            create: true,
        }
    }

    fn vip(address: &str) -> Change {
        let vip = Vip {
            address: ip(address),
            interface: "vip".parse().unwrap(),
        };
        Change::PutVip { vip, create: true }
    }

    fn reserved() -> Reserved {
        let config = NodeConfig::parse(
            "name = \"n\"\ndata_dir = \"/d\"\n[addresses]\nservice = [\"10.0.0.1\"]\ndns_port = 5353\nvip_dns_port = 53\nraft = \"10.0.0.1:7400\"\napi = \"10.0.0.1:7401\"\n",
        );
        Reserved::of(&config.unwrap())
    }

    fn judged(changes: &[Change], services: &Services) -> Result<Vec<String>, Failure> {
        let state = super::super::testing::MemoryGroup::new().state();
        let intent = Intent::of(&state, changes);
        judge(&state, &intent, &[ip("10.0.0.1")], &reserved(), services)
    }

    #[test]
    fn it_is_told_which_nodes_map_the_interface_of_a_vip_to_no_device() {
        let maps = |known: &[(u64, &[&str])]| -> Interfaces {
            let names = |names: &&[&str]| names.iter().map(ToString::to_string).collect();
            known
                .iter()
                .map(|(id, known)| (NodeId(*id), names(known)))
                .collect()
        };
        // (interfaces by node, what is told)
        let cases = [
            (maps(&[]), None),
            (maps(&[(1, &["vip"]), (2, &["lan", "vip"])]), None),
            (
                maps(&[(1, &["vip"]), (2, &["lan"])]),
                Some("node 2 does not map interface vip"),
            ),
            (
                maps(&[(1, &["vip"]), (2, &[]), (3, &[])]),
                Some("nodes 2, 3 do not map interface vip"),
            ),
            (
                maps(&[(1, &["lan"]), (2, &[]), (3, &[])]),
                Some("no node maps interface vip"),
            ),
            // One did not answer.
            (
                maps(&[(1, &["lan"]), (2, &[])]),
                Some("nodes 1, 2 do not map interface vip"),
            ),
        ];
        let state = super::super::testing::MemoryGroup::new().state();
        let changes = [vip("10.0.0.100"), vip("127.0.0.9")];
        let intent = Intent::of(&state, &changes);
        for (interfaces, expected) in cases {
            let told = unmapped(&intent, 3, &interfaces);
            assert_eq!(told.len(), usize::from(expected.is_some()), "{told:?}");
            assert!(
                told.iter()
                    .all(|t| t.contains("10.0.0.100") && t.contains(expected.unwrap())),
                "{told:?}"
            );
        }
    }

    #[test]
    fn a_preferred_node_that_can_hold_no_vips_now_is_named_with_the_reason() {
        let node = |id, state: &str, role: v1::Role, unfit: &str| v1::NodeStatusReply {
            node: Some(v1::NodeSummary {
                id,
                state: state.into(),
                role: role.into(),
                unfit: unfit.into(),
                ..v1::NodeSummary::default()
            }),
            ..v1::NodeStatusReply::default()
        };
        let reports = [
            node(1, "leader", v1::Role::Voter, ""),
            node(2, "follower", v1::Role::Voter, "no carrier"),
            node(3, "learner", v1::Role::Learner, ""),
            node(4, "starting", v1::Role::Voter, ""),
        ];
        let told = |id| {
            let preference = Preference {
                node: NodeId(id),
                cool_down: std::time::Duration::from_secs(60),
            };
            let changes = [Change::SetPreference {
                preference: Some(preference),
            }];
            assert_eq!(preferred(&changes), Some(preference));
            unfit_preferred(preference, &reports)
        };
        assert_eq!(told(1), None);
        for (id, why) in [
            (2, "node 2 is unfit to hold the VIPs: no carrier; "),
            (3, "node 3 is a learner"),
            (4, "node 4 is starting"),
            (5, "node 5 does not answer"),
        ] {
            let warning = told(id).expect(why);
            assert!(warning.starts_with(why), "{warning}");
            assert!(warning.contains("1m"), "{warning}");
        }
        let none = [Change::SetPreference { preference: None }];
        assert_eq!(preferred(&none), None);
    }

    #[test]
    fn an_address_of_a_network_as_a_whole_is_told_to_be_no_hosts() {
        let state = super::super::testing::MemoryGroup::new().state();
        let changes = ["10.77.0.255", "10.77.0.0", "10.77.0.9", "10.78.0.255"].map(vip);
        let intent = Intent::of(&state, &changes);
        let on = |interface: &str| {
            let networks = BTreeSet::from(["10.77.0.0/24".parse().unwrap()]);
            no_hosts(&intent, &BTreeMap::from([(interface.to_owned(), networks)]))
        };
        let told = on("vip");
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].contains("10.77.0.255: it is the broadcast address of 10.77.0.0/24"));
        assert!(told[1].contains("10.77.0.0: it is the address of 10.77.0.0/24"));
        assert_eq!(on("lan"), [""; 0]);
    }

    #[test]
    fn an_address_that_somebody_else_has_put_on_a_members_device_is_named_with_both() {
        let report = |id, name: &str, there: &[(&str, &str)]| v1::NodeStatusReply {
            node: Some(v1::NodeSummary {
                id,
                name: name.into(),
                ..v1::NodeSummary::default()
            }),
            occupied: there
                .iter()
                .map(|(address, device)| v1::OccupiedAddress {
                    address: (*address).into(),
                    device: (*device).into(),
                })
                .collect(),
            ..v1::NodeStatusReply::default()
        };
        let reports = [
            report(1, "a", &[("10.0.0.8", "eth0"), ("nonsense", "eth0")]),
            report(2, "b", &[("10.0.0.9", "eth0"), ("fd00::9", "eth1")]),
            report(3, "c", &[]),
            report(4, "d", &[("10.0.0.9", "bond0.7")]),
        ];
        let state = super::super::testing::MemoryGroup::new().state();
        let changes = ["10.0.0.9", "fd00:0::9", "10.0.0.10"].map(vip);
        let intent = Intent::of(&state, &changes);
        let told = taken_elsewhere(&intent, &occupied(&reports));
        let expected = [
            "VIP 10.0.0.9: node 2 (b) has this address on its device eth0, ",
            "VIP 10.0.0.9: node 4 (d) has this address on its device bond0.7, ",
            "VIP fd00::9: node 2 (b) has this address on its device eth1, ",
        ];
        assert_eq!(told.len(), expected.len(), "{told:?}");
        for (told, expected) in told.iter().zip(expected) {
            assert!(told.starts_with(expected), "{told}");
        }
    }

    #[test]
    fn ports_that_the_node_needs_are_refused() {
        let every = ListenAddress::EveryNode;
        let at = |text: &str| ListenAddress::Address(ip(text));
        let known = Services::from([(NodeId(1), Some(vec![ip("10.0.0.1"), ip("10.0.0.2")]))]);
        // Port 1 and 2 of 127.0.0.1 are those of the only member.
        let cases = [
            (vec![listener(every, 80)], None),
            (
                vec![listener(every, 53)],
                Some("DNS has port 53 of every VIP"),
            ),
            (vec![listener(every, 5353)], Some("DNS has 10.0.0.1:5353")),
            (
                vec![listener(every, 7401)],
                Some("the API has 10.0.0.1:7401"),
            ),
            (vec![listener(at("10.0.0.1"), 53)], None),
            (
                vec![listener(at("10.0.0.1"), 7400)],
                Some("the peers' service has 10.0.0.1:7400"),
            ),
            (
                vec![vip("10.0.0.9"), listener(at("10.0.0.9"), 53)],
                Some("DNS has port 53"),
            ),
            (vec![vip("10.0.0.9"), listener(at("10.0.0.9"), 80)], None),
            (
                vec![listener(at("127.0.0.1"), 2)],
                Some("node 1 has 127.0.0.1:2"),
            ),
            (vec![listener(at("10.0.0.2"), 80)], None),
            (vec![listener(at("8.8.8.8"), 80)], Some("8.8.8.8 is no VIP")),
        ];
        for (changes, expected) in cases {
            let outcome = judged(&changes, &known);
            match expected {
                None => assert_eq!(outcome, Ok(vec![]), "{changes:?}"),
                Some(problem) => {
                    let failure = outcome.expect_err(problem);
                    assert!(failure.problem.contains(problem), "{failure}");
                    assert!(!failure.hint.is_empty());
                }
            }
        }
    }

    #[test]
    fn an_address_of_a_node_is_no_vip() {
        let known = Services::from([
            (NodeId(1), Some(vec![ip("10.0.0.1")])),
            (NodeId(2), Some(vec![ip("10.0.0.2"), ip("fd00::2")])),
            (NodeId(3), None),
        ]);
        // The only member's addresses for peers and its API are of 127.0.0.1.
        let cases = [
            ("127.0.0.1", "node 1 has it for its peers or its API"),
            ("10.0.0.1", "node 1 has it among its service addresses"),
            ("fd00::2", "node 2 has it among its service addresses"),
        ];
        for (address, problem) in cases {
            let failure = judged(&[vip(address)], &known).expect_err(problem);
            assert_eq!(failure.object, format!("VIP {address}"));
            assert_eq!(failure.problem, problem);
        }
        assert_eq!(judged(&[vip("10.0.0.100")], &known), Ok(vec![]));
    }

    #[test]
    fn a_loopback_address_is_no_vip() {
        let state = super::super::testing::MemoryGroup::new().state();
        let judged = |vips: &[&str]| {
            let changes: Vec<Change> = vips.iter().map(|address| vip(address)).collect();
            loopback_is_no_vip(&Intent::of(&state, &changes))
        };
        for address in ["127.0.0.1", "127.9.9.9", "::1"] {
            let failure = judged(&[address, "10.0.0.9"]).expect_err(address);
            assert_eq!(failure.object, format!("vip {address}"));
            assert!(
                failure.problem.contains("is a loopback address"),
                "{failure}"
            );
        }
        let both = judged(&["127.0.0.1", "::1"]).expect_err("two");
        assert_eq!(both.object, "2 listeners or VIPs");
        assert_eq!(judged(&["10.0.0.9", "fd00::9"]), Ok(()));
    }

    #[test]
    fn every_refusal_is_told_at_once() {
        let named = |name: &str, port| {
            let address = ListenAddress::EveryNode;
            let listener =
                Listener::new(name.parse().unwrap(), address, port, "p".parse().unwrap());
            Change::PutListener {
                listener,
                create: true,
            }
        };
        let known = Services::from([(NodeId(1), Some(vec![ip("10.0.0.1")]))]);
        let failure = judged(&[named("a", 53), named("b", 80), named("c", 7401)], &known)
            .expect_err("two are refused");
        assert_eq!(failure.object, "2 listeners or VIPs");
        let lines: Vec<&str> = failure.problem.lines().collect();
        assert_eq!(lines.len(), 3, "{failure}");
        assert!(lines[1].starts_with("listener a: DNS"), "{failure}");
        assert!(lines[2].starts_with("listener c: the API"), "{failure}");
    }

    #[test]
    fn an_address_that_a_silent_node_may_have_is_taken_with_a_warning() {
        let services = Services::from([(NodeId(1), Some(vec![ip("10.0.0.1")])), (NodeId(3), None)]);
        let there = listener(ListenAddress::Address(ip("10.0.0.3")), 80);
        let warnings = judged(&[there], &services).expect("taken");
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("nodes 3 did not tell"), "{warnings:?}");
    }

    const SITE: &str = r#"
[[zone]]
name = "our.test"
records = """
@ 600 IN SOA ns admin 1 1 1 1 1
@ 600 IN NS ns
ns 600 IN A 192.0.2.1
cut 600 IN NS elsewhere.
"""
"#;

    #[test]
    fn a_forwarder_that_is_never_asked_is_named() {
        let site = Site::parse(SITE).unwrap();
        let changes = crate::site::plan::plan(&Snapshot::default(), &site)
            .unwrap()
            .changes;
        let group = super::super::testing::MemoryGroup::new();
        let forwarder = |suffix: &str| {
            let forwarder = Forwarder {
                suffix: Name::parse(suffix, &Name::root()).unwrap(),
                upstreams: vec!["192.0.2.1:53".parse().unwrap()],
                timeout: std::time::Duration::from_secs(1),
            };
            Change::PutForwarder {
                forwarder,
                create: true,
            }
        };
        let suffixes = [
            "our.test",
            "a.our.test",
            "cut.our.test",
            "b.cut.our.test",
            "test",
            ".",
        ];
        let forwarders: Vec<Change> = suffixes.iter().map(|s| forwarder(s)).collect();
        let mut state = group.state().as_ref().clone();
        let all: Vec<Change> = [changes.clone(), forwarders.clone()].concat();
        let command = Command {
            request: crate::state::command::RequestId(9),
            born: 0,
            proposed_at: crate::state::command::UnixMillis(0),
            author: "t".into(),
            preconditions: vec![],
            changes: all,
        };
        let outcome = state.apply(2, &command);
        assert!(
            matches!(outcome, crate::state::outcome::Outcome::Applied(_)),
            "{outcome:?}"
        );
        let expected =
            ["forwarder a.our.test. is never asked: zone our.test. answers for its names"];
        // Names below the cut are asked of the forwarder for the whole zone, where there is none for just them. Said whichever
        // of the two comes last.
        for last in [&forwarders, &changes] {
            let warnings = Subjects::of(&Snapshot::default(), last).warnings(state.snapshot());
            assert_eq!(warnings, expected);
        }
    }

    #[test]
    fn a_zone_that_loses_its_history_is_named() {
        use crate::{
            model::rrset::Rrset,
            state::{
                command::{RequestId, UnixMillis},
                outcome::Outcome,
            },
        };
        let zone: Name = "e.".parse().unwrap();
        let apex = |text: &str, rtype| {
            let data = crate::model::rdata::parse(rtype, text, &zone).unwrap();
            (zone.clone(), Rrset::new(rtype, 60, [data]).unwrap())
        };
        let records = [
            apex("ns h 1 1 1 1 1", RecordType::SOA),
            apex("ns.e.net.", RecordType::NS),
        ];
        let filled = |sets: u16| {
            let set = |at: u16| {
                let name = zone.child(format!("a{at}").as_bytes()).unwrap();
                let large = Rrset::new(RecordType(65_280), 60, [vec![7; 60_000]]);
                (name, large.unwrap())
            };
            let records = records.iter().cloned().chain((0..sets).map(set));
            Change::ReplaceZone {
                zone: zone.clone(),
                records: records.collect(),
            }
        };
        let mut state = super::super::testing::MemoryGroup::new()
            .state()
            .as_ref()
            .clone();
        let mut warned = Vec::new();
        for (index, sets) in [1_200, 1_199, 0, 0].into_iter().enumerate() {
            let before = state.clone();
            let command = Command {
                request: RequestId(index as u128 + 9),
                born: 0,
                proposed_at: UnixMillis(0),
                author: "t".into(),
                preconditions: vec![],
                changes: vec![filled(sets)],
            };
            let Outcome::Applied(applied) = state.apply(before.revision() + 1, &command) else {
                panic!("refused");
            };
            warned.push(lost_histories(&before, &state, &applied));
        }
        // Neither a new zone, nor a small change, nor none loses anything.
        let lost: Vec<usize> = warned.iter().map(Vec::len).collect();
        assert_eq!(lost, [0, 0, 1, 0]);
        let text = &warned[2][0];
        assert!(
            text.contains("zone e.") && text.contains("64 MiB") && text.contains("serial 3"),
            "{text}"
        );
    }
}
