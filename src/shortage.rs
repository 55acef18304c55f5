//! What a node has not got left when the system refuses it something: its own want, and no fault of whoever is to be reached. Pure.

use std::io;

/// What this node has not got left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// File descriptors or memory: nothing can be connected to.
    Resources,
    /// Ports for one more connection to this target; there may be some for another (`ip_local_port_range`).
    Ports,
}

impl Shortage {
    /// What to do about it.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Resources => "raise the limit on open files, or add memory",
            Self::Ports => {
                "widen net.ipv4.ip_local_port_range, set net.ipv4.tcp_tw_reuse = 1, or add backends"
            }
        }
    }
}

/// What this node lacks, if a failed attempt to open or to connect speaks of its own limits and not of the peer.
pub fn shortage(error: &io::Error) -> Option<Shortage> {
    match error.raw_os_error()? {
        libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS => Some(Shortage::Resources),
        libc::EADDRNOTAVAIL => Some(Shortage::Ports),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_node_lacks_is_told_apart_from_what_others_say() {
        let of = |number| shortage(&io::Error::from_raw_os_error(number));
        for number in [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOBUFS] {
            assert_eq!(of(number), Some(Shortage::Resources));
        }
        assert_eq!(of(libc::EADDRNOTAVAIL), Some(Shortage::Ports));
        assert_eq!(of(libc::ECONNREFUSED), None);
        assert_eq!(shortage(&io::ErrorKind::TimedOut.into()), None);
        assert_eq!(shortage(&io::ErrorKind::AddrNotAvailable.into()), None);
    }
}
