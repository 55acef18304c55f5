//! Calls to the cluster: which node is asked, how long, and what is tried again.
//!
//! A read may be repeated freely. A write is repeated only under its request id, so that it is applied once; when its last
//! answer was lost, its outcome is unknown and is said to be.
//!
//! Nodes that restart or hang are no reason to fail while there is time: endpoints are asked one after another, each given a
//! head start, until one answers; and no call spends the whole time on one of several endpoints.

use std::time::{Duration, Instant, SystemTime};

use futures::stream::{FuturesUnordered, StreamExt};
use tonic::{Code, Request, Response, Status, transport::Channel};

use super::{
    Context,
    endpoint::{Dialer, Endpoint},
};
use crate::{
    api::status::{failure_of, may_pass, says_why},
    wire::{
        error::{Failure, FailureCode},
        v1::{self, admin_client::AdminClient, node_client::NodeClient},
    },
};

/// Largest reply message that is taken, in octets.
pub const MAX_REPLY: usize = 64 << 20;
/// Longest wait for one node to say that it is there.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long an endpoint may be silent before the next one is asked too.
const HEAD_START: Duration = Duration::from_millis(250);
/// Time that an attempt of a write must have, for its answer to come in time.
const ATTEMPT_MIN: Duration = Duration::from_millis(300);
/// Between two attempts of a call.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// A connection to a node that answered.
pub struct Client {
    dialer: Dialer,
    at: usize,
    channel: Channel,
    deadline: Instant,
    /// Revision of the node that answered first: what a write carries as `born`.
    born: u64,
    consistency: i32,
}

/// One attempt of a call.
#[derive(Clone)]
pub struct Attempt {
    pub channel: Channel,
    deadline: Instant,
}

impl Attempt {
    /// `message` with the time that is left, which the node then keeps to.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.left());
        request
    }

    /// The Admin service, whose replies may be long.
    pub fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.channel.clone()).max_decoding_message_size(MAX_REPLY)
    }

    fn left(&self) -> Duration {
        let left = self.deadline.saturating_duration_since(Instant::now());
        left.max(Duration::from_millis(1))
    }
}

impl Client {
    /// Connects to the first endpoint that answers.
    pub async fn connect(context: &Context) -> Result<Self, Failure> {
        Self::connect_by(context, Dialer::new(&context.global)).await
    }

    /// Connects to the first endpoint and to no other: for commands that are about one node.
    pub async fn connect_to_first(context: &Context) -> Result<Self, Failure> {
        Self::connect_by(context, Dialer::new(&context.global).first_only()).await
    }

    async fn connect_by(context: &Context, dialer: Dialer) -> Result<Self, Failure> {
        let deadline = Instant::now() + context.global.timeout;
        let mut told = false;
        loop {
            let missed = match first_to_answer(&dialer, deadline).await {
                Ok((at, channel, born)) => {
                    let asked = dialer.endpoints().get(at);
                    let ending = asked.and_then(|e| dialer.ending(e, SystemTime::now()));
                    if let Some(ending) = ending {
                        context.out.warn(ending);
                    }
                    return Ok(Self {
                        at,
                        channel,
                        deadline,
                        born,
                        consistency: context.global.consistency.to_wire(),
                        dialer,
                    });
                }
                Err(missed) => missed,
            };
            let late = Instant::now() + RETRY_PAUSE >= deadline;
            if late || !worth_waiting(&dialer, &missed) {
                return Err(nobody(missed));
            }
            if !told {
                told = true;
                let time = humane(context.global.timeout);
                context
                    .out
                    .remark(&format!("no node answers yet; trying for {time}"));
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// The endpoint that is asked now.
    pub fn endpoint(&self) -> String {
        let endpoint = self.dialer.endpoints().get(self.at);
        endpoint.map_or_else(String::new, ToString::to_string)
    }

    pub fn consistency(&self) -> i32 {
        self.consistency
    }

    pub fn born(&self) -> u64 {
        self.born
    }

    /// A call that changes nothing. Another node is asked when this one does not answer, as long as there is time.
    pub async fn read<R>(
        &mut self,
        object: &str,
        call: impl AsyncFn(Attempt) -> Result<R, Status>,
    ) -> Result<R, Failure> {
        let mut tried = 1;
        loop {
            let (failure, passing) = match self.attempt(&call).await {
                Some(Ok(reply)) => return Ok(reply),
                Some(Err(status)) => (self.failure(&status, object, false), may_pass(&status)),
                None => (self.timed_out(object, FailureCode::Unreachable), true),
            };
            let others = tried < self.dialer.endpoints().len();
            let again = match failure.code {
                FailureCode::Unreachable => others || passing,
                // That node may not tell; another one may.
                FailureCode::NotReady => others,
                _ => false,
            };
            if !again || self.is_late() {
                return Err(failure);
            }
            if !others {
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            tried += 1;
            self.turn().await;
        }
    }

    /// A call that changes something under one request id, tried until it has an outcome or the time is up.
    pub async fn write<R>(
        &mut self,
        object: &str,
        call: impl AsyncFn(Attempt) -> Result<R, Status>,
    ) -> Result<R, Failure> {
        let mut lost: Option<Failure> = None;
        loop {
            let failure = match self.attempt(&call).await {
                Some(Ok(reply)) => return Ok(reply),
                Some(Err(status)) => self.failure(&status, object, true),
                None => self.timed_out(object, FailureCode::UnknownOutcome),
            };
            let (again, unsure) = match failure.code {
                FailureCode::NoLeader | FailureCode::Unreachable | FailureCode::Overloaded => {
                    (true, false)
                }
                FailureCode::UnknownOutcome => (true, true),
                // Consensus has ended on that node; another one may take the write.
                FailureCode::NotReady => (self.dialer.endpoints().len() > 1, false),
                _ => (false, false),
            };
            if unsure {
                lost = Some(failure.clone());
            }
            if !again {
                // Only the state machine can tell what became of the attempt whose answer was lost.
                return Err(match lost {
                    Some(lost) if !failure.code.is_verdict() => lost,
                    _ => failure,
                });
            }
            // With too little time left for an answer, another attempt would only make the outcome unknown.
            if Instant::now() + RETRY_PAUSE + ATTEMPT_MIN >= self.deadline {
                return Err(lost.unwrap_or(failure));
            }
            tokio::time::sleep(RETRY_PAUSE).await;
            self.turn().await;
        }
    }

    /// A call whose repetition could do something else: it is sent again only while it is certain that nothing was begun,
    /// because it was never sent, or no leader was there to begin it.
    pub async fn once<R>(
        &mut self,
        object: &str,
        call: impl AsyncFn(Attempt) -> Result<R, Status>,
    ) -> Result<R, Failure> {
        loop {
            let whole = Attempt {
                channel: self.channel.clone(),
                deadline: self.deadline,
            };
            let status = match tokio::time::timeout(whole.left(), call(whole)).await {
                Ok(Ok(reply)) => return Ok(reply),
                Ok(Err(status)) => status,
                Err(_) => return Err(self.timed_out(object, FailureCode::UnknownOutcome)),
            };
            let failure = self.failure(&status, object, true);
            let unsent = match failure.code {
                FailureCode::Unreachable => may_pass(&status),
                FailureCode::NoLeader | FailureCode::Overloaded => true,
                _ => false,
            };
            if !unsent || Instant::now() + RETRY_PAUSE >= self.deadline {
                return Err(failure);
            }
            tokio::time::sleep(RETRY_PAUSE).await;
            self.turn().await;
        }
    }

    /// A call that streams without end, such as `watch`: only its beginning has a deadline.
    pub async fn open<R>(
        &mut self,
        object: &str,
        call: impl AsyncFn(Channel) -> Result<Response<R>, Status>,
    ) -> Result<R, Failure> {
        let opened = self
            .read(object, async |attempt| call(attempt.channel).await)
            .await?;
        Ok(opened.into_inner())
    }

    /// The next message of a stream that ends by itself. How long the whole takes depends on its size: the limit is on the
    /// silence before each message.
    pub async fn next<R>(
        &self,
        object: &str,
        stream: &mut tonic::Streaming<R>,
        silence: Duration,
    ) -> Result<Option<R>, Failure> {
        match tokio::time::timeout(silence, stream.message()).await {
            Ok(next) => next.map_err(|status| self.failure(&status, object, false)),
            Err(_) => {
                let (endpoint, time) = (self.endpoint(), humane(silence));
                let problem = format!("endpoint {endpoint}: it sent nothing for {time}");
                Err(timed_out(object, problem, FailureCode::Unreachable))
            }
        }
    }

    /// None when this attempt's time is up: all that is left, or most of it when other endpoints could be asked after it.
    async fn attempt<R>(
        &self,
        call: &impl AsyncFn(Attempt) -> Result<R, Status>,
    ) -> Option<Result<R, Status>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let share = share(left, self.dialer.endpoints().len());
        let attempt = Attempt {
            channel: self.channel.clone(),
            deadline: Instant::now() + share,
        };
        let left = attempt.left();
        tokio::time::timeout(left, call(attempt)).await.ok()
    }

    /// The failure that a status tells of; when no node said why, with the endpoint that was asked.
    pub fn failure(&self, status: &Status, object: &str, written: bool) -> Failure {
        let failure = failure_of(status, object, written);
        if says_why(status) {
            return failure;
        }
        let endpoint = self.endpoint();
        let problem = match failure.problem.as_str() {
            // What tonic says when the time of a call is up, on either side.
            "Timeout expired" => "no answer in time",
            other => other
                .strip_prefix(&endpoint)
                .and_then(|rest| rest.strip_prefix(": "))
                .unwrap_or(other),
        };
        Failure {
            problem: format!("endpoint {endpoint}: {problem}"),
            ..failure
        }
    }

    fn timed_out(&self, object: &str, code: FailureCode) -> Failure {
        let problem = format!("endpoint {}: no answer in time", self.endpoint());
        timed_out(object, problem, code)
    }

    /// Goes on to the next endpoint, when there is another one.
    async fn turn(&mut self) {
        let endpoints = self.dialer.endpoints();
        self.at = (self.at + 1) % endpoints.len().max(1);
        if let Some(endpoint) = endpoints.get(self.at)
            && let Ok(channel) = self.dialer.channel(endpoint).await
        {
            self.channel = channel;
        }
    }

    fn is_late(&self) -> bool {
        Instant::now() >= self.deadline
    }
}

/// The time of one attempt: all there is, or two thirds when other endpoints are there for the rest.
fn share(left: Duration, endpoints: usize) -> Duration {
    match endpoints {
        0 | 1 => left,
        _ => left * 2 / 3,
    }
}

/// Why an endpoint gave no connection.
#[derive(Debug)]
struct Missed {
    failure: Failure,
    prospect: Prospect,
    /// The failure's hint goes by this very cause.
    explained: bool,
}

/// Whether asking an endpoint again may end otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Prospect {
    /// Nothing listens there, or it is silent: as while a node restarts.
    Passing,
    /// Its name means nothing.
    Lasting,
    /// It is there and will not speak with us: wrong certificates, no permission, another protocol.
    Denied,
}

/// Whether to ask again: not while somebody refuses us, and not when nothing was named and nothing is here.
fn worth_waiting(dialer: &Dialer, missed: &[Missed]) -> bool {
    let any = |prospect| missed.iter().any(|m| m.prospect == prospect);
    dialer.is_expected() && any(Prospect::Passing) && !any(Prospect::Denied)
}

/// Asks the endpoints in their order: the next one when one fails, or is silent for `HEAD_START`. The first answer counts.
async fn first_to_answer(
    dialer: &Dialer,
    deadline: Instant,
) -> Result<(usize, Channel, u64), Vec<Missed>> {
    let mut waiting = dialer.endpoints().iter().enumerate();
    let mut asked = FuturesUnordered::new();
    let mut missed: Vec<(usize, Missed)> = Vec::new();
    loop {
        if let Some((at, endpoint)) = waiting.next() {
            asked.push(async move { (at, probe(dialer, endpoint, deadline).await) });
        }
        let next = match waiting.len() {
            0 => asked.next().await,
            _ => match tokio::time::timeout(HEAD_START, asked.next()).await {
                Ok(next) => next,
                Err(_) => continue,
            },
        };
        match next {
            Some((at, Ok((channel, born)))) => return Ok((at, channel, born)),
            Some((at, Err(why))) => missed.push((at, why)),
            None => break,
        }
    }
    missed.sort_by_key(|(at, _)| *at);
    Err(missed.into_iter().map(|(_, why)| why).collect())
}

async fn probe(
    dialer: &Dialer,
    endpoint: &Endpoint,
    deadline: Instant,
) -> Result<(Channel, u64), Missed> {
    let object = format!("endpoint {endpoint}");
    let channel = dialer.channel(endpoint).await.map_err(|failure| Missed {
        prospect: match failure.code {
            FailureCode::Unreachable => Prospect::Lasting,
            _ => Prospect::Denied,
        },
        explained: false,
        failure,
    })?;
    let left = deadline.saturating_duration_since(Instant::now());
    let mut client = NodeClient::new(channel.clone());
    let asked = client.probe(v1::ProbeRequest {});
    match tokio::time::timeout(left.min(PROBE_TIMEOUT), asked).await {
        Ok(Ok(reply)) => Ok((channel, reply.into_inner().revision)),
        Ok(Err(status)) if status.code() == Code::Unimplemented && !says_why(&status) => {
            Err(Missed {
                failure: no_api(&object),
                prospect: Prospect::Denied,
                explained: true,
            })
        }
        Ok(Err(status)) => {
            let failure = failure_of(&status, &object, false);
            let overloaded = failure.code == FailureCode::Overloaded;
            let usual = failure.hint.clone();
            let failure = match failure.code {
                FailureCode::Unreachable => dialer.explained(endpoint, failure),
                _ => failure,
            };
            Err(Missed {
                prospect: match may_pass(&status) || overloaded {
                    true => Prospect::Passing,
                    false => Prospect::Denied,
                },
                explained: failure.hint != usual,
                failure,
            })
        }
        Err(_) => Err(Missed {
            failure: timed_out(
                &object,
                "no answer in time".into(),
                FailureCode::Unreachable,
            ),
            prospect: Prospect::Passing,
            explained: false,
        }),
    }
}

/// Every node knows the call by which its API is found, so what does not know it is something else.
fn no_api(object: &str) -> Failure {
    Failure::new(
        FailureCode::Unreachable,
        object,
        "it is not the API of a node, but perhaps its Raft or HTTP port",
        "give the address that `addresses.api` of its node.toml names",
    )
}

/// A time as it is given to `--timeout`.
fn humane(time: Duration) -> String {
    crate::config::units::format_duration(time)
}

/// The one failure that says most of several endpoints.
fn nobody(missed: Vec<Missed>) -> Failure {
    let mut unreachable: Vec<String> = Vec::new();
    let mut hints: Vec<String> = Vec::new();
    let single = missed.len() == 1;
    for Missed {
        failure, explained, ..
    } in missed
    {
        let says_more = single && !failure.hint.is_empty();
        if failure.code != FailureCode::Unreachable || says_more {
            return failure;
        }
        unreachable.push(failure.to_string());
        if explained && !hints.contains(&failure.hint) {
            hints.push(failure.hint);
        }
    }
    if hints.is_empty() {
        hints.push(
            "give --endpoints (or PONTOON_ENDPOINTS), or start a local cluster by `pontoon dev`"
                .to_owned(),
        );
    }
    Failure::new(
        FailureCode::Unreachable,
        "cluster",
        format!("no node answers: {}", unreachable.join("; ")),
        hints.join("; "),
    )
}

fn timed_out(object: &str, problem: String, code: FailureCode) -> Failure {
    let hint = match code {
        FailureCode::UnknownOutcome => "look whether the change was made before you repeat it",
        _ => "give a longer --timeout, or ask another node",
    };
    Failure::new(code, object, problem, hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_more_than_silence() {
        let missed = |failure: &Failure, explained| Missed {
            failure: failure.clone(),
            prospect: Prospect::Denied,
            explained,
        };
        let silent = Failure::new(FailureCode::Unreachable, "endpoint a", "refused", "run it");
        let denied = Failure::new(FailureCode::PermissionDenied, "node 2", "no", "");
        let both = nobody(vec![missed(&silent, false), missed(&denied, false)]);
        assert_eq!(both, denied);
        let none = nobody(vec![missed(&silent, false), missed(&silent, false)]);
        assert_eq!(none.code, FailureCode::Unreachable);
        assert!(none.problem.contains("endpoint a"));
        assert!(none.hint.contains("--endpoints"), "{none:?}");
        // What is known of the cause is said of several too, and once.
        let plain = Failure::new(FailureCode::Unreachable, "endpoint b", "x", "give http://b");
        let three = [(&plain, true), (&silent, false), (&plain, true)];
        let three = nobody(three.map(|(failure, known)| missed(failure, known)).into());
        assert_eq!(three.hint, "give http://b");
    }

    #[tokio::test]
    async fn a_port_of_another_kind_is_told_from_an_older_program() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        // It speaks gRPC, as the port of the peers does, and knows no call of ours.
        let other = tonic::service::Routes::default();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let serving = tonic::transport::Server::builder()
            .add_routes(other)
            .serve_with_incoming(incoming);
        let serving = tokio::spawn(serving);
        let words = ["pontoon", "--endpoints", &address, "zone", "list"];
        let words: Vec<_> = words.iter().map(std::ffi::OsString::from).collect();
        let cli = super::super::parse(&words).expect("a command");
        let context = Context {
            global: cli.global,
            out: super::super::Out::keeping(super::super::Format::Json),
        };
        let failure = match Client::connect(&context).await {
            Err(failure) => failure,
            Ok(_) => panic!("connected to something else"),
        };
        assert_eq!(failure.code, FailureCode::Unreachable);
        assert!(
            failure.problem.contains("not the API of a node"),
            "{failure:?}"
        );
        assert!(failure.hint.contains("addresses.api"), "{failure:?}");
        serving.abort();
    }

    #[test]
    fn an_attempt_leaves_time_for_the_other_endpoints() {
        let left = Duration::from_secs(3);
        assert_eq!(share(left, 1), left);
        assert_eq!(share(left, 3), Duration::from_secs(2));
    }
}
