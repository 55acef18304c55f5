//! DNS calls of the Node service: this node's own, or passed on to others, which then answer for themselves.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::join_all;
use pontoon_proto::v1;

use super::{Api, group::FlushScope, zones::name_of};
use crate::{
    model::node::Member,
    wire::{error::Failure, records::record_type},
};

/// Longest wait for another node's answer to a question: above the 20 seconds that a node may wait for upstream servers.
const QUERY_TIMEOUT: Duration = Duration::from_secs(25);
/// The source of an answer that upstream servers have not given yet.
const FORWARDER: &str = "forwarder";
/// Longest wait for what another node does in memory alone.
const PASS_TIMEOUT: Duration = Duration::from_secs(2);

impl Api {
    pub(super) async fn stats(
        &self,
        request: v1::DnsStatsRequest,
        deadline: Instant,
    ) -> Result<v1::DnsStatsReply, Failure> {
        let Some(members) = self.selected(request.nodes.as_ref())? else {
            return Ok(v1::DnsStatsReply {
                nodes: vec![self.own_stats()],
            });
        };
        let asked = members.iter().map(|member| async move {
            if member.id == self.id() {
                return self.own_stats();
            }
            let mut client = self.client(member);
            let call = client.dns_stats(v1::DnsStatsRequest { nodes: None });
            let failed = |problem| v1::DnsStats {
                node: member.id.0,
                problem,
                counters: Vec::new(),
            };
            let patience = until(deadline, PASS_TIMEOUT);
            pass(member, patience, call, |reply| reply.nodes, failed).await
        });
        Ok(v1::DnsStatsReply {
            nodes: join_all(asked).await,
        })
    }

    fn own_stats(&self) -> v1::DnsStats {
        let mut counters: Vec<v1::Counter> = self
            .node()
            .dns_counters()
            .into_iter()
            .map(|(name, value)| v1::Counter { name, value })
            .collect();
        counters.sort_by(|a, b| a.name.cmp(&b.name));
        v1::DnsStats {
            node: self.id().0,
            problem: String::new(),
            counters,
        }
    }

    pub(super) async fn flush(
        &self,
        request: v1::DnsFlushRequest,
        deadline: Instant,
    ) -> Result<v1::DnsFlushReply, Failure> {
        let v1::DnsFlushRequest {
            nodes,
            name,
            subtree,
        } = request;
        let scope = match name.as_str() {
            "" => FlushScope::All,
            text if subtree => FlushScope::Subtree(name_of("name", text)?),
            text => FlushScope::Name(name_of("name", text)?),
        };
        let own = || v1::DnsFlushed {
            node: self.id().0,
            problem: String::new(),
            entries: self.node().dns_flush(&scope),
        };
        let Some(members) = self.selected(nodes.as_ref())? else {
            return Ok(v1::DnsFlushReply { nodes: vec![own()] });
        };
        let asked = members.iter().map(|member| {
            let name = name.clone();
            let own = &own;
            async move {
                if member.id == self.id() {
                    return own();
                }
                let mut client = self.client(member);
                let call = client.dns_flush(v1::DnsFlushRequest {
                    nodes: None,
                    name,
                    subtree,
                });
                let failed = |problem| v1::DnsFlushed {
                    node: member.id.0,
                    problem,
                    entries: 0,
                };
                let patience = until(deadline, PASS_TIMEOUT);
                pass(member, patience, call, |reply| reply.nodes, failed).await
            }
        });
        Ok(v1::DnsFlushReply {
            nodes: join_all(asked).await,
        })
    }

    pub(super) async fn query(
        &self,
        request: v1::DnsQueryRequest,
        deadline: Instant,
    ) -> Result<v1::DnsQueryReply, Failure> {
        let v1::DnsQueryRequest {
            nodes,
            name,
            r#type,
        } = request;
        let Some(members) = self.selected(nodes.as_ref())? else {
            let answer = self.own_answer(&name, r#type, deadline).await?;
            return Ok(v1::DnsQueryReply {
                nodes: vec![answer],
            });
        };
        let asked = members.iter().map(|member| {
            let name = name.clone();
            async move {
                let failed = |problem| v1::DnsAnswer {
                    node: member.id.0,
                    problem,
                    ..v1::DnsAnswer::default()
                };
                if member.id == self.id() {
                    let own = self.own_answer(&name, r#type, deadline).await;
                    return own.unwrap_or_else(|failure| failed(failure.to_string()));
                }
                let patience = passed_on(deadline.saturating_duration_since(Instant::now()));
                let mut passed = tonic::Request::new(v1::DnsQueryRequest {
                    nodes: None,
                    name,
                    r#type,
                });
                // The node answers before this, whatever its upstream servers do; that it does not is for us to say.
                passed.set_timeout(patience + patience / 20);
                let mut client = self.client(member);
                let call = client.dns_query(passed);
                pass(member, patience, call, |reply| reply.nodes, failed).await
            }
        });
        Ok(v1::DnsQueryReply {
            nodes: join_all(asked).await,
        })
    }

    /// This node's own answer, or by `deadline` that its upstream servers have none yet.
    async fn own_answer(
        &self,
        name: &str,
        rtype: u32,
        deadline: Instant,
    ) -> Result<v1::DnsAnswer, Failure> {
        let name = name_of("name", name)?;
        let rtype = record_type(rtype)?;
        let started = Instant::now();
        let asked = self.node().dns_query(&name, rtype);
        let asked = tokio::time::timeout_at(deadline.into(), asked).await;
        let took = started.elapsed();
        let (problem, message, source) = match asked {
            Ok(answer) => {
                let answer = answer?;
                (String::new(), answer.message, answer.source)
            }
            Err(_) => {
                let waited = took.as_millis();
                let problem = format!("its upstream servers have not answered within {waited} ms");
                (problem, Vec::new(), FORWARDER.to_owned())
            }
        };
        Ok(v1::DnsAnswer {
            node: self.id().0,
            problem,
            message: message.into(),
            source,
            elapsed_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        })
    }
}

/// Of the time that is `left`, the wait for another node's answer to a question: nearly all, since its upstream servers may
/// take long, and there is nothing to do after it but to tell.
fn passed_on(left: Duration) -> Duration {
    QUERY_TIMEOUT.min(left * 9 / 10)
}

/// The wait for other nodes: `most`, and short enough for the caller to hear in time which of them did not answer.
pub(super) fn until(deadline: Instant, most: Duration) -> Duration {
    let left = deadline.saturating_duration_since(Instant::now());
    most.min(left * 2 / 3)
}

/// Waits for another node's answer; what goes wrong becomes the `problem` of its line.
async fn pass<R, T>(
    member: &Arc<Member>,
    patience: Duration,
    call: impl Future<Output = Result<tonic::Response<R>, tonic::Status>>,
    nodes: impl Fn(R) -> Vec<T>,
    failed: impl Fn(String) -> T,
) -> T {
    match tokio::time::timeout(patience, call).await {
        Ok(Ok(reply)) => nodes(reply.into_inner())
            .pop()
            .unwrap_or_else(|| failed("it answered nothing".to_owned())),
        Ok(Err(status)) => {
            let object = format!("node {}", member.id);
            failed(super::status::failure_of(&status, &object, false).problem)
        }
        Err(_) => failed(format!("no answer within {} ms", patience.as_millis())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::testing::Served;
    use v1::node_client::NodeClient;

    #[tokio::test]
    async fn a_node_says_in_time_that_its_upstreams_have_not_answered() {
        let served = Served::start().await;
        let endpoint = format!("http://{}", served.address);
        let mut client = NodeClient::connect(endpoint).await.expect("connected");
        for all in [false, true] {
            let nodes = v1::NodeSelection { all, node: 0 };
            let mut request = tonic::Request::new(v1::DnsQueryRequest {
                nodes: Some(nodes),
                name: "silent.example.com.".into(),
                r#type: 1,
            });
            request.set_timeout(Duration::from_secs(1));
            let reply = client.dns_query(request).await.expect("an answer in time");
            let answer = reply.into_inner().nodes.pop().expect("one node");
            let told = "its upstream servers have not answered within ";
            assert!(answer.problem.starts_with(told), "{}", answer.problem);
            assert_eq!(
                (answer.source.as_str(), answer.message.len()),
                (FORWARDER, 0)
            );
        }
    }

    #[test]
    fn others_get_most_of_the_time_and_as_much_as_upstreams_may_take() {
        let seconds = Duration::from_secs;
        let silent_upstreams = seconds(6);
        assert!(passed_on(seconds(9)) * 9 / 10 > silent_upstreams);
        assert_eq!(passed_on(seconds(60)), seconds(25));
        assert_eq!(passed_on(Duration::ZERO), Duration::ZERO);
    }
}
