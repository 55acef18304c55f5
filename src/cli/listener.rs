//! `pontoon listener`.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{
    Context,
    client::{Client, MAX_REPLY},
    duration, exit,
    write::{commit, sound},
};
use crate::{
    model::{
        label::Label,
        listener::{ListenAddress, Listener as Model},
    },
    state::command::Change,
    wire::{
        error::Failure,
        v1::{self, admin_client::AdminClient},
    },
};

/// Listeners: addresses and ports that hand connections to a pool
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  pontoon listener create web --port 80 --pool web
  pontoon listener show web
  pontoon listener delete web")]
pub enum Listener {
    Create(Create),
    List(List),
    Show(Show),
    Delete(Delete),
}

/// Make a listener
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pontoon listener create web --port 80 --pool web
  pontoon listener create web --address 192.0.2.10 --port 443 --pool web --idle-timeout 10m")]
pub struct Create {
    /// Name: 1 to 63 of a-z, 0-9, '-', '_' and '.'
    name: Label,
    /// TCP port
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// Pool that serves it
    #[arg(long)]
    pool: Label,
    /// Address of a VIP or of a node [default: every node's service addresses and every VIP]
    #[arg(long)]
    address: Option<IpAddr>,
    /// Longest silence of a connection
    #[arg(long, default_value = "5m", value_parser = duration, value_name = "TIME")]
    idle_timeout: Duration,
    /// Connections at one time on one node
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    max_connections: u32,
}

/// List the listeners
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  pontoon listener list")]
pub struct List {}

/// Show a listener and where each node has bound it
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  pontoon listener show web")]
pub struct Show {
    /// Name of the listener
    name: Label,
}

/// Remove a listener
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  pontoon listener delete web")]
pub struct Delete {
    /// Name of the listener
    name: Label,
}

impl Listener {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Create(command) => {
                let object = format!("listener {}", command.name);
                let change = sound(Change::PutListener {
                    listener: command.listener(),
                    create: true,
                })?;
                let done = format!("created {object}");
                commit(context, &object, &done, vec![], vec![change]).await
            }
            Self::List(List {}) => list(context).await,
            Self::Show(Show { name }) => show(context, &name).await,
            Self::Delete(Delete { name }) => {
                let object = format!("listener {name}");
                let done = format!("deleted {object}");
                let change = Change::DeleteListener { listener: name };
                commit(context, &object, &done, vec![], vec![change]).await
            }
        }
    }
}

impl Create {
    fn listener(self) -> Model {
        Model {
            name: self.name,
            address: self
                .address
                .map_or(ListenAddress::EveryNode, ListenAddress::Address),
            port: self.port,
            pool: self.pool,
            idle_timeout: self.idle_timeout,
            max_connections: self.max_connections,
        }
    }
}

#[derive(Serialize)]
struct Listeners {
    revision: u64,
    stale: bool,
    listeners: Vec<ListenerJson>,
}

#[derive(Serialize)]
struct ListenerJson {
    name: String,
    /// Null: every node's service addresses and every VIP.
    address: Option<String>,
    port: u32,
    pool: String,
    idle_timeout_ms: u64,
    max_connections: u32,
    /// What each node that could be asked says of it.
    nodes: Vec<NodeJson>,
}

#[derive(Serialize)]
struct NodeJson {
    node: u64,
    bound: Vec<String>,
    /// Null when every address is bound.
    problem: Option<String>,
    connections: u64,
}

async fn read(context: &Context, name: &str) -> Result<Listeners, Failure> {
    let mut client = Client::connect(context).await?;
    let object = match name {
        "" => "listeners".to_owned(),
        name => format!("listener {name}"),
    };
    let request = v1::ListListenersRequest {
        consistency: client.consistency(),
        name: name.to_owned(),
    };
    let reply = client
        .read(&object, async |attempt| {
            AdminClient::new(attempt.channel.clone())
                .max_decoding_message_size(MAX_REPLY)
                .list_listeners(attempt.request(request.clone()))
                .await
        })
        .await?
        .into_inner();
    let header = reply.header.unwrap_or_default();
    let mut nodes: BTreeMap<String, Vec<NodeJson>> = BTreeMap::new();
    for status in &reply.status {
        let of = nodes.entry(status.listener.clone()).or_default();
        of.push(node_json(status));
    }
    let mut listener = |listener: v1::Listener| ListenerJson {
        nodes: nodes.remove(&listener.name).unwrap_or_default(),
        address: Some(listener.address).filter(|a| !a.is_empty()),
        name: listener.name,
        port: listener.port,
        pool: listener.pool,
        idle_timeout_ms: listener.idle_timeout_ms,
        max_connections: listener.max_connections,
    };
    Ok(Listeners {
        revision: header.revision,
        stale: header.stale,
        listeners: reply.listeners.into_iter().map(&mut listener).collect(),
    })
}

fn node_json(status: &v1::ListenerStatus) -> NodeJson {
    NodeJson {
        node: status.node,
        bound: status.bound.clone(),
        problem: Some(status.problem.clone()).filter(|p| !p.is_empty()),
        connections: status.connections,
    }
}

async fn list(context: &Context) -> Result<(), Failure> {
    let listeners = read(context, "").await?;
    context.out.result(&listeners, || {
        let row = |l: &ListenerJson| {
            let connections: u64 = l.nodes.iter().map(|n| n.connections).sum();
            vec![
                l.name.clone(),
                l.address.clone().unwrap_or_else(|| "*".to_owned()),
                l.port.to_string(),
                l.pool.clone(),
                connections.to_string(),
            ]
        };
        let rows: Vec<_> = listeners.listeners.iter().map(row).collect();
        context.out.table(
            &["LISTENER", "ADDRESS", "PORT", "POOL", "CONNECTIONS"],
            &rows,
        )
    })
}

#[derive(Serialize)]
struct Shown {
    revision: u64,
    stale: bool,
    #[serde(flatten)]
    listener: ListenerJson,
}

async fn show(context: &Context, name: &Label) -> Result<(), Failure> {
    let read = read(context, name.as_str()).await?;
    let Some(listener) = read.listeners.into_iter().next() else {
        let object = format!("listener {name}");
        return Err(exit::internal(
            object,
            "the node's answer holds no listener",
        ));
    };
    let shown = Shown {
        revision: read.revision,
        stale: read.stale,
        listener,
    };
    context.out.result(&shown, || {
        let l = &shown.listener;
        let row = |n: &NodeJson| {
            vec![
                n.node.to_string(),
                n.bound.join(" "),
                n.connections.to_string(),
                n.problem.clone().unwrap_or_default(),
            ]
        };
        let rows: Vec<_> = l.nodes.iter().map(row).collect();
        let table = context
            .out
            .table(&["NODE", "BOUND", "CONNECTIONS", "PROBLEM"], &rows);
        let address = l.address.as_deref().unwrap_or("*");
        format!(
            "listener {}  address {address}  port {}  pool {}\n\n{table}",
            l.name, l.port, l.pool
        )
    })
}
