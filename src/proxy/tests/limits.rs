//! Every bound holds, and stopping ends everything.

use super::{super::Ending, *};
use crate::telemetry::metrics::Metrics;

#[tokio::test]
async fn connections_over_the_limit_are_reset_and_counted() {
    let echo = Echo::start(0).await;
    let mut limited = listener("l", 8080);
    limited.max_connections = 2;
    let mut bed = Bed::start(vec![pool_of(&[echo.address])], vec![limited.clone()]);
    bed.listening().await;
    let (mut a, mut b) = (bed.client().await, bed.client().await);
    greeting(&mut a).await.unwrap();
    greeting(&mut b).await.unwrap();
    assert!(bed.greeted().await.is_err());
    assert_eq!(bed.status().listeners[0].refused, 1);
    drop(a);
    bed.until("one has ended", |s| s.connections == 1).await;
    let mut c = bed.client().await;
    greeting(&mut c).await.unwrap();

    limited.max_connections = 3;
    bed.set_listener(limited);
    bed.until("the limit is raised", |s| {
        s.listeners[0].max_connections == 3
    })
    .await;
    bed.greeted().await.unwrap();
    round_trip(&mut b, b"untouched").await.unwrap();
}

#[tokio::test]
async fn a_thousand_connections_at_once() {
    let (a, b) = (Echo::start(0).await, Echo::start(1).await);
    let bed = Bed::with_backends(&[a.address, b.address]).await;
    let mut clients = Vec::new();
    for _ in 0..1000 {
        clients.push(bed.client().await);
    }
    for client in &mut clients {
        greeting(client).await.unwrap();
    }
    let status = bed.status();
    assert_eq!(status.connections, 1000);
    assert_eq!(status.backend("p", "b0").unwrap().connections, 500);
    for client in &mut clients {
        round_trip(client, b"all at once").await.unwrap();
    }
    drop(clients);
    bed.until("all have ended", |s| s.connections == 0).await;
    let ended = bed.status().listeners[0].ended(Ending::Completed);
    assert_eq!(ended, 1000);
}

#[tokio::test]
async fn silence_ends_a_connection_and_activity_does_not() {
    let echo = Echo::start(0).await;
    let mut impatient = listener("l", 8080);
    impatient.idle_timeout = Duration::from_millis(300);
    let bed = Bed::start(vec![pool_of(&[echo.address])], vec![impatient]);
    bed.listening().await;
    let mut client = bed.client().await;
    greeting(&mut client).await.unwrap();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(900) {
        round_trip(&mut client, b"awake").await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!is_reset(&mut client).await, "closed in order");
    let status = bed.status();
    assert_eq!(status.listeners[0].ended(Ending::IdleTimeout), 1);
}

/// A bed with one listener that waits 300 ms, whose backend is the socket.
async fn impatient(pipes: u32) -> (Bed, TcpListener) {
    let socket = TcpListener::bind(SocketAddr::new(own_address(), 0))
        .await
        .unwrap();
    let pool = pool_of(&[socket.local_addr().unwrap()]);
    let mut impatient = listener("l", 8080);
    impatient.idle_timeout = Duration::from_millis(300);
    let bed = Bed::start_with(vec![pool], vec![impatient], |c| c.limits.pipes = pipes);
    bed.listening().await;
    (bed, socket)
}

#[tokio::test]
async fn a_client_that_has_asked_all_is_reset_when_its_answer_does_not_end() {
    let (bed, socket) = impatient(8).await;
    let mut client = bed.client().await;
    let (mut backend, _) = socket.accept().await.unwrap();
    backend.write_all(b"half an ans").await.unwrap();
    client.shutdown().await.unwrap();
    assert!(is_reset(&mut client).await, "it would take it for all");
    assert_eq!(backend.read(&mut [0]).await.unwrap(), 0);
    bed.until("it is counted", |s| {
        s.listeners[0].ended(Ending::Stalled) == 1
    })
    .await;
}

#[tokio::test]
async fn a_client_that_does_not_take_what_it_is_sent_is_reset() {
    for pipes in [0, 8] {
        let (bed, socket) = impatient(pipes).await;
        let mut client = bed.client().await;
        let (mut backend, _) = socket.accept().await.unwrap();
        let sending = tokio::spawn(async move {
            let piece = vec![7; 64 << 10];
            while backend.write_all(&piece).await.is_ok() {}
        });
        bed.until("it is counted", |s| {
            s.listeners[0].ended(Ending::Stalled) == 1
        })
        .await;
        assert!(is_reset(&mut client).await, "{pipes} pipes");
        sending.await.unwrap();
    }
}

#[tokio::test]
async fn a_whole_answer_outlives_the_silence_of_a_client_that_does_not_close() {
    let (bed, socket) = impatient(8).await;
    let mut client = bed.client().await;
    let (mut backend, _) = socket.accept().await.unwrap();
    let answer = vec![7; 200 << 10];
    backend.write_all(&answer).await.unwrap();
    backend.shutdown().await.unwrap();
    bed.until("it is counted", |s| {
        s.listeners[0].ended(Ending::IdleTimeout) == 1
    })
    .await;
    let mut heard = Vec::new();
    client.read_to_end(&mut heard).await.unwrap();
    assert!(heard == answer);
}

#[tokio::test]
async fn a_backend_that_does_not_answer_is_given_up_in_time() {
    // A full accept queue: the kernel drops further connection requests silently.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let address = SocketAddr::new(own_address(), 0);
    socket.bind(&address.into()).unwrap();
    socket.listen(0).unwrap();
    let full = socket.local_addr().unwrap().as_socket().unwrap();
    let mut fillers = Vec::new();
    let connects = |a| tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(a));
    while let Ok(Ok(stream)) = connects(full).await {
        fillers.push(stream);
        assert!(fillers.len() < 100, "the queue never fills");
    }
    let echo = Echo::start(1).await;
    let mut pool = pool_of(&[full, echo.address]);
    pool.connect_timeout = Duration::from_millis(100);
    let bed = Bed::start(vec![pool], vec![listener("l", 8080)]);
    bed.listening().await;
    for _ in 0..2 {
        assert_eq!(bed.greeted().await.unwrap(), 1);
    }
    let status = bed.status();
    let (error, _) = status
        .backend("p", "b0")
        .unwrap()
        .last_error
        .clone()
        .unwrap();
    assert!(error.contains("no answer within 100ms"), "{error}");
}

#[tokio::test]
async fn stopping_drains_until_the_deadline_and_frees_the_port() {
    let echo = Echo::start(0).await;
    let bed = Bed::with_backends(&[echo.address]).await;
    let at = bed.at(8080);
    let (mut stays, mut leaves) = (bed.client().await, bed.client().await);
    greeting(&mut stays).await.unwrap();
    greeting(&mut leaves).await.unwrap();
    // Far longer than a busy machine takes for what happens meanwhile.
    let drain = Duration::from_secs(4);
    let begun = Instant::now();
    let stopping = tokio::spawn(bed.stop(drain));
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(at).await.is_ok() {
        assert!(Instant::now() < deadline, "it still accepts");
    }
    round_trip(&mut stays, b"draining").await.unwrap();
    drop(leaves);
    assert!(is_reset(&mut stays).await);
    stopping.await.unwrap();
    assert!(begun.elapsed() >= drain);
    TcpListener::bind(at).await.unwrap();
}

#[tokio::test]
async fn listening_sockets_are_bounded_and_one_that_is_freed_is_used() {
    let echo = Echo::start(4).await;
    let names = ["a", "b", "c"];
    let listeners = names.iter().zip(8080..).map(|(n, port)| listener(n, port));
    let mut bed = Bed::start_with(vec![pool_of(&[echo.address])], listeners.collect(), |c| {
        c.limits.sockets = 2;
    });
    let failed = |s: &ProxyStatus, name: &str| -> Option<String> {
        let mut sockets = s.listener(name)?.sockets.iter();
        sockets.find_map(|(_, state)| state.problem())
    };
    bed.until("one is left over", |s| failed(s, "c").is_some())
        .await;
    let status = bed.status();
    let problem = failed(&status, "c").unwrap();
    assert!(problem.contains("2 listening sockets"), "{problem}");
    assert_eq!((failed(&status, "a"), failed(&status, "b")), (None, None));
    assert_eq!((status.listening_sockets, status.listening_limit), (2, 2));
    bed.greeted().await.unwrap();
    bed.remove_listener("a");
    bed.until("the last is bound", |s| failed(s, "c").is_none())
        .await;
    assert_eq!(bed.status().listening_sockets, 2);
    let mut client = TcpStream::connect(bed.at(8082)).await.unwrap();
    assert_eq!(greeting(&mut client).await.unwrap(), 4);
}

#[tokio::test]
async fn a_drain_can_be_cut_short() {
    let echo = Echo::start(0).await;
    let mut bed = Bed::with_backends(&[echo.address]).await;
    let mut client = bed.client().await;
    greeting(&mut client).await.unwrap();
    let drain = Drain::until(Instant::now() + PATIENCE * 10);
    let cut_short = drain.cut_short.clone();
    let begun = Instant::now();
    let stopping = tokio::spawn(bed.proxy.take().unwrap().stop(drain));
    round_trip(&mut client, b"draining").await.unwrap();
    cut_short.cancel();
    assert!(is_reset(&mut client).await);
    stopping.await.unwrap();
    assert!(begun.elapsed() < PATIENCE);
}

#[tokio::test]
async fn stopping_is_quick_when_nothing_is_left() {
    let echo = Echo::start(0).await;
    let bed = Bed::with_backends(&[echo.address]).await;
    let mut client = bed.client().await;
    greeting(&mut client).await.unwrap();
    let begun = Instant::now();
    let stopping = tokio::spawn(bed.stop(PATIENCE * 10));
    round_trip(&mut client, b"draining").await.unwrap();
    drop(client);
    stopping.await.unwrap();
    assert!(begun.elapsed() < PATIENCE);
}

#[test]
fn limits_fit_into_the_open_files() {
    let limits = super::super::ProxyLimits::default();
    let fitted = limits.clone().fit_into(1024);
    assert_eq!((fitted.connections, fitted.pipes), (280, 40));
    assert!(2 * fitted.connections + 2 * fitted.pipes <= 640);
    assert_eq!(fitted.sockets, 128);
    assert_eq!(limits.clone().fit_into(1_000_000), limits);
    assert_eq!(limits.fit_into(0).connections, 0);
}

#[tokio::test]
async fn metrics_tell_what_the_status_tells() {
    let echo = Echo::start(0).await;
    let bed = Bed::with_backends(&[echo.address]).await;
    let mut client = bed.client().await;
    greeting(&mut client).await.unwrap();
    bed.until("it is counted", |s| s.listeners[0].bytes_to_clients == 1)
        .await;
    let observer = bed.proxy().observer();
    let source = Arc::new(move || crate::proxy::metrics::of(&observer.status()));
    let text = Metrics::new(vec![source]).render().unwrap();
    for line in [
        r#"pontoon_proxy_listener_connections{listener="l"} 1.0"#,
        r#"pontoon_proxy_listener_accepted_total{listener="l"} 1.0"#,
        r#"pontoon_proxy_listener_bytes_total{listener="l",direction="to_clients"} 1.0"#,
        r#"pontoon_proxy_listener_endings_total{listener="l",reason="idle_timeout"} 0.0"#,
        r#"pontoon_proxy_backend_up{pool="p",backend="b0"} 1.0"#,
        r#"pontoon_proxy_backend_connected_total{pool="p",backend="b0"} 1.0"#,
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
}
