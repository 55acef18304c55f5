//! What must change for the state to be as a site document says.

use std::{collections::BTreeMap, fmt::Display, sync::Arc};

use super::{Site, export};
use crate::{
    model::{
        name::{Name, NameKey},
        rdata,
        rrset::{RecordType, Rrset},
        snapshot::Snapshot,
        zone::Zone,
    },
    state::{
        check::{
            balancing::{forwarder_object, listener_object, pool_object, vip_object},
            zones::zone_object,
        },
        command::{Change, Precondition},
        diff::{self, SetChange},
        limits,
        outcome::Refusal,
        records::ZoneRecords,
        rules,
    },
};

/// Most lines of detail of one difference.
pub const MAX_DETAILS: usize = 1_000;
/// Most octets of the details of one difference: a record may take four times its data, 256 KiB, and all have to fit a message.
pub const MAX_DETAIL_OCTETS: usize = 512 << 10;

/// What happens to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Create,
    Update,
    Delete,
}

/// One difference between a document and the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub action: Action,
    /// `zone example.com.`, `pool web`.
    pub object: String,
    /// What differs, a line each: `- old` and `+ new`. At most `MAX_DETAILS` of them with `MAX_DETAIL_OCTETS`, and one that
    /// counts the rest.
    pub details: Vec<String>,
}

/// The way from the state to a document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// For people.
    pub differences: Vec<Difference>,
    /// For one command, which makes the state equal to the document.
    pub changes: Vec<Change>,
}

impl Plan {
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// The changes, and what must be true when they are applied to lead from `snapshot`, of which this is the plan, to the
    /// document.
    ///
    /// Where only zones change, these must be as they were: whatever else changed in between can be taken to have come right
    /// after, so that steady writes elsewhere hold up nothing. Other objects have no precondition of their own, and need the
    /// whole state to be as it was.
    pub fn guarded(self, snapshot: &Snapshot) -> (Vec<Precondition>, Vec<Change>) {
        let Self { changes, .. } = self;
        let zones: Option<Vec<&Name>> = changes.iter().map(zone_of).collect();
        let guard = |apex: &&Name| {
            let zone = snapshot.zones.get(*apex)?;
            Some(Precondition::ZoneSerial {
                zone: zone.apex.clone(),
                serial: zone.serial,
            })
        };
        let guards = match zones {
            // Of the limit one is left for the caller's own.
            Some(zones) if zones.len() < limits::PRECONDITIONS_PER_COMMAND => {
                zones.iter().filter_map(guard).collect()
            }
            _ => vec![Precondition::Revision(snapshot.revision)],
        };
        // A new zone is refused when another made it in between.
        let create = |change| match change {
            Change::ReplaceZone { zone, records } if !snapshot.zones.contains_key(&zone) => {
                Change::CreateZone { zone, records }
            }
            other => other,
        };
        (guards, changes.into_iter().map(create).collect())
    }
}

/// The zone that is changed; none when it is something else.
fn zone_of(change: &Change) -> Option<&Name> {
    match change {
        Change::ReplaceZone { zone, .. } | Change::DeleteZone { zone } => Some(zone),
        _ => None,
    }
}

impl Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let verb = match self.action {
            Action::Create => "create",
            Action::Update => "update",
            Action::Delete => "delete",
        };
        write!(f, "{verb} {}", self.object)?;
        self.details
            .iter()
            .try_for_each(|line| write!(f, "\n  {line}"))
    }
}

/// The zones of a document, ready to be compared with the state again and again: a zone that has not moved since is not looked
/// at another time.
#[derive(Debug)]
pub struct WantedZones {
    wanted: BTreeMap<Name, ZoneRecords>,
    /// The lines of difference to zones of the state that were looked at, by their revisions.
    seen: BTreeMap<Name, (u64, Vec<String>)>,
}

impl WantedZones {
    /// Refused when a zone of the document breaks a rule of zones.
    pub fn gather(site: &Site) -> Result<Self, Refusal> {
        let gather = |(apex, records): (&Name, &Vec<(Name, Rrset)>)| {
            let gathered = rules::gather(apex, records)?;
            rules::whole(apex, &gathered)?;
            Ok((apex.clone(), gathered))
        };
        Ok(Self {
            wanted: site.zones.iter().map(gather).collect::<Result<_, _>>()?,
            seen: BTreeMap::new(),
        })
    }

    /// What is told of the difference between a zone of the state and the document; nothing when there is none.
    fn lines(&mut self, zone: &Zone, wanted: &ZoneRecords) -> Vec<String> {
        if zone.content_hash == wanted.content_hash() {
            return Vec::new();
        }
        let seen = self.seen.get(&zone.apex);
        if let Some((_, lines)) = seen.filter(|(revision, _)| *revision == zone.revision) {
            return lines.clone();
        }
        let sets = diff::between_nodes(&zone.nodes, wanted.nodes());
        let lines = bounded(record_lines(zone, &sets));
        let entry = (zone.revision, lines.clone());
        self.seen.insert(zone.apex.clone(), entry);
        lines
    }
}

/// Compares `site` with the state. Refused when a zone of the document breaks a rule of zones.
pub fn plan(snapshot: &Snapshot, site: &Site) -> Result<Plan, Refusal> {
    Ok(plan_with(snapshot, site, &mut WantedZones::gather(site)?))
}

/// As `plan`, with the zones of `site` gathered before.
pub fn plan_with(snapshot: &Snapshot, site: &Site, zones: &mut WantedZones) -> Plan {
    let mut plan = Plan::default();
    plan.dns(snapshot, site);
    plan.zones(snapshot, site, zones);
    plan.objects(
        &owned(&snapshot.forwarders),
        &site.forwarders,
        forwarder_object,
        export::forwarder,
        |forwarder| Change::PutForwarder {
            forwarder,
            create: false,
        },
        |suffix| Change::DeleteForwarder { suffix },
    );
    plan.objects(
        &owned(&snapshot.pools),
        &site.pools,
        pool_object,
        export::pool,
        |pool| Change::PutPool {
            pool,
            create: false,
        },
        |pool| Change::DeletePool { pool },
    );
    plan.objects(
        &owned(&snapshot.listeners),
        &site.listeners,
        listener_object,
        export::listener,
        |listener| Change::PutListener {
            listener,
            create: false,
        },
        |listener| Change::DeleteListener { listener },
    );
    plan.objects(
        &snapshot.vips.iter().map(|(a, v)| (*a, v.clone())).collect(),
        &site.vips,
        |address| vip_object(*address),
        export::vip,
        |vip| Change::PutVip { vip, create: false },
        |address| Change::DeleteVip { address },
    );
    plan
}

fn owned<K: Ord + Clone, V: Clone>(map: &imbl::OrdMap<K, Arc<V>>) -> BTreeMap<K, V> {
    map.iter()
        .map(|(k, v)| (k.clone(), v.as_ref().clone()))
        .collect()
}

impl Plan {
    fn dns(&mut self, snapshot: &Snapshot, site: &Site) {
        if snapshot.dns == site.dns {
            return;
        }
        self.differences.push(Difference {
            action: Action::Update,
            object: "dns policy".into(),
            details: bounded(lines_between(
                &export::dns(&snapshot.dns),
                &export::dns(&site.dns),
            )),
        });
        self.changes.push(Change::PutDnsPolicy {
            policy: site.dns.clone(),
        });
    }

    fn zones(&mut self, snapshot: &Snapshot, site: &Site, zones: &mut WantedZones) {
        for apex in snapshot
            .zones
            .keys()
            .filter(|apex| !site.zones.contains_key(apex))
        {
            self.note(Action::Delete, zone_object(apex), Vec::new());
            self.changes.push(Change::DeleteZone { zone: apex.clone() });
        }
        for (apex, records) in &site.zones {
            let Some(wanted) = zones.wanted.get(apex).cloned() else {
                continue;
            };
            let (action, details) = match snapshot.zones.get(apex) {
                None => {
                    let details = vec![format!("+ {} records", wanted.record_count())];
                    (Action::Create, details)
                }
                Some(zone) => (Action::Update, zones.lines(zone, &wanted)),
            };
            if !details.is_empty() {
                self.note(action, zone_object(apex), details);
                self.changes.push(Change::ReplaceZone {
                    zone: apex.clone(),
                    records: records.clone(),
                });
            }
        }
    }

    /// Compares objects of one kind by their text in a document.
    fn objects<K: Ord + Clone, V: Clone + PartialEq>(
        &mut self,
        present: &BTreeMap<K, V>,
        wanted: &BTreeMap<K, V>,
        object: impl Fn(&K) -> String,
        text: impl Fn(&V) -> String,
        put: impl Fn(V) -> Change,
        delete: impl Fn(K) -> Change,
    ) {
        for key in present.keys().filter(|key| !wanted.contains_key(key)) {
            self.note(Action::Delete, object(key), Vec::new());
            self.changes.push(delete(key.clone()));
        }
        for (key, value) in wanted {
            let (action, before) = match present.get(key) {
                Some(old) if old == value => continue,
                Some(old) => (Action::Update, text(old)),
                None => (Action::Create, String::new()),
            };
            let details = bounded(lines_between(&before, &text(value)));
            self.note(action, object(key), details);
            self.changes.push(put(value.clone()));
        }
    }

    fn note(&mut self, action: Action, object: String, details: Vec<String>) {
        self.differences.push(Difference {
            action,
            object,
            details,
        });
    }
}

/// The lines that are told, and one that counts the rest.
fn bounded(mut details: Vec<String>) -> Vec<String> {
    let mut octets = 0;
    let fits = |line: &&String| {
        octets += line.len();
        octets <= MAX_DETAIL_OCTETS
    };
    let shown = details.iter().take(MAX_DETAILS).take_while(fits).count();
    let more = details.len() - shown;
    details.truncate(shown);
    if more > 0 {
        details.push(format!("and {more} more"));
    }
    details
}

/// The records that differ, in presentation form.
pub fn record_lines(zone: &Zone, changes: &[SetChange]) -> Vec<String> {
    let mut lines = Vec::new();
    for change in changes {
        let sides = [
            ('-', change.before.as_ref(), change.removed()),
            ('+', change.after.as_ref(), change.added()),
        ];
        for (sign, set, records) in sides {
            let Some(set) = set else { continue };
            let of = owner(&zone.apex, &change.owner);
            lines.extend(
                records
                    .iter()
                    .map(|data| record_line(sign, &of, change.rtype, set, data)),
            );
        }
    }
    lines
}

fn record_line(sign: char, owner: &Name, rtype: RecordType, set: &Rrset, data: &[u8]) -> String {
    format!(
        "{sign} {owner} {} {rtype} {}",
        set.ttl(),
        rdata::to_text(rtype, data)
    )
}

fn owner(apex: &Name, key: &NameKey) -> Name {
    // Keys of a zone are made of names within it.
    key.to_name(apex).unwrap_or_else(|| apex.clone())
}

/// Lines only in the one or the other text, in their order; repeated lines are told apart by number.
fn lines_between(old: &str, new: &str) -> Vec<String> {
    let lines = |text: &str| -> Vec<String> {
        let kept = text.lines().map(str::trim).filter(|line| !line.is_empty());
        kept.map(str::to_owned).collect()
    };
    let (old, new) = (lines(old), lines(new));
    let (before, after) = common_ends(&old, &new);
    let changed = |list: &[String], sign: char| -> Vec<String> {
        let middle = list.get(before..list.len() - after).unwrap_or_default();
        middle.iter().map(|line| format!("{sign} {line}")).collect()
    };
    [changed(&old, '-'), changed(&new, '+')].concat()
}

/// How many lines are the same at the beginning and at the end of both.
fn common_ends(old: &[String], new: &[String]) -> (usize, usize) {
    let before = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let most = old.len().min(new.len()) - before;
    let after = old
        .iter()
        .rev()
        .zip(new.iter().rev())
        .take_while(|(a, b)| a == b);
    (before, after.count().min(most))
}
