//! The standard health service: every service is "serving" while the process answers. Whether DNS and listeners are served
//! is another question, which `Probe` and `/readyz` answer.
//!
//! Load balancers and monitors without a certificate may ask; only administrators and members may hold a stream of answers.

use futures::FutureExt;
use pontoon_proto::v1::{
    admin_server::AdminServer, bootstrap_server::BootstrapServer, cluster_server::ClusterServer,
    node_server::NodeServer, peer_server::PeerServer, watch_server::WatchServer,
};
use tonic::{Request, Response, Status, server::NamedService};
use tonic_health::{
    ServingStatus,
    pb::{
        HealthCheckRequest, HealthCheckResponse,
        health_server::{Health, HealthServer},
    },
    server::{HealthReporter, HealthService},
};

use super::{Api, caller::Caller};

/// The service, which knows all others by name.
pub(super) fn service() -> HealthServer<impl Health> {
    let health = HealthReporter::new();
    for name in [
        AdminServer::<Api>::NAME,
        ClusterServer::<Api>::NAME,
        BootstrapServer::<Api>::NAME,
        PeerServer::<Api>::NAME,
        NodeServer::<Api>::NAME,
        WatchServer::<Api>::NAME,
    ] {
        let set = health.set_service_status(name, ServingStatus::Serving);
        // It waits for a lock that nobody else knows of yet.
        set.now_or_never();
    }
    HealthServer::new(OpenToAsk(HealthService::from_health_reporter(health)))
}

/// Anybody may ask, those that are known may watch.
struct OpenToAsk(HealthService);

#[tonic::async_trait]
impl Health for OpenToAsk {
    type WatchStream = <HealthService as Health>::WatchStream;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        self.0.check(request).await
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Caller::member_or_admin(&request)?;
        self.0.watch(request).await
    }
}
