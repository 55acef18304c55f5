//! `pontoon watch`.

use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::{
    Context,
    client::Client,
    pool::{CheckJson, check_json, policy_text, state_text},
    rrsets::{RecordSet, received_as_json},
};
use crate::{
    api::status::may_pass,
    model::rrset::RecordType,
    wire::{
        error::{Failure, FailureCode},
        v1::{self, watch_change::Object, watch_client::WatchClient, watch_event::Kind},
    },
};

/// Between two attempts to go on with a node that is behind.
const BEHIND_PAUSE: Duration = Duration::from_millis(200);

/// Stream changes as they are applied, a line each
///
/// When the node that is watched goes, another endpoint takes over from the last revision that was complete: a change may be
/// told twice, none is left out. Resume a watch that was ended with the revision of the last `caught_up` line. When that is
/// too old, the first line is `compacted`, and the whole state follows.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pontoon watch
  pontoon watch --from 42 -o json
  pontoon watch --from 0           # the whole state first")]
pub struct Watch {
    /// Changes after this revision; 0: the whole state first [default: from now on]
    #[arg(long, value_name = "REVISION")]
    from: Option<u64>,
}

/// One line.
#[derive(Serialize)]
struct Line {
    revision: u64,
    #[serde(flatten)]
    event: Event,
}

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Event {
    /// Forget everything: the whole state follows.
    Compacted { oldest: u64 },
    /// Everything up to the revision has been sent.
    CaughtUp {
        state_hash: Option<String>,
        /// Log index the hash is of.
        applied: Option<u64>,
    },
    /// An object is so now, or is gone.
    Change {
        object: &'static str,
        name: String,
        deleted: bool,
        #[serde(flatten)]
        value: Value,
    },
}

/// What an object is now.
#[derive(Serialize)]
#[serde(untagged)]
enum Value {
    Gone {},
    Zone {
        serial: u32,
        /// The records are all there are: forget what was before.
        whole: bool,
        put: Vec<RecordSet>,
        removed: Vec<Removed>,
    },
    Pool {
        policy: &'static str,
        /// Null: every backend counts as healthy.
        health_check: Option<CheckJson>,
        connect_timeout_ms: u64,
        connect_retries: u32,
        backends: Vec<Backend>,
    },
    Listener {
        /// Null: every node's service addresses and every VIP.
        address: Option<String>,
        port: u32,
        pool: String,
        idle_timeout_ms: u64,
        max_connections: u32,
    },
    Vip {
        interface: String,
    },
    Forwarder {
        upstreams: Vec<String>,
        timeout_ms: u64,
    },
    DnsPolicy {
        recursion_allowed: Vec<String>,
    },
}

#[derive(Serialize)]
struct Removed {
    name: String,
    #[serde(rename = "type")]
    rtype: String,
}

#[derive(Serialize)]
struct Backend {
    name: String,
    address: String,
    weight: u32,
    state: &'static str,
}

impl Watch {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let mut progress = Progress::from(self.from);
        let mut client = Client::connect(context).await?;
        let mut events = open(&mut client, &progress).await?;
        loop {
            let lost = follow(context, &client, &mut events, &mut progress).await?;
            context
                .out
                .remark(&format!("{lost}; asking for what follows"));
            progress.begin_again();
            (client, events) = go_on(context, &progress)
                .await
                .map_err(|failure| progress.hinted(failure))?;
        }
    }
}

/// How far the stream has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Progress {
    /// Everything up to it was written; none: from now on.
    after: Option<u64>,
    /// The revision whose changes are being written.
    at: Option<u64>,
    /// The whole state is being written: it is complete with the next `caught_up`, and not before.
    whole: bool,
    /// A part of the whole state was written.
    partial: bool,
    /// Another stream begins the whole state again: what was written of it may name objects that are gone by now.
    forget: bool,
}

impl Progress {
    fn from(after: Option<u64>) -> Self {
        Self {
            after,
            at: None,
            whole: after == Some(0),
            partial: false,
            forget: false,
        }
    }

    /// A new stream begins after `after`.
    fn begin_again(&mut self) {
        *self = Self {
            forget: self.forget || self.partial,
            ..Self::from(self.after)
        };
    }

    fn saw(&mut self, event: &v1::WatchEvent) {
        match event.kind {
            Some(Kind::CaughtUp(_)) => *self = Self::from(Some(event.revision)),
            Some(Kind::Compacted(_)) => self.whole = true,
            Some(Kind::Change(_)) if self.whole => self.partial = true,
            Some(Kind::Change(_)) if event.complete => *self = Self::from(Some(event.revision)),
            // A change of a later revision says that those of the one before are complete.
            Some(Kind::Change(_)) => {
                if let Some(at) = self.at.filter(|at| *at < event.revision) {
                    self.after = Some(at);
                }
                self.at = Some(event.revision);
            }
            None => {}
        }
    }

    fn hinted(&self, failure: Failure) -> Failure {
        match self.after {
            None => failure,
            Some(after) => Failure {
                hint: format!("go on with `pontoon watch --from {after}`"),
                ..failure
            },
        }
    }
}

type Events = tonic::Streaming<v1::WatchEvent>;

async fn open(client: &mut Client, progress: &Progress) -> Result<Events, Failure> {
    let request = v1::WatchRequest {
        after_revision: progress.after,
    };
    client
        .open("watch", async |channel| {
            WatchClient::new(channel)
                .max_decoding_message_size(super::client::MAX_REPLY)
                .watch(request)
                .await
        })
        .await
}

/// Writes events until the stream breaks; the failure says how. What cannot be mended by asking another node is an error.
async fn follow(
    context: &Context,
    client: &Client,
    events: &mut Events,
    progress: &mut Progress,
) -> Result<Failure, Failure> {
    loop {
        let event = match events.message().await {
            Ok(Some(event)) => event,
            Ok(None) => {
                let problem = format!("endpoint {}: the node ended it", client.endpoint());
                return Ok(Failure::new(FailureCode::Unreachable, "watch", problem, ""));
            }
            Err(status) => {
                let failure = client.failure(&status, "watch", false);
                // A node that was removed tells no more; another one does.
                return match may_pass(&status) || failure.code == FailureCode::NotReady {
                    true => Ok(failure),
                    false => Err(progress.hinted(failure)),
                };
            }
        };
        let says_so = matches!(event.kind, Some(Kind::Compacted(_)));
        if std::mem::take(&mut progress.forget) && !says_so {
            write(context, &forget(event.revision))?;
        }
        progress.saw(&event);
        if let Some(line) = line_of(event)? {
            write(context, &line)?;
        }
    }
}

/// The line that says: forget everything, the whole state follows.
fn forget(revision: u64) -> Line {
    Line {
        revision,
        event: Event::Compacted { oldest: revision },
    }
}

fn write(context: &Context, line: &Line) -> Result<(), Failure> {
    match context.out.is_json() {
        true => context.out.json_line(line),
        false => context.out.text(&line.text()),
    }
}

/// A stream from where the last one broke. A node that is behind is waited for, as long as `--timeout` says.
async fn go_on(context: &Context, progress: &Progress) -> Result<(Client, Events), Failure> {
    let deadline = Instant::now() + context.global.timeout;
    loop {
        let mut client = Client::connect(context).await?;
        match open(&mut client, progress).await {
            Ok(events) => return Ok((client, events)),
            Err(failure) => {
                let behind = failure.code == FailureCode::PreconditionFailed;
                if !behind || Instant::now() + BEHIND_PAUSE >= deadline {
                    return Err(failure);
                }
            }
        }
        tokio::time::sleep(BEHIND_PAUSE).await;
    }
}

fn line_of(event: v1::WatchEvent) -> Result<Option<Line>, Failure> {
    let revision = event.revision;
    let event = match event.kind {
        Some(Kind::Compacted(v1::WatchCompacted { oldest })) => Event::Compacted { oldest },
        Some(Kind::CaughtUp(v1::WatchCaughtUp {
            state_hash,
            applied,
        })) => Event::CaughtUp {
            applied: (!state_hash.is_empty()).then_some(applied),
            state_hash: (!state_hash.is_empty())
                .then(|| data_encoding::HEXLOWER.encode(&state_hash)),
        },
        Some(Kind::Change(v1::WatchChange {
            object: Some(object),
        })) => change(object)?,
        // An event of a newer program.
        Some(Kind::Change(v1::WatchChange { object: None })) | None => return Ok(None),
    };
    Ok(Some(Line { revision, event }))
}

fn change(object: Object) -> Result<Event, Failure> {
    let there = |object, name, value| Event::Change {
        object,
        name,
        deleted: false,
        value,
    };
    let gone = |object, name| Event::Change {
        object,
        name,
        deleted: true,
        value: Value::Gone {},
    };
    Ok(match object {
        Object::Zone(zone) if zone.deleted => gone("zone", zone.zone),
        Object::Zone(zone) => {
            let removed = zone.removed.into_iter().map(|r| Removed {
                name: r.name,
                rtype: RecordType(u16::try_from(r.r#type).unwrap_or(0)).to_string(),
            });
            let value = Value::Zone {
                serial: zone.serial,
                whole: zone.whole,
                put: received_as_json("watch", zone.put)?,
                removed: removed.collect(),
            };
            there("zone", zone.zone, value)
        }
        // Every field by its name: one that is left out here makes a change look like none.
        Object::Pool(v1::Pool {
            name,
            policy,
            backends,
            health_check,
            connect_timeout_ms,
            connect_retries,
        }) => {
            let backends = backends.into_iter().map(|b| Backend {
                name: b.name,
                address: b.address,
                weight: b.weight,
                state: state_text(b.state),
            });
            let value = Value::Pool {
                policy: policy_text(policy),
                health_check: health_check.map(check_json),
                connect_timeout_ms,
                connect_retries,
                backends: backends.collect(),
            };
            there("pool", name, value)
        }
        Object::PoolRemoved(name) => gone("pool", name),
        Object::Listener(v1::Listener {
            name,
            address,
            port,
            pool,
            idle_timeout_ms,
            max_connections,
        }) => {
            let value = Value::Listener {
                address: Some(address).filter(|a| !a.is_empty()),
                port,
                pool,
                idle_timeout_ms,
                max_connections,
            };
            there("listener", name, value)
        }
        Object::ListenerRemoved(name) => gone("listener", name),
        Object::Vip(vip) => {
            let value = Value::Vip {
                interface: vip.interface,
            };
            there("vip", vip.address, value)
        }
        Object::VipRemoved(address) => gone("vip", address),
        Object::Forwarder(forwarder) => {
            let value = Value::Forwarder {
                upstreams: forwarder.upstreams,
                timeout_ms: forwarder.timeout_ms,
            };
            there("forwarder", forwarder.suffix, value)
        }
        Object::ForwarderRemoved(suffix) => gone("forwarder", suffix),
        Object::DnsPolicy(policy) => {
            let value = Value::DnsPolicy {
                recursion_allowed: policy.recursion_allowed,
            };
            there("dns", String::new(), value)
        }
    })
}

impl Line {
    fn text(&self) -> String {
        let revision = self.revision;
        match &self.event {
            Event::Compacted { oldest } => {
                format!(
                    "{revision}  compacted: changes are known from {oldest} on; the whole state follows\n"
                )
            }
            Event::CaughtUp { .. } => format!("{revision}  caught up\n"),
            Event::Change {
                object,
                name,
                deleted: true,
                ..
            } => format!("{revision}  {object} {name} deleted\n"),
            Event::Change {
                object,
                name,
                value:
                    Value::Zone {
                        serial,
                        put,
                        removed,
                        ..
                    },
                ..
            } => {
                let mut text = format!("{revision}  {object} {name} serial {serial}\n");
                for set in put {
                    for data in &set.data {
                        text.push_str(&format!(
                            "    {} {} {} {data}\n",
                            set.name, set.ttl, set.rtype
                        ));
                    }
                }
                for gone in removed {
                    text.push_str(&format!("    - {} {}\n", gone.name, gone.rtype));
                }
                text
            }
            Event::Change { object, name, .. } => format!("{revision}  {object} {name} changed\n"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(kind: Kind) -> serde_json::Value {
        let event = v1::WatchEvent {
            revision: 7,
            kind: Some(kind),
            complete: false,
        };
        let line = line_of(event).expect("readable").expect("a line");
        serde_json::to_value(line).expect("plain")
    }

    fn event(revision: u64, kind: Kind) -> v1::WatchEvent {
        v1::WatchEvent {
            revision,
            kind: Some(kind),
            complete: false,
        }
    }

    fn gone(revision: u64) -> v1::WatchEvent {
        let change = v1::WatchChange {
            object: Some(Object::PoolRemoved("web".into())),
        };
        event(revision, Kind::Change(change))
    }

    #[test]
    fn a_stream_goes_on_behind_the_last_complete_revision() {
        let caught_up = |revision| event(revision, Kind::CaughtUp(v1::WatchCaughtUp::default()));
        let last = |revision| v1::WatchEvent {
            complete: true,
            ..gone(revision)
        };
        let compacted = event(9, Kind::Compacted(v1::WatchCompacted { oldest: 8 }));
        for (from, events, after, forget) in [
            (None, vec![], None, false),
            (None, vec![caught_up(4)], Some(4), false),
            (Some(4), vec![gone(5), last(6)], Some(6), false),
            // The changes of 6 may not have come all.
            (Some(4), vec![gone(5), gone(5), gone(6)], Some(5), false),
            (Some(4), vec![gone(5), caught_up(5)], Some(5), false),
            // A whole state counts when it is complete.
            (Some(0), vec![gone(9), gone(9)], Some(0), true),
            (
                Some(0),
                vec![gone(9), caught_up(9), gone(10)],
                Some(9),
                false,
            ),
            (Some(4), vec![compacted, gone(9)], Some(4), true),
        ] {
            let mut progress = Progress::from(from);
            events.iter().for_each(|e| progress.saw(e));
            progress.begin_again();
            assert_eq!(
                (progress.after, progress.forget),
                (after, forget),
                "{events:?}"
            );
        }
    }

    #[test]
    fn lines_have_their_documented_form() {
        assert_eq!(
            json(Kind::Compacted(v1::WatchCompacted { oldest: 3 })),
            serde_json::json!({"revision": 7, "event": "compacted", "oldest": 3})
        );
        assert_eq!(
            json(Kind::CaughtUp(v1::WatchCaughtUp::default())),
            serde_json::json!({"revision": 7, "event": "caught_up", "state_hash": null, "applied": null})
        );
        let removed = v1::WatchChange {
            object: Some(Object::PoolRemoved("web".into())),
        };
        assert_eq!(
            json(Kind::Change(removed)),
            serde_json::json!({"revision": 7, "event": "change", "object": "pool", "name": "web", "deleted": true})
        );
        let zone = v1::WatchChange {
            object: Some(Object::Zone(v1::WatchZone {
                zone: "a.".into(),
                serial: 2,
                removed: vec![v1::RemovedRrset {
                    name: "x.a.".into(),
                    r#type: 1,
                }],
                ..v1::WatchZone::default()
            })),
        };
        assert_eq!(
            json(Kind::Change(zone)),
            serde_json::json!({"revision": 7, "event": "change", "object": "zone", "name": "a.", "deleted": false,
                "serial": 2, "whole": false, "put": [], "removed": [{"name": "x.a.", "type": "A"}]})
        );
    }

    #[test]
    fn a_change_of_any_setting_is_seen() {
        let change = |object| {
            json(Kind::Change(v1::WatchChange {
                object: Some(object),
            }))
        };
        let check = v1::HealthCheck {
            probe: Some(v1::health_check::Probe::TcpConnect(
                v1::TcpConnectProbe::default(),
            )),
            interval_ms: 2000,
            down_interval_ms: 2000,
            timeout_ms: 1000,
            rise: 2,
            fall: 3,
        };
        let pool = v1::Pool {
            name: "web".into(),
            policy: v1::Policy::RoundRobin.into(),
            backends: vec![v1::Backend {
                name: "b1".into(),
                address: "10.0.0.1:80".into(),
                weight: 1,
                state: v1::BackendState::Enabled.into(),
            }],
            health_check: Some(check),
            connect_timeout_ms: 2000,
            connect_retries: 2,
        };
        assert_eq!(
            change(Object::Pool(pool)),
            serde_json::json!({"revision": 7, "event": "change", "object": "pool", "name": "web", "deleted": false,
                "policy": "round-robin",
                "health_check": {"probe": "tcp-connect", "interval_ms": 2000, "down_interval_ms": 2000, "timeout_ms": 1000,
                    "rise": 2, "fall": 3},
                "connect_timeout_ms": 2000, "connect_retries": 2,
                "backends": [{"name": "b1", "address": "10.0.0.1:80", "weight": 1, "state": "enabled"}]})
        );
        let listener = v1::Listener {
            name: "web".into(),
            address: String::new(),
            port: 80,
            pool: "web".into(),
            idle_timeout_ms: 300_000,
            max_connections: 10_000,
        };
        assert_eq!(
            change(Object::Listener(listener)),
            serde_json::json!({"revision": 7, "event": "change", "object": "listener", "name": "web", "deleted": false,
                "address": null, "port": 80, "pool": "web", "idle_timeout_ms": 300_000, "max_connections": 10_000})
        );
    }
}
