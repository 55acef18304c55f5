//! The lab itself: links that are cut and healed, probers that notice, and nothing left behind.
//!
//! Needs root; says `skipped` without, and fails where `CI=true`.

use std::{
    net::SocketAddr,
    process::Command,
    time::{Duration, Instant},
};

use jepsen_like::{
    backend::Backend,
    lab::{self, Lab, network},
    probe::{Prober, page},
};

const SOON: Duration = Duration::from_secs(5);
const OUTAGE: Duration = Duration::from_millis(600);

fn namespaces() -> String {
    let listed = Command::new("ip").args(["netns", "list"]).output().unwrap();
    String::from_utf8(listed.stdout).unwrap()
}

#[test]
fn a_cut_link_passes_nothing_until_it_is_healed() {
    if !lab::available() {
        return;
    }
    let mut lab = Lab::create().unwrap();
    let server = lab.add_host("server", 210).unwrap();
    let client = lab.add_host("client", 200).unwrap();
    for address in network::addresses(210) {
        let backend = Backend::serve(&server, SocketAddr::new(address, 8080), "it").unwrap();
        let to = backend.address();
        let prober = Prober::http(&client, to, Duration::from_millis(5));
        prober.wait_until_live("the page", SOON).unwrap();
        for cut_and_heal in [
            [network::Network::cut, network::Network::heal],
            [network::Network::unplug, network::Network::plug],
        ] {
            let [cut, heal] = cut_and_heal;
            let from = Instant::now();
            cut(lab.network(), "server").unwrap();
            let deaf = Instant::now();
            let silent = client.enter(|| page(to, OUTAGE)).unwrap();
            assert!(silent.is_err(), "{to} answered through a cut link");
            std::thread::sleep(OUTAGE.saturating_sub(deaf.elapsed()));
            heal(lab.network(), "server").unwrap();
            prober.wait_until_live("the page again", SOON).unwrap();
            let (_, gap) = prober.answers().longest_gap(from, Instant::now());
            assert!(OUTAGE <= gap && gap < OUTAGE + SOON, "{gap:?}");
        }
    }
}

#[test]
fn a_lab_leaves_nothing_behind_and_sweeps_what_a_killed_one_left() {
    if !lab::available() {
        return;
    }
    let (name, directory) = {
        let mut lab = Lab::create().unwrap();
        let host = lab.add_host("n1", 11).unwrap();
        let mut inside = host.command("sleep").unwrap();
        let mut sleeper = inside.arg("1000").spawn().unwrap();
        assert_eq!(host.processes().len(), 1);
        let seen = (host.name().to_owned(), lab.directory().to_owned());
        drop((host, lab));
        assert!(!sleeper.wait().unwrap().success(), "ended with the lab");
        seen
    };
    assert!(!namespaces().contains(&name));
    assert!(!directory.exists());

    // The maker of this one has ended.
    let mut maker = Command::new("true").spawn().unwrap();
    maker.wait().unwrap();
    let abandoned = format!("pj{}x0-left", maker.id());
    let added = Command::new("ip")
        .args(["netns", "add", &abandoned])
        .status()
        .unwrap();
    assert!(added.success());
    let left = std::env::temp_dir().join(format!("pj{}x0AbCdEf", maker.id()));
    std::fs::create_dir_all(left.join("n1")).unwrap();
    lab::clean().unwrap();
    assert!(!namespaces().contains(&abandoned));
    assert!(!left.exists());
}

#[test]
fn a_panic_takes_the_lab_down_too() {
    if !lab::available() {
        return;
    }
    let name = std::sync::Mutex::new(String::new());
    let panicked = std::panic::catch_unwind(|| {
        let mut lab = Lab::create().unwrap();
        let host = lab.add_host("n1", 11).unwrap();
        host.name().clone_into(&mut name.lock().unwrap());
        drop(host);
        panic!("as a failing test does");
    });
    assert!(panicked.is_err());
    let name = name
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    assert!(!name.is_empty() && !namespaces().contains(&name));
}
