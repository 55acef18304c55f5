//! Second chance: the new holder passes on what belongs to connections of the old one.
//!
//! A table of its own, behind the fence: a holder whose permission has ended passes nothing on either. For each VIP that moved
//! by plan it says where the old holder is. A connection that begins here is remembered (source, destination, both ports) and
//! kept; TCP to the VIP that is neither new nor remembered goes to the old holder, with both Ethernet addresses rewritten: the
//! switch must not learn the client's address on the wrong port. The old holder does the same for the holder before it, with what
//! the present one passes on to it; what comes from any other member is never passed on again, so that nothing goes round.
//!
//! A table that is made when there are connections here already first remembers what begins, then all that there are, and only then
//! passes anything on: none may fall in between. What is neither, meanwhile, is dropped, and comes again. Nobody waits for that:
//! the VIP is taken after the first step, and what is new is served.
//!
//! When the set of remembered connections is full (`REMEMBERED`), connections that are new then go to the old holder as well,
//! which serves them. The table belongs to this process and goes with it: one that has nothing to pass on is emptied and stays, for
//! the kernel takes tens of milliseconds to take a table away that packets go through, and that in the middle of a planned move.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use nix::errno::Errno;

use super::{
    FenceError, explain,
    message::{Base, Chain, Hook, Key, OWNED, Register, Request, Step, Table, key_of},
    socket::Transactions,
};
use crate::vip::connections::{Connection, looks::Look};

/// The table, of the family `netdev`.
pub const TABLE: &str = "pontoon_second_chance";
/// Behind the fence, ahead of everything else of ours.
const PRIORITY: i32 = -400;
/// Connections that can be remembered for each IP version.
pub const REMEMBERED: u32 = 65_536;
/// How long one is remembered. No second chance lasts longer.
pub const REMEMBERED_FOR: Duration = Duration::from_secs(24 * 3600);
/// Elements in one message.
const CHUNK: usize = 500;

/// A device that VIPs are on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    pub name: String,
    pub index: u32,
    pub mac: [u8; 6],
}

/// What is to be passed on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Passing {
    pub ports: BTreeSet<Port>,
    /// The Ethernet address of the old holder of each VIP.
    pub old_holders: BTreeMap<IpAddr, [u8; 6]>,
    /// Ethernet addresses of the other members, without the present holder's: what comes from these is for this node.
    pub members: BTreeSet<[u8; 6]>,
}

impl Passing {
    pub fn is_empty(&self) -> bool {
        self.old_holders.is_empty() || self.ports.is_empty()
    }

    /// The requests that make the table where there is none, or in place of one. Nothing is passed on for the VIPs in `late` yet.
    fn make(&self, there_is_one: bool, flags: u32, late: &BTreeSet<IpAddr>) -> Vec<Request> {
        let table = Table(TABLE);
        let mut requests = vec![];
        if there_is_one {
            requests.push(table.delete());
        }
        requests.push(table.create(flags));
        requests.push(table.create_set("members", Key::Ethernet, false, 1));
        for (number, version) in (2..).step_by(3).zip([Version::V4, Version::V6]) {
            requests.push(table.create_map(version.old_holders(), version.key(), number));
            requests.push(table.create_remembering_set(
                version.mine(),
                version.connection(),
                REMEMBERED,
                REMEMBERED_FOR,
                number + 1,
            ));
            requests.push(table.create_set(version.moved(), version.key(), false, number + 2));
        }
        for (place, port) in self.ports.iter().enumerate() {
            let chain = Chain {
                name: format!("port{place}"),
                hook: Hook::Ingress,
                priority: PRIORITY,
                devices: vec![port.name.clone()],
            };
            requests.push(table.create_chain(&chain));
            let rules = rules(port);
            requests.extend(
                rules
                    .iter()
                    .map(|rule| table.append_rule(&chain.name, rule)),
            );
        }
        requests.extend(self.fill(late));
        requests
    }

    /// The requests that put in what the sets and maps say, but where to pass on what is for those in `late`.
    fn fill(&self, late: &BTreeSet<IpAddr>) -> Vec<Request> {
        let table = Table(TABLE);
        let mut requests = vec![];
        let macs: Vec<_> = self
            .members
            .iter()
            .map(|mac| (mac.to_vec(), None))
            .collect();
        for chunk in macs.chunks(CHUNK) {
            requests.push(table.add_elements("members", chunk));
        }
        for version in [Version::V4, Version::V6] {
            let moved = self.old_holders.keys();
            let of_version = moved.filter(|vip| Version::of(**vip) == version);
            let keys: Vec<_> = of_version.map(|vip| (key_of(*vip), None)).collect();
            for chunk in keys.chunks(CHUNK) {
                requests.push(table.add_elements(version.moved(), chunk));
            }
        }
        requests.extend(self.pass_on(|vip| !late.contains(vip)));
        requests
    }

    /// The requests that have what is for some VIPs passed on.
    fn pass_on(&self, is_meant: impl Fn(&IpAddr) -> bool) -> Vec<Request> {
        let mut requests = vec![];
        for version in [Version::V4, Version::V6] {
            let of_version = self
                .old_holders
                .iter()
                .filter(|(vip, _)| Version::of(**vip) == version && is_meant(vip));
            let pairs: Vec<_> = of_version
                .map(|(vip, mac)| (key_of(*vip), mac.to_vec()))
                .collect();
            for chunk in pairs.chunks(CHUNK) {
                requests.push(Table(TABLE).add_mapped(version.old_holders(), chunk));
            }
        }
        requests
    }

    /// The requests after which nothing is passed on, nor remembered.
    fn emptied() -> Vec<Request> {
        let remembered = [Version::V4.mine(), Version::V6.mine()];
        let mut requests = Self::default().refill(&BTreeSet::new());
        requests.extend(remembered.map(|set| Table(TABLE).flush_set(set)));
        requests
    }

    /// The requests that turn what another said into what this says, on the same ports. What is remembered stays.
    fn refill(&self, late: &BTreeSet<IpAddr>) -> Vec<Request> {
        let sets = [
            "members",
            Version::V4.moved(),
            Version::V6.moved(),
            Version::V4.old_holders(),
            Version::V6.old_holders(),
        ];
        let mut requests: Vec<_> = sets.iter().map(|set| Table(TABLE).flush_set(set)).collect();
        requests.extend(self.fill(late));
        requests
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V4,
    V6,
}

impl Version {
    fn of(address: IpAddr) -> Self {
        match address.is_ipv4() {
            true => Self::V4,
            false => Self::V6,
        }
    }

    fn old_holders(self) -> &'static str {
        match self {
            Self::V4 => "old_holders4",
            Self::V6 => "old_holders6",
        }
    }

    fn moved(self) -> &'static str {
        match self {
            Self::V4 => "moved4",
            Self::V6 => "moved6",
        }
    }

    fn mine(self) -> &'static str {
        match self {
            Self::V4 => "mine4",
            Self::V6 => "mine6",
        }
    }

    fn key(self) -> Key {
        match self {
            Self::V4 => Key::Ipv4,
            Self::V6 => Key::Ipv6,
        }
    }

    fn ethertype(self) -> [u8; 2] {
        match self {
            Self::V4 => [0x08, 0x00],
            Self::V6 => [0x86, 0xdd],
        }
    }

    /// Where source and destination are in the header, and how long.
    fn addresses(self) -> (u32, u32, u32) {
        match self {
            Self::V4 => (12, 16, 4),
            Self::V6 => (8, 24, 16),
        }
    }

    /// The number by which `nft` shows the key of a connection, and its octets: address, port, address, port, each padded
    /// to 4.
    fn connection(self) -> (u32, u32) {
        const PORT: u32 = 13;
        let (address, length) = match self {
            Self::V4 => (7, 4),
            Self::V6 => (8, 16),
        };
        let shown_as = [PORT, address, PORT]
            .into_iter()
            .fold(address, |number, part| number << 6 | part);
        (shown_as, 2 * (length + 4))
    }
}

/// The key of a connection.
fn connection_key(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let mut key = vec![];
    for end in [from, to] {
        key.extend(key_of(end.ip()));
        key.extend(end.port().to_be_bytes());
        key.extend([0, 0]);
    }
    key
}

const TCP: u8 = 6;

/// TCP over this version of IP.
fn tcp(version: Version) -> Vec<Step> {
    vec![
        Step::LoadProtocol,
        Step::Is(version.ethertype().to_vec()),
        Step::LoadUpperProtocol,
        Step::Is(vec![TCP]),
    ]
}

/// Over TCP; the destination is in the first register then.
fn load_destination(version: Version) -> Vec<Step> {
    let (_, offset, length) = version.addresses();
    let base = Base::Network;
    let mut steps = tcp(version);
    steps.push(Step::Load {
        base,
        offset,
        length,
    });
    steps
}

fn to_a_moved_vip(version: Version) -> Vec<Step> {
    let mut steps = load_destination(version);
    steps.push(Step::In(version.moved().to_owned()));
    steps
}

/// To a VIP whose connections are passed on; the address of the old holder is in `HOLDER` then.
fn to_an_old_holder(version: Version) -> Vec<Step> {
    let mut steps = load_destination(version);
    steps.push(Step::Mapped {
        map: version.old_holders().to_owned(),
        from: Register::FIRST,
        to: HOLDER,
    });
    steps
}

/// Behind the longest key.
const HOLDER: Register = Register(12);

fn load_connection(version: Version) -> Vec<Step> {
    let (source, destination, length) = version.addresses();
    let words = length / 4;
    let load = |register, base, offset, length| Step::LoadInto {
        register: Register(register),
        base,
        offset,
        length,
    };
    vec![
        load(0, Base::Network, source, length),
        load(words, Base::Transport, 0, 2),
        load(words + 1, Base::Network, destination, length),
        load(2 * words + 1, Base::Transport, 2, 2),
    ]
}

/// The rules for what comes in on a port, in order.
fn rules(port: &Port) -> Vec<Vec<Step>> {
    const FLAGS: u32 = 13;
    const SYN: u8 = 0x02;
    const SYN_OR_ACK: u8 = 0x12;
    let first = Register::FIRST;
    let from_a_member = vec![
        Step::Load {
            base: Base::Link,
            offset: 6,
            length: 6,
        },
        Step::In("members".to_owned()),
        Step::Accept,
    ];
    let mut rules = vec![from_a_member];
    for version in [Version::V4, Version::V6] {
        let mine = version.mine().to_owned();
        let mut new = to_a_moved_vip(version);
        new.extend([
            Step::Load {
                base: Base::Transport,
                offset: FLAGS,
                length: 1,
            },
            Step::Mask(vec![SYN_OR_ACK]),
            Step::Is(vec![SYN]),
        ]);
        new.extend(load_connection(version));
        new.extend([
            Step::Remember {
                set: mine.clone(),
                register: first,
            },
            Step::Accept,
        ]);
        let mut remembered = to_a_moved_vip(version);
        remembered.extend(load_connection(version));
        remembered.extend([
            Step::KeyIn {
                set: mine,
                register: first,
            },
            Step::Accept,
        ]);
        let mut rest = to_an_old_holder(version);
        rest.extend([
            Step::Store {
                register: HOLDER,
                base: Base::Link,
                offset: 0,
                length: 6,
            },
            Step::Value {
                register: first,
                octets: port.mac.to_vec(),
            },
            Step::Store {
                register: first,
                base: Base::Link,
                offset: 6,
                length: 6,
            },
            Step::Value {
                register: first,
                octets: port.index.to_ne_bytes().to_vec(),
            },
            Step::Forward(first),
        ]);
        // In the first step of a table that is late it is not known whose it is.
        let mut unknown = to_a_moved_vip(version);
        unknown.push(Step::Drop);
        rules.extend([new, remembered, rest, unknown]);
    }
    rules
}

/// Between attempts to remember connections that could not be.
const REMEMBER_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// VIPs that connections of this node may have been made at already, and which those are, where that is known.
pub type Carrying = BTreeMap<IpAddr, Option<Vec<Connection>>>;

/// The table of this process, and what it says.
#[derive(Debug)]
pub struct Chance {
    transactions: Transactions,
    passing: Passing,
    /// VIPs for which the first step was done then, and that wait for a look at this node's connections.
    waiting: Option<(Instant, BTreeSet<IpAddr>)>,
    /// VIPs whose connections could not be remembered, which are left to this node alone until that is tried again.
    failed: Option<(Instant, BTreeSet<IpAddr>)>,
}

impl Chance {
    /// Makes the table.
    pub fn begin(passing: &Passing, carrying: &Carrying) -> Result<Self, FenceError> {
        let mut chance = Self {
            transactions: Transactions::open().map_err(explain)?,
            passing: passing.clone(),
            waiting: None,
            failed: None,
        };
        let mine = Mine::of(passing, carrying, |_| true);
        let late = mine.told_apart(|late, known| chance.make(passing, late, known))?;
        chance.wait_for(late);
        Ok(chance)
    }

    /// Makes it say this. What is remembered stays.
    pub fn update(&mut self, passing: &Passing, carrying: &Carrying) -> Result<(), FenceError> {
        if self.passing == *passing && !self.is_due() {
            return Ok(());
        }
        let new = Mine::of(passing, carrying, |vip| {
            // What began at the others since is remembered already.
            let either = [&self.waiting, &self.failed].into_iter().flatten();
            let is_unknown = either.map(|(_, vips)| vips).any(|vips| vips.contains(&vip));
            is_unknown || !self.passing.old_holders.contains_key(&vip)
        });
        let mut refilled = None;
        if self.passing.ports == passing.ports {
            let done = new.told_apart(|late, known| {
                let mut requests = passing.refill(late);
                requests.extend_from_slice(known);
                self.transactions.commit(&requests)
            });
            match done {
                // Somebody took the table away.
                Err(error) if error.errno() == Some(Errno::ENOENT) => {}
                other => refilled = Some(other.map_err(explain)?),
            }
        }
        let late = match refilled {
            Some(late) => late,
            None => {
                let all = Mine::of(passing, carrying, |_| true);
                all.told_apart(|late, known| self.make(passing, late, known))?
            }
        };
        self.passing = passing.clone();
        self.wait_for(late);
        Ok(())
    }

    /// The first step is done for these.
    fn wait_for(&mut self, late: BTreeSet<IpAddr>) {
        self.failed = None;
        self.waiting = (!late.is_empty()).then(|| (Instant::now(), late));
    }

    /// The VIPs whose connections have to be looked at, for `see`.
    pub fn waits_for(&self) -> BTreeSet<IpAddr> {
        let waiting = self.waiting.as_ref();
        waiting.map_or_else(BTreeSet::new, |(_, vips)| vips.clone())
    }

    /// Whether connections could not be remembered, and it is to be tried again.
    pub fn is_due(&self) -> bool {
        let failed = self.failed.as_ref();
        failed.is_some_and(|(at, _)| at.elapsed() >= REMEMBER_AGAIN_AFTER)
    }

    /// A new table, in place of one if need be. `late` as for `Passing::make`; `known`: what is remembered in it from the beginning.
    fn make(
        &mut self,
        passing: &Passing,
        late: &BTreeSet<IpAddr>,
        known: &[Request],
    ) -> Result<(), FenceError> {
        let there = match self.transactions.ask(&Table(TABLE).read()) {
            Ok(bodies) => !bodies.is_empty(),
            Err(error) if error.errno() == Some(Errno::ENOENT) => false,
            Err(error) => return Err(explain(error)),
        };
        let mut flags = OWNED;
        loop {
            let mut requests = passing.make(there, flags, late);
            requests.extend_from_slice(known);
            match self.transactions.commit(&requests) {
                // No owner before Linux 5.12.
                Err(error)
                    if flags != 0
                        && matches!(error.errno(), Some(Errno::EINVAL | Errno::EOPNOTSUPP)) =>
                {
                    flags = 0;
                }
                other => return other.map_err(explain),
            }
        }
    }

    /// The second step for VIPs with connections of this node: what begins is remembered since the first. Where they cannot be
    /// remembered nothing is passed on: this node's own count for more.
    pub fn see(&mut self, look: &Look) {
        // An earlier look may have missed what began before the first step.
        let counts = |(since, vips): &mut (Instant, BTreeSet<IpAddr>)| {
            look.begun >= *since && vips.is_subset(&look.vips)
        };
        let Some((_, late)) = self.waiting.take_if(counts) else {
            return;
        };
        let done = look
            .found
            .clone()
            .and_then(|mut mine| {
                mine.retain(|(_, own)| late.contains(&own.ip()));
                remember(&mine).ok_or_else(|| "there are too many".to_owned())
            })
            .and_then(|mut requests| {
                requests.extend(self.passing.pass_on(|vip| late.contains(vip)));
                let committed = self.transactions.commit(&requests);
                committed.map_err(|error| explain(error).to_string())
            });
        let Err(problem) = done else { return };
        tracing::warn!(
            %problem,
            vips = ?late,
            "this node's connections could not be told from those of the old holder, which are lost"
        );
        let mut others = self.passing.clone();
        others.old_holders.retain(|vip, _| !late.contains(vip));
        self.failed = Some((Instant::now(), late));
        let left_alone = self.transactions.commit(&others.refill(&BTreeSet::new()));
        if let Err(error) = left_alone {
            tracing::warn!(problem = %explain(error), "connections at VIPs may be held up until that is tried again");
        }
    }

    pub fn passing(&self) -> &Passing {
        &self.passing
    }

    /// Passes nothing on any more, and forgets what it remembered. `ports`: those that VIPs are on now.
    pub fn pause(&mut self, ports: &BTreeSet<Port>) -> Result<(), FenceError> {
        (self.waiting, self.failed) = (None, None);
        match self.transactions.commit(&Passing::emptied()) {
            Err(error) if error.errno() != Some(Errno::ENOENT) => return Err(explain(error)),
            Ok(()) | Err(_) => {}
        }
        self.passing.old_holders.clear();
        self.passing.members.clear();
        self.follow(ports);
        Ok(())
    }

    /// While nothing is passed on: VIPs are on these ports now.
    pub fn follow(&mut self, ports: &BTreeSet<Port>) {
        if self.passing.ports != *ports {
            // The rules of a device may have gone with it: they are made anew, even for one that is just like it.
            self.passing.ports.clear();
        }
    }
}

/// Moved VIPs that connections of this node may have been made at.
struct Mine {
    vips: BTreeSet<IpAddr>,
    /// Those of which it has to be looked what they are.
    late: BTreeSet<IpAddr>,
    /// What remembers the others' connections.
    known: Vec<Request>,
}

impl Mine {
    /// Of the VIPs that `concerns` is true of.
    fn of(passing: &Passing, carrying: &Carrying, concerns: impl Fn(IpAddr) -> bool) -> Self {
        let moved = passing.old_holders.keys().copied();
        let mine: Vec<_> = moved
            .filter(|vip| concerns(*vip))
            .filter_map(|vip| Some((vip, carrying.get(&vip)?.as_deref())))
            .collect();
        let known = mine.iter().filter_map(|(_, known)| *known);
        let known: Vec<Connection> = known.flatten().copied().collect();
        let vips: BTreeSet<IpAddr> = mine.iter().map(|(vip, _)| *vip).collect();
        let unknown = mine.iter().filter(|(_, known)| known.is_none());
        match remember(&known) {
            Some(known) => Self {
                late: unknown.map(|(vip, _)| *vip).collect(),
                vips,
                known,
            },
            // They may be fewer by now.
            None => Self {
                late: vips.clone(),
                vips,
                known: vec![],
            },
        }
    }

    /// Does the first step, with what is known; where that fails, without it, and leaves all to the second step. Returns those
    /// that wait for the second step.
    fn told_apart<E>(
        &self,
        mut first_step: impl FnMut(&BTreeSet<IpAddr>, &[Request]) -> Result<(), E>,
    ) -> Result<BTreeSet<IpAddr>, E> {
        match first_step(&self.late, &self.known) {
            Err(_) if !self.known.is_empty() => {
                first_step(&self.vips, &[]).map(|()| self.vips.clone())
            }
            done => done.map(|()| self.late.clone()),
        }
    }
}

/// None when they are so many that no place is left for others.
fn remember(mine: &[Connection]) -> Option<Vec<Request>> {
    let most = usize::try_from(REMEMBERED / 2).unwrap_or(usize::MAX);
    let mut requests = vec![];
    for version in [Version::V4, Version::V6] {
        let of_version = mine
            .iter()
            .filter(|(client, vip)| {
                Version::of(client.ip()) == version && Version::of(vip.ip()) == version
            })
            .map(|(client, vip)| (connection_key(*client, *vip), None));
        let keys: Vec<_> = of_version.collect();
        if keys.len() > most {
            return None;
        }
        for chunk in keys.chunks(CHUNK) {
            requests.push(Table(TABLE).add_elements(version.mine(), chunk));
        }
    }
    Some(requests)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_a_connection_is_as_the_rules_load_it() {
        let key = connection_key(
            "192.0.2.1:40000".parse().unwrap(),
            "192.0.2.100:80".parse().unwrap(),
        );
        assert_eq!(
            key,
            [192, 0, 2, 1, 0x9c, 0x40, 0, 0, 192, 0, 2, 100, 0, 80, 0, 0]
        );
        for (version, from, to) in [
            (Version::V4, "192.0.2.1:1", "192.0.2.2:2"),
            (Version::V6, "[2001:db8::1]:1", "[2001:db8::2]:2"),
        ] {
            let key = connection_key(from.parse().unwrap(), to.parse().unwrap());
            assert_eq!(key.len(), version.connection().1 as usize);
            let loaded: u32 = load_connection(version)
                .iter()
                .map(|step| match step {
                    Step::LoadInto { length, .. } => length.next_multiple_of(4),
                    other => panic!("{other:?}"),
                })
                .sum();
            assert_eq!(loaded as usize, key.len());
            assert!(loaded <= 4 * HOLDER.0, "the key would overwrite the holder");
        }
    }

    #[test]
    fn nothing_is_passed_on_without_an_old_holder_or_a_port() {
        assert!(Passing::default().is_empty());
        let passing = Passing {
            old_holders: [([192, 0, 2, 100].into(), [2; 6])].into(),
            ..Passing::default()
        };
        assert!(passing.is_empty());
    }
}
