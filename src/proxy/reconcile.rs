//! What must change when a new snapshot arrives. Deciding code: two plans in, a list of actions out.
//!
//! Only the difference is acted upon, so a connection notices nothing unless its own listener or backend is named. The order
//! of actions is part of the contract: ports are freed before others are bound, and a pool exists before a listener uses it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use crate::config::reserved::{Owner, Reserved};
use crate::model::{
    health::HealthCheck,
    label::Label,
    listener::{ListenAddress, Listener},
    pool::{Backend, Pool},
    snapshot::Snapshot,
};

/// What this node should be doing, by one snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub pools: BTreeMap<Label, Arc<Pool>>,
    pub listeners: BTreeMap<Label, PlannedListener>,
}

/// A listener and the socket addresses that this node is to bind for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedListener {
    pub listener: Arc<Listener>,
    pub addresses: BTreeSet<SocketAddr>,
    /// Addresses that it would have, were they not needed by the node itself. They are never bound: the order in which
    /// sockets happen to be opened must not decide whether there is DNS.
    pub withheld: BTreeMap<SocketAddr, Owner>,
}

/// Which addresses this node binds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses<'a> {
    /// The node's own service addresses.
    pub own: &'a [IpAddr],
    /// None: VIPs are bound always and beforehand. Some: only these VIPs are, those this node holds now.
    pub held: Option<&'a BTreeSet<IpAddr>>,
    /// What the node needs for itself.
    pub reserved: &'a Reserved,
}

/// One step from an old plan to a new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Stop accepting; connections go on.
    Unbind {
        listener: Label,
        address: SocketAddr,
    },
    /// Its connections go on until they end or the drain time is over.
    RemoveListener { listener: Label },
    /// Its connections go on until they end or the drain time is over.
    RemoveBackend { pool: Label, backend: Label },
    /// Its backends were removed before.
    RemovePool { pool: Label },
    /// Its backends are added after.
    AddPool { pool: Arc<Pool> },
    /// Another policy, connect timeout or number of retries.
    ChangePool { pool: Arc<Pool> },
    /// Another definition of the health check for the backends that stay.
    ChangeCheck {
        pool: Label,
        check: Option<HealthCheck>,
    },
    AddBackend {
        pool: Label,
        backend: Backend,
        check: Option<HealthCheck>,
    },
    /// Another weight or state, same address.
    ChangeBackend { pool: Label, backend: Backend },
    /// Its addresses are bound after.
    AddListener { listener: Arc<Listener> },
    /// Another pool, timeout or limit; holds for connections accepted from now on.
    ChangeListener { listener: Arc<Listener> },
    Bind {
        listener: Label,
        address: SocketAddr,
    },
}

impl Plan {
    pub fn new(snapshot: &Snapshot, addresses: &Addresses<'_>) -> Self {
        let vips = snapshot.vip_addresses();
        let planned = |(name, listener): (&Label, &Arc<Listener>)| {
            let mut wanted = addresses.of(listener, &vips);
            let withheld = addresses.withhold(&mut wanted, &vips);
            let planned = PlannedListener {
                listener: listener.clone(),
                addresses: wanted,
                withheld,
            };
            (name.clone(), planned)
        };
        Self {
            pools: snapshot
                .pools
                .iter()
                .map(|(name, pool)| (name.clone(), pool.clone()))
                .collect(),
            listeners: snapshot.listeners.iter().map(planned).collect(),
        }
    }
}

impl Plan {
    /// Addresses of all listeners that this node is to bind.
    pub fn address_count(&self) -> usize {
        let listeners = self.listeners.values();
        listeners.map(|planned| planned.addresses.len()).sum()
    }
}

impl Addresses<'_> {
    fn of(&self, listener: &Listener, vips: &[IpAddr]) -> BTreeSet<SocketAddr> {
        let bindable: Vec<IpAddr> = match self.held {
            None => vips.to_vec(),
            Some(held) => vips.iter().copied().filter(|v| held.contains(v)).collect(),
        };
        let mut addresses: BTreeSet<_> = listener
            .bind_addresses(self.own, &bindable)
            .into_iter()
            .collect();
        if let ListenAddress::Address(address) = listener.address
            && !self.own.contains(&address)
            && !bindable.contains(&address)
        {
            // Another node's, a VIP that is not bound now, or nobody's: it is not here.
            addresses.clear();
        }
        drop_those_under_a_wildcard(&mut addresses);
        addresses
    }

    /// Takes out what the node itself needs.
    fn withhold(
        &self,
        addresses: &mut BTreeSet<SocketAddr>,
        vips: &[IpAddr],
    ) -> BTreeMap<SocketAddr, Owner> {
        let owner = |address: &SocketAddr| {
            let on_vip = vips.contains(&address.ip());
            let vip_owner = self.reserved.vip_owner(address.port()).filter(|_| on_vip);
            vip_owner.or_else(|| self.reserved.owner(*address))
        };
        let withheld: BTreeMap<SocketAddr, Owner> = addresses
            .iter()
            .filter_map(|address| Some((*address, owner(address)?)))
            .collect();
        addresses.retain(|address| !withheld.contains_key(address));
        withheld
    }
}

/// A socket on the wildcard address takes what is sent to every address, so no other may be bound beside it.
fn drop_those_under_a_wildcard(addresses: &mut BTreeSet<SocketAddr>) {
    let has_wildcard = |v4: bool| {
        addresses
            .iter()
            .any(|a| a.is_ipv4() == v4 && a.ip().is_unspecified())
    };
    let (v4, v6) = (has_wildcard(true), has_wildcard(false));
    let is_covered = |a: &SocketAddr| (a.is_ipv4() && v4) || (a.is_ipv6() && v6);
    addresses.retain(|a| a.ip().is_unspecified() || !is_covered(a));
}

/// The steps that lead from `old` to `new`, in the order in which they are to be done.
pub fn reconcile(old: &Plan, new: &Plan) -> Vec<Action> {
    let mut actions = Vec::new();
    unbind(old, new, &mut actions);
    remove(old, new, &mut actions);
    for (name, pool) in &new.pools {
        match old.pools.get(name) {
            Some(before) if Arc::ptr_eq(before, pool) => {}
            before => change_pool(before, pool, &mut actions),
        }
    }
    for (name, planned) in &new.listeners {
        let listener = planned.listener.clone();
        match old.listeners.get(name) {
            None => actions.push(Action::AddListener { listener }),
            Some(before) if before.listener != listener => {
                actions.push(Action::ChangeListener { listener });
            }
            Some(_) => {}
        }
    }
    bind(old, new, &mut actions);
    actions
}

fn sockets(plan: &Plan) -> BTreeSet<(&Label, SocketAddr)> {
    plan.listeners
        .iter()
        .flat_map(|(name, planned)| planned.addresses.iter().map(move |a| (name, *a)))
        .collect()
}

fn unbind(old: &Plan, new: &Plan, actions: &mut Vec<Action>) {
    let gone = &sockets(old) - &sockets(new);
    actions.extend(gone.into_iter().map(|(name, address)| Action::Unbind {
        listener: name.clone(),
        address,
    }));
}

fn bind(old: &Plan, new: &Plan, actions: &mut Vec<Action>) {
    let added = &sockets(new) - &sockets(old);
    actions.extend(added.into_iter().map(|(name, address)| Action::Bind {
        listener: name.clone(),
        address,
    }));
}

fn remove(old: &Plan, new: &Plan, actions: &mut Vec<Action>) {
    for name in old.listeners.keys() {
        if !new.listeners.contains_key(name) {
            actions.push(Action::RemoveListener {
                listener: name.clone(),
            });
        }
    }
    for (name, before) in &old.pools {
        let after = new.pools.get(name);
        for backend in &before.backends {
            let stays = after.is_some_and(|pool| is_same_target(pool, backend));
            if !stays {
                actions.push(Action::RemoveBackend {
                    pool: name.clone(),
                    backend: backend.name.clone(),
                });
            }
        }
        if after.is_none() {
            actions.push(Action::RemovePool { pool: name.clone() });
        }
    }
}

/// A backend with another address is another backend, whatever its name.
fn is_same_target(pool: &Pool, backend: &Backend) -> bool {
    pool.backend(&backend.name)
        .is_some_and(|b| b.address == backend.address)
}

fn change_pool(before: Option<&Arc<Pool>>, pool: &Arc<Pool>, actions: &mut Vec<Action>) {
    match before {
        None => actions.push(Action::AddPool { pool: pool.clone() }),
        Some(before) => {
            if !same_settings(before, pool) {
                actions.push(Action::ChangePool { pool: pool.clone() });
            }
            if before.health_check != pool.health_check {
                actions.push(Action::ChangeCheck {
                    pool: pool.name.clone(),
                    check: pool.health_check.clone(),
                });
            }
        }
    }
    for backend in &pool.backends {
        let (pool_name, backend) = (pool.name.clone(), backend.clone());
        match before.and_then(|b| b.backend(&backend.name)) {
            Some(old) if *old == backend => {}
            Some(old) if old.address == backend.address => {
                actions.push(Action::ChangeBackend {
                    pool: pool_name,
                    backend,
                });
            }
            _ => actions.push(Action::AddBackend {
                pool: pool_name,
                backend,
                check: pool.health_check.clone(),
            }),
        }
    }
}

fn same_settings(a: &Pool, b: &Pool) -> bool {
    let settings = |pool: &Pool| {
        let Pool {
            name: _,
            policy,
            backends: _,
            health_check: _,
            connect_timeout,
            connect_retries,
        } = pool;
        (*policy, *connect_timeout, *connect_retries)
    };
    settings(a) == settings(b)
}

/// How many sockets to open on one more of `addresses`, where `open` are open already: one for each worker, or an equal share of
/// `limit` if that is less; 0 when nothing is left of it. The second half of the limit goes out one by one: sockets are not taken
/// back, and however many addresses come one after the other, half as many as the limit have theirs.
pub fn sockets_for_address(workers: usize, limit: usize, addresses: usize, open: usize) -> usize {
    let of_first_half = (limit / 2).saturating_sub(open);
    let share = (limit / addresses.max(1)).min(of_first_half);
    workers.min(share).max(1).min(limit.saturating_sub(open))
}

/// How long to wait before binding an address again that could not be bound `failures` times in a row.
pub fn bind_retry_delay(failures: u32) -> Duration {
    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(5);
    let doublings = failures.saturating_sub(1).min(16);
    (FIRST * 2_u32.pow(doublings)).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{
        pool::{BackendState, Policy},
        vip::Vip,
    };

    fn label(text: &str) -> Label {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn backend(name: &str, address: &str) -> Backend {
        Backend {
            name: label(name),
            address: address.parse().unwrap(),
            weight: 1,
            state: BackendState::Enabled,
        }
    }

    fn pool(name: &str, backends: &[Backend]) -> Pool {
        Pool {
            backends: backends.to_vec(),
            ..Pool::new(label(name))
        }
    }

    fn snapshot(pools: &[Pool], listeners: &[Listener], vips: &[&str]) -> Snapshot {
        Snapshot {
            pools: pools
                .iter()
                .map(|p| (p.name.clone(), Arc::new(p.clone())))
                .collect(),
            listeners: listeners
                .iter()
                .map(|l| (l.name.clone(), Arc::new(l.clone())))
                .collect(),
            vips: vips
                .iter()
                .map(|v| {
                    let vip = Vip {
                        address: ip(v),
                        interface: label("vip"),
                    };
                    (ip(v), vip)
                })
                .collect(),
            ..Snapshot::default()
        }
    }

    fn plan(snapshot: &Snapshot, own: &[&str], held: Option<&[&str]>) -> Plan {
        let own: Vec<_> = own.iter().map(|a| ip(a)).collect();
        let held: Option<BTreeSet<_>> = held.map(|h| h.iter().map(|a| ip(a)).collect());
        let addresses = Addresses {
            own: &own,
            held: held.as_ref(),
            reserved: &Reserved::default(),
        };
        Plan::new(snapshot, &addresses)
    }

    fn bound(plan: &Plan) -> Vec<String> {
        sockets(plan).iter().map(|(_, a)| a.to_string()).collect()
    }

    fn on(address: ListenAddress) -> Listener {
        Listener::new(label("l"), address, 80, label("p"))
    }

    #[test]
    fn sockets_are_shared_out_among_the_addresses() {
        for (workers, limit, addresses, open, expected) in [
            (8, 1000, 10, 0, 8),
            (8, 40, 10, 0, 4),
            (8, 40, 10, 38, 1),
            (8, 10, 100, 0, 1), // the first ten get one
            (8, 10, 100, 10, 0),
            (8, 10, 0, 0, 5),
            (2, 0, 1, 0, 0),
        ] {
            let found = sockets_for_address(workers, limit, addresses, open);
            assert_eq!(found, expected, "{workers} {limit} {addresses} {open}");
        }
    }

    proptest! {
        #[test]
        fn all_addresses_that_fit_have_a_socket(workers in 1..64_usize, limit in 0..500_usize, addresses in 1..600_usize) {
            let mut open = 0;
            for at in 0..addresses {
                let count = sockets_for_address(workers, limit, addresses, open);
                prop_assert!(count <= workers);
                prop_assert_eq!(count == 0, at >= limit);
                open += count;
            }
            prop_assert!(open <= limit);
        }

        #[test]
        fn addresses_that_come_one_after_the_other_have_a_socket_each(workers in 1..64_usize, limit in 0..500_usize) {
            let mut open = 0;
            for addresses in 1..=limit / 2 {
                let count = sockets_for_address(workers, limit, addresses, open);
                prop_assert!(count > 0, "{addresses}: {open} of {limit} are open");
                open += count;
            }
            prop_assert!(open <= limit);
        }
    }

    #[test]
    fn where_a_listener_is_bound() {
        let every = ListenAddress::EveryNode;
        let at = |text: &str| ListenAddress::Address(ip(text));
        // (listener, own addresses, held VIPs if bound only then, expected); the VIPs are 10.0.0.9 and 10.0.0.8
        type Case<'a> = (
            ListenAddress,
            &'a [&'a str],
            Option<&'a [&'a str]>,
            &'a [&'a str],
        );
        let cases: [Case<'_>; 12] = [
            (
                every,
                &["10.0.0.1"],
                None,
                &["10.0.0.1:80", "10.0.0.8:80", "10.0.0.9:80"],
            ),
            (every, &["10.0.0.1"], Some(&[]), &["10.0.0.1:80"]),
            (
                every,
                &["10.0.0.1"],
                Some(&["10.0.0.9"]),
                &["10.0.0.1:80", "10.0.0.9:80"],
            ),
            (every, &["0.0.0.0", "10.0.0.1"], None, &["0.0.0.0:80"]),
            (
                every,
                &["::"],
                None,
                &["10.0.0.8:80", "10.0.0.9:80", "[::]:80"],
            ),
            (at("10.0.0.9"), &["10.0.0.1"], None, &["10.0.0.9:80"]),
            (at("10.0.0.9"), &["10.0.0.1"], Some(&[]), &[]),
            (
                at("10.0.0.9"),
                &["10.0.0.1"],
                Some(&["10.0.0.9"]),
                &["10.0.0.9:80"],
            ),
            // Of another node, or of nobody.
            (at("10.0.0.2"), &["10.0.0.1"], None, &[]),
            (at("10.0.0.2"), &["10.0.0.1"], Some(&[]), &[]),
            (at("10.0.0.1"), &["10.0.0.1"], Some(&[]), &["10.0.0.1:80"]),
            (at("127.0.0.1"), &["10.0.0.1"], Some(&[]), &[]),
        ];
        for (address, own, held, expected) in cases {
            let snapshot = snapshot(&[], &[on(address)], &["10.0.0.9", "10.0.0.8"]);
            let plan = plan(&snapshot, own, held);
            assert_eq!(bound(&plan), expected, "{address:?} {own:?} {held:?}");
        }
    }

    #[test]
    fn what_the_node_needs_is_withheld() {
        let config = crate::config::node::NodeConfig::parse(
            "name = \"n\"\ndata_dir = \"/d\"\n[addresses]\nservice = [\"10.0.0.1\", \"10.0.0.2\"]\ndns = [\"10.0.0.2\"]\ndns_port = 5353\nvip_dns_port = 80\nraft = \"10.0.0.1:1\"\napi = \"10.0.0.1:80\"\n",
        )
        .expect("valid");
        let reserved = Reserved::of(&config);
        let snapshot = snapshot(&[], &[on(ListenAddress::EveryNode)], &["10.0.0.9"]);
        let own = [ip("10.0.0.1"), ip("10.0.0.2")];
        let addresses = Addresses {
            own: &own,
            held: None,
            reserved: &reserved,
        };
        let plan = Plan::new(&snapshot, &addresses);
        assert_eq!(bound(&plan), ["10.0.0.2:80"]);
        let withheld: Vec<_> = plan.listeners[&label("l")]
            .withheld
            .iter()
            .map(|(address, owner)| format!("{address} {owner}"))
            .collect();
        assert_eq!(withheld, ["10.0.0.1:80 the API", "10.0.0.9:80 DNS"]);
    }

    #[test]
    fn ports_are_freed_before_others_are_bound_and_pools_come_before_listeners() {
        let p = pool("p", &[backend("a", "10.1.0.1:1")]);
        let own = ["10.0.0.1"];
        let old = plan(
            &snapshot(
                std::slice::from_ref(&p),
                &[on(ListenAddress::EveryNode)],
                &[],
            ),
            &own,
            None,
        );
        let mut renamed = on(ListenAddress::EveryNode);
        renamed.name = label("m");
        renamed.pool = label("q");
        let q = pool("q", &[backend("a", "10.1.0.1:1")]);
        let new = plan(
            &snapshot(std::slice::from_ref(&q), &[renamed.clone()], &[]),
            &own,
            None,
        );
        let address = "10.0.0.1:80".parse().unwrap();
        let expected = [
            Action::Unbind {
                listener: label("l"),
                address,
            },
            Action::RemoveListener {
                listener: label("l"),
            },
            Action::RemoveBackend {
                pool: label("p"),
                backend: label("a"),
            },
            Action::RemovePool { pool: label("p") },
            Action::AddPool {
                pool: Arc::new(q.clone()),
            },
            Action::AddBackend {
                pool: label("q"),
                backend: q.backends[0].clone(),
                check: q.health_check.clone(),
            },
            Action::AddListener {
                listener: Arc::new(renamed),
            },
            Action::Bind {
                listener: label("m"),
                address,
            },
        ];
        assert_eq!(reconcile(&old, &new), expected);
    }

    #[test]
    fn only_what_changed_is_named() {
        let a = backend("a", "10.1.0.1:1");
        let b = backend("b", "10.1.0.2:1");
        let before = pool("p", &[a.clone(), b.clone()]);
        let plan_of = |p: &Pool| {
            plan(
                &snapshot(std::slice::from_ref(p), &[], &[]),
                &["10.0.0.1"],
                None,
            )
        };
        let to = |after: &Pool| reconcile(&plan_of(&before), &plan_of(after));

        let mut drained = b.clone();
        drained.state = BackendState::Drain;
        let change = Action::ChangeBackend {
            pool: label("p"),
            backend: drained.clone(),
        };
        assert_eq!(to(&pool("p", &[a.clone(), drained])), [change]);

        let mut moved = b.clone();
        moved.address = "10.1.0.3:1".parse().unwrap();
        let actions = to(&pool("p", &[a.clone(), moved.clone()]));
        let expected = [
            Action::RemoveBackend {
                pool: label("p"),
                backend: label("b"),
            },
            Action::AddBackend {
                pool: label("p"),
                backend: moved,
                check: before.health_check.clone(),
            },
        ];
        assert_eq!(actions, expected);

        let mut unchecked = before.clone();
        unchecked.health_check = None;
        let expected = [Action::ChangeCheck {
            pool: label("p"),
            check: None,
        }];
        assert_eq!(to(&unchecked), expected);

        let mut hashed = before.clone();
        hashed.policy = Policy::SourceHash;
        let expected = [Action::ChangePool {
            pool: Arc::new(hashed.clone()),
        }];
        assert_eq!(to(&hashed), expected);
        assert_eq!(to(&before.clone()), []);
    }

    #[test]
    fn binding_is_tried_again_after_a_growing_time() {
        let millis: Vec<_> = [1, 2, 3, 6, 7, 1000]
            .map(|n| bind_retry_delay(n).as_millis())
            .into();
        assert_eq!(millis, [100, 200, 400, 3200, 5000, 5000]);
    }

    /// A plan carried out on plain maps, as the doing part carries it out on sockets.
    #[derive(Default, Debug, PartialEq)]
    struct World {
        pools: BTreeMap<Label, Pool>,
        listeners: BTreeMap<Label, Listener>,
        sockets: BTreeMap<SocketAddr, Label>,
    }

    impl World {
        fn carry_out(&mut self, action: Action) {
            match action {
                Action::Unbind { listener, address } => {
                    assert_eq!(self.sockets.remove(&address), Some(listener));
                }
                Action::RemoveListener { listener } => {
                    assert!(!self.sockets.values().any(|l| *l == listener));
                    self.listeners.remove(&listener).unwrap();
                }
                Action::RemoveBackend { pool, backend } => {
                    let backends = &mut self.pools.get_mut(&pool).unwrap().backends;
                    let at = backends.iter().position(|b| b.name == backend).unwrap();
                    backends.remove(at);
                }
                Action::RemovePool { pool } => {
                    assert_eq!(self.pools.remove(&pool).unwrap().backends, []);
                }
                Action::AddPool { pool } => {
                    let mut empty = Pool::clone(&pool);
                    empty.backends.clear();
                    assert!(self.pools.insert(pool.name.clone(), empty).is_none());
                }
                Action::ChangePool { pool } => {
                    let mine = self.pools.get_mut(&pool.name).unwrap();
                    mine.policy = pool.policy;
                    mine.connect_timeout = pool.connect_timeout;
                    mine.connect_retries = pool.connect_retries;
                }
                Action::ChangeCheck { pool, check } => {
                    self.pools.get_mut(&pool).unwrap().health_check = check;
                }
                Action::AddBackend {
                    pool,
                    backend,
                    check,
                } => {
                    let pool = self.pools.get_mut(&pool).unwrap();
                    assert_eq!(pool.health_check, check);
                    assert!(pool.backend(&backend.name).is_none());
                    pool.backends.push(backend);
                    pool.backends.sort_by(|a, b| a.name.cmp(&b.name));
                }
                Action::ChangeBackend { pool, backend } => {
                    let backends = &mut self.pools.get_mut(&pool).unwrap().backends;
                    let mine = backends.iter_mut().find(|b| b.name == backend.name);
                    *mine.unwrap() = backend;
                }
                Action::AddListener { listener } => {
                    let name = listener.name.clone();
                    let before = self.listeners.insert(name, Listener::clone(&listener));
                    assert!(before.is_none());
                }
                Action::ChangeListener { listener } => {
                    let mine = self.listeners.get_mut(&listener.name).unwrap();
                    *mine = Listener::clone(&listener);
                }
                Action::Bind { listener, address } => {
                    assert!(self.listeners.contains_key(&listener));
                    assert!(self.sockets.insert(address, listener).is_none());
                }
            }
        }
    }

    fn any_pool(name: usize) -> impl Strategy<Value = Pool> {
        let backend = |name: usize| {
            (0..3_u8, 0..3_u16, any::<bool>()).prop_map(move |(host, weight, drained)| Backend {
                name: label(&format!("b{name}")),
                address: SocketAddr::from(([10, 1, name as u8, host], 80)),
                weight,
                state: if drained {
                    BackendState::Drain
                } else {
                    BackendState::Enabled
                },
            })
        };
        let backends = (
            prop::option::of(backend(0)),
            prop::option::of(backend(1)),
            prop::option::of(backend(2)),
        );
        (backends, any::<bool>(), 0..3_u8).prop_map(move |((a, b, c), checked, connect_retries)| {
            Pool {
                backends: [a, b, c].into_iter().flatten().collect(),
                health_check: checked.then(HealthCheck::default),
                connect_retries,
                ..Pool::new(label(&format!("p{name}")))
            }
        })
    }

    fn any_snapshot() -> impl Strategy<Value = Snapshot> {
        let pools = (prop::option::of(any_pool(0)), prop::option::of(any_pool(1)));
        let listener =
            (0..2_usize, 0..2_usize, 1..4_u32).prop_map(|(name, pool, limit)| Listener {
                max_connections: limit,
                ..Listener::new(
                    label(&format!("l{name}")),
                    ListenAddress::EveryNode,
                    80,
                    label(&format!("p{pool}")),
                )
            });
        (pools, prop::option::of(listener), any::<bool>()).prop_map(|((p, q), listener, vip)| {
            let pools: Vec<_> = [p, q].into_iter().flatten().collect();
            let listeners: Vec<_> = listener.into_iter().collect();
            snapshot(&pools, &listeners, if vip { &["10.0.0.9"] } else { &[] })
        })
    }

    proptest! {
        #[test]
        fn the_actions_lead_from_any_plan_to_any_other(steps in prop::collection::vec(any_snapshot(), 1..6)) {
            let mut world = World::default();
            let mut old = Plan::default();
            for step in steps {
                let new = plan(&step, &["10.0.0.1"], None);
                for action in reconcile(&old, &new) {
                    world.carry_out(action);
                }
                let expected = World {
                    pools: new.pools.iter().map(|(n, p)| (n.clone(), Pool::clone(p))).collect(),
                    listeners: new.listeners.iter().map(|(n, l)| (n.clone(), Listener::clone(&l.listener))).collect(),
                    sockets: sockets(&new).into_iter().map(|(n, a)| (a, n.clone())).collect(),
                };
                prop_assert_eq!(&world, &expected);
                old = new;
            }
            prop_assert_eq!(reconcile(&old, &old.clone()), []);
        }
    }
}
