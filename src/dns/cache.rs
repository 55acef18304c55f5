//! What upstream servers said, for as long as they said it holds. Bounded in octets; the least recently used goes first.
//!
//! A pure type: the caller passes `now`. Each entry is a whole answer to one question, so that nothing an upstream slips
//! into one answer is ever used for another question (RFC 5452 section 6).

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{config::defaults::dns as defaults, model::rrset::RecordType};

use super::{
    message::{
        ExtendedError, Rcode,
        record::Record,
        upstream::{Message, UpstreamQuestion},
    },
    scrub::aliases,
};

/// Bounds of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheLimits {
    /// Octets of memory for all entries.
    pub bytes: usize,
    /// Longest life of an answer with records.
    pub max_ttl: Duration,
    /// Longest life of an answer that says there is nothing (RFC 2308 section 5).
    pub max_negative_ttl: Duration,
    /// Life of a failure: 1 s to 5 min (RFC 9520 section 3.2).
    pub failure_ttl: Duration,
}

impl Default for CacheLimits {
    fn default() -> Self {
        Self {
            bytes: usize::try_from(defaults::CACHE_SIZE).unwrap_or(usize::MAX),
            max_ttl: Duration::from_secs(86_400),
            max_negative_ttl: Duration::from_secs(10_800),
            failure_ttl: Duration::from_secs(5),
        }
    }
}

/// An alias in the answer of an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    /// Records of the answer section up to it, its own included.
    pub records: usize,
    /// The name that it leads to, in lower-case wire form.
    pub target: Box<[u8]>,
}

/// An answer of an upstream, or the fact that there was none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub rcode: Rcode,
    pub answer: Vec<Record>,
    pub authority: Vec<Record>,
    pub additional: Vec<Record>,
    /// The aliases that lead away from the question, in their order.
    pub aliases: Vec<Alias>,
    /// Why it failed.
    pub error: Option<ExtendedError>,
    stored: Instant,
    expires: Instant,
}

impl Entry {
    /// An upstream's answer as of `now`. What does not belong to `question` must have been taken out of it.
    pub fn of_message(
        message: Message,
        question: &UpstreamQuestion,
        limits: &CacheLimits,
        now: Instant,
    ) -> Self {
        let mut entry = Self {
            rcode: message.rcode,
            aliases: aliases(&message.answer, question),
            answer: message.answer,
            authority: message.authority,
            additional: message.additional,
            error: None,
            stored: now,
            expires: now,
        };
        let negative = entry.is_negative(question.rtype);
        entry.cap_ttls(negative, limits);
        entry.expires = now + entry.lifetime(negative, question.dnssec_ok, limits);
        entry
    }

    /// No upstream gave an answer that is of use.
    pub fn of_failure(error: ExtendedError, limits: &CacheLimits, now: Instant) -> Self {
        Self {
            rcode: Rcode::SERV_FAIL,
            answer: Vec::new(),
            authority: Vec::new(),
            additional: Vec::new(),
            aliases: Vec::new(),
            error: Some(error),
            stored: now,
            expires: now + limits.failure_ttl,
        }
    }

    /// Whether the entry may still be used.
    pub fn is_fresh(&self, now: Instant) -> bool {
        now < self.expires
    }

    /// Whole seconds since the entry was stored, to be taken off its TTLs.
    pub fn age(&self, now: Instant) -> u32 {
        let seconds = now.saturating_duration_since(self.stored).as_secs();
        u32::try_from(seconds).unwrap_or(u32::MAX)
    }

    fn sections(&mut self) -> impl Iterator<Item = &mut Record> {
        let rest = self.authority.iter_mut().chain(&mut self.additional);
        self.answer.iter_mut().chain(rest)
    }

    fn cap_ttls(&mut self, negative: bool, limits: &CacheLimits) {
        let minimum = self.soa().map(|(ttl, minimum)| ttl.min(minimum));
        let longest = seconds(limits.max_ttl);
        for record in self.sections() {
            record.ttl = record.ttl.min(longest);
            // RFC 2308 section 5: the SOA goes on with the time that is left of the negative answer.
            if let Some(minimum) = minimum.filter(|_| negative && record.rtype == RecordType::SOA) {
                record.ttl = minimum.min(seconds(limits.max_negative_ttl));
            }
        }
    }

    /// Whether the answer says that the last name has no such records (RFC 2308 section 2).
    pub fn is_negative(&self, asked: RecordType) -> bool {
        let wanted = |record: &Record| asked == RecordType::ANY || record.rtype == asked;
        self.rcode == Rcode::NX_DOMAIN || !self.answer.iter().any(wanted)
    }

    /// Whether the upstream itself says that there is no more, and does not just stop at an alias.
    pub fn is_denial(&self) -> bool {
        self.rcode != Rcode::NO_ERROR || self.soa().is_some()
    }

    /// TTL and minimum of the SOA in the authority section.
    fn soa(&self) -> Option<(u32, u32)> {
        let soa = self.authority.iter().find(|r| r.rtype == RecordType::SOA)?;
        let minimum = u32::from_be_bytes(*soa.data.last_chunk::<4>()?);
        Some((soa.ttl, minimum))
    }

    fn lifetime(&self, negative: bool, dnssec_ok: bool, limits: &CacheLimits) -> Duration {
        if !matches!(
            self.rcode,
            Rcode::NO_ERROR | Rcode::NX_DOMAIN | Rcode::YX_DOMAIN
        ) {
            return limits.failure_ttl;
        }
        // Without its proofs an answer is bogus to who checks it; other records that are no answer are left out in their time.
        let proofs = self.authority.iter().filter(|r| dnssec_ok && r.is_proof());
        let needed = self.answer.iter().chain(proofs);
        let shortest = needed.map(|record| record.ttl).min();
        let seconds = match self.soa().filter(|_| negative) {
            Some((ttl, _)) => shortest.map_or(ttl, |shortest| shortest.min(ttl)),
            // Without an SOA a denial must not be kept (RFC 2308 section 5); an alias that leads nowhere may.
            None if self.rcode == Rcode::NX_DOMAIN || self.answer.is_empty() => 0,
            None => shortest.unwrap_or(0),
        };
        Duration::from_secs(u64::from(seconds))
    }

    /// Octets that the entry keeps in memory, its question not counted.
    fn weight(&self) -> usize {
        let sections = [&self.answer, &self.authority, &self.additional];
        let records = sections.into_iter().flatten().map(Record::weight);
        let aliases = self.aliases.iter();
        let aliases = aliases.map(|alias| size_of::<Alias>() + alias.target.len());
        size_of::<Self>() + records.sum::<usize>() + aliases.sum::<usize>()
    }
}

fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}

/// Which entries to forget: the answers to questions for these names, and those whose aliases lead to one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flush {
    All,
    /// Every type of one name, in lower-case wire form.
    Name(Box<[u8]>),
    /// A name and all below it.
    Subtree(Box<[u8]>),
}

/// Counters and sizes of a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    pub entries: u64,
    pub bytes: u64,
    pub hits: u64,
    pub misses: u64,
    /// Entries dropped for room before their time was over.
    pub evicted: u64,
}

/// Answers by question.
pub struct Cache {
    limits: CacheLimits,
    slots: HashMap<UpstreamQuestion, Slot>,
    /// By last use, the longest ago first.
    order: BTreeMap<u64, UpstreamQuestion>,
    tick: u64,
    stats: CacheStats,
}

struct Slot {
    entry: Arc<Entry>,
    used: u64,
    weight: usize,
}

impl Cache {
    pub fn new(limits: CacheLimits) -> Self {
        Self {
            limits,
            slots: HashMap::new(),
            order: BTreeMap::new(),
            tick: 0,
            stats: CacheStats::default(),
        }
    }

    /// The answer to `question`, if one is there and fresh.
    pub fn find(&mut self, question: &UpstreamQuestion, now: Instant) -> Option<Arc<Entry>> {
        let Some(slot) = self.slots.get_mut(question) else {
            self.stats.misses += 1;
            return None;
        };
        if !slot.entry.is_fresh(now) {
            self.remove(question);
            self.stats.misses += 1;
            return None;
        }
        self.tick += 1;
        if let Some(question) = self.order.remove(&slot.used) {
            slot.used = self.tick;
            self.order.insert(self.tick, question);
        }
        self.stats.hits += 1;
        Some(Arc::clone(&slot.entry))
    }

    /// As `find`, without a trace in counters and order of use: for who has looked before.
    pub fn peek(&self, question: &UpstreamQuestion, now: Instant) -> Option<Arc<Entry>> {
        let slot = self.slots.get(question)?;
        let fresh = slot.entry.is_fresh(now);
        fresh.then(|| Arc::clone(&slot.entry))
    }

    /// Keeps `entry`, unless it is stale already or takes more than an eighth of the room.
    pub fn insert(&mut self, question: UpstreamQuestion, entry: Arc<Entry>, now: Instant) {
        self.remove(&question);
        let weight =
            entry.weight() + 2 * (size_of::<UpstreamQuestion>() + question.name.len() + 32);
        if !entry.is_fresh(now) || weight > self.limits.bytes / 8 {
            return;
        }
        self.tick += 1;
        self.order.insert(self.tick, question.clone());
        let used = self.tick;
        self.slots.insert(
            question,
            Slot {
                entry,
                used,
                weight,
            },
        );
        self.stats.bytes += weight as u64;
        self.make_room();
    }

    fn make_room(&mut self) {
        while self.stats.bytes > self.limits.bytes as u64 {
            let Some((_, question)) = self.order.pop_first() else {
                return;
            };
            self.remove(&question);
            self.stats.evicted += 1;
        }
    }

    fn remove(&mut self, question: &UpstreamQuestion) {
        if let Some(slot) = self.slots.remove(question) {
            self.order.remove(&slot.used);
            self.stats.bytes -= slot.weight as u64;
        }
    }

    /// Forgets what `flush` names and says how many entries that were.
    pub fn flush(&mut self, flush: &Flush) -> u64 {
        let doomed: Vec<UpstreamQuestion> = self
            .slots
            .iter()
            .filter(|(question, slot)| flush.covers_answer(question, &slot.entry))
            .map(|(question, _)| question.clone())
            .collect();
        doomed.iter().for_each(|question| self.remove(question));
        doomed.len() as u64
    }

    pub fn stats(&self) -> CacheStats {
        CacheStats {
            entries: self.slots.len() as u64,
            ..self.stats
        }
    }

    /// Every fresh entry with its question, for `dns dump`.
    pub fn entries(&self, now: Instant) -> impl Iterator<Item = (&UpstreamQuestion, &Arc<Entry>)> {
        let slots = self
            .slots
            .iter()
            .map(|(question, slot)| (question, &slot.entry));
        slots.filter(move |(_, entry)| entry.is_fresh(now))
    }
}

impl Flush {
    /// Whether an answer is among what is to be forgotten: its question, or where its aliases lead.
    pub(super) fn covers_answer(&self, question: &UpstreamQuestion, entry: &Entry) -> bool {
        let mut aliases = entry.aliases.iter();
        self.covers(&question.name) || aliases.any(|alias| self.covers(&alias.target))
    }

    /// Whether `name`, in lower-case wire form, is among what is to be forgotten.
    pub(super) fn covers(&self, name: &[u8]) -> bool {
        match self {
            Self::All => true,
            Self::Name(flushed) => **flushed == *name,
            Self::Subtree(top) => super::answer::is_at_or_below(name, top),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::dns::testing::{name, rdata};

    use super::*;

    fn record(owner: &str, rtype: RecordType, ttl: u32, words: &[&str]) -> Record {
        Record {
            owner: name(owner).as_wire().into(),
            rtype,
            ttl,
            data: rdata(rtype, words).into(),
        }
    }

    fn message(rcode: Rcode, answer: Vec<Record>, authority: Vec<Record>) -> Message {
        Message {
            id: 0,
            flags: 0,
            rcode,
            answer,
            authority,
            additional: Vec::new(),
        }
    }

    fn question(text: &str) -> UpstreamQuestion {
        UpstreamQuestion {
            name: name(text).as_wire().into(),
            rtype: RecordType::A,
            dnssec_ok: false,
            checking_disabled: false,
        }
    }

    fn address(ttl: u32) -> Record {
        record("a.test.", RecordType::A, ttl, &["192.0.2.1"])
    }

    fn soa(ttl: u32, minimum: &str) -> Record {
        record(
            "test.",
            RecordType::SOA,
            ttl,
            &["a.", "b.", "1", "1", "1", "1", minimum],
        )
    }

    /// Seconds that an answer lives.
    fn life(message: Message) -> u64 {
        let (limits, now) = (CacheLimits::default(), Instant::now());
        let entry = Entry::of_message(message, &question("a.test."), &limits, now);
        entry.expires.duration_since(now).as_secs()
    }

    #[test]
    fn an_answer_lives_as_long_as_its_shortest_record_and_a_denial_as_the_soa_says() {
        let alias = record("b.test.", RecordType::CNAME, 10, &["a.test."]);
        let ok = Rcode::NO_ERROR;
        let denied = Rcode::NX_DOMAIN;
        for (what, message, expected) in [
            ("an address", message(ok, vec![address(60)], vec![]), 60),
            (
                "an alias and an address",
                message(ok, vec![alias.clone(), address(60)], vec![]),
                10,
            ),
            (
                "longer than we keep",
                message(ok, vec![address(1 << 30)], vec![]),
                86_400,
            ),
            ("not to be kept", message(ok, vec![address(0)], vec![]), 0),
            (
                "no such name",
                message(denied, vec![], vec![soa(600, "30")]),
                30,
            ),
            (
                "the SOA's own TTL is shorter",
                message(denied, vec![], vec![soa(20, "30")]),
                20,
            ),
            (
                "no such data",
                message(ok, vec![], vec![soa(600, "40")]),
                40,
            ),
            (
                "longer than we keep a denial",
                message(denied, vec![], vec![soa(1 << 20, "99999")]),
                10_800,
            ),
            (
                "an alias to nothing",
                message(denied, vec![alias.clone()], vec![soa(600, "30")]),
                10,
            ),
            (
                "a denial without an SOA",
                message(denied, vec![], vec![]),
                0,
            ),
            ("nothing at all", message(ok, vec![], vec![]), 0),
            ("a failure", message(Rcode::SERV_FAIL, vec![], vec![]), 5),
        ] {
            assert_eq!(life(message), expected, "{what}");
        }
    }

    #[test]
    fn entries_end_with_their_time() {
        let limits = CacheLimits::default();
        let (mut cache, now) = (Cache::new(limits), Instant::now());
        let answer = message(Rcode::NO_ERROR, vec![address(60)], vec![]);
        let asked = question("a.test.");
        let entry = Arc::new(Entry::of_message(answer, &asked, &limits, now));
        cache.insert(question("a.test."), entry, now);
        let after = |seconds| now + Duration::from_secs(seconds);
        let found = cache.find(&question("a.test."), after(59)).expect("fresh");
        assert_eq!(found.age(after(59)), 59);
        let signed = UpstreamQuestion {
            dnssec_ok: true,
            ..question("a.test.")
        };
        assert!(cache.find(&signed, now).is_none(), "another question");
        assert!(cache.find(&question("a.test."), after(60)).is_none());
        let stats = cache.stats();
        assert_eq!(
            (stats.entries, stats.bytes, stats.hits, stats.misses),
            (0, 0, 1, 2)
        );
    }

    #[test]
    fn flushing_forgets_what_it_names_and_no_more() {
        let limits = CacheLimits::default();
        let (mut cache, now) = (Cache::new(limits), Instant::now());
        for text in ["a.test.", "b.a.test.", "ba.test.", "test."] {
            let entry = Entry::of_failure(ExtendedError::NOT_READY, &limits, now);
            cache.insert(question(text), Arc::new(entry), now);
        }
        let wire = |text: &str| name(text).as_wire().into();
        assert_eq!(cache.flush(&Flush::Name(wire("x.test."))), 0);
        assert_eq!(cache.flush(&Flush::Subtree(wire("a.test."))), 2);
        assert_eq!(cache.flush(&Flush::Name(wire("test."))), 1);
        assert_eq!(cache.entries(now).count(), 1);
        assert_eq!(cache.flush(&Flush::All), 1);
        assert_eq!(cache.stats().bytes, 0);
    }

    #[test]
    fn flushing_a_name_forgets_what_aliases_lead_to_it() {
        let limits = CacheLimits::default();
        let (mut cache, now) = (Cache::new(limits), Instant::now());
        let alias = |owner: &str, target: &str| record(owner, RecordType::CNAME, 60, &[target]);
        let chain = vec![alias("www.x.", "b.y."), alias("b.y.", "api.z.")];
        for (text, answer) in [("www.x.", chain), ("a.test.", vec![address(60)])] {
            let message = message(Rcode::NO_ERROR, answer, vec![]);
            let entry = Entry::of_message(message, &question(text), &limits, now);
            cache.insert(question(text), Arc::new(entry), now);
        }
        for (flush, forgotten) in [
            (Flush::Name(name("z.").as_wire().into()), 0),
            (Flush::Name(name("api.z.").as_wire().into()), 1),
            (Flush::Name(name("b.y.").as_wire().into()), 1),
            (Flush::Subtree(name("z.").as_wire().into()), 1),
        ] {
            let before = cache.peek(&question("www.x."), now).expect("kept");
            assert_eq!(cache.flush(&flush), forgotten, "{flush:?}");
            cache.insert(question("www.x."), before, now);
            assert_eq!(cache.entries(now).count(), 2);
        }
    }

    #[test]
    fn a_peek_leaves_no_trace() {
        let limits = CacheLimits::default();
        let (mut cache, now) = (Cache::new(limits), Instant::now());
        let entry = Entry::of_failure(ExtendedError::NOT_READY, &limits, now);
        cache.insert(question("a.test."), Arc::new(entry), now);
        let before = cache.stats();
        assert!(cache.peek(&question("a.test."), now).is_some());
        assert!(cache.peek(&question("b.test."), now).is_none());
        let late = now + limits.failure_ttl;
        assert!(cache.peek(&question("a.test."), late).is_none());
        assert_eq!(cache.stats(), before);
    }

    proptest! {
        #[test]
        fn the_cache_stays_within_its_bound(steps in proptest::collection::vec((0u16..200, 0u32..100, 0usize..40), 1..300)) {
            let limits = CacheLimits { bytes: 20_000, ..CacheLimits::default() };
            let (mut cache, mut now) = (Cache::new(limits), Instant::now());
            for (which, ttl, records) in steps {
                now += Duration::from_secs(1);
                let asked = question(&format!("n{which}.test."));
                let answer = message(Rcode::NO_ERROR, vec![address(ttl); records], vec![]);
                let entry = Arc::new(Entry::of_message(answer, &asked, &limits, now));
                let fits = entry.weight() < limits.bytes / 16 && entry.is_fresh(now);
                cache.insert(asked.clone(), entry, now);
                prop_assert!(cache.stats().bytes <= limits.bytes as u64);
                prop_assert_eq!(cache.order.len(), cache.slots.len());
                let sum: usize = cache.slots.values().map(|slot| slot.weight).sum();
                prop_assert_eq!(cache.stats().bytes, sum as u64);
                prop_assert!(!fits || cache.find(&asked, now).is_some());
            }
        }
    }
}
