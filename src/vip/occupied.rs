//! The addresses that somebody else has put on the devices of this host: none of them can be held here as a VIP.
//!
//! They are looked at again and again, so that the node says so before it is to hold such a VIP. What cannot be looked up leaves what was
//! known before. Never changes an address. Ends when it is dropped.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};

use super::interface::{InterfaceError, Interfaces};

/// By address, the name of a device that it is on.
pub type Occupied = BTreeMap<IpAddr, String>;

/// Why `address` cannot be held here as a VIP; none: nobody else has it on a device.
pub fn taken(occupied: &Occupied, address: IpAddr) -> Option<InterfaceError> {
    let device = occupied.get(&address)?.clone();
    Some(InterfaceError::Taken { address, device })
}

const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Looks for ever. To be run on a runtime with a clock; the devices are those of the network namespace of the calling thread.
pub async fn run(found: watch::Sender<Occupied>) {
    let mut tick = interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut interfaces, mut fails) = (None, false);
    loop {
        tick.tick().await;
        let looked = look(&mut interfaces).await;
        match (&looked, fails) {
            (Err(error), false) => {
                tracing::warn!(%error, "it cannot be looked whether somebody else has the address of a VIP on this node's devices");
            }
            (Ok(_), true) => tracing::info!("the addresses on this node's devices are known again"),
            _ => {}
        }
        fails = looked.is_err();
        if let Ok(now) = looked {
            found.send_if_modified(|before| {
                let news = *before != now;
                *before = now;
                news
            });
        }
    }
}

/// One that carries no request any more is opened anew.
async fn look(kept: &mut Option<Interfaces>) -> Result<Occupied, InterfaceError> {
    kept.take_if(|interfaces| interfaces.has_ended());
    let interfaces = match kept {
        Some(interfaces) => interfaces,
        None => kept.insert(Interfaces::open()?),
    };
    Ok(interfaces.addresses().await?.foreign())
}

#[cfg(test)]
mod tests {
    use tokio_util::task::AbortOnDropHandle;

    use super::*;
    use crate::vip::namespace::{in_namespace_async, sh};

    const LONG: Duration = Duration::from_secs(20);

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn what_somebody_else_has_put_on_a_device_is_known_until_it_is_gone() {
        in_namespace_async(async || {
            sh("ip link set lo up && ip addr add 10.77.0.7/32 dev lo");
            sh("ip addr add 10.77.0.8/24 dev eth0 && ip addr add 10.77.0.9/32 dev eth1");
            let interfaces = Interfaces::open().unwrap();
            let eth0 = interfaces.device("eth0").await.unwrap();
            interfaces.renew(ip("10.77.0.100"), &eth0).await.unwrap();
            let (sender, mut found) = watch::channel(Occupied::new());
            let looking = AbortOnDropHandle::new(tokio::spawn(run(sender)));
            let on = |address: &str, device: &str| (ip(address), device.to_owned());
            let mut expected = Occupied::from([on("10.77.0.8", "eth0"), on("10.77.0.9", "eth1")]);
            for gone in ["10.77.0.8/24 dev eth0", "10.77.0.9/32 dev eth1"] {
                let same = found.wait_for(|now| *now == expected);
                let same = tokio::time::timeout(LONG, same).await;
                assert!(same.is_ok(), "{expected:?}");
                drop(same);
                sh(&format!("ip addr del {gone}"));
                expected.pop_first();
            }
            let none = found.wait_for(Occupied::is_empty);
            assert!(tokio::time::timeout(LONG, none).await.is_ok());
            drop(looking);
        });
    }
}
