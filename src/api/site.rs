//! The site document: exported from the state, compared with it, applied to it as one command.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use pontoon_proto::v1;
use sha2::{Digest, Sha256};
use tokio::sync::OwnedSemaphorePermit;
use tonic::Streaming;

use super::{
    Api, Committed, Proposal,
    admin::{Pages, ready, request_id_of},
    pages,
    upload::gather,
};
use crate::{
    config::Fault,
    site::{
        Site, export,
        plan::{self, Action, Difference, Plan, WantedZones},
    },
    state::{
        State, check,
        command::{Precondition, RequestId},
        outcome::{Applied, Outcome},
    },
    wire::error::{Failure, FailureCode},
};

/// Largest document, in octets.
const MAX_DOCUMENT: usize = 256 << 20;
/// How often a document is compared anew because the state changed in between.
const ATTEMPTS: u32 = 20;
/// Octets of a piece of an exported document.
const PIECE: usize = 512 << 10;

/// What the first message of an upload says besides its data.
#[derive(Default)]
struct Opening {
    request_id: Bytes,
    born: u64,
    if_revision: Option<u64>,
    consistency: i32,
}

impl Api {
    pub(super) async fn export(
        &self,
        request: v1::ExportSiteRequest,
        deadline: Instant,
        permit: OwnedSemaphorePermit,
    ) -> Result<Pages<v1::SiteDocument>, Failure> {
        // The site holds no secret yet, so `secrets` has nothing to add.
        let v1::ExportSiteRequest {
            consistency,
            secrets: _,
        } = request;
        let (state, header) = self.read(consistency, deadline).await?;
        let text = blocking(move || Ok(export::export(state.snapshot()))).await?;
        let mut rest = Bytes::from(text);
        let mut pieces = vec![v1::SiteDocument {
            header: Some(header),
            data: rest.split_to(rest.len().min(PIECE)),
        }];
        while !rest.is_empty() {
            pieces.push(v1::SiteDocument {
                header: None,
                data: rest.split_to(rest.len().min(PIECE)),
            });
        }
        Ok(ready(pieces, permit))
    }

    pub(super) async fn plan(
        &self,
        upload: Streaming<v1::SiteUpload>,
        deadline: Instant,
        permit: OwnedSemaphorePermit,
    ) -> Result<Pages<v1::SitePlanPage>, Failure> {
        let (opening, wanted) = receive(upload, deadline).await?;
        let (state, header) = self.read(opening.consistency, deadline).await?;
        let (plan, _) = compare(&state, wanted).await?;
        let Plan {
            differences,
            changes,
        } = plan;
        // What apply refuses for the sake of addresses, plan refuses too.
        changes.iter().try_for_each(check::addresses::change)?;
        let mut warnings = self.advise_on(&state, &changes, deadline).await?;
        let changes = differences.into_iter().map(difference).collect();
        let pages = pages::cut(changes, |change: &v1::SiteChange| {
            64 + change.object.len() + change.details.iter().map(String::len).sum::<usize>()
        });
        let mut header = Some(header);
        let pages = pages.into_iter().map(|changes| v1::SitePlanPage {
            header: header.take(),
            changes,
            warnings: std::mem::take(&mut warnings),
        });
        Ok(ready(pages.collect(), permit))
    }

    pub(super) async fn apply(
        &self,
        author: String,
        deadline: Instant,
        upload: Streaming<v1::SiteUpload>,
    ) -> Result<v1::ApplySiteReply, Failure> {
        let (opening, mut wanted) = receive(upload, deadline).await?;
        let request = request_id_of(&opening.request_id)?;
        let group = self.group()?;
        group.catch_up(deadline).await?;
        for attempt in 0..ATTEMPTS {
            let request = nth(request, attempt);
            let state = group.state();
            match remembered(&state, request) {
                Some(Ok(applied)) => {
                    let told = vec![made_before(&applied)];
                    return Ok(reply(&applied, Vec::new(), told));
                }
                Some(Err(failure)) if in_between(&failure) => continue,
                Some(Err(failure)) => return Err(failure),
                None => {}
            }
            unchanged_since(&state, opening.if_revision)?;
            let (mut plan, back) = compare(&state, wanted).await?;
            wanted = back;
            if plan.is_empty() {
                let same = Applied {
                    revision: state.revision(),
                    ..Applied::default()
                };
                return Ok(reply(&same, Vec::new(), Vec::new()));
            }
            let differences = std::mem::take(&mut plan.differences);
            let (mut preconditions, changes) = plan.guarded(state.snapshot());
            preconditions.extend(opening.if_revision.map(Precondition::Revision));
            let proposal = Proposal {
                author: author.clone(),
                request,
                born: opening.born,
                preconditions,
                changes,
                deadline,
            };
            match self.commit(proposal).await {
                Ok(Committed { applied, warnings }) => {
                    return Ok(reply(&applied, differences, warnings));
                }
                Err(failure) if in_between(&failure) && opening.if_revision.is_none() => {
                    group.catch_up(deadline).await?;
                }
                Err(failure) => return Err(failure),
            }
        }
        Err(Failure::new(
            FailureCode::Conflict,
            "site",
            format!(
                "what is to be changed was changed by others in between, {ATTEMPTS} times in a row"
            ),
            "try again when fewer changes are made",
        ))
    }
}

/// Gathers an upload and reads the document in it.
async fn receive(
    upload: Streaming<v1::SiteUpload>,
    deadline: Instant,
) -> Result<(Opening, Wanted), Failure> {
    let mut opening = None;
    let text = gather(
        upload,
        deadline,
        MAX_DOCUMENT,
        "site document",
        |message: v1::SiteUpload| {
            let v1::SiteUpload {
                request_id,
                born,
                if_revision,
                data,
                consistency,
            } = message;
            opening.get_or_insert(Opening {
                request_id,
                born,
                if_revision,
                consistency,
            });
            data
        },
    )
    .await?;
    let wanted = blocking(move || {
        let text = String::from_utf8(text).map_err(|e| invalid(e.to_string()))?;
        let site = Site::parse(&text).map_err(|faults| invalid(fault_lines(&faults)))?;
        Ok(Wanted {
            zones: WantedZones::gather(&site)?,
            site,
        })
    })
    .await?;
    Ok((opening.unwrap_or_default(), wanted))
}

/// What an upload asks for, with what is known from comparing it before.
struct Wanted {
    site: Site,
    zones: WantedZones,
}

/// Compares where that holds up no other call. What it learns comes back with `wanted`, for the next time.
async fn compare(state: &Arc<State>, mut wanted: Wanted) -> Result<(Plan, Wanted), Failure> {
    let state = Arc::clone(state);
    blocking(move || {
        let plan = plan::plan_with(state.snapshot(), &wanted.site, &mut wanted.zones);
        Ok((plan, wanted))
    })
    .await
}

/// Runs long work where it holds up no other call.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|e| Err(Failure::new(FailureCode::Internal, "site", e, "")))
}

/// The request id of an attempt: a retry of the whole call makes the same attempts, each applied once.
fn nth(request: RequestId, attempt: u32) -> RequestId {
    if attempt == 0 {
        return request;
    }
    let hash = Sha256::new()
        .chain_update(request.0.to_be_bytes())
        .chain_update(attempt.to_be_bytes())
        .finalize();
    let octets = hash.first_chunk::<16>().copied().unwrap_or_default();
    RequestId(u128::from_be_bytes(octets))
}

/// What became of an earlier try of this attempt.
fn remembered(state: &State, request: RequestId) -> Option<Result<Applied, Failure>> {
    match state.outcome_of(request)? {
        Outcome::Applied(applied) => Some(Ok(applied.clone())),
        Outcome::Refused(refusal) => Some(Err(refusal.clone().into())),
        Outcome::Unknown => None,
    }
}

/// What is told of a try that an earlier answer should have told of.
fn made_before(applied: &Applied) -> String {
    format!(
        "an earlier try of this request was applied, as revision {}: what it did to each object is not listed again",
        applied.revision
    )
}

/// Whether only a change in between stood in the way.
fn in_between(failure: &Failure) -> bool {
    matches!(
        failure.code,
        FailureCode::PreconditionFailed | FailureCode::AlreadyExists
    )
}

fn unchanged_since(state: &State, revision: Option<u64>) -> Result<(), Failure> {
    match revision {
        Some(expected) if expected != state.revision() => Err(Failure::new(
            FailureCode::PreconditionFailed,
            "site",
            format!(
                "the state has revision {}, not {expected}",
                state.revision()
            ),
            "`pontoon plan` shows what would change now",
        )),
        _ => Ok(()),
    }
}

fn reply(
    applied: &Applied,
    differences: Vec<Difference>,
    warnings: Vec<String>,
) -> v1::ApplySiteReply {
    let brief = |d: Difference| {
        difference(Difference {
            details: Vec::new(),
            ..d
        })
    };
    v1::ApplySiteReply {
        applied: Some(applied.into()),
        changes: differences.into_iter().map(brief).collect(),
        warnings,
    }
}

fn difference(difference: Difference) -> v1::SiteChange {
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
        details,
    }
}

/// A line each. What a status can carry is limited: the command line, which shows them all, reads documents by itself.
fn fault_lines(faults: &[Fault]) -> String {
    const MOST: usize = 15;
    let mut lines: Vec<String> = faults.iter().take(MOST).map(ToString::to_string).collect();
    if faults.len() > MOST {
        lines.push(format!("and {} more", faults.len() - MOST));
    }
    lines.join("\n")
}

fn invalid(problem: String) -> Failure {
    let hint = "docs/site.md describes every key";
    Failure::new(FailureCode::Invalid, "site document", problem, hint)
}
