//! `pontoon vip`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{
    Context,
    client::Client,
    cluster::{node_id, transfer},
    exit,
    output::or_dash,
    write::{commit, sound},
};
use crate::{
    config::units::parse_duration,
    model::{label::Label, leadership::Preference, node::NodeId, vip::Vip as Model},
    state::{check, command::Change},
    vip::{
        fence::FenceError,
        interface::InterfaceError,
        uninstall::{self as fence_of_this_host, UninstallError},
    },
    wire::{
        error::{Failure, FailureCode},
        v1::{self, admin_client::AdminClient},
    },
};

/// Virtual addresses: held by one node at a time
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  pontoon vip add 192.0.2.10 --interface lan
  pontoon vip list
  pontoon vip move 2")]
pub enum Vip {
    Add(Add),
    Remove(Remove),
    List(List),
    Move(Move),
    Prefer(Prefer),
    Uninstall(Uninstall),
}

/// Add a virtual address
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  pontoon vip add 192.0.2.10 --interface lan")]
pub struct Add {
    /// IPv4 or IPv6 address
    address: IpAddr,
    /// Logical interface name, which each node's [interfaces] maps to a device
    #[arg(long, default_value = "vip")]
    interface: Label,
}

/// Remove a virtual address
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  pontoon vip remove 192.0.2.10")]
pub struct Remove {
    /// IPv4 or IPv6 address
    address: IpAddr,
}

/// List the virtual addresses and who holds them
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  pontoon vip list -o json")]
pub struct List {}

/// Move the virtual addresses, all of them, to another node
///
/// They go with leadership: this is `pontoon cluster transfer`. Connections through the old holder go on until they end, or
/// until its `second_chance` has passed (`[vip]` in its node.toml).
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pontoon vip move\n  pontoon vip move 2")]
pub struct Move {
    /// Node id or name [default: the voter that is best caught up]
    #[arg(value_name = "NODE")]
    node: Option<String>,
    /// The same as NODE
    #[arg(long, value_name = "NODE", conflicts_with = "node")]
    to: Option<String>,
}

/// Say on which node the virtual addresses are to be
///
/// They go there, by a planned move, when that node has been fit and caught up for the cool-down, counted anew from every term,
/// also when the same node leads again: at most once a cool-down, however often something comes and goes.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  pontoon vip prefer 2 --cool-down 5m\n  pontoon vip prefer --none"
)]
pub struct Prefer {
    /// Node id or name
    #[arg(value_name = "NODE", required_unless_present = "none")]
    node: Option<String>,
    /// How long that node has to have been fit and caught up, 5s to 1d
    #[arg(long, default_value = "1m", value_parser = parse_duration)]
    cool_down: Duration,
    /// They stay wherever they are
    #[arg(long, conflicts_with = "node")]
    none: bool,
}

/// Remove the fence, and leftover addresses of VIPs, from this host
///
/// The fence stays when a node stops, so that an address that is left behind is not heard. This takes it away for good. Stop
/// the node first: while it runs, this is refused.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  pontoon vip uninstall")]
pub struct Uninstall {}

impl Vip {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Add(Add { address, interface }) => {
                let object = format!("vip {address}");
                let vip = Model { address, interface };
                let change = sound(Change::PutVip { vip, create: true })?;
                commit(
                    context,
                    &object,
                    &format!("added {object}"),
                    vec![],
                    vec![change],
                )
                .await
            }
            Self::Remove(Remove { address }) => {
                let object = format!("vip {address}");
                let change = Change::DeleteVip { address };
                commit(
                    context,
                    &object,
                    &format!("removed {object}"),
                    vec![],
                    vec![change],
                )
                .await
            }
            Self::List(List {}) => list(context).await,
            Self::Move(Move { node, to }) => transfer(context, node.or(to)).await,
            Self::Prefer(wanted) => prefer(context, wanted).await,
            Self::Uninstall(Uninstall {}) => uninstall(context).await,
        }
    }
}

async fn prefer(context: &Context, wanted: Prefer) -> Result<(), Failure> {
    let preference = match wanted.node {
        None => None,
        Some(node) => {
            // Whichever node it is: the cool-down is right or wrong without it.
            let anyone = Preference {
                node: NodeId(1),
                cool_down: wanted.cool_down,
            };
            check::members::preference(&anyone).map_err(exit::never_right)?;
            let mut client = Client::connect(context).await?;
            let node = NodeId(node_id(&mut client, &node).await?);
            Some(Preference {
                node,
                cool_down: wanted.cool_down,
            })
        }
    };
    let done = match preference {
        None => "the virtual addresses stay wherever they are".to_owned(),
        Some(Preference { node, .. }) => format!("the virtual addresses are to be on node {node}"),
    };
    let change = Change::SetPreference { preference };
    commit(context, "preferred holder", &done, vec![], vec![change]).await
}

async fn uninstall(context: &Context) -> Result<(), Failure> {
    let done = fence_of_this_host::uninstall()
        .await
        .map_err(|error| not_uninstalled(&error))?;
    context
        .out
        .result(&done, || uninstalled_text(done.fence, &done.addresses))
}

fn uninstalled_text(fence: bool, addresses: &BTreeSet<IpAddr>) -> String {
    let fence = match fence {
        true => "the fence was removed",
        false => "the fence was not there",
    };
    let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    match addresses.as_slice() {
        [] => format!("{fence}\n"),
        some => format!("{fence}; removed addresses {}\n", some.join(", ")),
    }
}

fn not_uninstalled(error: &UninstallError) -> Failure {
    let (code, hint) = match error {
        UninstallError::Fence(FenceError::OwnedByAnother { .. }) => {
            (FailureCode::Conflict, "stop the node, then run this again")
        }
        UninstallError::Fence(FenceError::NotPermitted)
        | UninstallError::Interface(InterfaceError::NotPermitted { .. }) => {
            (FailureCode::PermissionDenied, "run this as root")
        }
        UninstallError::Fence(_) | UninstallError::Interface(_) => (FailureCode::Internal, ""),
    };
    Failure::new(code, "fence", error, hint)
}

#[derive(Serialize)]
struct Vips {
    revision: u64,
    stale: bool,
    vips: Vec<VipJson>,
    /// Nodes that are unfit to hold any, by id, and why.
    unfit: BTreeMap<u64, String>,
}

/// A virtual address as JSON, here and in `cluster status`.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct VipJson {
    pub address: String,
    pub interface: String,
    /// Id of the node that holds it; null: none that could be asked.
    pub holder: Option<u64>,
    /// What the holder is fenced with. Without a holder: `none` if no node that answers has a fence, else null.
    pub fence: Option<String>,
}

impl From<v1::VipStatus> for VipJson {
    fn from(vip: v1::VipStatus) -> Self {
        let v1::VipStatus {
            address,
            interface,
            holder,
            fence,
        } = vip;
        Self {
            address,
            interface,
            holder,
            fence: Some(fence).filter(|f| !f.is_empty()),
        }
    }
}

/// A table of virtual addresses.
pub fn table(out: &super::output::Out, vips: &[VipJson]) -> String {
    let row = |v: &VipJson| {
        vec![
            v.address.clone(),
            v.interface.clone(),
            or_dash(v.holder),
            or_dash(v.fence.as_deref()),
        ]
    };
    let rows: Vec<_> = vips.iter().map(row).collect();
    out.table(&["VIP", "INTERFACE", "HOLDER", "FENCE"], &rows)
}

async fn list(context: &Context) -> Result<(), Failure> {
    let mut client = Client::connect(context).await?;
    let consistency = client.consistency();
    let reply = client
        .read("vips", async |attempt| {
            AdminClient::new(attempt.channel.clone())
                .list_vips(attempt.request(v1::ListVipsRequest { consistency }))
                .await
        })
        .await?
        .into_inner();
    let header = reply.header.unwrap_or_default();
    let vips = Vips {
        revision: header.revision,
        stale: header.stale,
        vips: reply.vips.into_iter().map(Into::into).collect(),
        unfit: reply.unfit.into_iter().collect(),
    };
    context.out.result(&vips, || {
        let mut text = table(&context.out, &vips.vips);
        for (node, why) in &vips.unfit {
            text.push_str(&format!("\nnode {node} is unfit to hold them: {why}\n"));
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_uninstalled_is_told_in_whole_lines() {
        let address: IpAddr = "192.0.2.10".parse().expect("an address");
        for (fence, addresses, told) in [
            (false, BTreeSet::new(), "the fence was not there\n"),
            (
                true,
                [address].into(),
                "the fence was removed; removed addresses 192.0.2.10\n",
            ),
        ] {
            assert_eq!(uninstalled_text(fence, &addresses), told);
        }
    }
}
