//! The hands on real devices, each test in a network namespace of its own where it needs root.

use super::*;
use crate::vip::namespace::{in_namespace_async, sh};

const VIP: [u8; 4] = [10, 77, 0, 100];

fn interfaces(device: &str) -> BTreeMap<Label, String> {
    [("vip".parse().unwrap(), device.to_owned())].into()
}

fn wanted(devices: BTreeSet<String>) -> Ruleset {
    let vips = [VIP.into()].into();
    Ruleset { vips, devices }
}

fn fenced_devices() -> String {
    sh("nft list chain netdev pontoon_fence ingress")
}

#[test]
fn a_node_that_may_not_announce_says_so_for_each_device_with_an_ethernet_address() {
    in_namespace_async(async || {
        let mut names = interfaces("eth0");
        names.insert("loop".parse().unwrap(), "lo".to_owned());
        let (vip, on_loopback) = ("vip".parse().unwrap(), "loop".parse().unwrap());
        let mut hands = Hands::kernel(names, FenceWish::Off, false);
        let opener = |hands: &mut Hands, opener: fn() -> io::Result<Announcer>| {
            let kernel = kernel(hands);
            (kernel.open_announcer, kernel.announcer_due) = (opener, None);
        };
        hands.look().await;
        for (errno, words) in [
            (libc::EPERM, "CAP_NET_RAW"),
            (libc::EMFILE, "trying again every 10s"),
        ] {
            opener(
                &mut hands,
                match errno {
                    libc::EPERM => || Err(io::Error::from_raw_os_error(libc::EPERM)),
                    _ => || Err(io::Error::from_raw_os_error(libc::EMFILE)),
                },
            );
            hands.open_announcer();
            let problem = hands.announce_problem(&vip).unwrap();
            assert!(problem.contains(words), "{problem}");
            assert_eq!(hands.announce_problem(&on_loopback), None);
            assert_eq!(hands.obstacle(&vip), Some(problem), "before it leads, too");
            assert!(hands.due().is_some());
        }
        opener(&mut hands, Announcer::open);
        hands.open_announcer();
        assert_eq!(hands.announce_problem(&vip), None);
        assert_eq!(hands.due(), None);
    });
}

#[test]
fn the_only_device_made_anew_counts_as_fenced_when_its_rules_were_read_back() {
    in_namespace_async(async || {
        let mut hands = Hands::kernel(interfaces("eth0"), FenceWish::Required, false);
        let fencing = |hands: &Hands| hands.fencing().pop().unwrap().1;
        hands.look().await;
        hands.keep_fence(wanted);
        assert_eq!(fencing(&hands), Fencing::Standing);

        sh("ip link del eth0");
        let gone = Change::DeviceGone("eth0".to_owned());
        hands.readied_by(&gone).await;
        hands.keep_fence(wanted);
        assert_eq!(fencing(&hands), Fencing::Down);
        // Before Linux 6.16 they go with the device.
        for chain in ["ingress", "egress"] {
            sh(&format!(
                "nft delete chain netdev pontoon_fence {chain} || true"
            ));
        }
        sh("ip link add eth0 type veth peer name eth1 && ip link set eth0 up");
        hands.look().await;
        assert_eq!(fencing(&hands), Fencing::Down, "nothing was read back yet");
        hands.keep_fence(wanted);
        assert_eq!(fencing(&hands), Fencing::Standing);
        assert!(fenced_devices().contains("eth0"));
    });
}

#[test]
fn a_permission_ends_though_the_only_device_is_gone() {
    in_namespace_async(async || {
        let mut hands = Hands::kernel(interfaces("eth0"), FenceWish::Required, false);
        let target = vip();
        hands.look().await;
        hands.keep_fence(wanted);
        let lease_until = Instant::now() + Duration::from_secs(60);
        let targets = [target.clone()].into();
        hands.permit(&targets, lease_until).unwrap();
        let permitted = || sh("nft list set netdev pontoon_fence holding4");
        assert!(permitted().contains("10.77.0.100"));
        hands
            .readied_by(&Change::DeviceGone("eth0".to_owned()))
            .await;
        hands.keep_fence(wanted);
        assert!(hands.silence(std::slice::from_ref(&target)).is_empty());
        assert!(!permitted().contains("10.77.0.100"));
        sh("nft delete table netdev pontoon_fence");
        // There is nothing to take back.
        assert!(hands.silence(&[target]).is_empty());
    });
}

#[test]
fn a_watch_that_could_not_be_opened_is_opened_with_the_next_try() {
    in_namespace_async(async || {
        let mut guard = Guard::new(FenceWish::Required, false);
        let ruleset = wanted(["eth0".to_owned()].into());
        guard.keep(&ruleset);
        assert!(guard.watch.is_some());
        guard.watch = None;
        sh("nft flush chain netdev pontoon_fence ingress"); // nobody hears of it
        guard.keep(&ruleset);
        assert!(guard.watch.is_some());
        assert!(fenced_devices().contains("@vips4"), "the rules are back");
    });
}

#[tokio::test]
async fn a_connection_to_the_kernel_that_ended_is_opened_again() {
    let guard = Guard::new(FenceWish::Off, false);
    let mut kernel = Kernel::new(interfaces("lo"), guard);
    let vip: Label = "vip".parse().unwrap();
    kernel.look_up(&vip).await.unwrap();
    kernel.interfaces.as_ref().unwrap().end();
    while !kernel.interfaces.as_ref().unwrap().has_ended() {
        tokio::task::yield_now().await;
    }
    assert_eq!(kernel.look_up(&vip).await.unwrap().name, "lo");
}

fn vip() -> Target {
    Target {
        address: VIP.into(),
        interface: "vip".parse().unwrap(),
    }
}

/// What came of it, if not now, then in the end.
async fn done(hands: &mut Hands, now: Option<Done>) -> Done {
    if let Some(done) = now {
        return done;
    }
    loop {
        if let HandsChange::Done(done) = hands.change().await {
            return done;
        }
    }
}

async fn add(hands: &mut Hands, target: &Target) {
    let now = hands.add(target).await;
    let done = done(hands, now).await;
    assert!(matches!(done, Done::Added(_, Ok(()))), "{done:?}");
}

/// Takes off what is there.
async fn remove(hands: &mut Hands, target: &Target) {
    let now = hands
        .remove(std::slice::from_ref(target), &BTreeSet::new())
        .await;
    let Done::Removed(removed) = done(hands, now).await else {
        unreachable!("nothing is added");
    };
    assert!(matches!(removed[..], [(_, Ok(true))]), "{removed:?}");
}

/// A connection through the VIP, which has to be on a device: both ends, and the port of the client.
fn connected() -> ([std::net::TcpStream; 2], String) {
    let listener = std::net::TcpListener::bind((IpAddr::from(VIP), 0)).unwrap();
    let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    let port = client.local_addr().unwrap().port().to_string();
    ([client, server], port)
}

/// The next look that has ended.
async fn looked(hands: &mut Hands) -> Look {
    loop {
        match hands.change().await {
            HandsChange::Looked(look) => return look,
            HandsChange::Device(_)
            | HandsChange::Fence
            | HandsChange::Renewed(..)
            | HandsChange::Done(_) => {}
        }
    }
}

#[test]
fn what_is_served_again_is_looked_at_and_what_was_seen_before_does_not_count() {
    in_namespace_async(async || {
        sh("ip link set lo up");
        let mut hands = Hands::kernel(interfaces("eth0"), FenceWish::IfPossible, false);
        hands.look().await;
        hands.keep_fence(wanted);
        let early = Look {
            begun: Instant::now(),
            vips: [VIP.into()].into(),
            found: Ok(vec![]),
        };
        let peers = VipPeers::default();
        for _ in 0..2 {
            let failed = hands.serve(vec![vip()], &peers).await;
            assert!(failed.is_empty(), "{failed:?}");
        }
        assert_eq!(hands.see(&early), []);

        let (ends, _) = connected();
        assert!(hands.serve(vec![vip()], &peers).await.is_empty());
        let mut looks = vec![looked(&mut hands).await, looked(&mut hands).await];
        let last = looks.pop().unwrap();
        assert_eq!(hands.see(&last), [(vip(), true)]);
        let unknown = Look {
            found: Err("not told".to_owned()),
            ..last
        };
        assert_eq!(hands.see(&unknown), [(vip(), true)]);

        drop(ends);
        assert!(hands.serve(vec![vip()], &peers).await.is_empty());
        let look = looked(&mut hands).await;
        assert_eq!(hands.see(&look), [(vip(), false)]);
        hands.end_serve(&vip()).await;
        assert_eq!(hands.see(&look), []);
    });
}

#[test]
fn a_vip_is_taken_before_it_is_known_which_connections_are_this_nodes_own() {
    in_namespace_async(async || {
        let mut hands = Hands::kernel(interfaces("eth0"), FenceWish::Off, false);
        hands.look().await;
        add(&mut hands, &vip()).await;
        sh("ip link set lo up");
        let (_ends, port) = connected();
        let early = Look {
            begun: Instant::now(),
            vips: [VIP.into()].into(),
            found: Ok(vec![]),
        };

        let (old_holders, interfaces) = ([(vip(), [2; 6])].into(), [vip().interface].into());
        hands.keep_chance(&old_holders, &interfaces, BTreeSet::new());
        let elements = |set: &str| sh(&format!("nft list {set} | grep -A9 elements || true"));
        let passed_on = || elements("map netdev pontoon_second_chance old_holders4");
        let remembered = || elements("set netdev pontoon_second_chance mine4");
        let moved = elements("set netdev pontoon_second_chance moved4");
        assert!(moved.contains("10.77.0.100"), "{moved}");
        hands.see(&early);
        assert_eq!((passed_on(), remembered()), (String::new(), String::new()));

        let look = looked(&mut hands).await;
        hands.see(&look);
        assert!(passed_on().contains("02:02:02:02:02:02"), "{}", passed_on());
        assert!(remembered().contains(&port), "{}", remembered());
    });
}

#[test]
fn what_was_left_of_connections_is_remembered_at_once_when_the_vip_comes_back() {
    in_namespace_async(async || {
        sh("ip link set lo up");
        let mut hands = Hands::kernel(interfaces("eth0"), FenceWish::IfPossible, false);
        hands.look().await;
        hands.keep_fence(wanted);
        add(&mut hands, &vip()).await;
        let (_ends, port) = connected();

        let peers = VipPeers::default();
        remove(&mut hands, &vip()).await;
        assert!(hands.serve(vec![vip()], &peers).await.is_empty());
        for _ in 0..2 {
            assert!(hands.serve(vec![vip()], &peers).await.is_empty());
            let look = looked(&mut hands).await;
            assert_eq!(hands.see(&look), [(vip(), true)]);
        }

        let (old_holders, interfaces) = ([(vip(), [2; 6])].into(), [vip().interface].into());
        hands.keep_chance(&old_holders, &interfaces, BTreeSet::new());
        let elements = |set: &str| sh(&format!("nft list {set} | grep -A9 elements || true"));
        let passed_on = elements("map netdev pontoon_second_chance old_holders4");
        assert!(passed_on.contains("02:02:02:02:02:02"), "{passed_on}");
        let remembered = elements("set netdev pontoon_second_chance mine4");
        assert!(remembered.contains(&port), "{remembered}");
    });
}

#[test]
fn what_was_left_of_connections_counts_when_none_came_to_it_and_not_for_long() {
    let one = |port| ([192, 0, 2, 1], port).into();
    let at = |port| (one(port), one(80));
    let now = Instant::now();
    let looks = |ports: &[&[u16]]| {
        let mut left = None;
        for ports in ports {
            let connections = ports.iter().copied().map(at).collect();
            left = Some(Left::after(left.as_ref(), now, connections));
        }
        left.expect("at least one look")
    };
    for (ports, known) in [
        (&[&[1u16, 2][..]][..], false), // whether there will be more is not known yet
        (&[&[1, 2], &[1, 2]], true),
        (&[&[1, 2], &[2]], true),
        (&[&[1, 2], &[2, 3]], false),
        (&[&[1, 2], &[2, 3], &[2, 3]], false),
        (&[&[1, 2], &[], &[]], true),
    ] {
        let left = looks(ports);
        assert_eq!(left.known(now).is_some(), known, "{ports:?}");
        assert_eq!(left.known(now + LEFT_LASTS), None, "{ports:?}");
    }
}

#[test]
fn an_address_is_renewed_beside_the_rest_and_not_after_its_removal() {
    in_namespace_async(async || {
        let mut hands = Hands::kernel(interfaces("eth0"), FenceWish::Off, false);
        let target = vip();
        hands.look().await;
        add(&mut hands, &target).await;
        assert!(hands.begin_renewal(&target).is_none(), "it has begun");
        let renewed = loop {
            match hands.change().await {
                HandsChange::Renewed(renewed, outcome) => break outcome.map(|()| renewed),
                HandsChange::Device(_)
                | HandsChange::Fence
                | HandsChange::Looked(_)
                | HandsChange::Done(_) => {}
            }
        };
        assert_eq!(renewed.unwrap(), target);
        assert_eq!(hands.lost(vec![target.clone()]).await, []);

        hands.begin_renewal(&target);
        remove(&mut hands, &target).await;
        // What was sent before is done by now, and nothing was sent after.
        let renewals = &mut kernel(&mut hands).renewals;
        assert!(futures::poll!(Box::pin(renewals.next())).is_pending());
        assert!(!sh("ip addr show dev eth0").contains("10.77.0.100"));
    });
}

#[test]
fn a_device_made_anew_has_lost_its_addresses() {
    in_namespace_async(async || {
        let mut hands = Hands::kernel(interfaces("eth0"), FenceWish::Off, false);
        let target = vip();
        hands.look().await;
        add(&mut hands, &target).await;
        sh("ip link del eth0; ip link add eth0 type veth peer name eth1 && ip link set eth0 up");
        // Before it is heard of.
        assert!(hands.begin_renewal(&target).is_none());
        let (_, outcome) = kernel(&mut hands).renewals.next().await;
        assert!(
            matches!(outcome, Err(Problem::OtherDevice { .. })),
            "{outcome:?}"
        );
    });
}

fn kernel(hands: &mut Hands) -> &mut Kernel {
    match hands {
        Hands::Kernel(kernel) => kernel,
        Hands::StandIn => unreachable!("it is the kernel's"),
    }
}

#[test]
fn an_addition_that_is_given_up_is_taken_back_by_the_removal_behind_it() {
    in_namespace_async(async || {
        let mut hands = Hands::kernel(interfaces("eth0"), FenceWish::Off, false);
        hands.look().await;
        // Given up while the device is looked at, and once the kernel was asked for the address.
        for is_asked_for in [false, true] {
            let look = kernel(&mut hands).look_for(&vip()).unwrap();
            kernel(&mut hands).work = Some(look);
            if is_asked_for {
                let step = ended(&mut kernel(&mut hands).work).await;
                assert!(kernel(&mut hands).take_in(step).is_none());
            }
            let blocked = hands.block();
            assert!(futures::poll!(Box::pin(kernel(&mut hands).done())).is_pending());
            hands.give_up_adding();
            let now = hands.remove(&[vip()], &BTreeSet::new()).await;
            assert_eq!(now.is_none(), is_asked_for, "{now:?}");
            drop(blocked);
            let Done::Removed(removed) = done(&mut hands, now).await else {
                unreachable!("nothing is added");
            };
            let outcome = removed.into_iter().map(|(_, outcome)| outcome.unwrap());
            assert_eq!(outcome.collect::<Vec<_>>(), [is_asked_for]);
            // What comes to the kernel later finds all of it done.
            assert!(kernel(&mut hands).look_up(&vip().interface).await.is_ok());
            assert!(!sh("ip addr show dev eth0").contains("10.77.0.100"));
        }
    });
}

#[test]
fn a_permission_outlives_the_removal_from_a_device_where_the_vip_is_heard_on_another() {
    in_namespace_async(async || {
        let mut hands = Hands::kernel(interfaces("eth0"), FenceWish::Required, false);
        hands.look().await;
        hands.keep_fence(wanted);
        let lease_until = Instant::now() + Duration::from_secs(60);
        for (heard, stays) in [([VIP.into()].into(), true), (BTreeSet::new(), false)] {
            add(&mut hands, &vip()).await;
            hands.permit(&[vip()].into(), lease_until).unwrap();
            let now = hands.remove(&[vip()], &heard).await;
            done(&mut hands, now).await;
            let permitted = sh("nft list set netdev pontoon_fence holding4");
            assert_eq!(permitted.contains("10.77.0.100"), stays, "{permitted}");
        }
    });
}
