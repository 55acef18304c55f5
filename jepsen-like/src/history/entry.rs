//! The lines of a history file.

use std::{collections::BTreeSet, fmt, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Moment, Outcome};

/// One line of `history.jsonl`. The first is [`Entry::Run`]; the others come in any order, as their writers found time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "snake_case", deny_unknown_fields)]
pub enum Entry {
    Run(Run),
    Invoke {
        id: u64,
        process: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node: Option<String>,
        at: Moment,
        call: Call,
    },
    Complete {
        id: u64,
        at: Moment,
        outcome: Outcome,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reply: Option<Reply>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    Fault(Fault),
    Answer(Answer),
    Leader(LeaderSeen),
    Hash(StateHash),
    Usage(Usage),
    Lateness(Lateness),
    Session(Session),
    Notice(Notice),
    Unhealed(Unhealed),
    Breakdown(Breakdown),
    /// The last line of a run that came to its end.
    End {
        at: Moment,
    },
    /// The last line of a run that was told to end early, and did so in order.
    Interrupted {
        at: Moment,
    },
}

/// What was run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Run {
    /// The version of this format: 1.
    pub format: u32,
    pub seed: u64,
    /// Names of the nodes that are members at the end; each owes the final reads.
    pub nodes: BTreeSet<String>,
    /// The addresses of the VIPs; empty where the file is of an earlier program, which did not say so.
    pub vips: BTreeSet<String>,
    /// Each must have had successes; empty where it is not known what ran.
    pub workloads: BTreeSet<String>,
    pub nemeses: BTreeSet<String>,
    /// Allowed time from the last heal until writes and every service at every place are back, in milliseconds.
    pub recovery_bound_ms: u64,
    /// How long faults were to be injected, and clients left in peace behind them, in milliseconds.
    pub duration_ms: u64,
    /// The peace of that; zero where the file is of an earlier program, which had none.
    pub peace_ms: u64,
    /// The self-test that this was a part of: its faults come from there, and not from the seed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub self_test: Option<SelfTest>,
}

/// What a self-test ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelfTest {
    pub scenario: String,
    /// None in the run that has to hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub defect: Option<String>,
}

/// What a client asks for. Values written to one key are unique in a run wherever its workload can make them so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Call {
    /// A linearizable read of a register (one rrset). Reply: [`Reply::Value`].
    Read { key: String },
    /// Sets a register; no value deletes the rrset. Reply: [`Reply::Committed`].
    Write { key: String, value: Option<String> },
    /// Sets a register only if it holds what is expected. Failed means that nothing was changed; where the reason is that it held something
    /// else, that was seen. Reply: [`Reply::Committed`].
    CompareAndSet {
        key: String,
        expected: Option<String>,
        value: Option<String>,
    },
    /// Adds an element that nobody else adds, ever. Reply: [`Reply::Committed`].
    Add { set: String, element: u64 },
    /// Deletes an element. Reply: [`Reply::Committed`].
    Remove { set: String, element: u64 },
    /// All elements. A local read may be old; a linearizable one may not. The final one is made on every node after the
    /// cluster has healed and every client has stopped. Reply: [`Reply::Elements`].
    Elements {
        set: String,
        #[serde(default)]
        local: bool,
        #[serde(default, rename = "final")]
        is_final: bool,
    },
    /// Several appends and reads as one atomic change. Reply: [`Reply::Lists`], one for each member.
    Transaction { members: Vec<Micro> },
    /// A DNS query for the rrset behind a register, or for the zone's serial (`SOA`). Reply: [`Reply::Dns`].
    Lookup { key: String },
}

/// A member of a list-append transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Micro {
    Append { key: String, element: u64 },
    Read { key: String },
}

/// What came back with an ok.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Reply {
    /// A register's value; none where the rrset does not exist.
    Value(Option<String>),
    /// The revision and, if it concerns one zone, the serial that a change was given.
    Committed {
        revision: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        serial: Option<u32>,
    },
    Elements(Vec<u64>),
    /// One for each member of the transaction: the list for a read, none for an append.
    Lists(Vec<Option<Vec<u64>>>),
    /// A DNS answer.
    Dns {
        /// The node that answered; absent where it is not known (an answer from the VIP without an id).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node: Option<String>,
        /// The value; none for a name or type that does not exist. Meaningless where the answer is a serial.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        value: Option<String>,
        /// The zone's serial, where SOA was asked.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        serial: Option<u32>,
        /// The node said that it serves old state (it recovered alone, without a leader).
        #[serde(default)]
        stale: bool,
    },
}

/// A fault, from its injection to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// As `--nemesis` names it: `kill`, `pause`, `partition-leader`, ...
    pub kind: String,
    /// Where it was injected; empty for the whole cluster.
    #[serde(default)]
    pub nodes: BTreeSet<String>,
    pub began: Moment,
    /// When it was healed; none: never.
    #[serde(default)]
    pub healed: Option<Moment>,
    /// One of its nodes was the leader as it began.
    #[serde(default)]
    pub hit_leader: bool,
    /// Nothing was done, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<Skip>,
}

impl Fault {
    /// What a fault does to a node beside what it is named for (a restart, to heal a full disk) is written as it begins, and counts for so long:
    /// the run may end meanwhile.
    pub const BRIEF: Duration = Duration::from_secs(1);
}

/// Why a fault was not injected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Skip {
    /// It cannot be injected on this machine: what it needs is absent.
    Impossible(String),
    /// It was tried, and at that moment there was nothing to do it to, or the cluster refused.
    Missed { missed: String },
}

/// What the cluster owed in a given time and did not do; the run ended there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unhealed {
    pub at: Moment,
    /// What was waited for, and how long.
    pub text: String,
    /// The fault it began with: the one that was being injected or healed then. None: no fault was open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
}

/// The laboratory itself failed, which says nothing of the cluster; the run ended there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Breakdown {
    pub at: Moment,
    pub text: String,
}

/// An answer for a VIP, as an outside witness saw it: an ARP or ND reply, a DNS answer, a SYN-ACK.
///
/// It is charged to the node that took the *request* from outside, at the instant at which the request reached that
/// node. When frames were passed on (planned move, DSR) this is the node that passed them on, not the one that answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    pub vip: String,
    pub by: Responder,
    /// The request reached the node not before this: when the witness sent it, or saw it at the node's port.
    pub earliest: Moment,
    /// ... and not after this: when the witness had the answer, or saw the request at the node's port.
    pub latest: Moment,
    /// How it was seen: `arp`, `nd`, `dns`, `tcp`.
    #[serde(default)]
    pub kind: String,
}

/// Who gave an answer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Responder {
    /// A node of the cluster.
    Node(String),
    /// A MAC address that belongs to no node of the cluster.
    Stranger(String),
}

/// A node seen as leader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaderSeen {
    pub at: Moment,
    pub node: String,
    pub term: u64,
}

/// The hash of a node's applied state at an index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateHash {
    pub at: Moment,
    pub node: String,
    pub index: u64,
    pub hash: String,
    /// Read at the end, on a healed and idle cluster.
    #[serde(default, rename = "final")]
    pub is_final: bool,
}

/// What a node's process uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Usage {
    pub at: Moment,
    pub node: String,
    /// Tells one process of the node from the next.
    pub pid: u32,
    /// Open file descriptors.
    pub descriptors: u64,
    /// Resident memory in KiB.
    pub resident_kib: u64,
}

/// How late the machine ran a thread that asks for next to nothing, with the priority of the nodes' best threads (`canary`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lateness {
    pub at: Moment,
    /// The latest that it was run since the entry before, in microseconds after it was due.
    pub worst_us: u64,
}

/// A proxied TCP session with traffic, or the attempt to open one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Session {
    pub id: u64,
    /// The node it goes through; the VIP's holder for one through the VIP.
    pub node: String,
    #[serde(default)]
    pub through_vip: bool,
    /// When the connection was made; when it was asked for, where none was.
    pub opened: Moment,
    pub ended: Moment,
    pub end: SessionEnd,
    /// The longest time without an answer to traffic, in microseconds.
    #[serde(default)]
    pub longest_gap_us: u64,
}

/// How a session ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionEnd {
    /// The client closed it, everything echoed.
    Closed,
    /// Reset, closed by the other side, or silent too long.
    Broken(String),
    /// The same before anything came back at all.
    Stillborn(String),
    /// What came back was not what had been sent.
    Corrupt(String),
    /// The connection was not made: it was refused, or nobody answered.
    NotConnected(String),
}

/// Something found in a node's log or about its process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Notice {
    pub at: Moment,
    pub node: String,
    pub kind: NoticeKind,
    /// The line of the log, or the exit status.
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoticeKind {
    /// A panic in the log.
    Panic,
    /// The process ended and no fault had ended it.
    UnexpectedExit,
}

impl Call {
    /// What is wrong with this as the reply to an ok, in words. None: it is what this call is owed.
    pub fn misfit(&self, reply: Option<&Reply>) -> Option<String> {
        let Some(reply) = reply else {
            return Some("it is ok and has no reply".to_owned());
        };
        let owed = match (self, reply) {
            (Self::Transaction { members }, Reply::Lists(lists)) => {
                return misfit_of_lists(members, lists);
            }
            (Self::Read { .. }, Reply::Value(_))
            | (
                Self::Write { .. }
                | Self::CompareAndSet { .. }
                | Self::Add { .. }
                | Self::Remove { .. },
                Reply::Committed { .. },
            )
            | (Self::Elements { .. }, Reply::Elements(_))
            | (Self::Lookup { .. }, Reply::Dns { .. }) => return None,
            (Self::Read { .. }, _) => "value",
            (Self::Elements { .. }, _) => "elements",
            (Self::Transaction { .. }, _) => "lists",
            (Self::Lookup { .. }, _) => "dns",
            _ => "committed",
        };
        Some(format!("its reply has to be of the kind \"{owed}\""))
    }
}

/// One for each member: a list for a read, none for an append.
fn misfit_of_lists(members: &[Micro], lists: &[Option<Vec<u64>>]) -> Option<String> {
    if members.len() != lists.len() {
        let (members, lists) = (members.len(), lists.len());
        return Some(format!("it has {members} members and {lists} lists"));
    }
    let is_owed = |member: &Micro| matches!(member, Micro::Read { .. });
    let mut pairs = members.iter().zip(lists);
    let wrong = pairs.position(|(member, list)| is_owed(member) != list.is_some());
    wrong.map(|place| {
        let place = place + 1;
        format!("the list of its member {place} has to be there for a read, and null for an append")
    })
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Impossible(why) | Self::Missed { missed: why }) = self;
        f.write_str(why)
    }
}

impl From<&str> for Skip {
    fn from(why: &str) -> Self {
        Self::Impossible(why.to_owned())
    }
}

impl fmt::Display for Fault {
    /// The kind, where, and since when.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        if !self.nodes.is_empty() {
            let nodes: Vec<&str> = self.nodes.iter().map(String::as_str).collect();
            write!(f, " on {}", nodes.join(", "))?;
        }
        write!(f, ", begun at {}", self.began)
    }
}

impl fmt::Display for Unhealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.fault {
            Some(fault) => write!(f, "{} (with {fault})", self.text),
            None => write!(f, "{} (no fault was open)", self.text),
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { key } => write!(f, "read {key}"),
            Self::Write { key, value } => write!(f, "write {key} {}", Shown(value)),
            Self::CompareAndSet {
                key,
                expected,
                value,
            } => write!(
                f,
                "compare-and-set {key} {} {}",
                Shown(expected),
                Shown(value)
            ),
            Self::Add { set, element } => write!(f, "add {set} {element}"),
            Self::Remove { set, element } => write!(f, "remove {set} {element}"),
            Self::Elements { set, is_final, .. } if *is_final => write!(f, "final read {set}"),
            Self::Elements { set, .. } => write!(f, "read {set}"),
            Self::Transaction { members } => {
                f.write_str("transaction")?;
                for member in members {
                    match member {
                        Micro::Append { key, element } => write!(f, " append {key} {element}")?,
                        Micro::Read { key } => write!(f, " read {key}")?,
                    }
                }
                Ok(())
            }
            Self::Lookup { key } => write!(f, "lookup {key}"),
        }
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(value) => Shown(value).fmt(f),
            Self::Committed { revision, serial } => match serial {
                Some(serial) => write!(f, "revision {revision}, serial {serial}"),
                None => write!(f, "revision {revision}"),
            },
            Self::Elements(elements) => write!(f, "{} elements", elements.len()),
            Self::Lists(lists) => {
                let shown = lists.iter().flatten().map(|list| format!("{list:?}"));
                f.write_str(&shown.collect::<Vec<_>>().join(" "))
            }
            Self::Dns {
                node,
                value,
                serial,
                stale,
            } => {
                match serial {
                    Some(serial) => write!(f, "serial {serial}")?,
                    None => Shown(value).fmt(f)?,
                }
                if let Some(node) = node {
                    write!(f, " from {node}")?;
                }
                f.write_str(if *stale { " (stale)" } else { "" })
            }
        }
    }
}

/// A register's value as text; `nil` where there is none.
struct Shown<'a>(&'a Option<String>);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_deref().unwrap_or("nil"))
    }
}
