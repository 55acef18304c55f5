//! DNS queries over UDP from the client's host: for registers that are being written, and for their zone's serial.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use rand::RngExt;
use tokio::{net::UdpSocket, task::JoinSet};

use super::{
    Context, Target,
    api::NodeApi,
    query::{self, Answer},
    register, zones,
};
use crate::{
    checker::planned::Trial,
    history::{Call, Outcome, Reply},
    lab::{
        LabError,
        cluster::{dns_at, vip4, vip6},
        namespace::Namespace,
    },
};

const PAUSE: Duration = Duration::from_millis(50);
/// The VIP is asked more often: its answers are what a fault must not stop.
const VIP_PAUSE: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_millis(400);

/// As the history names the place that is asked, where it is a VIP.
pub const VIP4: &str = "vip4";
pub const VIP6: &str = "vip6";

/// Asks one server.
#[derive(Debug)]
pub(super) struct Resolver {
    socket: std::net::UdpSocket,
    server: SocketAddr,
}

impl Resolver {
    pub(super) fn of(host: &Namespace, server: SocketAddr) -> Result<Self, LabError> {
        let any: IpAddr = match server {
            SocketAddr::V4(_) => [0, 0, 0, 0].into(),
            SocketAddr::V6(_) => [0u16; 8].into(),
        };
        let bind = || {
            let socket = std::net::UdpSocket::bind((any, 0))?;
            socket.set_nonblocking(true)?;
            Ok::<_, std::io::Error>(socket)
        };
        let socket = host.enter(bind)?.map_err(|source| LabError::Enter {
            namespace: host.name().to_owned(),
            source,
        })?;
        Ok(Self { socket, server })
    }

    /// In the runtime that it will be used in.
    fn open(self) -> std::io::Result<Asker> {
        Ok(Asker {
            socket: UdpSocket::from_std(self.socket)?,
            server: self.server,
        })
    }
}

/// A resolver at work.
#[derive(Debug)]
pub(super) struct Asker {
    socket: UdpSocket,
    server: SocketAddr,
}

impl Asker {
    /// None: no usable answer in time.
    pub(super) async fn ask(&self, name: &str, rtype: u16) -> Option<Answer> {
        let query = query::query(rand::rng().random(), name, rtype);
        let mut buffer = [0; 1500];
        // What came too late for the query before.
        while self.socket.try_recv_from(&mut buffer).is_ok() {}
        // Not connected, so that a port that was closed for a while breaks nothing; another sender's answer is none.
        self.socket.send_to(&query, self.server).await.ok()?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let received = tokio::time::timeout(left, self.socket.recv_from(&mut buffer)).await;
            let Ok((length, from)) = received.ok()? else {
                continue;
            };
            let answer = query::read(buffer.get(..length)?, &query);
            if from == self.server && answer.is_some() {
                return answer;
            }
        }
    }
}

/// A client for each node.
pub fn start_nodes(context: &Arc<Context>, tasks: &mut JoinSet<()>) -> Result<(), LabError> {
    for target in context.targets.clone() {
        let resolver = Resolver::of(&context.host, dns_at(target.address.into()))?;
        tasks.spawn(ask_node(target, resolver, context.clone()));
    }
    Ok(())
}

async fn ask_node(target: Target, resolver: Resolver, context: Arc<Context>) {
    let Ok(asker) = resolver.open() else { return };
    let api = NodeApi::to(&target.socket);
    let process = context.recorder.new_process();
    while !context.is_over() {
        let key = draw(&context);
        look_up(&asker, Some(&api), &target.name, &key, process, &context).await;
        context.think(PAUSE).await;
    }
}

/// A client for each VIP.
pub fn start_vip(context: &Arc<Context>, tasks: &mut JoinSet<()>) -> Result<(), LabError> {
    for (name, vip) in [(VIP4, vip4()), (VIP6, vip6())] {
        let resolver = Resolver::of(&context.host, dns_at(vip))?;
        let context = context.clone();
        tasks.spawn(async move {
            let Ok(asker) = resolver.open() else { return };
            let process = context.recorder.new_process();
            while !context.is_over() {
                let key = draw(&context);
                look_up(&asker, None, name, &key, process, &context).await;
                context.think(VIP_PAUSE).await;
            }
        });
    }
    Ok(())
}

fn draw(context: &Context) -> String {
    match rand::rng().random_bool(0.3) {
        true => register::ZONE.to_owned(),
        false => context.registers.look(),
    }
}

/// Looks a register (or the zone's serial) up and records what came. A node that is asked says itself, before and after, whether it
/// serves old state; one that does not say so counts as such.
pub(super) async fn look_up(
    asker: &Asker,
    api: Option<&NodeApi>,
    node: &str,
    key: &str,
    process: u64,
    context: &Context,
) -> Option<Answer> {
    let call = Call::Lookup {
        key: key.to_owned(),
    };
    let rtype = match key == register::ZONE || zones::is_apex(key) {
        true => query::SOA,
        false => query::TXT,
    };
    let before = is_stale(api).await;
    let began = context.recorder.now();
    let id = context.recorder.invoke(process, node, call);
    let answer = asker.ask(key, rtype).await;
    // Taken before anything else may happen: a later completion would only weaken the finding.
    let now = context.recorder.now();
    let stale = before || is_stale(api).await;
    let (value, serial, reason) = match &answer {
        Some(Answer::Text(text)) => (Some(text.clone()), None, None),
        Some(Answer::Serial(serial)) => (None, Some(*serial), None),
        Some(Answer::Nothing) if rtype == query::TXT => (None, None, None),
        Some(Answer::Nothing) => (None, None, Some("no serial".to_owned())),
        Some(Answer::Error(code)) => (None, None, Some(format!("response code {code}"))),
        None => (None, None, Some("no answer".to_owned())),
    };
    let (outcome, reply) = match reason {
        Some(_) => (Outcome::Fail, None),
        None => {
            let trial = Trial::of_lookup(key, Some(node));
            if trial.is_shown_by(value.as_deref()) {
                context.served.note(trial, began);
            }
            let reply = Reply::Dns {
                node: None,
                value,
                serial,
                stale,
            };
            (Outcome::Ok, Some(reply))
        }
    };
    context.recorder.append(&crate::history::Entry::Complete {
        id,
        at: now,
        outcome,
        reply,
        reason,
    });
    answer
}

async fn is_stale(api: Option<&NodeApi>) -> bool {
    match api {
        Some(api) => api.is_stale().await.unwrap_or(true),
        None => false,
    }
}

impl Resolver {
    pub(super) fn start(self) -> Option<Asker> {
        self.open().ok()
    }
}
