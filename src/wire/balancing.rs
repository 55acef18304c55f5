//! Pools, backends, health checks, listeners, VIPs, forwarders and the DNS policy.

use std::time::Duration;

use super::{WireError, millis, narrowed, parsed, required, v1};
use crate::model::{
    forwarder::Forwarder,
    health::{HealthCheck, Probe},
    listener::{ListenAddress, Listener},
    pool::{Backend, BackendState, Policy, Pool},
    snapshot::DnsPolicy,
    vip::Vip,
};

impl From<Policy> for v1::Policy {
    fn from(policy: Policy) -> Self {
        match policy {
            Policy::RoundRobin => Self::RoundRobin,
            Policy::LeastConnections => Self::LeastConnections,
            Policy::SourceHash => Self::SourceHash,
        }
    }
}

/// Reads the number of a policy.
pub fn policy(number: i32) -> Result<Policy, WireError> {
    match v1::Policy::try_from(number) {
        Ok(v1::Policy::RoundRobin) => Ok(Policy::RoundRobin),
        Ok(v1::Policy::LeastConnections) => Ok(Policy::LeastConnections),
        Ok(v1::Policy::SourceHash) => Ok(Policy::SourceHash),
        Ok(v1::Policy::Unspecified) => Err(WireError::missing("policy")),
        Err(_) => Err(WireError::new("policy", format!("{number} is not known"))),
    }
}

impl From<BackendState> for v1::BackendState {
    fn from(state: BackendState) -> Self {
        match state {
            BackendState::Enabled => Self::Enabled,
            BackendState::Drain => Self::Drain,
            BackendState::Disabled => Self::Disabled,
        }
    }
}

/// Reads the number of a backend's state; none for "unspecified".
pub fn backend_state(number: i32) -> Result<Option<BackendState>, WireError> {
    match v1::BackendState::try_from(number) {
        Ok(v1::BackendState::Enabled) => Ok(Some(BackendState::Enabled)),
        Ok(v1::BackendState::Drain) => Ok(Some(BackendState::Drain)),
        Ok(v1::BackendState::Disabled) => Ok(Some(BackendState::Disabled)),
        Ok(v1::BackendState::Unspecified) => Ok(None),
        Err(_) => Err(WireError::new("state", format!("{number} is not known"))),
    }
}

impl From<&Backend> for v1::Backend {
    fn from(backend: &Backend) -> Self {
        let Backend {
            name,
            address,
            weight,
            state,
        } = backend;
        Self {
            name: name.to_string(),
            address: address.to_string(),
            weight: (*weight).into(),
            state: v1::BackendState::from(*state).into(),
        }
    }
}

impl TryFrom<v1::Backend> for Backend {
    type Error = WireError;

    fn try_from(message: v1::Backend) -> Result<Self, WireError> {
        let v1::Backend {
            name,
            address,
            weight,
            state,
        } = message;
        Ok(Self {
            name: parsed("backend.name", &name)?,
            address: parsed("backend.address", &address)?,
            weight: narrowed("backend.weight", weight)?,
            state: required("backend.state", backend_state(state)?)?,
        })
    }
}

impl From<&HealthCheck> for v1::HealthCheck {
    fn from(check: &HealthCheck) -> Self {
        let HealthCheck {
            probe,
            interval,
            down_interval,
            timeout,
            rise,
            fall,
        } = check;
        let probe = match probe {
            Probe::TcpConnect => v1::health_check::Probe::TcpConnect(v1::TcpConnectProbe {}),
        };
        Self {
            probe: Some(probe),
            interval_ms: millis(*interval),
            down_interval_ms: millis(*down_interval),
            timeout_ms: millis(*timeout),
            rise: (*rise).into(),
            fall: (*fall).into(),
        }
    }
}

impl TryFrom<v1::HealthCheck> for HealthCheck {
    type Error = WireError;

    fn try_from(message: v1::HealthCheck) -> Result<Self, WireError> {
        let v1::HealthCheck {
            probe,
            interval_ms,
            down_interval_ms,
            timeout_ms,
            rise,
            fall,
        } = message;
        let probe = match required("health_check.probe", probe)? {
            v1::health_check::Probe::TcpConnect(v1::TcpConnectProbe {}) => Probe::TcpConnect,
        };
        Ok(Self {
            probe,
            interval: Duration::from_millis(interval_ms),
            down_interval: Duration::from_millis(down_interval_ms),
            timeout: Duration::from_millis(timeout_ms),
            rise: narrowed("health_check.rise", rise)?,
            fall: narrowed("health_check.fall", fall)?,
        })
    }
}

impl From<&Pool> for v1::Pool {
    fn from(pool: &Pool) -> Self {
        let Pool {
            name,
            policy,
            backends,
            health_check,
            connect_timeout,
            connect_retries,
        } = pool;
        Self {
            name: name.to_string(),
            policy: v1::Policy::from(*policy).into(),
            backends: backends.iter().map(Into::into).collect(),
            health_check: health_check.as_ref().map(Into::into),
            connect_timeout_ms: millis(*connect_timeout),
            connect_retries: (*connect_retries).into(),
        }
    }
}

impl TryFrom<v1::Pool> for Pool {
    type Error = WireError;

    fn try_from(message: v1::Pool) -> Result<Self, WireError> {
        let v1::Pool {
            name,
            policy: number,
            backends,
            health_check,
            connect_timeout_ms,
            connect_retries,
        } = message;
        let backends: Result<Vec<Backend>, _> =
            backends.into_iter().map(Backend::try_from).collect();
        let mut backends = backends?;
        backends.sort_by(|a, b| a.name.cmp(&b.name)); // the order the model promises
        Ok(Self {
            name: parsed("pool.name", &name)?,
            policy: policy(number)?,
            backends,
            health_check: health_check.map(HealthCheck::try_from).transpose()?,
            connect_timeout: Duration::from_millis(connect_timeout_ms),
            connect_retries: narrowed("pool.connect_retries", connect_retries)?,
        })
    }
}

impl From<&Listener> for v1::Listener {
    fn from(listener: &Listener) -> Self {
        let Listener {
            name,
            address,
            port,
            pool,
            idle_timeout,
            max_connections,
        } = listener;
        Self {
            name: name.to_string(),
            address: match address {
                ListenAddress::EveryNode => String::new(),
                ListenAddress::Address(address) => address.to_string(),
            },
            port: (*port).into(),
            pool: pool.to_string(),
            idle_timeout_ms: millis(*idle_timeout),
            max_connections: *max_connections,
        }
    }
}

impl TryFrom<v1::Listener> for Listener {
    type Error = WireError;

    fn try_from(message: v1::Listener) -> Result<Self, WireError> {
        let v1::Listener {
            name,
            address,
            port,
            pool,
            idle_timeout_ms,
            max_connections,
        } = message;
        let address = match address.as_str() {
            "" => ListenAddress::EveryNode,
            text => ListenAddress::Address(parsed("listener.address", text)?),
        };
        Ok(Self {
            name: parsed("listener.name", &name)?,
            address,
            port: narrowed("listener.port", port)?,
            pool: parsed("listener.pool", &pool)?,
            idle_timeout: Duration::from_millis(idle_timeout_ms),
            max_connections,
        })
    }
}

impl From<&Vip> for v1::Vip {
    fn from(vip: &Vip) -> Self {
        let Vip { address, interface } = vip;
        Self {
            address: address.to_string(),
            interface: interface.to_string(),
        }
    }
}

impl TryFrom<v1::Vip> for Vip {
    type Error = WireError;

    fn try_from(message: v1::Vip) -> Result<Self, WireError> {
        let v1::Vip { address, interface } = message;
        Ok(Self {
            address: parsed("vip.address", &address)?,
            interface: parsed("vip.interface", &interface)?,
        })
    }
}

impl From<&Forwarder> for v1::Forwarder {
    fn from(forwarder: &Forwarder) -> Self {
        let Forwarder {
            suffix,
            upstreams,
            timeout,
        } = forwarder;
        Self {
            suffix: suffix.to_string(),
            upstreams: upstreams.iter().map(ToString::to_string).collect(),
            timeout_ms: millis(*timeout),
        }
    }
}

impl TryFrom<v1::Forwarder> for Forwarder {
    type Error = WireError;

    fn try_from(message: v1::Forwarder) -> Result<Self, WireError> {
        let v1::Forwarder {
            suffix,
            upstreams,
            timeout_ms,
        } = message;
        let upstreams: Result<_, _> = upstreams
            .iter()
            .map(|text| parsed("forwarder.upstreams", text))
            .collect();
        Ok(Self {
            suffix: parsed("forwarder.suffix", &suffix)?,
            upstreams: upstreams?,
            timeout: Duration::from_millis(timeout_ms),
        })
    }
}

impl From<&DnsPolicy> for v1::DnsPolicy {
    fn from(policy: &DnsPolicy) -> Self {
        let DnsPolicy { recursion_allowed } = policy;
        Self {
            recursion_allowed: recursion_allowed.iter().map(ToString::to_string).collect(),
        }
    }
}

impl TryFrom<v1::DnsPolicy> for DnsPolicy {
    type Error = WireError;

    fn try_from(message: v1::DnsPolicy) -> Result<Self, WireError> {
        let v1::DnsPolicy { recursion_allowed } = message;
        let networks: Result<_, _> = recursion_allowed
            .iter()
            .map(|text| parsed("dns_policy.recursion_allowed", text))
            .collect();
        Ok(Self {
            recursion_allowed: networks?,
        })
    }
}
