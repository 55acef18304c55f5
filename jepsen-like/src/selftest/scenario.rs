//! What brings each defect out: how many nodes, which clients, which faults in which order.

use std::{collections::BTreeSet, fmt, time::Duration};

use pontoon::{defect::Defect, model::timing::Timing};

use super::stage::Stage;
use crate::{
    lab::{LabError, cluster},
    nemesis::{Kind, inject::Nemesis},
    workload::Workload,
};

/// Allowed from the last heal until writes and every service at every place are back.
pub const RECOVERY: Duration = Duration::from_secs(20);

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// Before the first fault of a scenario.
const CALM: Duration = ms(1500);

/// What was written by a few of these is read before it is written over.
const RETRIES: u64 = 6;

/// Leases that a busy machine does not lose every second, and promises that end well before the kernel forgets an address
/// that is renewed no more (3 s).
const STEADY: Timing = Timing {
    heartbeat: ms(60),
    election_timeout_min: ms(500),
    election_timeout_max: ms(1000),
};

macro_rules! scenarios {
    ($($name:ident = $text:literal, $doc:literal;)*) => {
        /// A scenario.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Scenario { $(#[doc = $doc] $name,)* }

        impl Scenario {
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// What happens, in one line.
            pub fn about(self) -> &'static str {
                match self { $(Self::$name => $doc,)* }
            }
        }
    };
}

scenarios! {
    Leader = "leader", "the leader is cut off from the others, though not from clients, and the next one is paused";
    Snapshot = "snapshot", "a node is killed and comes back from a snapshot of its state";
    Vote = "vote", "the voter that made a leader is killed and meets the former leader, who was cut off meanwhile";
    Restart = "restart", "the leader is cut off while the others are killed and started at once, under long promises";
    Transfer = "transfer", "leadership is handed over by a leader that hears the others no more, under long promises";
    Power = "power", "a single node's power fails: what its disk was not told to keep is gone";
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Scenario {
    /// The one that brings a defect out.
    pub fn of(defect: Defect) -> Self {
        match defect {
            Defect::AcknowledgeBeforeCommit
            | Defect::StaleReads
            | Defect::VipWithoutLease
            | Defect::FenceNeverExpires
            | Defect::ApplyTwice
            | Defect::SerialRestarts => Self::Leader,
            Defect::SnapshotMissesMap => Self::Snapshot,
            Defect::VoteNotPersisted => Self::Vote,
            Defect::VoteAfterRestart => Self::Restart,
            Defect::BareTransfer => Self::Transfer,
            Defect::BarrierWithoutFsync => Self::Power,
        }
    }

    pub fn nodes(self) -> u8 {
        match self {
            Self::Power => 1,
            _ => 3,
        }
    }

    pub fn workloads(self) -> BTreeSet<Workload> {
        use Workload::{Register, Set, Vip, Zones};
        match self {
            Self::Leader => [Register, Set, Vip, Zones].into(),
            Self::Snapshot | Self::Vote => [Register, Set].into(),
            Self::Restart | Self::Transfer => [Register, Vip].into(),
            Self::Power => [Set].into(),
        }
    }

    /// What the nodes are, but for their program.
    pub fn cluster(self) -> cluster::Options {
        cluster::Options {
            nodes: self.nodes(),
            has_disks: self == Self::Power,
            configuration: match self {
                Self::Snapshot => "\n[storage]\nsnapshot_log_bytes = \"64KiB\"\n".to_owned(),
                _ => String::new(),
            },
            ..cluster::Options::default()
        }
    }

    /// Its faults.
    pub fn course(self) -> impl Fn(&mut Nemesis<'_>, &dyn Fn() -> bool) -> Result<(), LabError> {
        move |nemesis, is_over| {
            let mut stage = Stage::new(nemesis, is_over);
            match self {
                Self::Leader => leader(&mut stage),
                Self::Snapshot => snapshot(&mut stage),
                Self::Vote => vote(&mut stage),
                Self::Restart => restart(&mut stage),
                Self::Transfer => transfer(&mut stage),
                Self::Power => power(&mut stage),
            }
        }
    }
}

fn leader(stage: &mut Stage<'_, '_>) -> Result<(), LabError> {
    stage.set_timing(&STEADY)?;
    stage.go_on(CALM)?;
    let (leader, others) = stage.holder_and_others()?;
    let cut = stage.begin(Kind::PartitionLeader, [&leader], true);
    stage.part(&leader, &others)?;
    stage.holder_other_than(&leader)?;
    stage.go_on(ms(1000))?;
    stage.unpart()?;
    stage.end(cut);
    stage.go_on(ms(1000))?;
    let (leader, _) = stage.holder_and_others()?;
    let pause = stage.begin(Kind::Pause, [&leader], true);
    stage.pause(&leader)?;
    // That comes well before the kernel forgets an address that nobody renews.
    stage.holder_other_than(&leader)?;
    stage.go_on(ms(1000))?;
    stage.resume(&leader)?;
    stage.end(pause);
    stage.wait_for_retries(RETRIES)?;
    stage.go_on(ms(500))
}

fn snapshot(stage: &mut Stage<'_, '_>) -> Result<(), LabError> {
    stage.go_on(CALM)?;
    stage.write_much()?;
    let (_, others) = stage.leader_and_others()?;
    let one = stage.first(&others)?;
    stage.wait_for_snapshot(&one)?;
    stage.go_on(ms(500))?;
    let fault = stage.begin(Kind::Kill, [&one], false);
    stage.kill(&one)?;
    stage.start(&one)?;
    stage.end(fault);
    stage.go_on(ms(1500))
}

/// The former leader never hears of the new one. A voter that remembers its vote tells it; one that forgot follows it again, and
/// what they write together is overwritten by the new leader as soon as that is back.
fn vote(stage: &mut Stage<'_, '_>) -> Result<(), LabError> {
    stage.set_timing(&STEADY)?;
    stage.go_on(CALM)?;
    let (former, _) = stage.leader_and_others()?;
    let first = stage.begin(Kind::PartitionLeader, [&former], true);
    stage.cut(&former)?;
    let (new, others) = stage.leader_other_than(&former)?;
    let voter = stage.first(&others)?;
    stage.write_through(&new)?;
    stage.go_on(ms(1000))?;
    let kill = stage.begin(Kind::Kill, [&voter], false);
    stage.kill(&voter)?;
    let second = stage.begin(Kind::PartitionLeader, [&new], true);
    stage.cut(&new)?;
    stage.mend(&former)?;
    stage.end(first);
    stage.start(&voter)?;
    stage.end(kill);
    stage.write_through(&former)?;
    stage.go_on(ms(1000))?;
    stage.mend(&new)?;
    stage.end(second);
    stage.go_on(ms(500))
}

/// The others promised to elect nobody for 2.5 s, and the leader holds the VIPs for most of that.
fn restart(stage: &mut Stage<'_, '_>) -> Result<(), LabError> {
    stage.set_timing(&Timing::WAN)?;
    stage.go_on(CALM)?;
    let (leader, others) = stage.leader_and_others()?;
    let cut = stage.begin(Kind::PartitionLeader, [&leader], true);
    stage.part(&leader, &others)?;
    let kill = stage.begin(Kind::Kill, &others, false);
    for other in &others {
        stage.kill(other)?;
    }
    for other in &others {
        stage.start(other)?;
    }
    stage.end(kill);
    stage.holder_other_than(&leader)?;
    stage.go_on(ms(500))?;
    stage.unpart()?;
    stage.end(cut);
    stage.go_on(ms(500))
}

/// The order to take over reaches the others; that one of them did does not reach the leader.
fn transfer(stage: &mut Stage<'_, '_>) -> Result<(), LabError> {
    stage.set_timing(&Timing::WAN)?;
    stage.go_on(CALM)?;
    // Once in peace: the next leader has asked the others for their votes, so its connections for such words are there. One
    // that hears nobody can make none.
    let (first, _) = stage.holder_and_others()?;
    let moved = stage.begin(Kind::Transfer, [&first], true);
    stage.transfer(&first)?;
    let (leader, others) = stage.holder_other_than(&first)?;
    stage.end(moved);
    stage.go_on(CALM)?;
    // A node that lacks anything of the leader's does not take over.
    stage.hush()?;
    let deaf = stage.begin(Kind::PartitionOneWay, [&leader], true);
    let moved = stage.begin(Kind::Transfer, [&leader], true);
    stage.deafen_to_words(&leader, &others)?;
    stage.transfer(&leader)?;
    stage.end(moved);
    stage.resound();
    stage.go_on(ms(3000))?;
    stage.unpart()?;
    stage.end(deaf);
    stage.go_on(ms(500))
}

fn power(stage: &mut Stage<'_, '_>) -> Result<(), LabError> {
    let (node, _) = stage.leader_and_others()?;
    stage.go_on(CALM)?;
    // The disk gets what there is until now. A log that is lost from its beginning would be no log.
    stage.keep_back(&node)?;
    // Small writes alone: they are in the log's journal and nowhere else on the disk. Large ones go past it, and so many octets
    // that the kernel begins to write back everything.
    stage.go_on(ms(1500))?;
    let fault = stage.begin_named("lost-writes", [&node], true);
    stage.lose_power(&node)?;
    stage.start(&node)?;
    stage.end(fault);
    stage.go_on(ms(1500))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timings_go_together() {
        for timing in [STEADY, Timing::WAN] {
            assert_eq!(timing.check(None), Ok(()));
        }
    }

    #[test]
    fn names_are_distinct() {
        let names: BTreeSet<_> = Scenario::ALL.iter().map(|one| one.name()).collect();
        assert_eq!(names.len(), Scenario::ALL.len());
    }

    #[test]
    fn every_scenario_is_for_a_defect_and_has_what_its_checkers_judge() {
        for scenario in Scenario::ALL {
            let defects: Vec<_> = (Defect::ALL.iter())
                .filter(|defect| Scenario::of(**defect) == *scenario)
                .collect();
            assert!(!defects.is_empty(), "{scenario}");
            let workloads = scenario.workloads();
            for defect in defects {
                let judged = super::super::expected(*defect)
                    .iter()
                    .any(|checker| match *checker {
                        "set" => workloads.contains(&Workload::Set),
                        "linearizability" => workloads.contains(&Workload::Register),
                        "one responder" => workloads.contains(&Workload::Vip),
                        "serials" => workloads.contains(&Workload::Zones),
                        _ => true,
                    });
                assert!(judged, "{scenario}, {defect:?}");
            }
        }
    }
}
