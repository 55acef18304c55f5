//! What the workers and connections of one server have in common: the snapshot of the moment, the way to upstreams, and
//! the step from a message to its reply where that takes an upstream.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tokio::runtime::Handle;

use crate::{config::defaults::dns as defaults, model::snapshot::Snapshot};

use super::{
    cache::Entry,
    forward::{Forwarding, Place},
    respond::{Ask, Client, Identity, Replied, Response, complete, respond},
    stats::{Counters, Dropped},
};

pub(super) struct Service {
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    pub identity: Identity,
    pub forwarding: Arc<Forwarding>,
    pub runtime: Handle,
}

/// A message whose reply is not ready yet.
pub(super) struct Pending {
    service: Arc<Service>,
    snapshot: Arc<Snapshot>,
    message: Vec<u8>,
    client: Client,
    /// What upstreams said so far.
    upstream: Vec<Arc<Entry>>,
    ask: Ask,
    /// None when there was none where an alias led.
    place: Option<Place>,
}

/// How far a message got.
pub(super) enum Progress {
    /// The reply is written, or there is none.
    Done(Option<Replied>),
    Wait(Box<Pending>),
}

impl Service {
    /// Answers `message` as far as that goes without waiting, and counts what happens.
    pub fn handle(
        self: &Arc<Self>,
        snapshot: &Arc<Snapshot>,
        message: &[u8],
        client: Client,
        counters: &Counters,
        out: &mut Vec<u8>,
    ) -> Progress {
        let mut upstream: Vec<Arc<Entry>> = Vec::new();
        let mut response = respond(snapshot, &self.identity, message, client, out);
        // It asks a bounded number of times.
        while let Response::Ask(ask) = response {
            let now = Instant::now();
            let entry = match self.forwarding.cached(&ask.question, now) {
                Some(entry) => entry,
                None => match self.forwarding.place(client.address, &ask.forwarder) {
                    None => self.forwarding.overload(now),
                    Some(place) => {
                        return Progress::Wait(Box::new(Pending {
                            service: Arc::clone(self),
                            snapshot: Arc::clone(snapshot),
                            message: message.to_vec(),
                            client,
                            upstream,
                            ask,
                            place: Some(place),
                        }));
                    }
                },
            };
            upstream.push(entry);
            let said = (upstream.as_slice(), now);
            response = complete(snapshot, &self.identity, message, client, said, out);
        }
        Progress::Done(settle(response, counters))
    }
}

impl Pending {
    /// Waits for the upstreams and writes the reply. Takes at most twice the time that one question to upstreams may take:
    /// none is begun after that time.
    pub async fn finish(
        mut self: Box<Self>,
        counters: &Counters,
        out: &mut Vec<u8>,
    ) -> Option<Replied> {
        let deadline = Instant::now() + self.service.forwarding.total();
        // Whoever made this has looked for the first.
        let mut cached = None;
        loop {
            let forwarding = &self.service.forwarding;
            let now = Instant::now();
            let entry = match cached.take() {
                Some(entry) => entry,
                None if now >= deadline => forwarding.out_of_time(now),
                None if self.place.is_none() => forwarding.overload(now),
                None => forwarding.resolve(self.ask.clone(), deadline).await,
            };
            self.upstream.push(entry);
            let response = complete(
                &self.snapshot,
                &self.service.identity,
                &self.message,
                self.client,
                (&self.upstream, Instant::now()),
                out,
            );
            match response {
                Response::Ask(next) => {
                    cached = self
                        .service
                        .forwarding
                        .cached(&next.question, Instant::now());
                    if cached.is_none() {
                        self.place = self.place.take().and_then(|p| p.at(&next.forwarder));
                    }
                    self.ask = next;
                }
                last => return settle(last, counters),
            }
        }
    }
}

/// Counts what became of a message, and says what is known of its reply.
fn settle(response: Response, counters: &Counters) -> Option<Replied> {
    match response {
        Response::Reply(replied) => {
            counters.reply(replied.rcode, replied.truncated);
            return Some(replied);
        }
        Response::Silence(why) => counters.dropped(why.into()),
        // Whoever calls this asks until there is something else.
        Response::Ask(_) => counters.dropped(Dropped::Fault),
    }
    None
}

/// Bounds of the TCP side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpLimits {
    /// Connections at one time; more are closed at once.
    pub max_connections: usize,
    /// Of these, from one client address.
    pub max_connections_per_client: usize,
    /// Questions of one connection that wait for upstreams at one time; further ones are read later.
    pub max_pipelined: usize,
    /// Longest silence between two queries (RFC 7766 section 6.2.3).
    pub idle: Duration,
    /// Longest time from the first octet of a query to its last.
    pub read: Duration,
    /// Longest time for a reply to be taken.
    pub write: Duration,
    /// Longest life of a connection.
    pub lifetime: Duration,
}

impl Default for TcpLimits {
    fn default() -> Self {
        Self {
            max_connections: defaults::TCP_CONNECTIONS as usize,
            max_connections_per_client: defaults::TCP_CONNECTIONS_PER_CLIENT as usize,
            max_pipelined: 64,
            idle: Duration::from_secs(20),
            read: Duration::from_secs(5),
            write: Duration::from_secs(10),
            lifetime: Duration::from_secs(600),
        }
    }
}
