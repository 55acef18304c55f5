//! The site document: exported from the state, compared with it, applied to it as one command.

use std::time::Instant;

use bytes::Bytes;
use futures::StreamExt;
use pontoon_proto::v1;
use tonic::Streaming;

use super::{
    Api, Proposal,
    admin::{Pages, ready},
    pages, upload,
};
use crate::{
    config::Fault,
    site::{
        Site, export,
        plan::{Action, Difference, Plan, plan},
    },
    state::{
        State,
        command::{Precondition, RequestId},
        outcome::{Applied, Outcome},
    },
    wire::{
        command::{MAX_COMMAND, request_id},
        error::{Failure, FailureCode},
    },
};

/// Octets of an exported document in one message.
const PIECE: usize = 512 << 10;
/// How often a plan is made anew because the state moved between plan and commit.
const ATTEMPTS: u128 = 8;
/// The object that failures name.
const OBJECT: &str = "site document";

/// What came with an upload.
struct Upload {
    site: Site,
    request: Bytes,
    born: u64,
    if_revision: Option<u64>,
}

impl Api {
    pub(super) async fn export(
        &self,
        request: v1::ExportSiteRequest,
        deadline: Instant,
    ) -> Result<Pages<v1::SiteDocument>, Failure> {
        let (state, header) = self.read(request.consistency, deadline).await?;
        let text = blocking(move || export::export(state.snapshot())).await?;
        let mut header = Some(header);
        let text = Bytes::from(text);
        let pieces = (0..text.len().max(1))
            .step_by(PIECE)
            .map(|from| v1::SiteDocument {
                header: header.take(),
                data: text.slice(from..text.len().min(from + PIECE)),
            });
        Ok(ready(pieces.collect()))
    }

    pub(super) async fn plan(
        &self,
        upload: Streaming<v1::SiteUpload>,
    ) -> Result<Pages<v1::SitePlanPage>, Failure> {
        let Upload { site, .. } = receive(upload).await?;
        let (state, header) = self
            .read(v1::Consistency::Local.into(), Instant::now())
            .await?;
        let plan = blocking(move || plan(state.snapshot(), &site)).await??;
        let changes = plan
            .differences
            .into_iter()
            .map(|d| site_change(d, true))
            .collect();
        let weight =
            |change: &v1::SiteChange| change.details.iter().map(String::len).sum::<usize>() + 64;
        let mut header = Some(header);
        let page = |changes| v1::SitePlanPage {
            header: header.take(),
            changes,
        };
        Ok(ready(
            pages::cut(changes, weight).into_iter().map(page).collect(),
        ))
    }

    pub(super) async fn apply(
        &self,
        author: String,
        deadline: Instant,
        upload: Streaming<v1::SiteUpload>,
    ) -> Result<v1::ApplySiteReply, Failure> {
        let Upload {
            site,
            request,
            born,
            if_revision,
        } = receive(upload).await?;
        let first = request_id(&request)?;
        let site = std::sync::Arc::new(site);
        let mut moved = None;
        for attempt in 0..ATTEMPTS {
            // A plan that was refused because the state had moved keeps its request id: the next one takes another.
            let request = RequestId(first.0.wrapping_add(attempt));
            let state = self.group()?.state();
            if let Some(done) = done_before(&state, request) {
                return Ok(reply(done, Vec::new()));
            }
            let revision = state.revision();
            let (wanted, current) = (std::sync::Arc::clone(&site), std::sync::Arc::clone(&state));
            let Plan {
                differences,
                changes,
            } = blocking(move || plan(current.snapshot(), &wanted)).await??;
            if changes.is_empty() && if_revision.is_none_or(|expected| expected == revision) {
                return Ok(reply(
                    Applied {
                        revision,
                        ..Applied::default()
                    },
                    Vec::new(),
                ));
            }
            let proposal = Proposal {
                author: author.clone(),
                request,
                born,
                // The plan holds for the state it was made from and for no other.
                preconditions: vec![Precondition::Revision(if_revision.unwrap_or(revision))],
                changes,
                deadline,
            };
            match self.commit(proposal).await {
                Ok(applied) => return Ok(reply(applied, differences)),
                Err(failure)
                    if failure.code == FailureCode::PreconditionFailed && if_revision.is_none() =>
                {
                    moved = Some(failure);
                    // This node may be behind the state that refused the plan.
                    self.group()?.catch_up(deadline).await?;
                }
                Err(failure) => return Err(failure),
            }
        }
        Err(moved.unwrap_or_else(|| {
            Failure::new(
                FailureCode::Conflict,
                OBJECT,
                "the state keeps moving",
                "try again",
            )
        }))
    }
}

/// What an earlier sending of this request did.
fn done_before(state: &State, request: RequestId) -> Option<Applied> {
    match state.outcome_of(request)? {
        Outcome::Applied(applied) => Some(applied.clone()),
        Outcome::Refused(_) | Outcome::Unknown => None,
    }
}

async fn receive(upload: Streaming<v1::SiteUpload>) -> Result<Upload, Failure> {
    let mut first = None;
    let octets = upload::gather(
        upload.boxed(),
        MAX_COMMAND,
        OBJECT,
        |piece: v1::SiteUpload| {
            let v1::SiteUpload {
                request_id,
                born,
                if_revision,
                data,
            } = piece;
            first.get_or_insert((request_id, born, if_revision));
            data
        },
    );
    let octets = octets.await?;
    let (request, born, if_revision) = first.unwrap_or_default();
    let site = blocking(move || read(&octets)).await??;
    Ok(Upload {
        site,
        request,
        born,
        if_revision,
    })
}

fn read(octets: &[u8]) -> Result<Site, Failure> {
    let text = std::str::from_utf8(octets).map_err(|e| {
        Failure::new(
            FailureCode::Invalid,
            OBJECT,
            format!("it is no UTF-8 text: {e}"),
            "",
        )
    })?;
    Site::parse(text).map_err(|faults| faulty(&faults))
}

fn faulty(faults: &[Fault]) -> Failure {
    let lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
    Failure::new(
        FailureCode::Invalid,
        OBJECT,
        lines.join("\n"),
        "docs/site.md describes every key",
    )
}

fn reply(done: Applied, differences: Vec<Difference>) -> v1::ApplySiteReply {
    v1::ApplySiteReply {
        applied: Some((&done).into()),
        changes: differences
            .into_iter()
            .map(|d| site_change(d, false))
            .collect(),
    }
}

fn site_change(difference: Difference, with_details: bool) -> v1::SiteChange {
    let Difference {
        action,
        object,
        details,
    } = difference;
    let action = match action {
        Action::Create => v1::SiteAction::Create,
        Action::Update => v1::SiteAction::Update,
        Action::Delete => v1::SiteAction::Delete,
    };
    v1::SiteChange {
        action: action.into(),
        object,
        details: if with_details { details } else { Vec::new() },
    }
}

/// Runs work that takes long for a large site beside the threads that serve calls.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Failure::new(FailureCode::Internal, OBJECT, error, ""))
}
