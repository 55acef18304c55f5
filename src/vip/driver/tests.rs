//! The stand-in, and the problems a node reports. Real addresses are tried in `jepsen-like/tests`.

use super::*;
use crate::{
    model::vip::Vip,
    vip::namespace::{in_namespace_async, sh},
};

const VIP: &str = "127.0.53.53";
/// Of the node itself.
const NEEDED: &str = "127.0.53.1";

struct Fixture {
    leadership: watch::Sender<Leadership>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    driver: VipDriver,
}

impl Fixture {
    fn start(mode: Mode, interfaces: &[(&str, &str)], vips: &[&str]) -> Self {
        let (leadership, leadership_receiver) = watch::channel(Leadership::default());
        let (snapshots, snapshots_receiver) = watch::channel(Arc::new(snapshot(vips)));
        let config = VipConfig {
            mode,
            interfaces: interfaces
                .iter()
                .map(|(label, device)| (label.parse().unwrap(), (*device).to_owned()))
                .collect(),
            needed: [NEEDED.parse().unwrap()].into(),
            ..VipConfig::default()
        };
        let driver = VipDriver::start(config, leadership_receiver, snapshots_receiver).unwrap();
        Self {
            leadership,
            snapshots,
            driver,
        }
    }

    fn lead(&self, term: u64, lease: Duration) {
        self.leadership.send_replace(Leadership {
            term,
            leader: Some(NodeId(1)),
            lease_until: Some(Instant::now() + lease),
            given_up: false,
            heir: None,
            granted_in: None,
        });
    }

    async fn held(&self, expected: &[&str]) {
        let expected: BTreeSet<IpAddr> = expected.iter().map(|ip| ip.parse().unwrap()).collect();
        let mut held = self.driver.held();
        let wait = held.wait_for(|held| *held == expected);
        tokio::time::timeout(Duration::from_secs(5), wait)
            .await
            .expect("the expected VIPs are held within 5 s")
            .unwrap();
    }

    async fn problem(&self, part: &str) {
        let mut status = self.driver.status();
        let says = |vip: &VipStatus| vip.problem.as_ref().is_some_and(|text| text.contains(part));
        let wait = status.wait_for(|all| all.iter().any(says));
        tokio::time::timeout(Duration::from_secs(5), wait)
            .await
            .unwrap_or_else(|_| panic!("no problem with {part:?}"))
            .unwrap();
    }
}

fn snapshot(vips: &[&str]) -> Snapshot {
    let vip = |text: &&str| {
        let address: IpAddr = text.parse().unwrap();
        let interface = "vip".parse().unwrap();
        (address, Vip { address, interface })
    };
    Snapshot {
        vips: vips.iter().map(vip).collect(),
        ..Snapshot::default()
    }
}

const LONG: Duration = Duration::from_secs(60);

/// A driver without a thread, whose VIPs are these, and what tells it of leadership.
fn unstarted(config: VipConfig, vips: BTreeSet<Target>) -> (Driver, watch::Sender<Leadership>) {
    let (leadership, receiver) = watch::channel(Leadership::default());
    let reports = Reports {
        status: watch::channel(vec![]).0,
        held: watch::channel(BTreeSet::new()).0,
        released: watch::channel(0).0,
        facts: watch::channel(VipFacts::default()).0,
        claims: watch::channel(UnclaimedVips::new()).0,
        beat: watch::channel(0).0,
        sight: watch::channel(Sight::default()).0,
    };
    let asked = watch::channel(0).1;
    let mut driver = Driver::new(config, receiver, reports, None, Lookout::none(), asked);
    driver
        .machine
        .handle(Event::Configured(vips), Instant::now());
    (driver, leadership)
}

fn led_by(leader: u64, term: u64) -> Leadership {
    Leadership {
        term,
        leader: Some(NodeId(leader)),
        lease_until: (leader == 1).then(|| Instant::now() + LONG),
        given_up: false,
        heir: None,
        granted_in: None,
    }
}

/// Nothing is announced a second time or renewed while a test lasts.
fn slow() -> Timing {
    Timing {
        burst_gap: LONG,
        renew_every: LONG,
        ..Timing::default()
    }
}

/// So many VIPs from an address on.
fn numbered(first: [u8; 4], count: usize) -> BTreeSet<Target> {
    let interface: Label = "vip".parse().unwrap();
    let vip = |number: u32| Target {
        address: std::net::Ipv4Addr::from(number).into(),
        interface: interface.clone(),
    };
    (u32::from_be_bytes(first)..).map(vip).take(count).collect()
}

/// What follows from each step is looked at for every VIP: as many looks as VIPs would be too many.
#[tokio::test]
async fn a_thousand_vips_are_taken_in_few_looks() {
    const VIPS: usize = 1_000;
    let config = VipConfig {
        mode: Mode::LoopbackStandIn,
        timing: slow(),
        ..VipConfig::default()
    };
    let (mut driver, leadership) = unstarted(config, numbered([127, 53, 0, 0], VIPS));
    for (told, held) in [(led_by(1, 1), VIPS), (led_by(2, 2), 0)] {
        leadership.send_replace(told);
        let mut looks = 0;
        while driver.do_next().await {
            looks += 1;
        }
        assert_eq!(driver.held_since().len(), held);
        assert!(looks <= 4 * VIPS / BATCH, "{looks} looks");
    }
}

/// With the real fence and real addresses: all of them in one permission, which has to be given within a moment.
#[test]
fn a_thousand_vips_are_held_behind_the_fence_and_let_go() {
    in_namespace_async(async || {
        let config = VipConfig {
            interfaces: [("vip".parse().unwrap(), "eth0".to_owned())].into(),
            timing: slow(),
            ..VipConfig::default()
        };
        let vips = numbered([10, 77, 1, 0], 1_000);
        let (mut driver, leadership) = unstarted(config, vips.clone());
        driver.configured = vips;
        driver.hands.look().await;
        driver.keep_fence().await;
        let until = Instant::now() + LONG;
        for (told, held) in [(led_by(1, 1), 1_000), (led_by(2, 2), 0)] {
            leadership.send_replace(told);
            let is_busy =
                |driver: &Driver| driver.machine.has_actions() || driver.pending.is_some();
            while driver.held_since().len() != held || is_busy(&driver) {
                assert!(Instant::now() < until, "{} held", driver.held_since().len());
                if !driver.do_next().await {
                    pass(&mut driver, Duration::from_millis(10)).await; // a refused permission is asked for again
                }
            }
        }
        assert!(!sh("ip -4 addr show dev eth0").contains("10.77."));
    });
}

/// Lets it go on for so long at most, until something has changed.
async fn pass(driver: &mut Driver, at_most: Duration) {
    match tokio::time::timeout(at_most, driver.hands.change()).await {
        Ok(change) => driver.handle_changes(vec![change]).await,
        Err(_) => driver.handle(Event::Deadline).await,
    }
}

/// Lets it go on until this is so.
async fn until(driver: &mut Driver, what: &str, is_so: impl Fn(&Driver) -> bool) {
    let end = Instant::now() + LONG;
    while !is_so(driver) {
        assert!(Instant::now() < end, "never: {what}");
        pass(driver, Duration::from_millis(10)).await;
    }
}

fn vip_on(interface: &str, last: u8) -> Target {
    Target {
        address: [10, 77, 0, last].into(),
        interface: interface.parse().unwrap(),
    }
}

fn is_held(driver: &Driver, target: &Target) -> bool {
    matches!(driver.machine.phase(target), Some(Phase::Held { .. }))
}

fn permitted() -> String {
    sh("nft list set netdev pontoon_fence holding4")
}

/// A driver behind a real fence that holds the first of these on the devices of a namespace; the others are not configured yet.
async fn holding(held: &Target, others: &[&Target]) -> (Driver, watch::Sender<Leadership>) {
    let names = [("vip", "eth0"), ("other", "eth1")];
    let config = VipConfig {
        interfaces: names
            .map(|(label, device)| (label.parse().unwrap(), device.to_owned()))
            .into(),
        timing: slow(),
        ..VipConfig::default()
    };
    let (mut driver, leadership) = unstarted(config, [held.clone()].into());
    driver.configured = others.iter().copied().chain([held]).cloned().collect();
    driver.hands.look().await;
    driver.keep_fence().await;
    leadership.send_replace(led_by(1, 1));
    until(&mut driver, "it is held", |driver| is_held(driver, held)).await;
    (driver, leadership)
}

/// A lease of ten minutes, by the same leader.
fn longer() -> Leadership {
    Leadership {
        lease_until: Some(Instant::now() + 10 * LONG),
        ..led_by(1, 1)
    }
}

#[test]
fn what_is_held_is_permitted_again_while_the_kernel_keeps_an_addition_or_removal_waiting() {
    in_namespace_async(async || {
        let (first, second) = (vip_on("vip", 100), vip_on("vip", 101));
        let both: BTreeSet<Target> = [first.clone(), second.clone()].into();
        let (mut driver, leadership) = holding(&first, &[&second]).await;
        for (vips, phase, lease) in [
            (both, Phase::Adding, longer()),
            ([first.clone()].into(), Phase::Removing, led_by(1, 1)),
        ] {
            let blocked = driver.hands.block();
            driver.handle(Event::Configured(vips)).await;
            assert_eq!(
                driver.machine.phase(&second),
                Some(phase),
                "nobody answered"
            );
            leadership.send_replace(lease);
            driver.handle(Event::Deadline).await;
            let is_renewed = |driver: &Driver| {
                let is_long = permitted().contains("expires 9m");
                is_held(driver, &first) && is_long == (phase == Phase::Adding)
            };
            until(&mut driver, "it is permitted anew", is_renewed).await;
            drop(blocked);
            let is_over = |driver: &Driver| match phase {
                Phase::Adding => is_held(driver, &second),
                _ => driver.machine.phase(&second).is_none(),
            };
            until(&mut driver, "it goes on", is_over).await;
            assert!(driver.pending.is_none());
        }
        assert!(!sh("ip -4 addr show dev eth0").contains("10.77.0.101"));
    });
}

#[test]
fn what_the_kernel_kept_waiting_is_not_held_after_the_lease_and_leaves_no_address() {
    in_namespace_async(async || {
        let (first, second) = (vip_on("vip", 100), vip_on("vip", 101));
        let (mut driver, leadership) = holding(&first, &[&second]).await;
        let blocked = driver.hands.block();
        let both = [first, second.clone()].into();
        driver.handle(Event::Configured(both)).await;
        assert_eq!(driver.machine.phase(&second), Some(Phase::Adding));
        leadership.send_replace(led_by(2, 2));
        driver.handle(Event::Deadline).await;
        assert!(!permitted().contains("10.77.0."), "{}", permitted());
        drop(blocked);
        let is_withdrawn = |driver: &Driver| driver.machine.is_withdrawn();
        until(&mut driver, "all is withdrawn", is_withdrawn).await;
        assert!(!permitted().contains("10.77.0."), "{}", permitted());
        assert!(!sh("ip -4 addr show dev eth0").contains("10.77.0."));
    });
}

#[test]
fn a_vip_that_moved_is_heard_though_its_removal_from_the_old_device_is_tried_again() {
    in_namespace_async(async || {
        let (old, new) = (vip_on("vip", 100), vip_on("other", 100));
        let (mut driver, _leadership) = holding(&old, &[&new]).await;
        let now = Instant::now();
        let moved = Event::Configured([new.clone()].into());
        driver.machine.handle(moved, now);
        assert_eq!(
            driver.machine.poll_action(),
            Some(Action::Remove(old.clone()))
        );
        let failed = Event::RemoveFailed(old.clone());
        driver.machine.handle(failed, now);
        until(&mut driver, "it is held there", |driver| {
            is_held(driver, &new)
        })
        .await;
        let is_gone = |driver: &Driver| driver.machine.phase(&old).is_none();
        until(&mut driver, "it is gone from the old device", is_gone).await;
        assert!(!sh("ip -4 addr show dev eth0").contains("10.77.0.100"));
        assert!(permitted().contains("10.77.0.100"), "{}", permitted());
        assert!(is_held(&driver, &new));
    });
}

#[test]
fn a_problem_of_holding_ends_when_the_vip_is_let_go() {
    in_namespace_async(async || {
        let vip = Target {
            address: [10, 77, 0, 100].into(),
            interface: "vip".parse().unwrap(),
        };
        let config = VipConfig {
            fence: FenceWish::Off,
            interfaces: [("vip".parse().unwrap(), "eth0".to_owned())].into(),
            ..VipConfig::default()
        };
        let (mut driver, _leadership) = unstarted(config, [vip.clone()].into());
        driver.hands.look().await;
        driver.handle(Event::Leadership(led_by(1, 1))).await;
        until(&mut driver, "it is held", |driver| is_held(driver, &vip)).await;
        let problem = |driver: &Driver| driver.status_of(&vip).problem.unwrap_or_default();
        assert!(driver.status_of(&vip).held);
        let device = "eth0".to_owned();
        let dropped = Problem::AnnouncementDropped { device };
        driver.announcing.note(&vip, &dropped);
        assert!(problem(&driver).contains("was dropped"));

        sh("ip link del eth0");
        driver.handle(Event::Missing(vip.clone())).await;
        let is_said = |driver: &Driver| problem(driver).contains("no device named");
        until(&mut driver, "it is said", is_said).await;
        sh("ip link add eth0 type veth peer name eth1 && ip link set eth0 up");
        driver.handle(Event::Leadership(led_by(2, 2))).await;
        let is_over = |driver: &Driver| problem(driver).is_empty();
        until(&mut driver, "another node has it", is_over).await;
    });
}

#[tokio::test]
async fn a_vip_under_its_first_look_says_so_and_waits_no_longer_because_the_state_changes() {
    let vip = Target {
        address: VIP.parse().unwrap(),
        interface: "vip".parse().unwrap(),
    };
    let config = VipConfig {
        mode: Mode::LoopbackStandIn,
        ..VipConfig::default()
    };
    let (mut driver, _leadership) = unstarted(config, BTreeSet::new());
    let nobody = watch::channel(Sight::default()).1;
    driver.lookout = Lookout::start(LookoutTiming::default(), BTreeSet::new(), nobody).unwrap();
    driver.handle(Event::Leadership(led_by(1, 1))).await;
    // Far away: the test may take its time.
    let (now, later) = (Instant::now(), Instant::now() + LONG);
    let vips: BTreeSet<Target> = [vip.clone()].into();
    driver.unclaimed = [(vip.address, 7)].into();
    driver.first_looks.begin(&[(vip.clone(), 7)].into());
    driver.first_looks.observe(MayLook::Yes, |_| false, later);
    let ends = driver.first_looks.next_deadline(now);
    assert!(ends > Some(later));
    for _ in 0..3 {
        driver.handle_configured(vips.clone()).await;
        assert_eq!(driver.first_looks.next_deadline(now), ends);
        let status = driver.status_of(&vip);
        let problem = status.problem.unwrap_or_default();
        assert!(
            !status.held && problem.contains("it is looked whether"),
            "{problem}"
        );
    }
    // Gone, it is not taken, and nothing is left of it.
    driver.handle_configured(BTreeSet::new()).await;
    driver.look_first().await;
    assert!(driver.machine.withheld().is_empty());
    assert_eq!(driver.machine.phase(&vip), None);
}

#[test]
fn what_keeps_a_vip_from_its_device_is_no_problem_of_a_node_that_let_it_go() {
    let now = Instant::now();
    let held = Phase::Held {
        since: now,
        renew_at: now,
        announce_at: now,
        announced: 0,
    };
    // (phase, goes on while this node is to hold it, and while it is not)
    let cases = [
        (None, false, false),
        (Some(Phase::Withdrawn { not_before: None }), true, false),
        (Some(Phase::Adding), true, true),
        (Some(held), true, true),
        (Some(Phase::Removing), true, true),
        (Some(Phase::Stuck { retry_at: now }), true, true),
    ];
    for (phase, claiming, following) in cases {
        assert_eq!(lasts(phase, true), claiming, "{phase:?}");
        assert_eq!(lasts(phase, false), following, "{phase:?}");
    }
}

#[tokio::test]
async fn the_stand_in_holds_while_the_lease_lasts_and_not_longer() {
    let node = Fixture::start(Mode::LoopbackStandIn, &[], &[VIP]);
    node.lead(1, Duration::from_millis(300));
    node.held(&[VIP]).await;
    let status = node.driver.status().borrow().clone();
    assert_eq!(status.len(), 1);
    assert!(status[0].held && status[0].since.is_some() && status[0].problem.is_none());
    assert_eq!(status[0].fence.to_string(), "none");

    let lapse = node.leadership.borrow().lease_until.unwrap();
    node.held(&[]).await; // no signal: time alone
    assert!(
        Instant::now() < lapse,
        "withdrawn before the lease lapsed, not after"
    );
    assert!(!node.driver.status().borrow()[0].held);
}

#[tokio::test]
async fn the_snapshot_says_which_vips_there_are() {
    let node = Fixture::start(Mode::LoopbackStandIn, &[], &[]);
    node.lead(1, LONG);
    node.snapshots
        .send_replace(Arc::new(snapshot(&[VIP, "127.0.53.54"])));
    node.held(&[VIP, "127.0.53.54"]).await;
    node.snapshots.send_replace(Arc::new(snapshot(&[VIP])));
    node.held(&[VIP]).await;
    node.leadership.send_replace(Leadership {
        term: 2,
        leader: Some(NodeId(2)),
        lease_until: None,
        given_up: false,
        heir: None,
        granted_in: None,
    });
    node.held(&[]).await;
}

/// The state may say so: a node with another `node.toml` may have come since.
#[tokio::test]
async fn an_address_that_the_node_needs_is_no_vip_to_it() {
    let node = Fixture::start(Mode::LoopbackStandIn, &[], &[NEEDED]);
    node.lead(1, LONG);
    let both = [NEEDED, VIP];
    node.snapshots.send_replace(Arc::new(snapshot(&both)));
    node.held(&[VIP]).await;
    let status = node.driver.status().borrow().clone();
    let known: Vec<String> = status.iter().map(|vip| vip.address.to_string()).collect();
    assert_eq!(known, [VIP]);
}

#[tokio::test]
async fn the_end_of_consensus_is_the_end_of_the_lease() {
    let node = Fixture::start(Mode::LoopbackStandIn, &[], &[VIP]);
    node.lead(1, LONG);
    node.held(&[VIP]).await;
    let Fixture {
        leadership, driver, ..
    } = node;
    drop(leadership);
    let mut held = driver.held();
    let wait = held.wait_for(BTreeSet::is_empty);
    tokio::time::timeout(Duration::from_secs(5), wait)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn stop_withdraws_first() {
    let node = Fixture::start(Mode::LoopbackStandIn, &[], &[VIP]);
    node.lead(1, LONG);
    node.held(&[VIP]).await;
    let held = node.driver.held();
    let released = node.driver.released();
    assert_eq!(*released.borrow(), 0);
    node.driver.stop().await;
    assert!(held.borrow().is_empty());
    assert_eq!(*released.borrow(), 1, "the term may be handed over");
}

#[tokio::test]
async fn dropping_the_driver_withdraws_too() {
    let node = Fixture::start(Mode::LoopbackStandIn, &[], &[VIP]);
    node.lead(1, LONG);
    node.held(&[VIP]).await;
    let mut held = node.driver.held();
    drop(node.driver);
    // The channel closes only after the thread has withdrawn and ended.
    let ended = async { while held.changed().await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(5), ended)
        .await
        .unwrap();
    assert!(held.borrow().is_empty());
}

#[tokio::test]
async fn a_loopback_address_is_taken_for_no_vip_but_by_the_stand_in() {
    let node = Fixture::start(Mode::Kernel, &[], &["::1", "10.77.0.100", "127.0.0.1"]);
    node.problem("interface vip is mapped to no device").await;
    let status = node.driver.status();
    let known: Vec<IpAddr> = status.borrow().iter().map(|vip| vip.address).collect();
    assert_eq!(known, ["10.77.0.100".parse::<IpAddr>().unwrap()]);
}

#[tokio::test]
async fn what_keeps_a_vip_from_being_held_is_said() {
    let node = Fixture::start(Mode::LoopbackStandIn, &[], &["10.77.0.100", VIP]);
    node.lead(1, LONG);
    node.problem("10.77.0.100 is no loopback address").await;
    node.held(&[VIP]).await;

    let node = Fixture::start(Mode::Kernel, &[], &["10.77.0.100"]);
    node.problem("interface vip is mapped to no device").await; // before it leads, too
    node.lead(1, LONG);

    let node = Fixture::start(Mode::Kernel, &[("vip", "no-such-dev")], &["10.77.0.100"]);
    node.lead(1, LONG);
    node.problem("no device named \"no-such-dev\"").await;
    assert!(node.driver.held().borrow().is_empty());
}

/// Somebody's leftover: the VIP would be dead for as long as this node leads.
#[test]
fn what_cannot_be_put_on_its_device_is_said_until_a_look_finds_nothing_in_its_way() {
    in_namespace_async(async || {
        sh("ip addr add 10.77.0.100/24 dev eth0");
        let node = Fixture::start(Mode::Kernel, &[("vip", "eth0")], &["10.77.0.100"]);
        let add_problem = async |is_there: bool| {
            let mut status = node.driver.status();
            let says = |all: &Vec<VipStatus>| {
                let mut problems = all.iter().map(|vip| vip.add_problem.as_ref());
                problems.any(|p| p.is_some_and(|text| text.contains("already on")) == is_there)
            };
            let wait = tokio::time::timeout(LONG, status.wait_for(says));
            wait.await.expect("in time").unwrap().clone()
        };
        node.lead(1, LONG);
        add_problem(true).await;
        assert!(node.driver.held().borrow().is_empty());
        // Another node leads.
        node.leadership.send_replace(Leadership {
            term: 2,
            leader: Some(NodeId(2)),
            ..Leadership::default()
        });
        // It goes on while it is looked at.
        let mut status = node.driver.status();
        let until = Instant::now() + Duration::from_millis(1500);
        let wait = status.wait_for(|all| all.iter().any(|vip| vip.add_problem.is_none()));
        assert!(tokio::time::timeout_at(until.into(), wait).await.is_err());
        sh("ip addr del 10.77.0.100/24 dev eth0");
        add_problem(false).await;
        node.lead(3, LONG);
        node.held(&["10.77.0.100"]).await;
        node.driver.stop().await;
    });
}
