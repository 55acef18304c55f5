//! What the workers and connections of one server have in common: the snapshot of the moment, the way to upstreams, and
//! the step from a message to its reply where that takes an upstream.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tokio::runtime::Handle;

use crate::model::snapshot::Snapshot;

use super::{
    forward::{Forwarding, Place},
    respond::{Ask, Client, Identity, Response, complete, respond},
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
    ask: Ask,
    _place: Place,
}

/// How far a message got.
pub(super) enum Progress {
    /// The reply is written, or there is none.
    Done,
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
    ) -> (Progress, Option<super::answer::Source>) {
        let mut source = None;
        let response = respond(snapshot, &self.identity, message, client, out);
        let progress = match response {
            Response::Ask(ask) => self.ask(snapshot, message, client, ask, counters, out),
            Response::Reply(replied) => {
                counters.reply(replied.rcode, replied.truncated);
                source = replied.source;
                Progress::Done
            }
            Response::Silence(why) => {
                counters.dropped(why.into());
                Progress::Done
            }
        };
        (progress, source)
    }

    fn ask(
        self: &Arc<Self>,
        snapshot: &Arc<Snapshot>,
        message: &[u8],
        client: Client,
        ask: Ask,
        counters: &Counters,
        out: &mut Vec<u8>,
    ) -> Progress {
        let now = Instant::now();
        let at_hand = self.forwarding.cached(&ask.question, now);
        let place = match &at_hand {
            Some(_) => None,
            None => self.forwarding.place(client.address),
        };
        if let Some(place) = place {
            return Progress::Wait(Box::new(Pending {
                service: Arc::clone(self),
                snapshot: Arc::clone(snapshot),
                message: message.to_vec(),
                client,
                ask,
                _place: place,
            }));
        }
        let entry = at_hand.unwrap_or_else(|| self.forwarding.overload(now));
        let upstream = (&*entry, now);
        let response = complete(snapshot, &self.identity, message, client, upstream, out);
        count_response(&response, counters);
        Progress::Done
    }
}

impl Pending {
    /// Waits for the upstream, at most as long as `Forwarding` lets it take, and writes the reply.
    pub async fn finish(self: Box<Self>, counters: &Counters, out: &mut Vec<u8>) {
        let forwarding = &self.service.forwarding;
        let entry = forwarding.resolve(self.ask.clone()).await;
        let response = complete(
            &self.snapshot,
            &self.service.identity,
            &self.message,
            self.client,
            (&entry, Instant::now()),
            out,
        );
        count_response(&response, counters);
    }
}

fn count_response(response: &Response, counters: &Counters) {
    match response {
        Response::Reply(replied) => counters.reply(replied.rcode, replied.truncated),
        Response::Silence(why) => counters.dropped((*why).into()),
        // `complete` asks nothing.
        Response::Ask(_) => counters.dropped(Dropped::Fault),
    }
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
            max_connections: 2_000,
            max_connections_per_client: 200,
            max_pipelined: 64,
            idle: Duration::from_secs(20),
            read: Duration::from_secs(5),
            write: Duration::from_secs(10),
            lifetime: Duration::from_secs(600),
        }
    }
}
