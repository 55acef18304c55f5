//! A cluster of real nodes with a real VIP: its leader is lost, and a client in another namespace is served again.
//!
//! Needs root; says `skipped` without, and fails where `CI=true`.

use std::time::{Duration, Instant};

use jepsen_like::{
    failover::{self, Gaps},
    lab::{
        self,
        cluster::{Cluster, Fault, NAME, dns_at, page_at, vip4},
    },
    probe::{Prober, page},
};

/// Far above what is measured (`jepsen-like failover`): a test is no benchmark, and CI's machine is busy.
const BOUND: Duration = Duration::from_secs(10);

fn cluster() -> Option<Cluster> {
    lab::available().then(|| Cluster::start(3).unwrap_or_else(|error| panic!("{error}")))
}

fn served_again(cluster: &mut Cluster, fault: Fault) -> Gaps {
    let gaps = failover::once(cluster, fault);
    let gaps = gaps.unwrap_or_else(|error| panic!("{fault:?}: {}", cluster.with_logs(error)));
    for gap in [gaps.dns, gaps.dns6, gaps.page, gaps.write] {
        assert!(gap < BOUND, "{fault:?}: {gaps:?}");
    }
    gaps
}

#[test]
fn a_client_is_served_by_the_vip_again_when_its_holder_is_lost() {
    let Some(mut cluster) = cluster() else { return };
    for fault in [Fault::Kill, Fault::Cut, Fault::Pause] {
        let gaps = served_again(&mut cluster, fault);
        println!("{fault:?}: {gaps:?}");
        // One that was lost drops the address once it is back: until then the fence keeps it silent.
        lab::cluster::wait_for("one node with the VIP", BOUND, || {
            let mut holders = 0;
            for node in cluster.nodes() {
                holders += u32::from(node.has_address(vip4())?);
            }
            Ok((holders == 1).then_some(()))
        })
        .unwrap_or_else(|error| panic!("healed after {fault:?}: {error}"));
    }
}

#[test]
fn without_a_quorum_nobody_holds_the_vip_and_every_node_goes_on_serving() {
    let Some(mut cluster) = cluster() else { return };
    let leader = cluster.leader().unwrap().name().to_owned();
    let others: Vec<_> = cluster
        .nodes()
        .iter()
        .map(|node| node.name().to_owned())
        .filter(|name| *name != leader)
        .collect();
    for name in &others {
        cluster.inject(Fault::Kill, name).unwrap();
    }
    // Its lease has lapsed: the address may stay, behind the fence, but nobody hears it.
    let client = cluster.client().clone();
    let asked = || client.enter(|| page(page_at(vip4()), Duration::from_millis(500)));
    lab::cluster::wait_for("silence from the VIP", BOUND, || {
        Ok(asked()?.is_err().then_some(()))
    })
    .unwrap();
    assert!(asked().unwrap().is_err(), "and it stays silent");
    let number: u8 = leader.trim_start_matches('n').parse().unwrap();
    let own = lab::network::ipv4(10 + number).into();
    let interval = Duration::from_millis(20);
    let prober = Prober::dns(&client, dns_at(own), NAME, interval).unwrap();
    prober
        .wait_until_live("DNS from a node without a quorum", BOUND)
        .unwrap();
    let body = client
        .enter(|| page(page_at(own), Duration::from_secs(5)))
        .unwrap();
    assert!(body.unwrap().contains("backend"));
    drop(prober);

    for name in &others {
        cluster.heal(Fault::Kill, name).unwrap();
    }
    cluster.wait_until_whole().unwrap();
    cluster.wait_for_holder().unwrap();
}

#[test]
fn a_stop_gives_the_vip_away_before_it_ends_the_process() {
    let Some(mut cluster) = cluster() else { return };
    let holder = cluster.wait_for_holder().unwrap().name().to_owned();
    let client = cluster.client().clone();
    let prober = Prober::dns(&client, dns_at(vip4()), NAME, Duration::from_millis(2)).unwrap();
    prober.wait_until_live("DNS from the VIP", BOUND).unwrap();
    let from = Instant::now();
    cluster.node_mut(&holder).unwrap().stop().unwrap();
    assert!(
        !cluster
            .node_mut(&holder)
            .unwrap()
            .has_address(vip4())
            .unwrap(),
        "withdrawn, not left to expire"
    );
    prober.wait_until_live("DNS from the VIP", BOUND).unwrap();
    let (_, gap) = prober.longest_gap_since(from);
    assert!(gap < BOUND, "{gap:?}");
    println!("planned stop: {gap:?}");
    cluster.node_mut(&holder).unwrap().start().unwrap();
    cluster.wait_until_whole().unwrap();
}
