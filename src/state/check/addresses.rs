//! What the addresses of a new command must keep to beyond their form. Apply does not ask: logs may hold others.
//!
//! None is link-local: such an address names a host only together with a network device, and no command names one. A VIP or
//! a listener there could be bound on no node, and none would be ready. None is IPv4-mapped: it would be a second name of an
//! address, and one target would be taken for two. A VIP is one that a host can have on a network, and that routers pass on: of IPv4 no
//! link-local one either. A backend or an upstream server may be there, next to every node.

use std::net::IpAddr;

use super::{
    balancing::{backend_object, forwarder_object, listener_object, vip_object},
    invalid,
    members::member_object,
};
use crate::{
    model::{
        label::Label,
        listener::ListenAddress,
        network::{is_link_local, is_link_local_v4, no_address_of_a_host},
        pool::Backend,
        vip::Vip,
    },
    state::{
        command::{Change, NewMember},
        outcome::Refusal,
    },
};

/// Checks the addresses of one change.
pub fn change(change: &Change) -> Result<(), Refusal> {
    match change {
        Change::PutPool { pool, .. } => {
            let mut backends = pool.backends.iter();
            backends.try_for_each(|one| backend(&pool.name, one))
        }
        Change::PutBackend {
            pool, backend: one, ..
        } => backend(pool, one),
        Change::PutListener { listener, .. } => match listener.address {
            ListenAddress::EveryNode => Ok(()),
            ListenAddress::Address(ip) => refuse(|| listener_object(&listener.name), ip),
        },
        Change::PutVip { vip: one, .. } => vip(one),
        Change::PutForwarder { forwarder, .. } => {
            let mut upstreams = forwarder.upstreams.iter();
            upstreams.try_for_each(|one| refuse(|| forwarder_object(&forwarder.suffix), one.ip()))
        }
        Change::InitCluster { first: new, .. } | Change::AddMember { member: new, .. } => {
            member(new)
        }
        _ => Ok(()), // without addresses, or with those of what there is already
    }
}

fn backend(pool: &Label, backend: &Backend) -> Result<(), Refusal> {
    refuse(|| backend_object(pool, &backend.name), backend.address.ip())
}

fn member(member: &NewMember) -> Result<(), Refusal> {
    let mut addresses = [member.raft_address, member.api_address].into_iter();
    addresses.try_for_each(|one| refuse(|| member_object(&member.name), one.ip()))
}

/// Whether it is a loopback address, which the local cluster's VIPs are, depends on the cluster: it is judged elsewhere.
fn vip(vip: &Vip) -> Result<(), Refusal> {
    let object = || vip_object(vip.address);
    refuse(object, vip.address)?;
    if is_link_local_v4(vip.address) {
        return Err(invalid(
            object(),
            format!(
                "{} is link-local (169.254.0.0/16, RFC 3927): hosts take such addresses by themselves, and no router passes on what is \
                 sent there",
                vip.address
            ),
            "take a free address of the clients' network",
        ));
    }
    match no_address_of_a_host(vip.address) {
        None => Ok(()),
        Some(why) => Err(invalid(
            object(),
            format!("{} {why}", vip.address),
            "take a free address of the clients' network",
        )),
    }
}

fn refuse(object: impl Fn() -> String, ip: IpAddr) -> Result<(), Refusal> {
    if is_link_local(ip) {
        return Err(invalid(
            object(),
            format!("{ip} is link-local: it names a host only together with a network device"),
            "use a global or unique local address, such as one of fd00::/8",
        ));
    }
    let plain = ip.to_canonical();
    if plain != ip {
        return Err(invalid(
            object(),
            format!("{ip} is an IPv4-mapped address: a second name of {plain}"),
            format!("write {plain}"),
        ));
    }
    Ok(())
}
