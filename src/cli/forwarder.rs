//! `pontoon forwarder`.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{
    Context,
    client::Client,
    duration,
    rrsets::zone_name,
    write::{commit, sound},
};
use crate::{
    model::{forwarder::Forwarder as Model, name::Name, quoted::quoted},
    state::command::Change,
    wire::{
        error::Failure,
        v1::{self, admin_client::AdminClient},
    },
};

/// Forwarders: upstream servers for names below a suffix
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  pontoon forwarder create corp.example 10.0.0.53
  pontoon forwarder create . 9.9.9.9 149.112.112.112
  pontoon forwarder list")]
pub enum Forwarder {
    Create(Create),
    List(List),
    Delete(Delete),
}

/// Make a forwarder
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pontoon forwarder create . 9.9.9.9 149.112.112.112
  pontoon forwarder create corp.example 10.0.0.53:5353 --upstream-timeout 500ms")]
pub struct Create {
    /// Names at or below it are forwarded; . takes what no longer suffix does
    #[arg(value_parser = zone_name)]
    suffix: Name,
    /// ADDRESS or ADDRESS:PORT of each upstream; the port is 53 unless given
    #[arg(required = true, value_parser = upstream, value_name = "UPSTREAM")]
    upstreams: Vec<SocketAddr>,
    /// Longest wait for one upstream before the next is tried; all together get 10s, each at most its share
    #[arg(long, default_value = "1s", value_parser = duration, value_name = "TIME")]
    upstream_timeout: Duration,
}

/// List the forwarders
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  pontoon forwarder list")]
pub struct List {}

/// Remove a forwarder
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  pontoon forwarder delete corp.example")]
pub struct Delete {
    /// Its suffix
    #[arg(value_parser = zone_name)]
    suffix: Name,
}

impl Forwarder {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Create(command) => {
                let object = format!("forwarder {}", command.suffix);
                let forwarder = Model {
                    suffix: command.suffix,
                    upstreams: command.upstreams,
                    timeout: command.upstream_timeout,
                };
                let change = sound(Change::PutForwarder {
                    forwarder,
                    create: true,
                })?;
                commit(
                    context,
                    &object,
                    &format!("created {object}"),
                    vec![],
                    vec![change],
                )
                .await
            }
            Self::List(List {}) => list(context).await,
            Self::Delete(Delete { suffix }) => {
                let object = format!("forwarder {suffix}");
                let change = Change::DeleteForwarder { suffix };
                commit(
                    context,
                    &object,
                    &format!("deleted {object}"),
                    vec![],
                    vec![change],
                )
                .await
            }
        }
    }
}

fn upstream(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(address, 53));
    }
    text.parse().map_err(|_| {
        format!(
            "{text} is not ADDRESS or ADDRESS:PORT, such as 9.9.9.9 or [2620:fe::fe]:53",
            text = quoted(text)
        )
    })
}

#[derive(Serialize)]
struct Forwarders {
    revision: u64,
    stale: bool,
    forwarders: Vec<ForwarderJson>,
}

#[derive(Serialize)]
struct ForwarderJson {
    suffix: String,
    upstreams: Vec<String>,
    timeout_ms: u64,
}

async fn list(context: &Context) -> Result<(), Failure> {
    let mut client = Client::connect(context).await?;
    let consistency = client.consistency();
    let reply = client
        .read("forwarders", async |attempt| {
            AdminClient::new(attempt.channel.clone())
                .list_forwarders(attempt.request(v1::ListForwardersRequest { consistency }))
                .await
        })
        .await?
        .into_inner();
    let header = reply.header.unwrap_or_default();
    let forwarder = |f: v1::Forwarder| ForwarderJson {
        suffix: f.suffix,
        upstreams: f.upstreams,
        timeout_ms: f.timeout_ms,
    };
    let forwarders = Forwarders {
        revision: header.revision,
        stale: header.stale,
        forwarders: reply.forwarders.into_iter().map(forwarder).collect(),
    };
    context.out.result(&forwarders, || {
        let row = |f: &ForwarderJson| {
            vec![
                f.suffix.clone(),
                f.upstreams.join(" "),
                format!("{} ms", f.timeout_ms),
            ]
        };
        let rows: Vec<_> = forwarders.forwarders.iter().map(row).collect();
        context
            .out
            .table(&["SUFFIX", "UPSTREAMS", "TIMEOUT"], &rows)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_have_port_53_unless_given() {
        for (text, expected) in [
            ("9.9.9.9", "9.9.9.9:53"),
            ("9.9.9.9:5353", "9.9.9.9:5353"),
            ("2620:fe::fe", "[2620:fe::fe]:53"),
            ("[2620:fe::fe]:853", "[2620:fe::fe]:853"),
        ] {
            assert_eq!(
                upstream(text).map(|a| a.to_string()),
                Ok(expected.to_owned())
            );
        }
        assert!(upstream("dns.example").is_err());
    }
}
