//! Looks at every node from its own API and from `/proc`: who leads, which state it has, what its process uses.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use pontoon_proto::v1::{NodeStatusReply, NodeStatusRequest, node_client::NodeClient};
use tokio_util::sync::CancellationToken;

use crate::{
    history::{Entry, LeaderSeen, Moment, StateHash, Usage},
    lab::client::lazy_channel,
    recorder::Recorder,
};

const INTERVAL: Duration = Duration::from_millis(200);
/// A node that does not answer so soon is paused, dead or overloaded; the next look comes soon.
const PATIENCE: Duration = Duration::from_millis(300);
/// What is written once in so many looks: hashes and usage.
const SELDOM: u32 = 5;
/// A leader that said so longer ago may have been replaced.
const FRESH: Duration = Duration::from_millis(1000);

/// What is known of the cluster now, for whoever aims at it.
#[derive(Debug, Default)]
pub struct Board {
    seen: Mutex<Seen>,
    is_quiet: AtomicBool,
    retries: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct Seen {
    leaders: BTreeMap<String, (u64, Instant)>,
    holder: Option<String>,
    pids: BTreeMap<String, u32>,
    faults: Faults,
}

/// The faults that are in force, and how long none has been.
#[derive(Clone, Copy, Debug, Default)]
struct Faults {
    open: usize,
    /// When the last one was healed; the beginning of the run before that.
    healed: Moment,
}

impl Board {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether clients hold back from now on: what is under way ends, nothing else is begun.
    pub fn set_quiet(&self, is_quiet: bool) {
        self.is_quiet.store(is_quiet, Ordering::Relaxed);
    }

    pub fn is_quiet(&self) -> bool {
        self.is_quiet.load(Ordering::Relaxed)
    }

    /// A fault is about to be injected. It is in force until [`Board::note_heal`].
    pub fn note_fault(&self) {
        self.seen().faults.open += 1;
    }

    /// One that was noted is healed, or came to nothing.
    pub fn note_heal(&self, at: Moment) {
        let faults = &mut self.seen().faults;
        faults.open = faults.open.saturating_sub(1);
        faults.healed = faults.healed.max(at);
    }

    /// Since when no fault has been in force; none: one is.
    pub fn calm_since(&self) -> Option<Moment> {
        let faults = self.seen().faults;
        (faults.open == 0).then_some(faults.healed)
    }

    /// How many changes under a precondition were asked for again after they had been done.
    pub fn retries(&self) -> &Arc<AtomicU64> {
        &self.retries
    }

    /// The node that last said it leads in the newest term.
    pub fn leader(&self) -> Option<String> {
        let seen = self.seen();
        let fresh = seen
            .leaders
            .iter()
            .filter(|(_, (_, at))| at.elapsed() < FRESH);
        let newest = fresh.max_by_key(|(_, (term, _))| *term);
        newest.map(|(node, _)| node.clone())
    }

    /// The node that last answered for the VIP.
    pub fn holder(&self) -> Option<String> {
        self.seen().holder.clone()
    }

    pub fn set_holder(&self, node: &str) {
        let mut seen = self.seen();
        if seen.holder.as_deref() != Some(node) {
            seen.holder = Some(node.to_owned());
        }
    }

    /// The process of a node, whose usage is recorded.
    pub fn set_pid(&self, node: &str, pid: Option<u32>) {
        let mut seen = self.seen();
        match pid {
            Some(pid) => seen.pids.insert(node.to_owned(), pid),
            None => seen.pids.remove(node),
        };
    }

    fn pid(&self, node: &str) -> Option<u32> {
        self.seen().pids.get(node).copied()
    }

    /// Whether it is news that this node leads in this term.
    fn set_leader(&self, node: &str, term: u64) -> bool {
        let before = self
            .seen()
            .leaders
            .insert(node.to_owned(), (term, Instant::now()));
        before.is_none_or(|(old, _)| old != term)
    }

    fn unset_leader(&self, node: &str) {
        self.seen().leaders.remove(node);
    }
}

/// Looks at one node until cancelled.
pub async fn observe(
    node: String,
    socket: PathBuf,
    board: Arc<Board>,
    recorder: Arc<Recorder>,
    end: CancellationToken,
) {
    let mut client = NodeClient::new(lazy_channel(socket));
    let mut looks = 0u32;
    while !end.is_cancelled() {
        let status = tokio::time::timeout(PATIENCE, client.status(NodeStatusRequest {})).await;
        if let Ok(Ok(status)) = status {
            let status = status.into_inner();
            note(&node, &status, &board, &recorder);
            if looks.is_multiple_of(SELDOM) {
                let hash = state_hash(&node, &status, false, &recorder);
                hash.into_iter()
                    .for_each(|hash| recorder.append(&Entry::Hash(hash)));
            }
        }
        if looks.is_multiple_of(SELDOM)
            && let Some(usage) = board
                .pid(&node)
                .and_then(|pid| usage(&node, pid, &recorder))
        {
            recorder.append(&Entry::Usage(usage));
        }
        looks = looks.wrapping_add(1);
        tokio::time::sleep(INTERVAL).await;
    }
}

fn note(node: &str, status: &NodeStatusReply, board: &Board, recorder: &Recorder) {
    let Some(summary) = &status.node else { return };
    let leads = status.leader.is_some_and(|leader| leader == summary.id);
    if !leads {
        board.unset_leader(node);
    } else if board.set_leader(node, status.term) {
        recorder.append(&Entry::Leader(LeaderSeen {
            at: recorder.now(),
            node: node.to_owned(),
            term: status.term,
        }));
    }
}

/// The hash in a node's status, with the log index that it is of.
///
/// By its revision it could not be compared: a command that is refused changes the state (its request id is remembered) and leaves the
/// revision.
pub fn state_hash(
    node: &str,
    status: &NodeStatusReply,
    is_final: bool,
    recorder: &Recorder,
) -> Option<StateHash> {
    let summary = status.node.as_ref()?;
    let digits = |octet: &u8| format!("{octet:02x}");
    (!summary.state_hash.is_empty()).then_some(StateHash {
        at: recorder.now(),
        node: node.to_owned(),
        index: summary.applied?,
        hash: summary.state_hash.iter().map(digits).collect(),
        is_final,
    })
}

fn usage(node: &str, pid: u32, recorder: &Recorder) -> Option<Usage> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let status = fs::read_to_string(process.join("status")).ok()?;
    let resident = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let resident_kib = resident.trim().trim_end_matches(" kB").parse().ok()?;
    let descriptors = fs::read_dir(process.join("fd")).ok()?.count();
    Some(Usage {
        at: recorder.now(),
        node: node.to_owned(),
        pid,
        descriptors: descriptors.try_into().ok()?,
        resident_kib,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_calm_since_the_last_of_the_open_faults_was_healed() {
        let board = Board::default();
        assert_eq!(board.calm_since(), Some(Moment(0)));
        board.note_fault();
        board.note_fault();
        board.note_heal(Moment(7));
        assert_eq!(board.calm_since(), None);
        board.note_heal(Moment(9));
        assert_eq!(board.calm_since(), Some(Moment(9)));
    }

    #[test]
    fn the_leader_of_the_newest_term_leads() {
        let board = Board::default();
        assert_eq!(board.leader(), None);
        assert!(board.set_leader("n1", 3));
        assert!(!board.set_leader("n1", 3));
        assert!(board.set_leader("n2", 4));
        assert_eq!(board.leader().as_deref(), Some("n2"));
        board.unset_leader("n2");
        assert_eq!(board.leader().as_deref(), Some("n1"));
    }
}
