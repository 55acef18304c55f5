//! `/metrics`, `/healthz` and `/readyz` over HTTP.

use std::{future::Future, net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::{RawQuery, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::net::TcpListener;

use super::metrics::Metrics;

/// Whether the node does its work, asked at each request.
pub trait Readiness: Send + Sync + 'static {
    /// Why DNS and listeners are not served from applied state; empty when they are. A leader is not needed for it.
    fn problems(&self) -> Vec<String>;
    /// Why this node can commit nothing; none when it follows or leads a quorum.
    fn quorum_problem(&self) -> Option<String>;
}

#[derive(Clone)]
struct Endpoint {
    metrics: Metrics,
    readiness: Arc<dyn Readiness>,
}

/// Serves until `stop` completes, then finishes what is under way.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    metrics: Metrics,
    readiness: Arc<dyn Readiness>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(render_metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(render_readiness))
        .with_state(Endpoint { metrics, readiness });
    let address: SocketAddr = listener.local_addr()?;
    tracing::info!(%address, "metrics and health are served");
    axum::serve(listener, router)
        .with_graceful_shutdown(stop)
        .await
}

async fn render_metrics(State(endpoint): State<Endpoint>) -> Response {
    match endpoint.metrics.render() {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// `/readyz`: serves from applied state. `/readyz?quorum`: can also commit.
async fn render_readiness(State(endpoint): State<Endpoint>, RawQuery(query): RawQuery) -> Response {
    let asks_quorum = query.is_some_and(|q| {
        q.split('&')
            .any(|part| part == "quorum" || part.starts_with("quorum="))
    });
    let mut problems = endpoint.readiness.problems();
    if asks_quorum {
        problems.extend(endpoint.readiness.quorum_problem());
    }
    if problems.is_empty() {
        return "ready\n".into_response();
    }
    (
        StatusCode::SERVICE_UNAVAILABLE,
        format!("not ready\n{}\n", problems.join("\n")),
    )
        .into_response()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    struct Fixed(Option<&'static str>);

    impl Readiness for Fixed {
        fn problems(&self) -> Vec<String> {
            Vec::new()
        }

        fn quorum_problem(&self) -> Option<String> {
            self.0.map(str::to_owned)
        }
    }

    async fn request(address: SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address)
            .await
            .expect("connected");
        let text = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(text.as_bytes()).await.expect("sent");
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.expect("answered");
        reply
    }

    #[tokio::test]
    async fn readiness_tells_serving_from_committing() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let readiness = Arc::new(Fixed(Some("no leader")));
        let server = tokio::spawn(serve(
            listener,
            Metrics::new(vec![]),
            readiness,
            async move { drop(stopped.await) },
        ));
        assert!(
            request(address, "/healthz")
                .await
                .starts_with("HTTP/1.1 200")
        );
        assert!(
            request(address, "/readyz")
                .await
                .starts_with("HTTP/1.1 200")
        );
        let quorum = request(address, "/readyz?quorum").await;
        assert!(
            quorum.starts_with("HTTP/1.1 503") && quorum.contains("no leader"),
            "{quorum}"
        );
        assert!(request(address, "/metrics").await.contains("# EOF"));
        stop.send(()).expect("the server runs");
        server.await.expect("joined").expect("stopped cleanly");
        assert!(
            tokio::net::TcpStream::connect(address).await.is_err(),
            "the port is free again"
        );
    }
}
