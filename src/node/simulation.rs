//! Never two holders, in virtual time: two or three nodes with the real lease, promise, vote gate and VIP machine, around the least
//! of Raft that elects and commits, under loss, delay, partitions, pauses, kills and changes of timing, with clocks that run at
//! different rates. What a node's kernel lets pass outlives its process, as the fence's does.
//!
//! An overlap of two holders begins when one of them is permitted, so it is looked for there. A failure prints its seed;
//! `PONTOON_SEED=N` runs that one alone and `PONTOON_SEEDS=COUNT` more of them.

use std::{
    collections::{BTreeMap, BinaryHeap},
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    consensus::{
        gate::{Gate, LogAtStart, VoteGate},
        leadership::{Grant, LeaseBook, Standing},
        promise::{Promise, smallest_refusal},
    },
    model::{leadership::Leadership, node::NodeId},
    state::cluster::VipRelease,
    vip::{
        fence::RESERVE,
        machine::{Action, Event, Fencing, Machine, Target, Timing},
    },
};

const SEEDS: u64 = 1000;
/// Of one run, in milliseconds.
const LENGTH: u64 = 3000;
const HEARTBEAT: u64 = 40;
const REFUSALS: [u64; 3] = [180, 280, 700];

/// What is left out of a node on purpose: the simulation has to notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Defect {
    None,
    /// A permission that the kernel does not end.
    NoFence,
    /// Votes as soon as it has started again.
    VotesAtOnce,
    /// Votes whatever it promised.
    BreaksPromises,
    /// Campaigns as soon as the timing of now has passed since it heard a leader, though it promised more.
    ForgetsItsPromise,
    /// Hands leadership over without giving its lease up.
    BareTransfer,
    /// Counts the lease from when answers came.
    LeaseFromReceipt,
    /// Counts a lease that was lost, and may come back in the same term, as given up.
    LostIsGivenUp,
}

/// A log entry that matters here: who may take the VIPs, or (none) a leader's first entry.
type Entry = (u64, Option<VipRelease>);

#[derive(Clone, Debug)]
enum Message {
    /// With the whole log, and how much of it is committed.
    Heartbeat {
        term: u64,
        sent: Instant,
        log: Vec<Entry>,
        committed: usize,
    },
    Acknowledged {
        term: u64,
        sent: Instant,
        stated: Duration,
        length: usize,
    },
    Vote {
        term: u64,
        by_transfer: bool,
        last: (u64, usize),
    },
    Voted {
        term: u64,
    },
    Offer {
        term: u64,
    },
    Noted {
        term: u64,
        number: u64,
    },
    Granted {
        term: u64,
        number: u64,
        lasts: Duration,
    },
    Lead {
        term: u64,
    },
}

#[derive(Clone, Debug)]
enum Happens {
    Arrives {
        from: usize,
        message: Message,
    },
    Timer,
    Pause(u64),
    Kill(u64),
    Start,
    Resume,
    ChangeTiming(u64),
    HandOver,
    /// The kernel has removed the VIP, in this life of the node.
    Removed {
        life: u64,
    },
}

/// By time, then in order.
struct Due {
    at: u64,
    number: u64,
    node: usize,
    what: Happens,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Follower,
    Candidate { by_transfer: bool },
    Leader,
}

/// How far a hand-over is.
#[derive(Clone, Copy, Debug)]
enum HandOver {
    /// The release is in the log, at this length.
    Releasing {
        to: usize,
        length: usize,
    },
    Offering {
        to: usize,
        until: Instant,
    },
    /// The lease is given up; `offer` is the number that the heir noted, and how long the lease lasted from then, until it is granted.
    Granting {
        to: usize,
        until: Instant,
        offer: Option<(u64, Duration)>,
    },
}

struct Node {
    /// Microseconds of its clock in a millisecond of the world.
    rate: u64,
    origin: Instant,
    // What its disk keeps.
    term: u64,
    voted: Option<usize>,
    log: Vec<Entry>,
    promised_at_most: Duration,
    // What its kernel keeps: until when frames pass, by its clock.
    permitted: Option<Instant>,
    // What its process has.
    lives: bool,
    paused: bool,
    waiting: Vec<Happens>,
    refusal: Duration,
    promise: Promise,
    gate: VoteGate,
    leases: LeaseBook,
    machine: Machine,
    /// The last term under whose lease VIPs could be held.
    leased: u64,
    /// The last term that was reported released. Consensus keeps it.
    released: u64,
    /// Which start of the process this is.
    life: u64,
    role: Role,
    leader: Option<usize>,
    heard: Instant,
    votes: usize,
    committed: usize,
    acked: BTreeMap<usize, (Instant, Duration, usize)>,
    beat_at: Instant,
    /// Until when its disk keeps back what a new leader writes first: a lease that was granted to it may end before its own begins.
    stalled: Instant,
    patience: Duration,
    offered: Option<(u64, usize, u64, Instant)>,
    hand_over: Option<HandOver>,
}

fn target() -> Target {
    Target {
        address: [192, 0, 2, 10].into(),
        interface: "vip".parse().expect("a label"),
    }
}

fn machine(now: Instant) -> Machine {
    let timing = Timing {
        second_chance: Duration::ZERO,
        ..Timing::default()
    };
    let mut machine = Machine::new(timing, Fencing::Standing);
    machine.handle(Event::Configured([target()].into()), now);
    machine
}

fn name(id: usize) -> NodeId {
    NodeId(id as u64 + 1)
}

struct World {
    seed: u64,
    defect: Defect,
    random: StdRng,
    now: u64,
    nodes: Vec<Node>,
    due: BinaryHeap<Due>,
    number: u64,
    loss: u32,
    slow: u64,
    /// Until when nothing passes from one to another.
    cut: BTreeMap<(usize, usize), u64>,
    permissions: u64,
    holders: Vec<usize>,
}

/// Two nodes held the VIP at once.
#[derive(Debug)]
struct TwoHolders(String);

impl World {
    fn new(seed: u64, defect: Defect) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let count = random.random_range(2..=3usize);
        let origin = Instant::now();
        let nodes = (0..count)
            .map(|id| {
                // Up to 5 % apart.
                let rate = random.random_range(975..=1025u64);
                let refusal = Duration::from_millis(280);
                Node {
                    rate,
                    origin,
                    term: 0,
                    voted: None,
                    log: vec![],
                    promised_at_most: refusal,
                    permitted: None,
                    lives: true,
                    paused: false,
                    waiting: vec![],
                    refusal,
                    promise: Promise::default(),
                    gate: VoteGate::new(origin, refusal, LogAtStart::Empty),
                    leases: LeaseBook::new(name(id)),
                    machine: machine(origin),
                    leased: 0,
                    released: 0,
                    life: 0,
                    role: Role::Follower,
                    leader: None,
                    heard: origin,
                    votes: 0,
                    committed: 0,
                    acked: BTreeMap::new(),
                    beat_at: origin,
                    stalled: origin,
                    patience: Duration::from_millis(random.random_range(0..200)),
                    offered: None,
                    hand_over: None,
                }
            })
            .collect();
        let loss = random.random_range(0..25);
        let slow = [2, 5, 40, 200][random.random_range(0..4usize)];
        let mut world = Self {
            seed,
            defect,
            random,
            now: 0,
            nodes,
            due: BinaryHeap::new(),
            number: 0,
            loss,
            slow,
            cut: BTreeMap::new(),
            permissions: 0,
            holders: vec![],
        };
        world.plan_faults();
        for id in 0..count {
            world.add(0, id, Happens::Timer);
        }
        world
    }

    fn add(&mut self, at: u64, node: usize, what: Happens) {
        self.number += 1;
        let number = self.number;
        self.due.push(Due {
            at,
            number,
            node,
            what,
        });
    }

    fn plan_faults(&mut self) {
        let count = self.nodes.len();
        for _ in 0..self.random.random_range(2..12) {
            let at = self.random.random_range(300..LENGTH);
            let node = self.random.random_range(0..count);
            let lasts = match self.random.random_range(0..3) {
                0 => self.random.random_range(1..60),
                _ => self.random.random_range(1..900),
            };
            let what = match self.random.random_range(0..6) {
                0 => Happens::Pause(lasts),
                1 => Happens::Kill(lasts),
                2 => Happens::ChangeTiming(REFUSALS[self.random.random_range(0..3usize)]),
                3 => {
                    let other = self.random.random_range(0..count);
                    self.cut.insert((node, other), at + lasts);
                    continue;
                }
                _ => Happens::HandOver,
            };
            self.add(at, node, what);
        }
        if self.random.random_range(0..4) == 0 {
            self.plan_shorter_timing();
        }
    }

    /// The whole cluster counts shorter from some moment on, right before which one node heard another no more, and right after which
    /// a third stands still.
    fn plan_shorter_timing(&mut self) {
        let count = self.nodes.len();
        let at = self.random.random_range(1_800..LENGTH - 700);
        let one = self.random.random_range(0..count);
        let other = (one + 1) % count;
        self.cut.insert((one, other), at + 50);
        let [longest, shortest] = [REFUSALS[2], REFUSALS[0]];
        for node in 0..count {
            self.add(at - 1_700, node, Happens::ChangeTiming(longest));
            let late = self.random.random_range(0..20);
            self.add(at + late, node, Happens::ChangeTiming(shortest));
        }
        let late = self.random.random_range(0..40);
        self.add(at + late, one, Happens::Pause(1_000));
    }

    fn run(&mut self) -> Result<(), TwoHolders> {
        while let Some(Due { at, node, what, .. }) = self.due.pop() {
            if at > LENGTH {
                break;
            }
            self.now = at;
            self.happen(node, what)?;
        }
        Ok(())
    }

    fn happen(&mut self, id: usize, what: Happens) -> Result<(), TwoHolders> {
        let now = self.now;
        let node = &mut self.nodes[id];
        match what {
            Happens::Pause(lasts) if node.lives && !node.paused => {
                node.paused = true;
                self.add(now + lasts, id, Happens::Resume);
                return Ok(());
            }
            Happens::Kill(lasts) if node.lives => {
                (node.lives, node.paused) = (false, false);
                node.waiting.clear();
                self.add(now + lasts, id, Happens::Start);
                return Ok(());
            }
            Happens::Start => {
                self.start(id);
                return Ok(());
            }
            Happens::Resume if node.paused => {
                node.paused = false;
                let waiting = std::mem::take(&mut node.waiting);
                for what in waiting {
                    self.happen(id, what)?;
                }
            }
            Happens::Pause(_) | Happens::Kill(_) | Happens::Resume => {}
            what if node.paused => node.waiting.push(what),
            what if node.lives => self.do_it(id, what)?,
            _ => {}
        }
        let node = &self.nodes[id];
        if node.lives && !node.paused {
            self.settle(id)?;
        }
        Ok(())
    }

    /// A process that starts again has its disk, and what the kernel kept is swept.
    fn start(&mut self, id: usize) {
        let defect = self.defect;
        let now = self.clock(id);
        let node = &mut self.nodes[id];
        node.lives = true;
        node.permitted = None;
        node.promise = Promise::default();
        let log = match defect {
            Defect::VotesAtOnce => LogAtStart::Empty,
            _ => LogAtStart::Present,
        };
        node.gate = VoteGate::new(now, node.promised_at_most, log);
        node.leases = LeaseBook::new(name(id));
        node.machine = machine(now);
        (node.leased, node.released, node.life) = (0, 0, node.life + 1);
        // It has heard nobody: it asks as soon as it may.
        (node.role, node.leader, node.heard) = (Role::Follower, None, node.origin);
        (node.votes, node.committed) = (0, 0);
        node.acked.clear();
        (node.offered, node.hand_over) = (None, None);
        self.add(self.now, id, Happens::Timer);
    }

    /// The time by a node's own clock.
    fn clock(&self, id: usize) -> Instant {
        let node = &self.nodes[id];
        node.origin + Duration::from_micros(self.now * node.rate)
    }

    fn quorum(&self) -> usize {
        self.nodes.len() / 2 + 1
    }

    fn send(&mut self, from: usize, to: usize, message: Message) {
        let cut = self.cut.get(&(from, to));
        let lost = self.random.random_range(0..100) < self.loss;
        let delay = match self.random.random_range(0..10) {
            0 => self.random.random_range(0..=self.slow),
            _ => self.random.random_range(0..=2),
        };
        if !lost && cut.is_none_or(|until| self.now >= *until || self.now + 900 < *until) {
            self.add(self.now + delay, to, Happens::Arrives { from, message });
        }
    }

    fn send_all(&mut self, from: usize, message: &Message) {
        for to in 0..self.nodes.len() {
            if to != from {
                self.send(from, to, message.clone());
            }
        }
    }

    fn do_it(&mut self, id: usize, what: Happens) -> Result<(), TwoHolders> {
        match what {
            Happens::Timer => self.tick(id),
            Happens::Arrives { from, message } => self.take(id, from, message)?,
            Happens::ChangeTiming(refusal) => {
                let node = &mut self.nodes[id];
                node.refusal = Duration::from_millis(refusal);
                // Written down before it is made.
                node.promised_at_most = node.promised_at_most.max(node.refusal);
            }
            Happens::HandOver => self.begin_hand_over(id),
            Happens::Removed { life } if life == self.nodes[id].life => {
                let now = self.clock(id);
                let node = &mut self.nodes[id];
                node.permitted = None;
                node.machine.handle(Event::Removed(target()), now);
            }
            _ => {}
        }
        Ok(())
    }

    fn begin_hand_over(&mut self, id: usize) {
        let to = (id + 1 + self.random.random_range(0..self.nodes.len() - 1)) % self.nodes.len();
        let node = &mut self.nodes[id];
        if node.role != Role::Leader || node.hand_over.is_some() || to == id {
            return;
        }
        let term = node.term;
        if self.defect == Defect::BareTransfer {
            return self.send(id, to, Message::Lead { term });
        }
        let release = VipRelease { to: name(to), term };
        node.log.push((term, Some(release)));
        let length = node.log.len();
        node.hand_over = Some(HandOver::Releasing { to, length });
        node.beat_at = node.origin; // at once
    }

    fn tick(&mut self, id: usize) {
        let now = self.clock(id);
        let next = 8 + self.random.random_range(0..5);
        self.add(self.now + next, id, Happens::Timer);
        let node = &mut self.nodes[id];
        if node.role == Role::Leader {
            if now >= node.beat_at && !node.leases.has_abdicated(node.term) {
                node.beat_at = now + Duration::from_millis(HEARTBEAT);
                let message = Message::Heartbeat {
                    term: node.term,
                    sent: now,
                    log: node.log.clone(),
                    committed: node.committed,
                };
                self.send_all(id, &message);
            }
            return self.go_on_with_hand_over(id);
        }
        let silent = now >= node.heard + node.refusal + node.patience;
        let forgets = self.defect == Defect::ForgetsItsPromise;
        let free = self.may_vote(id, now, forgets);
        if silent && free {
            self.campaign(id, false);
        }
    }

    fn may_vote(&self, id: usize, now: Instant, by_transfer: bool) -> bool {
        let node = &self.nodes[id];
        let promised = node.promise.left(now).is_some() || self.leads_with_a_quorum(id, now);
        let bound = promised && self.defect != Defect::BreaksPromises;
        node.gate.at(now) == Gate::Open && (by_transfer || !bound)
    }

    fn leads_with_a_quorum(&self, id: usize, now: Instant) -> bool {
        let node = &self.nodes[id];
        let acked = self.quorum_acked(id);
        node.role == Role::Leader && acked.is_some_and(|at| now < at + node.refusal)
    }

    fn campaign(&mut self, id: usize, by_transfer: bool) {
        let now = self.clock(id);
        let patience = Duration::from_millis(self.random.random_range(0..200));
        let node = &mut self.nodes[id];
        node.term += 1;
        node.voted = Some(id);
        node.role = Role::Candidate { by_transfer };
        (node.leader, node.votes, node.heard, node.patience) = (None, 1, now, patience);
        node.hand_over = None;
        let message = Message::Vote {
            term: node.term,
            by_transfer,
            last: last_of(&node.log),
        };
        self.send_all(id, &message);
    }

    /// A higher term ends whatever this node was.
    fn follow(&mut self, id: usize, term: u64) {
        let node = &mut self.nodes[id];
        if term > node.term {
            node.term = term;
            node.voted = None;
            (node.role, node.leader, node.hand_over) = (Role::Follower, None, None);
            node.acked.clear();
        }
    }

    fn take(&mut self, id: usize, from: usize, message: Message) -> Result<(), TwoHolders> {
        let now = self.clock(id);
        match message {
            Message::Heartbeat {
                term,
                sent,
                log,
                committed,
            } => {
                let node = &mut self.nodes[id];
                if term < node.term {
                    return Ok(());
                }
                node.promise.renew(now, node.refusal);
                self.follow(id, term);
                let node = &mut self.nodes[id];
                node.role = Role::Follower;
                (node.leader, node.heard) = (Some(from), now);
                // Heartbeats overtake each other; one term's log only grows.
                if log.len() >= node.log.len() || last_of(&log).0 != last_of(&node.log).0 {
                    node.log = log;
                }
                node.committed = node.committed.max(committed.min(node.log.len()));
                let answer = Message::Acknowledged {
                    term,
                    sent,
                    stated: node.promise.stated(),
                    length: node.log.len(),
                };
                self.send(id, from, answer);
            }
            Message::Acknowledged {
                term,
                sent,
                stated,
                length,
            } => self.acknowledged(id, from, (term, sent, stated, length)),
            Message::Vote {
                term,
                by_transfer,
                last,
            } => {
                let node = &self.nodes[id];
                if term < node.term || !self.may_vote(id, now, by_transfer) {
                    return Ok(());
                }
                self.follow(id, term);
                let node = &mut self.nodes[id];
                let free = node.voted.is_none_or(|voted| voted == from);
                if free && node.role == Role::Follower && last >= last_of(&node.log) {
                    node.voted = Some(from);
                    node.heard = now;
                    self.send(id, from, Message::Voted { term });
                }
            }
            Message::Voted { term } => self.voted(id, term),
            Message::Offer { term } => {
                let number = self.random.random();
                self.nodes[id].offered = Some((number, from, term, now));
                self.send(id, from, Message::Noted { term, number });
            }
            Message::Noted { term, number } => self.grant(id, from, term, number)?,
            Message::Granted {
                term,
                number,
                lasts,
            } => {
                let node = &mut self.nodes[id];
                if let Some((noted, by, of, at)) = node.offered.take()
                    && (noted, by, of) == (number, from, term)
                    && node.term == term
                    && node.leader == Some(from)
                {
                    let until = at + lasts;
                    node.leases.take_grant(Grant { term, until }, node.term);
                }
            }
            Message::Lead { term } => {
                let node = &self.nodes[id];
                if node.term == term && node.gate.at(now) == Gate::Open {
                    self.campaign(id, true);
                }
            }
        }
        Ok(())
    }

    fn acknowledged(
        &mut self,
        id: usize,
        from: usize,
        (term, sent, stated, length): (u64, Instant, Duration, usize),
    ) {
        let now = self.clock(id);
        let quorum = self.quorum();
        let from_receipt = self.defect == Defect::LeaseFromReceipt;
        let node = &mut self.nodes[id];
        if node.role != Role::Leader || node.term != term {
            return;
        }
        let stalled = now < node.stalled;
        let sent = if from_receipt { now } else { sent };
        let known = node.acked.get(&from).copied();
        let (at, said) = match known {
            Some((at, said, _)) if at > sent => (at, said),
            _ => (sent, stated),
        };
        let length = known.map_or(length, |(_, _, before)| before.max(length));
        node.acked.insert(from, (at, said, length));
        for committed in (node.committed + 1..=node.log.len()).rev() {
            let mine = node.log.get(committed - 1).is_some_and(|e| e.0 == term);
            let others = node.acked.values().filter(|(_, _, l)| *l >= committed);
            if !stalled && mine && others.count() + 1 >= quorum {
                node.committed = committed;
                break;
            }
        }
    }

    fn voted(&mut self, id: usize, term: u64) {
        let quorum = self.quorum();
        let stall = match self.random.random_range(0..4) {
            0 => self.random.random_range(100..500),
            _ => 0,
        };
        let now = self.clock(id);
        let node = &mut self.nodes[id];
        if node.term != term || !matches!(node.role, Role::Candidate { .. }) {
            return;
        }
        node.votes += 1;
        if node.votes >= quorum {
            node.role = Role::Leader;
            node.leader = Some(id);
            node.stalled = now + Duration::from_millis(stall);
            node.acked.clear();
            node.log.push((term, None));
            node.beat_at = node.origin;
        }
    }

    fn quorum_acked(&self, id: usize) -> Option<Instant> {
        let node = &self.nodes[id];
        let mut times: Vec<Instant> = node.acked.values().map(|(at, _, _)| *at).collect();
        times.sort();
        let needed = self.quorum() - 1;
        times.len().checked_sub(needed).map(|at| times[at])
    }

    fn standing(&self, id: usize) -> Standing {
        let node = &self.nodes[id];
        let acked = self.quorum_acked(id);
        let applied = node.log.get(..node.committed).unwrap_or_default();
        let others = node.acked.values();
        let stated = others.map(|(at, stated, _)| (Some(*at), Some(*stated)));
        let refusal = match acked {
            Some(acked) => smallest_refusal(node.refusal, acked, stated),
            None => Some(node.refusal),
        };
        Standing {
            term: node.term,
            leader: node.leader.map(name),
            leading: node.role == Role::Leader,
            applied_term: applied.last().map(|e| e.0),
            release: applied.iter().rev().find_map(|e| e.1),
            refusal,
            quorum_acked: acked,
            sole_voter: false,
            running: true,
        }
    }

    fn go_on_with_hand_over(&mut self, id: usize) {
        let now = self.clock(id);
        let node = &mut self.nodes[id];
        let term = node.term;
        match node.hand_over {
            Some(HandOver::Releasing { to, length }) if node.committed >= length => {
                let until = now + Duration::from_millis(100);
                node.hand_over = Some(HandOver::Offering { to, until });
                self.send(id, to, Message::Offer { term });
            }
            Some(HandOver::Offering { to, until }) if now >= until => {
                node.leases.abdicate(term);
                let (until, offer) = (now, None);
                node.hand_over = Some(HandOver::Granting { to, until, offer });
            }
            Some(HandOver::Granting { to, until, .. }) if now >= until => {
                self.end_hand_over(id, to)
            }
            _ => {}
        }
    }

    /// Lets the heir lead, once nothing here relies on the lease any more.
    fn end_hand_over(&mut self, id: usize, to: usize) {
        let (now, term) = (self.clock(id), self.nodes[id].term);
        if self.nodes[id].released >= term || self.lapsed(id, now) {
            self.nodes[id].hand_over = None;
            self.send(id, to, Message::Lead { term });
        }
    }

    fn lapsed(&mut self, id: usize, now: Instant) -> bool {
        let node = &mut self.nodes[id];
        let lapses = node.leases.abdicate(node.term);
        lapses.is_none_or(|at| now >= at)
    }

    /// The heir noted the time: the lease is given up, then what is left of it granted.
    fn grant(&mut self, id: usize, from: usize, term: u64, number: u64) -> Result<(), TwoHolders> {
        let now = self.clock(id);
        let node = &mut self.nodes[id];
        let Some(HandOver::Offering { to, .. }) = node.hand_over else {
            return Ok(());
        };
        if to != from || node.term != term {
            return Ok(());
        }
        let lapses = node.leases.abdicate(term);
        let left = lapses.and_then(|at| at.checked_duration_since(now));
        let until = now + Duration::from_millis(self.random.random_range(1..20));
        let offer = left.map(|left| (number, left));
        let node = &mut self.nodes[id];
        node.hand_over = Some(HandOver::Granting { to, until, offer });
        self.settle(id)
    }

    /// Grants what was left of a lease once nothing here relies on it any more.
    fn grant_if_released(&mut self, id: usize) {
        let node = &mut self.nodes[id];
        let term = node.term;
        if let Some(HandOver::Granting { to, offer, .. }) = &mut node.hand_over
            && node.released >= term
            && let Some((number, left)) = offer.take()
        {
            let (to, lasts) = (*to, left * 9 / 10);
            let message = Message::Granted {
                term,
                number,
                lasts,
            };
            self.send(id, to, message);
        }
    }

    /// Tells the machine where the node stands, and does what it says.
    fn settle(&mut self, id: usize) -> Result<(), TwoHolders> {
        let now = self.clock(id);
        let standing = self.standing(id);
        let node = &mut self.nodes[id];
        let leadership: Leadership = node.leases.observe(&standing, now);
        node.machine.handle(Event::Leadership(leadership), now);
        while let Some(action) = self.nodes[id].machine.poll_action() {
            let answer = self.carry_out(id, action, now)?;
            if let Some(answer) = answer {
                self.nodes[id].machine.handle(answer, now);
            }
        }
        self.report_release(id, &leadership);
        self.grant_if_released(id);
        Ok(())
    }

    fn report_release(&mut self, id: usize, leadership: &Leadership) {
        let node = &mut self.nodes[id];
        let lost = leadership.lease_until.is_none();
        if !lost {
            node.leased = leadership.term;
        }
        let released = match self.defect {
            Defect::LostIsGivenUp if lost && node.machine.is_withdrawn() => Some(node.leased),
            _ => node.machine.released(),
        };
        node.released = node.released.max(released.unwrap_or(0));
    }

    fn carry_out(
        &mut self,
        id: usize,
        action: Action,
        now: Instant,
    ) -> Result<Option<Event>, TwoHolders> {
        let defect = self.defect;
        let node = &mut self.nodes[id];
        Ok(match action {
            Action::Add(target) | Action::Renew(target) => Some(Event::Added(target)),
            Action::Remove(target) => {
                let takes = match self.random.random_range(0..4) {
                    0 => self.random.random_range(1..60),
                    _ => 0,
                };
                if takes == 0 {
                    node.permitted = None;
                    return Ok(Some(Event::Removed(target)));
                }
                let life = node.life;
                self.add(self.now + takes, id, Happens::Removed { life });
                None
            }
            Action::Silence(_) => {
                node.permitted = None;
                None
            }
            Action::Permit {
                targets,
                lease_until,
            } => {
                let until = match defect {
                    Defect::NoFence => Some(now + Duration::from_secs(3)),
                    _ => lease_until.checked_sub(RESERVE),
                };
                node.permitted = until.filter(|until| *until > now);
                if node.permitted.is_some() {
                    self.expect_alone(id)?;
                }
                Some(Event::Permitted(targets))
            }
            Action::Announce(_) | Action::Serve(_) | Action::EndServe(_) => None,
        })
    }

    fn expect_alone(&mut self, id: usize) -> Result<(), TwoHolders> {
        self.permissions += 1;
        if self.holders.last() != Some(&id) {
            self.holders.push(id);
        }
        for other in 0..self.nodes.len() {
            let now = self.clock(other);
            if other != id && self.nodes[other].permitted.is_some_and(|until| now < until) {
                let (seed, at) = (self.seed, self.now);
                return Err(TwoHolders(format!(
                    "seed {seed}: at {at} ms node {} was permitted while node {} still was (PONTOON_SEED={seed})",
                    id + 1,
                    other + 1
                )));
            }
        }
        Ok(())
    }
}

/// Term and length of a log: the measure of how new it is.
fn last_of(log: &[Entry]) -> (u64, usize) {
    (log.last().map_or(0, |entry| entry.0), log.len())
}

fn number_in(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn never_two_holders() {
    let seeds = match number_in("PONTOON_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number_in("PONTOON_SEEDS").unwrap_or(SEEDS),
    };
    let alone = seeds.end - seeds.start == 1;
    let (mut permissions, mut moves) = (0, 0);
    for seed in seeds {
        let mut world = World::new(seed, Defect::None);
        if let Err(TwoHolders(what)) = world.run() {
            panic!("two holders: {what}");
        }
        permissions += world.permissions;
        moves += world.holders.len().saturating_sub(1);
    }
    println!("{permissions} permissions, {moves} moves");
    // A simulation in which nothing happens shows nothing.
    assert!(
        alone || (permissions > 10_000 && moves > 200),
        "{permissions} permissions, {moves} moves"
    );
}

#[test]
fn what_makes_two_holders_is_noticed() {
    for defect in [
        Defect::NoFence,
        Defect::VotesAtOnce,
        Defect::BreaksPromises,
        Defect::ForgetsItsPromise,
        Defect::BareTransfer,
        Defect::LeaseFromReceipt,
        Defect::LostIsGivenUp,
    ] {
        let found = (0..4 * SEEDS).find(|seed| World::new(*seed, defect).run().is_err());
        println!("{defect:?}: found by seed {found:?}");
        assert!(found.is_some(), "{defect:?} was not noticed");
    }
}
