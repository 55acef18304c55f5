//! Calls of one node's API that tell three outcomes apart: done, certainly not done, perhaps done.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use pontoon::wire::error::{Failure, FailureCode};
use pontoon_proto::v1::{
    Applied, Change, Consistency, DeleteRecords, ExpectedRrset, NodeStatusReply, NodeStatusRequest,
    OwnedRrset, Precondition, ProbeRequest, ProposeRequest, ReadZoneRequest, Rrset, ZoneRrset,
    admin_client::AdminClient, change, node_client::NodeClient, precondition,
};
use rand::RngExt;
use tonic::{Code, Request, Status, transport::Channel};

use super::{PATIENCE, TTL, TXT};
use crate::lab::client::lazy_channel;

/// The node is given so much less time than the client waits: its own word is better than silence.
const MARGIN: Duration = Duration::from_millis(300);
/// One change in so many is asked for twice.
const ASKED_AGAIN: u32 = 8;
/// For questions that concern one node only.
const SHORT: Duration = Duration::from_millis(500);

/// An operation that did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failed {
    #[error("{0}")]
    Nothing(String),
    #[error("perhaps: {0}")]
    Perhaps(String),
}

impl From<Status> for Failed {
    fn from(status: Status) -> Self {
        classify(&status)
    }
}

/// What a status says of the outcome. The node's own word counts; of other failures only one to connect is certain.
fn classify(status: &Status) -> Failed {
    if let Some(failure) = Failure::from_details(status.details()) {
        let text = failure.to_string();
        return match failure.code {
            FailureCode::UnknownOutcome | FailureCode::Internal => Failed::Perhaps(text),
            _ => Failed::Nothing(text),
        };
    }
    let text = format!("{}: {}", status.code(), status.message());
    match status.code() {
        Code::Unavailable if is_connect_error(status) => Failed::Nothing(text),
        _ => Failed::Perhaps(text),
    }
}

/// A change that was not done.
#[derive(Debug)]
struct Said {
    failed: Failed,
    /// By the state machine, once and for all.
    is_decided: bool,
}

/// Whether the state machine looked at the change and refused it.
fn is_decided(status: &Status) -> bool {
    let failure = Failure::from_details(status.details());
    failure.is_some_and(|failure| failure.code == FailureCode::PreconditionFailed)
}

/// What became of a change that was asked for twice under one request id. The second answer stands for a first that was lost:
/// a state machine that remembers requests says the same.
fn outcome_of(
    first: Result<Applied, Said>,
    again: Result<Applied, Said>,
) -> Result<Applied, Failed> {
    match (first, again) {
        (_, Ok(applied)) => Ok(applied),
        (Ok(_), Err(refused)) if refused.is_decided => Err(Failed::Nothing(format!(
            "asked again under the same request id: {}",
            refused.failed
        ))),
        (Ok(applied), Err(_)) => Ok(applied),
        // That one was certainly not taken says nothing of the other.
        (Err(first), Err(again)) => Err(match first.failed {
            Failed::Nothing(_) => again.failed,
            perhaps @ Failed::Perhaps(_) => perhaps,
        }),
    }
}

fn is_connect_error(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            use std::io::ErrorKind::{ConnectionRefused, NotFound};
            return matches!(error.kind(), ConnectionRefused | NotFound);
        }
        cause = error.source();
    }
    false
}

/// A node's API.
#[derive(Clone, Debug)]
pub struct NodeApi {
    channel: Channel,
    /// See `Board::retries`.
    retries: Arc<AtomicU64>,
}

/// One name's TXT set, as all workloads use them: one record of several character strings.
pub type Strings = Vec<String>;

impl NodeApi {
    pub fn to(socket: &Path) -> Self {
        Self::counting(socket, Arc::default())
    }

    /// As `to`; `retries` is raised by each change under a precondition that is asked for again after it was done.
    pub fn counting(socket: &Path, retries: Arc<AtomicU64>) -> Self {
        Self {
            channel: lazy_channel(socket.to_owned()),
            retries,
        }
    }

    /// Commits changes if all preconditions hold. Now and then it asks again under the same request id, as a client does that
    /// got no answer: what it is told then is the outcome of the first.
    pub async fn propose(
        &self,
        preconditions: Vec<Precondition>,
        changes: Vec<Change>,
    ) -> Result<Applied, Failed> {
        let (request_id, asks_again): ([u8; 16], _) = {
            let mut rng = rand::rng();
            (rng.random(), rng.random_ratio(1, ASKED_AGAIN))
        };
        let request = ProposeRequest {
            request_id: request_id.to_vec().into(),
            born: 0,
            preconditions,
            changes,
        };
        let first = self.propose_once(request.clone()).await;
        match asks_again {
            true => {
                let is_telling = first.is_ok() && !request.preconditions.is_empty();
                let again = self.propose_once(request).await;
                self.retries.fetch_add(is_telling.into(), Ordering::Relaxed);
                outcome_of(first, again)
            }
            false => first.map_err(|said| said.failed),
        }
    }

    async fn propose_once(&self, request: ProposeRequest) -> Result<Applied, Said> {
        let mut request = Request::new(request);
        request.set_timeout(PATIENCE - MARGIN);
        let mut client = AdminClient::new(self.channel.clone());
        let empty = || Said {
            failed: Failed::Perhaps("an empty reply".to_owned()),
            is_decided: false,
        };
        match tokio::time::timeout(PATIENCE, client.propose(request)).await {
            Ok(Ok(reply)) => reply.into_inner().applied.ok_or_else(empty),
            Ok(Err(status)) => Err(Said {
                is_decided: is_decided(&status),
                failed: classify(&status),
            }),
            Err(_) => Err(Said {
                failed: Failed::Perhaps("no answer in time".to_owned()),
                is_decided: false,
            }),
        }
    }

    /// The records of a zone, or of one name of it, of one state.
    pub async fn read(
        &self,
        zone: &str,
        name: Option<&str>,
        consistency: Consistency,
    ) -> Result<Vec<OwnedRrset>, Failed> {
        let mut request = Request::new(ReadZoneRequest {
            consistency: consistency.into(),
            zone: zone.to_owned(),
            name: name.unwrap_or_default().to_owned(),
            r#type: TXT,
        });
        request.set_timeout(PATIENCE - MARGIN);
        let mut client = AdminClient::new(self.channel.clone());
        let whole = async {
            let mut pages = client.read_zone(request).await?.into_inner();
            let mut records = vec![];
            while let Some(page) = pages.message().await? {
                records.extend(page.records);
            }
            Ok::<_, Status>(tonic::Response::new(records))
        };
        bounded(PATIENCE, whole).await
    }

    /// The TXT set of one name.
    pub async fn read_txt(
        &self,
        zone: &str,
        name: &str,
        consistency: Consistency,
    ) -> Result<Option<Strings>, Failed> {
        let records = self.read(zone, Some(name), consistency).await?;
        Ok(records
            .first()
            .and_then(|owned| strings(owned.rrset.as_ref()?)))
    }

    /// Whether the node says that it serves old state.
    pub async fn is_stale(&self) -> Result<bool, Failed> {
        let mut client = NodeClient::new(self.channel.clone());
        let reply = bounded(SHORT, client.probe(ProbeRequest {})).await?;
        Ok(reply.stale)
    }

    pub async fn status(&self) -> Result<NodeStatusReply, Failed> {
        let mut client = NodeClient::new(self.channel.clone());
        bounded(SHORT, client.status(NodeStatusRequest {})).await
    }
}

async fn bounded<T>(
    patience: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Failed> {
    match tokio::time::timeout(patience, call).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(Failed::Perhaps("no answer in time".to_owned())),
    }
}

/// A TXT set of one record.
pub fn txt(strings: &[String]) -> Rrset {
    let mut data = vec![];
    for string in strings {
        data.push(string.len() as u8); // numbers: far below 256 octets
        data.extend_from_slice(string.as_bytes());
    }
    Rrset {
        r#type: TXT,
        ttl: TTL,
        rdata: vec![data.into()],
    }
}

/// The strings of a TXT set's first record.
pub fn strings(rrset: &Rrset) -> Option<Strings> {
    character_strings(rrset.rdata.first()?)
}

/// RFC 1035 section 3.3: each with its length before it.
pub fn character_strings(mut data: &[u8]) -> Option<Strings> {
    let mut strings = vec![];
    while let Some((length, rest)) = data.split_first() {
        let (string, rest) = rest.split_at_checked(usize::from(*length))?;
        strings.push(String::from_utf8_lossy(string).into_owned());
        data = rest;
    }
    Some(strings)
}

/// Puts a TXT set in place.
pub fn set_txt(zone: &str, name: &str, strings: &[String]) -> Change {
    Change {
        kind: Some(change::Kind::SetRrset(ZoneRrset {
            zone: zone.to_owned(),
            name: name.to_owned(),
            rrset: Some(txt(strings)),
        })),
    }
}

/// Deletes a TXT set.
pub fn delete_txt(zone: &str, name: &str) -> Change {
    Change {
        kind: Some(change::Kind::DeleteRecords(DeleteRecords {
            zone: zone.to_owned(),
            name: name.to_owned(),
            r#type: TXT,
            records: None,
        })),
    }
}

/// The TXT set of a name is exactly this; none: there is none.
pub fn expect_txt(zone: &str, name: &str, expected: Option<&[String]>) -> Precondition {
    Precondition {
        kind: Some(precondition::Kind::Rrset(ExpectedRrset {
            zone: zone.to_owned(),
            name: name.to_owned(),
            r#type: TXT,
            expected: expected.map(txt),
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn txt_sets_are_read_as_they_were_written() {
        for written in [
            vec![],
            vec!["1".to_owned()],
            vec!["12".to_owned(), "3".to_owned()],
        ] {
            assert_eq!(strings(&txt(&written)), Some(written));
        }
        assert_eq!(character_strings(&[5, b'a']), None, "cut off");
    }

    #[test]
    fn only_what_certainly_did_not_happen_failed() {
        let failure = |code| {
            let failure = Failure::new(code, "zone a.", "no", "");
            let details = failure.to_details(9);
            classify(&Status::with_details(Code::FailedPrecondition, "", details))
        };
        assert!(matches!(
            failure(FailureCode::PreconditionFailed),
            Failed::Nothing(_)
        ));
        assert!(matches!(failure(FailureCode::NoLeader), Failed::Nothing(_)));
        assert!(matches!(
            failure(FailureCode::UnknownOutcome),
            Failed::Perhaps(_)
        ));
        for code in [
            Code::Unavailable,
            Code::DeadlineExceeded,
            Code::Cancelled,
            Code::Internal,
        ] {
            assert!(matches!(
                classify(&Status::new(code, "")),
                Failed::Perhaps(_)
            ));
        }
    }

    #[test]
    fn the_answer_to_a_retry_stands_for_one_that_was_lost() {
        let applied = |revision| Applied {
            revision,
            ..Applied::default()
        };
        let said = |failed: &str, is_decided| Said {
            failed: match failed.strip_prefix('?') {
                Some(why) => Failed::Perhaps(why.to_owned()),
                None => Failed::Nothing(failed.to_owned()),
            },
            is_decided,
        };
        assert_eq!(outcome_of(Ok(applied(1)), Ok(applied(1))), Ok(applied(1)));
        assert_eq!(
            outcome_of(Err(said("?", false)), Ok(applied(1))),
            Ok(applied(1))
        );
        assert_eq!(
            outcome_of(Ok(applied(1)), Err(said("no leader", false))),
            Ok(applied(1))
        );
        let refused = outcome_of(Ok(applied(1)), Err(said("held 5", true))).unwrap_err();
        assert!(matches!(&refused, Failed::Nothing(why) if why.ends_with("held 5")));
        for is_decided in [true, false] {
            let both = outcome_of(Err(said("?lost", false)), Err(said("no", is_decided)));
            assert_eq!(both, Err(Failed::Perhaps("lost".to_owned())));
        }
        let late = outcome_of(
            Err(said("no leader", false)),
            Err(said("?not applied here yet", false)),
        );
        assert_eq!(
            late,
            Err(Failed::Perhaps("not applied here yet".to_owned()))
        );
        let neither = outcome_of(Err(said("no leader", false)), Err(said("held 5", true)));
        assert!(matches!(neither, Err(Failed::Nothing(_))), "{neither:?}");
    }

    #[tokio::test]
    async fn a_node_that_is_not_there_certainly_did_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let api = NodeApi::to(&directory.path().join("sock"));
        let failed = api.propose(vec![], vec![]).await.unwrap_err();
        assert!(matches!(failed, Failed::Nothing(_)), "{failed}");
    }
}
