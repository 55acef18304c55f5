//! Virtual addresses: held only by the leader with a fresh lease.
//!
//! `machine` decides: who may hold is its business alone, and it has neither clock nor socket. `interface` puts addresses on
//! devices and watches them, `fence` keeps a node silent whose lease is over, `announce` builds and sends the frames that tell the
//! neighbours; `hands` has all three in hand for `driver`, which carries decisions out and reports. Beside the rest run `renewals` of
//! addresses, `address_work` that takes its time, and looks at `connections`. `failing` decides which VIPs cannot be put on their
//! device here, `first_look` which are not to be claimed yet, `fitness` whether this node can serve at all. `lookout` hears what other
//! hosts say, and judges it by `neighbour` and `reach`. `occupied` finds what somebody else has put on the devices of this host.
//! `netlink` parts the kernel's datagrams into messages.
//! Nothing here calls consensus: leadership and the snapshot come in over channels.

mod address_work;
pub mod announce;
mod arp_settings;
mod connections;
pub mod driver;
mod failing;
pub mod fence;
mod first_look;
pub mod fitness;
mod hands;
pub mod interface;
pub mod lookout;
pub mod machine;
#[cfg(test)]
mod namespace;
pub mod neighbour;
mod netlink;
pub mod notify;
pub mod occupied;
mod reach;
mod renewals;
pub mod uninstall;

pub use driver::{Fence, FenceWish, Mode, VipConfig, VipDriver, VipError, VipStatus};
