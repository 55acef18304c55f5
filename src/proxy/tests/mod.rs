//! Real sockets: the proxy as clients and backends see it.

mod changes;
mod forwarding;
mod leaks;
mod limits;

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

use super::{Drain, Proxy, ProxyConfig, ProxyStatus, VipBinding};
use crate::model::{
    health::HealthCheck,
    label::Label,
    listener::{ListenAddress, Listener},
    pool::{Backend, BackendState, Pool},
    snapshot::Snapshot,
    vip::Vip,
};

/// Longer than anything here should ever take.
const PATIENCE: Duration = Duration::from_secs(20);

fn label(text: &str) -> Label {
    text.parse().unwrap()
}

/// A loopback address that no other test uses, so that ports are free there.
fn own_address() -> IpAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let net = (std::process::id() % 100 + 100) as u8;
    Ipv4Addr::new(127, net, (number / 200) as u8, (number % 200 + 1) as u8).into()
}

/// A proxy with the snapshot it follows.
struct Bed {
    proxy: Option<Proxy>,
    snapshot: Snapshot,
    sender: watch::Sender<Arc<Snapshot>>,
    held: watch::Sender<BTreeSet<IpAddr>>,
    address: IpAddr,
}

impl Bed {
    /// Two workers, serving `listeners` and `pools`.
    fn start(pools: Vec<Pool>, listeners: Vec<Listener>) -> Self {
        Self::start_with(pools, listeners, |_| {})
    }

    fn start_with(
        pools: Vec<Pool>,
        listeners: Vec<Listener>,
        adjust: impl FnOnce(&mut ProxyConfig),
    ) -> Self {
        let address = own_address();
        let mut snapshot = Snapshot::default();
        for pool in pools {
            snapshot.pools.insert(pool.name.clone(), Arc::new(pool));
        }
        for listener in listeners {
            let name = listener.name.clone();
            snapshot.listeners.insert(name, Arc::new(listener));
        }
        let (sender, receiver) = watch::channel(Arc::new(snapshot.clone()));
        let (held, held_receiver) = watch::channel(BTreeSet::new());
        let mut config = ProxyConfig::new(vec![address]);
        config.workers = 2;
        config.vip_binding = VipBinding::WhenHeld(held_receiver);
        adjust(&mut config);
        let proxy = Proxy::start(config, receiver).unwrap();
        Self {
            proxy: Some(proxy),
            snapshot,
            sender,
            held,
            address,
        }
    }

    /// The common case: one pool `p` of these backends, one listener `l`; waits until it listens.
    async fn with_backends(backends: &[SocketAddr]) -> Self {
        let bed = Self::start(vec![pool_of(backends)], vec![listener("l", 8080)]);
        bed.listening().await;
        bed
    }

    async fn listening(&self) {
        self.until("all listeners are bound", |s| {
            !s.listeners.is_empty()
                && s.listeners.iter().all(|l| !l.sockets.is_empty())
                && s.all_bound()
        })
        .await;
    }

    fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().unwrap()
    }

    fn status(&self) -> ProxyStatus {
        self.proxy().status()
    }

    fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address, port)
    }

    async fn client(&self) -> TcpStream {
        TcpStream::connect(self.at(8080)).await.unwrap()
    }

    /// Connects and reads a backend's number; fails if the proxy resets the connection, however soon.
    async fn greeted(&self) -> std::io::Result<u8> {
        greeting(&mut TcpStream::connect(self.at(8080)).await?).await
    }

    fn publish(&mut self) {
        self.snapshot.revision += 1;
        self.sender.send_replace(Arc::new(self.snapshot.clone()));
    }

    fn set_pool(&mut self, pool: Pool) {
        let name = pool.name.clone();
        self.snapshot.pools.insert(name, Arc::new(pool));
        self.publish();
    }

    fn change_pool(&mut self, change: impl FnOnce(&mut Pool)) {
        let mut pool = Pool::clone(&self.snapshot.pools[&label("p")]);
        change(&mut pool);
        self.set_pool(pool);
    }

    fn set_listener(&mut self, listener: Listener) {
        let name = listener.name.clone();
        self.snapshot.listeners.insert(name, Arc::new(listener));
        self.publish();
    }

    fn remove_listener(&mut self, name: &str) {
        self.snapshot.listeners.remove(&label(name));
        self.publish();
    }

    fn add_vip(&mut self, address: IpAddr) {
        let vip = Vip {
            address,
            interface: label("vip"),
        };
        self.snapshot.vips.insert(address, vip);
        self.publish();
    }

    /// Polls the status until it is as wished.
    async fn until(&self, what: &str, wished: impl Fn(&ProxyStatus) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status();
            if wished(&status) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "not in time: {what}; {status:#?}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn stop(mut self, drain: Duration) {
        let proxy = self.proxy.take().unwrap();
        proxy.stop(Drain::until(Instant::now() + drain)).await;
    }
}

/// A listener on every node for pool `p`.
fn listener(name: &str, port: u16) -> Listener {
    Listener::new(label(name), ListenAddress::EveryNode, port, label("p"))
}

/// Pool `p` of backends `b0`, `b1`, ... without a health check.
fn pool_of(backends: &[SocketAddr]) -> Pool {
    let backend = |(number, address): (usize, &SocketAddr)| Backend {
        name: label(&format!("b{number}")),
        address: *address,
        weight: 1,
        state: BackendState::Enabled,
    };
    Pool {
        backends: backends.iter().enumerate().map(backend).collect(),
        health_check: None,
        ..Pool::new(label("p"))
    }
}

fn quick_check() -> HealthCheck {
    HealthCheck {
        interval: Duration::from_millis(20),
        down_interval: Duration::from_millis(20),
        timeout: Duration::from_millis(500),
        rise: 2,
        fall: 2,
        ..HealthCheck::default()
    }
}

/// A backend that says its number, then repeats what it hears until the client closes.
struct Echo {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Echo {
    async fn start(number: u8) -> Self {
        Self::start_on(SocketAddr::new(own_address(), 0), number).await
    }

    async fn start_on(address: SocketAddr, number: u8) -> Self {
        let socket = TcpListener::bind(address).await.unwrap();
        let address = socket.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = socket.accept().await {
                connections.spawn(echo(stream, number));
            }
        });
        Self { address, task }
    }

    /// Closes the socket and every connection; returns when the port is closed.
    async fn stop(self) -> SocketAddr {
        self.task.abort();
        let _ = self.task.await;
        self.address
    }
}

async fn echo(mut stream: TcpStream, number: u8) {
    let mut buffer = [0; 4096];
    let _ = stream.write_all(&[number]).await;
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        if stream.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

/// An address where nobody listens.
async fn dead_address() -> SocketAddr {
    Echo::start(0).await.stop().await
}

/// Reads the number that an echo backend says first.
async fn greeting(stream: &mut TcpStream) -> std::io::Result<u8> {
    tokio::time::timeout(PATIENCE, stream.read_u8())
        .await
        .unwrap()
}

/// One round through an echo backend that has said its number before.
async fn round_trip(stream: &mut TcpStream, text: &[u8]) -> std::io::Result<()> {
    stream.write_all(text).await?;
    let mut heard = vec![0; text.len()];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut heard))
        .await
        .unwrap()?;
    assert_eq!(heard, text);
    Ok(())
}

/// Waits for the peer to end the connection; true if by a reset.
async fn is_reset(stream: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest))
        .await
        .expect("the connection should have ended")
        .is_err()
}
