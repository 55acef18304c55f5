//! Virtual addresses: held only by the leader with a fresh lease.
//!
//! `machine` decides: who may hold is its business alone, and it has neither clock nor socket. `interface` puts addresses on
//! devices and watches them, `announce` builds and sends the frames that tell the neighbours, `driver` carries decisions out
//! and reports. Nothing here calls consensus: leadership and the snapshot come in over channels.

pub mod announce;
pub mod driver;
pub mod interface;
pub mod machine;

pub use driver::{Fence, Mode, VipConfig, VipDriver, VipError, VipStatus};
