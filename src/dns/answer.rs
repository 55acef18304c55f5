//! The authoritative answer: what our zones, and those that every server has, say to a question. Ordinary values in,
//! ordinary values out.
//!
//! RFC 1034 section 4.3.2 with wildcards (RFC 4592), DNAME (RFC 6672), negative answers (RFC 2308), ANY (RFC 8482) and DS
//! at a zone cut (RFC 4035 section 3.1.4.1). Every look-up is a point or neighbour query of a persistent ordered map, so
//! its cost grows with the logarithm of the zone, for names that do not exist too.

use std::{borrow::Cow, sync::Arc};

use imbl::OrdMap;

use crate::model::{
    forwarder::Forwarder,
    name::{MAX_NAME, Name, NameRef},
    rrset::{RecordType, Rrset},
    snapshot::Snapshot,
    zone::{Node, Zone},
};

use super::{
    builtin::BUILT_IN,
    message::Rcode,
    zone_tree::{Found, Path, find},
};

/// Aliases followed for one question; RFC 1034 section 5.2.2 asks for a limit and leaves the number open.
pub const MAX_ALIASES: usize = 16;
/// Names looked up for additional data in one answer.
const MAX_ADDITIONAL_NAMES: usize = 32;

/// What is asked of the zones.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// Uncompressed wire form in lower case.
    pub name: &'a [u8],
    pub rtype: RecordType,
    /// Leave the apex NS set out of positive answers: they answer nothing that was asked.
    pub minimal: bool,
}

/// A name as it goes into an answer: borrowed from the question or a zone, or made by a DNAME.
pub type WireName<'a> = Cow<'a, [u8]>;

/// A record set in a section of an answer.
#[derive(Clone, Debug)]
pub struct AnswerSet<'a> {
    pub owner: WireName<'a>,
    pub rtype: RecordType,
    pub ttl: u32,
    pub data: Data<'a>,
    /// Whether the answer is of no use without it, so that lack of room means truncation (RFC 2181 section 9, RFC 9471).
    pub required: bool,
}

/// The records of a set.
#[derive(Clone, Debug)]
pub enum Data<'a> {
    Set(&'a Rrset),
    /// One record made up for this answer (RFC 6672 section 3.1).
    Made(Vec<u8>),
}

/// What an answer from our zones depends on, so that a copy of it can be checked against a later snapshot: for each name
/// that was looked up, the zone it was found to lie in, and what that zone held.
///
/// Whatever else changes, an answer stays the same as long as this holds: the first zone says which name is next, and so on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    first: ZoneVersion,
    /// The names that aliases led to, in their order.
    followed: Vec<(Box<[u8]>, ZoneVersion)>,
}

/// A zone at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ZoneVersion {
    apex: Name,
    revision: u64,
}

impl Source {
    fn new(first: &Zone) -> Self {
        Self {
            first: ZoneVersion::of(first),
            followed: Vec::new(),
        }
    }

    /// Whether `snapshot` gives the same answer to the question for `name` (lower-case wire form) and `rtype`. The question
    /// must be the one that this came from.
    pub fn holds(&self, snapshot: &Snapshot, name: &[u8], rtype: RecordType) -> bool {
        let same = |name: &[u8], version: &ZoneVersion| {
            zone_for(snapshot, name, rtype).is_some_and(|zone| version.is_of(zone))
        };
        same(name, &self.first) && self.followed.iter().all(|(name, zone)| same(name, zone))
    }

    /// Octets of the names that aliases led to.
    pub fn followed_octets(&self) -> usize {
        self.followed.iter().map(|(name, _)| name.len()).sum()
    }
}

impl ZoneVersion {
    fn of(zone: &Zone) -> Self {
        Self {
            apex: zone.apex.clone(),
            revision: zone.revision,
        }
    }

    fn is_of(&self, zone: &Zone) -> bool {
        self.revision == zone.revision && self.apex == zone.apex
    }
}

/// What our zones say.
#[derive(Clone, Debug)]
pub struct Answer<'a> {
    pub rcode: Rcode,
    /// The AA flag: whether the first owner name in the answer is in our authority (RFC 1035 section 4.1.1).
    pub authoritative: bool,
    pub answer: Vec<AnswerSet<'a>>,
    pub authority: Vec<AnswerSet<'a>>,
    pub additional: Vec<AnswerSet<'a>>,
    /// The last alias points here, outside our zones.
    pub unresolved: Option<WireName<'a>>,
    /// This name lies in a delegated zone: the authority section sends the client on to it.
    pub referral: Option<WireName<'a>>,
    /// Whether the last name lies in a zone that every server has.
    pub built_in: bool,
    /// The zones it was made from; none when something else was needed.
    pub source: Option<Source>,
}

/// Answers `query` from the zones of `snapshot` and the built-in ones. None when its name lies in none of them.
pub fn answer<'a>(snapshot: &'a Snapshot, query: Query<'a>) -> Option<Answer<'a>> {
    let first = Home::of(snapshot, query.name, query.rtype)?;
    let mut walk = Walk {
        snapshot,
        query,
        out: Answer {
            rcode: Rcode::NO_ERROR,
            authoritative: true,
            answer: Vec::with_capacity(2),
            authority: Vec::with_capacity(1),
            additional: Vec::new(),
            unresolved: None,
            referral: None,
            built_in: false,
            source: match first {
                Home::Own(zone) => Some(Source::new(zone)),
                Home::BuiltIn(_) => None,
            },
        },
    };
    walk.run(first);
    Some(walk.out)
}

/// The zone that a name lies in.
#[derive(Clone, Copy)]
enum Home<'a> {
    Own(&'a Zone),
    /// One of those that every server has.
    BuiltIn(&'a Zone),
}

impl<'a> Home<'a> {
    fn of(snapshot: &'a Snapshot, name: &[u8], rtype: RecordType) -> Option<Self> {
        if let Some(zone) = zone_for(snapshot, name, rtype) {
            return Some(Self::Own(zone));
        }
        // A forwarder for just those names is preferred to them.
        let forwarder = forwarder_around(snapshot, name);
        if forwarder.is_some_and(|forwarder| !forwarder.suffix.is_root()) {
            return None;
        }
        zone_for(&BUILT_IN, name, rtype).map(Self::BuiltIn)
    }

    fn zone(self) -> &'a Zone {
        match self {
            Self::Own(zone) | Self::BuiltIn(zone) => zone,
        }
    }
}

/// The zone that answers for `name`: the deepest one around it; for DS the one above, where the name is an apex.
pub fn zone_for<'a>(snapshot: &'a Snapshot, name: &[u8], rtype: RecordType) -> Option<&'a Zone> {
    let zone = zone_around(snapshot, name)?;
    if rtype == RecordType::DS && zone.apex.as_wire() == name && !zone.apex.is_root() {
        let above = name.get(1 + usize::from(*name.first()?)..)?;
        return Some(zone_around(snapshot, above).unwrap_or(zone));
    }
    Some(zone)
}

/// The zone with the longest apex at or above `name`.
pub fn zone_around<'a>(snapshot: &'a Snapshot, name: &[u8]) -> Option<&'a Arc<Zone>> {
    longest_suffix(&snapshot.zones, name)
}

/// The forwarder to ask for `name`: that with the longest suffix around it; for DS the one above, where the name is a suffix,
/// since only the zone above knows (RFC 4035 section 3.1.4.1).
pub fn forwarder_for<'a>(
    snapshot: &'a Snapshot,
    name: &[u8],
    rtype: RecordType,
) -> Option<&'a Arc<Forwarder>> {
    let forwarder = forwarder_around(snapshot, name)?;
    if rtype == RecordType::DS && forwarder.suffix.as_wire() == name && !forwarder.suffix.is_root()
    {
        return Some(forwarder_around(snapshot, parent(name)).unwrap_or(forwarder));
    }
    Some(forwarder)
}

/// The forwarder with the longest suffix at or above `name`.
fn forwarder_around<'a>(snapshot: &'a Snapshot, name: &[u8]) -> Option<&'a Arc<Forwarder>> {
    longest_suffix(&snapshot.forwarders, name)
}

/// What stands under the longest key at or above `name`.
///
/// Not one look-up per label of the question, since the client chooses how many there are: the key that sorts just
/// before `name` has at least as many labels in common with it as the key looked for has.
fn longest_suffix<'a, V: Clone>(map: &'a OrdMap<Name, V>, name: &[u8]) -> Option<&'a V> {
    let mut name = name;
    // The common case, a name directly in a zone, costs two point look-ups.
    if let Some(found) = map
        .get(&NameRef(name))
        .or_else(|| map.get(&NameRef(parent(name))))
    {
        return Some(found);
    }
    loop {
        let (key, found) = map.get_prev(&NameRef(name))?;
        let shared = common_suffix(name, key.as_wire());
        if shared == key.as_wire().len() {
            return Some(found);
        }
        name = &name[name.len() - shared..];
    }
}

/// Octets of the longest name that is an ancestor of both, or is one of them.
fn common_suffix(a: &[u8], b: &[u8]) -> usize {
    let (mut long, mut short) = if a.len() >= b.len() { (a, b) } else { (b, a) };
    while long != short {
        if long.len() == short.len() {
            short = parent(short);
        }
        while long.len() > short.len() {
            long = parent(long);
        }
        if long.len() < short.len() {
            std::mem::swap(&mut long, &mut short);
        }
    }
    short.len()
}

/// The name without its first label; the root stays the root.
fn parent(name: &[u8]) -> &[u8] {
    match name.first() {
        Some(&length) if length > 0 => name.get(1 + usize::from(length)..).unwrap_or(&[0]),
        _ => name,
    }
}

/// How one name was answered.
enum Step<'a> {
    Done,
    /// An alias: go on with this name.
    Follow(WireName<'a>),
}

struct Walk<'a> {
    snapshot: &'a Snapshot,
    query: Query<'a>,
    out: Answer<'a>,
}

impl<'a> Walk<'a> {
    /// Follows the question through zones and aliases.
    fn run(&mut self, first: Home<'a>) {
        let mut home = first;
        let mut name: WireName<'a> = Cow::Borrowed(self.query.name);
        for _ in 0..=MAX_ALIASES {
            match self.step(home.zone(), &name) {
                Step::Done => break,
                Step::Follow(target) => name = target,
            }
            if self.already_an_alias(&name) {
                break;
            }
            let Some(next) = Home::of(self.snapshot, &name, self.query.rtype) else {
                self.out.unresolved = Some(name);
                break;
            };
            self.note(&name, next);
            home = next;
        }
        self.out.built_in = matches!(home, Home::BuiltIn(_));
        self.add_additional(home.zone());
    }

    /// Adds a name that an alias led to, and where it was found, to what the answer depends on.
    fn note(&mut self, name: &[u8], home: Home<'a>) {
        match (home, &mut self.out.source) {
            (Home::Own(zone), Some(source)) => {
                let followed = (Box::from(name), ZoneVersion::of(zone));
                source.followed.push(followed);
            }
            _ => self.out.source = None,
        }
    }

    /// Whether the aliases go in a circle.
    fn already_an_alias(&self, name: &[u8]) -> bool {
        let mut aliases = self.out.answer.iter();
        aliases.any(|set| set.rtype == RecordType::CNAME && *set.owner == *name)
    }

    /// RFC 1034 section 4.3.2, step 3: one name in the zone that it lies in.
    fn step(&mut self, zone: &'a Zone, name: &WireName<'a>) -> Step<'a> {
        let Some(path) = Path::new(name, zone) else {
            return self.fail();
        };
        match find(zone, &path, self.query.rtype) {
            Found::Cut { set, depth } => {
                let owner = suffix(name, path.octets_above(depth));
                self.refer(name, owner, set)
            }
            Found::Redirect { set, depth } => {
                let owner = suffix(name, path.octets_above(depth));
                self.redirect(name, owner, set)
            }
            Found::Node(node) => self.take_node(zone, name, node),
            Found::EmptyNonTerminal => self.deny(zone, Rcode::NO_ERROR),
            Found::Nothing => self.deny(zone, Rcode::NX_DOMAIN),
        }
    }

    /// The name exists, or a wildcard stands in for it: answer under the name that was asked.
    fn take_node(&mut self, zone: &'a Zone, name: &WireName<'a>, node: &'a Node) -> Step<'a> {
        let wanted = self.query.rtype;
        if let Some(set) = node
            .find(RecordType::CNAME)
            .filter(|_| wanted != RecordType::CNAME)
        {
            self.out.answer.push(of_set(name.clone(), set, true));
            // RFC 8482 section 4.1: one set is answer enough for ANY, an alias too.
            let target = set.rdata().next().filter(|_| wanted != RecordType::ANY);
            return target.map_or(Step::Done, |target| Step::Follow(Cow::Borrowed(target)));
        }
        let set = match wanted {
            RecordType::ANY => node.rrsets().first(),
            _ => node.find(wanted),
        };
        let Some(set) = set else {
            return self.deny(zone, Rcode::NO_ERROR);
        };
        self.out.answer.push(of_set(name.clone(), set, true));
        if !self.query.minimal {
            self.add_apex_ns(zone, name, set);
        }
        Step::Done
    }

    fn add_apex_ns(&mut self, zone: &'a Zone, name: &[u8], given: &Rrset) {
        let is_the_answer = given.rtype() == RecordType::NS && *name == *zone.apex.as_wire();
        let ns = zone.apex_node().and_then(|node| node.find(RecordType::NS));
        if let Some(ns) = ns.filter(|_| !is_the_answer) {
            let owner = Cow::Borrowed(zone.apex.as_wire());
            self.out.authority.push(of_set(owner, ns, false));
        }
    }

    /// A zone cut: the client is sent on. AA stays only if an alias of ours came first.
    fn refer(&mut self, name: &WireName<'a>, owner: WireName<'a>, set: &'a Rrset) -> Step<'a> {
        self.out.authoritative = !self.out.answer.is_empty();
        self.out.referral = Some(name.clone());
        self.out.authority.push(of_set(owner, set, true));
        Step::Done
    }

    /// RFC 6672 section 3.2: the DNAME, the CNAME made of it, and on with the new name.
    fn redirect(&mut self, name: &WireName<'a>, owner: WireName<'a>, set: &'a Rrset) -> Step<'a> {
        let kept = name.len() - owner.len();
        self.out.answer.push(of_set(owner, set, true));
        let Some(target) = set.rdata().next() else {
            return self.fail();
        };
        if kept + target.len() > MAX_NAME {
            self.out.rcode = Rcode::YX_DOMAIN;
            return Step::Done;
        }
        let made = [&name[..kept], target].concat();
        self.out.answer.push(AnswerSet {
            owner: name.clone(),
            rtype: RecordType::CNAME,
            ttl: set.ttl(),
            data: Data::Made(made.clone()),
            required: true,
        });
        match self.query.rtype {
            RecordType::CNAME | RecordType::ANY => Step::Done,
            _ => Step::Follow(Cow::Owned(made)),
        }
    }

    /// A negative answer: the SOA with the TTL of RFC 2308 section 3.
    fn deny(&mut self, zone: &'a Zone, rcode: Rcode) -> Step<'a> {
        let Some(soa) = zone.soa() else {
            return self.fail();
        };
        self.out.rcode = rcode;
        let mut set = of_set(Cow::Borrowed(zone.apex.as_wire()), soa, true);
        set.ttl = soa.ttl().min(soa_minimum(soa));
        self.out.authority.push(set);
        Step::Done
    }

    /// The zone is not whole (no SOA, an empty set): nothing true can be said of it.
    fn fail(&mut self) -> Step<'a> {
        self.out.rcode = Rcode::SERV_FAIL;
        self.out.authoritative = false;
        self.out.answer.clear();
        self.out.authority.clear();
        Step::Done
    }

    /// Addresses of the names that answer and authority mention, as far as the zone itself has them.
    fn add_additional(&mut self, zone: &'a Zone) {
        let mut wanted: Vec<(WireName<'a>, bool)> = Vec::new();
        for set in self.out.answer.iter().chain(&self.out.authority) {
            let Data::Set(rrset) = set.data else {
                continue;
            };
            let referral = self.out.referral.is_some() && rrset.rtype() == RecordType::NS;
            for host in rrset
                .rdata()
                .filter_map(|rdata| Host::of(rrset.rtype(), rdata))
            {
                let name = match host {
                    Host::Named(name) => Cow::Borrowed(name),
                    Host::Owner => set.owner.clone(),
                };
                // In-domain glue is part of a referral (RFC 9471 section 3.1).
                let required = referral && is_at_or_below(&name, &set.owner);
                if wanted.len() < MAX_ADDITIONAL_NAMES && wanted.iter().all(|w| w.0 != name) {
                    wanted.push((name, required));
                }
            }
        }
        for (name, required) in wanted {
            self.add_addresses(zone, &name, required);
        }
    }

    fn add_addresses(&mut self, zone: &'a Zone, target: &WireName<'a>, required: bool) {
        let node = Path::new(target, zone).and_then(|path| zone.nodes.get(path.key()));
        let Some(node) = node else {
            return;
        };
        for rtype in [RecordType::A, RecordType::AAAA] {
            let known = |set: &AnswerSet| set.rtype == rtype && set.owner == *target;
            if let Some(set) = node.find(rtype)
                && !self.out.answer.iter().any(known)
            {
                let set = of_set(target.clone(), set, required);
                self.out.additional.push(set);
            }
        }
    }
}

fn of_set<'a>(owner: WireName<'a>, set: &'a Rrset, required: bool) -> AnswerSet<'a> {
    AnswerSet {
        owner,
        rtype: set.rtype(),
        ttl: set.ttl(),
        data: Data::Set(set),
        required,
    }
}

/// The last `name.len() - above` octets of a name.
fn suffix<'a>(name: &WireName<'a>, above: usize) -> WireName<'a> {
    match name {
        Cow::Borrowed(name) => Cow::Borrowed(&name[above..]),
        Cow::Owned(name) => Cow::Owned(name[above..].to_vec()),
    }
}

/// The last field of an SOA record: how long to remember what does not exist (RFC 2308 section 4).
pub fn soa_minimum(soa: &Rrset) -> u32 {
    let minimum = soa.rdata().next().and_then(|data| data.last_chunk::<4>());
    minimum.map_or(0, |octets| u32::from_be_bytes(*octets))
}

/// Whether `name` is `ancestor` or lies below it; both in wire form.
pub fn is_at_or_below(name: &[u8], ancestor: &[u8]) -> bool {
    let mut name = name;
    while name.len() > ancestor.len() {
        name = parent(name);
    }
    name == ancestor
}

/// The host whose addresses help whoever reads a record (RFC 1035 section 3.3, RFC 2782, RFC 9460 section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Host<'a> {
    Named(&'a [u8]),
    /// The owner of the record itself: a service at its own name (RFC 9460 section 2.5.2).
    Owner,
}

impl<'a> Host<'a> {
    /// What a record with this type and data leads to, if that is a host.
    pub fn of(rtype: RecordType, rdata: &'a [u8]) -> Option<Self> {
        let is_service = matches!(rtype, RecordType::SVCB | RecordType::HTTPS);
        let name = match rtype {
            RecordType::NS => rdata,
            RecordType::MX => rdata.get(2..)?,
            RecordType::SRV => rdata.get(6..)?,
            _ if is_service => {
                let (_, length) = Name::parse_wire(rdata.get(2..)?).ok()?;
                rdata.get(2..2 + length)?
            }
            _ => return None,
        };
        match name {
            [] => None,
            // With priority 0, an alias, it says that there is no service.
            [0] => (is_service && !rdata.starts_with(&[0, 0])).then_some(Self::Owner),
            name => Some(Self::Named(name)),
        }
    }
}
