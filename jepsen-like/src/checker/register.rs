//! Linearizability of a register with read, write and compare-and-set.
//!
//! The question (Wing & Gong): is there one order of the operations, each at an instant between its invocation and its
//! completion, in which a plain register gives the answers that were seen? It is answered by the just-in-time search of
//! Lowe: the events are taken in order of time with a set of *configurations*, each a possible state of the register and
//! which of the operations under way have had their effect; only when an operation completes must it have been given a
//! place, and what can be placed before it is searched then. No configuration left: no such order exists.
//!
//! Configurations that can do no more than another one are forgotten, which keeps the set small:
//! - A read (or any operation that leaves the register as it is) is placed at once when a value that it can have seen is there. To have it
//!   behind is never worse. A refused compare-and-set is one: it can have seen every value but the one it expected.
//! - A write that is overwritten before anyone looks needs no place of its own: it fits just before the write that
//!   overwrites it. So whenever a write is placed, the other writes under way become *optional*: each may be taken as done, or
//!   be placed later. That is never worse than either.
//! - An operation of unknown outcome is optional from the start and stays so. Those with the same effect are told apart by nothing:
//!   only how many are left counts, and more is never worse.
//! - An optional operation, and a write before its completion, is placed only where an operation waits for its value.
//! - Values of operations of unknown outcome that nobody names otherwise are told apart by nothing: they are one value.
//!
//! What is left is exponential where many unknown operations have few values. Two searches that are never exponential in those come first,
//! each with half of an answer: one that keeps only the most promising configurations ([`Width::Best`]; an order that it finds is one), and
//! one in which an unknown operation may take effect any number of times ([`Width::Endless`]; if even that finds none, there is none).
//!
//! All of this is kept as bits of which more is never worse, so "can do no more than" is inclusion.
//! This module decides; it knows no clock, and asks [`Limits::give_up`] whether to go on.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BTreeSet, BinaryHeap, HashMap, HashSet},
};

/// One operation on the register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What the caller knows it by.
    pub operation: usize,
    pub invoked: u64,
    /// When it completed with success; none: of unknown outcome, it may take effect at any time after or never.
    pub completed: Option<u64>,
    pub action: Action,
}

/// What an operation does to a register. Values are numbers of the caller's; the register starts with the one given to [`check`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Saw this value; none: its answer is not known.
    Read(Option<u32>),
    Write(u32),
    CompareAndSet {
        expected: u32,
        new: u32,
    },
    /// A compare-and-set that changed nothing because the register held another value than the expected one: it saw that.
    Refused {
        expected: u32,
        new: u32,
    },
    /// Failed: never had an effect.
    Nothing,
}

impl Action {
    /// As recorded histories call it.
    pub fn function(self) -> &'static str {
        match self {
            Self::Read(_) => "read",
            Self::Write(_) => "write",
            Self::CompareAndSet { .. } | Self::Refused { .. } | Self::Nothing => "cas",
        }
    }
}

/// When to stop without an answer.
#[derive(Clone, Copy)]
pub struct Limits<'a> {
    /// Most configurations held at once; each takes about 100 bytes and an eighth of a byte for each operation of unknown outcome.
    pub configurations: usize,
    /// Called before each register: its time is its own.
    pub begin: &'a dyn Fn(),
    /// Asked now and then.
    pub give_up: &'a dyn Fn() -> bool,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Linearizability {
    Linearizable,
    Violation(Stuck),
    Undecided,
}

/// Where no order goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// The operation that has no place: up to its completion (exclusive) the history is linearizable. Its place among the steps.
    pub step: usize,
    /// Operations that completed before: the length of the longest linearizable prefix.
    pub prefix: usize,
    /// Values that the register can have at the end of that prefix, with the step that wrote each (none: the initial value).
    pub possible: Vec<(u32, Option<usize>)>,
    /// Steps that may still take effect there: under way, or of unknown outcome.
    pub pending: Vec<usize>,
}

/// Whether the operations on one register, which starts as `initial`, are linearizable.
pub fn check(steps: &[Step], initial: u32, limits: &Limits<'_>) -> Linearizability {
    let search = |width, limits: &Limits<'_>| Search::new(steps, initial, width, limits).run();
    let has_unknown = steps.iter().any(|step| step.completed.is_none());
    if has_unknown {
        if search(Width::Best(32), limits) == Linearizability::Linearizable {
            return Linearizability::Linearizable;
        }
        let endless = search(Width::Endless, limits);
        if let Linearizability::Violation(_) = endless {
            let brief = Limits {
                configurations: limits.configurations.min(20_000),
                ..*limits
            };
            return match search(Width::All, &brief) {
                found @ Linearizability::Violation(_) => found, // with the shorter prefix
                _ => endless,
            };
        }
        if search(Width::Best(1000), limits) == Linearizability::Linearizable {
            return Linearizability::Linearizable;
        }
    }
    search(Width::All, limits)
}

/// Which configurations a search keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    /// Every one: its answer is the answer.
    All,
    /// So many for each value, those with most left to do with: only its yes counts.
    Best(usize),
    /// Every one, and unknown operations are not used up: only its no counts.
    Endless,
}

/// What an operation needs and does, with what cannot matter removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Effect {
    /// Leaves the register as it is, and needs this value.
    Observe(u32),
    /// Leaves the register as it is, and needs any other value than this one.
    Differ(u32),
    Set(u32),
    Swap(u32, u32),
}

/// Stands for all values that operations of unknown outcome leave and nobody speaks of otherwise.
const ANONYMOUS: u32 = u32::MAX; // a file has far fewer values

impl Effect {
    fn of(action: Action) -> Option<Self> {
        match action {
            Action::Read(value) => value.map(Self::Observe),
            Action::Write(value) => Some(Self::Set(value)),
            Action::CompareAndSet { expected, new } if expected == new => {
                Some(Self::Observe(expected))
            }
            Action::CompareAndSet { expected, new } => Some(Self::Swap(expected, new)),
            Action::Refused { expected, .. } => Some(Self::Differ(expected)),
            Action::Nothing => None,
        }
    }

    /// The one value that it needs.
    fn needs(self) -> Option<u32> {
        match self {
            Self::Observe(value) | Self::Swap(value, _) => Some(value),
            Self::Differ(_) | Self::Set(_) => None,
        }
    }

    /// Whether it cannot have a place before the register holds a value such as this one.
    fn waits_for(self, value: u32) -> bool {
        match self {
            Self::Observe(needed) | Self::Swap(needed, _) => needed == value,
            Self::Differ(other) => other != value,
            Self::Set(_) => false,
        }
    }

    /// Whether it leaves the register as it is, and can have seen this value.
    fn sees(self, value: u32) -> bool {
        self.leaves().is_none() && self.waits_for(value)
    }

    fn leaves(self) -> Option<u32> {
        match self {
            Self::Observe(_) | Self::Differ(_) => None,
            Self::Set(value) | Self::Swap(_, value) => Some(value),
        }
    }

    /// The same with another value that it leaves.
    fn leaving(self, value: u32) -> Self {
        match self {
            Self::Set(_) => Self::Set(value),
            Self::Swap(expected, _) => Self::Swap(expected, value),
            Self::Observe(_) | Self::Differ(_) => self,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    // An operation that begins as another ends overlaps it: equal times do not tell which was first.
    Invoke,
    Complete,
}

/// Bits of which more is never worse.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Bits(Box<[u64]>);

impl Bits {
    fn has(&self, bit: usize) -> bool {
        self.0[bit / 64] >> (bit % 64) & 1 == 1
    }

    fn set(&mut self, bit: usize) {
        self.0[bit / 64] |= 1 << (bit % 64);
    }

    fn clear(&mut self, bit: usize) {
        self.0[bit / 64] &= !(1 << (bit % 64));
    }

    fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    fn includes(&self, other: &Self) -> bool {
        self.0
            .iter()
            .zip(&other.0)
            .all(|(mine, theirs)| mine & theirs == *theirs)
    }
}

/// A possible state of the register, and what may still be done.
///
/// Bit `2 * slot` of an operation under way: it can be given a place later. Bit `2 * slot + 1`: it can be taken as done. Both: it is
/// optional. Then, for each effect that operations of unknown outcome have, as many bits as there are of them, filled from the first.
#[derive(Clone, Debug)]
struct Configuration {
    value: u32,
    bits: Bits,
    /// The step that left the value.
    writer: Option<u32>,
}

/// Orders configurations by how much they have left to do with.
struct Ranked(Configuration);

impl Ranked {
    fn rank(&self) -> (u32, u32, &[u64]) {
        (self.0.bits.count(), self.0.value, &self.0.bits.0) // the last two only to be the same in every run
    }
}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank().cmp(&other.rank())
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Ranked {}

/// Configurations of which none includes another.
#[derive(Default)]
struct Frontier {
    groups: HashMap<(u32, Box<[u64]>), Vec<Configuration>>,
    count: usize,
}

impl Frontier {
    /// Adds one unless it can do no more than one that is there. `exact` are the bits in which two must be equal for that.
    fn insert(&mut self, new: Configuration, exact: &Bits) -> bool {
        let masked = new
            .bits
            .0
            .iter()
            .zip(&exact.0)
            .map(|(bits, mask)| bits & mask);
        let group = self
            .groups
            .entry((new.value, masked.collect()))
            .or_default();
        if group.iter().any(|old| old.bits.includes(&new.bits)) {
            return false;
        }
        let before = group.len();
        group.retain(|old| !new.bits.includes(&old.bits));
        self.count = self.count + group.len() + 1 - before;
        group.push(new);
        true
    }

    fn into_configurations(self) -> Vec<Configuration> {
        self.groups.into_values().flatten().collect()
    }
}

/// An operation under way.
#[derive(Clone, Copy, Debug)]
struct Live {
    step: usize,
    effect: Effect,
}

/// Operations of unknown outcome with the same effect.
#[derive(Debug)]
struct Class {
    effect: Effect,
    first_bit: usize,
    /// How many have been invoked, with the first of them.
    invoked: usize,
    step: usize,
}

struct Search<'a> {
    width: Width,
    limits: &'a Limits<'a>,
    events: Vec<(u64, Phase, usize)>,
    actions: Vec<Action>,
    effects: Vec<Option<Effect>>,
    is_known: Vec<bool>,
    classes: Vec<Class>,
    class_of: HashMap<Effect, usize>,
    needed: Needed,
    slots: Vec<Option<Live>>,
    slot_of: HashMap<usize, usize>,
    /// The bits of operations that are done or not, and neither is better.
    exact: Bits,
    configurations: Vec<Configuration>,
    completed: usize,
    work: u32,
}

/// The search was given up.
struct GaveUp;

impl<'a> Search<'a> {
    fn new(steps: &[Step], initial: u32, width: Width, limits: &'a Limits<'a>) -> Self {
        let effects = effects_of(steps, initial);
        let kept = useful(steps, &effects, initial);
        let mut events = vec![];
        for index in &kept {
            let step = &steps[*index];
            events.push((step.invoked, Phase::Invoke, *index));
            events.extend(step.completed.map(|at| (at, Phase::Complete, *index)));
        }
        events.sort_unstable();

        let slots = most_at_once(&events, steps);
        let (classes, class_of, bits) = classes(steps, &effects, &kept, 2 * slots);
        let none = Bits(vec![0; bits.div_ceil(64).max(1)].into());
        let needed = Needed::by(kept.iter().filter_map(|index| {
            let until = steps[*index].completed.unwrap_or(u64::MAX);
            effects[*index].map(|effect| (effect, until))
        }));
        Self {
            width,
            limits,
            events,
            actions: steps.iter().map(|step| step.action).collect(),
            effects,
            is_known: steps.iter().map(|step| step.completed.is_some()).collect(),
            classes,
            class_of,
            needed,
            slots: vec![None; slots],
            slot_of: HashMap::new(),
            configurations: vec![Configuration {
                value: initial,
                bits: none.clone(),
                writer: None,
            }],
            exact: none,
            completed: 0,
            work: 0,
        }
    }

    fn run(mut self) -> Linearizability {
        for (time, phase, step) in std::mem::take(&mut self.events) {
            match phase {
                Phase::Invoke => self.invoke(step),
                Phase::Complete => match self.complete(step, time) {
                    Ok(true) => {}
                    Ok(false) => return Linearizability::Violation(self.stuck(step)),
                    Err(GaveUp) => return Linearizability::Undecided,
                },
            }
        }
        Linearizability::Linearizable
    }

    fn invoke(&mut self, step: usize) {
        let Some(effect) = self.effects[step] else {
            return;
        };
        if !self.is_known[step] {
            return self.invoke_unknown(effect);
        }
        let slot = self
            .slots
            .iter()
            .position(Option::is_none)
            .unwrap_or_else(|| {
                unreachable!("there are as many slots as operations under way at once")
            });
        self.slots[slot] = Some(Live { step, effect });
        self.slot_of.insert(step, slot);
        if matches!(effect, Effect::Swap(..)) {
            self.exact.set(2 * slot);
        }
        for configuration in &mut self.configurations {
            let is_seen = effect.sees(configuration.value);
            configuration.bits.set(2 * slot + usize::from(is_seen));
        }
    }

    /// One more of its kind is left, in each configuration.
    fn invoke_unknown(&mut self, effect: Effect) {
        let Some(class) = self
            .class_of
            .get(&effect)
            .and_then(|at| self.classes.get_mut(*at))
        else {
            return;
        };
        class.invoked += 1;
        let bits = class.first_bit..class.first_bit + class.invoked;
        for configuration in &mut self.configurations {
            if let Some(free) = bits.clone().find(|bit| !configuration.bits.has(*bit)) {
                configuration.bits.set(free);
            }
        }
    }

    /// Keeps what has, or can be given, a place for this step. False: nothing is left, and the configurations are as before.
    fn complete(&mut self, step: usize, now: u64) -> Result<bool, GaveUp> {
        let Some(slot) = self.slot_of.get(&step).copied() else {
            return Ok(true);
        };
        let mut next = Frontier::default();
        let mut seen = Frontier::default();
        let mut open = BinaryHeap::new(); // what has most left first: it is the least likely to be forgotten
        let before = std::mem::take(&mut self.configurations);
        for configuration in &before {
            self.account(next.count)?;
            if configuration.bits.has(2 * slot + 1) {
                next.insert(without(configuration.clone(), slot), &self.exact);
            }
            let is_open =
                configuration.bits.has(2 * slot) && self.is_worth_placing(configuration, slot, now);
            if is_open && seen.insert(configuration.clone(), &self.exact) {
                open.push(Ranked(configuration.clone()));
            }
        }
        let mut found = vec![];
        let mut opened = 0;
        while let Some(Ranked(configuration)) = open.pop() {
            opened += 1;
            if self.is_enough(opened, next.count) {
                break;
            }
            self.account(seen.count + next.count + open.len())?;
            self.successors(&configuration, slot, &mut found);
            for successor in found.drain(..) {
                let (is_done, is_open) = (
                    successor.bits.has(2 * slot + 1),
                    successor.bits.has(2 * slot),
                );
                if is_done {
                    next.insert(without(successor.clone(), slot), &self.exact);
                }
                if is_open && seen.insert(successor.clone(), &self.exact) {
                    open.push(Ranked(successor));
                }
            }
        }
        if next.count == 0 {
            self.configurations = before;
            return Ok(false);
        }
        self.configurations = next.into_configurations();
        self.narrow();
        self.slots[slot] = None;
        self.exact.clear(2 * slot);
        self.slot_of.remove(&step);
        self.completed += 1;
        Ok(true)
    }

    /// Whether a narrow search has looked at enough of what can be placed before one completion.
    fn is_enough(&self, opened: usize, found: usize) -> bool {
        match self.width {
            Width::Best(width) => opened > if found > 0 { 20 * width } else { 200 * width },
            Width::All | Width::Endless => false,
        }
    }

    /// Forgets, in a narrow search, all but the best for each value.
    fn narrow(&mut self) {
        let Width::Best(width) = self.width else {
            return;
        };
        self.configurations
            .sort_by_cached_key(|configuration| Reverse(configuration.bits.count()));
        let mut kept: HashMap<u32, usize> = HashMap::new();
        self.configurations.retain(|configuration| {
            let count = kept.entry(configuration.value).or_default();
            *count += 1;
            *count <= width
        });
    }

    /// An optional write that nobody waits for any more need not be placed.
    fn is_worth_placing(&self, configuration: &Configuration, slot: usize, now: u64) -> bool {
        let is_optional = configuration.bits.has(2 * slot + 1);
        let leaves = self.slots[slot].and_then(|live| live.effect.leaves());
        let needed = leaves.and_then(|value| self.needed.until(value));
        // Not only later: what completes at the same time may still be waiting for its turn.
        !is_optional || needed.is_some_and(|until| until >= now)
    }

    fn account(&mut self, held: usize) -> Result<(), GaveUp> {
        self.work = self.work.wrapping_add(1);
        let asks = self.work.is_multiple_of(256);
        if held > self.limits.configurations || (asks && (self.limits.give_up)()) {
            return Err(GaveUp);
        }
        Ok(())
    }

    /// What one more operation, placed now, makes of a configuration in which `target` has yet to be placed.
    fn successors(&self, from: &Configuration, target: usize, into: &mut Vec<Configuration>) {
        for (slot, live) in self.slots.iter().enumerate() {
            let Some(live) = live else { continue };
            if !from.bits.has(2 * slot) {
                continue;
            }
            let fits = match live.effect {
                Effect::Observe(_) | Effect::Differ(_) => false, // placed as soon as such a value is there
                Effect::Set(value) => slot == target || self.is_awaited(from, value),
                Effect::Swap(expected, new) => {
                    expected == from.value
                        && (slot == target
                            || !from.bits.has(2 * slot + 1)
                            || self.is_awaited(from, new))
                }
            };
            if fits {
                let mut bits = from.bits.clone();
                bits.clear(2 * slot);
                bits.set(2 * slot + 1);
                into.push(self.placed(bits, live.effect, slot, live.step));
            }
        }
        for class in &self.classes {
            let Some(last) = (class.first_bit..class.first_bit + class.invoked)
                .rev()
                .find(|bit| from.bits.has(*bit))
            else {
                continue;
            };
            let has_value = class.effect.needs().is_none_or(|value| value == from.value);
            let is_awaited =
                (class.effect.leaves()).is_some_and(|value| self.is_awaited(from, value));
            if has_value && is_awaited {
                let mut bits = from.bits.clone();
                if self.width != Width::Endless {
                    bits.clear(last);
                }
                into.push(self.placed(bits, class.effect, usize::MAX, class.step));
            }
        }
    }

    /// Whether something that can be placed waits for the value.
    fn is_awaited(&self, configuration: &Configuration, value: u32) -> bool {
        let live = self.slots.iter().enumerate().any(|(slot, live)| {
            live.is_some_and(|live| live.effect.waits_for(value))
                && configuration.bits.has(2 * slot)
        });
        live || self
            .classes
            .iter()
            .any(|class| class.effect.waits_for(value) && configuration.bits.has(class.first_bit))
    }

    /// The configuration after an effect: what can be seen now is seen, and writes that were overwritten have become optional.
    fn placed(&self, mut bits: Bits, effect: Effect, by: usize, step: usize) -> Configuration {
        let value = effect.leaves().unwrap_or_default();
        for (slot, live) in self.slots.iter().enumerate() {
            let Some(live) = live else { continue };
            if slot == by || !bits.has(2 * slot) {
                continue;
            }
            match live.effect {
                effect if effect.sees(value) => {
                    bits.clear(2 * slot);
                    bits.set(2 * slot + 1);
                }
                Effect::Set(_) if matches!(effect, Effect::Set(_)) => bits.set(2 * slot + 1),
                _ => {}
            }
        }
        Configuration {
            value,
            bits,
            writer: u32::try_from(step).ok(),
        }
    }

    fn stuck(&self, step: usize) -> Stuck {
        let possible: BTreeSet<_> = (self.configurations.iter())
            .map(|configuration| {
                let writer = configuration.writer.map(|at| at as usize);
                // The step's own, where it stands for many.
                let action = writer.and_then(|step| self.actions.get(step).copied());
                let left = action.and_then(Effect::of).and_then(Effect::leaves);
                (left.unwrap_or(configuration.value), writer)
            })
            .collect();
        let live = self.slots.iter().flatten().map(|live| live.step);
        let unknown = self.classes.iter().filter(|class| class.invoked > 0);
        Stuck {
            step,
            prefix: self.completed,
            possible: possible.into_iter().collect(),
            pending: live
                .filter(|at| *at != step)
                .chain(unknown.map(|class| class.step))
                .collect(),
        }
    }
}

/// Until when each value is needed by some operation.
struct Needed {
    /// The end of the last operation that needs exactly this value.
    exactly: HashMap<u32, u64>,
    /// Of the refused compare-and-sets that end last, the value that is none for them and their end; and of the last with another one.
    other_than: [Option<(u32, u64)>; 2],
}

impl Needed {
    fn by(effects: impl Iterator<Item = (Effect, u64)>) -> Self {
        let mut exactly: HashMap<u32, u64> = HashMap::new();
        let mut differ: HashMap<u32, u64> = HashMap::new();
        for (effect, end) in effects {
            let (ends, value) = match (effect, effect.needs()) {
                (Effect::Differ(value), _) => (&mut differ, value),
                (_, Some(value)) => (&mut exactly, value),
                (_, None) => continue,
            };
            let until = ends.entry(value).or_default();
            *until = (*until).max(end);
        }
        let last = |than: Option<u32>| {
            let others = (differ.iter()).filter(|(value, _)| Some(**value) != than);
            others
                .max_by_key(|(value, end)| (**end, **value))
                .map(|(value, end)| (*value, *end))
        };
        let first = last(None);
        let second = first.and_then(|(value, _)| last(Some(value)));
        Self {
            exactly,
            other_than: [first, second],
        }
    }

    /// None: never.
    fn until(&self, value: u32) -> Option<u64> {
        let other_than = self.other_than.iter().flatten();
        let differing = other_than.filter(|(other, _)| *other != value);
        let ends = differing.map(|(_, end)| *end);
        ends.chain(self.exactly.get(&value).copied()).max()
    }
}

/// What each step does, with [`ANONYMOUS`] for what an operation of unknown outcome leaves and nobody else speaks of.
fn effects_of(steps: &[Step], initial: u32) -> Vec<Option<Effect>> {
    let effects = steps.iter().map(|step| Effect::of(step.action));
    let mut effects: Vec<_> = effects.collect();
    let named: HashSet<u32> = (effects.iter().flatten())
        .filter_map(|effect| match effect {
            Effect::Differ(other) => Some(*other),
            effect => effect.needs(),
        })
        .chain([initial])
        .collect();
    for (step, effect) in steps.iter().zip(&mut effects) {
        if let Some(some) = effect
            && step.completed.is_none()
            && some.leaves().is_some_and(|value| !named.contains(&value))
        {
            *effect = Some(some.leaving(ANONYMOUS));
        }
    }
    effects
}

/// The configuration once the operation in this slot has completed.
fn without(mut configuration: Configuration, slot: usize) -> Configuration {
    configuration.bits.clear(2 * slot);
    configuration.bits.clear(2 * slot + 1);
    configuration
}

/// The steps that matter: not those without effect, and not those of unknown outcome whose value nobody needs or whose
/// expected value nobody can have left.
fn useful(steps: &[Step], effects: &[Option<Effect>], initial: u32) -> Vec<usize> {
    let is_known = |index: usize| steps[index].completed.is_some();
    let mut kept: Vec<usize> = (0..steps.len())
        .filter(|index| match effects[*index] {
            None => false,
            Some(Effect::Observe(_) | Effect::Differ(_)) => is_known(*index),
            Some(_) => true,
        })
        .collect();
    let refused: HashSet<u32> = (kept.iter())
        .filter_map(|index| match effects[*index] {
            Some(Effect::Differ(other)) => Some(other),
            _ => None,
        })
        .collect();
    // Whether some refused compare-and-set can have seen it.
    let is_seen = |value: &u32| refused.len() > usize::from(refused.contains(value));
    loop {
        let effect = |index: &usize| effects[*index];
        let needed: HashSet<u32> = kept
            .iter()
            .filter_map(effect)
            .filter_map(Effect::needs)
            .collect();
        let mut left: HashSet<u32> = kept
            .iter()
            .filter_map(effect)
            .filter_map(Effect::leaves)
            .collect();
        left.insert(initial);
        let before = kept.len();
        kept.retain(|index| {
            is_known(*index)
                || effects[*index].is_some_and(|effect| {
                    (effect.leaves())
                        .is_some_and(|value| needed.contains(&value) || is_seen(&value))
                        && effect.needs().is_none_or(|value| left.contains(&value))
                })
        });
        if kept.len() == before {
            return kept;
        }
    }
}

/// Most operations of known outcome under way at once.
fn most_at_once(events: &[(u64, Phase, usize)], steps: &[Step]) -> usize {
    let (mut now, mut most) = (0_usize, 0);
    for (_, phase, step) in events {
        match phase {
            Phase::Invoke if steps[*step].completed.is_some() => now += 1,
            Phase::Invoke => {}
            Phase::Complete => now -= 1,
        }
        most = most.max(now);
    }
    most
}

/// The effects of the operations of unknown outcome, each with a bit for each operation that has it; and the bits in all.
fn classes(
    steps: &[Step],
    effects: &[Option<Effect>],
    kept: &[usize],
    first_bit: usize,
) -> (Vec<Class>, HashMap<Effect, usize>, usize) {
    let mut sizes: Vec<(Effect, usize, usize)> = vec![];
    let mut class_of = HashMap::new();
    for index in kept
        .iter()
        .filter(|index| steps[**index].completed.is_none())
    {
        let Some(effect) = effects[*index] else {
            continue;
        };
        let at = *class_of.entry(effect).or_insert(sizes.len());
        match sizes.get_mut(at) {
            Some(class) => class.1 += 1,
            None => sizes.push((effect, 1, *index)),
        }
    }
    let mut bit = first_bit;
    let classes = sizes.into_iter().map(|(effect, size, step)| {
        let first_bit = bit;
        bit += size;
        Class {
            effect,
            first_bit,
            invoked: 0,
            step,
        }
    });
    (classes.collect(), class_of, bit)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    const PATIENT: Limits<'static> = Limits {
        configurations: 1_000_000,
        begin: &|| {},
        give_up: &|| false,
    };

    fn step(invoked: u64, completed: impl Into<Option<u64>>, action: Action) -> Step {
        Step {
            operation: 0,
            invoked,
            completed: completed.into(),
            action,
        }
    }

    fn read(value: u32) -> Action {
        Action::Read(Some(value))
    }

    fn cas(expected: u32, new: u32) -> Action {
        Action::CompareAndSet { expected, new }
    }

    fn refused(expected: u32, new: u32) -> Action {
        Action::Refused { expected, new }
    }

    /// The definition, by trying every order.
    fn is_linearizable(steps: &[Step], initial: u32) -> bool {
        fn extend(steps: &[Step], placed: u64, value: u32) -> bool {
            let left = |at: &usize| placed >> at & 1 == 0;
            let owed = |at: &usize| left(at) && steps[*at].completed.is_some();
            if !(0..steps.len()).any(|at| owed(&at)) {
                return true;
            }
            let first_end = (0..steps.len())
                .filter(owed)
                .filter_map(|at| steps[at].completed)
                .min();
            (0..steps.len()).filter(left).any(|at| {
                let is_free = first_end.is_none_or(|end| steps[at].invoked <= end);
                let after = match steps[at].action {
                    Action::Read(None) => Some(value),
                    Action::Read(Some(seen)) => (seen == value).then_some(value),
                    Action::Write(new) => Some(new),
                    Action::CompareAndSet { expected, new } => (expected == value).then_some(new),
                    Action::Refused { expected, .. } => (expected != value).then_some(value),
                    Action::Nothing => None,
                };
                is_free && after.is_some_and(|value| extend(steps, placed | 1 << at, value))
            })
        }
        let steps: Vec<_> = (steps.iter())
            .filter(|step| step.action != Action::Nothing)
            .cloned()
            .collect();
        extend(&steps, 0, initial)
    }

    #[test]
    fn small_histories_are_judged_as_defined() {
        let cases: [(&str, Vec<Step>, bool); 17] = [
            (
                "seen by what completes at the same time",
                vec![
                    step(100, 100, Action::Write(2)),
                    step(100, 152, Action::Write(1)),
                    step(130, 152, cas(1, 0)),
                ],
                true,
            ),
            ("nothing", vec![], true),
            ("initial value", vec![step(0, 1, read(0))], true),
            ("never written", vec![step(0, 1, read(1))], false),
            (
                "overlap",
                vec![
                    step(0, 9, Action::Write(1)),
                    step(1, 2, read(0)),
                    step(3, 4, read(1)),
                ],
                true,
            ),
            (
                "new then old",
                vec![
                    step(0, 9, Action::Write(1)),
                    step(1, 2, read(1)),
                    step(3, 4, read(0)),
                ],
                false,
            ),
            (
                "equal times overlap",
                vec![step(0, 5, Action::Write(1)), step(5, 9, read(0))],
                true,
            ),
            (
                "late unknown",
                vec![
                    step(0, None, Action::Write(1)),
                    step(1, 2, read(0)),
                    step(3, 4, read(1)),
                ],
                true,
            ),
            (
                "unknown takes effect once",
                vec![
                    step(0, None, Action::Write(1)),
                    step(1, 2, read(1)),
                    step(3, 4, Action::Write(2)),
                    step(5, 6, read(1)),
                ],
                false,
            ),
            (
                "unknown after its invocation only",
                vec![step(0, 1, read(1)), step(2, None, Action::Write(1))],
                false,
            ),
            (
                "overwritten unseen",
                vec![
                    step(0, 9, Action::Write(1)),
                    step(0, 9, Action::Write(2)),
                    step(1, 8, cas(2, 3)),
                    step(10, 11, read(3)),
                ],
                true,
            ),
            (
                "two of one",
                vec![step(0, 9, cas(0, 1)), step(0, 9, cas(0, 2))],
                false,
            ),
            (
                "failed",
                vec![step(0, None, Action::Nothing), step(1, 2, read(0))],
                true,
            ),
            (
                "refused, and the value was there",
                vec![
                    step(0, 1, Action::Write(1)),
                    step(2, 3, refused(1, 3)),
                    step(4, 5, read(1)),
                ],
                false,
            ),
            (
                "refused, and another value was there",
                vec![
                    step(0, 1, Action::Write(1)),
                    step(2, 3, refused(0, 3)),
                    step(4, 5, read(1)),
                ],
                true,
            ),
            (
                "refused in the time of a write that is overwritten",
                vec![
                    step(0, 9, Action::Write(2)),
                    step(0, 9, Action::Write(0)),
                    step(1, 2, refused(0, 3)),
                    step(10, 11, read(0)),
                ],
                true,
            ),
            (
                "refused after an unknown write that nobody saw",
                vec![
                    step(0, None, Action::Write(7)),
                    step(1, 2, refused(0, 3)),
                    step(3, 4, refused(0, 3)),
                    step(5, 6, Action::Write(0)),
                    step(7, 8, read(0)),
                ],
                true,
            ),
        ];
        for (name, steps, expected) in cases {
            assert_eq!(
                is_linearizable(&steps, 0),
                expected,
                "{name}, by definition"
            );
            let found = check(&steps, 0, &PATIENT);
            assert_eq!(
                found == Linearizability::Linearizable,
                expected,
                "{name}: {found:?}"
            );
        }
    }

    #[test]
    fn stuck_says_what_was_possible() {
        let steps = [
            step(0, 1, Action::Write(1)),
            step(2, None, Action::Write(2)),
            step(3, 4, read(3)),
            step(5, None, Action::Write(3)),
        ];
        let Linearizability::Violation(stuck) = check(&steps, 0, &PATIENT) else {
            panic!("3 was read before it was written");
        };
        assert_eq!((stuck.step, stuck.prefix), (2, 1));
        assert_eq!(stuck.possible, [(1, Some(0))]);
    }

    #[test]
    fn a_search_ends_when_told() {
        let asked = Cell::new(0);
        let give_up = || {
            asked.set(asked.get() + 1);
            true
        };
        let limits = Limits {
            configurations: 1_000_000,
            begin: &|| {},
            give_up: &give_up,
        };
        // One chain of 300 swaps, all at once: each completion searches for its place.
        let steps: Vec<_> = (0..300)
            .map(|n| step(0, 1000 - u64::from(n), cas(n, n + 1)))
            .collect();
        assert_eq!(check(&steps, 0, &limits), Linearizability::Undecided);
        assert!(asked.get() > 0);
        assert_eq!(check(&steps, 0, &PATIENT), Linearizability::Linearizable);
    }

    #[test]
    fn a_search_ends_when_told_also_where_nothing_has_to_be_placed() {
        let limits = Limits {
            give_up: &|| true,
            ..PATIENT
        };
        let steps = [step(0, 10, read(0))];
        let mut search = Search::new(&steps, 0, Width::All, &limits);
        search.invoke(0);
        let one = search.configurations.remove(0);
        // All have the read behind them: nothing of them is opened.
        let many = (0..1000).map(|value| Configuration {
            value,
            ..one.clone()
        });
        search.configurations = many.collect();
        assert!(search.complete(0, 10).is_err());
    }

    /// What a random history is made of: when an operation begins, how long it lasts, and what it does.
    fn steps(most: usize, values: u32) -> impl Strategy<Value = Vec<Step>> {
        let action = prop_oneof![
            4 => (0..values).prop_map(|value| Action::Read(Some(value))),
            3 => (0..values).prop_map(Action::Write),
            3 => (0..values, 0..values).prop_map(|(expected, new)| cas(expected, new)),
            2 => (0..values, 0..values).prop_map(|(expected, new)| refused(expected, new)),
            1 => Just(Action::Nothing),
        ];
        let one =
            (0..30_u64, 0..12_u64, 0..5_u8, action).prop_map(|(from, long, known, action)| {
                step(from, (known > 0).then_some(from + long), action)
            });
        prop::collection::vec(one, 0..=most)
    }

    /// A linearizable history: operations take effect one after the other, with what came back from a real register, and each
    /// begins before and ends after its instant. Of those of unknown outcome some take effect and some do not.
    fn executed(most: usize) -> impl Strategy<Value = Vec<Step>> {
        let one = (0..10_u8, 0..5_u32, 0..5_u32, 0..60_u64, 0..60_u64, 0..6_u8);
        prop::collection::vec(one, 0..=most).prop_map(|drawn| {
            let mut register = 0;
            let mut steps = vec![];
            for (n, (kind, a, b, before, after, known)) in drawn.into_iter().enumerate() {
                let instant = 100 + 10 * n as u64;
                let (mut completed, mut value) = (Some(instant + after), register);
                let action = match kind {
                    0..=2 => read(register),
                    3..=4 => {
                        value = a;
                        Action::Write(a)
                    }
                    5..=6 => {
                        value = b;
                        cas(register, b)
                    }
                    _ if a == register => Action::Nothing,
                    7..=8 => refused(a, b),
                    _ => {
                        completed = None; // its value was another: it never has an effect, and nobody knows
                        cas(a, b)
                    }
                };
                match known {
                    0 => completed = None,
                    1 => {
                        completed = None;
                        value = register; // lost on the way
                    }
                    _ => {}
                }
                register = value;
                steps.push(step(instant - before, completed, action));
            }
            steps
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

        /// Each search keeps its half of the promise, and the whole one all of it.
        #[test]
        fn each_search_says_only_what_it_knows(steps in steps(8, 3)) {
            let is_linearizable = is_linearizable(&steps, 0);
            let search = |width| Search::new(&steps, 0, width, &PATIENT).run() == Linearizability::Linearizable;
            prop_assert_eq!(search(Width::All), is_linearizable);
            prop_assert!(search(Width::Endless) || !is_linearizable);
            prop_assert!(!search(Width::Best(1)) || is_linearizable);
        }

        #[test]
        fn random_histories_are_judged_as_defined(steps in steps(8, 3)) {
            let found = check(&steps, 0, &PATIENT);
            prop_assert_eq!(found == Linearizability::Linearizable, is_linearizable(&steps, 0), "{:?}", found);
        }

        /// A stale read, a lost write, another value: a small change to a history that held.
        #[test]
        fn changed_histories_are_judged_as_defined(steps in executed(8), at in 0..8_usize, other in 0..5_u32, how in 0..4_u8) {
            let mut steps = steps;
            prop_assert!(is_linearizable(&steps, 0));
            if let Some(changed) = steps.get_mut(at) {
                match how {
                    0 => changed.action = read(other),
                    1 => changed.action = Action::Nothing,
                    2 => changed.action = refused(other, 0),
                    _ => changed.completed = Some(changed.completed.unwrap_or(changed.invoked + 500)),
                }
            }
            let found = check(&steps, 0, &PATIENT);
            prop_assert_eq!(found == Linearizability::Linearizable, is_linearizable(&steps, 0), "{:?}", found);
        }

        #[test]
        fn what_was_executed_is_linearizable(steps in executed(24)) {
            prop_assert_eq!(check(&steps, 0, &PATIENT), Linearizability::Linearizable);
        }

        /// The prefix that is called linearizable is, and with the operation that is called stuck it is not.
        #[test]
        fn the_longest_prefix_is_right(steps in steps(8, 3)) {
            if let Linearizability::Violation(stuck) = check(&steps, 0, &PATIENT) {
                let end = steps[stuck.step].completed.expect("only what completed can be stuck");
                let until = |keeps: &dyn Fn(usize) -> bool| -> Vec<_> {
                    let cut = |(at, step): (usize, &Step)| {
                        let completed = step.completed.filter(|_| keeps(at));
                        (step.invoked <= end).then(|| Step { completed, ..step.clone() })
                    };
                    steps.iter().enumerate().filter_map(cut).collect()
                };
                let before = |at: usize| (steps[at].completed, at) < (Some(end), stuck.step);
                prop_assert!(is_linearizable(&until(&before), 0));
                prop_assert!(!is_linearizable(&until(&|at| before(at) || at == stuck.step), 0));
            }
        }
    }
}
