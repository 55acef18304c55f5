//! What changes touches only what was changed.

use super::{
    super::{Ending, SocketState, Verdict},
    *,
};

fn set_state(pool: &mut Pool, backend: usize, state: BackendState) {
    pool.backends[backend].state = state;
}

#[tokio::test]
async fn health_follows_the_backend() {
    let (a, b) = (Echo::start(0).await, Echo::start(1).await);
    let mut pool = pool_of(&[a.address, b.address]);
    pool.health_check = Some(quick_check());
    let bed = Bed::start(vec![pool], vec![listener("l", 8080)]);
    bed.listening().await;
    let verdict = |s: &ProxyStatus| s.backend("p", "b0").map(|b| (b.verdict, b.presumed));
    bed.until("b0 is up", |s| verdict(s) == Some((Verdict::Up, false)))
        .await;
    let address = a.stop().await;
    bed.until("b0 is down", |s| verdict(s) == Some((Verdict::Down, false)))
        .await;
    let down = bed.status();
    let b0 = down.backend("p", "b0").unwrap();
    assert!(b0.checked && !b0.takes_connections && b0.probes_failed >= 2);
    let failures = b0.connect_failures;
    for _ in 0..6 {
        assert_eq!(bed.greeted().await.unwrap(), 1);
    }
    let after = bed.status();
    let now = after.backend("p", "b0").unwrap().connect_failures;
    assert_eq!(now, failures, "a backend that is down is not tried");
    let _a = Echo::start_on(address, 0).await;
    bed.until("b0 is up again", |s| {
        verdict(s) == Some((Verdict::Up, false))
    })
    .await;
    let mut seen = BTreeSet::new();
    for _ in 0..2 {
        seen.insert(bed.greeted().await.unwrap());
    }
    assert_eq!(seen.len(), 2);
}

#[tokio::test]
async fn a_check_may_come_change_and_go() {
    let mut bed = Bed::with_backends(&[dead_address().await]).await;
    let b0 = |s: &ProxyStatus| s.backend("p", "b0").unwrap().clone();
    assert!(!b0(&bed.status()).checked);
    bed.change_pool(|p| p.health_check = Some(quick_check()));
    bed.until("it is down", |s| b0(s).verdict == Verdict::Down)
        .await;
    let hourly = HealthCheck {
        down_interval: Duration::from_secs(3600),
        ..quick_check()
    };
    bed.change_pool(|p| p.health_check = Some(hourly));
    let address = b0(&bed.status()).address;
    let _echo = Echo::start_on(address, 0).await;
    bed.change_pool(|p| p.health_check = Some(quick_check()));
    bed.until("it is up", |s| b0(s).verdict == Verdict::Up)
        .await;
    bed.change_pool(|p| p.health_check = None);
    bed.until("it is unchecked", |s| !b0(s).checked).await;
}

#[tokio::test]
async fn a_draining_backend_keeps_what_it_has_and_a_disabled_one_does_not() {
    let (a, b) = (Echo::start(0).await, Echo::start(1).await);
    let mut bed = Bed::with_backends(&[a.address, b.address]).await;
    let (mut one, mut two) = (bed.client().await, bed.client().await);
    let (first, _) = (
        greeting(&mut one).await.unwrap(),
        greeting(&mut two).await.unwrap(),
    );
    let (mut on_a, mut on_b) = if first == 0 { (one, two) } else { (two, one) };

    bed.change_pool(|p| set_state(p, 0, BackendState::Drain));
    let takes = |s: &ProxyStatus| s.backend("p", "b0").unwrap().takes_connections;
    bed.until("b0 drains", |s| !takes(s)).await;
    for _ in 0..4 {
        assert_eq!(bed.greeted().await.unwrap(), 1);
    }
    round_trip(&mut on_a, b"still here").await.unwrap();

    bed.change_pool(|p| set_state(p, 0, BackendState::Disabled));
    assert!(is_reset(&mut on_a).await);
    round_trip(&mut on_b, b"untouched").await.unwrap();
    bed.until("it is counted", |s| {
        s.listeners[0].ended(Ending::Ended) == 1
    })
    .await;

    bed.change_pool(|p| set_state(p, 0, BackendState::Enabled));
    bed.until("b0 is back", takes).await;
    let mut seen = BTreeSet::new();
    for _ in 0..2 {
        seen.insert(bed.greeted().await.unwrap());
    }
    assert_eq!(seen.len(), 2);
}

#[tokio::test]
async fn a_removed_backend_drains_for_the_drain_time_and_others_are_not_disturbed() {
    let (a, b) = (Echo::start(0).await, Echo::start(1).await);
    let mut bed = Bed::start_with(
        vec![pool_of(&[a.address, b.address])],
        vec![listener("l", 8080)],
        |c| c.limits.drain = Duration::from_millis(400),
    );
    bed.listening().await;
    let (mut one, mut two) = (bed.client().await, bed.client().await);
    let first = greeting(&mut one).await.unwrap();
    greeting(&mut two).await.unwrap();
    let (mut on_a, mut on_b) = if first == 0 { (one, two) } else { (two, one) };
    let removed_at = Instant::now();
    bed.change_pool(|p| drop(p.backends.remove(0)));
    bed.until("b0 is gone", |s| s.backend("p", "b0").is_none())
        .await;
    round_trip(&mut on_a, b"draining").await.unwrap();
    assert!(is_reset(&mut on_a).await);
    assert!(removed_at.elapsed() >= Duration::from_millis(400));
    round_trip(&mut on_b, b"untouched").await.unwrap();
}

#[tokio::test]
async fn listeners_come_and_go_while_connections_of_others_live() {
    let echo = Echo::start(0).await;
    let mut bed = Bed::with_backends(&[echo.address]).await;
    let mut old = bed.client().await;
    greeting(&mut old).await.unwrap();

    for port in 8081..8090 {
        bed.set_listener(listener(&format!("l{port}"), port));
    }
    bed.until("ten listen", |s| s.listeners.len() == 10).await;
    bed.listening().await;
    let mut on_81 = TcpStream::connect(bed.at(8081)).await.unwrap();
    greeting(&mut on_81).await.unwrap();

    bed.remove_listener("l");
    for port in 8082..8090 {
        bed.remove_listener(&format!("l{port}"));
    }
    bed.until("one is left", |s| s.listeners.len() == 1).await;
    round_trip(&mut old, b"of a removed listener")
        .await
        .unwrap();
    round_trip(&mut on_81, b"of one that stays").await.unwrap();
    assert!(TcpStream::connect(bed.at(8080)).await.is_err());
    assert_eq!(bed.status().connections, 2);

    // the name may be used again while the old one drains
    bed.set_listener(listener("l", 8080));
    bed.until("it is back", |s| s.listeners.len() == 2).await;
    bed.listening().await;
    bed.greeted().await.unwrap();
    round_trip(&mut old, b"still there").await.unwrap();
}

#[tokio::test]
async fn a_removed_listener_drains_for_the_drain_time() {
    let echo = Echo::start(0).await;
    let mut bed = Bed::start_with(
        vec![pool_of(&[echo.address])],
        vec![listener("l", 8080)],
        |c| c.limits.drain = Duration::from_millis(300),
    );
    bed.listening().await;
    let mut client = bed.client().await;
    greeting(&mut client).await.unwrap();
    bed.remove_listener("l");
    bed.until("it is gone", |s| s.listeners.is_empty()).await;
    round_trip(&mut client, b"draining").await.unwrap();
    assert!(is_reset(&mut client).await);
}

#[tokio::test]
async fn a_listener_may_be_renamed_and_given_another_pool() {
    let (a, b) = (Echo::start(0).await, Echo::start(1).await);
    let mut bed = Bed::with_backends(&[a.address]).await;
    let mut old = bed.client().await;
    greeting(&mut old).await.unwrap();
    let mut q = pool_of(&[b.address]);
    q.name = label("q");
    let renamed = Listener::new(label("m"), ListenAddress::EveryNode, 8080, label("q"));
    bed.snapshot.pools.insert(label("q"), Arc::new(q));
    bed.snapshot.listeners.remove(&label("l"));
    bed.set_listener(renamed);
    bed.until("m is there", |s| s.listener("m").is_some()).await;
    bed.listening().await;
    assert_eq!(bed.greeted().await.unwrap(), 1);
    round_trip(&mut old, b"untouched").await.unwrap();
}

#[tokio::test]
async fn a_taken_port_is_reported_and_taken_over_when_it_is_free() {
    let echo = Echo::start(0).await;
    let mut bed = Bed::start(vec![pool_of(&[echo.address])], vec![]);
    let squatter = TcpListener::bind(bed.at(8080)).await.unwrap();
    bed.set_listener(listener("l", 8080));
    bed.until("the failure shows", |s| {
        let sockets = s.listeners.first().map(|l| &l.sockets[..]);
        matches!(sockets, Some([(_, SocketState::Failed { error, attempts: 2.. })]) if error.contains("another process"))
    })
    .await;
    assert!(!bed.status().all_bound());
    drop(squatter);
    bed.listening().await;
    assert_eq!(bed.greeted().await.unwrap(), 0);
}

#[tokio::test]
async fn a_vip_is_listened_on_while_it_is_held() {
    let echo = Echo::start(0).await;
    let mut bed = Bed::with_backends(&[echo.address]).await;
    let vip = own_address();
    bed.add_vip(vip);
    let sockets = |s: &ProxyStatus| s.listeners[0].sockets.len();
    assert!(TcpStream::connect((vip, 8080)).await.is_err());
    bed.held.send_replace(BTreeSet::from([vip]));
    bed.until("the VIP is bound", |s| sockets(s) == 2 && s.all_bound())
        .await;
    let mut client = TcpStream::connect((vip, 8080)).await.unwrap();
    greeting(&mut client).await.unwrap();
    bed.held.send_replace(BTreeSet::new());
    bed.until("the VIP is released", |s| sockets(s) == 1).await;
    let refused = |e: std::io::Error| e.kind() == std::io::ErrorKind::ConnectionRefused;
    let deadline = Instant::now() + PATIENCE;
    while !TcpStream::connect((vip, 8080)).await.is_err_and(refused) {
        assert!(Instant::now() < deadline);
    }
    round_trip(&mut client, b"goes on").await.unwrap();
}

#[tokio::test]
async fn vips_are_bound_beforehand_otherwise() {
    let echo = Echo::start(0).await;
    let mut bed = Bed::start_with(
        vec![pool_of(&[echo.address])],
        vec![listener("l", 8000)],
        |config| config.vip_binding = VipBinding::Always,
    );
    bed.listening().await;
    bed.add_vip("192.0.2.53".parse().unwrap()); // on no host
    bed.until("it is bound", |s| {
        s.listeners[0].sockets.len() == 2 && s.all_bound()
    })
    .await;
}

#[tokio::test]
async fn serving_goes_on_when_nobody_sends_snapshots_any_more() {
    let echo = Echo::start(0).await;
    let mut bed = Bed::with_backends(&[echo.address]).await;
    bed.sender = watch::channel(Arc::default()).0;
    for _ in 0..3 {
        bed.greeted().await.unwrap();
    }
    bed.stop(Duration::ZERO).await;
}

#[tokio::test]
async fn backends_that_take_no_connections_are_not_counted_as_usable() {
    let echo = Echo::start(0).await;
    let mut bed = Bed::with_backends(&[echo.address]).await;
    let usable = |s: &ProxyStatus| s.pools.iter().map(|p| p.usable()).sum::<usize>();
    assert_eq!(usable(&bed.status()), 1);
    let cases: [fn(&mut Backend); 3] = [
        |b| b.state = BackendState::Drain,
        |b| b.state = BackendState::Disabled,
        |b| b.weight = 0,
    ];
    for spoil in cases {
        bed.change_pool(|p| p.backends.iter_mut().for_each(spoil));
        bed.until("none is usable", |s| usable(s) == 0).await;
        bed.change_pool(|p| {
            for backend in &mut p.backends {
                (backend.state, backend.weight) = (BackendState::Enabled, 1);
            }
        });
        bed.until("it is usable again", |s| usable(s) == 1).await;
    }
    bed.change_pool(|p| p.backends.clear());
    bed.until("the pool is empty", |s| usable(s) == 0).await;
    let text: Vec<_> = crate::proxy::metrics::of(&bed.status());
    let gauge = text.iter().find(|m| m.name == "proxy_pool_backends_usable");
    assert_eq!(gauge.map(|m| m.samples.len()), Some(1), "0 is told, too");
}
