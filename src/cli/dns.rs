//! `pontoon dns`.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{
    Context,
    answer::Answer,
    client::Client,
    rrsets::{record_type, zone_name},
};
use crate::{
    model::{name::Name, rrset::RecordType},
    wire::{
        error::{Failure, FailureCode},
        v1::{self, node_client::NodeClient},
    },
};

/// The DNS service of the nodes
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  pontoon dns query www.example.com AAAA --all
  pontoon dns flush www.example.com
  pontoon dns stats")]
pub enum Dns {
    Query(Query),
    Stats(Stats),
    Flush(Flush),
}

/// Ask the DNS service a question, and see where the answer came from
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  pontoon dns query www.example.com\n  pontoon dns query example.com MX --all"
)]
pub struct Query {
    /// The name
    #[arg(value_parser = zone_name)]
    name: Name,
    /// The record type
    #[arg(value_name = "TYPE", value_parser = record_type, default_value = "A")]
    rtype: RecordType,
    /// Ask this node [default: the one that is reached]
    #[arg(long, value_name = "ID", conflicts_with = "all")]
    node: Option<u64>,
    /// Ask every node
    #[arg(long)]
    all: bool,
}

/// Show the counters of the DNS service
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  pontoon dns stats --node 2")]
pub struct Stats {
    /// Ask this node [default: every node]
    #[arg(long, value_name = "ID", conflicts_with = "all")]
    node: Option<u64>,
    /// Ask every node; the default
    #[arg(long)]
    all: bool,
}

/// Empty the cache of the DNS service
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pontoon dns flush\n  pontoon dns flush example.com --subtree")]
pub struct Flush {
    /// Only answers for this name, and those whose aliases lead to it [default: everything]
    #[arg(value_parser = zone_name)]
    name: Option<Name>,
    /// The same for names below it
    #[arg(long, requires = "name")]
    subtree: bool,
    /// Ask this node [default: every node]
    #[arg(long, value_name = "ID", conflicts_with = "all")]
    node: Option<u64>,
    /// Ask every node; the default
    #[arg(long)]
    all: bool,
}

impl Dns {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Query(command) => command.run(context).await,
            Self::Stats(command) => command.run(context).await,
            Self::Flush(command) => command.run(context).await,
        }
    }
}

/// `node` alone, or all of them.
fn one_or_all(node: Option<u64>) -> Option<v1::NodeSelection> {
    Some(v1::NodeSelection {
        all: node.is_none(),
        node: node.unwrap_or(0),
    })
}

#[derive(Serialize)]
struct Answers {
    name: String,
    #[serde(rename = "type")]
    rtype: String,
    nodes: Vec<NodeAnswer>,
}

#[derive(Serialize)]
struct NodeAnswer {
    node: u64,
    /// Null when there is an answer.
    problem: Option<String>,
    /// `zone`, `cache`, `forwarder`, `built-in`, `refused` or `endless`; null when there is no answer.
    source: Option<String>,
    elapsed_us: u64,
    /// Null when there is none.
    answer: Option<Answer>,
    /// Whether the node was asked, and waits for its upstream servers.
    #[serde(skip)]
    waits: bool,
}

impl Query {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let mut client = Client::connect(context).await?;
        let request = v1::DnsQueryRequest {
            nodes: Some(v1::NodeSelection {
                all: self.all,
                node: self.node.unwrap_or(0),
            }),
            name: self.name.to_string(),
            r#type: self.rtype.0.into(),
        };
        let reply = client
            .read(
                &format!("question {} {}", self.name, self.rtype),
                async |attempt| {
                    NodeClient::new(attempt.channel.clone())
                        .dns_query(attempt.request(request.clone()))
                        .await
                },
            )
            .await?
            .into_inner();
        let nodes: Result<Vec<NodeAnswer>, Failure> =
            reply.nodes.into_iter().map(node_answer).collect();
        let answers = Answers {
            name: self.name.to_string(),
            rtype: self.rtype.to_string(),
            nodes: nodes?,
        };
        context.out.result(&answers, || {
            answers.nodes.iter().map(NodeAnswer::text).collect()
        })?;
        let unreached = |n: &NodeAnswer| n.problem.clone().filter(|_| !n.waits);
        let unreached: Vec<_> = answers
            .nodes
            .iter()
            .map(|n| (n.node, unreached(n)))
            .collect();
        every_answer(
            unreached
                .iter()
                .map(|(node, problem)| (*node, problem.as_deref())),
        )?;
        every_upstream(
            &format!("question {} {}", self.name, self.rtype),
            &answers.nodes,
        )
    }
}

/// A failure when upstream servers have not answered a node that was asked.
fn every_upstream(question: &str, nodes: &[NodeAnswer]) -> Result<(), Failure> {
    let waiting = nodes.iter().filter(|n| n.waits);
    let problems: Vec<String> = waiting
        .filter_map(|n| Some(format!("node {}: {}", n.node, n.problem.as_ref()?)))
        .collect();
    if problems.is_empty() {
        return Ok(());
    }
    Err(Failure::new(
        FailureCode::NotReady,
        question,
        problems.join("; "),
        "ask again with a longer --timeout; `pontoon forwarder list` shows the upstream servers",
    ))
}

fn node_answer(answer: v1::DnsAnswer) -> Result<NodeAnswer, Failure> {
    let failed = !answer.problem.is_empty();
    Ok(NodeAnswer {
        node: answer.node,
        waits: failed && answer.source == "forwarder",
        source: (!failed).then_some(answer.source),
        elapsed_us: answer.elapsed_us,
        answer: match failed {
            true => None,
            false => Some(Answer::parse(&answer.message)?),
        },
        problem: failed.then_some(answer.problem),
    })
}

impl NodeAnswer {
    fn text(&self) -> String {
        let node = self.node;
        match (&self.answer, &self.problem) {
            (Some(answer), _) => format!(
                ";; node {node}, from {}, {} us\n{}",
                self.source.as_deref().unwrap_or("-"),
                self.elapsed_us,
                answer.text()
            ),
            (None, problem) => format!(
                ";; node {node}: {}\n",
                problem.as_deref().unwrap_or("no answer")
            ),
        }
    }
}

/// A failure when a node could not be asked: it was not done on all of them.
fn every_answer<'a>(nodes: impl Iterator<Item = (u64, Option<&'a str>)>) -> Result<(), Failure> {
    let (mut asked, mut problems) = (0, Vec::new());
    for (node, problem) in nodes {
        asked += 1;
        problems.extend(problem.map(|problem| format!("node {node}: {problem}")));
    }
    let missing = problems.len();
    let (code, what) = match missing {
        0 => return Ok(()),
        _ if missing == asked => (FailureCode::Unreachable, "no node answered".to_owned()),
        _ => (
            FailureCode::NotReady,
            format!("{missing} of {asked} nodes did not answer"),
        ),
    };
    Err(Failure::new(
        code,
        "dns",
        format!("{what}: {}", problems.join("; ")),
        "`pontoon cluster status` shows the nodes; run it again when they are back",
    ))
}

#[derive(Serialize)]
struct AllStats {
    nodes: Vec<NodeStats>,
}

#[derive(Serialize)]
struct NodeStats {
    node: u64,
    problem: Option<String>,
    counters: BTreeMap<String, u64>,
}

impl Stats {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let mut client = Client::connect(context).await?;
        let nodes = one_or_all(self.node);
        let reply = client
            .read("dns", async |attempt| {
                NodeClient::new(attempt.channel.clone())
                    .dns_stats(attempt.request(v1::DnsStatsRequest { nodes }))
                    .await
            })
            .await?
            .into_inner();
        let stats = AllStats {
            nodes: reply
                .nodes
                .into_iter()
                .map(|n| NodeStats {
                    node: n.node,
                    problem: Some(n.problem).filter(|p| !p.is_empty()),
                    counters: n.counters.into_iter().map(|c| (c.name, c.value)).collect(),
                })
                .collect(),
        };
        context.out.result(&stats, || stats_text(context, &stats))?;
        every_answer(stats.nodes.iter().map(|n| (n.node, n.problem.as_deref())))
    }
}

/// A row for each counter, a column for each node.
fn stats_text(context: &Context, stats: &AllStats) -> String {
    let mut header = vec!["COUNTER".to_owned()];
    header.extend(stats.nodes.iter().map(|n| format!("NODE {}", n.node)));
    let names: std::collections::BTreeSet<&String> =
        stats.nodes.iter().flat_map(|n| n.counters.keys()).collect();
    let rows = names.into_iter().map(|name| {
        let values = stats
            .nodes
            .iter()
            .map(|n| super::output::or_dash(n.counters.get(name)));
        std::iter::once(name.clone()).chain(values).collect()
    });
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let rows: Vec<Vec<String>> = rows.collect();
    let mut text = context.out.table(&header, &rows);
    for node in &stats.nodes {
        if let Some(problem) = &node.problem {
            text.push_str(&format!("node {}: {problem}\n", node.node));
        }
    }
    text
}

#[derive(Serialize)]
struct AllFlushed {
    nodes: Vec<NodeFlushed>,
}

#[derive(Serialize)]
struct NodeFlushed {
    node: u64,
    problem: Option<String>,
    /// Cache entries that were removed.
    entries: u64,
}

impl Flush {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let mut client = Client::connect(context).await?;
        let request = v1::DnsFlushRequest {
            nodes: one_or_all(self.node),
            name: self.name.map(|n| n.to_string()).unwrap_or_default(),
            subtree: self.subtree,
        };
        let reply = client
            .read("dns", async |attempt| {
                NodeClient::new(attempt.channel.clone())
                    .dns_flush(attempt.request(request.clone()))
                    .await
            })
            .await?
            .into_inner();
        let flushed = AllFlushed {
            nodes: reply
                .nodes
                .into_iter()
                .map(|n| NodeFlushed {
                    node: n.node,
                    problem: Some(n.problem).filter(|p| !p.is_empty()),
                    entries: n.entries,
                })
                .collect(),
        };
        context.out.result(&flushed, || {
            let line = |n: &NodeFlushed| match &n.problem {
                Some(problem) => format!("node {}: {problem}\n", n.node),
                None => format!("node {}: {} entries removed\n", n.node, n.entries),
            };
            flushed.nodes.iter().map(line).collect()
        })?;
        every_answer(flushed.nodes.iter().map(|n| (n.node, n.problem.as_deref())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_was_not_reached_is_a_failure() {
        let ended = |nodes: &[(u64, Option<&str>)]| {
            let ended = every_answer(nodes.iter().copied());
            ended.map_err(|failure| (failure.code, failure.problem))
        };
        assert_eq!(ended(&[(1, None), (2, None)]), Ok(()));
        let some = ended(&[(1, None), (2, Some("no answer within 1 s"))]);
        let problem = "1 of 2 nodes did not answer: node 2: no answer within 1 s";
        assert_eq!(some, Err((FailureCode::NotReady, problem.to_owned())));
        let none = ended(&[(1, Some("gone"))]);
        assert!(none.is_err_and(|(code, _)| code == FailureCode::Unreachable));
    }
}
