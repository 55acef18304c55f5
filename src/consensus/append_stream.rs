//! Log entries on their way to one peer: one gRPC stream for as long as openraft replicates to it without a fault.
//!
//! A call for each append would cost both sides several times the work of the append itself. On the stream the next
//! requests go out while earlier ones are being made durable; answers come in the order of the requests. It ends at the
//! first fault, and openraft begins another.
//!
//! openraft takes an answer for that to *every* request under way whose last entry it acknowledges, and counts the lease and
//! linearizable reads from when the newest of them was sent. One without entries, which only tells of a commit, has the last entry
//! of the request before it: the answer to the earlier one, which may have waited here for as long as this process was stopped,
//! would pass for one to the later. So such an answer is kept to itself; that to the later request acknowledges as much.

use std::{collections::VecDeque, time::Duration};

use futures::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use openraft::{
    RPCTypes,
    entry::RaftEntry,
    errors::RPCError,
    raft::{AppendEntriesRequest, AppendEntriesResponse, StreamAppendError, StreamAppendResult},
};
use pontoon_proto::v1::RaftMessage;
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{
    network::{CallError, Lane, PeerLinks, Target, rpc_error},
    types::{LogId, TypeConfig, Vote},
};

/// What came of one request.
pub(super) type Appended = Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>;

type Append = AppendEntriesRequest<TypeConfig>;

/// Requests without an answer. Enough that the next is on its way while one is written; more would only part into many
/// small requests what could go as one.
const WINDOW: usize = 2;

/// Wait for an answer: the entries, at most a mebibyte or one, sent and flushed by the peer. Far above a slow disk's
/// flush; a dead link is noticed sooner by keepalive.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Opens a stream to `target` that sends what `input` yields. Dropped, it asks `input` for nothing more.
///
/// The first request is waited for before the peer is called: openraft's pause after a failure is in the stream of requests. Who
/// calls first calls a peer that is down as often as a processor can, and has none left for the lease.
///
/// # Errors
/// When the peer is not reached, or refuses.
pub(super) async fn open<'s, S>(
    links: &'s PeerLinks,
    target: Target,
    mut input: S,
) -> Result<BoxStream<'s, Appended>, RPCError<TypeConfig>>
where
    S: Stream<Item = Append> + Send + Unpin + 'static,
{
    let Some(first) = input.next().await else {
        return Ok(stream::empty().boxed());
    };
    let input = stream::iter([first]).chain(input);
    let (requests, outgoing) = mpsc::channel(WINDOW);
    let mut client = links.client(target.id, target.address, Lane::Append);
    let opening = client.append(ReceiverStream::new(outgoing));
    let opened = match tokio::time::timeout(ANSWER_LIMIT, opening).await {
        Ok(opened) => opened.map_err(|status| target.failed(&status)),
        Err(_) => Err(target.no_answer(format!("nothing within {ANSWER_LIMIT:?}"))),
    };
    let session = Session {
        links,
        target,
        input: Some(input),
        requests: Some(requests),
        answers: opened.map_err(|error| failed(links, error))?.into_inner(),
        in_flight: VecDeque::with_capacity(WINDOW),
    };
    Ok(stream::unfold(Some(session), |session| async { session?.next().await }).boxed())
}

/// What the answer to one request without entries, after `prev_log_id`, would have been on a stream. None: no peer answers so.
pub(super) fn appended(
    answer: AppendEntriesResponse<TypeConfig>,
    prev_log_id: Option<LogId>,
) -> Option<StreamAppendResult<TypeConfig>> {
    Some(match answer {
        AppendEntriesResponse::Success => Ok(prev_log_id),
        AppendEntriesResponse::PartialSuccess(matching) => Ok(matching),
        AppendEntriesResponse::HigherVote(vote) => Err(StreamAppendError::HigherVote(vote)),
        // Nothing comes before the beginning: nothing conflicts with it.
        AppendEntriesResponse::Conflict => Err(StreamAppendError::Conflict(prev_log_id?)),
    })
}

fn failed(links: &PeerLinks, error: CallError) -> RPCError<TypeConfig> {
    rpc_error(links.me.id, RPCTypes::AppendEntries, ANSWER_LIMIT, error)
}

struct Session<'s, S> {
    links: &'s PeerLinks,
    target: Target,
    /// None when it has ended.
    input: Option<S>,
    /// Into the stream; closed with the input.
    requests: Option<mpsc::Sender<RaftMessage>>,
    answers: Streaming<RaftMessage>,
    /// The requests that have no answer yet.
    in_flight: VecDeque<InFlight>,
}

/// A request that has no answer yet.
#[derive(Clone, Copy, Debug)]
struct InFlight {
    sent: Instant,
    /// By which leadership.
    vote: Vote,
    /// The last entry that an answer acknowledges.
    last: Option<LogId>,
}

/// Whether the answer to an earlier request would be taken for the answer to one of these.
fn passes_for_a_later_one<'a>(
    appended: &StreamAppendResult<TypeConfig>,
    later: impl IntoIterator<Item = &'a InFlight>,
) -> bool {
    let Ok(acknowledged) = appended else {
        return false;
    };
    later
        .into_iter()
        .any(|request| request.last <= *acknowledged)
}

impl<S: Stream<Item = Append> + Send + Unpin> Session<'_, S> {
    /// The next answer, and the session unless it has ended.
    async fn next(mut self) -> Option<(Appended, Option<Self>)> {
        loop {
            let oldest = self.in_flight.front().copied();
            let late = async {
                match oldest {
                    Some(oldest) => tokio::time::sleep_until(oldest.sent + ANSWER_LIMIT).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // Both streams keep what they were at when their `next` is dropped.
                answer = self.answers.message() => match self.answered(answer) {
                    Some(Ok(appended @ Ok(_))) => return Some((Ok(appended), self.has_more().then_some(self))),
                    // The peer's log or vote is another than thought: openraft decides how to go on.
                    Some(refused_or_failed) => return Some((refused_or_failed, None)),
                    None => {}
                },
                request = next_of(&mut self.input), if self.in_flight.len() < WINDOW => match request {
                    Some(request) => if let Err(error) = self.send(&request).await {
                        return Some((Err(failed(self.links, error)), None));
                    },
                    None => {
                        (self.input, self.requests) = (None, None);
                        oldest?;
                    }
                },
                () = late => {
                    let error = self.target.no_answer(format!("nothing within {ANSWER_LIMIT:?}"));
                    return Some((Err(failed(self.links, error)), None));
                }
            }
        }
    }

    async fn send(&mut self, request: &Append) -> Result<(), CallError> {
        let payload = self.target.encode(request)?;
        let mut message = self.links.envelope(self.target.id, payload);
        // The entries may be feeling their way: they name none that must be there.
        message.acknowledged = self.links.acknowledged(self.target.id, &request.vote);
        // No later than it can arrive there: what the answer promises is counted from it.
        let sent = Instant::now();
        if let Some(requests) = &self.requests {
            // When the stream has ended meanwhile, the answers say why.
            let _ = requests.send(message).await;
        }
        self.in_flight.push_back(InFlight {
            sent,
            vote: request.vote,
            last: request
                .entries
                .last()
                .map(RaftEntry::log_id)
                .or(request.prev_log_id),
        });
        Ok(())
    }

    /// What an answer promises and acknowledges.
    fn note(
        &self,
        answer: &RaftMessage,
        appended: &Result<StreamAppendResult<TypeConfig>, CallError>,
        sent: Instant,
        vote: Vote,
    ) {
        let peer = self.target.id;
        let refusal_ms = answer.election_timeout_max_ms;
        self.links.note_promise(peer, sent.into_std(), refusal_ms);
        if let Ok(Ok(Some(last))) = appended {
            self.links.note_acknowledged(peer, vote, last.index);
        }
    }

    /// What came of the oldest request; none if that of a later one will say so.
    fn answered(&mut self, answer: Result<Option<RaftMessage>, Status>) -> Option<Appended> {
        let request = self.in_flight.pop_front();
        let answer = match answer {
            Ok(Some(message)) => {
                let appended = self.target.decode(&message.payload);
                if let Some(InFlight { sent, vote, .. }) = request {
                    self.note(&message, &appended, sent, vote);
                }
                appended
            }
            Ok(None) => Err(self.target.no_answer("it ended the stream".into())),
            Err(status) => Err(self.target.failed(&status)),
        };
        match answer {
            Ok(appended) if passes_for_a_later_one(&appended, &self.in_flight) => None,
            answer => Some(answer.map_err(|error| failed(self.links, error))),
        }
    }

    /// The end of the requests is none of the peer's: openraft would take it for a fault, and give up the request that it
    /// meanwhile has ready.
    fn has_more(&self) -> bool {
        self.input.is_some() || !self.in_flight.is_empty()
    }
}

/// The next of a stream that may have ended already; then never.
async fn next_of<S: Stream + Unpin>(input: &mut Option<S>) -> Option<S::Item> {
    match input {
        Some(input) => input.next().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use openraft::vote::{RaftLeaderId, RaftVote};

    use super::*;

    type LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>;

    fn log_id(index: u64) -> LogId {
        LogId::new(LeaderId::new(1, 1).to_committed(), index)
    }

    #[test]
    fn a_heartbeats_answer_says_what_one_on_the_stream_would() {
        let vote = Vote::from_leader_id(LeaderId::new(2, 2), false);
        let at = Some(log_id(11));
        let cases = [
            (AppendEntriesResponse::Success, at, Some(Ok(at))),
            (AppendEntriesResponse::Success, None, Some(Ok(None))),
            (
                AppendEntriesResponse::PartialSuccess(None),
                at,
                Some(Ok(None)),
            ),
            (
                AppendEntriesResponse::Conflict,
                at,
                Some(Err(StreamAppendError::Conflict(log_id(11)))),
            ),
            (AppendEntriesResponse::Conflict, None, None),
            (
                AppendEntriesResponse::HigherVote(vote),
                at,
                Some(Err(StreamAppendError::HigherVote(vote))),
            ),
        ];
        for (answer, prev_log_id, expected) in cases {
            let shown = format!("{answer}");
            assert_eq!(appended(answer, prev_log_id), expected, "{shown}");
        }
    }

    #[tokio::test]
    async fn an_answer_is_never_taken_for_that_to_a_later_request() {
        let request = |last: Option<u64>| InFlight {
            sent: Instant::now(),
            vote: Vote::from_leader_id(LeaderId::new(1, 1), true),
            last: last.map(log_id),
        };
        // (acknowledged, last entries of later requests, would pass for one of them)
        let cases = [
            (Some(11), vec![], false),
            (Some(11), vec![Some(12)], false),
            (Some(11), vec![Some(11)], true),
            (Some(11), vec![Some(12), Some(12)], false),
            (Some(11), vec![None], true),
            (None, vec![None], true),
            (None, vec![Some(1)], false),
        ];
        for (acknowledged, later, passes) in cases {
            let later: Vec<_> = later.into_iter().map(request).collect();
            let appended = Ok(acknowledged.map(log_id));
            assert_eq!(
                passes_for_a_later_one(&appended, &later),
                passes,
                "{acknowledged:?} {later:?}"
            );
        }
        let conflict = Err(StreamAppendError::Conflict(log_id(11)));
        assert!(!passes_for_a_later_one(&conflict, &[request(Some(11))]));
    }
}
