//! The rules in the kernel, each test in a network namespace of its own. Needs root.

use super::*;
use crate::vip::namespace::{fails, in_namespace, in_namespace_async, sh};

const VIP: [u8; 4] = [10, 77, 0, 100];

#[test]
fn a_permission_ends_before_the_lease() {
    let now = Instant::now();
    for (left, expected) in [
        (300, Some(270)),
        (31, Some(1)),
        (30, None),
        (10, None),
        (0, None),
    ] {
        let until = now + Duration::from_millis(left);
        assert_eq!(permission(now, until), expected.map(Duration::from_millis));
    }
    assert_eq!(permission(now + Duration::from_secs(1), now), None);
}

#[test]
fn what_the_kernel_cannot_do_is_said_in_one_sentence() {
    let refused = SocketError::Refused {
        attempt: "create chain egress".to_owned(),
        source: Errno::EOPNOTSUPP,
    };
    let unopened = SocketError::Open(Errno::EPROTONOSUPPORT.into());
    for (error, begins) in [
        (refused, "no fence: cannot create chain egress: "),
        (
            unopened,
            "no fence: cannot open a netfilter netlink socket: ",
        ),
    ] {
        let error = explain(error);
        assert!(error.is_final());
        assert!(error.to_string().starts_with(begins), "{error}");
    }
}

fn wanted(devices: &[&str]) -> Ruleset {
    Ruleset {
        vips: [VIP.into(), "fd77::100".parse().unwrap()].into(),
        devices: devices.iter().map(|name| (*name).to_owned()).collect(),
    }
}

fn vip() -> BTreeSet<IpAddr> {
    [VIP.into()].into()
}

#[test]
fn what_is_made_is_read_back_and_a_difference_is_found() {
    in_namespace(|| {
        let mut fence = Fence::open_unowned().unwrap();
        let ruleset = wanted(&["eth0", "eth1"]);
        fence.begin(&ruleset).unwrap();
        assert!(fence.stands_for(VIP.into(), "eth0") && fence.stands_on("eth1"));
        assert!(!fence.stands_on("eth2"));
        let listed = sh("nft list ruleset");
        assert!(listed.contains("table netdev pontoon_fence"), "{listed}");

        for damage in [
            "nft flush ruleset",
            "nft delete table netdev pontoon_fence",
            "nft flush chain netdev pontoon_fence ingress",
            "nft flush set netdev pontoon_fence vips4",
            "nft add element netdev pontoon_fence vips4 '{ 10.0.0.1 }'",
            "nft insert rule netdev pontoon_fence ingress accept",
            "nft add rule netdev pontoon_fence egress meta mark 7 accept",
            "nft add set netdev pontoon_fence more '{ type ipv4_addr; }'",
            "nft add chain netdev pontoon_fence more",
            "nft 'add table netdev pontoon_fence { flags dormant; }'",
            "nft 'flush chain netdev pontoon_fence egress; delete chain netdev pontoon_fence egress'",
        ] {
            sh(damage);
            fence.doubt();
            assert!(!fence.stands_on("eth0"));
            assert!(
                fence.read_back(&ruleset).is_err(),
                "{damage} went unnoticed"
            );
            assert_eq!(
                fence.ensure(&ruleset).unwrap(),
                Ensured::Replaced,
                "{damage}"
            );
            fence.read_back(&ruleset).unwrap();
        }
        fence.doubt();
        assert_eq!(fence.ensure(&ruleset).unwrap(), Ensured::Stood);
        // Another set of VIPs or devices leaves permissions alone.
        let until = Instant::now() + Duration::from_secs(60);
        fence.permit_holding(&vip(), until).unwrap();
        let fewer = Ruleset {
            vips: vip(),
            ..ruleset.clone()
        };
        assert_eq!(fence.ensure(&fewer).unwrap(), Ensured::Stood);
        fence.read_back(&fewer).unwrap();
        for devices in [&["eth1"][..], &["eth0", "eth1"], &["eth0"]] {
            assert_eq!(fence.ensure(&wanted(devices)).unwrap(), Ensured::Stood);
            assert_eq!(fence.held_addresses().unwrap(), 1, "{devices:?}");
        }
        assert!(!fence.stands_on("eth1"));
        sh("nft delete chain netdev pontoon_fence egress");
        assert_eq!(fence.ensure(&wanted(&["eth1"])).unwrap(), Ensured::Replaced);
        assert_eq!(fence.held_addresses().unwrap(), 0);
    });
}

#[test]
fn a_table_of_ours_is_kept_from_others_and_outlives_us() {
    in_namespace(|| {
        let mut fence = Fence::open().unwrap();
        let ruleset = wanted(&["eth0"]);
        fence.begin(&ruleset).unwrap();
        if fence.flags == 0 {
            crate::skipped::say("this kernel has no tables that outlive their owner (Linux 6.9)");
            return;
        }
        sh("nft flush ruleset");
        assert!(fails("nft delete table netdev pontoon_fence"));
        fence.read_back(&ruleset).unwrap();

        let mut second = Fence {
            transactions: Transactions::open().unwrap(),
            flags: OWNED | PERSISTENT,
            standing: None,
        };
        assert!(matches!(
            second.begin(&ruleset),
            Err(FenceError::OwnedByAnother { port }) if port == fence.transactions.port()
        ));
        assert!(matches!(
            Fence::open(),
            Err(FenceError::OwnedByAnother { .. })
        ));
        assert!(matches!(
            uninstall(),
            Err(FenceError::OwnedByAnother { .. })
        ));

        fence
            .permit_holding(&vip(), Instant::now() + Duration::from_secs(60))
            .unwrap();
        assert_eq!(fence.held_addresses().unwrap(), 1);
        drop(fence);
        assert!(
            sh("nft list ruleset").contains("pontoon_fence"),
            "it outlives its owner"
        );
        second.begin(&ruleset).unwrap();
        assert_eq!(
            second.held_addresses().unwrap(),
            0,
            "leftover permissions are swept"
        );
        drop(second);
        assert!(uninstall().unwrap());
        assert!(!sh("nft list ruleset").contains("pontoon_fence"));
        assert!(!uninstall().unwrap(), "there is nothing any more");
    });
}

#[test]
fn a_permission_is_renewed_expires_and_is_taken_back() {
    in_namespace(|| {
        let mut fence = Fence::open().unwrap();
        fence.begin(&wanted(&["eth0"])).unwrap();
        let both: BTreeSet<IpAddr> = [VIP.into(), "fd77::100".parse().unwrap()].into();
        let until = Instant::now() + Duration::from_millis(200);
        fence.permit_holding(&both, until).unwrap();
        assert_eq!(fence.held_addresses().unwrap(), 2);
        // Renewed for longer, and for less.
        fence
            .permit_holding(&both, Instant::now() + Duration::from_secs(60))
            .unwrap();
        std::thread::sleep(Duration::from_millis(250));
        assert_eq!(
            fence.held_addresses().unwrap(),
            2,
            "the renewal put the end off"
        );
        let until = Instant::now() + Duration::from_millis(150);
        fence.permit_holding(&vip(), until).unwrap();
        let mut gone = Instant::now();
        while fence.held_addresses().unwrap() == 2 {
            gone = Instant::now();
            assert!(gone < until, "the permission outlived the lease");
        }
        assert!(
            gone + Duration::from_millis(60) > until,
            "gone {:?} early",
            until - gone
        );
        fence.forbid_holding(&both).unwrap();
        assert_eq!(fence.held_addresses().unwrap(), 0);
        fence.forbid_holding(&both).unwrap(); // again: no failure
        fence.permit_holding(&both, Instant::now()).unwrap();
        assert_eq!(
            fence.held_addresses().unwrap(),
            0,
            "a lease that is over permits nothing"
        );
    });
}

#[test]
fn a_permission_whose_moment_is_over_is_refused_whole() {
    in_namespace(|| {
        let mut fence = Fence::open().unwrap();
        fence.begin(&wanted(&["eth0"])).unwrap();
        let permit = ruleset::permit(Addresses::Holding, &vip(), Duration::from_secs(5));
        fence
            .transactions
            .commit(&ruleset::mark_moment(MOMENT_LASTS))
            .unwrap();
        std::thread::sleep(MOMENT_LASTS + TICK); // as a process that is stopped right here
        let error = fence.transactions.commit(&permit).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::ENOENT), "{error}");
        assert_eq!(fence.held_addresses().unwrap(), 0);
        fence
            .transactions
            .commit(&ruleset::mark_moment(MOMENT_LASTS))
            .unwrap();
        fence.transactions.commit(&permit).unwrap();
        assert_eq!(fence.held_addresses().unwrap(), 1);
        let error = fence.transactions.commit(&permit).unwrap_err();
        assert_eq!(
            error.errno(),
            Some(Errno::ENOENT),
            "a mark serves once: {error}"
        );
        assert_eq!(
            fence.held_addresses().unwrap(),
            1,
            "and nothing of it was done"
        );
    });
}

#[test]
fn a_thousand_renewals_take_under_a_millisecond_each() {
    in_namespace(|| {
        let mut fence = Fence::open().unwrap();
        fence.begin(&wanted(&["eth0"])).unwrap();
        let both: BTreeSet<IpAddr> = [VIP.into(), "fd77::100".parse().unwrap()].into();
        let mut took: Vec<Duration> = (0..1_000)
            .map(|_| {
                let start = Instant::now();
                fence
                    .permit_holding(&both, start + Duration::from_secs(60))
                    .unwrap();
                start.elapsed()
            })
            .collect();
        took.sort();
        println!(
            "renewal of two VIPs: median {:?}, 99th {:?}, worst {:?}",
            took[500], took[990], took[999]
        );
        assert!(
            took[500] < Duration::from_millis(1),
            "median {:?}",
            took[500]
        );
        // Renewing never opens a gap: the address is in the set after every one.
        assert_eq!(fence.held_addresses().unwrap(), 2);
    });
}

#[test]
fn changes_by_others_are_heard_of_and_our_own_are_not() {
    in_namespace_async(async || {
        let mut fence = Fence::open_unowned().unwrap();
        let mut watch = fence.watch().unwrap();
        let ruleset = wanted(&["eth0"]);
        fence.begin(&ruleset).unwrap();
        fence
            .permit_holding(&vip(), Instant::now() + Duration::from_secs(1))
            .unwrap();
        sh("nft add table netdev other");
        let quiet = tokio::time::timeout(Duration::from_millis(50), watch.changed()).await;
        assert!(
            quiet.is_err(),
            "our own changes and other tables are not news"
        );
        sh("nft flush ruleset");
        let heard = tokio::time::timeout(Duration::from_secs(5), watch.changed()).await;
        heard.expect("heard of").unwrap();
    });
}

#[test]
fn a_device_with_an_odd_name_is_fenced() {
    in_namespace(|| {
        sh("ip link add 'a{b;c' type veth peer name eth0.100");
        let mut fence = Fence::open().unwrap();
        fence
            .begin(&wanted(&["eth0", "eth0.100", "a{b;c"]))
            .unwrap();
        assert!(fence.stands_for(VIP.into(), "eth0.100"));
    });
}

#[test]
fn errors_say_what_is_missing_and_whether_to_try_again() {
    let refused = |attempt: &str, source| {
        explain(SocketError::Refused {
            attempt: attempt.into(),
            source,
        })
    };
    let error = refused("read table", Errno::EPERM);
    assert!(error.is_final() && error.to_string().contains("CAP_NET_ADMIN"));
    let error = refused("create chain egress on eth0", Errno::EOPNOTSUPP);
    assert!(error.is_final() && error.to_string().contains("create chain egress on eth0"));
    assert!(error.to_string().contains("Linux 5.16"));
    assert!(!refused("create chain egress on eth0", Errno::EBUSY).is_final());
    assert!(!FenceError::OwnedByAnother { port: 7 }.is_final());
}

#[test]
fn an_announcement_without_permission_is_dropped_with_enobufs() {
    use crate::vip::announce::{Announcer, announcement};
    use nix::errno::Errno;

    in_namespace(|| {
        let mut fence = Fence::open_unowned().unwrap();
        fence.begin(&wanted(&["eth0"])).unwrap();
        let index = nix::net::if_::if_nametoindex("eth0").unwrap();
        let announcer = Announcer::open().unwrap();
        let frame = announcement(VIP.into(), [2, 0, 0, 0, 0, 1]);
        let dropped = announcer.send(&frame, index).unwrap_err();
        assert_eq!(dropped.raw_os_error(), Some(Errno::ENOBUFS as i32));
        let until = Instant::now() + Duration::from_secs(60);
        fence.permit_holding(&vip(), until).unwrap();
        announcer.send(&frame, index).unwrap();
    });
}
