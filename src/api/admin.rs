//! The Admin service: proposals, and reads of what the cluster serves.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Instant,
};

use futures::future::join_all;
use pontoon_proto::v1::{self, admin_server::Admin};
use prost::Message;
use tokio::sync::OwnedSemaphorePermit;
use tonic::{Request, Response, Status, Streaming};

use super::{
    Api, Committed, Proposal, admit, caller::Caller, deadline_of, group::random_request, upload,
    zones,
};
use crate::{
    model::label::Label,
    state::command::{Change, Precondition, RequestId},
    wire::{
        self,
        command::MAX_COMMAND,
        error::{Failure, FailureCode},
    },
};

/// A stream of messages that have been worked out already, or are made page by page.
pub(super) type Pages<T> = futures::stream::BoxStream<'static, Result<T, Status>>;

#[tonic::async_trait]
impl Admin for Api {
    async fn propose(
        &self,
        request: Request<v1::ProposeRequest>,
    ) -> Result<Response<v1::ProposeReply>, Status> {
        let author = Caller::admin(&request)?;
        let deadline = deadline_of(&request);
        let proposal = proposal_of(author, deadline, request.into_inner())?;
        let Committed { applied, warnings } = self.commit(proposal).await?;
        Ok(Response::new(v1::ProposeReply {
            applied: Some((&applied).into()),
            warnings,
        }))
    }

    async fn propose_chunked(
        &self,
        request: Request<Streaming<v1::Chunk>>,
    ) -> Result<Response<v1::ProposeReply>, Status> {
        let author = Caller::admin(&request)?;
        let deadline = deadline_of(&request);
        let _permit = admit(&self.0.uploads, "uploads")?;
        let upload = request.into_inner();
        let bytes = upload::gather(upload, deadline, MAX_COMMAND, "request", |c| c.data).await?;
        let decoding = move || {
            let message = v1::ProposeRequest::decode(bytes::Bytes::from(bytes))
                .map_err(|e| Failure::new(FailureCode::Invalid, "request", e, ""))?;
            proposal_of(author, deadline, message)
        };
        let proposal = tokio::task::spawn_blocking(decoding)
            .await
            .unwrap_or_else(|e| Err(Failure::new(FailureCode::Internal, "request", e, "")))?;
        let Committed { applied, warnings } = self.commit(proposal).await?;
        Ok(Response::new(v1::ProposeReply {
            applied: Some((&applied).into()),
            warnings,
        }))
    }

    async fn list_zones(
        &self,
        request: Request<v1::ListZonesRequest>,
    ) -> Result<Response<v1::ListZonesReply>, Status> {
        Caller::admin(&request)?;
        let deadline = deadline_of(&request);
        let v1::ListZonesRequest { consistency } = request.into_inner();
        let (state, header) = self.read(consistency, deadline).await?;
        let zones = state.snapshot().zones.values();
        Ok(Response::new(v1::ListZonesReply {
            header: Some(header),
            zones: zones.map(|zone| zones::summary(zone)).collect(),
        }))
    }

    type ReadZoneStream = Pages<v1::ZonePage>;

    async fn read_zone(
        &self,
        request: Request<v1::ReadZoneRequest>,
    ) -> Result<Response<Self::ReadZoneStream>, Status> {
        Caller::admin(&request)?;
        let deadline = deadline_of(&request);
        let permit = admit(&self.0.streams, "streaming reads")?;
        let request = request.into_inner();
        let (state, header) = self.read(request.consistency, deadline).await?;
        let stream = zones::read(&state, header, request, permit)?;
        Ok(Response::new(stream))
    }

    async fn zone_history(
        &self,
        request: Request<v1::ZoneHistoryRequest>,
    ) -> Result<Response<v1::ZoneHistoryReply>, Status> {
        Caller::admin(&request)?;
        let deadline = deadline_of(&request);
        let request = request.into_inner();
        let (state, header) = self.read(request.consistency, deadline).await?;
        Ok(Response::new(v1::ZoneHistoryReply {
            header: Some(header),
            versions: zones::history(&state, &request)?,
        }))
    }

    type ZoneDiffStream = Pages<v1::ZoneDiffPage>;

    async fn zone_diff(
        &self,
        request: Request<v1::ZoneDiffRequest>,
    ) -> Result<Response<Self::ZoneDiffStream>, Status> {
        Caller::admin(&request)?;
        let deadline = deadline_of(&request);
        let permit = admit(&self.0.streams, "streaming reads")?;
        let request = request.into_inner();
        let (state, header) = self.read(request.consistency, deadline).await?;
        let pages = zones::diff(&state, header, &request)?;
        Ok(Response::new(ready(pages, permit)))
    }

    async fn list_pools(
        &self,
        request: Request<v1::ListPoolsRequest>,
    ) -> Result<Response<v1::ListPoolsReply>, Status> {
        Caller::admin(&request)?;
        let deadline = deadline_of(&request);
        let v1::ListPoolsRequest { consistency, name } = request.into_inner();
        let (state, header) = self.read(consistency, deadline).await?;
        let pools = &state.snapshot().pools;
        let pools: Vec<v1::Pool> = match wanted("pool", &name)? {
            None => pools.values().map(|p| p.as_ref().into()).collect(),
            Some(name) => {
                let pool = pools.get(&name).ok_or_else(|| absent("pool", &name))?;
                vec![pool.as_ref().into()]
            }
        };
        let mut health: Vec<v1::BackendHealth> = self
            .all_reports(&state, deadline)
            .await
            .into_iter()
            .flat_map(|report| report.backends)
            .collect();
        let names: BTreeSet<&str> = pools.iter().map(|p| p.name.as_str()).collect();
        health.retain(|h| names.contains(h.pool.as_str()));
        Ok(Response::new(v1::ListPoolsReply {
            header: Some(header),
            pools,
            health,
        }))
    }

    async fn list_listeners(
        &self,
        request: Request<v1::ListListenersRequest>,
    ) -> Result<Response<v1::ListListenersReply>, Status> {
        Caller::admin(&request)?;
        let deadline = deadline_of(&request);
        let v1::ListListenersRequest { consistency, name } = request.into_inner();
        let (state, header) = self.read(consistency, deadline).await?;
        let listeners = &state.snapshot().listeners;
        let listeners: Vec<v1::Listener> = match wanted("listener", &name)? {
            None => listeners.values().map(|l| l.as_ref().into()).collect(),
            Some(name) => {
                let found = listeners
                    .get(&name)
                    .ok_or_else(|| absent("listener", &name))?;
                vec![found.as_ref().into()]
            }
        };
        let mut status: Vec<v1::ListenerStatus> = self
            .all_reports(&state, deadline)
            .await
            .into_iter()
            .flat_map(|report| report.listeners)
            .collect();
        let names: BTreeSet<&str> = listeners.iter().map(|l| l.name.as_str()).collect();
        status.retain(|s| names.contains(s.listener.as_str()));
        Ok(Response::new(v1::ListListenersReply {
            header: Some(header),
            listeners,
            status,
        }))
    }

    async fn list_vips(
        &self,
        request: Request<v1::ListVipsRequest>,
    ) -> Result<Response<v1::ListVipsReply>, Status> {
        Caller::admin(&request)?;
        let deadline = deadline_of(&request);
        let (state, header) = self
            .read(request.into_inner().consistency, deadline)
            .await?;
        let reports = self.all_reports(&state, deadline).await;
        Ok(Response::new(v1::ListVipsReply {
            header: Some(header),
            vips: vip_statuses(&state, &reports),
            unfit: unfit(&reports),
        }))
    }

    async fn list_forwarders(
        &self,
        request: Request<v1::ListForwardersRequest>,
    ) -> Result<Response<v1::ListForwardersReply>, Status> {
        Caller::admin(&request)?;
        let deadline = deadline_of(&request);
        let (state, header) = self
            .read(request.into_inner().consistency, deadline)
            .await?;
        let forwarders = state.snapshot().forwarders.values();
        Ok(Response::new(v1::ListForwardersReply {
            header: Some(header),
            forwarders: forwarders.map(|f| f.as_ref().into()).collect(),
        }))
    }

    type ExportSiteStream = Pages<v1::SiteDocument>;

    async fn export_site(
        &self,
        request: Request<v1::ExportSiteRequest>,
    ) -> Result<Response<Self::ExportSiteStream>, Status> {
        Caller::admin(&request)?;
        let deadline = deadline_of(&request);
        let permit = admit(&self.0.streams, "streaming reads")?;
        let stream = self.export(request.into_inner(), deadline, permit).await?;
        Ok(Response::new(stream))
    }

    type PlanSiteStream = Pages<v1::SitePlanPage>;

    async fn plan_site(
        &self,
        request: Request<Streaming<v1::SiteUpload>>,
    ) -> Result<Response<Self::PlanSiteStream>, Status> {
        Caller::admin(&request)?;
        let deadline = deadline_of(&request);
        // The upload ends here; what is found of it lives until the client has taken it, and is a read.
        let _upload = admit(&self.0.uploads, "uploads")?;
        let permit = admit(&self.0.streams, "streaming reads")?;
        let stream = self.plan(request.into_inner(), deadline, permit).await?;
        Ok(Response::new(stream))
    }

    async fn apply_site(
        &self,
        request: Request<Streaming<v1::SiteUpload>>,
    ) -> Result<Response<v1::ApplySiteReply>, Status> {
        let author = Caller::admin(&request)?;
        let deadline = deadline_of(&request);
        let _permit = admit(&self.0.uploads, "uploads")?;
        let reply = self.apply(author, deadline, request.into_inner()).await?;
        Ok(Response::new(reply))
    }

    type BackupStream = Pages<v1::Chunk>;

    async fn backup(
        &self,
        request: Request<v1::BackupRequest>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        Caller::admin(&request)?;
        let deadline = deadline_of(&request);
        let permit = admit(&self.0.streams, "streaming reads")?;
        let (state, _) = self
            .read(request.into_inner().consistency, deadline)
            .await?;
        Ok(Response::new(super::backup::stream(state, permit)))
    }
}

impl Api {
    /// What every member says of itself that answers within a second, and early enough for the caller's deadline.
    pub(super) async fn all_reports(
        &self,
        state: &crate::state::State,
        deadline: std::time::Instant,
    ) -> Vec<v1::NodeStatusReply> {
        let asked = state
            .members()
            .values()
            .map(|member| self.ask_status(member, deadline));
        join_all(asked).await.into_iter().flatten().collect()
    }
}

/// The nodes that are unfit to hold VIPs, and why.
fn unfit(reports: &[v1::NodeStatusReply]) -> HashMap<u64, String> {
    let nodes = reports.iter().filter_map(|report| report.node.as_ref());
    nodes
        .filter(|node| !node.unfit.is_empty())
        .map(|node| (node.id, node.unfit.clone()))
        .collect()
}

/// Whether no node that answers has a fence for a VIP.
fn nobody_fences(address: &String, reports: &[v1::NodeStatusReply]) -> bool {
    let mut all = reports.iter();
    !reports.is_empty() && all.all(|report| report.unfenced_vips.contains(address))
}

/// Every VIP of the state with its holder.
pub(super) fn vip_statuses(
    state: &crate::state::State,
    reports: &[v1::NodeStatusReply],
) -> Vec<v1::VipStatus> {
    let held: BTreeMap<&str, (u64, &str)> = reports
        .iter()
        .flat_map(|report| {
            let id = report.node.as_ref().map_or(0, |node| node.id);
            let vips = report.held_vips.iter();
            vips.map(move |vip| (vip.address.as_str(), (id, vip.fence.as_str())))
        })
        .collect();
    let status = |vip: &crate::model::vip::Vip| {
        let address = vip.address.to_string();
        let holder = held.get(address.as_str());
        let unheld = if nobody_fences(&address, reports) {
            "none"
        } else {
            ""
        };
        v1::VipStatus {
            interface: vip.interface.to_string(),
            holder: holder.map(|(id, _)| *id),
            fence: holder.map_or(unheld, |(_, fence)| fence).to_owned(),
            address,
        }
    };
    state.snapshot().vips.values().map(status).collect()
}

fn proposal_of(
    author: String,
    deadline: Instant,
    message: v1::ProposeRequest,
) -> Result<Proposal, Failure> {
    let v1::ProposeRequest {
        request_id,
        born,
        preconditions,
        changes,
    } = message;
    let changes: Vec<Change> = wire::command::all(changes)?;
    if changes.is_empty() {
        let problem = "it holds no change";
        return Err(Failure::new(FailureCode::Invalid, "request", problem, ""));
    }
    changes.iter().try_for_each(client_may)?;
    let preconditions: Vec<Precondition> = wire::command::all(preconditions)?;
    Ok(Proposal {
        author,
        request: request_id_of(&request_id)?,
        born,
        preconditions,
        changes,
        deadline,
    })
}

/// Reads a request id; an absent one is drawn, at the price that a retry is another request.
pub(super) fn request_id_of(bytes: &[u8]) -> Result<RequestId, Failure> {
    if bytes.is_empty() {
        return Ok(random_request());
    }
    Ok(wire::command::request_id(bytes)?)
}

/// Membership and certificates have calls of their own, with checks that a plain proposal would pass by.
fn client_may(change: &Change) -> Result<(), Failure> {
    match change {
        Change::InitCluster { .. }
        | Change::CreateToken { .. }
        | Change::DeleteToken { .. }
        | Change::AddMember { .. }
        | Change::RetireMember { .. }
        | Change::RotateCa { .. }
        | Change::SetProfile { .. }
        | Change::ReleaseVips { .. }
        | Change::TakeVips { .. }
        | Change::ClaimVips { .. }
        | Change::SetFeatureLevel { .. } => Err(Failure::new(
            FailureCode::PermissionDenied,
            "request",
            "membership and certificates are not changed by Propose",
            "use the Cluster service",
        )),
        _ => Ok(()),
    }
}

fn wanted(kind: &'static str, name: &str) -> Result<Option<Label>, Failure> {
    if name.is_empty() {
        return Ok(None);
    }
    let parsed: Result<Label, _> = name.parse();
    parsed
        .map(Some)
        .map_err(|e| Failure::new(FailureCode::Invalid, format!("{kind} {name}"), e, ""))
}

fn absent(kind: &str, name: &Label) -> Failure {
    Failure::new(
        FailureCode::NotFound,
        format!("{kind} {name}"),
        "does not exist",
        format!("`pontoon {kind} list` shows those that do"),
    )
}

/// A stream of pages that are there already. The permit lives as long as they do.
pub(super) fn ready<T: Send + 'static>(pages: Vec<T>, permit: OwnedSemaphorePermit) -> Pages<T> {
    let held = move |page| {
        let _permit = &permit;
        Ok(page)
    };
    Box::pin(futures::stream::iter(pages.into_iter().map(held)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_no_fence_where_no_node_has_one() {
        let report = |unfenced: &[&str]| v1::NodeStatusReply {
            unfenced_vips: unfenced.iter().map(ToString::to_string).collect(),
            ..v1::NodeStatusReply::default()
        };
        let (with, without) = (report(&[]), report(&["192.0.2.10"]));
        let vip = "192.0.2.10".to_owned();
        assert!(nobody_fences(&vip, &[without.clone(), without.clone()]));
        assert!(!nobody_fences(&vip, &[without.clone(), with]));
        assert!(!nobody_fences(&"192.0.2.11".to_owned(), &[without]));
        assert!(!nobody_fences(&vip, &[]));
    }

    #[tokio::test]
    async fn what_a_client_has_not_taken_yet_counts() {
        use futures::StreamExt;
        let limit = std::sync::Arc::new(tokio::sync::Semaphore::new(1));
        let permit = admit(&limit, "reads").expect("the first");
        let mut pages = ready(vec![1, 2], permit);
        assert!(admit(&limit, "reads").is_err());
        assert_eq!(pages.next().await.and_then(Result::ok), Some(1));
        assert!(admit(&limit, "reads").is_err());
        drop(pages);
        assert!(admit(&limit, "reads").is_ok());
    }
}
