//! TCP connections through the proxy that live for some seconds, with traffic: what is sent must come back.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use rand::RngExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{Context, ECHO_PORT};
use crate::{
    checker::planned::Trial,
    history::{Entry, Session, SessionEnd},
    lab::{LabError, cluster::vip4, namespace::Namespace},
};

/// Sessions at a time through the VIP; and one through each node.
const THROUGH_VIP: usize = 4;
const LIVES: std::ops::Range<f64> = 2.0..12.0;
const BETWEEN: Duration = Duration::from_millis(30);
/// After a connection that was not made, or brought nothing.
const REFUSED: Duration = Duration::from_millis(100);
/// No answer for so long is the end of a session. Above the longest pause of a node: it is to be excused by its fault, not by chance.
const SILENCE: Duration = Duration::from_secs(15);
const CONNECT: Duration = Duration::from_secs(1);

/// The echo service, on the backend's host.
pub fn echo(host: &Namespace, address: SocketAddr) -> Result<std::net::TcpListener, LabError> {
    let bind = || {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok::<_, io::Error>(listener)
    };
    host.enter(bind)?.map_err(|source| LabError::Enter {
        namespace: host.name().to_owned(),
        source,
    })
}

/// Sends back what comes, until cancelled.
pub async fn serve_echo(listener: std::net::TcpListener, end: CancellationToken) {
    let Ok(listener) = TcpListener::from_std(listener) else {
        return;
    };
    let mut connections = JoinSet::new();
    loop {
        // Either may be dropped: a connection that waits is accepted by nobody, as after the end.
        tokio::select! {
            () = end.cancelled() => return,
            accepted = listener.accept() => {
                if let Ok((mut stream, _)) = accepted {
                    connections.spawn(async move {
                        let (mut from, mut to) = stream.split();
                        let _ = tokio::io::copy(&mut from, &mut to).await; // its client sees the end
                    });
                }
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

/// Clients that open one session after the other.
pub fn start(context: &Arc<Context>, tasks: &mut JoinSet<()>) {
    for _ in 1..THROUGH_VIP {
        tasks.spawn(run(None, context.clone()));
    }
    start_anew(context, tasks);
}

/// One client through the VIP and one through each node, that open a session now: others may be in the midst of theirs.
pub fn start_anew(context: &Arc<Context>, tasks: &mut JoinSet<()>) {
    tasks.spawn(run(None, context.clone()));
    for target in &context.targets {
        let place = (target.name.clone(), target.address);
        tasks.spawn(run(Some(place), context.clone()));
    }
}

/// Through one node, or through the VIP.
async fn run(place: Option<(String, std::net::Ipv4Addr)>, context: Arc<Context>) {
    let through_vip = place.is_none();
    let address = place
        .as_ref()
        .map_or(vip4(), |(_, address)| (*address).into());
    while !context.is_over() {
        let asked = context.recorder.now();
        let connected = connect(&context.host, SocketAddr::new(address, ECHO_PORT)).await;
        let holder = || context.board.holder().unwrap_or_default();
        let node = place.as_ref().map_or_else(holder, |(name, _)| name.clone());
        let trial = Trial::Sessions {
            through: place.as_ref().map(|(name, _)| name.as_str()),
        };
        let (opened, (end, longest_gap)) = match connected {
            Ok(stream) => {
                let opened = context.recorder.now();
                let lived = || context.served.note(trial, opened);
                (opened, converse(stream, &context, lived).await)
            }
            // That one was not made is no fault by itself, for a fault may forbid it; that none ever was is one of the run.
            Err(error) => {
                let end = SessionEnd::NotConnected(error.to_string());
                (asked, (end, Duration::ZERO))
            }
        };
        let pause = match end {
            SessionEnd::Stillborn(_) | SessionEnd::NotConnected(_) => REFUSED,
            _ => BETWEEN,
        };
        context.recorder.append(&Entry::Session(Session {
            id: context.unique(),
            node,
            through_vip,
            opened,
            ended: context.recorder.now(),
            end,
            longest_gap_us: longest_gap.as_micros().try_into().unwrap_or(u64::MAX),
        }));
        context.think(pause).await;
    }
}

async fn connect(host: &Namespace, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = host.enter(TcpSocket::new_v4).map_err(io::Error::other)??;
    tokio::time::timeout(CONNECT, socket.connect(to))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// A session from its first octets; the end, and the longest wait for an answer. `lived` is called once anything came back.
async fn converse(
    mut stream: TcpStream,
    context: &Context,
    lived: impl FnOnce(),
) -> (SessionEnd, Duration) {
    match exchange(&mut stream).await {
        Ok(_) => {
            lived();
            live(stream, context).await
        }
        Err((SessionEnd::Broken(how), took)) => (SessionEnd::Stillborn(how), took),
        Err(other) => other,
    }
}

/// Sends and compares until its time is over; the end, and the longest wait for an answer.
async fn live(mut stream: TcpStream, context: &Context) -> (SessionEnd, Duration) {
    let _ = stream.set_nodelay(true); // slower at worst
    let lives = Duration::from_secs_f64(rand::rng().random_range(LIVES));
    let end = Instant::now() + lives;
    let mut longest = Duration::ZERO;
    while Instant::now() < end && !context.is_over() {
        match exchange(&mut stream).await {
            Ok(took) => longest = longest.max(took),
            Err((end, took)) => return (end, longest.max(took)),
        }
        context.think(BETWEEN).await;
    }
    (SessionEnd::Closed, longest)
}

/// Sends something and compares what comes back; how long it took.
async fn exchange(stream: &mut TcpStream) -> Result<Duration, (SessionEnd, Duration)> {
    let sent: [u8; 64] = rand::rng().random();
    let began = Instant::now();
    let mut came = [0; 64];
    let exchange = async {
        stream.write_all(&sent).await?;
        stream.read_exact(&mut came).await
    };
    let exchanged = tokio::time::timeout(SILENCE, exchange).await;
    let took = began.elapsed();
    match exchanged {
        Ok(Ok(_)) if came == sent => Ok(took),
        Ok(Ok(_)) => Err((SessionEnd::Corrupt("other octets came back".into()), took)),
        Ok(Err(error)) => Err((SessionEnd::Broken(error.to_string()), took)),
        Err(_) => Err((SessionEnd::Broken(format!("silent for {SILENCE:?}")), took)),
    }
}
