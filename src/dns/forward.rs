//! Asking upstream servers: one query under way per question, everything bounded, replies checked before they count.
//!
//! Owns the cache and the tasks of queries under way. `stop` ends them. It never decides whether a client may ask.

use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tokio::{net::UdpSocket, sync::watch, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    config::defaults::dns as defaults,
    model::{forwarder::Forwarder, snapshot::Snapshot},
    shortage::{Shortage, shortage},
    telemetry::throttle::Throttle,
};

use super::{
    answer::forwarder_for,
    attempts::share,
    cache::{Cache, CacheLimits, CacheStats, Entry, Flush},
    exchange::{Exchange, Failure},
    flushes::Flushes,
    message::{
        ExtendedError,
        upstream::{Message, UpstreamQuestion},
    },
    query_source::in_place_of,
    respond::Ask,
    socket::unspecified,
    stats::{ForwardCounters, ForwardStats, count},
    under_way::{Share, Turn, UnderWay},
    upstream_times::UpstreamTimes,
    waiting::Waiting,
};

/// Parts of the cache, each with its own lock, so that workers seldom wait for each other.
const PARTS: usize = 8;

/// Bounds of forwarding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardLimits {
    pub cache: CacheLimits,
    /// Questions to upstreams under way at one time. Where there are several forwarders, half of that for each.
    pub max_outstanding: usize,
    /// Client questions waiting for them at one time. Where there are several forwarders, half of that for each.
    pub max_waiting: usize,
    /// Of these, from one client address; half of that for each forwarder, too.
    pub max_waiting_per_client: usize,
    /// Longest time for one question with all its upstreams and repeats.
    pub total: Duration,
    /// Own addresses for queries to upstreams where the kernel would choose a VIP.
    pub sources: Vec<IpAddr>,
}

impl Default for ForwardLimits {
    fn default() -> Self {
        Self {
            cache: CacheLimits::default(),
            max_outstanding: defaults::UPSTREAM_QUERIES as usize,
            max_waiting: defaults::WAITING_QUESTIONS as usize,
            max_waiting_per_client: defaults::WAITING_QUESTIONS_PER_CLIENT as usize,
            // Clients give up after about as long.
            total: Duration::from_secs(10),
            sources: Vec::new(),
        }
    }
}

/// The answer to a question that is under way: none yet.
type Awaited = watch::Receiver<Option<Arc<Entry>>>;

/// The cache and what is under way.
pub(super) struct Forwarding {
    limits: ForwardLimits,
    /// What is served at the moment.
    snapshot: Arc<ArcSwap<Snapshot>>,
    parts: Vec<Mutex<Cache>>,
    hasher: RandomState,
    under_way: Mutex<UnderWay<Awaited>>,
    waiting: Mutex<Waiting>,
    times: Mutex<UpstreamTimes>,
    /// An answer to a question from before one that covers it is not kept. Locked last.
    flushes: Mutex<Flushes>,
    pub(super) counters: ForwardCounters,
    /// When the log was last told what this node lacks to ask upstreams.
    pub(super) told: Throttle,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

/// The right of one client question to wait for a forwarder. Dropping it gives the place back.
pub(super) struct Place {
    forwarding: Arc<Forwarding>,
    client: IpAddr,
    forwarder: Arc<Forwarder>,
}

impl Place {
    /// Makes it a place to wait for `forwarder`, as where an alias leads to another. None: it, or the client, has too many.
    pub fn at(self, forwarder: &Arc<Forwarder>) -> Option<Self> {
        if self.forwarder.suffix == forwarder.suffix {
            return Some(self);
        }
        let (forwarding, client) = (Arc::clone(&self.forwarding), self.client);
        drop(self);
        forwarding.place(client, forwarder)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        locked(&self.forwarding.waiting).end(self.client, &self.forwarder.suffix);
    }
}

/// Locks what no panic can leave half done: every critical section here is a few map operations.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Forwarding {
    pub fn new(limits: ForwardLimits, snapshot: Arc<ArcSwap<Snapshot>>) -> Arc<Self> {
        let part = CacheLimits {
            bytes: limits.cache.bytes / PARTS,
            ..limits.cache
        };
        let waiting = Waiting::new(limits.max_waiting, limits.max_waiting_per_client);
        Arc::new(Self {
            under_way: Mutex::new(UnderWay::new(limits.max_outstanding)),
            limits,
            snapshot,
            parts: (0..PARTS).map(|_| Mutex::new(Cache::new(part))).collect(),
            hasher: RandomState::new(),
            waiting: Mutex::new(waiting),
            times: Mutex::default(),
            flushes: Mutex::default(),
            counters: ForwardCounters::default(),
            told: Throttle::default(),
            tasks: TaskTracker::new(),
            cancel: CancellationToken::new(),
        })
    }

    fn part(&self, question: &UpstreamQuestion) -> MutexGuard<'_, Cache> {
        let at = self.hasher.hash_one(question) as usize % self.parts.len();
        locked(&self.parts[at])
    }

    /// The answer to `question` if it is at hand; counted as a hit or a miss.
    pub fn cached(&self, question: &UpstreamQuestion, now: Instant) -> Option<Arc<Entry>> {
        self.part(question).find(question, now)
    }

    /// A place for one more question of `client` that waits for `forwarder`; none when either, or everybody together, has too
    /// many.
    pub fn place(self: &Arc<Self>, client: IpAddr, forwarder: &Arc<Forwarder>) -> Option<Place> {
        let share = self.share();
        if !locked(&self.waiting).begin(client, &forwarder.suffix, share) {
            count(&self.counters.shed);
            return None;
        }
        Some(Place {
            forwarding: Arc::clone(self),
            client,
            forwarder: Arc::clone(forwarder),
        })
    }

    /// What a client is told that finds no place.
    pub fn overload(&self, now: Instant) -> Arc<Entry> {
        let error = ExtendedError::NOT_READY;
        Arc::new(Entry::of_failure(error, &self.limits.cache, now))
    }

    /// What a client is told for whose question no time is left.
    pub fn out_of_time(&self, now: Instant) -> Arc<Entry> {
        let error = ExtendedError::UPSTREAM_SILENT;
        Arc::new(Entry::of_failure(error, &self.limits.cache, now))
    }

    /// Longest time for one question to upstreams.
    pub fn total(&self) -> Duration {
        self.limits.total
    }

    /// Runs `work` among the tasks that `stop` ends.
    pub fn spawn(
        &self,
        runtime: &tokio::runtime::Handle,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
        let cancel = self.cancel.clone();
        self.tasks.spawn_on(
            async move {
                // A cancelled question is one whose client will get no answer: the server is stopping.
                let _ = cancel.run_until_cancelled(work).await;
            },
            runtime,
        );
    }

    /// Ends every task and waits for them.
    pub async fn stop(&self) {
        self.cancel.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// The answer of an upstream, from a query that is under way for somebody else if there is one. None is begun at `deadline` or later.
    pub async fn resolve(self: &Arc<Self>, ask: Ask, deadline: Instant) -> Arc<Entry> {
        let asked = locked(&self.flushes).number();
        let mut not_before = 0;
        loop {
            let (mut answer, begun) = match self.join(ask.clone(), not_before) {
                Ok(joined) => joined,
                Err(entry) => return entry,
            };
            let done = answer.wait_for(Option::is_some).await;
            let entry = done.ok().and_then(|entry| entry.clone());
            let Some(entry) = entry else {
                return self.overload(Instant::now());
            };
            // Who asks after a flush is told nothing from before it. That aliases lead to what was flushed is known only now.
            let covers = |flush: &Flush| flush.covers_answer(&ask.question, &entry);
            if !locked(&self.flushes).any_between(begun, asked, covers) {
                return entry;
            }
            let now = Instant::now();
            if now >= deadline {
                return self.out_of_time(now);
            }
            not_before = asked;
        }
    }

    /// The query under way for this question, and how many flushes there were before it: started now if there is none to the same
    /// servers since the question was last flushed, and since the flush number `not_before`.
    fn join(self: &Arc<Self>, ask: Ask, not_before: u64) -> Result<(Awaited, u64), Arc<Entry>> {
        let mut under_way = locked(&self.under_way);
        let flushes = locked(&self.flushes);
        let epoch = flushes.number();
        let is_current = |since| {
            since >= not_before
                && !flushes.any_since(since, |flush| flush.covers(&ask.question.name))
        };
        let found = under_way.find(&ask.question, &ask.forwarder, is_current);
        drop(flushes);
        if let Some(joined) = found {
            count(&self.counters.coalesced);
            return Ok(joined);
        }
        // It may have ended between the look into the cache, which was counted, and now.
        let now = Instant::now();
        if let Some(entry) = self.part(&ask.question).peek(&ask.question, now) {
            return Err(entry);
        }
        let (sender, answer) = watch::channel(None);
        let share = self.share();
        let turn = under_way.begin(&ask.question, &ask.forwarder, epoch, share, answer.clone());
        let Some(turn) = turn else {
            count(&self.counters.shed);
            return Err(self.overload(now));
        };
        // A runtime that is ending drops the task at once, and that takes the lock.
        drop(under_way);
        let lead = Lead {
            forwarding: Arc::clone(self),
            ask,
            turn,
            epoch,
            answer: sender,
        };
        self.spawn(&tokio::runtime::Handle::current(), lead.run());
        Ok((answer, epoch))
    }

    /// What one forwarder may have under way.
    fn share(&self) -> Share {
        match self.snapshot.load().forwarders.len() {
            0 | 1 => Share::Whole,
            _ => Share::Half,
        }
    }

    /// Forgets cached answers and says how many. Those under way that are covered are not kept.
    pub fn flush(&self, flush: &Flush) -> u64 {
        locked(&self.flushes).add(flush.clone());
        self.parts
            .iter()
            .map(|part| locked(part).flush(flush))
            .sum()
    }

    pub fn cache_stats(&self) -> CacheStats {
        let mut sum = CacheStats::default();
        for part in &self.parts {
            let stats = locked(part).stats();
            sum.entries += stats.entries;
            sum.bytes += stats.bytes;
            sum.hits += stats.hits;
            sum.misses += stats.misses;
            sum.evicted += stats.evicted;
        }
        sum
    }

    /// Fresh entries with their questions, at most `limit`.
    pub fn dump(&self, limit: usize) -> Vec<(UpstreamQuestion, Arc<Entry>)> {
        let now = Instant::now();
        let mut all = Vec::new();
        for part in &self.parts {
            let part = locked(part);
            let rest = limit - all.len();
            let entries = part.entries(now).take(rest);
            all.extend(entries.map(|(question, entry)| (question.clone(), Arc::clone(entry))));
        }
        all
    }

    pub fn stats(&self) -> ForwardStats {
        let counters = &self.counters;
        let (outstanding, most_of_one) = {
            let under_way = locked(&self.under_way);
            (under_way.total() as u64, under_way.most_of_one() as u64)
        };
        ForwardStats {
            sent: counters.sent.load(Relaxed),
            timed_out: counters.timed_out.load(Relaxed),
            failed: counters.failed.load(Relaxed),
            ignored: counters.ignored.load(Relaxed),
            over_tcp: counters.over_tcp.load(Relaxed),
            coalesced: counters.coalesced.load(Relaxed),
            shed: counters.shed.load(Relaxed),
            outstanding,
            most_of_one,
            waiting: locked(&self.waiting).total() as u64,
            unasked: counters.unasked.load(Relaxed),
        }
    }

    /// A socket to `upstream`, at the address that queries to it are to leave from.
    pub(super) async fn socket_to(&self, upstream: SocketAddr) -> io::Result<UdpSocket> {
        let socket = connected(unspecified(upstream), upstream).await?;
        let chosen = socket.local_addr()?.ip();
        let others = in_place_of(chosen, &self.snapshot.load().vips, &self.limits.sources);
        for own in others {
            match connected(own, upstream).await {
                Ok(better) => return Ok(better),
                // From the VIP the answer might go to another node, and the server would seem silent.
                Err(error) if shortage(&error) == Some(Shortage::Resources) => return Err(error),
                // One that the host has lost, or that leads nowhere, is no reason to ask nobody.
                Err(_) => {}
            }
        }
        Ok(socket)
    }
}

/// A socket of its own for each query: the kernel draws the port at random, and hands us nothing that does not come from
/// the server's address and port (RFC 5452 section 9.2).
async fn connected(own: IpAddr, upstream: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(SocketAddr::new(own, 0)).await?;
    socket.connect(upstream).await?;
    Ok(socket)
}

/// The task that asks upstreams for everybody who waits for a question.
struct Lead {
    forwarding: Arc<Forwarding>,
    ask: Ask,
    turn: Turn,
    /// Flushes before it began.
    epoch: u64,
    answer: watch::Sender<Option<Arc<Entry>>>,
}

impl Drop for Lead {
    /// However the task ends, the question is no longer under way; who still waits sees the sender go.
    fn drop(&mut self) {
        locked(&self.forwarding.under_way).end(&self.ask.question, &self.turn);
    }
}

impl Lead {
    async fn run(self) {
        let limits = &self.forwarding.limits.cache;
        let answered = self.ask_all().await;
        let now = Instant::now();
        let keeps = answered
            .as_ref()
            .err()
            .is_none_or(|failure| failure.is_kept());
        let entry = Arc::new(match answered {
            Ok(message) => Entry::of_message(message, &self.ask.question, limits, now),
            Err(failure) => Entry::of_failure(failure.explained(), limits, now),
        });
        let question = self.ask.question.clone();
        let mut part = self.forwarding.part(&question);
        // Under the lock: who flushes has set what is flushed for before, and takes the lock after.
        let flushed = locked(&self.forwarding.flushes)
            .any_since(self.epoch, |flush| flush.covers_answer(&question, &entry));
        if keeps && !flushed && self.is_still_asked_for() {
            part.insert(question, Arc::clone(&entry), now);
        }
        drop(part);
        self.answer.send_replace(Some(entry));
    }

    /// Whether the forwarder is the one for this name now: it may have been changed since the client asked.
    fn is_still_asked_for(&self) -> bool {
        let snapshot = self.forwarding.snapshot.load();
        let question = &self.ask.question;
        let now = forwarder_for(&snapshot, &question.name, question.rtype);
        now.is_some_and(|now| *now == self.ask.forwarder)
    }

    /// Asks the upstreams in turn; those that were silent a second time, since packets get lost. Each gets its share of the
    /// time, so that all of it never goes to one. Of several failures the one that says most is returned.
    async fn ask_all(&self) -> Result<Message, Failure> {
        let forwarder = &self.ask.forwarder;
        let deadline = Instant::now() + self.forwarding.limits.total;
        let mut servers = locked(&self.forwarding.times).order(&forwarder.upstreams);
        // Each is at least this.
        let mut worst = Failure::Silent;
        for _ in 0..2 {
            let mut silent = Vec::new();
            let number = servers.len();
            for (at, server) in servers.into_iter().enumerate() {
                let left = deadline.saturating_duration_since(Instant::now());
                let Some(patience) = share(left, number - at, forwarder.timeout) else {
                    return Err(worst);
                };
                let failure = match self.ask_one(server, patience).await {
                    Ok(message) => return Ok(message),
                    Err(failure) => failure,
                };
                if failure == Failure::Silent {
                    silent.push(server);
                }
                worst = worst.max(failure);
            }
            servers = silent;
        }
        Err(worst)
    }

    /// One server, with the bookkeeping around it.
    async fn ask_one(&self, server: SocketAddr, patience: Duration) -> Result<Message, Failure> {
        let started = Instant::now();
        let exchange = Exchange {
            forwarding: &self.forwarding,
            ask: &self.ask,
            server,
        };
        let asked = timeout(patience, exchange.run()).await;
        let result = asked.unwrap_or(Err(Failure::Silent));
        let took = started.elapsed();
        let mut times = locked(&self.forwarding.times);
        let counters = &self.forwarding.counters;
        match &result {
            Ok(_) => times.answered(server, took),
            Err(Failure::Silent) => {
                count(&counters.timed_out);
                times.failed(server, took.max(patience));
            }
            Err(Failure::Broken | Failure::Nonsense | Failure::Error(_)) => {
                count(&counters.failed);
                times.failed(server, patience);
            }
            Err(Failure::Unasked) => count(&counters.unasked),
        }
        result
    }
}
