//! Batches of changes: built, sent under one request id, and what became of them.

use prost::Message;
use serde::Serialize;

use super::{Context, client::Client, exit};
use crate::{
    api::{MAX_MESSAGE, group::random_request},
    model::{name::Name, serial::Serial},
    state::{
        check,
        command::{Change, Precondition},
    },
    wire::{
        command::{MAX_COMMAND, request_id_bytes},
        error::{Failure, FailureCode},
        v1,
    },
};

/// Octets of one message of an upload.
pub const CHUNK: usize = 512 << 10;
/// zstd level of uploads.
pub const LEVEL: i32 = 1;

/// Preconditions that the commands which change zones share.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Guards {
    /// Change nothing unless the zone has this serial
    #[arg(long, value_name = "N")]
    if_serial: Option<u32>,
    /// Change nothing unless the state has this revision
    #[arg(long, value_name = "N")]
    if_revision: Option<u64>,
}

impl Guards {
    pub fn new(if_serial: Option<u32>, if_revision: Option<u64>) -> Self {
        Self {
            if_serial,
            if_revision,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.if_serial.is_none() && self.if_revision.is_none()
    }

    pub fn preconditions(&self, zone: Option<&Name>) -> Vec<Precondition> {
        let serial = zone
            .zip(self.if_serial)
            .map(|(zone, serial)| Precondition::ZoneSerial {
                zone: zone.clone(),
                serial: Serial(serial),
            });
        let revision = self.if_revision.map(Precondition::Revision);
        serial.into_iter().chain(revision).collect()
    }
}

/// What a write did, as JSON.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Written {
    /// False when the state already was as asked.
    pub changed: bool,
    /// Revision of the state that shows it.
    pub revision: u64,
    /// Zones that changed, or that were named when nothing changed.
    pub zones: Vec<WrittenZone>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct WrittenZone {
    pub zone: String,
    pub serial: u32,
}

impl From<v1::Applied> for Written {
    fn from(applied: v1::Applied) -> Self {
        let v1::Applied {
            revision,
            changed,
            serials,
            node: _,
        } = applied;
        let zone = |v1::ZoneSerial { zone, serial }| WrittenZone { zone, serial };
        Self {
            changed,
            revision,
            zones: serials.into_iter().map(zone).collect(),
        }
    }
}

impl Written {
    /// One line for people: `done` says what was.
    pub fn text(&self, done: &str) -> String {
        let serials: Vec<String> = self
            .zones
            .iter()
            .take(5)
            .map(|z| format!(", zone {} serial {}", z.zone, z.serial))
            .collect();
        let done = match self.changed {
            true => done,
            false => "nothing to change",
        };
        format!("{done} (revision {}{})\n", self.revision, serials.concat())
    }
}

/// A change that the words of a command line alone make, if it can ever be applied: what is wrong in itself needs no node
/// to say so, and is wrong usage.
pub fn sound(change: Change) -> Result<Change, Failure> {
    match check::proposed_change(&change) {
        Ok(()) => Ok(change),
        Err(refusal) => Err(exit::never_right(refusal)),
    }
}

/// Sends a batch and prints what it did.
pub async fn commit(
    context: &Context,
    object: &str,
    done: &str,
    preconditions: Vec<Precondition>,
    changes: Vec<Change>,
) -> Result<(), Failure> {
    let mut client = Client::connect(context).await?;
    let written = propose(context, &mut client, object, preconditions, changes).await?;
    context.out.result(&written, || written.text(done))
}

/// Sends a batch under a new request id, in chunks when it is large.
pub async fn propose(
    context: &Context,
    client: &mut Client,
    object: &str,
    preconditions: Vec<Precondition>,
    changes: Vec<Change>,
) -> Result<Written, Failure> {
    let message = v1::ProposeRequest {
        request_id: request_id_bytes(random_request()),
        born: client.born(),
        preconditions: preconditions.iter().map(Into::into).collect(),
        changes: changes.iter().map(Into::into).collect(),
    };
    drop(changes);
    let reply = match message.encoded_len() {
        size if size > MAX_COMMAND => return Err(too_large(object, size)),
        size if size > MAX_MESSAGE / 2 => {
            let chunks = chunks(&message.encode_to_vec(), object)?;
            drop(message);
            client
                .write(object, async |attempt| {
                    let stream = tokio_stream::iter(chunks.clone());
                    attempt
                        .admin()
                        .propose_chunked(attempt.request(stream))
                        .await
                })
                .await?
        }
        _ => {
            client
                .write(object, async |attempt| {
                    let message = attempt.request(message.clone());
                    attempt.admin().propose(message).await
                })
                .await?
        }
    };
    let v1::ProposeReply { applied, warnings } = reply.into_inner();
    warn(context, &warnings);
    let applied = applied.ok_or_else(|| {
        let problem = "the node's answer does not say what was applied";
        Failure::new(FailureCode::Internal, object, problem, "")
    })?;
    Ok(applied.into())
}

/// Tells of what was done all the same, beside the result.
pub fn warn(context: &Context, warnings: &[String]) {
    for warning in warnings {
        context.out.warn(warning);
    }
}

fn chunks(bytes: &[u8], object: &str) -> Result<Vec<v1::Chunk>, Failure> {
    let packed = zstd::bulk::compress(bytes, LEVEL)
        .map_err(|e| Failure::new(FailureCode::Internal, object, e, ""))?;
    let chunk = |data: &[u8]| v1::Chunk {
        data: bytes::Bytes::copy_from_slice(data),
    };
    Ok(packed.chunks(CHUNK).map(chunk).collect())
}

fn too_large(object: &str, size: usize) -> Failure {
    Failure::new(
        FailureCode::LimitExceeded,
        object,
        format!("the change has {size} octets; one command holds at most {MAX_COMMAND}"),
        "split it into several",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_says_what_it_did() {
        let written = Written {
            changed: true,
            revision: 7,
            zones: vec![WrittenZone {
                zone: "example.".into(),
                serial: 3,
            }],
        };
        assert_eq!(
            written.text("set"),
            "set (revision 7, zone example. serial 3)\n"
        );
        let json = serde_json::to_value(&written).expect("plain");
        assert_eq!(
            json,
            serde_json::json!({"changed": true, "revision": 7, "zones": [{"zone": "example.", "serial": 3}]})
        );
        let same = Written {
            changed: false,
            ..written
        };
        assert!(same.text("set").starts_with("nothing to change"));
    }
}
