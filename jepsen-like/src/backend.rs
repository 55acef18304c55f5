//! A web server of one page, for a backend's host.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use crate::lab::{LabError, namespace::Namespace};

/// Answers every request with its name. Ends when dropped.
#[derive(Debug)]
pub struct Backend {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Backend {
    pub fn serve(host: &Namespace, address: SocketAddr, name: &str) -> Result<Self, LabError> {
        let listener = host
            .enter(|| TcpListener::bind(address))?
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .map_err(|source| LabError::Enter {
                namespace: host.name().to_owned(),
                source,
            })?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopping, name) = (stop.clone(), name.to_owned());
        let thread = std::thread::spawn(move || {
            while !stopping.load(Ordering::Relaxed) {
                match listener.accept() {
                    // One after the other: a page is served in microseconds, a silent client is dropped soon.
                    Ok((stream, _)) => drop(answer(stream, &name)),
                    Err(_) => std::thread::sleep(Duration::from_millis(1)),
                }
            }
        });
        Ok(Self {
            address,
            stop,
            thread: Some(thread),
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A health check connects and says nothing: that is no request.
fn answer(mut stream: TcpStream, name: &str) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_millis(200)))?;
    let mut request = [0; 1024];
    if stream.read(&mut request)? == 0 {
        return Ok(());
    }
    let body = format!("this is {name}\n");
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}
