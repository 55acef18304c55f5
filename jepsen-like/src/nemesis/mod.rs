//! Faults: what kinds there are, when each comes ([`schedule`], pure), which nodes it hits ([`targets`], pure), how it is done
//! ([`inject`]), what counts as done ([`done`], pure) and which ends of processes it explains ([`ending`], pure).

pub mod done;
pub mod ending;
pub mod inject;
pub mod schedule;
pub mod targets;

use std::{fmt, str::FromStr};

use crate::history::Fault;

/// Faults that one run may have open at once: one on processes and disks, one on the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// What happens to a process or its disk.
    Process,
    /// What happens to frames.
    Network,
    /// Nothing else is injected meanwhile: a change of membership, or a loss that needs the rest of the cluster to be well.
    Alone,
}

macro_rules! kinds {
    ($($name:ident = $text:literal, $lane:ident, $lasts:expr, $doc:literal;)*) => {
        /// A kind of fault.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind {
            $(#[doc = $doc] $name,)*
        }

        impl Kind {
            /// In the order in which they are listed.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// As `--nemesis` and the history name it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// What it does, in one line.
            pub fn about(self) -> &'static str {
                match self { $(Self::$name => $doc,)* }
            }

            pub fn lane(self) -> Lane {
                match self { $(Self::$name => Lane::$lane,)* }
            }

            /// Shortest and longest time until it is healed, in milliseconds. What makes a leader give the VIPs away lasts longer than that
            /// may take more often than not (`Bounds::hand_over`).
            pub fn lasts_ms(self) -> (u64, u64) {
                match self { $(Self::$name => $lasts,)* }
            }
        }
    };
}

kinds! {
    Kill = "kill", Process, (300, 4000), "kill -9 of one node's process, started again later";
    KillAll = "kill-all", Alone, (200, 2000), "kill -9 of every node's process at once";
    Pause = "pause", Process, (200, 10_000), "SIGSTOP of one node's process for 0.2 s to 10 s, the leader's more often than not";
    Restart = "restart", Process, (0, 1000), "SIGTERM, end and start of one node";
    RollingRestart = "rolling-restart", Alone, (0, 500), "SIGTERM, end and start of every node in turn, each when the one before is well again";
    PowerLoss = "power-loss", Process, (300, 3000), "kill -9 of one node, and its disk keeps only what was made durable";
    PowerLossAll = "power-loss-all", Alone, (300, 3000), "the power of every node fails at once: each disk keeps only what was made durable";
    DnsHang = "dns-hang", Process, (8000, 16_000), "the DNS threads of one node stand still while the others go on, the leader's more often than not";
    Transfer = "transfer", Process, (200, 500), "leadership and VIPs are moved by plan";
    VipMove = "vip-move", Process, (200, 500), "`pontoon vip move` to a node that is named";
    ProfileChange = "profile-change", Process, (500, 6000), "another timing profile is set under load, and `lan` again";
    PartitionLeader = "partition-leader", Network, (500, 6000), "the leader and the other nodes hear nothing of each other";
    PartitionHalves = "partition-halves", Network, (500, 6000), "a majority and a minority hear nothing of each other";
    PartitionRing = "partition-ring", Network, (500, 6000), "each node hears its neighbours in a ring only (three nodes: one link less)";
    PartitionBridge = "partition-bridge", Network, (500, 6000), "two halves that only one node hears both of";
    PartitionOneWay = "partition-one-way", Network, (500, 6000), "the leader hears nobody, or nobody hears it";
    PartitionClient = "partition-client", Network, (8000, 16_000), "the leader hears no client, but every node";
    Loss = "loss", Network, (500, 6000), "5 to 30 % of the frames are lost: to a node, from a node, between all";
    Delay = "delay", Network, (500, 6000), "frames take 10 to 200 ms: to a node, from a node, between all";
    Interface = "interface", Network, (200, 4000), "a node's link loses its carrier";
    InterfaceDown = "interface-down", Network, (200, 4000), "a node's interface is set down, and up again with its addresses";
    Flush = "flush", Network, (200, 500), "somebody runs `nft flush ruleset` on a node";
    AddressStolen = "address-stolen", Network, (300, 2000), "a foreign host takes a VIP and announces it";
    Join = "join", Alone, (500, 3000), "a further node joins, and leaves again";
    Leave = "leave", Alone, (300, 2000), "a node leaves, is wiped and joins under a new id";
    Replace = "replace", Alone, (300, 2000), "a node dies for good: it is removed, wiped and joins under a new id";
    DiskFull = "disk-full", Process, (500, 4000), "the data disk of one node fills up; emptied, the node is started again";
    SlowDisk = "slow-disk", Process, (300, 4000), "the data disk of one node takes no write for up to 4 s";
    BitFlip = "bit-flip", Alone, (200, 1000), "bits flip in the data of a minority while it is down; what does not recover is replaced";
    ClockStep = "clock-step", Process, (500, 8000), "the wall clock of one node jumps by up to a day, and back";
    ClockSkew = "clock-skew", Process, (2000, 8000), "the wall clock of one node runs at half to twice the rate, and is set right again";
}

impl Kind {
    /// The data disks must be file systems of their own.
    pub fn needs_disks(self) -> bool {
        matches!(
            self,
            Self::DiskFull | Self::SlowDisk | Self::PowerLoss | Self::PowerLossAll
        )
    }

    /// Whether it can take anything from whoever leads. A node that joins does not lead yet; a profile and a stolen address leave the leader all that
    /// it has; in a ring and beside a bridge it goes on hearing a majority, itself among them.
    pub fn can_hit_leader(self) -> bool {
        !matches!(
            self,
            Self::Join
                | Self::ProfileChange
                | Self::AddressStolen
                | Self::PartitionRing
                | Self::PartitionBridge
        )
    }

    /// The nodes' wall clocks must be ours to set.
    pub fn needs_clocks(self) -> bool {
        matches!(self, Self::ClockStep | Self::ClockSkew)
    }

    /// Frames pass a switch of ours.
    pub fn needs_switch(self) -> bool {
        matches!(self, Self::Loss | Self::Delay)
    }
}

/// Whether a fault took something from a leader. What its entry says of a kind that cannot is not believed; what this program does not know may
/// be able to.
pub fn hits_leader(fault: &Fault) -> bool {
    let can_hit = || fault.kind.parse().map_or(true, Kind::can_hit_leader);
    fault.hit_leader && fault.skipped.is_none() && can_hit()
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No fault has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no fault is named {0}; `jepsen-like list` names them")]
pub struct UnknownKind(String);

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        let found = Self::ALL.iter().find(|kind| kind.name() == text);
        found.copied().ok_or_else(|| UnknownKind(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_read_back() {
        for kind in Kind::ALL {
            assert_eq!(kind.name().parse(), Ok(*kind));
            assert!(kind.lasts_ms().0 <= kind.lasts_ms().1);
        }
        assert!("kil".parse::<Kind>().is_err());
    }
}
