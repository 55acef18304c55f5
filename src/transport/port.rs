//! What a port grants to those who connect, and what it counts. Whoever accepts asks; the metrics look on.
//!
//! The TCP connections that have not begun to speak are bounded, too. One more ends the oldest of the source that has
//! most of them: a flood ends its own, and a peer that speaks at once gets through. They hold no place among the connections
//! proper, whose number is bounded on its own.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Between two lines of the log on connections that one port turned away.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// The bounds of one port.
pub struct Port {
    name: &'static str,
    limits: PortLimits,
    open: Arc<Semaphore>,
    without_certificate: Arc<Semaphore>,
    refused: [AtomicU64; Refusal::ALL.len()],
    told: Mutex<Option<Instant>>,
}

/// How many connections may be open at one time, and how long they may say nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortLimits {
    pub connections: usize,
    /// Of these, over TLS without a client certificate.
    pub without_certificate: usize,
    /// Beside these: over TCP, and the client has not begun to speak.
    pub unfinished: usize,
    /// How long a client has to begin: for the TLS handshake, and again for the preface of HTTP/2.
    pub begin: Duration,
}

impl PortLimits {
    const UNFINISHED: usize = 256;
    const BEGIN: Duration = Duration::from_secs(5);

    /// Where no connection goes without a certificate, or none is ever shown.
    pub fn of(connections: usize) -> Self {
        Self {
            connections,
            without_certificate: connections,
            unfinished: Self::UNFINISHED,
            begin: Self::BEGIN,
        }
    }
}

/// Why a connection was ended before it was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// As many were open as may be.
    Limit,
    /// Too many had not begun to speak: it gave way to a newer one.
    Unfinished,
    /// It did not begin to speak in time.
    Silent,
}

impl Refusal {
    pub const ALL: [Self; 3] = [Self::Limit, Self::Unfinished, Self::Silent];

    /// The word for it in the metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::Unfinished => "unfinished",
            Self::Silent => "silent",
        }
    }
}

impl Port {
    /// `name`: as the metrics and the log call it.
    pub fn new(name: &'static str, limits: PortLimits) -> Arc<Self> {
        Arc::new(Self {
            name,
            limits,
            open: Arc::new(Semaphore::new(limits.connections)),
            without_certificate: Arc::new(Semaphore::new(limits.without_certificate)),
            refused: Default::default(),
            told: Mutex::default(),
        })
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    pub fn limits(&self) -> PortLimits {
        self.limits
    }

    /// Connections that are open and were not refused.
    pub fn open(&self) -> usize {
        let free = self.open.available_permits();
        self.limits.connections.saturating_sub(free)
    }

    /// Connections refused since the start.
    pub fn refused(&self, why: Refusal) -> u64 {
        self.refused[why as usize].load(Ordering::Relaxed)
    }

    /// A place for a connection, until the answer is dropped. None at the limit: it is counted, and the connection is to be
    /// closed.
    pub(super) fn admit(self: &Arc<Self>, has_certificate: bool) -> Option<Place> {
        let kinds = [
            (true, &self.open),
            (!has_certificate, &self.without_certificate),
        ];
        let permits = kinds
            .into_iter()
            .filter(|(applies, _)| *applies)
            .map(|(_, limit)| Arc::clone(limit).try_acquire_owned());
        match permits.collect::<Result<Vec<_>, _>>() {
            Ok(permits) => Some(Place {
                port: Arc::clone(self),
                _permits: permits,
            }),
            Err(_) => {
                self.refuse(Refusal::Limit);
                None
            }
        }
    }

    /// Counts a refusal, and tells of the limits at most once a minute.
    pub(super) fn refuse(&self, why: Refusal) {
        self.refused[why as usize].fetch_add(1, Ordering::Relaxed);
        if why == Refusal::Silent {
            return tracing::debug!(port = self.name, "a client did not begin to speak in time");
        }
        let now = Instant::now();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_some_and(|last| now.saturating_duration_since(last) < TELL_EVERY) {
            return;
        }
        *told = Some(now);
        drop(told);
        tracing::warn!(
            port = self.name,
            limit = self.limits.connections,
            limit_without_certificate = self.limits.without_certificate,
            limit_unfinished = self.limits.unfinished,
            turned_away = self.refused(Refusal::Limit),
            given_up = self.refused(Refusal::Unfinished),
            "connections are closed at a limit: look who makes so many"
        );
    }
}

/// The place of one connection among those that may be open.
pub(super) struct Place {
    port: Arc<Port>,
    _permits: Vec<OwnedSemaphorePermit>,
}

impl Place {
    pub(super) fn port(&self) -> &Port {
        &self.port
    }
}

/// Connections that have not begun to speak, oldest first, by where they come from.
pub(super) struct Unfinished<T> {
    most: usize,
    waiting: VecDeque<(IpAddr, T)>,
}

impl<T> Unfinished<T> {
    /// For at most `most`.
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            waiting: VecDeque::new(),
        }
    }

    /// Forgets those for which `goes_on` does not hold.
    pub(super) fn retain(&mut self, mut goes_on: impl FnMut(&T) -> bool) {
        self.waiting.retain(|(_, waiting)| goes_on(waiting));
    }

    /// Takes a new one, and gives back the one that has to go for it, if there are too many: the oldest of the source that has
    /// most of them.
    pub(super) fn add(&mut self, from: IpAddr, new: T) -> Option<T> {
        self.waiting.push_back((source(from), new));
        if self.waiting.len() <= self.most {
            return None;
        }
        let mut counts: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for (source, _) in &self.waiting {
            *counts.entry(*source).or_default() += 1;
        }
        let most = counts.values().copied().max()?;
        let crowded = |(source, _): &(IpAddr, T)| counts.get(source) == Some(&most);
        let oldest = self.waiting.iter().position(crowded)?;
        self.waiting.remove(oldest).map(|(_, waiting)| waiting)
    }
}

/// Who counts as one source: an IPv4 address, or a network of 64 bits in IPv6, all of which one host may use.
fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn port(connections: usize, without_certificate: usize) -> Arc<Port> {
        let limits = PortLimits {
            connections,
            without_certificate,
            ..PortLimits::of(connections)
        };
        Port::new("test", limits)
    }

    #[test]
    fn strangers_leave_places_to_those_with_a_certificate() {
        let port = port(3, 1);
        let stranger = port.admit(false);
        assert!(stranger.is_some() && port.admit(false).is_none());
        let members = [port.admit(true), port.admit(true)];
        assert!(members.iter().all(Option::is_some));
        assert!(port.admit(true).is_none());
        assert_eq!((port.open(), port.refused(Refusal::Limit)), (3, 2));
        drop(stranger);
        assert_eq!(port.open(), 2);
        assert!(port.admit(false).is_some(), "its place is free again");
    }

    #[test]
    fn hosts_are_counted_by_address_and_networks_of_ipv6_by_64_bits() {
        let of = |text: &str| source(text.parse().expect("an address"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }

    proptest! {
        /// Whoever floods ends its own connections, not those of a peer that has a few.
        #[test]
        fn a_flood_ends_only_what_belongs_to_it(
            arrivals in proptest::collection::vec(0_u8..4, 1..200),
        ) {
            const MOST: usize = 16;
            let host = |number: u8| IpAddr::from([192, 0, 2, number]);
            let mut unfinished = Unfinished::new(MOST);
            let mut alive: Vec<(u8, usize)> = Vec::new();
            for (order, from) in arrivals.into_iter().enumerate() {
                alive.push((from, order));
                let ended = unfinished.add(host(from), (from, order));
                let count = |from: u8| alive.iter().filter(|(other, _)| *other == from).count();
                if let Some(ended) = ended {
                    prop_assert_eq!(alive.len(), MOST + 1);
                    prop_assert!((0..4).all(|other| count(other) <= count(ended.0)));
                    let oldest = alive.iter().find(|(from, _)| *from == ended.0);
                    prop_assert_eq!(oldest, Some(&ended));
                    alive.retain(|other| *other != ended);
                }
                prop_assert!(alive.len() <= MOST);
            }
            unfinished.retain(|_| false);
            prop_assert!(unfinished.waiting.is_empty());
        }
    }
}
