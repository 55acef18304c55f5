//! Decides, for every VIP, whether this node holds it: events and the time in, actions and the next deadline out.
//!
//! The right to hold is a fresh lease: "leader" alone permits nothing. The machine lets go `margin` before the lease lapses,
//! so that a timer that fires late and a kernel call that takes its time still end before another node may claim. It also
//! withdraws when it sees a higher term (even if this node leads that one too: somebody else may have held the address in
//! between), when the VIP leaves the snapshot, when the lease is taken back and at stop.
//!
//! Letting go means: where a fence stands, the address stays and is *silent*, its permission in the kernel over, until the lease is
//! renewed in the same term; sessions that survive the gap live on. Where there is no fence, the address goes. Where a fence
//! has to stand and does not, nothing is claimed and what is held is withdrawn.
//!
//! **Giving away by plan** (`Leadership::heir`). The connections that this node has through a VIP go on: before the address
//! leaves the device, `Serve` puts it on `lo` and permits the answers, and goes on doing so until the connections have ended, the
//! deadline passes or the VIP comes back. That is apart from `Phase`: a VIP that is served so is withdrawn all the same.
//!
//! Actions are carried out in the order in which they were given, but what permits, silences or renews comes before each `Add` that was not
//! begun yet, and is done while an `Add` or `Remove` takes its time (`queue`): neither must keep what is held already from being heard.
//! Each `Add` and `Remove` is answered by one event, but for an `Add` that was taken back: the `Remove` behind it is. Each `Renew` is
//! answered by one at most: later, and not after the `Remove` behind it. The machine never blocks, never reads a clock, and assumes
//! nothing about an address between its request and the answer: an address that *may* be on the interface is removed.

mod queue;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use queue::Queue;

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
    /// What became of the fence on a logical interface.
    Fenced(Label, Fencing),
    /// The frames of these VIPs are permitted: the answer to `Permit`.
    Permitted(BTreeSet<Target>),
    /// They are not, or not for longer than before.
    PermitFailed(BTreeSet<Target>),
    /// These are not to be claimed: it is not known yet whether a foreign host has them, or one has. What is held stays.
    Withheld(BTreeSet<Target>),
    /// There are connections through a VIP that is served, as far as was looked.
    Busy(Target),
    /// No connection is left through a VIP that is served, or it cannot be served.
    Quiet {
        target: Target,
        /// What belongs to an earlier holder still is passed on to it.
        relays: bool,
    },
    /// No more claims; what is held is withdrawn. What is served goes on being served.
    Stop,
    /// Nothing is served any more.
    End,
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
    /// Let the kernel pass the frames of all of these until `lease_until`, and not an instant longer.
    Permit {
        targets: BTreeSet<Target>,
        lease_until: Instant,
    },
    /// Let the kernel pass the frames of this one no more. No answer.
    Silence(Target),
    /// Answer for what the holder passes on, for `SERVE_LASTS` from now: the VIP on `lo`, its answers permitted. `Busy` or `Quiet`
    /// follow when it was looked whether there are connections: not of the first one, unless it cannot be done.
    Serve(Target),
    /// No more of that. No answer.
    EndServe(Target),
}

/// How long the kernel lets a VIP be served after the last `Serve`.
pub const SERVE_LASTS: Duration = Duration::from_secs(2);

/// Whether frames of a VIP on an interface are held back by the kernel when the lease is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fencing {
    /// They are not, and need not be.
    Unfenced,
    /// They have to be and are not: nothing may be held there.
    Down,
    /// They are; the rules were read back.
    Standing,
}

/// Why a VIP is not, or no longer, held: for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Stopping,
    /// It is not in the snapshot, or on another interface there.
    NotConfigured,
    /// The fence has to stand on its interface, and does not.
    NoFence,
    /// It was given to another node, by plan.
    GivenAway,
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
            Reason::NoFence => "the fence does not stand",
            Reason::GivenAway => "it was handed over",
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
    /// A lease that was put off by less does not renew the permissions.
    pub permit_step: Duration,
    /// Between tries to permit.
    pub permit_again: Duration,
    /// Between renewals of what is served; well below `SERVE_LASTS`.
    pub serve_every: Duration,
    /// How long a node without connections of its own goes on passing on those of an earlier holder, until the present one has heard
    /// that it need not ask this node any more.
    pub relay_on: Duration,
    /// How long connections through a VIP that was given away may last; zero: they are not kept.
    pub second_chance: Duration,
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
            permit_step: Duration::from_millis(5),
            permit_again: Duration::from_millis(10),
            serve_every: Duration::from_millis(500),
            relay_on: Duration::from_secs(3),
            second_chance: Duration::from_secs(600),
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
    /// On the fenced interface; the first `Permit` was asked for and not answered.
    Permitting { renew_at: Instant },
    /// On the fenced interface, and nobody hears it. Not permitted before `permit_at`.
    Silent {
        renew_at: Instant,
        permit_at: Option<Instant>,
    },
    /// On the interface, and heard.
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
    /// Where nothing was said of the fence.
    unless_told: Fencing,
    fencing: BTreeMap<Label, Fencing>,
    /// Until when permissions were asked for.
    permitted_until: Option<Instant>,
    entries: BTreeMap<Target, Entry>,
    withheld: BTreeSet<Target>,
    actions: Queue,
}

impl Machine {
    /// `unless_told`: how it stands with an interface of whose fence nothing was said.
    pub fn new(timing: Timing, unless_told: Fencing) -> Self {
        Self {
            timing,
            leadership: Leadership::default(),
            leased: None,
            stopping: false,
            unless_told,
            fencing: BTreeMap::new(),
            permitted_until: None,
            entries: BTreeMap::new(),
            withheld: BTreeSet::new(),
            actions: Queue::default(),
        }
    }

    /// Takes in an event. Afterwards drain `poll_action`, then wait until `next_deadline`.
    pub fn handle(&mut self, event: Event, now: Instant) {
        self.handle_all([event], now);
    }

    /// Takes in several, in order. What follows from them is decided once, so that the answers about a thousand VIPs cost no thousand
    /// looks at each.
    pub fn handle_all(&mut self, events: impl IntoIterator<Item = Event>, now: Instant) {
        for event in events {
            self.take_in(event, now);
        }
        self.settle(now);
    }

    fn take_in(&mut self, event: Event, now: Instant) {
        match event {
            Event::Leadership(leadership) => self.handle_leadership(leadership, now),
            Event::Configured(targets) => self.handle_configured(targets),
            Event::Added(target) => self.handle_answer(&target, Answer::Added, now),
            Event::AddFailed(target) => self.handle_answer(&target, Answer::AddFailed, now),
            Event::Removed(target) => self.handle_answer(&target, Answer::Removed, now),
            Event::RemoveFailed(target) => self.handle_answer(&target, Answer::RemoveFailed, now),
            Event::Missing(target) => self.handle_answer(&target, Answer::Missing, now),
            Event::LinkReady(interface) => self.handle_link_ready(&interface, now),
            Event::Fenced(interface, fencing) => {
                self.fencing.insert(interface, fencing);
            }
            Event::Permitted(targets) => self.handle_permit(&targets, Answer::Permitted, now),
            Event::PermitFailed(targets) => {
                self.permitted_until = None;
                self.handle_permit(&targets, Answer::PermitFailed, now);
            }
            Event::Withheld(targets) => self.withheld = targets,
            Event::Busy(target) => self.handle_busy(&target),
            Event::Quiet { target, relays } => self.handle_quiet(&target, relays, now),
            Event::Stop => self.stopping = true,
            Event::End => {
                self.stopping = true;
                let all: Vec<Target> = self.entries.keys().cloned().collect();
                all.iter().for_each(|target| self.end_serving(target));
            }
            Event::Deadline => {}
        }
    }

    /// What is not to be claimed, as last told.
    pub fn withheld(&self) -> &BTreeSet<Target> {
        &self.withheld
    }

    /// The next things to do, in order: more than one, but not more than `at_most`, where they are alike and are done together at less cost.
    pub fn poll_alike(&mut self, at_most: usize) -> Vec<Action> {
        let mut alike: Vec<Action> = self.poll_action().into_iter().collect();
        while alike.len() < at_most && go_together(alike.last(), self.actions.peek()) {
            alike.extend(self.poll_action());
        }
        alike
    }

    /// Whether there is anything to do.
    pub fn has_actions(&self) -> bool {
        self.actions.peek().is_some()
    }

    /// The next thing to do, in order.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop()
    }

    /// What was polled last, an `Add` or `Remove`, takes its time: until `go_on` there is nothing to do but what permits, silences or renews.
    pub fn hold_up(&mut self) {
        self.actions.hold_up();
    }

    /// That has ended.
    pub fn go_on(&mut self) {
        self.actions.go_on();
    }

    /// When to call `handle(Deadline)` if nothing else happens.
    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        self.entries
            .iter()
            .filter_map(|(target, entry)| self.entry_deadline(entry, self.may_hold(target, now)))
            .min()
    }

    /// Whether this node may hold VIPs at `now`: it leads, its lease is fresh for longer than the margin, it is not stopping.
    pub fn entitled(&self, now: Instant) -> bool {
        !self.stopping && self.withdraw_at().is_some_and(|at| now < at)
    }

    /// Whether this node is to hold VIPs: it leads with a lease, be it fresh or lapsed for a moment, and is not stopping.
    pub fn claims(&self) -> bool {
        !self.stopping && self.leadership.lease_until.is_some()
    }

    /// Whether `target` may be put on its interface at `now`.
    pub fn may_add(&self, target: &Target, now: Instant) -> bool {
        self.may_hold(target, now) && self.phase(target) == Some(Phase::Adding)
    }

    /// Whether the expiry of `target` may be put off at `now`. Behind a fence it may without a lease: nobody hears it.
    pub fn may_renew(&self, target: &Target, now: Instant) -> bool {
        match self.phase(target) {
            Some(Phase::Held { .. }) => self.may_hold(target, now),
            Some(Phase::Permitting { .. } | Phase::Silent { .. }) => {
                !self.stopping && self.fencing_of(target) == Fencing::Standing
            }
            _ => false,
        }
    }

    /// Whether the frames of `target` may be permitted at `now`.
    pub fn may_permit(&self, target: &Target, now: Instant) -> bool {
        let asked = matches!(
            self.phase(target),
            Some(Phase::Permitting { .. } | Phase::Held { .. })
        );
        asked && self.may_hold(target, now) && self.fencing_of(target) == Fencing::Standing
    }

    /// Whether an announcement of `target` may leave at `now`.
    pub fn may_announce(&self, target: &Target, now: Instant) -> bool {
        self.may_hold(target, now) && matches!(self.phase(target), Some(Phase::Held { .. }))
    }

    fn may_hold(&self, target: &Target, now: Instant) -> bool {
        self.entitled(now) && self.fencing_of(target) != Fencing::Down
    }

    fn fencing_of(&self, target: &Target) -> Fencing {
        let told = self.fencing.get(&target.interface);
        told.copied().unwrap_or(self.unless_told)
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
            _ if self.leadership.heir.is_some() => Reason::GivenAway,
            _ if self.fencing_of(target) == Fencing::Down => Reason::NoFence,
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

    /// The VIPs that this node answers for on behalf of their holder.
    pub fn served(&self) -> impl Iterator<Item = &Target> {
        let served = |entry: &Entry| entry.serving.is_some();
        self.entries
            .iter()
            .filter_map(move |(target, entry)| served(entry).then_some(target))
    }

    /// Those of them with connections of this node.
    pub fn carrying(&self) -> impl Iterator<Item = &Target> {
        let carries = |serving: Serving| serving.quiet_since.is_none();
        let entries = self.entries.iter();
        entries
            .filter_map(move |(target, entry)| entry.serving.is_some_and(carries).then_some(target))
    }

    /// Whether `target` may be served at `now`.
    pub fn may_serve(&self, target: &Target) -> bool {
        let serving = self
            .entries
            .get(target)
            .is_some_and(|e| e.serving.is_some());
        serving && self.fencing_of(target) == Fencing::Standing
    }

    /// The last term under whose lease VIPs could be held, once that lease was given up for good (not merely lost: it may come back) or
    /// its term is over, and none is held any more: leadership may then be handed over at once. Once said it stays true: who waits
    /// for it may hear of it late.
    pub fn released(&self) -> Option<u64> {
        let term = self.leased?;
        let given_up = self.stopping || self.leadership.term > term || self.leadership.given_up;
        (given_up && self.is_withdrawn()).then_some(term)
    }

    /// A signal of a term older than one already seen is late and says nothing.
    fn handle_leadership(&mut self, leadership: Leadership, now: Instant) {
        if leadership.term < self.leadership.term {
            return;
        }
        let before = std::mem::replace(&mut self.leadership, leadership);
        if leadership.lease_until.is_some() {
            self.leased = Some(leadership.term);
        }
        if leadership.heir.is_some() && before.heir.is_none() && before.term == leadership.term {
            self.give_away(now);
        }
        let unbroken = leadership
            .granted_in
            .is_some_and(|term| term >= before.term);
        if leadership.term > before.term && !unbroken {
            self.withdraw_all();
        }
    }

    /// Before the VIPs go: what they carry is served on.
    fn give_away(&mut self, now: Instant) {
        let lasts = self.timing.second_chance;
        let again = now + self.timing.serve_every;
        for (target, entry) in &mut self.entries {
            let there = matches!(
                entry.phase,
                Phase::Held { .. } | Phase::Permitting { .. } | Phase::Silent { .. }
            );
            let told = self.fencing.get(&target.interface);
            let fencing = told.copied().unwrap_or(self.unless_told);
            if there && entry.wanted && fencing == Fencing::Standing && !lasts.is_zero() {
                entry.serving = Some(Serving {
                    renew_at: again,
                    until: now + lasts,
                    quiet_since: None,
                });
                self.actions.push(Action::Serve(target.clone()));
            }
        }
    }

    fn handle_busy(&mut self, target: &Target) {
        let entry = self.entries.get_mut(target);
        if let Some(serving) = entry.and_then(|entry| entry.serving.as_mut()) {
            serving.quiet_since = None;
        }
    }

    fn handle_quiet(&mut self, target: &Target, relays: bool, now: Instant) {
        let entry = self.entries.get_mut(target);
        let Some(serving) = entry.and_then(|entry| entry.serving.as_mut()) else {
            return;
        };
        let since = *serving.quiet_since.get_or_insert(now);
        if !relays || now >= since + self.timing.relay_on {
            self.end_serving(target);
        }
    }

    fn end_serving(&mut self, target: &Target) {
        let entry = self.entries.get_mut(target);
        if entry.is_some_and(|entry| entry.serving.take().is_some()) {
            self.actions.push(Action::EndServe(target.clone()));
        }
    }

    /// Renews what is served, and ends what need not or may not be.
    fn serve(&mut self, now: Instant) {
        let (every, mut over) = (self.timing.serve_every, vec![]);
        for (target, entry) in &mut self.entries {
            let Some(serving) = &mut entry.serving else {
                continue;
            };
            let told = self.fencing.get(&target.interface);
            let fencing = told.copied().unwrap_or(self.unless_told);
            let held = matches!(entry.phase, Phase::Held { .. });
            if held || !entry.wanted || serving.until <= now || fencing != Fencing::Standing {
                over.push(target.clone());
            } else if serving.renew_at <= now {
                serving.renew_at = now + every;
                self.actions.push(Action::Serve(target.clone()));
            }
        }
        over.iter().for_each(|target| self.end_serving(target));
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
                serving: None,
            });
        }
    }

    fn handle_answer(&mut self, target: &Target, answer: Answer, now: Instant) {
        if let Some(entry) = self.entries.get_mut(target) {
            entry.handle(target, answer, now, &self.timing, &mut self.actions);
        }
    }

    fn handle_permit(&mut self, targets: &BTreeSet<Target>, answer: Answer, now: Instant) {
        for target in targets {
            self.handle_answer(target, answer, now);
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
        let entries = self.entries.iter();
        let places: Vec<Place> = entries
            .map(|(target, entry)| self.place_of(target, entry, now))
            .collect();
        let (timing, actions) = (self.timing, &mut self.actions);
        // Withdrawals first: a VIP that changes its interface leaves the old one before it is on the new one.
        for ((target, entry), place) in self.entries.iter_mut().zip(&places) {
            match place {
                Place::Silent => entry.fall_silent(target, now, &timing, actions),
                Place::Held { .. } => {}
                Place::Off => entry.release(target, now, actions),
            }
        }
        for ((target, entry), place) in self.entries.iter_mut().zip(&places) {
            if let Place::Held { fenced } = place {
                entry.advance(target, now, &timing, *fenced, actions);
            }
        }
        self.permit(&places, now);
        let actions = &mut self.actions;
        for ((target, entry), place) in self.entries.iter_mut().zip(&places) {
            if matches!(place, Place::Held { .. }) {
                entry.announce(target, now, &timing, actions);
            }
        }
        self.serve(now);
        self.entries
            .retain(|_, entry| entry.wanted || !matches!(entry.phase, Phase::Withdrawn { .. }));
    }

    /// Where a VIP belongs.
    fn place_of(&self, target: &Target, entry: &Entry, now: Instant) -> Place {
        let fencing = self.fencing_of(target);
        let lapsed = self.leadership.lease_until.is_some();
        let unclaimed = matches!(entry.phase, Phase::Withdrawn { .. });
        if unclaimed && self.withheld.contains(target) {
            return Place::Off;
        }
        if !entry.wanted || self.stopping || fencing == Fencing::Down {
            Place::Off
        } else if self.entitled(now) {
            let fenced = fencing == Fencing::Standing;
            Place::Held { fenced }
        } else if lapsed && fencing == Fencing::Standing {
            Place::Silent
        } else {
            Place::Off
        }
    }

    /// Asks for permissions: for all that have one when the lease was renewed, and for those that are to get one. `places`: of the entries,
    /// in order.
    fn permit(&mut self, places: &[Place], now: Instant) {
        let Some(lease_until) = self.leadership.lease_until else {
            return;
        };
        let renewed = self.permitted_until.is_none_or(|until| {
            lease_until < until || lease_until >= until + self.timing.permit_step
        });
        let mut targets = BTreeSet::new();
        for ((target, entry), place) in self.entries.iter_mut().zip(places) {
            if *place != (Place::Held { fenced: true }) {
                continue;
            }
            match entry.phase {
                Phase::Silent {
                    renew_at,
                    permit_at,
                } if permit_at.is_none_or(|at| at <= now) => {
                    entry.phase = Phase::Permitting { renew_at };
                    targets.insert(target.clone());
                }
                Phase::Permitting { .. } | Phase::Held { .. } if renewed => {
                    targets.insert(target.clone());
                }
                _ => {}
            }
        }
        if renewed {
            self.permitted_until = Some(lease_until);
        }
        if !targets.is_empty() {
            self.actions.push(Action::Permit {
                targets,
                lease_until,
            });
        }
    }

    fn withdraw_all(&mut self) {
        for (target, entry) in &mut self.entries {
            if entry.may_be_there() {
                entry.remove(target, &mut self.actions);
            }
        }
    }

    /// When what is held has to go.
    fn withdraw_at(&self) -> Option<Instant> {
        self.leadership.lease_until?.checked_sub(self.timing.margin)
    }

    fn entry_deadline(&self, entry: &Entry, claimable: bool) -> Option<Instant> {
        let serving = entry.serving.map(|s| s.renew_at.min(s.until));
        let phase = self.phase_deadline(entry, claimable);
        [serving, phase].into_iter().flatten().min()
    }

    fn phase_deadline(&self, entry: &Entry, claimable: bool) -> Option<Instant> {
        match entry.phase {
            Phase::Withdrawn { not_before } => not_before.filter(|_| claimable && entry.wanted),
            Phase::Adding => self.withdraw_at(),
            Phase::Permitting { renew_at } => [Some(renew_at), self.withdraw_at()]
                .into_iter()
                .flatten()
                .min(),
            Phase::Silent {
                renew_at,
                permit_at,
            } => permit_at
                .filter(|_| claimable)
                .map_or(Some(renew_at), |at| Some(at.min(renew_at))),
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

fn go_together(one: Option<&Action>, other: Option<&Action>) -> bool {
    matches!(
        (one, other),
        (Some(Action::Remove(_)), Some(Action::Remove(_)))
            | (Some(Action::Silence(_)), Some(Action::Silence(_)))
            | (Some(Action::Serve(_)), Some(Action::Serve(_)))
    )
}

/// Where a VIP belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Off,
    /// On the interface, unheard; or off it, if that is where it is.
    Silent,
    Held {
        fenced: bool,
    },
}

/// One VIP.
#[derive(Clone, Debug)]
struct Entry {
    phase: Phase,
    /// In the snapshot.
    wanted: bool,
    /// Failures since the address was last on the interface.
    failures: u32,
    /// What it carried when it was given away is still served.
    serving: Option<Serving>,
}

/// Answering for a VIP on behalf of its holder.
#[derive(Clone, Copy, Debug)]
struct Serving {
    renew_at: Instant,
    until: Instant,
    /// Since when there is none of its own left, and it only relays.
    quiet_since: Option<Instant>,
}

/// What became of an address: an event about one target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Added,
    AddFailed,
    Removed,
    RemoveFailed,
    Missing,
    Permitted,
    PermitFailed,
}

impl Entry {
    /// The transition table. Pairs that do nothing are late or doubled answers.
    fn handle(
        &mut self,
        target: &Target,
        answer: Answer,
        now: Instant,
        timing: &Timing,
        actions: &mut Queue,
    ) {
        use Phase::{Adding, Held, Permitting, Removing, Silent, Stuck, Withdrawn};
        match (self.phase, answer) {
            // `settle` holds it at once where there is no fence, and asks for a permission where there is one.
            (Adding, Answer::Added) => {
                self.failures = 0;
                self.phase = Silent {
                    renew_at: now + timing.renew_every,
                    permit_at: None,
                };
            }
            (Permitting { .. } | Silent { .. } | Held { .. }, Answer::Added) => {} // a renewal
            // Nobody asked for it, or it was asked for before the right was lost: it must not stay.
            (Withdrawn { .. } | Stuck { .. }, Answer::Added) => self.remove(target, actions),
            (Removing, Answer::Added) => {} // the answer to the `Remove` behind it is still to come

            // It may be there all the same.
            (Adding | Permitting { .. } | Silent { .. } | Held { .. }, Answer::AddFailed) => {
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
            // Claimed again at once, if the lease still allows it: `settle` decides. No permission outlives the address.
            (
                Permitting { .. } | Silent { .. } | Held { .. },
                Answer::Removed | Answer::Missing,
            ) => {
                actions.push(Action::Silence(target.clone()));
                self.phase = Withdrawn { not_before: None };
            }

            (Removing, Answer::RemoveFailed) => {
                self.failures = self.failures.saturating_add(1);
                self.phase = Stuck {
                    retry_at: now + timing.retry_after(self.failures),
                };
            }
            (
                Withdrawn { .. }
                | Adding
                | Permitting { .. }
                | Silent { .. }
                | Held { .. }
                | Stuck { .. },
                Answer::RemoveFailed,
            ) => {}
            (Withdrawn { .. } | Adding | Removing | Stuck { .. }, Answer::Missing) => {}

            (Permitting { renew_at }, Answer::Permitted) => self.hold(now, renew_at),
            // An earlier permission may still be there, for a lease that was longer: silent is to be silent.
            (Permitting { renew_at } | Held { renew_at, .. }, Answer::PermitFailed) => {
                actions.push(Action::Silence(target.clone()));
                self.phase = Silent {
                    renew_at,
                    permit_at: Some(now + timing.permit_again),
                };
            }
            // Taken back meanwhile; `Silence` or `Remove` stands behind it.
            (
                Withdrawn { .. } | Adding | Silent { .. } | Removing | Stuck { .. } | Held { .. },
                Answer::Permitted,
            )
            | (
                Withdrawn { .. } | Adding | Silent { .. } | Removing | Stuck { .. },
                Answer::PermitFailed,
            ) => {}
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
            Phase::Permitting { renew_at } | Phase::Silent { renew_at, .. } => *renew_at = now,
            Phase::Adding | Phase::Removing | Phase::Stuck { .. } => {}
        }
    }

    /// One step towards being held; called while the node is entitled and the VIP wanted. Permissions are asked for together,
    /// afterwards.
    fn advance(
        &mut self,
        target: &Target,
        now: Instant,
        timing: &Timing,
        fenced: bool,
        actions: &mut Queue,
    ) {
        match &mut self.phase {
            Phase::Withdrawn { not_before } if not_before.is_none_or(|at| at <= now) => {
                actions.push(Action::Add(target.clone()));
                self.phase = Phase::Adding;
            }
            Phase::Silent { renew_at, .. } if !fenced => {
                let renew_at = *renew_at;
                self.hold(now, renew_at);
            }
            Phase::Stuck { retry_at } if *retry_at <= now => self.remove(target, actions),
            Phase::Silent { .. }
            | Phase::Permitting { .. }
            | Phase::Held { .. }
            | Phase::Withdrawn { .. }
            | Phase::Adding
            | Phase::Removing
            | Phase::Stuck { .. } => {}
        }
        self.renew(target, now, timing, actions);
    }

    /// Puts off the expiry of what is on the interface, if that is due.
    fn renew(&mut self, target: &Target, now: Instant, timing: &Timing, actions: &mut Queue) {
        match &mut self.phase {
            Phase::Held { renew_at, .. }
            | Phase::Permitting { renew_at }
            | Phase::Silent { renew_at, .. }
                if *renew_at <= now =>
            {
                actions.push(Action::Renew(target.clone()));
                *renew_at = now + timing.renew_every;
            }
            _ => {}
        }
    }

    /// One announcement, if it is due; called while the node is entitled and the VIP wanted.
    fn announce(&mut self, target: &Target, now: Instant, timing: &Timing, actions: &mut Queue) {
        match &mut self.phase {
            Phase::Held {
                announce_at,
                announced,
                ..
            } if *announce_at <= now => {
                actions.push(Action::Announce(target.clone()));
                *announced = announced.saturating_add(1);
                *announce_at = now + timing.gap_after_announcement(*announced);
            }
            _ => {}
        }
    }

    /// Unheard, but still there; called when the lease has lapsed and a fence stands.
    fn fall_silent(&mut self, target: &Target, now: Instant, timing: &Timing, actions: &mut Queue) {
        match self.phase {
            Phase::Held { renew_at, .. } | Phase::Permitting { renew_at } => {
                actions.push(Action::Silence(target.clone()));
                self.phase = Phase::Silent {
                    renew_at,
                    permit_at: None,
                };
            }
            Phase::Adding | Phase::Stuck { .. } => self.release(target, now, actions),
            Phase::Silent { .. } | Phase::Withdrawn { .. } | Phase::Removing => {}
        }
        self.renew(target, now, timing, actions);
    }

    /// One step towards being withdrawn; called while the node may not hold the VIP.
    fn release(&mut self, target: &Target, now: Instant, actions: &mut Queue) {
        match self.phase {
            Phase::Stuck { retry_at } if retry_at <= now => self.remove(target, actions),
            _ if self.may_be_there() => self.remove(target, actions),
            _ => {}
        }
    }

    /// On the interface, or asked to be.
    fn may_be_there(&self) -> bool {
        match self.phase {
            Phase::Adding
            | Phase::Permitting { .. }
            | Phase::Silent { .. }
            | Phase::Held { .. } => true,
            Phase::Withdrawn { .. } | Phase::Removing | Phase::Stuck { .. } => false,
        }
    }

    fn hold(&mut self, now: Instant, renew_at: Instant) {
        self.phase = Phase::Held {
            since: now,
            renew_at,
            announce_at: now,
            announced: 0,
        };
    }

    fn remove(&mut self, target: &Target, actions: &mut Queue) {
        actions.push(Action::Remove(target.clone()));
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
