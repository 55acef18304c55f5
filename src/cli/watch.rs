//! `pontoon watch`.

use clap::Args;
use serde::Serialize;

use super::{
    Context,
    client::Client,
    pool::{policy_text, state_text},
    rrsets::{RecordSet, received_as_json},
};
use crate::{
    api::status::failure_of,
    model::rrset::RecordType,
    wire::{
        error::{Failure, FailureCode},
        v1::{self, watch_change::Object, watch_client::WatchClient, watch_event::Kind},
    },
};

/// Stream changes as they are applied, a line each
///
/// Resume with the revision of the last `caught_up` line. When that is too old, the first line is `compacted`, and the whole
/// state follows.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pontoon watch
  pontoon watch --from 42 -o json
  pontoon watch --from 0           the whole state first")]
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
    CaughtUp { state_hash: Option<String> },
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
        backends: Vec<Backend>,
    },
    Listener {
        address: Option<String>,
        port: u32,
        pool: String,
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
        let mut client = Client::connect(context).await?;
        let request = v1::WatchRequest {
            after_revision: self.from,
        };
        let mut events = client
            .open("watch", async |channel| {
                WatchClient::new(channel)
                    .max_decoding_message_size(super::client::MAX_REPLY)
                    .watch(request)
                    .await
            })
            .await?;
        let mut last = 0;
        loop {
            let event = events.message().await.map_err(|status| {
                let failure = failure_of(&status, "watch", false);
                resume_hint(failure, last)
            })?;
            let Some(event) = event else {
                let ended =
                    Failure::new(FailureCode::Unreachable, "watch", "the node ended it", "");
                return Err(resume_hint(ended, last));
            };
            if let Some(Kind::CaughtUp(_)) = event.kind {
                last = event.revision;
            }
            if let Some(line) = line_of(event)? {
                match context.out.is_json() {
                    true => context.out.json_line(&line)?,
                    false => context.out.text(&line.text())?,
                }
            }
        }
    }
}

fn resume_hint(failure: Failure, last: u64) -> Failure {
    match last {
        0 => failure,
        last => Failure {
            hint: format!("go on with `pontoon watch --from {last}`"),
            ..failure
        },
    }
}

fn line_of(event: v1::WatchEvent) -> Result<Option<Line>, Failure> {
    let revision = event.revision;
    let event = match event.kind {
        Some(Kind::Compacted(v1::WatchCompacted { oldest })) => Event::Compacted { oldest },
        Some(Kind::CaughtUp(v1::WatchCaughtUp { state_hash })) => Event::CaughtUp {
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
        Object::Pool(pool) => {
            let backends = pool.backends.into_iter().map(|b| Backend {
                name: b.name,
                address: b.address,
                weight: b.weight,
                state: state_text(b.state),
            });
            let value = Value::Pool {
                policy: policy_text(pool.policy),
                backends: backends.collect(),
            };
            there("pool", pool.name, value)
        }
        Object::PoolRemoved(name) => gone("pool", name),
        Object::Listener(listener) => {
            let value = Value::Listener {
                address: Some(listener.address).filter(|a| !a.is_empty()),
                port: listener.port,
                pool: listener.pool,
            };
            there("listener", listener.name, value)
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
        };
        let line = line_of(event).expect("readable").expect("a line");
        serde_json::to_value(line).expect("plain")
    }

    #[test]
    fn lines_have_their_documented_form() {
        assert_eq!(
            json(Kind::Compacted(v1::WatchCompacted { oldest: 3 })),
            serde_json::json!({"revision": 7, "event": "compacted", "oldest": 3})
        );
        assert_eq!(
            json(Kind::CaughtUp(v1::WatchCaughtUp::default())),
            serde_json::json!({"revision": 7, "event": "caught_up", "state_hash": null})
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
}
