//! Commands on their way to the leader: one gRPC stream for as long as this node takes the same one for it.
//!
//! A call for each would cost both sides more than the command costs in the log. On the stream whatever waits goes out as one
//! message, and what the leader has to answer comes back as one. Large commands have calls of their own, so that the others
//! need not wait behind them.
//!
//! A command that was on the stream when it ended may be in the log, unless the leader says that it has taken none; one that
//! still waited for it is certainly not.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{
    FutureExt, Stream, StreamExt,
    future::BoxFuture,
    stream::{self, FuturesUnordered},
};
use pontoon_proto::v1::RaftMessage;
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Status, Streaming, metadata::MetadataValue};

use super::{
    core::lock,
    messages::{ForwardedCommand, ForwardedOutcome, ProposeRequest, Proposed},
    network::{CallError, Lane, NOTHING_TAKEN_KEY, PeerLinks, Target},
};

/// Largest command that goes over the stream, in bytes.
const LARGEST: usize = 16 * 1024;
/// Commands that wait for room on the stream.
const WAITING: usize = 1024;
/// Commands on the stream that have no answer yet. The leader takes no more of one node either.
const UNDER_WAY: usize = 1024;
/// Bytes of commands after which a message takes no further one.
const MESSAGE: usize = 64 * 1024;
/// Messages that wait for the connection.
const MESSAGES: usize = 4;
/// How long the opening of a stream may take; the answers to commands have deadlines of their own.
const OPENING: Duration = Duration::from_secs(2);

type Answer = Result<Proposed, CallError>;

/// A command that somebody waits for.
struct Waiting {
    request: ProposeRequest,
    answer: oneshot::Sender<Answer>,
}

/// The stream to the leader that was asked last.
pub(super) struct Forwarder {
    links: Arc<PeerLinks>,
    current: Mutex<Option<(Target, mpsc::Sender<Waiting>)>>,
    /// Of the threads on which consensus runs, whoever asks.
    runtime: Handle,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Forwarder {
    /// Belongs to the runtime it is made on.
    pub fn new(links: Arc<PeerLinks>, tasks: TaskTracker, stop: CancellationToken) -> Self {
        Self {
            links,
            current: Mutex::default(),
            runtime: Handle::current(),
            tasks,
            stop,
        }
    }

    /// Whether the command is to go over the stream.
    pub fn takes(request: &ProposeRequest) -> bool {
        request.command.0.len() <= LARGEST
    }

    /// Hands a command to `leader` and waits for what became of it, at most `limit`.
    ///
    /// # Errors
    /// `NoAnswer` where it may have been taken.
    pub async fn forward(
        &self,
        leader: Target,
        request: ProposeRequest,
        limit: Duration,
    ) -> Answer {
        let (answer, answered) = oneshot::channel();
        let waiting = Waiting { request, answer };
        let stream = self.stream_to(leader);
        let deadline = tokio::time::Instant::now() + limit;
        match tokio::time::timeout_at(deadline, stream.send(waiting)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => {
                return Err(leader.unreached("the stream to it has just ended".into()));
            }
            // Too many wait already: this one never left.
            Err(_) => {
                return Err(leader.unreached(format!("no room on the stream within {limit:?}")));
            }
        }
        match tokio::time::timeout_at(deadline, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(leader.no_answer("the stream to it was given up".into())),
            Err(_) => Err(leader.no_answer(format!("nothing within {limit:?}"))),
        }
    }

    /// The stream to `leader`, begun if there is none. That to another one ends with the last command that waits for its answer.
    fn stream_to(&self, leader: Target) -> mpsc::Sender<Waiting> {
        let mut current = lock(&self.current);
        if let Some((to, stream)) = &*current
            && *to == leader
            && !stream.is_closed()
        {
            return stream.clone();
        }
        let (stream, waiting) = mpsc::channel(WAITING);
        *current = Some((leader, stream.clone()));
        let (links, stop) = (Arc::clone(&self.links), self.stop.clone());
        let run = async move {
            stop.run_until_cancelled(run(&links, leader, waiting)).await;
        };
        self.tasks.spawn_on(run, &self.runtime);
        stream
    }
}

/// Carries commands to `leader` until nobody can hand it another, or the stream ends.
async fn run(links: &PeerLinks, leader: Target, mut waiting: mpsc::Receiver<Waiting>) {
    let mut session = Session {
        links,
        leader,
        under_way: HashMap::new(),
        next: 0,
        nothing_taken: false,
    };
    let error = match session.open().await {
        Ok((requests, answers)) => session.exchange(&mut waiting, requests, answers).await,
        Err(error) => Some(error),
    };
    // Nobody waits any more for a stream that ended because nobody did.
    let Some(error) = error else { return };
    let of_those_sent = match &error {
        CallError::Refused { .. } if session.nothing_taken => error.clone(),
        CallError::NoAnswer { .. } => error.clone(),
        CallError::Refused { problem, .. } | CallError::Unreached { problem, .. } => {
            leader.no_answer(format!("the stream to it ended: {problem}"))
        }
    };
    for (_, answer) in session.under_way.drain() {
        let _ = answer.send(Err(of_those_sent.clone()));
    }
    waiting.close();
    let unsent = match error {
        CallError::NoAnswer { problem, .. } => leader.unreached(problem),
        certain => certain,
    };
    while let Some(waiting) = waiting.recv().await {
        let _ = waiting.answer.send(Err(unsent.clone()));
    }
}

struct Session<'a> {
    links: &'a PeerLinks,
    leader: Target,
    /// Who waits for the answer to each command on the stream. Who does no longer is not told.
    under_way: HashMap<u64, oneshot::Sender<Answer>>,
    /// Number of the next command.
    next: u64,
    /// The leader has said so of the whole stream.
    nothing_taken: bool,
}

impl Session<'_> {
    async fn open(&self) -> Result<(mpsc::Sender<RaftMessage>, Streaming<RaftMessage>), CallError> {
        let (requests, outgoing) = mpsc::channel(MESSAGES);
        let leader = self.leader;
        let mut client = self.links.client(leader.id, leader.address, Lane::Call);
        let opening = client.forward(ReceiverStream::new(outgoing));
        let opened = tokio::time::timeout(OPENING, opening)
            .await
            .map_err(|_| leader.no_answer(format!("nothing within {OPENING:?}")))?
            .map_err(|status| leader.failed(&status))?;
        Ok((requests, opened.into_inner()))
    }

    /// Why the stream ended; none when nobody needs it any more.
    async fn exchange(
        &mut self,
        waiting: &mut mpsc::Receiver<Waiting>,
        requests: mpsc::Sender<RaftMessage>,
        mut answers: Streaming<RaftMessage>,
    ) -> Option<CallError> {
        let mut is_open = true;
        while is_open || !self.under_way.is_empty() {
            let has_room = is_open && self.under_way.len() < UNDER_WAY;
            // Each branch keeps what it was at when it is dropped.
            tokio::select! {
                answer = answers.message() => if let Err(error) = self.take(answer) {
                    return Some(error);
                },
                room = room_and_one(&requests, waiting), if has_room => match room {
                    Room::Ended => return Some(self.last_words(answers).await),
                    Room::NobodyWaits => is_open = false,
                    Room::For(permit, first) => match self.message(first, waiting) {
                        Ok(Some(message)) => permit.send(message),
                        Ok(None) => {}
                        Err(error) => return Some(error),
                    },
                },
            }
        }
        None
    }

    /// Why the connection takes no message any more: the leader may have said so, behind the last of its answers.
    async fn last_words(&mut self, mut answers: Streaming<RaftMessage>) -> CallError {
        let silent = tokio::time::Instant::now() + OPENING;
        loop {
            match tokio::time::timeout_at(silent, answers.message()).await {
                Ok(answer) => match self.take(answer) {
                    Ok(()) => {}
                    Err(error) => return error,
                },
                Err(_) => return self.leader.no_answer("it ended the stream".into()),
            }
        }
    }

    /// A message of the first command and those that wait behind it; none when nobody waits for any of them any more.
    fn message(
        &mut self,
        first: Waiting,
        waiting: &mut mpsc::Receiver<Waiting>,
    ) -> Result<Option<RaftMessage>, CallError> {
        let mut commands = Vec::new();
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(Waiting { request, answer }) = next.take() {
            // Who has given up may ask again under the same id: what was not sent need not be written first.
            if !answer.is_closed() {
                bytes += request.command.0.len();
                commands.push(ForwardedCommand {
                    number: self.next,
                    request,
                });
                self.under_way.insert(self.next, answer);
                self.next += 1;
            }
            if bytes < MESSAGE && self.under_way.len() < UNDER_WAY {
                next = waiting.try_recv().ok();
            }
        }
        if commands.is_empty() {
            return Ok(None);
        }
        let payload = self.leader.encode(&commands)?;
        Ok(Some(self.links.envelope(self.leader.id, payload)))
    }

    /// Tells those whose commands are answered.
    fn take(&mut self, answer: Result<Option<RaftMessage>, Status>) -> Result<(), CallError> {
        let message = answer
            .map_err(|status| {
                self.nothing_taken = status.metadata().contains_key(NOTHING_TAKEN_KEY);
                self.leader.failed(&status)
            })?
            .ok_or_else(|| self.leader.no_answer("it ended the stream".into()))?;
        let outcomes: Vec<ForwardedOutcome> = self.leader.decode(&message.payload)?;
        for ForwardedOutcome { number, proposed } in outcomes {
            if let Some(answer) = self.under_way.remove(&number) {
                let _ = answer.send(Ok(proposed)); // who waits no longer has been told something else
            }
        }
        Ok(())
    }
}

/// What there is for the next message.
enum Room<'a> {
    For(mpsc::Permit<'a, RaftMessage>, Waiting),
    NobodyWaits,
    /// The connection takes no message any more.
    Ended,
}

/// Room first: a command that was taken out has to be sent.
async fn room_and_one<'a>(
    requests: &'a mpsc::Sender<RaftMessage>,
    waiting: &mut mpsc::Receiver<Waiting>,
) -> Room<'a> {
    let Ok(permit) = requests.reserve().await else {
        return Room::Ended;
    };
    match waiting.recv().await {
        Some(first) => Room::For(permit, first),
        None => Room::NobodyWaits,
    }
}

/// The leader's side: takes what comes in `messages` as `propose` does, and yields the outcomes as they are there. A message
/// that `read` refuses ends it, and what is under way loses its answers with it; the first one says that nothing was taken.
pub(super) fn answers<P, F>(
    messages: Streaming<RaftMessage>,
    read: impl Fn(&RaftMessage) -> Result<Vec<ForwardedCommand>, Status> + Send + 'static,
    propose: P,
) -> impl Stream<Item = Result<Vec<ForwardedOutcome>, Status>> + Send + 'static
where
    P: Fn(ProposeRequest) -> F + Send + 'static,
    F: Future<Output = Proposed> + Send + 'static,
{
    struct Taking<R, P> {
        messages: Option<Streaming<RaftMessage>>,
        running: FuturesUnordered<BoxFuture<'static, ForwardedOutcome>>,
        /// Whether a command was proposed, ever.
        has_taken: bool,
        read: R,
        propose: P,
    }
    impl<R, P> Taking<R, P> {
        /// The end: nothing more is taken or answered.
        fn refuse<T>(mut self, mut status: Status) -> (Result<T, Status>, Self) {
            if !self.has_taken {
                let yes = MetadataValue::from_static("1");
                status.metadata_mut().insert(NOTHING_TAKEN_KEY, yes);
            }
            self.messages = None;
            self.running.clear();
            (Err(status), self)
        }
    }
    let start = Taking {
        messages: Some(messages),
        running: FuturesUnordered::new(),
        has_taken: false,
        read,
        propose,
    };
    stream::unfold(start, |mut taking| async move {
        loop {
            let has_room = taking.running.len() < UNDER_WAY;
            if taking.messages.is_none() && taking.running.is_empty() {
                return None;
            }
            tokio::select! {
                message = next_of(&mut taking.messages), if has_room => {
                    let commands = match message {
                        Ok(Some(message)) => (taking.read)(&message),
                        Ok(None) => { taking.messages = None; continue }
                        Err(status) => Err(status),
                    };
                    match commands {
                        Ok(commands) if taking.running.len() + commands.len() > UNDER_WAY => {
                            let status = Status::resource_exhausted("more commands at a time than a stream may carry");
                            return Some(taking.refuse(status));
                        }
                        Ok(commands) => for ForwardedCommand { number, request } in commands {
                            taking.has_taken = true;
                            let proposed = (taking.propose)(request);
                            let outcome = proposed.map(move |proposed| ForwardedOutcome { number, proposed });
                            taking.running.push(outcome.boxed());
                        },
                        Err(status) => return Some(taking.refuse(status)),
                    }
                }
                Some(first) = taking.running.next() => {
                    let mut outcomes = vec![first];
                    while let Some(Some(next)) = taking.running.next().now_or_never() {
                        outcomes.push(next);
                    }
                    return Some((Ok(outcomes), taking));
                }
            }
        }
    })
}

/// The next message of a stream that may have ended already; then never.
async fn next_of(
    messages: &mut Option<Streaming<RaftMessage>>,
) -> Result<Option<RaftMessage>, Status> {
    match messages {
        Some(messages) => messages.message().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        consensus::{network::Identity, plaintext::PlaintextConnector, types::EncodedCommand},
        model::node::{ClusterId, NodeId},
    };

    fn command() -> ProposeRequest {
        ProposeRequest {
            command: EncodedCommand(vec![1].into()),
            wait_ms: 1000,
        }
    }

    #[tokio::test]
    async fn what_never_left_was_certainly_not_taken_and_the_next_one_begins_anew() {
        let me = Identity {
            cluster: ClusterId("c1".into()),
            id: NodeId(1),
        };
        let links = PeerLinks::new(me, Arc::new(PlaintextConnector));
        let stop = CancellationToken::new();
        let forwarder = Forwarder::new(Arc::new(links), TaskTracker::new(), stop.clone());
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let leader = Target {
            id: NodeId(2),
            address: closed.local_addr().unwrap(),
        };
        drop(closed);
        let limit = Duration::from_secs(10);
        for _ in 0..2 {
            let many = (0..50).map(|_| forwarder.forward(leader, command(), limit));
            for answer in futures::future::join_all(many).await {
                assert!(
                    matches!(answer, Err(CallError::Unreached { .. })),
                    "{answer:?}"
                );
            }
        }
        stop.cancel();
        let answer = forwarder.forward(leader, command(), limit).await;
        assert!(answer.is_err(), "{answer:?}");
    }
}
