//! The Watch service: changes by revision, resumable.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::Stream;
use pontoon_proto::v1::{self, watch_event::Kind, watch_server::Watch};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status};

use super::{
    Api,
    admin::Pages,
    admit,
    caller::Caller,
    group::{Applied, Group},
    watch_log::{Pending, Shared, between},
};
use crate::{
    model::snapshot::Snapshot,
    wire::error::{Failure, FailureCode},
};

/// A watcher that hears nothing else hears this often that it has heard everything.
const CAUGHT_UP_EVERY: Duration = Duration::from_secs(10);
/// Events made ahead of the client.
const AHEAD: usize = 64;

#[tonic::async_trait]
impl Watch for Api {
    type WatchStream = Pages<v1::WatchEvent>;

    async fn watch(
        &self,
        request: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Caller::member_or_admin(&request)?;
        let permit = admit(&self.0.watches, "watchers")?;
        let group = self.group()?;
        let log = self.0.watch_log.of(&group);
        let newest = group.state().revision();
        let after = request.into_inner().after_revision.unwrap_or(newest);
        if after > newest {
            return Err(ahead(after, newest).into());
        }
        let (sender, receiver) = mpsc::channel(AHEAD);
        let watcher = Watcher {
            group,
            log,
            at: after,
            sender,
            _permit: permit,
        };
        let events = Events {
            receiver,
            _watcher: AbortOnDropHandle::new(tokio::spawn(watcher.run())),
        };
        Ok(Response::new(Box::pin(events)))
    }
}

/// What a client is sent. Dropped when the client goes or the API ends, it ends the watcher.
struct Events {
    receiver: mpsc::Receiver<Result<v1::WatchEvent, Status>>,
    _watcher: AbortOnDropHandle<()>,
}

impl Stream for Events {
    type Item = Result<v1::WatchEvent, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.receiver.poll_recv(context)
    }
}

/// A revision of another cluster, or of this one before it was restored.
fn ahead(after: u64, newest: u64) -> Failure {
    Failure::new(
        FailureCode::PreconditionFailed,
        "watch",
        format!("revision {after} is ahead of this node, which has {newest}"),
        "wait until the node has caught up, ask another one, or watch from 0",
    )
}

struct Watcher {
    group: Arc<dyn Group>,
    log: Arc<Shared>,
    /// Everything up to this revision has been sent.
    at: u64,
    sender: mpsc::Sender<Result<v1::WatchEvent, Status>>,
    _permit: OwnedSemaphorePermit,
}

/// The client has gone.
struct Gone;

impl Watcher {
    async fn run(mut self) {
        let mut newest = self.log.newest();
        loop {
            if self.send_pending().await.is_err() {
                return;
            }
            let at = self.at;
            // Either branch may be dropped: the channel holds the newest value, and the timer starts anew.
            let gone = tokio::select! {
                changed = newest.wait_for(|newest| *newest > at) => {
                    if changed.is_err() {
                        return;
                    }
                    None
                }
                () = tokio::time::sleep(CAUGHT_UP_EVERY) => None,
                () = self.sender.closed() => return,
                why = self.group.until_gone() => Some(why),
            };
            if let Some(why) = gone {
                // The client goes on at another node; one that has gone itself needs no word.
                let _ = self.sender.send(Err(why.into())).await;
                return;
            }
        }
    }

    async fn send_pending(&mut self) -> Result<(), Gone> {
        let mut hash = None;
        // From 0 the whole state is asked for, whatever is kept.
        match if self.at == 0 {
            Pending::Compacted(0)
        } else {
            self.log.after(self.at)
        } {
            Pending::Compacted(oldest) => hash = Some(self.send_everything(oldest).await?),
            Pending::Steps(steps) => {
                for step in steps {
                    let mut changes = step.changes.iter().peekable();
                    while let Some(change) = changes.next() {
                        let is_last = changes.peek().is_none();
                        self.send_part(step.revision, Kind::Change(change.clone()), is_last)
                            .await?;
                    }
                    self.at = step.revision;
                    hash = Some((step.applied, step.state_hash));
                }
            }
        }
        let hash = hash.or_else(|| {
            let Applied { index, state } = self.group.applied();
            (state.revision() == self.at).then(|| (index, state.hash()))
        });
        let caught_up = hash.map_or_else(v1::WatchCaughtUp::default, |(applied, hash)| {
            v1::WatchCaughtUp {
                state_hash: bytes::Bytes::copy_from_slice(&hash),
                applied,
            }
        });
        self.send_part(self.at, Kind::CaughtUp(caught_up), true)
            .await
    }

    async fn send_everything(&mut self, oldest: u64) -> Result<(u64, [u8; 16]), Gone> {
        let Applied { index, state } = self.group.applied();
        let revision = state.revision();
        if oldest > 0 {
            let compacted = v1::WatchCompacted { oldest };
            self.send(revision, Kind::Compacted(compacted)).await?;
        }
        let empty = Snapshot {
            dns: crate::model::snapshot::DnsPolicy {
                recursion_allowed: Vec::new(),
            },
            ..Snapshot::default()
        };
        // Zone by zone, so that a large state is never held as messages all at once.
        let mut without_zones = state.snapshot().clone();
        without_zones.zones = imbl::OrdMap::new();
        for change in between(&empty, &without_zones) {
            self.send(revision, Kind::Change(change)).await?;
        }
        for (apex, zone) in &state.snapshot().zones {
            let mut alone = empty.clone();
            alone.zones.insert(apex.clone(), Arc::clone(zone));
            for change in between(&empty, &alone) {
                self.send(revision, Kind::Change(change)).await?;
            }
        }
        self.at = revision;
        Ok((index, state.hash()))
    }

    async fn send(&self, revision: u64, kind: Kind) -> Result<(), Gone> {
        self.send_part(revision, kind, false).await
    }

    async fn send_part(&self, revision: u64, kind: Kind, complete: bool) -> Result<(), Gone> {
        let event = v1::WatchEvent {
            revision,
            kind: Some(kind),
            complete,
        };
        self.sender.send(Ok(event)).await.map_err(|_| Gone)
    }
}
