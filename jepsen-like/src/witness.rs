//! Sees every frame that reaches a host, as the wire shows it.

use std::{
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket,
            sockopt::ReceiveTimeout,
        },
        time::{TimeVal, TimeValLike},
    },
};

use crate::lab::{LabError, namespace::Namespace};

/// A packet socket on a host.
#[derive(Debug)]
pub struct Witness {
    socket: OwnedFd,
}

impl Witness {
    /// Sees what arrives at `host` from now on.
    pub fn on(host: &Namespace) -> Result<Self, LabError> {
        let open = || {
            let all = SockProtocol::EthAll;
            let socket = socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                all,
            )?;
            setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(20))?;
            Ok::<_, Errno>(socket)
        };
        let socket = host.enter(open)?.map_err(|error| LabError::Enter {
            namespace: host.name().to_owned(),
            source: error.into(),
        })?;
        Ok(Self { socket })
    }

    /// The next frame that satisfies `wanted`, if it comes within the time.
    pub fn frame(&self, within: Duration, wanted: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        let deadline = Instant::now() + within;
        let mut buffer = [0; 2048];
        while Instant::now() < deadline {
            let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty());
            match length.ok().and_then(|length| buffer.get(..length)) {
                Some(frame) if wanted(frame) => return Some(frame.to_vec()),
                _ => {}
            }
        }
        None
    }

    /// How many such frames come in the time.
    pub fn count(&self, during: Duration, wanted: impl Fn(&[u8]) -> bool) -> usize {
        let deadline = Instant::now() + during;
        let left = || deadline.saturating_duration_since(Instant::now());
        std::iter::from_fn(|| self.frame(left(), &wanted)).count()
    }
}
