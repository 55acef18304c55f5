//! What the service manager is told, by the protocol of sd_notify(3): one datagram to the socket that it names.

use std::{
    env,
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

/// Asks for this long to stop in, instead of the unit's `TimeoutStopSec` if that is shorter. Without a service manager that
/// listens (`NotifyAccess=main`) it does nothing.
pub fn ask_for(time: Duration) -> io::Result<()> {
    match env::var_os("NOTIFY_SOCKET") {
        Some(socket) => send(&socket, &stopping(time)),
        None => Ok(()),
    }
}

fn stopping(time: Duration) -> String {
    format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={}", time.as_micros())
}

/// A name that begins with `@` is of the abstract namespace.
fn send(socket: &OsStr, message: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(socket),
    }?;
    let from = UnixDatagram::unbound()?;
    from.set_nonblocking(true)?; // the signals that follow must be heard
    from.send_to_addr(message.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(at: &UnixDatagram) -> String {
        let mut buffer = [0; 100];
        let length = at.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn the_manager_is_asked_for_the_time_of_a_long_drain() {
        let message = stopping(Duration::from_secs(3660));
        assert_eq!(message, "STOPPING=1\nEXTEND_TIMEOUT_USEC=3660000000");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), &message).unwrap();
        assert_eq!(heard(&manager), message);
        let name = format!("pontoon-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        send(OsStr::new(&format!("@{name}")), &message).unwrap();
        assert_eq!(heard(&manager), message);
        drop(manager);
        assert!(send(path.join("gone").as_os_str(), &message).is_err());
    }
}
