//! Second chance: the new holder passes on what belongs to connections of the old one.
//!
//! A table of its own, behind the fence: a holder whose permission has ended passes nothing on either. For each VIP that moved
//! by plan it says where the old holder is. A connection that begins here is remembered (source, destination, both ports) and
//! kept; TCP to the VIP that is neither new nor remembered goes to the old holder, with both Ethernet addresses rewritten: the
//! switch must not learn the client's address on the wrong port. What comes from another member is never passed on again.
//!
//! When the set of remembered connections is full (`REMEMBERED`), connections that are new then go to the old holder as well,
//! which serves them. The table belongs to this process and goes with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use nix::errno::Errno;

use super::{
    FenceError, explain,
    message::{Base, Chain, Hook, Key, OWNED, Register, Request, Step, Table, key_of},
    socket::Transactions,
};

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
    /// Ethernet addresses of the other members.
    pub members: BTreeSet<[u8; 6]>,
}

impl Passing {
    pub fn is_empty(&self) -> bool {
        self.old_holders.is_empty() || self.ports.is_empty()
    }

    /// The requests that make the table where there is none, or in place of one.
    fn make(&self, there_is_one: bool, flags: u32) -> Vec<Request> {
        let table = Table(TABLE);
        let mut requests = vec![];
        if there_is_one {
            requests.push(table.delete());
        }
        requests.push(table.create(flags));
        requests.push(table.create_set("members", Key::Ethernet, false, 1));
        for (number, version) in (2..).step_by(2).zip([Version::V4, Version::V6]) {
            requests.push(table.create_map(version.old_holders(), version.key(), number));
            requests.push(table.create_remembering_set(
                version.mine(),
                version.connection(),
                REMEMBERED,
                REMEMBERED_FOR,
                number + 1,
            ));
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
        requests.extend(self.fill());
        requests
    }

    /// The requests that put in what the sets and maps say.
    fn fill(&self) -> Vec<Request> {
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
            let of_version = self
                .old_holders
                .iter()
                .filter(|(vip, _)| Version::of(**vip) == version);
            let pairs: Vec<_> = of_version
                .map(|(vip, mac)| (key_of(*vip), mac.to_vec()))
                .collect();
            for chunk in pairs.chunks(CHUNK) {
                requests.push(table.add_mapped(version.old_holders(), chunk));
            }
        }
        requests
    }

    /// The requests that turn what another said into what this says, on the same ports. What is remembered stays.
    fn refill(&self) -> Vec<Request> {
        let sets = [
            "members",
            Version::V4.old_holders(),
            Version::V6.old_holders(),
        ];
        let mut requests: Vec<_> = sets.iter().map(|set| Table(TABLE).flush_set(set)).collect();
        requests.extend(self.fill());
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

/// To a VIP that moved; the address of its old holder is in `HOLDER` then.
fn to_a_moved_vip(version: Version) -> Vec<Step> {
    let (_, destination, length) = version.addresses();
    let mut steps = tcp(version);
    steps.extend([
        Step::Load {
            base: Base::Network,
            offset: destination,
            length,
        },
        Step::Mapped {
            map: version.old_holders().to_owned(),
            from: Register::FIRST,
            to: HOLDER,
        },
    ]);
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
        let mut rest = to_a_moved_vip(version);
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
        rules.extend([new, remembered, rest]);
    }
    rules
}

/// The table of this process, and what it says.
#[derive(Debug)]
pub struct Chance {
    transactions: Transactions,
    passing: Passing,
}

impl Chance {
    /// Makes the table. `mine`: connections that this node has already, as (client, VIP).
    pub fn begin(passing: &Passing, mine: &[(SocketAddr, SocketAddr)]) -> Result<Self, FenceError> {
        let mut chance = Self {
            transactions: Transactions::open().map_err(explain)?,
            passing: passing.clone(),
        };
        chance.make(mine)?;
        Ok(chance)
    }

    fn make(&mut self, mine: &[(SocketAddr, SocketAddr)]) -> Result<(), FenceError> {
        let there = match self.transactions.ask(&Table(TABLE).read()) {
            Ok(bodies) => !bodies.is_empty(),
            Err(error) if error.errno() == Some(Errno::ENOENT) => false,
            Err(error) => return Err(explain(error)),
        };
        let mut flags = OWNED;
        loop {
            let mut requests = self.passing.make(there, flags);
            requests.extend(remember(mine));
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

    /// Makes it say this. What is remembered stays, unless a port is another.
    pub fn update(
        &mut self,
        passing: &Passing,
        mine: &[(SocketAddr, SocketAddr)],
    ) -> Result<(), FenceError> {
        if self.passing == *passing {
            return Ok(());
        }
        let same_ports = self.passing.ports == passing.ports;
        self.passing = passing.clone();
        match same_ports {
            true => Ok(self.transactions.commit(&self.passing.refill())?),
            false => self.make(mine),
        }
    }

    pub fn passing(&self) -> &Passing {
        &self.passing
    }

    /// Passes nothing on any more.
    pub fn end(mut self) -> Result<(), FenceError> {
        match self.transactions.commit(&[Table(TABLE).delete()]) {
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(()),
            other => other.map_err(explain),
        }
    }
}

fn remember(mine: &[(SocketAddr, SocketAddr)]) -> Vec<Request> {
    let mut requests = vec![];
    for version in [Version::V4, Version::V6] {
        let of_version = mine
            .iter()
            .filter(|(client, vip)| {
                Version::of(client.ip()) == version && Version::of(vip.ip()) == version
            })
            .map(|(client, vip)| (connection_key(*client, *vip), None));
        let keys: Vec<_> = of_version
            .take(usize::try_from(REMEMBERED / 2).unwrap_or(usize::MAX))
            .collect();
        for chunk in keys.chunks(CHUNK) {
            requests.push(Table(TABLE).add_elements(version.mine(), chunk));
        }
    }
    requests
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
