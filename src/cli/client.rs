//! Calls to the cluster: which node is asked, how long, and what is tried again.
//!
//! A read may be repeated freely. A write is repeated only under its request id, so that it is applied once; when its last
//! answer was lost, its outcome is unknown and is said to be.

use std::time::{Duration, Instant};

use tonic::{Request, Response, Status, transport::Channel};

use super::{
    Context,
    endpoint::{Dialer, Endpoint},
};
use crate::{
    api::status::failure_of,
    wire::{
        error::{Failure, FailureCode},
        v1::{self, node_client::NodeClient},
    },
};

/// Largest reply message that is taken, in octets.
pub const MAX_REPLY: usize = 64 << 20;
/// Longest wait for one node to say that it is there, while others could be asked.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// Time that an attempt of a write must have, for its answer to come in time.
const ATTEMPT_MIN: Duration = Duration::from_millis(300);
/// Between two attempts of a write.
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

    fn left(&self) -> Duration {
        let left = self.deadline.saturating_duration_since(Instant::now());
        left.max(Duration::from_millis(1))
    }
}

impl Client {
    /// Connects to the first endpoint that answers.
    pub async fn connect(context: &Context) -> Result<Self, Failure> {
        Self::connect_by(context, Dialer::new(&context.global)?).await
    }

    /// Connects to the first endpoint and to no other: for commands that are about one node.
    pub async fn connect_to_first(context: &Context) -> Result<Self, Failure> {
        Self::connect_by(context, Dialer::new(&context.global)?.first_only()).await
    }

    async fn connect_by(context: &Context, dialer: Dialer) -> Result<Self, Failure> {
        let deadline = Instant::now() + context.global.timeout;
        let mut problems = Vec::new();
        for (at, endpoint) in dialer.endpoints().iter().enumerate() {
            match probe(&dialer, endpoint, deadline).await {
                Ok((channel, born)) => {
                    return Ok(Self {
                        at,
                        channel,
                        deadline,
                        born,
                        consistency: context.global.consistency.to_wire(),
                        dialer,
                    });
                }
                Err(failure) => problems.push(failure),
            }
        }
        Err(nobody(problems))
    }

    pub fn consistency(&self) -> i32 {
        self.consistency
    }

    pub fn born(&self) -> u64 {
        self.born
    }

    /// A call that changes nothing. Another node is asked when this one does not answer.
    pub async fn read<R>(
        &mut self,
        object: &str,
        call: impl AsyncFn(Attempt) -> Result<R, Status>,
    ) -> Result<R, Failure> {
        let mut tried = 1;
        loop {
            let failure = match self.attempt(&call).await {
                Some(Ok(reply)) => return Ok(reply),
                Some(Err(status)) => failure_of(&status, object, false),
                None => timed_out(object, FailureCode::Unreachable),
            };
            let lost = failure.code == FailureCode::Unreachable;
            if !lost || tried >= self.dialer.endpoints().len() || self.is_late() {
                return Err(failure);
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
                Some(Err(status)) => failure_of(&status, object, true),
                None => timed_out(object, FailureCode::UnknownOutcome),
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
                    Some(lost) if !is_verdict(failure.code) => lost,
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

    /// A call that cannot be repeated without effect: one attempt.
    pub async fn once<R>(
        &mut self,
        object: &str,
        call: impl AsyncFn(Attempt) -> Result<R, Status>,
    ) -> Result<R, Failure> {
        match self.attempt(&call).await {
            Some(Ok(reply)) => Ok(reply),
            Some(Err(status)) => Err(failure_of(&status, object, true)),
            None => Err(timed_out(object, FailureCode::UnknownOutcome)),
        }
    }

    /// A call that streams without end, such as `watch`: only its beginning has a deadline.
    pub async fn open<R>(
        &mut self,
        object: &str,
        call: impl AsyncFn(Channel) -> Result<Response<R>, Status>,
    ) -> Result<R, Failure> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        match tokio::time::timeout(left, call(self.channel.clone())).await {
            Ok(Ok(reply)) => Ok(reply.into_inner()),
            Ok(Err(status)) => Err(failure_of(&status, object, false)),
            Err(_) => Err(timed_out(object, FailureCode::Unreachable)),
        }
    }

    /// None when the time is up.
    async fn attempt<R>(
        &self,
        call: &impl AsyncFn(Attempt) -> Result<R, Status>,
    ) -> Option<Result<R, Status>> {
        let attempt = Attempt {
            channel: self.channel.clone(),
            deadline: self.deadline,
        };
        let left = attempt.left();
        tokio::time::timeout(left, call(attempt)).await.ok()
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

/// Whether the state machine itself decided, under the request id.
fn is_verdict(code: FailureCode) -> bool {
    matches!(
        code,
        FailureCode::Invalid
            | FailureCode::NotFound
            | FailureCode::AlreadyExists
            | FailureCode::PreconditionFailed
            | FailureCode::Conflict
            | FailureCode::FeatureLevel
    )
}

async fn probe(
    dialer: &Dialer,
    endpoint: &Endpoint,
    deadline: Instant,
) -> Result<(Channel, u64), Failure> {
    let object = format!("endpoint {endpoint}");
    let channel = dialer.channel(endpoint).await?;
    let left = deadline.saturating_duration_since(Instant::now());
    let mut client = NodeClient::new(channel.clone());
    let asked = client.probe(v1::ProbeRequest {});
    match tokio::time::timeout(left.min(PROBE_TIMEOUT), asked).await {
        Ok(Ok(reply)) => Ok((channel, reply.into_inner().revision)),
        Ok(Err(status)) => {
            let failure = failure_of(&status, &object, false);
            Err(match failure.code {
                FailureCode::Unreachable => dialer.explained(endpoint, failure),
                _ => failure,
            })
        }
        Err(_) => Err(timed_out(&object, FailureCode::Unreachable)),
    }
}

/// The one failure that says most of several endpoints.
fn nobody(problems: Vec<Failure>) -> Failure {
    let mut unreachable: Vec<String> = Vec::new();
    let single = problems.len() == 1;
    for failure in problems {
        let says_more = single && !failure.hint.is_empty();
        if failure.code != FailureCode::Unreachable || says_more {
            return failure;
        }
        unreachable.push(failure.to_string());
    }
    Failure::new(
        FailureCode::Unreachable,
        "cluster",
        format!("no node answers: {}", unreachable.join("; ")),
        "give --endpoints (or PONTOON_ENDPOINTS), or start a local cluster by `pontoon dev`",
    )
}

fn timed_out(object: &str, code: FailureCode) -> Failure {
    let problem = "no answer in time";
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
        let silent = Failure::new(FailureCode::Unreachable, "endpoint a", "refused", "");
        let denied = Failure::new(FailureCode::PermissionDenied, "node 2", "no", "");
        let both = nobody(vec![silent.clone(), denied.clone()]);
        assert_eq!(both, denied);
        let none = nobody(vec![silent.clone(), silent]);
        assert_eq!(none.code, FailureCode::Unreachable);
        assert!(none.problem.contains("endpoint a"));
    }
}
