//! Where queries to upstreams leave from: the address that the kernel chooses by its routes, unless that is a VIP.
//!
//! What is sent to a VIP goes to its holder of that moment, so a reply would miss us after a move. The VIPs' addresses
//! are deprecated where we set them, so that the kernel takes one only where the device has no other.

use std::net::IpAddr;

use imbl::OrdMap;

use crate::model::vip::Vip;

/// The addresses to use in place of `chosen`, the best first: of our `own` ones the nearest to it, since that is on the same
/// network most likely. None: `chosen` is right, or there is nothing better.
pub(super) fn in_place_of(
    chosen: IpAddr,
    vips: &OrdMap<IpAddr, Vip>,
    own: &[IpAddr],
) -> Vec<IpAddr> {
    if !vips.contains_key(&chosen) {
        return vec![];
    }
    let fits = |own: &IpAddr| {
        own.is_ipv4() == chosen.is_ipv4()
            // A packet that leaves the machine cannot come from a loopback address.
            && own.is_loopback() == chosen.is_loopback()
            && !own.is_unspecified()
            && !vips.contains_key(own)
    };
    let mut fitting: Vec<IpAddr> = own.iter().copied().filter(fits).collect();
    fitting.sort_by_key(|own| bits(*own) ^ bits(chosen));
    fitting
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_choice_stands_unless_it_is_a_vip() {
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        let interface = "vip".parse::<crate::model::label::Label>();
        let interface = interface.expect("a label");
        let vips: OrdMap<IpAddr, Vip> = ["10.0.1.100", "fd00::100", "127.0.0.1"]
            .map(ip)
            .into_iter()
            .map(|address| {
                let interface = interface.clone();
                (address, Vip { address, interface })
            })
            .collect();
        let own = [
            "0.0.0.0",
            "127.0.0.1",
            "127.0.0.2",
            "192.168.0.1",
            "10.0.1.1",
            "10.0.2.1",
            "::1",
            "fd00::1",
        ]
        .map(ip);
        for (chosen, expected) in [
            ("10.0.9.9", &[][..]),
            ("127.0.0.9", &[]),
            ("10.0.1.100", &["10.0.1.1", "10.0.2.1", "192.168.0.1"]),
            ("fd00::100", &["fd00::1"]),
            ("127.0.0.1", &["127.0.0.2"]),
        ] {
            let instead = in_place_of(ip(chosen), &vips, &own);
            let expected: Vec<IpAddr> = expected.iter().map(|text| ip(text)).collect();
            assert_eq!(instead, expected, "{chosen}");
        }
        assert!(in_place_of(ip("10.0.1.100"), &vips, &[ip("fd00::1")]).is_empty());
    }
}
