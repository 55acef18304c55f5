//! No file descriptor or thread outlives the proxy. Both are counted for the whole process, so the test runs itself again as
//! a process of its own.

use super::*;

const INNER: &str = "PONTOON_TEST_LEAKS_ALONE";

#[test]
fn nothing_is_left_after_stopping() {
    let this = "proxy::tests::leaks::nothing_is_left_after_stopping";
    if std::env::var_os(INNER).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        return runtime.block_on(count_before_and_after());
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", this, "--nocapture", "--test-threads=1"])
        .env(INNER, "1")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("1 passed"), "{text}");
}

fn count(directory: &str) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

async fn count_before_and_after() {
    let echo = Echo::start(0).await;
    let mut before = None;
    // The first round warms up what lives as long as the process (the runtime's threads, its own descriptors).
    for round in 0..4 {
        one_life(&echo, round).await;
        let deadline = Instant::now() + PATIENCE;
        loop {
            // the backend's ends of the connections close a moment later
            let now = (count("/proc/self/fd"), count("/proc/self/task"));
            let (fds, threads) = *before.get_or_insert(now);
            if now.0 <= fds && now.1 <= threads {
                before = Some(now);
                break;
            }
            assert!(
                Instant::now() < deadline,
                "(files, threads) grew from {before:?} to {now:?}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Connections that complete, that are spliced, that fail, that are cut off, and listeners and checks that come and go.
async fn one_life(echo: &Echo, round: u16) {
    let mut pool = pool_of(&[echo.address, dead_address().await]);
    pool.health_check = Some(quick_check());
    let mut bed = Bed::start(vec![pool], vec![listener("l", 8080)]);
    bed.listening().await;
    let mut clients = Vec::new();
    for _ in 0..50 {
        let mut client = bed.client().await;
        greeting(&mut client).await.unwrap();
        clients.push(client);
    }
    clients.truncate(25);
    let (mut read, mut write) = clients.pop().unwrap().into_split();
    let sender = tokio::spawn(async move { write.write_all(&vec![1; 1 << 20]).await.unwrap() });
    let mut heard = vec![0; 1 << 20];
    read.read_exact(&mut heard).await.unwrap();
    sender.await.unwrap();
    bed.set_listener(listener("m", 8081 + round));
    bed.until("m is there", |s| s.listeners.len() == 2).await;
    bed.remove_listener("m");
    bed.change_pool(|p| drop(p.backends.pop()));
    bed.until("m is gone", |s| s.listeners.len() == 1).await;
    bed.stop(Duration::from_millis(50)).await;
}
