//! A local daemon that takes log lines as datagrams on a unix socket.

use std::{
    io,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
};

/// The way to a daemon; found again when the daemon was restarted.
///
/// A daemon that is there and reads nothing makes [`Daemon::send`] wait, so only the log's own writer thread may call it.
pub(super) struct Daemon {
    path: PathBuf,
    socket: Option<UnixDatagram>,
}

impl Daemon {
    /// Connects if there is a daemon now, and says why when there is none.
    pub(super) fn open(path: &Path) -> (Self, Option<io::Error>) {
        let mut daemon = Self {
            path: path.to_owned(),
            socket: None,
        };
        let problem = daemon.connect().err();
        (daemon, problem)
    }

    fn connect(&mut self) -> io::Result<()> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(&self.path)?;
        self.socket = Some(socket);
        Ok(())
    }

    /// Sends one message, over a new connection if the one before does not take it.
    ///
    /// # Errors
    /// There is no daemon, or it refuses the message.
    pub(super) fn send(&mut self, message: &[u8]) -> io::Result<()> {
        if let Some(socket) = &self.socket
            && socket.send(message).is_ok()
        {
            return Ok(());
        }
        self.socket = None;
        self.connect()?;
        match &self.socket {
            Some(socket) => socket.send(message).map(|_| ()),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}
