//! Takes away what this program leaves on a host: addresses of VIPs, then the fence in front of them.

use std::{collections::BTreeSet, net::IpAddr};

use super::{
    arp_settings,
    fence::{self, FenceError},
    interface::{InterfaceError, Interfaces},
};

/// What was there.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Uninstalled {
    pub addresses: BTreeSet<IpAddr>,
    pub fence: bool,
}

/// Why something was left.
#[derive(Debug, thiserror::Error)]
pub enum UninstallError {
    #[error(transparent)]
    Fence(#[from] FenceError),
    #[error(transparent)]
    Interface(#[from] InterfaceError),
}

/// Must be called within a runtime. Refused while a process owns the fence: without it, an address of that process could answer
/// beyond its lease. Nothing is changed then.
pub async fn uninstall() -> Result<Uninstalled, UninstallError> {
    fence::may_uninstall()?;
    let addresses = Interfaces::open()?.sweep_all().await?;
    arp_settings::restore_all();
    Ok(Uninstalled {
        addresses,
        fence: fence::uninstall()?,
    })
}
