//! The site document: exported from the state, compared with it, applied to it as one command.

use std::time::Instant;

use futures::StreamExt;
use pontoon_proto::v1;
use tonic::Streaming;

use super::{Api, admin::Pages};
use crate::wire::error::{Failure, FailureCode};

impl Api {
    pub(super) async fn export(
        &self,
        request: v1::ExportSiteRequest,
        deadline: Instant,
    ) -> Result<Pages<v1::SiteDocument>, Failure> {
        let _ = (request, deadline);
        Err(Failure::new(FailureCode::Unsupported, "site", "", ""))
    }

    pub(super) async fn plan(
        &self,
        mut upload: Streaming<v1::SiteUpload>,
    ) -> Result<Pages<v1::SitePlanPage>, Failure> {
        let _ = upload.next().await;
        Err(Failure::new(FailureCode::Unsupported, "site", "", ""))
    }

    pub(super) async fn apply(
        &self,
        author: String,
        deadline: Instant,
        mut upload: Streaming<v1::SiteUpload>,
    ) -> Result<v1::ApplySiteReply, Failure> {
        let _ = (author, deadline, upload.next().await);
        Err(Failure::new(FailureCode::Unsupported, "site", "", ""))
    }
}
