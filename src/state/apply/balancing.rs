//! Changes of pools, backends, listeners, VIPs, forwarders and the DNS policy.

use std::{net::IpAddr, sync::Arc};

use super::{Work, exists, not_found, over_limit};
use crate::{
    model::{
        forwarder::Forwarder,
        label::Label,
        listener::Listener,
        name::Name,
        pool::{Backend, BackendState, Pool},
        snapshot::DnsPolicy,
        vip::Vip,
    },
    state::{
        check::balancing::{
            backend_object, backends_together, forwarder_object, listener_object, pool_object,
            vip_object,
        },
        limits,
        outcome::{Refusal, RefusalKind},
        swap,
    },
};

impl Work<'_> {
    pub(super) fn put_pool(&mut self, pool: &Pool, create: bool) -> Result<(), Refusal> {
        if create && self.next.service.pools.contains_key(&pool.name) {
            let hint = "`pool backend add` changes its backends";
            return Err(exists(pool_object(&pool.name), hint));
        }
        self.store_pool(pool.clone());
        Ok(())
    }

    pub(super) fn delete_pool(&mut self, pool: &Label) -> Result<(), Refusal> {
        self.pool(pool)?;
        self.pools.insert(pool.clone());
        self.changed |= swap(&mut self.next.service.pools, &mut self.next.sum, pool, None);
        Ok(())
    }

    pub(super) fn put_backend(
        &mut self,
        pool: &Label,
        backend: &Backend,
        create: bool,
    ) -> Result<(), Refusal> {
        let mut pool = self.pool(pool)?;
        let taken = |b: &&Backend| b.name == backend.name || b.address == backend.address;
        if create && let Some(other) = pool.backends.iter().find(taken) {
            let problem = match other.name == backend.name {
                true => "it exists already".to_owned(),
                false => format!("backend {} has address {}", other.name, other.address),
            };
            return Err(Refusal::new(
                RefusalKind::AlreadyExists,
                backend_object(&pool.name, &backend.name),
                problem,
                "`pool backend set` changes a backend",
            ));
        }
        pool.backends.retain(|b| b.name != backend.name);
        pool.backends.push(backend.clone());
        self.store_pool(pool);
        Ok(())
    }

    pub(super) fn remove_backend(&mut self, pool: &Label, backend: &Label) -> Result<(), Refusal> {
        let mut pool = self.pool(pool)?;
        let before = pool.backends.len();
        pool.backends.retain(|b| b.name != *backend);
        if pool.backends.len() == before {
            return Err(no_backend(&pool.name, backend));
        }
        self.store_pool(pool);
        Ok(())
    }

    pub(super) fn set_backend(
        &mut self,
        pool: &Label,
        backend: &Label,
        weight: Option<u16>,
        state: Option<BackendState>,
    ) -> Result<(), Refusal> {
        let mut pool = self.pool(pool)?;
        let Some(found) = pool.backends.iter_mut().find(|b| b.name == *backend) else {
            return Err(no_backend(&pool.name, backend));
        };
        found.weight = weight.unwrap_or(found.weight);
        found.state = state.unwrap_or(found.state);
        self.store_pool(pool);
        Ok(())
    }

    fn pool(&self, name: &Label) -> Result<Pool, Refusal> {
        let pool = self.next.service.pools.get(name);
        pool.map(|p| p.as_ref().clone())
            .ok_or_else(|| not_found(pool_object(name), "`pool list` shows those there are"))
    }

    fn store_pool(&mut self, mut pool: Pool) {
        pool.backends.sort_by(|a, b| a.name.cmp(&b.name));
        let name = pool.name.clone();
        self.pools.insert(name.clone());
        let pools = &mut self.next.service.pools;
        self.changed |= swap(pools, &mut self.next.sum, &name, Some(Arc::new(pool)));
    }

    pub(super) fn put_listener(
        &mut self,
        listener: &Listener,
        create: bool,
    ) -> Result<(), Refusal> {
        let name = &listener.name;
        if create && self.next.service.listeners.contains_key(name) {
            let hint = "delete it first, or take another name";
            return Err(exists(listener_object(name), hint));
        }
        self.listeners.insert(name.clone());
        let listeners = &mut self.next.service.listeners;
        let value = Some(Arc::new(listener.clone()));
        self.changed |= swap(listeners, &mut self.next.sum, name, value);
        Ok(())
    }

    pub(super) fn delete_listener(&mut self, listener: &Label) -> Result<(), Refusal> {
        let listeners = &mut self.next.service.listeners;
        if !swap(listeners, &mut self.next.sum, listener, None) {
            let hint = "`listener list` shows those there are";
            return Err(not_found(listener_object(listener), hint));
        }
        self.changed = true;
        Ok(())
    }

    pub(super) fn put_vip(&mut self, vip: &Vip, create: bool) -> Result<(), Refusal> {
        let vips = &mut self.next.service.vips;
        let is_there = vips.contains_key(&vip.address);
        if create && is_there {
            return Err(exists(vip_object(vip.address), ""));
        }
        self.changed |= swap(vips, &mut self.next.sum, &vip.address, Some(vip.clone()));
        if vips.len() > limits::VIPS {
            return Err(over_limit(vip_object(vip.address), "VIPs", limits::VIPS));
        }
        // One that goes to another interface stays whose it is.
        if !is_there {
            let unclaimed = &mut self.next.service.unclaimed_vips;
            unclaimed.insert(vip.address, self.revision);
        }
        Ok(())
    }

    pub(super) fn delete_vip(&mut self, address: IpAddr) -> Result<(), Refusal> {
        let vips = &mut self.next.service.vips;
        if !swap(vips, &mut self.next.sum, &address, None) {
            let hint = "`vip list` shows those there are";
            return Err(not_found(vip_object(address), hint));
        }
        self.next.service.unclaimed_vips.remove(&address);
        self.changed = true;
        Ok(())
    }

    pub(super) fn claim_vips(&mut self, vips: &[(IpAddr, u64)]) -> Result<(), Refusal> {
        let unclaimed = &mut self.next.service.unclaimed_vips;
        for (address, added_at) in vips {
            if unclaimed.get(address) == Some(added_at) {
                unclaimed.remove(address);
                self.changed = true;
            }
        }
        Ok(())
    }

    pub(super) fn put_forwarder(
        &mut self,
        forwarder: &Forwarder,
        create: bool,
    ) -> Result<(), Refusal> {
        let suffix = &forwarder.suffix;
        let forwarders = &mut self.next.service.forwarders;
        if create && forwarders.contains_key(suffix) {
            return Err(exists(forwarder_object(suffix), "delete it first"));
        }
        let value = Some(Arc::new(forwarder.clone()));
        self.changed |= swap(forwarders, &mut self.next.sum, suffix, value);
        if forwarders.len() > limits::FORWARDERS {
            let object = forwarder_object(suffix);
            return Err(over_limit(object, "forwarders", limits::FORWARDERS));
        }
        Ok(())
    }

    pub(super) fn delete_forwarder(&mut self, suffix: &Name) -> Result<(), Refusal> {
        let forwarders = &mut self.next.service.forwarders;
        if !swap(forwarders, &mut self.next.sum, suffix, None) {
            let hint = "`forwarder list` shows those there are";
            return Err(not_found(forwarder_object(suffix), hint));
        }
        self.changed = true;
        Ok(())
    }

    pub(super) fn put_dns_policy(&mut self, policy: &DnsPolicy) -> Result<(), Refusal> {
        if self.next.service.dns != *policy {
            self.next.service.dns = policy.clone();
            self.changed = true;
        }
        Ok(())
    }

    /// Holds what must be true of pools and listeners together.
    pub(super) fn judge_balancing(&self) -> Result<(), Refusal> {
        let service = &self.next.service;
        for name in &self.pools {
            match service.pools.get(name) {
                Some(pool) => backends_together(pool)?,
                None => self.judge_unused(name)?,
            }
        }
        for name in &self.listeners {
            if let Some(listener) = service.listeners.get(name) {
                self.judge_listener(listener)?;
            }
        }
        if service.pools.len() > limits::POOLS {
            return Err(over_limit("pools", "pools", limits::POOLS));
        }
        let backends = || service.pools.values().map(|p| p.backends.len());
        if !self.pools.is_empty() && backends().sum::<usize>() > limits::BACKENDS {
            let what = "backends in all pools";
            return Err(over_limit("pools", what, limits::BACKENDS));
        }
        if service.listeners.len() > limits::LISTENERS {
            return Err(over_limit("listeners", "listeners", limits::LISTENERS));
        }
        Ok(())
    }

    fn judge_unused(&self, pool: &Label) -> Result<(), Refusal> {
        let mut listeners = self.next.service.listeners.values();
        let Some(user) = listeners.find(|l| l.pool == *pool) else {
            return Ok(());
        };
        Err(Refusal::new(
            RefusalKind::Conflict,
            pool_object(pool),
            format!("listener {} uses it", user.name),
            format!("delete the listener first: `listener delete {}`", user.name),
        ))
    }

    fn judge_listener(&self, listener: &Listener) -> Result<(), Refusal> {
        let service = &self.next.service;
        if !service.pools.contains_key(&listener.pool) {
            return Err(Refusal::new(
                RefusalKind::NotFound,
                listener_object(&listener.name),
                format!("its pool {} does not exist", listener.pool),
                format!("`pool create {}` makes it", listener.pool),
            ));
        }
        let clashes =
            |other: &&Arc<Listener>| other.name != listener.name && listener.clashes_with(other);
        let Some(other) = service.listeners.values().find(clashes) else {
            return Ok(());
        };
        Err(Refusal::new(
            RefusalKind::Conflict,
            listener_object(&listener.name),
            format!("listener {} has port {} already", other.name, other.port),
            "take another port, or another address on both",
        ))
    }
}

fn no_backend(pool: &Label, backend: &Label) -> Refusal {
    let hint = format!("`pool show {pool}` lists those it has");
    not_found(backend_object(pool, backend), hint)
}
