//! Decides, for every VIP, whether this node holds it: events and the time in, actions and the next deadline out.
//!
//! The right to hold is a fresh lease: "leader" alone permits nothing. The machine withdraws `margin` before the lease lapses,
//! so that a timer that fires late and a kernel call that takes its time still end before another node may claim. It also
//! withdraws when it sees a higher term (even if this node leads that one too: somebody else may have held the address in
//! between), when the VIP leaves the snapshot and at stop.
//!
//! Actions are carried out in the order in which they were given; each `Add`, `Renew` and `Remove` is answered by one event. The machine never
//! blocks, never reads a clock, and assumes nothing about an address between its request and the answer: an address that
//! *may* be on the interface is removed.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::model::{label::Label, leadership::Leadership, vip::Vip};

/// A VIP on a logical interface. A VIP that moves to another interface is another target.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    pub address: IpAddr,
    pub interface: Label,
}

impl From<&Vip> for Target {
    fn from(vip: &Vip) -> Self {
        Self {
            address: vip.address,
            interface: vip.interface.clone(),
        }
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// This node's standing changed, or its lease was renewed.
    Leadership(Leadership),
    /// The VIPs of the snapshot, all of them.
    Configured(BTreeSet<Target>),
    /// The address is on the interface: the answer to `Add` and `Renew`.
    Added(Target),
    /// `Add` or `Renew` failed; nothing is known about the address.
    AddFailed(Target),
    /// The address is not on the interface: the answer to `Remove`.
    Removed(Target),
    /// `Remove` failed; the address may still be there.
    RemoveFailed(Target),
    /// Somebody else took the address off the interface.
    Missing(Target),
    /// The device behind a logical interface appeared, or its carrier came back.
    LinkReady(Label),
    /// No more claims; what is held is withdrawn.
    Stop,
    /// Time passed.
    Deadline,
}

/// What to do. The driver checks the lease once more right before `Add` and before each frame of `Announce`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Put the address on the interface, to expire by itself unless renewed.
    Add(Target),
    /// Put off the expiry; add the address again if it is not there.
    Renew(Target),
    /// Take the address off; that it was not there is no failure.
    Remove(Target),
    /// Send one announcement.
    Announce(Target),
}

/// Why a VIP is not, or no longer, held: for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Stopping,
    /// It is not in the snapshot, or on another interface there.
    NotConfigured,
    /// This node has no lease.
    NotLeading,
    /// The lease was not renewed in time: a quorum is slow or out of reach, or this node is.
    LeaseRunsOut,
    /// Another term began, or the address could not be kept on its device.
    ToBeTakenAnew,
}

impl Reason {
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Stopping => "the node stops",
            Reason::NotConfigured => "it is not configured any more",
            Reason::NotLeading => "this node does not lead",
            Reason::LeaseRunsOut => "the lease was not renewed in time",
            Reason::ToBeTakenAnew => "it is to be taken anew",
        }
    }
}

/// Times that the machine keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How long before the lease lapses the address goes. Covers a late timer (1 ms granularity, plus the wait for a
    /// processor) and the kernel calls of all VIPs (well under 1 ms each).
    pub margin: Duration,
    /// Between renewals of the expiry that the kernel keeps; well below that expiry.
    pub renew_every: Duration,
    /// Between the first announcements.
    pub burst_gap: Duration,
    /// How many make the burst.
    pub burst: u32,
    /// After the burst gaps double from this...
    pub backoff_from: Duration,
    /// ...up to this, and stay there.
    pub announce_every: Duration,
    /// First wait after a failure; it doubles up to `retry_at_most`.
    pub retry_from: Duration,
    pub retry_at_most: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            margin: Duration::from_millis(30),
            renew_every: Duration::from_secs(1),
            burst_gap: Duration::from_millis(20),
            burst: 5,
            backoff_from: Duration::from_millis(100),
            announce_every: Duration::from_secs(10),
            retry_from: Duration::from_millis(50),
            retry_at_most: Duration::from_secs(5),
        }
    }
}

/// Where a VIP stands on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not on the interface. Not claimed before `not_before`.
    Withdrawn { not_before: Option<Instant> },
    /// `Add` was asked for and not answered.
    Adding,
    /// On the interface.
    Held {
        since: Instant,
        renew_at: Instant,
        announce_at: Instant,
        /// Announcements of this run.
        announced: u32,
    },
    /// `Remove` was asked for and not answered.
    Removing,
    /// `Remove` failed.
    Stuck { retry_at: Instant },
}

/// All VIPs of this node.
#[derive(Debug)]
pub struct Machine {
    timing: Timing,
    leadership: Leadership,
    /// The last term in which a lease was given.
    leased: Option<u64>,
    stopping: bool,
    entries: BTreeMap<Target, Entry>,
    actions: VecDeque<Action>,
}

impl Machine {
    pub fn new(timing: Timing) -> Self {
        Self {
            timing,
            leadership: Leadership::default(),
            leased: None,
            stopping: false,
            entries: BTreeMap::new(),
            actions: VecDeque::new(),
        }
    }

    /// Takes in an event. Afterwards drain `poll_action`, then wait until `next_deadline`.
    pub fn handle(&mut self, event: Event, now: Instant) {
        match event {
            Event::Leadership(leadership) => self.handle_leadership(leadership),
            Event::Configured(targets) => self.handle_configured(targets),
            Event::Added(target) => self.handle_answer(&target, Answer::Added, now),
            Event::AddFailed(target) => self.handle_answer(&target, Answer::AddFailed, now),
            Event::Removed(target) => self.handle_answer(&target, Answer::Removed, now),
            Event::RemoveFailed(target) => self.handle_answer(&target, Answer::RemoveFailed, now),
            Event::Missing(target) => self.handle_answer(&target, Answer::Missing, now),
            Event::LinkReady(interface) => self.handle_link_ready(&interface, now),
            Event::Stop => self.stopping = true,
            Event::Deadline => {}
        }
        self.settle(now);
    }

    /// The next thing to do, in order.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When to call `handle(Deadline)` if nothing else happens.
    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let claimable = self.entitled(now);
        self.entries
            .values()
            .filter_map(|entry| self.entry_deadline(entry, claimable))
            .min()
    }

    /// Whether this node may hold VIPs at `now`: it leads, its lease is fresh for longer than the margin, it is not stopping.
    pub fn entitled(&self, now: Instant) -> bool {
        !self.stopping && self.withdraw_at().is_some_and(|at| now < at)
    }

    /// Whether an announcement of `target` may leave at `now`.
    pub fn may_announce(&self, target: &Target, now: Instant) -> bool {
        self.entitled(now) && matches!(self.phase(target), Some(Phase::Held { .. }))
    }

    pub fn phase(&self, target: &Target) -> Option<Phase> {
        self.entries.get(target).map(|entry| entry.phase)
    }

    /// Why `target` is being withdrawn at `now`.
    pub fn reason(&self, target: &Target, now: Instant) -> Reason {
        let wanted = self.entries.get(target).is_some_and(|entry| entry.wanted);
        match self.leadership.lease_until {
            _ if self.stopping => Reason::Stopping,
            _ if !wanted => Reason::NotConfigured,
            None => Reason::NotLeading,
            Some(_) if !self.entitled(now) => Reason::LeaseRunsOut,
            Some(_) => Reason::ToBeTakenAnew,
        }
    }

    /// Every VIP of the snapshot, and those that left it but are not withdrawn yet.
    pub fn phases(&self) -> impl Iterator<Item = (&Target, Phase)> {
        self.entries
            .iter()
            .map(|(target, entry)| (target, entry.phase))
    }

    /// Nothing of ours can be on an interface.
    pub fn is_withdrawn(&self) -> bool {
        self.entries
            .values()
            .all(|entry| matches!(entry.phase, Phase::Withdrawn { .. }))
    }

    /// The last term under whose lease VIPs could be held, once that lease was taken back (not merely lapsed) or its term is
    /// over, and none is held any more: leadership may then be handed over at once.
    pub fn released(&self) -> Option<u64> {
        let term = self.leased?;
        let taken_back =
            self.stopping || self.leadership.term > term || self.leadership.lease_until.is_none();
        (taken_back && self.is_withdrawn()).then_some(term)
    }

    /// A signal of a term older than one already seen is late and says nothing.
    fn handle_leadership(&mut self, leadership: Leadership) {
        if leadership.term < self.leadership.term {
            return;
        }
        let higher_term = leadership.term > self.leadership.term;
        self.leadership = leadership;
        if leadership.lease_until.is_some() {
            self.leased = Some(leadership.term);
        }
        if higher_term {
            self.withdraw_all();
        }
    }

    fn handle_configured(&mut self, targets: BTreeSet<Target>) {
        for (target, entry) in &mut self.entries {
            entry.wanted = targets.contains(target);
        }
        for target in targets {
            self.entries.entry(target).or_insert(Entry {
                phase: Phase::Withdrawn { not_before: None },
                wanted: true,
                failures: 0,
            });
        }
    }

    fn handle_answer(&mut self, target: &Target, answer: Answer, now: Instant) {
        if let Some(entry) = self.entries.get_mut(target) {
            entry.handle(target, answer, now, &self.timing, &mut self.actions);
        }
    }

    fn handle_link_ready(&mut self, interface: &Label, now: Instant) {
        for (target, entry) in &mut self.entries {
            if target.interface == *interface {
                entry.handle_link_ready(now);
            }
        }
    }

    /// Brings every VIP to where the right to hold says it belongs.
    fn settle(&mut self, now: Instant) {
        let entitled = self.entitled(now);
        let (timing, actions) = (self.timing, &mut self.actions);
        // Withdrawals first: a VIP that changes its interface leaves the old one before it is on the new one.
        for (target, entry) in &mut self.entries {
            if !(entitled && entry.wanted) {
                entry.release(target, now, actions);
            }
        }
        for (target, entry) in &mut self.entries {
            if entitled && entry.wanted {
                entry.advance(target, now, &timing, actions);
            }
        }
        self.entries
            .retain(|_, entry| entry.wanted || !matches!(entry.phase, Phase::Withdrawn { .. }));
    }

    fn withdraw_all(&mut self) {
        for (target, entry) in &mut self.entries {
            if matches!(entry.phase, Phase::Adding | Phase::Held { .. }) {
                entry.remove(target, &mut self.actions);
            }
        }
    }

    /// When what is held has to go.
    fn withdraw_at(&self) -> Option<Instant> {
        self.leadership.lease_until?.checked_sub(self.timing.margin)
    }

    fn entry_deadline(&self, entry: &Entry, claimable: bool) -> Option<Instant> {
        match entry.phase {
            Phase::Withdrawn { not_before } => not_before.filter(|_| claimable && entry.wanted),
            Phase::Adding => self.withdraw_at(),
            Phase::Held {
                renew_at,
                announce_at,
                ..
            } => [Some(renew_at), Some(announce_at), self.withdraw_at()]
                .into_iter()
                .flatten()
                .min(),
            Phase::Removing => None,
            Phase::Stuck { retry_at } => Some(retry_at),
        }
    }
}

/// One VIP.
#[derive(Clone, Debug)]
struct Entry {
    phase: Phase,
    /// In the snapshot.
    wanted: bool,
    /// Failures since the address was last on the interface.
    failures: u32,
}

/// What became of an address: an event about one target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Added,
    AddFailed,
    Removed,
    RemoveFailed,
    Missing,
}

impl Entry {
    /// The transition table. Pairs that do nothing are late or doubled answers.
    fn handle(
        &mut self,
        target: &Target,
        answer: Answer,
        now: Instant,
        timing: &Timing,
        actions: &mut VecDeque<Action>,
    ) {
        use Phase::{Adding, Held, Removing, Stuck, Withdrawn};
        match (self.phase, answer) {
            (Adding, Answer::Added) => self.hold(now, timing),
            (Held { .. }, Answer::Added) => {} // a renewal
            // Nobody asked for it, or it was asked for before the right was lost: it must not stay.
            (Withdrawn { .. } | Stuck { .. }, Answer::Added) => self.remove(target, actions),
            (Removing, Answer::Added) => {} // the answer to the `Remove` behind it is still to come

            // It may be there all the same.
            (Adding | Held { .. }, Answer::AddFailed) => {
                self.failures = self.failures.saturating_add(1);
                self.remove(target, actions);
            }
            (Withdrawn { .. } | Removing | Stuck { .. }, Answer::AddFailed) => {}

            (Removing | Stuck { .. }, Answer::Removed) => {
                let wait = (self.failures > 0).then(|| timing.retry_after(self.failures));
                self.phase = Withdrawn {
                    not_before: wait.map(|wait| now + wait),
                };
            }
            (Withdrawn { .. } | Adding, Answer::Removed) => {}
            // Claimed again at once, if the lease still allows it: `settle` decides.
            (Held { .. }, Answer::Removed | Answer::Missing) => {
                self.phase = Withdrawn { not_before: None };
            }

            (Removing, Answer::RemoveFailed) => {
                self.failures = self.failures.saturating_add(1);
                self.phase = Stuck {
                    retry_at: now + timing.retry_after(self.failures),
                };
            }
            (Withdrawn { .. } | Adding | Held { .. } | Stuck { .. }, Answer::RemoveFailed) => {}
            (Withdrawn { .. } | Adding | Removing | Stuck { .. }, Answer::Missing) => {}
        }
    }

    fn handle_link_ready(&mut self, now: Instant) {
        match &mut self.phase {
            Phase::Withdrawn { not_before } => {
                *not_before = None;
                self.failures = 0;
            }
            // An interface that was down may have lost its addresses: the renewal brings them back.
            Phase::Held {
                renew_at,
                announce_at,
                announced,
                ..
            } => {
                *renew_at = now;
                *announce_at = now;
                *announced = 0;
            }
            Phase::Adding | Phase::Removing | Phase::Stuck { .. } => {}
        }
    }

    /// One step towards being held; called while the node is entitled and the VIP wanted.
    fn advance(
        &mut self,
        target: &Target,
        now: Instant,
        timing: &Timing,
        actions: &mut VecDeque<Action>,
    ) {
        match &mut self.phase {
            Phase::Withdrawn { not_before } if not_before.is_none_or(|at| at <= now) => {
                actions.push_back(Action::Add(target.clone()));
                self.phase = Phase::Adding;
            }
            Phase::Held {
                renew_at,
                announce_at,
                announced,
                ..
            } => {
                if *renew_at <= now {
                    actions.push_back(Action::Renew(target.clone()));
                    *renew_at = now + timing.renew_every;
                }
                if *announce_at <= now {
                    actions.push_back(Action::Announce(target.clone()));
                    *announced = announced.saturating_add(1);
                    *announce_at = now + timing.gap_after_announcement(*announced);
                }
            }
            Phase::Stuck { retry_at } if *retry_at <= now => self.remove(target, actions),
            Phase::Withdrawn { .. } | Phase::Adding | Phase::Removing | Phase::Stuck { .. } => {}
        }
    }

    /// One step towards being withdrawn; called while the node may not hold the VIP.
    fn release(&mut self, target: &Target, now: Instant, actions: &mut VecDeque<Action>) {
        match self.phase {
            Phase::Adding | Phase::Held { .. } => self.remove(target, actions),
            Phase::Stuck { retry_at } if retry_at <= now => self.remove(target, actions),
            Phase::Withdrawn { .. } | Phase::Removing | Phase::Stuck { .. } => {}
        }
    }

    fn hold(&mut self, now: Instant, timing: &Timing) {
        self.failures = 0;
        self.phase = Phase::Held {
            since: now,
            renew_at: now + timing.renew_every,
            announce_at: now,
            announced: 0,
        };
    }

    fn remove(&mut self, target: &Target, actions: &mut VecDeque<Action>) {
        actions.push_back(Action::Remove(target.clone()));
        self.phase = Phase::Removing;
    }
}

impl Timing {
    /// The wait before the next try, after `failures` (at least one) in a row.
    fn retry_after(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(16);
        (self.retry_from * (1 << doublings)).min(self.retry_at_most)
    }

    /// The gap between announcement number `sent` (from one) and the next.
    fn gap_after_announcement(&self, sent: u32) -> Duration {
        if sent < self.burst {
            return self.burst_gap;
        }
        let doublings = (sent - self.burst).min(16);
        (self.backoff_from * (1 << doublings)).min(self.announce_every)
    }
}

#[cfg(test)]
mod tests;
