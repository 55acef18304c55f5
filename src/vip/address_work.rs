//! An address that is put on its device, or several that are taken off theirs, beside everything else: the kernel may keep each request
//! waiting while another program changes many devices or addresses, and permissions have to be renewed meanwhile.
//!
//! Dropped, it asks the kernel for nothing more. What it has asked for comes to the kernel before all that is asked for later.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::{BoxFuture, join_all};

use super::{
    interface::{Addresses, Device, InterfaceError, Interfaces},
    machine::Target,
};

/// For how long a look at the host's addresses counts: until all VIPs are added that are added together.
const ADDRESSES_LAST: Duration = Duration::from_millis(100);

/// The addresses of this host, and when they were asked for.
#[derive(Clone, Debug)]
pub struct Known {
    at: Instant,
    pub addresses: Arc<Addresses>,
}

impl Known {
    /// What is known, if that counts still; else what the kernel says.
    pub async fn look(
        before: Option<Self>,
        interfaces: &Interfaces,
    ) -> Result<Self, InterfaceError> {
        let at = Instant::now();
        let counts = |known: &Self| at.saturating_duration_since(known.at) < ADDRESSES_LAST;
        match before.filter(counts) {
            Some(known) => Ok(known),
            None => Ok(Self {
                at,
                addresses: Arc::new(interfaces.addresses().await?),
            }),
        }
    }
}

/// One step of it.
pub struct Work(BoxFuture<'static, Step>);

/// What came of a step.
#[derive(Debug)]
pub enum Step {
    /// The device as it is now, and the addresses of the host.
    Looked(Target, Result<(Device, Known), InterfaceError>),
    Added(Target, Result<(), InterfaceError>),
    /// Of each, whether there was something to remove.
    Removed(Vec<(Target, Result<bool, InterfaceError>)>),
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Work").finish_non_exhaustive()
    }
}

impl Work {
    /// Looks at what an address is to be put on.
    pub fn look(
        target: Target,
        device: String,
        known: Option<Known>,
        interfaces: Arc<Interfaces>,
    ) -> Self {
        Self(Box::pin(async move {
            let looked = look_at(&device, known, &interfaces).await;
            Step::Looked(target, looked)
        }))
    }

    /// Puts the address on the device.
    pub fn add(target: Target, device: Device, interfaces: Arc<Interfaces>) -> Self {
        Self(Box::pin(async move {
            let added = interfaces.renew(target.address, &device).await;
            Step::Added(target, added)
        }))
    }

    /// Takes these off their devices, all in the time of one. `done`: those of which the outcome is known.
    pub fn remove(
        mut done: Vec<(Target, Result<bool, InterfaceError>)>,
        there: Vec<(Target, Device, Arc<Interfaces>)>,
    ) -> Self {
        Self(Box::pin(async move {
            let removal = |(target, device, interfaces): (Target, Device, Arc<Interfaces>)| async move {
                let removed = interfaces.remove(target.address, &device).await;
                (target, removed.map(|()| true))
            };
            done.extend(join_all(there.into_iter().map(removal)).await);
            Step::Removed(done)
        }))
    }

    /// Waits for the end of the step. Dropping the future loses nothing; it is not to be asked for again after the end.
    pub async fn ended(&mut self) -> Step {
        (&mut self.0).await
    }
}

async fn look_at(
    device: &str,
    known: Option<Known>,
    interfaces: &Interfaces,
) -> Result<(Device, Known), InterfaceError> {
    let device = interfaces.device(device).await?;
    Ok((device, Known::look(known, interfaces).await?))
}
