//! `/metrics`, `/healthz` and `/readyz` over HTTP.

use std::{future::Future, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{RawQuery, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use futures::StreamExt;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::metrics::Metrics;
use crate::transport::{
    accept::{Accepted, Incoming},
    port::Port,
};

/// How long the head of a request may take, and how long a connection may wait for its next request.
///
/// Longer than the usual intervals between two scrapes of a monitor.
const HEAD_LIMIT: Duration = Duration::from_secs(75);

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
/// When the listener has no address.
pub async fn serve(
    listener: TcpListener,
    port: Arc<Port>,
    metrics: Metrics,
    readiness: Arc<dyn Readiness>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    serve_within(HEAD_LIMIT, listener, port, metrics, readiness, stop).await
}

async fn serve_within(
    head_limit: Duration,
    listener: TcpListener,
    port: Arc<Port>,
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
    let mut incoming = Incoming::http1(listener, port);
    let mut connections = JoinSet::new();
    let closing = CancellationToken::new();
    let mut server = http1::Builder::new();
    server
        .timer(TokioTimer::new())
        // A client that has said all it has to say (`nc -N`) is answered all the same.
        .half_close(true)
        .header_read_timeout(head_limit);
    let mut stop = pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            // Dropped unanswered, the next turn asks again: connections wait in the channel.
            Some(accepted) = incoming.next() => match accepted {
                Ok(accepted) => {
                    let service = TowerToHyperService::new(router.clone());
                    let connection = server.serve_connection(TokioIo::new(accepted), service);
                    connections.spawn(converse(connection, closing.clone()));
                }
                Err(error) => tracing::debug!(%error, "connection refused"),
            },
            // What has ended is only let go.
            Some(_) = connections.join_next() => {}
        }
    }
    drop(incoming);
    closing.cancel();
    while connections.join_next().await.is_some() {}
    Ok(())
}

/// Answers the requests of one connection, one after the other, until it ends or waits while `closing`.
async fn converse(
    connection: http1::Connection<TokioIo<Accepted>, TowerToHyperService<Router>>,
    closing: CancellationToken,
) {
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = closing.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an HTTP connection ended");
    }
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
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;
    use crate::transport::port::{PortLimits, Refusal};

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
        let mut stream = TcpStream::connect(address).await.expect("connected");
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
            Port::new("http", PortLimits::of(8)),
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
            TcpStream::connect(address).await.is_err(),
            "the port is free again"
        );
    }

    /// A server that ends with the test.
    async fn serve_at(port: &Arc<Port>, head_limit: Duration) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let readiness = Arc::new(Fixed(None));
        let (port, never) = (Arc::clone(port), std::future::pending());
        let metrics = Metrics::new(vec![]);
        tokio::spawn(serve_within(
            head_limit, listener, port, metrics, readiness, never,
        ));
        address
    }

    #[tokio::test]
    async fn a_client_that_has_closed_its_side_is_answered() {
        let address = serve_at(&Port::new("http", PortLimits::of(8)), HEAD_LIMIT).await;
        for version in ["1.0", "1.1"] {
            let mut client = TcpStream::connect(address).await.expect("connected");
            let asked = format!("GET /healthz HTTP/{version}\r\nhost: x\r\n\r\n");
            client.write_all(asked.as_bytes()).await.expect("sent");
            client.shutdown().await.expect("closed");
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.expect("answered");
            assert!(answer.contains(" 200 OK"), "{answer}");
        }
    }

    #[tokio::test]
    async fn connections_beyond_the_limit_are_closed() {
        let port = Port::new("http", PortLimits::of(1));
        let address = serve_at(&port, HEAD_LIMIT).await;
        let mut first = TcpStream::connect(address).await.expect("connected");
        first
            .write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .expect("sent");
        let mut answer = [0; 12];
        first.read_exact(&mut answer).await.expect("answered");
        assert_eq!(&answer, b"HTTP/1.1 200");
        let mut second = TcpStream::connect(address).await.expect("connected");
        second.write_all(b"GET").await.expect("sent");
        let mut said = Vec::new();
        // Closed or reset: what it sent was never read.
        let _ = second.read_to_end(&mut said).await;
        assert!(said.is_empty());
        assert_eq!((port.open(), port.refused(Refusal::Limit)), (1, 1));
    }

    #[tokio::test]
    async fn a_request_that_never_ends_is_given_up() {
        let soon = Duration::from_millis(50);
        let limits = PortLimits {
            begin: soon,
            ..PortLimits::of(8)
        };
        let port = Port::new("http", limits);
        let address = serve_at(&port, soon).await;
        for begun in [
            "",
            "GET /healthz HT",
            "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n",
        ] {
            let mut client = TcpStream::connect(address).await.expect("connected");
            client.write_all(begun.as_bytes()).await.expect("sent");
            let mut said = Vec::new();
            let ended = client.read_to_end(&mut said);
            let _ = tokio::time::timeout(Duration::from_secs(20), ended)
                .await
                .expect("the server ends it");
        }
        assert_eq!(port.refused(Refusal::Silent), 1);
    }
}
