//! Log entries on their way to one peer: one gRPC stream for as long as openraft replicates to it without a fault.
//!
//! A call for each append would cost both sides several times the work of the append itself. On the stream the next
//! requests go out while earlier ones are being made durable; answers come in the order of the requests. It ends at the
//! first fault, and openraft begins another.

use std::{collections::VecDeque, time::Duration};

use futures::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use openraft::{
    RPCTypes,
    errors::RPCError,
    raft::{AppendEntriesRequest, StreamAppendResult},
};
use pontoon_proto::v1::RaftMessage;
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{
    network::{CallError, Lane, PeerLinks, Target, rpc_error},
    types::{TypeConfig, Vote},
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
/// # Errors
/// When the peer is not reached, or refuses.
pub(super) async fn open<'s, S>(
    links: &'s PeerLinks,
    target: Target,
    input: S,
) -> Result<BoxStream<'s, Appended>, RPCError<TypeConfig>>
where
    S: Stream<Item = Append> + Send + Unpin + 'static,
{
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
    /// The requests that have no answer yet: when they were sent, and by which leadership.
    in_flight: VecDeque<(Instant, Vote)>,
}

impl<S: Stream<Item = Append> + Send + Unpin> Session<'_, S> {
    /// The next answer, and the session unless it has ended.
    async fn next(mut self) -> Option<(Appended, Option<Self>)> {
        loop {
            let oldest = self.in_flight.front().copied();
            let late = async {
                match oldest {
                    Some((sent, _)) => tokio::time::sleep_until(sent + ANSWER_LIMIT).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // Both streams keep what they were at when their `next` is dropped.
                answer = self.answers.message() => return Some(self.answered(answer)),
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
        self.in_flight.push_back((sent, request.vote));
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

    fn answered(mut self, answer: Result<Option<RaftMessage>, Status>) -> (Appended, Option<Self>) {
        let request = self.in_flight.pop_front();
        let answer = match answer {
            Ok(Some(message)) => {
                let appended = self.target.decode(&message.payload);
                if let Some((sent, vote)) = request {
                    self.note(&message, &appended, sent, vote);
                }
                appended
            }
            Ok(None) => Err(self.target.no_answer("it ended the stream".into())),
            Err(status) => Err(self.target.failed(&status)),
        };
        // The end of the requests is none of the peer's: openraft would take it for a fault, and give up the request that it
        // meanwhile has ready.
        let has_more = self.input.is_some() || !self.in_flight.is_empty();
        match answer {
            Ok(appended @ Ok(_)) => (Ok(appended), has_more.then_some(self)),
            // The peer's log or vote is another than thought: openraft decides how to go on.
            Ok(refused @ Err(_)) => (Ok(refused), None),
            Err(error) => (Err(failed(self.links, error)), None),
        }
    }
}

/// The next of a stream that may have ended already; then never.
async fn next_of<S: Stream + Unpin>(input: &mut Option<S>) -> Option<S::Item> {
    match input {
        Some(input) => input.next().await,
        None => std::future::pending().await,
    }
}
