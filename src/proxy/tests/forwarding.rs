//! Bytes arrive as they were sent, ends are passed on as they happened.

use super::{super::Ending, *};

/// A backend that runs `serve` for its one connection.
async fn one_shot<F, T>(
    serve: impl FnOnce(TcpStream) -> F + Send + 'static,
) -> (SocketAddr, JoinHandle<T>)
where
    F: Future<Output = T> + Send,
    T: Send + 'static,
{
    let socket = TcpListener::bind(SocketAddr::new(own_address(), 0))
        .await
        .unwrap();
    let address = socket.local_addr().unwrap();
    let task = tokio::spawn(async move { serve(socket.accept().await.unwrap().0).await });
    (address, task)
}

/// Bytes that differ everywhere, so that a lost or repeated piece shows.
fn pattern(length: usize, seed: u64) -> Vec<u8> {
    let words = length.div_ceil(8) as u64;
    let word = |n: u64| (n ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    let mut bytes: Vec<u8> = (0..words).flat_map(word).collect();
    bytes.truncate(length);
    bytes
}

#[tokio::test]
async fn small_messages_go_back_and_forth() {
    let echo = Echo::start(7).await;
    let bed = Bed::with_backends(&[echo.address]).await;
    let mut client = bed.client().await;
    assert_eq!(greeting(&mut client).await.unwrap(), 7);
    for length in [1, 100, 4000, 1] {
        round_trip(&mut client, &pattern(length, 1)).await.unwrap();
    }
    drop(client);
    bed.until("the connection has ended", |s| s.connections == 0)
        .await;
    let status = bed.status();
    let l = status.listener("l").unwrap();
    assert_eq!((l.total, l.ended(Ending::Completed)), (1, 1));
    assert_eq!((l.bytes_from_clients, l.bytes_to_clients), (4102, 4103));
    let b = status.backend("p", "b0").unwrap();
    assert_eq!((b.total, b.connections), (1, 0));
    assert_eq!((b.bytes_from_clients, b.bytes_to_clients), (4102, 4103));
}

#[tokio::test]
async fn ipv6_is_forwarded() {
    let Ok(free) = TcpListener::bind("[::1]:0").await else {
        return crate::skipped::skip("this host has no IPv6 loopback");
    };
    let echo = Echo::start_on("[::1]:0".parse().unwrap(), 6).await;
    let at = free.local_addr().unwrap();
    drop(free);
    let bed = Bed::start_with(
        vec![pool_of(&[echo.address])],
        vec![listener("l", at.port())],
        |config| config.service_addresses = vec![at.ip()],
    );
    bed.listening().await;
    let mut client = TcpStream::connect(at).await.unwrap();
    assert_eq!(greeting(&mut client).await.unwrap(), 6);
}

#[tokio::test]
async fn a_client_that_half_closes_still_gets_its_answer() {
    let (address, _backend) = one_shot(|mut stream| async move {
        let mut question = Vec::new();
        stream.read_to_end(&mut question).await.unwrap();
        let answer = format!("{} bytes", question.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
    })
    .await;
    let bed = Bed::with_backends(&[address]).await;
    let mut client = bed.client().await;
    client.write_all(&pattern(100_000, 2)).await.unwrap();
    client.shutdown().await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "100000 bytes");
}

#[tokio::test]
async fn a_backend_that_half_closes_still_hears_its_client() {
    let (address, backend) = one_shot(|mut stream| async move {
        stream.write_all(b"done talking").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).await.unwrap();
        heard
    })
    .await;
    let bed = Bed::with_backends(&[address]).await;
    let mut client = bed.client().await;
    let mut words = String::new();
    client.read_to_string(&mut words).await.unwrap();
    assert_eq!(words, "done talking");
    let late = pattern(300_000, 3);
    client.write_all(&late).await.unwrap();
    drop(client);
    assert!(backend.await.unwrap() == late);
}

/// Both ways at once, more than any buffer holds. Returns the status while the connection was still there.
async fn transfer_both_ways(pipes: u32) -> ProxyStatus {
    const LENGTH: usize = 24 * 1024 * 1024;
    let (address, backend) = one_shot(|stream| exchange(stream, 5, 4)).await;
    let bed = Bed::start_with(vec![pool_of(&[address])], vec![listener("l", 8080)], |c| {
        c.limits.pipes = pipes;
    });
    bed.listening().await;
    let client = exchange(bed.client().await, 4, 5);
    let (status, ()) = tokio::join!(
        async {
            bed.until("half is through", |s| {
                s.listeners[0].bytes_to_clients > LENGTH as u64 / 2
            })
            .await;
            bed.status()
        },
        client
    );
    backend.await.unwrap();
    let l = bed.status().listeners.remove(0);
    assert_eq!(l.bytes_from_clients, LENGTH as u64);
    assert_eq!(l.bytes_to_clients, LENGTH as u64);
    return status;

    async fn exchange(stream: TcpStream, mine: u64, theirs: u64) {
        let (mut read, mut write) = stream.into_split();
        let sender = tokio::spawn(async move {
            write.write_all(&pattern(LENGTH, mine)).await.unwrap();
        });
        let mut heard = Vec::with_capacity(LENGTH);
        read.read_to_end(&mut heard).await.unwrap();
        assert!(heard == pattern(LENGTH, theirs), "the bytes differ");
        sender.await.unwrap();
    }
}

#[tokio::test]
async fn large_transfers_are_spliced_and_arrive_whole_both_ways() {
    assert!(transfer_both_ways(8).await.pipes_open > 0);
}

#[tokio::test]
async fn without_pipes_large_transfers_are_copied() {
    assert_eq!(transfer_both_ways(0).await.pipes_open, 0);
}

/// How much of an endless stream is taken while the client reads nothing; then it reads and checks the beginning.
async fn slow_reader(pipes: u32) {
    let pattern_bytes = Arc::new(pattern(1 << 20, 6));
    let sent = Arc::new(AtomicU32::new(0)); // in KiB
    let (bytes, counter) = (pattern_bytes.clone(), sent.clone());
    let (address, backend) = one_shot(move |mut stream| async move {
        for piece in bytes.chunks(1024).cycle() {
            if stream.write_all(piece).await.is_err() {
                return;
            }
            counter.fetch_add(1, Ordering::Relaxed);
        }
    })
    .await;
    let bed = Bed::start_with(vec![pool_of(&[address])], vec![listener("l", 8080)], |c| {
        c.limits.pipes = pipes;
    });
    bed.listening().await;
    let mut client = bed.client().await;

    // The backend comes to a halt: nothing between it and the client grows without end.
    let deadline = Instant::now() + PATIENCE;
    let mut before = u32::MAX;
    while sent.load(Ordering::Relaxed) != before || before == 0 {
        before = sent.load(Ordering::Relaxed);
        assert!(Instant::now() < deadline, "{before} KiB and no end");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let taken = bed.status().listeners[0].bytes_to_clients;
    assert!(u64::from(before) * 1024 >= taken);

    let mut heard = vec![0; 16 << 20];
    client.read_exact(&mut heard).await.unwrap();
    assert!(heard.chunks(1 << 20).all(|mib| mib == &pattern_bytes[..]));
    drop(client);
    backend.await.unwrap();
}

#[tokio::test]
async fn a_slow_reader_halts_the_sender_while_splicing() {
    slow_reader(8).await;
}

#[tokio::test]
async fn a_slow_reader_halts_the_sender_while_copying() {
    slow_reader(0).await;
}

#[tokio::test]
async fn a_reset_by_the_client_is_passed_on() {
    let (address, backend) = one_shot(|mut stream| async move {
        stream.write_u8(1).await.unwrap();
        is_reset(&mut stream).await
    })
    .await;
    let bed = Bed::with_backends(&[address]).await;
    let mut client = bed.client().await;
    greeting(&mut client).await.unwrap();
    client.set_zero_linger().unwrap();
    drop(client);
    assert!(backend.await.unwrap());
    bed.until("the reset is counted", |s| {
        s.listeners[0].ended(Ending::ClientReset) == 1
    })
    .await;
}

#[tokio::test]
async fn a_reset_by_the_backend_is_passed_on() {
    let (address, _backend) = one_shot(|mut stream| async move {
        stream.write_u8(1).await.unwrap();
        let _ = stream.read_u8().await;
        stream.set_zero_linger().unwrap();
    })
    .await;
    let bed = Bed::with_backends(&[address]).await;
    let mut client = bed.client().await;
    greeting(&mut client).await.unwrap();
    client.write_u8(2).await.unwrap();
    assert!(is_reset(&mut client).await);
    bed.until("the reset is counted", |s| {
        s.listeners[0].ended(Ending::BackendReset) == 1
    })
    .await;
}

#[tokio::test]
async fn an_answer_given_before_the_question_was_heard_out_is_delivered() {
    const LENGTH: usize = 256 * 1024; // fits into the buffers on the way
    let (address, _backend) = one_shot(|mut stream| async move {
        stream.read_u8().await.unwrap();
        stream.write_all(&pattern(LENGTH, 8)).await.unwrap();
        stream.shutdown().await.unwrap();
        // Deaf from here on: what the client sends is answered by a reset, once the answer is out.
        tokio::time::sleep(Duration::from_millis(200)).await;
    })
    .await;
    let bed = Bed::with_backends(&[address]).await;
    let (mut read, mut write) = bed.client().await.into_split();
    let sender = tokio::spawn(async move {
        let piece = pattern(64 * 1024, 9);
        while write.write_all(&piece).await.is_ok() {}
    });
    tokio::time::sleep(Duration::from_millis(400)).await; // the client is slow to listen
    let mut answer = Vec::new();
    read.read_to_end(&mut answer).await.unwrap();
    assert!(answer == pattern(LENGTH, 8));
    drop(read);
    sender.abort();
    bed.until("the reset is counted", |s| {
        s.listeners[0].ended(Ending::BackendReset) == 1
    })
    .await;
}

#[tokio::test]
async fn an_early_answer_outlives_a_client_that_then_ends_its_question() {
    const LENGTH: usize = 256 * 1024; // fits into the buffers on the way, but not into the client's alone
    let (address, backend) = one_shot(|mut stream| async move {
        stream.read_u8().await.unwrap();
        stream.write_all(&pattern(LENGTH, 8)).await.unwrap();
    })
    .await;
    let bed = Bed::with_backends(&[address]).await;
    let mut client = bed.client().await;
    client.write_u8(1).await.unwrap();
    backend.await.unwrap(); // it has answered and closed
    bed.until("the answer is on its way", |s| {
        s.listeners[0].bytes_to_clients == LENGTH as u64
    })
    .await;
    client.write_all(&pattern(4 << 20, 9)).await.unwrap();
    client.shutdown().await.unwrap();
    bed.until("the reset by the backend is counted", |s| {
        s.listeners[0].ended(Ending::BackendReset) == 1
    })
    .await;
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    assert!(answer == pattern(LENGTH, 8));
}

#[tokio::test]
async fn another_backend_is_tried_when_one_does_not_answer() {
    let echo = Echo::start(3).await;
    let bed = Bed::with_backends(&[dead_address().await, echo.address]).await;
    for _ in 0..10 {
        assert_eq!(bed.greeted().await.unwrap(), 3);
    }
    let status = bed.status();
    let dead = status.backend("p", "b0").unwrap();
    assert_eq!((dead.connect_failures, dead.total), (5, 0));
    let (error, _) = dead.last_error.clone().unwrap();
    assert!(error.contains("refused"), "{error}");
}

#[tokio::test]
async fn without_retries_a_dead_backend_costs_its_share() {
    let echo = Echo::start(3).await;
    let mut pool = pool_of(&[dead_address().await, echo.address]);
    pool.connect_retries = 0;
    let bed = Bed::start(vec![pool], vec![listener("l", 8080)]);
    bed.listening().await;
    let mut served = 0;
    for _ in 0..10 {
        served += u32::from(bed.greeted().await.is_ok());
    }
    assert_eq!(served, 5);
    bed.until("failures are counted", |s| {
        s.listeners[0].ended(Ending::ConnectFailed) == 5
    })
    .await;
}

#[tokio::test]
async fn with_no_backend_at_all_the_client_is_reset() {
    let mut bed = Bed::with_backends(&[]).await;
    assert!(bed.greeted().await.is_err());
    bed.until("it is counted", |s| {
        s.listeners[0].ended(Ending::NoBackend) == 1
    })
    .await;
    bed.set_pool(pool_of(&[dead_address().await]));
    bed.until("the backend is there", |s| s.backend("p", "b0").is_some())
        .await;
    assert!(bed.greeted().await.is_err());
    bed.until("it is counted", |s| {
        s.listeners[0].ended(Ending::ConnectFailed) == 1
    })
    .await;
}

#[tokio::test]
async fn connections_are_shared_out_by_weight() {
    let (a, b) = (Echo::start(0).await, Echo::start(1).await);
    let mut pool = pool_of(&[a.address, b.address]);
    pool.backends[0].weight = 3;
    let bed = Bed::start(vec![pool], vec![listener("l", 8080)]);
    bed.listening().await;
    let mut counts = [0; 2];
    for _ in 0..40 {
        let number = bed.greeted().await.unwrap();
        counts[usize::from(number)] += 1;
    }
    assert_eq!(counts, [30, 10]);
}

#[tokio::test]
async fn a_client_keeps_its_backend_under_source_hash() {
    let (a, b) = (Echo::start(0).await, Echo::start(1).await);
    let mut pool = pool_of(&[a.address, b.address]);
    pool.policy = crate::model::pool::Policy::SourceHash;
    let bed = Bed::start(vec![pool], vec![listener("l", 8080)]);
    bed.listening().await;
    let first = bed.greeted().await.unwrap();
    for _ in 0..10 {
        assert_eq!(bed.greeted().await.unwrap(), first);
    }
}

#[tokio::test]
async fn the_backend_with_fewer_connections_is_chosen() {
    let (a, b) = (Echo::start(0).await, Echo::start(1).await);
    let mut pool = pool_of(&[a.address, b.address]);
    pool.policy = crate::model::pool::Policy::LeastConnections;
    let bed = Bed::start(vec![pool], vec![listener("l", 8080)]);
    bed.listening().await;
    let mut first = bed.client().await;
    let busy = greeting(&mut first).await.unwrap();
    for _ in 0..5 {
        let mut other = bed.client().await;
        assert_ne!(greeting(&mut other).await.unwrap(), busy);
        drop(other);
        bed.until("it has ended", |s| s.connections == 1).await;
    }
}
