//! The newest changes of the service, kept so that watchers can resume: what differs between states as they are applied.
//!
//! Bounded by octets; a watcher that falls behind its beginning gets the whole state instead.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use imbl::ordmap::DiffItem;
use pontoon_proto::v1;
use prost::Message;
use tokio::sync::{Notify, watch};
use tokio_util::task::AbortOnDropHandle;

use super::group::{Applied, Group};
use crate::{
    model::{snapshot::Snapshot, zone::Zone},
    state::{
        State,
        diff::{self, Fate, SetChange},
    },
    wire::records::owned_rrset,
};

/// Octets of changes that are kept.
const MAX_OCTETS: usize = 32 << 20;
/// Sets in one event, at most.
const SETS_PER_EVENT: usize = 500;

/// What changed at one revision.
pub struct Step {
    pub revision: u64,
    /// Log index of the state after it, and that state's hash.
    pub applied: u64,
    pub state_hash: [u8; 16],
    pub changes: Vec<v1::WatchChange>,
    octets: usize,
}

/// How long the log gathers changes into one step while nobody watches. A watcher whose node went finds here what changed
/// since; a step for each change would cost every write something for nobody.
const GATHER: Duration = Duration::from_millis(100);

/// The log and the task that fills it, started with the node: a watcher that comes from another node resumes here. Dropped with the
/// API, it ends the task.
#[derive(Default)]
pub struct WatchLog(OnceLock<Followed>);

struct Followed {
    shared: Arc<Shared>,
    _following: AbortOnDropHandle<()>,
}

/// What the task and the watchers share.
pub struct Shared {
    steps: Mutex<Steps>,
    newest: watch::Sender<u64>,
    /// A watcher has come.
    came: Notify,
}

#[derive(Default)]
struct Steps {
    kept: VecDeque<Arc<Step>>,
    octets: usize,
    /// Changes after this revision are kept.
    from: u64,
}

/// What a watcher at some revision has to be sent.
pub enum Pending {
    Steps(Vec<Arc<Step>>),
    /// Changes are kept only from this revision on.
    Compacted(u64),
}

impl WatchLog {
    /// The log, begun at the group's present state when this is the first call.
    pub fn of(&self, group: &Arc<dyn Group>) -> Arc<Shared> {
        let followed = self.0.get_or_init(|| {
            let Applied { state, .. } = group.applied();
            let shared = Arc::new(Shared {
                steps: Mutex::new(Steps {
                    from: state.revision(),
                    ..Steps::default()
                }),
                newest: watch::Sender::new(state.revision()),
                came: Notify::new(),
            });
            let following = follow(Arc::clone(group), state, Arc::clone(&shared));
            Followed {
                shared,
                _following: AbortOnDropHandle::new(tokio::spawn(following)),
            }
        });
        Arc::clone(&followed.shared)
    }
}

impl Shared {
    /// Tells the newest revision, now and whenever it moves.
    pub fn newest(&self) -> watch::Receiver<u64> {
        self.came.notify_waiters();
        self.newest.subscribe()
    }

    /// What changed after `revision`.
    pub fn after(&self, revision: u64) -> Pending {
        let steps = self.steps();
        if revision < steps.from {
            return Pending::Compacted(steps.from);
        }
        let newer = steps.kept.iter().filter(|step| step.revision > revision);
        Pending::Steps(newer.cloned().collect())
    }

    /// Forgets what there is: changes are known from `revision` on.
    fn skip(&self, revision: u64) {
        *self.steps() = Steps {
            from: revision,
            ..Steps::default()
        };
        self.newest.send_replace(revision);
    }

    fn push(&self, step: Step) {
        let revision = step.revision;
        let mut steps = self.steps();
        steps.octets += step.octets;
        steps.kept.push_back(Arc::new(step));
        while steps.octets > MAX_OCTETS
            && let Some(gone) = steps.kept.pop_front()
        {
            steps.octets -= gone.octets;
            steps.from = gone.revision;
        }
        drop(steps);
        self.newest.send_replace(revision);
    }

    fn steps(&self) -> std::sync::MutexGuard<'_, Steps> {
        // Every change of the steps is complete before the guard goes.
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends when the group ends.
async fn follow(group: Arc<dyn Group>, mut last: Arc<State>, shared: Arc<Shared>) {
    while let Some(mut next) = group.applied_after(last.revision()).await {
        if shared.newest.receiver_count() == 0 {
            // Ended early by a watcher that comes: what changes from then on is a step of its own.
            let _ = tokio::time::timeout(GATHER, shared.came.notified()).await;
            next = group.applied();
        }
        let (from, to) = (Arc::clone(&last), next.clone());
        // A large import is long work, and heartbeats wait for these threads.
        let work = move || match outweighs(from.snapshot(), to.state.snapshot(), MAX_OCTETS) {
            true => None,
            false => Some(step(&from, &to)),
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(Some(step)) => shared.push(step),
            // Too much to keep, whatever it is: watchers get the whole state.
            Ok(None) => shared.skip(next.state.revision()),
            Err(_) => return,
        }
        last = next.state;
    }
}

/// Whether the zones that came take more than `limit` octets: known without looking at what is in them.
fn outweighs(old: &Snapshot, new: &Snapshot, limit: usize) -> bool {
    let came = old.zones.diff(&new.zones).filter_map(|item| match item {
        DiffItem::Add(_, zone) => Some(zone.data_bytes),
        DiffItem::Update { .. } | DiffItem::Remove(..) => None,
    });
    came.sum::<u64>() > limit as u64
}

fn step(old: &State, Applied { index, state: new }: &Applied) -> Step {
    let changes = between(old.snapshot(), new.snapshot());
    Step {
        revision: new.revision(),
        applied: *index,
        state_hash: new.hash(),
        octets: changes.iter().map(v1::WatchChange::encoded_len).sum(),
        changes,
    }
}

/// What differs between two snapshots, as watchers are told. From an empty snapshot: everything there is.
pub fn between(old: &Snapshot, new: &Snapshot) -> Vec<v1::WatchChange> {
    use v1::watch_change::Object;
    let difference = diff::between_snapshots(old, new);
    let mut objects = Vec::new();
    if difference.dns_policy {
        objects.push(Object::DnsPolicy((&new.dns).into()));
    }
    for (name, fate) in &difference.forwarders {
        objects.extend(match (fate, new.forwarders.get(name)) {
            (Fate::Added | Fate::Changed, Some(now)) => {
                Some(Object::Forwarder(now.as_ref().into()))
            }
            _ => Some(Object::ForwarderRemoved(name.to_string())),
        });
    }
    for (name, _) in &difference.pools {
        objects.push(match new.pools.get(name) {
            Some(now) => Object::Pool(now.as_ref().into()),
            None => Object::PoolRemoved(name.to_string()),
        });
    }
    for (name, _) in &difference.listeners {
        objects.push(match new.listeners.get(name) {
            Some(now) => Object::Listener(now.as_ref().into()),
            None => Object::ListenerRemoved(name.to_string()),
        });
    }
    for (address, _) in &difference.vips {
        objects.push(match new.vips.get(address) {
            Some(now) => Object::Vip(now.into()),
            None => Object::VipRemoved(address.to_string()),
        });
    }
    for (apex, _) in &difference.zones {
        match new.zones.get(apex) {
            Some(now) => {
                let before = old.zones.get(apex);
                objects.extend(zone_events(before.map(AsRef::as_ref), now).map(Object::Zone));
            }
            None => objects.push(Object::Zone(v1::WatchZone {
                zone: apex.to_string(),
                deleted: true,
                ..v1::WatchZone::default()
            })),
        }
    }
    let change = |object| v1::WatchChange {
        object: Some(object),
    };
    objects.into_iter().map(change).collect()
}

fn zone_events(old: Option<&Zone>, new: &Zone) -> impl Iterator<Item = v1::WatchZone> {
    let empty = imbl::OrdMap::new();
    let before = old.map_or(&empty, |zone| &zone.nodes);
    let changes = diff::between_nodes(before, &new.nodes);
    let mut events: Vec<v1::WatchZone> = changes
        .chunks(SETS_PER_EVENT)
        .map(|chunk| zone_event(new, chunk))
        .collect();
    if events.is_empty() {
        events.push(zone_event(new, &[]));
    }
    if let Some(first) = events.first_mut() {
        first.whole = old.is_none();
    }
    events.into_iter()
}

fn zone_event(zone: &Zone, changes: &[SetChange]) -> v1::WatchZone {
    let mut event = v1::WatchZone {
        zone: zone.apex.to_string(),
        serial: zone.serial.0,
        ..v1::WatchZone::default()
    };
    for change in changes {
        let Some(owner) = change.owner.to_name(&zone.apex) else {
            continue;
        };
        match &change.after {
            Some(set) => event.put.push(owned_rrset(&owner, set)),
            None => event.removed.push(v1::RemovedRrset {
                name: owner.to_string(),
                r#type: change.rtype.0.into(),
            }),
        }
    }
    event
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step_of(revision: u64, octets: usize) -> Step {
        Step {
            revision,
            applied: revision,
            state_hash: [0; 16],
            changes: Vec::new(),
            octets,
        }
    }

    fn log_from(from: u64) -> Shared {
        Shared {
            steps: Mutex::new(Steps {
                from,
                ..Steps::default()
            }),
            newest: watch::Sender::new(from),
            came: Notify::new(),
        }
    }

    fn revisions(pending: Pending) -> Result<Vec<u64>, u64> {
        match pending {
            Pending::Steps(steps) => Ok(steps.iter().map(|s| s.revision).collect()),
            Pending::Compacted(oldest) => Err(oldest),
        }
    }

    #[test]
    fn a_watcher_resumes_where_it_was() {
        let log = log_from(10);
        for revision in [11, 13, 14] {
            log.push(step_of(revision, 1));
        }
        assert_eq!(revisions(log.after(10)), Ok(vec![11, 13, 14]));
        assert_eq!(revisions(log.after(12)), Ok(vec![13, 14]));
        assert_eq!(revisions(log.after(14)), Ok(vec![]));
        assert_eq!(revisions(log.after(9)), Err(10));
        assert_eq!(*log.newest().borrow(), 14);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let log = log_from(0);
        for revision in 1..=5 {
            log.push(step_of(revision, MAX_OCTETS / 2));
        }
        assert_eq!(revisions(log.after(0)), Err(3));
        assert_eq!(revisions(log.after(3)), Ok(vec![4, 5]));
        log.skip(6);
        assert_eq!(revisions(log.after(5)), Err(6));
        assert_eq!(revisions(log.after(6)), Ok(vec![]));
        log.push(step_of(7, MAX_OCTETS + 1));
        assert_eq!(revisions(log.after(6)), Err(7));
        assert_eq!(revisions(log.after(7)), Ok(vec![]));
    }
}
