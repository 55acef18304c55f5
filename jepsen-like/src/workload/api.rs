//! Calls of one node's API that tell three outcomes apart: done, certainly not done, perhaps done.

use std::{path::Path, time::Duration};

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
}

/// One name's TXT set, as all workloads use them: one record of several character strings.
pub type Strings = Vec<String>;

impl NodeApi {
    pub fn to(socket: &Path) -> Self {
        Self {
            channel: lazy_channel(socket.to_owned()),
        }
    }

    /// Commits changes if all preconditions hold.
    pub async fn propose(
        &self,
        preconditions: Vec<Precondition>,
        changes: Vec<Change>,
    ) -> Result<Applied, Failed> {
        let request_id: [u8; 16] = rand::rng().random();
        let mut request = Request::new(ProposeRequest {
            request_id: request_id.to_vec().into(),
            born: 0,
            preconditions,
            changes,
        });
        request.set_timeout(PATIENCE - MARGIN);
        let mut client = AdminClient::new(self.channel.clone());
        let reply = bounded(PATIENCE, client.propose(request)).await?;
        let applied = reply.applied;
        applied.ok_or_else(|| Failed::Perhaps("an empty reply".to_owned()))
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

    #[tokio::test]
    async fn a_node_that_is_not_there_certainly_did_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let api = NodeApi::to(&directory.path().join("sock"));
        let failed = api.propose(vec![], vec![]).await.unwrap_err();
        assert!(matches!(failed, Failed::Nothing(_)), "{failed}");
    }
}
