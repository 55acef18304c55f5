//! The netlink messages of nf_tables that the fence needs, as octets and back. Pure: no socket.
//!
//! Only what the fence uses is here: tables, sets and their elements, base chains at the netdev hooks, rules of five kinds of
//! expression. Numbers are those of `linux/netfilter/nf_tables.h`; attribute payloads are big-endian, headers are native.

use std::{net::IpAddr, time::Duration};

use crate::vip::netlink::{ALIGNMENT, HEADER, messages_in};

/// Family of rules that see frames at a device.
pub const NETDEV: u8 = 5;
const SUBSYSTEM: u16 = 10;
const VERSION: u8 = 0;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// The header of every netfilter message, behind the netlink header.
const FAMILY_HEADER: usize = 4;
const NESTED: u16 = 1 << 15;
const ATTRIBUTE_KIND: u16 = 0x3fff;

const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
/// The dump was cut by a change; it has to be asked for again.
const INTERRUPTED: u16 = 0x10;

/// What a message does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    NewTable = 0,
    GetTable = 1,
    DeleteTable = 2,
    NewChain = 3,
    GetChain = 4,
    DeleteChain = 5,
    NewRule = 6,
    GetRule = 7,
    DeleteRule = 8,
    NewSet = 9,
    GetSet = 10,
    DeleteSet = 11,
    NewElements = 12,
    GetElements = 13,
    DeleteElements = 14,
}

impl Kind {
    const ALL: [Self; 15] = [
        Self::NewTable,
        Self::GetTable,
        Self::DeleteTable,
        Self::NewChain,
        Self::GetChain,
        Self::DeleteChain,
        Self::NewRule,
        Self::GetRule,
        Self::DeleteRule,
        Self::NewSet,
        Self::GetSet,
        Self::DeleteSet,
        Self::NewElements,
        Self::GetElements,
        Self::DeleteElements,
    ];

    fn of_type(message_type: u16) -> Option<Self> {
        let number = (message_type >> 8 == SUBSYSTEM).then_some(message_type & 0xff)?;
        Self::ALL.get(usize::from(number)).copied()
    }
}

/// A request, and what it is about, for an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    kind: Kind,
    flags: u16,
    body: Vec<u8>,
    pub about: String,
}

/// Attributes of a message or of a nest.
#[derive(Clone, Debug, Default)]
struct Attributes(Vec<u8>);

impl Attributes {
    fn octets(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(4 + value.len()).expect("requests are chunked far below 64 KiB");
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(ALIGNMENT), 0);
        self
    }

    fn text(self, kind: u16, value: &str) -> Self {
        self.octets(kind, &[value.as_bytes(), &[0]].concat())
    }

    fn number(self, kind: u16, value: u32) -> Self {
        self.octets(kind, &value.to_be_bytes())
    }

    fn long(self, kind: u16, value: u64) -> Self {
        self.octets(kind, &value.to_be_bytes())
    }

    fn nest(self, kind: u16, inner: Self) -> Self {
        self.octets(kind | NESTED, &inner.0)
    }
}

/// Attributes as received. Ends at the first that is not whole.
#[derive(Clone, Copy, Debug)]
struct Received<'a>(&'a [u8]);

impl<'a> Iterator for Received<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16::from_ne_bytes(self.0.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(self.0.get(2..4)?.try_into().ok()?) & ATTRIBUTE_KIND;
        let value = self.0.get(4..length)?;
        self.0 = self
            .0
            .get(length.next_multiple_of(ALIGNMENT)..)
            .unwrap_or(&[]);
        Some((kind, value))
    }
}

impl<'a> Received<'a> {
    fn find(self, kind: u16) -> Option<&'a [u8]> {
        self.into_iter()
            .find_map(|(k, value)| (k == kind).then_some(value))
    }

    fn text(self, kind: u16) -> Option<String> {
        as_text(self.find(kind)?)
    }

    fn number(self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.find(kind)?.try_into().ok()?))
    }

    fn nest(self, kind: u16) -> Option<Self> {
        self.find(kind).map(Received)
    }
}

fn as_text(octets: &[u8]) -> Option<String> {
    let end = octets.iter().position(|o| *o == 0).unwrap_or(octets.len());
    String::from_utf8(octets.get(..end)?.to_vec()).ok()
}

/// Keys of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    Ipv4,
    Ipv6,
    Ethernet,
    Mark,
}

impl Key {
    /// Octets of a key.
    pub fn length(self) -> u32 {
        match self {
            Key::Ipv4 | Key::Mark => 4,
            Key::Ipv6 => 16,
            Key::Ethernet => 6,
        }
    }

    /// The number by which `nft` knows how to show it.
    fn shown_as(self) -> u32 {
        match self {
            Key::Ipv4 => 7,
            Key::Ipv6 => 8,
            Key::Ethernet => 9,
            Key::Mark => 19,
        }
    }
}

/// A set of the fence's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    pub name: String,
    pub key_length: u32,
    /// Elements may expire.
    pub timed: bool,
}

/// Part of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    Link = 0,
    Network = 1,
    Transport = 2,
}

/// What a rule does, one step after another. A comparison that fails ends the rule, not the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Loads the Ethertype.
    LoadProtocol,
    /// Loads the number of the protocol above IP.
    LoadUpperProtocol,
    /// Loads octets of the frame.
    Load {
        base: Base,
        offset: u32,
        length: u32,
    },
    /// What was loaded equals this.
    Is(Vec<u8>),
    /// What was loaded is an element of the set.
    In(String),
    /// What was loaded is no element of the set.
    NotIn(String),
    Accept,
    Drop,
    /// As `Load`, into another register than the first.
    LoadInto {
        register: Register,
        base: Base,
        offset: u32,
        length: u32,
    },
    /// What was loaded, less the bits that are not in the mask.
    Mask(Vec<u8>),
    /// What is in the register, as long as a key of the set, is an element of it.
    KeyIn {
        set: String,
        register: Register,
    },
    /// What is in the register is a key of the map; its value goes into another register.
    Mapped {
        map: String,
        from: Register,
        to: Register,
    },
    /// Adds what is in the register to the set; fails when the set is full.
    Remember {
        set: String,
        register: Register,
    },
    /// Puts octets into a register.
    Value {
        register: Register,
        octets: Vec<u8>,
    },
    /// Writes a register into the frame.
    Store {
        register: Register,
        base: Base,
        offset: u32,
        length: u32,
    },
    /// Sends the frame out of the device whose index is in the register.
    Forward(Register),
}

/// A place of 4 octets; longer values take those behind it too. 0 to 15.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register(pub u32);

impl Register {
    /// Where `Load` loads to.
    pub const FIRST: Self = Self(0);

    fn number(self) -> u32 {
        self.0 + 8
    }
}

const REGISTER: u32 = 1;
const META_PROTOCOL: u32 = 1;
const META_UPPER_PROTOCOL: u32 = 16;
const INVERTED: u32 = 1;

impl Step {
    fn encode(&self) -> Attributes {
        let expression =
            |name: &str, data: Attributes| Attributes::default().text(1, name).nest(2, data);
        let meta = |key| {
            let data = Attributes::default().number(1, REGISTER).number(2, key);
            expression("meta", data)
        };
        let lookup = |set: &str| Attributes::default().text(1, set).number(2, REGISTER);
        let verdict = |code| {
            let verdict = Attributes::default().number(1, code);
            let data = Attributes::default().nest(2, verdict);
            expression(
                "immediate",
                Attributes::default().number(1, 0).nest(2, data),
            )
        };
        match self {
            Step::LoadProtocol => meta(META_PROTOCOL),
            Step::LoadUpperProtocol => meta(META_UPPER_PROTOCOL),
            Step::Load {
                base,
                offset,
                length,
            } => {
                let data = Attributes::default()
                    .number(1, REGISTER)
                    .number(2, *base as u32)
                    .number(3, *offset)
                    .number(4, *length);
                expression("payload", data)
            }
            Step::Is(value) => {
                let value = Attributes::default().octets(1, value);
                let data = Attributes::default()
                    .number(1, REGISTER)
                    .number(2, 0)
                    .nest(3, value);
                expression("cmp", data)
            }
            Step::In(set) => expression("lookup", lookup(set)),
            Step::NotIn(set) => expression("lookup", lookup(set).number(5, INVERTED)),
            Step::Drop => verdict(0),
            Step::Accept => verdict(1),
            Step::LoadInto {
                register,
                base,
                offset,
                length,
            } => {
                let data = Attributes::default()
                    .number(1, register.number())
                    .number(2, *base as u32)
                    .number(3, *offset)
                    .number(4, *length);
                expression("payload", data)
            }
            Step::Mask(mask) => {
                let length = u32::try_from(mask.len()).unwrap_or(u32::MAX);
                let data = Attributes::default()
                    .number(1, REGISTER)
                    .number(2, REGISTER)
                    .number(3, length)
                    .nest(4, Attributes::default().octets(1, mask))
                    .nest(5, Attributes::default().octets(1, &vec![0; mask.len()]));
                expression("bitwise", data)
            }
            Step::KeyIn { set, register } => {
                let data = Attributes::default()
                    .text(1, set)
                    .number(2, register.number());
                expression("lookup", data)
            }
            Step::Mapped { map, from, to } => {
                let data = Attributes::default()
                    .text(1, map)
                    .number(2, from.number())
                    .number(3, to.number());
                expression("lookup", data)
            }
            Step::Remember { set, register } => {
                const UPDATE: u32 = 1;
                let data = Attributes::default()
                    .text(1, set)
                    .number(3, UPDATE)
                    .number(4, register.number());
                expression("dynset", data)
            }
            Step::Value { register, octets } => {
                let value = Attributes::default().octets(1, octets);
                let data = Attributes::default()
                    .number(1, register.number())
                    .nest(2, value);
                expression("immediate", data)
            }
            Step::Store {
                register,
                base,
                offset,
                length,
            } => {
                let data = Attributes::default()
                    .number(2, *base as u32)
                    .number(3, *offset)
                    .number(4, *length)
                    .number(5, register.number());
                expression("payload", data)
            }
            Step::Forward(register) => {
                let data = Attributes::default().number(1, register.number());
                expression("fwd", data)
            }
        }
    }

    /// None for an expression that the fence never makes.
    fn decode(expression: Received<'_>) -> Option<Self> {
        let data = expression.nest(2)?;
        let register = |kind| data.number(kind) == Some(REGISTER);
        match expression.text(1)?.as_str() {
            "meta" if register(1) => match data.number(2)? {
                META_PROTOCOL => Some(Step::LoadProtocol),
                META_UPPER_PROTOCOL => Some(Step::LoadUpperProtocol),
                _ => None,
            },
            "payload" if register(1) => Some(Step::Load {
                base: match data.number(2)? {
                    0 => Base::Link,
                    1 => Base::Network,
                    2 => Base::Transport,
                    _ => return None,
                },
                offset: data.number(3)?,
                length: data.number(4)?,
            }),
            "cmp" if register(1) && data.number(2) == Some(0) => {
                Some(Step::Is(data.nest(3)?.find(1)?.to_vec()))
            }
            "lookup" if register(2) => match data.number(5).unwrap_or(0) {
                0 => Some(Step::In(data.text(1)?)),
                INVERTED => Some(Step::NotIn(data.text(1)?)),
                _ => None,
            },
            "immediate" if data.number(1) == Some(0) => match data.nest(2)?.nest(2)?.number(1)? {
                0 => Some(Step::Drop),
                1 => Some(Step::Accept),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Where a base chain hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    Ingress = 0,
    Egress = 1,
}

/// A base chain that accepts what none of its rules drops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    pub name: String,
    pub hook: Hook,
    pub priority: i32,
    /// Names of devices, sorted.
    pub devices: Vec<String>,
}

/// An element and for how long it is in its set; `None`: until it is deleted.
pub type Element = (Vec<u8>, Option<Duration>);

/// The key of an address in a set.
pub fn key_of(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Builds the requests about one table of the netdev family.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a>(pub &'a str);

/// The process that made the table owns it: others can neither change nor flush it (Linux 5.12).
pub const OWNED: u32 = 2;
/// The table outlives its owner, and may be taken over then (Linux 6.9).
pub const PERSISTENT: u32 = 4;

impl Table<'_> {
    fn request(self, kind: Kind, flags: u16, rest: Attributes, about: String) -> Request {
        let mut body = Attributes::default().text(1, self.0).0;
        body.extend_from_slice(&rest.0);
        Request {
            kind,
            flags,
            body,
            about,
        }
    }

    pub fn create(self, flags: u32) -> Request {
        let rest = Attributes::default().number(2, flags);
        self.request(
            Kind::NewTable,
            CREATE,
            rest,
            format!("create table {}", self.0),
        )
    }

    pub fn delete(self) -> Request {
        let about = format!("delete table {}", self.0);
        self.request(Kind::DeleteTable, 0, Attributes::default(), about)
    }

    pub fn read(self) -> Request {
        let about = format!("read table {}", self.0);
        self.request(Kind::GetTable, 0, Attributes::default(), about)
    }

    /// `number` tells the sets of a transaction apart.
    pub fn create_set(self, name: &str, key: Key, timed: bool, number: u32) -> Request {
        let rest = Attributes::default()
            .text(2, name)
            .number(3, if timed { SET_TIMED } else { 0 })
            .number(4, key.shown_as())
            .number(5, key.length())
            .number(10, number);
        self.request(Kind::NewSet, CREATE, rest, format!("create set {name}"))
    }

    /// A set that rules add to, of at most `size` elements, each for `lasts` after it was added last.
    pub fn create_remembering_set(
        self,
        name: &str,
        key: (u32, u32),
        size: u32,
        lasts: Duration,
        number: u32,
    ) -> Request {
        const ADDED_BY_RULES: u32 = 0x20;
        let (shown_as, length) = key;
        let rest = Attributes::default()
            .text(2, name)
            .number(3, SET_TIMED | ADDED_BY_RULES)
            .number(4, shown_as)
            .number(5, length)
            .nest(9, Attributes::default().number(1, size))
            .number(10, number)
            .long(11, milliseconds(lasts));
        self.request(Kind::NewSet, CREATE, rest, format!("create set {name}"))
    }

    /// A map from keys to Ethernet addresses.
    pub fn create_map(self, name: &str, key: Key, number: u32) -> Request {
        const MAP: u32 = 8;
        let rest = Attributes::default()
            .text(2, name)
            .number(3, MAP)
            .number(4, key.shown_as())
            .number(5, key.length())
            .number(6, Key::Ethernet.shown_as())
            .number(7, Key::Ethernet.length())
            .number(10, number);
        self.request(Kind::NewSet, CREATE, rest, format!("create map {name}"))
    }

    pub fn add_mapped(self, map: &str, pairs: &[(Vec<u8>, Vec<u8>)]) -> Request {
        let list = pairs
            .iter()
            .fold(Attributes::default(), |list, (key, value)| {
                let element = Attributes::default()
                    .nest(1, Attributes::default().octets(1, key))
                    .nest(2, Attributes::default().octets(1, value));
                list.nest(1, element)
            });
        let rest = Attributes::default().text(2, map).nest(3, list);
        self.request(Kind::NewElements, CREATE, rest, format!("add to map {map}"))
    }

    pub fn read_sets(self) -> Request {
        let about = format!("read the sets of table {}", self.0);
        self.request(Kind::GetSet, DUMP, Attributes::default(), about)
    }

    pub fn add_elements(self, set: &str, elements: &[Element]) -> Request {
        let about = format!("add to set {set}");
        self.about_elements(Kind::NewElements, CREATE, set, elements, about)
    }

    pub fn delete_elements(self, set: &str, elements: &[Element]) -> Request {
        let about = format!("delete from set {set}");
        self.about_elements(Kind::DeleteElements, 0, set, elements, about)
    }

    /// Deletes every element; that there is none is no failure.
    pub fn flush_set(self, set: &str) -> Request {
        let rest = Attributes::default().text(2, set);
        self.request(Kind::DeleteElements, 0, rest, format!("flush set {set}"))
    }

    pub fn read_elements(self, set: &str) -> Request {
        let rest = Attributes::default().text(2, set);
        self.request(Kind::GetElements, DUMP, rest, format!("read set {set}"))
    }

    fn about_elements(
        self,
        kind: Kind,
        flags: u16,
        set: &str,
        elements: &[Element],
        about: String,
    ) -> Request {
        let list = elements
            .iter()
            .fold(Attributes::default(), |list, (key, lasts)| {
                let key = Attributes::default().octets(1, key);
                let element = Attributes::default().nest(1, key);
                let element = match lasts {
                    Some(lasts) => element.long(4, milliseconds(*lasts)),
                    None => element,
                };
                list.nest(1, element)
            });
        let rest = Attributes::default().text(2, set).nest(3, list);
        self.request(kind, flags, rest, about)
    }

    pub fn create_chain(self, chain: &Chain) -> Request {
        let devices = chain
            .devices
            .iter()
            .fold(Attributes::default(), |list, name| list.text(1, name));
        let hook = Attributes::default()
            .number(1, chain.hook as u32)
            .octets(2, &chain.priority.to_be_bytes())
            .nest(4, devices);
        let rest = Attributes::default()
            .text(3, &chain.name)
            .nest(4, hook)
            .number(5, ACCEPT)
            .text(7, "filter");
        let about = format!(
            "create chain {} on {}",
            chain.name,
            chain.devices.join(", ")
        );
        self.request(Kind::NewChain, CREATE, rest, about)
    }

    /// Deletes a chain with its rules.
    pub fn delete_chain(self, name: &str) -> Request {
        let rest = Attributes::default().text(3, name);
        self.request(Kind::DeleteChain, 0, rest, format!("delete chain {name}"))
    }

    pub fn read_chains(self) -> Request {
        let about = format!("read the chains of table {}", self.0);
        self.request(Kind::GetChain, DUMP, Attributes::default(), about)
    }

    pub fn append_rule(self, chain: &str, steps: &[Step]) -> Request {
        let list = steps.iter().fold(Attributes::default(), |list, step| {
            list.nest(1, step.encode())
        });
        let rest = Attributes::default().text(2, chain).nest(4, list);
        let about = format!("add a rule to chain {chain}");
        self.request(Kind::NewRule, CREATE | APPEND, rest, about)
    }

    pub fn read_rules(self) -> Request {
        let about = format!("read the rules of table {}", self.0);
        self.request(Kind::GetRule, DUMP, Attributes::default(), about)
    }
}

const ACCEPT: u32 = 1;
const SET_TIMED: u32 = 0x10;

/// Rounded down: a permission may end early, never late.
fn milliseconds(lasts: Duration) -> u64 {
    u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX)
}

/// The octets of one transaction. The request at place *n* has the sequence number `first + 1 + n`; the kernel takes all of them or
/// none, and acknowledges the last.
pub fn transaction(requests: &[Request], first: u32) -> Vec<u8> {
    let mut octets = vec![];
    let mut sequence = first;
    put(
        &mut octets,
        BATCH_BEGIN,
        REQUEST,
        sequence,
        0,
        SUBSYSTEM,
        &[],
    );
    for (place, request) in requests.iter().enumerate() {
        sequence = sequence.wrapping_add(1);
        let last = place + 1 == requests.len();
        let flags = REQUEST | request.flags | if last { ACK } else { 0 };
        let message_type = SUBSYSTEM << 8 | request.kind as u16;
        put(
            &mut octets,
            message_type,
            flags,
            sequence,
            NETDEV,
            0,
            &request.body,
        );
    }
    sequence = sequence.wrapping_add(1);
    put(&mut octets, BATCH_END, REQUEST, sequence, 0, SUBSYSTEM, &[]);
    octets
}

/// The octets of a question, outside any transaction.
pub fn question(request: &Request, sequence: u32) -> Vec<u8> {
    let mut octets = vec![];
    let message_type = SUBSYSTEM << 8 | request.kind as u16;
    let flags = REQUEST | request.flags;
    put(
        &mut octets,
        message_type,
        flags,
        sequence,
        NETDEV,
        0,
        &request.body,
    );
    octets
}

/// Whether the answer is several messages and an end.
pub fn asks_for_a_dump(request: &Request) -> bool {
    request.flags & DUMP == DUMP
}

fn put(
    octets: &mut Vec<u8>,
    message_type: u16,
    flags: u16,
    sequence: u32,
    family: u8,
    resource: u16,
    body: &[u8],
) {
    let length = u32::try_from(HEADER + FAMILY_HEADER + body.len())
        .expect("requests are chunked far below 4 GiB");
    octets.extend_from_slice(&length.to_ne_bytes());
    octets.extend_from_slice(&message_type.to_ne_bytes());
    octets.extend_from_slice(&flags.to_ne_bytes());
    octets.extend_from_slice(&sequence.to_ne_bytes());
    octets.extend_from_slice(&0u32.to_ne_bytes());
    octets.extend_from_slice(&[family, VERSION]);
    octets.extend_from_slice(&resource.to_be_bytes());
    octets.extend_from_slice(body);
    octets.resize(octets.len().next_multiple_of(ALIGNMENT), 0);
}

/// What the kernel sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The request with this sequence number failed with this error number, or did not (0).
    Outcome { sequence: u32, error: i32 },
    /// A dump is at its end.
    End { sequence: u32, interrupted: bool },
    /// A message about an object: the answer to a question, or a change (then `by` is who made it).
    Object {
        kind: Kind,
        family: u8,
        sequence: u32,
        by: u32,
        interrupted: bool,
        body: Vec<u8>,
    },
}

/// The messages in one datagram; those that cannot be read are left out.
pub fn replies_in(datagram: &[u8]) -> Vec<Reply> {
    messages_in(datagram).filter_map(reply_of).collect()
}

fn reply_of(message: &[u8]) -> Option<Reply> {
    let short = |at: usize| {
        Some(u16::from_ne_bytes(
            message.get(at..at + 2)?.try_into().ok()?,
        ))
    };
    let long = |at: usize| {
        Some(u32::from_ne_bytes(
            message.get(at..at + 4)?.try_into().ok()?,
        ))
    };
    let (message_type, flags, sequence, by) = (short(4)?, short(6)?, long(8)?, long(12)?);
    let interrupted = flags & INTERRUPTED != 0;
    match message_type {
        ERROR => {
            let error = i32::from_ne_bytes(message.get(16..20)?.try_into().ok()?);
            Some(Reply::Outcome {
                sequence,
                error: error.saturating_neg(),
            })
        }
        DONE => Some(Reply::End {
            sequence,
            interrupted,
        }),
        _ => Some(Reply::Object {
            kind: Kind::of_type(message_type)?,
            family: *message.get(HEADER)?,
            sequence,
            by,
            interrupted,
            body: message.get(HEADER + FAMILY_HEADER..)?.to_vec(),
        }),
    }
}

/// The table that any object message is about.
pub fn table_of(body: &[u8]) -> Option<String> {
    Received(body).text(1)
}

/// Flags of a table and the port of the socket that owns it.
pub fn table_facts(body: &[u8]) -> (u32, Option<u32>) {
    let attributes = Received(body);
    (attributes.number(2).unwrap_or(0), attributes.number(7))
}

/// None when something about the set is none of what the fence makes.
pub fn set_of(body: &[u8]) -> Option<Set> {
    let attributes = Received(body);
    let flags = attributes.number(3).unwrap_or(0);
    (flags & !SET_TIMED == 0).then_some(Set {
        name: attributes.text(2)?,
        key_length: attributes.number(5)?,
        timed: flags & SET_TIMED != 0,
    })
}

/// None for a chain that is no base chain at a device, or drops by default.
pub fn chain_of(body: &[u8]) -> Option<Chain> {
    let attributes = Received(body);
    let hook = attributes.nest(4)?;
    let mut devices: Vec<String> = hook
        .nest(4)?
        .filter_map(|(kind, name)| (kind == 1).then(|| as_text(name)).flatten())
        .collect();
    devices.sort();
    (attributes.number(5)? == ACCEPT).then_some(())?;
    Some(Chain {
        name: attributes.text(3)?,
        hook: match hook.number(1)? {
            0 => Hook::Ingress,
            1 => Hook::Egress,
            _ => return None,
        },
        priority: i32::from_be_bytes(hook.find(2)?.try_into().ok()?),
        devices,
    })
}

/// The chain of a rule and its steps; `None` in place of a step that the fence never makes.
pub fn rule_of(body: &[u8]) -> Option<(String, Vec<Option<Step>>)> {
    let attributes = Received(body);
    let steps = attributes
        .nest(4)?
        .map(|(_, expression)| Step::decode(Received(expression)))
        .collect();
    Some((attributes.text(2)?, steps))
}

/// The keys of elements.
pub fn keys_of(body: &[u8]) -> Vec<Vec<u8>> {
    let elements = Received(body).nest(3).unwrap_or(Received(&[]));
    elements
        .filter_map(|(_, element)| Some(Received(element).nest(1)?.find(1)?.to_vec()))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The body of the only request of a transaction, as the kernel would see it.
    fn body_of(request: &Request) -> Vec<u8> {
        let datagram = question(request, 7);
        match replies_in(&datagram).as_slice() {
            [Reply::Object { body, sequence, .. }] => {
                assert_eq!(*sequence, 7);
                body.clone()
            }
            other => panic!("{other:?}"),
        }
    }

    fn step() -> impl Strategy<Value = Step> {
        let base = prop_oneof![Just(Base::Link), Just(Base::Network), Just(Base::Transport)];
        prop_oneof![
            Just(Step::LoadProtocol),
            Just(Step::LoadUpperProtocol),
            (base, 0u32..128, 1u32..17).prop_map(|(base, offset, length)| Step::Load {
                base,
                offset,
                length
            }),
            proptest::collection::vec(any::<u8>(), 1..17).prop_map(Step::Is),
            "[a-z]{1,12}".prop_map(Step::In),
            "[a-z]{1,12}".prop_map(Step::NotIn),
            Just(Step::Accept),
            Just(Step::Drop),
        ]
    }

    proptest! {
        #[test]
        fn a_rule_is_read_back_as_it_was_written(steps in proptest::collection::vec(step(), 0..12)) {
            let body = body_of(&Table("t").append_rule("c", &steps));
            prop_assert_eq!(table_of(&body).unwrap(), "t");
            let (chain, read) = rule_of(&body).unwrap();
            prop_assert_eq!(chain, "c");
            prop_assert_eq!(read, steps.into_iter().map(Some).collect::<Vec<_>>());
        }

        #[test]
        fn garbage_is_read_without_a_panic(octets in proptest::collection::vec(any::<u8>(), 0..300)) {
            for reply in replies_in(&octets) {
                if let Reply::Object { body, .. } = reply {
                    let _ = (table_of(&body), table_facts(&body), set_of(&body), chain_of(&body), rule_of(&body), keys_of(&body));
                }
            }
            let _ = (table_of(&octets), set_of(&octets), chain_of(&octets), rule_of(&octets), keys_of(&octets));
        }

        #[test]
        fn a_permission_is_never_rounded_up(nanoseconds in 0u64..10_000_000_000) {
            let lasts = Duration::from_nanos(nanoseconds);
            prop_assert!(Duration::from_millis(milliseconds(lasts)) <= lasts);
        }
    }

    #[test]
    fn chains_sets_and_elements_are_read_back() {
        let chain = Chain {
            name: "ingress".into(),
            hook: Hook::Ingress,
            priority: -500,
            devices: vec!["eth0".into(), "eth0.7".into()],
        };
        assert_eq!(
            chain_of(&body_of(&Table("t").create_chain(&chain))),
            Some(chain)
        );
        let set = body_of(&Table("t").create_set("s", Key::Ipv6, true, 3));
        let expected = Set {
            name: "s".into(),
            key_length: 16,
            timed: true,
        };
        assert_eq!(set_of(&set), Some(expected));
        let keys = [vec![1, 2, 3, 4], vec![5, 6, 7, 8]];
        let elements = keys
            .clone()
            .map(|key| (key, Some(Duration::from_millis(5))));
        assert_eq!(
            keys_of(&body_of(&Table("t").add_elements("s", &elements))),
            keys
        );
        assert_eq!(
            table_facts(&body_of(&Table("t").create(OWNED | PERSISTENT))),
            (6, None)
        );
    }

    #[test]
    fn a_transaction_has_a_beginning_an_end_and_one_acknowledgement() {
        let requests = [Table("t").delete(), Table("t").create(0)];
        let octets = transaction(&requests, 40);
        let mut seen = vec![];
        for message in messages_in(&octets) {
            let flags = u16::from_ne_bytes(message[6..8].try_into().unwrap());
            let message_type = u16::from_ne_bytes(message[4..6].try_into().unwrap());
            let sequence = u32::from_ne_bytes(message[8..12].try_into().unwrap());
            seen.push((message_type, sequence, flags & ACK != 0));
        }
        let length: usize = messages_in(&octets).map(<[u8]>::len).sum();
        assert_eq!(length, octets.len());
        assert_eq!(
            seen,
            [
                (BATCH_BEGIN, 40, false),
                (0x0a02, 41, false),
                (0x0a00, 42, true),
                (BATCH_END, 43, false),
            ]
        );
    }

    #[test]
    fn outcomes_carry_positive_error_numbers() {
        let mut octets = vec![];
        octets.extend_from_slice(&20u32.to_ne_bytes());
        octets.extend_from_slice(&ERROR.to_ne_bytes());
        octets.extend_from_slice(&0u16.to_ne_bytes());
        octets.extend_from_slice(&9u32.to_ne_bytes());
        octets.extend_from_slice(&0u32.to_ne_bytes());
        octets.extend_from_slice(&(-17i32).to_ne_bytes());
        assert_eq!(
            replies_in(&octets),
            [Reply::Outcome {
                sequence: 9,
                error: 17
            }]
        );
    }
}
