//! The log: levels, formats and targets as `node.toml` says, changeable by a reload.

use std::{
    io::{self, Write},
    path::Path,
};

use tracing::{Level, Metadata};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    EnvFilter, Layer, Registry, fmt::MakeWriter, layer::SubscriberExt, reload,
    util::SubscriberInitExt,
};

use super::{
    journald::{self, Journald},
    lost::{Counted, Lost},
    rotate::{Reopen, RotatingFile},
    syslog::{self, Syslog},
};
use crate::config::node::{LogFormat, LogTarget, Logging};

/// Lines that wait for the writer; more are dropped and counted.
pub const QUEUE_LINES: usize = 16_384;

/// Why the log cannot be written as configured.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("log {target}: {source}")]
    Target { target: String, source: io::Error },
    #[error("log level {level:?}: {cause}")]
    Level { level: String, cause: String },
    #[error("the log is set up already")]
    Twice,
}

/// The running log. Dropping it writes what waits and ends the writer.
pub struct Log {
    settings: Logging,
    filter: reload::Handle<EnvFilter, Registry>,
    reopen: Option<Reopen>,
    writer: Writer,
}

impl Log {
    /// Sets up the log of this process.
    ///
    /// # Errors
    /// When the target cannot be opened, or a log was set up before.
    pub fn start(settings: &Logging) -> Result<Self, LogError> {
        let (filter, handle) = reload::Layer::new(filter(&settings.level)?);
        let Opened {
            writer,
            reopen,
            problem,
        } = open(&settings.target)?;
        tracing_subscriber::registry()
            .with(filter)
            .with(layer(settings, writer.queue.clone()))
            .try_init()
            .map_err(|_| LogError::Twice)?;
        if let Some(problem) = problem {
            tracing::warn!("{problem}");
        }
        Ok(Self {
            settings: settings.clone(),
            filter: handle,
            reopen,
            writer,
        })
    }

    /// Takes over what can change while running, and opens the log file again. Returns what took effect and what needs a restart.
    pub fn reload(&mut self, settings: &Logging) -> Result<(Vec<String>, Vec<String>), LogError> {
        let (mut applied, mut needs_restart) = (Vec::new(), Vec::new());
        if settings.level != self.settings.level {
            let level = settings.level.clone();
            let gone = |e: reload::Error| LogError::Level {
                level: settings.level.clone(),
                cause: e.to_string(),
            };
            self.filter.reload(filter(&level)?).map_err(gone)?;
            applied.push(format!("logging.level = {level:?}"));
            self.settings.level = level;
        }
        if let Some(reopen) = &self.reopen {
            reopen.request();
            applied.push("log file opened again".into());
        }
        if settings.format != self.settings.format {
            needs_restart.push("logging.format".into());
        }
        needs_restart.extend(self.settings.target.differing_keys(&settings.target));
        Ok((applied, needs_restart))
    }

    /// Lines lost: the writer was too slow for them, or the target did not take them.
    pub fn dropped_lines(&self) -> u64 {
        self.writer.dropped_lines()
    }
}

/// The thread that writes, and the way to it. The only place where a target that takes nothing makes anybody wait.
struct Writer {
    queue: NonBlocking,
    /// Lines for which the queue had no room.
    dropped: ErrorCounter,
    /// Lines that the target did not take.
    lost: Lost,
    _worker: WorkerGuard,
}

impl Writer {
    /// `name`: that of the target, for people. `lines`: how many may wait.
    fn start(target: impl Write + Send + 'static, name: String, lines: usize) -> Self {
        let target = Counted::new(target, name);
        let lost = target.lost();
        let (queue, worker) = NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(lines)
            .finish(target);
        Self {
            dropped: queue.error_counter(),
            queue,
            lost,
            _worker: worker,
        }
    }

    fn dropped_lines(&self) -> u64 {
        self.dropped.dropped_lines() as u64 + self.lost.count()
    }
}

/// A target that is being written to.
struct Opened {
    writer: Writer,
    reopen: Option<Reopen>,
    /// What is to be said of it first.
    problem: Option<String>,
}

/// Makes the writer of each event; for syslog it puts the priority of the event's level in front.
#[derive(Clone)]
struct Lines {
    queue: NonBlocking,
    syslog: bool,
}

/// Writes one event as one entry of the queue.
struct Line {
    queue: NonBlocking,
    header: Option<String>,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        self.line(Level::INFO)
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Line {
        self.line(*meta.level())
    }
}

impl Lines {
    fn line(&self, level: Level) -> Line {
        Line {
            queue: self.queue.clone(),
            header: self.syslog.then(|| syslog::header(level)),
        }
    }
}

impl Write for Line {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        match self.header.take() {
            None => self.queue.write(text),
            Some(header) => {
                self.queue
                    .write_all(&[header.as_bytes(), text.trim_ascii_end()].concat())?;
                Ok(text.len())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.queue.flush()
    }
}

/// Opens the target. A local daemon that does not answer must not keep names and services from being served: standard
/// error takes its place, and the text says so.
fn open(target: &LogTarget) -> Result<Opened, LogError> {
    let daemon = |name: &str, socket: &str, problem: Option<io::Error>| {
        problem.map(|error| {
            format!(
                "logging.target = \"{name}\": no daemon answers at {socket} ({error}); the log goes to standard error until one does"
            )
        })
    };
    let mut reopen = None;
    let (writer, problem) = match target {
        LogTarget::Journald => {
            let (journald, problem) = Journald::open(Path::new(journald::SOCKET));
            let writer = Writer::start(journald, "journald".into(), QUEUE_LINES);
            (writer, daemon("journald", journald::SOCKET, problem))
        }
        LogTarget::Syslog => {
            let (syslog, problem) = Syslog::open(Path::new(syslog::SOCKET));
            let writer = Writer::start(syslog, "syslog".into(), QUEUE_LINES);
            (writer, daemon("syslog", syslog::SOCKET, problem))
        }
        LogTarget::Stderr => {
            let writer = Writer::start(io::stderr(), "stderr".into(), QUEUE_LINES);
            (writer, None)
        }
        LogTarget::File {
            path,
            max_size,
            keep,
        } => {
            let name = path.display().to_string();
            let file = match RotatingFile::open(path, *max_size, *keep) {
                Ok(file) => file,
                Err(source) => {
                    return Err(LogError::Target {
                        target: name,
                        source,
                    });
                }
            };
            reopen = Some(file.reopen_handle());
            (Writer::start(file, name, QUEUE_LINES), None)
        }
    };
    Ok(Opened {
        writer,
        reopen,
        problem,
    })
}

/// Encodes events as the target of `settings` reads them, into the queue of its writer.
fn layer<S>(settings: &Logging, queue: NonBlocking) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    let syslog = match settings.target {
        LogTarget::Journald => return Box::new(journald::Entries::new(queue)),
        LogTarget::Syslog => true,
        LogTarget::Stderr | LogTarget::File { .. } => false,
    };
    format_layer(settings.format, Lines { queue, syslog })
}

fn format_layer<S>(format: LogFormat, lines: Lines) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    let layer = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_writer(lines.clone());
    match (format, lines.syslog) {
        (LogFormat::Json, _) => Box::new(layer.json().flatten_event(true)),
        (LogFormat::Text, false) => Box::new(layer),
        // Time and severity are in the header.
        (LogFormat::Text, true) => Box::new(layer.without_time().with_level(false)),
    }
}

/// The consensus library reports every heartbeat, and every one that a dead peer misses as a warning; what matters of it
/// is logged by `consensus`. It is quiet unless the setting names it.
fn filter(level: &str) -> Result<EnvFilter, LogError> {
    const LIBRARY: &str = "openraft";
    let directives = match level.contains(LIBRARY) {
        true => level.to_owned(),
        false => format!("{level},{LIBRARY}=error"),
    };
    EnvFilter::builder()
        .parse(directives)
        .map_err(|e| LogError::Level {
            level: level.to_owned(),
            cause: e.to_string(),
        })
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixDatagram, sync::mpsc, thread, time::Duration};

    use super::*;

    /// A daemon that is stopped goes on being there, and reads nothing.
    #[test]
    fn a_daemon_that_reads_nothing_holds_up_nobody_who_logs() {
        for target in [LogTarget::Journald, LogTarget::Syslog] {
            let dir = tempfile::tempdir().expect("a directory");
            let path = dir.path().join("socket");
            let daemon = UnixDatagram::bind(&path).expect("bound");
            let writer = match target {
                LogTarget::Journald => {
                    Writer::start(Journald::with(&path, io::sink()).0, "journald".into(), 10)
                }
                _ => Writer::start(Syslog::with(&path, io::sink()).0, "syslog".into(), 10),
            };
            let (queue, dropped) = (writer.queue.clone(), writer.dropped.clone());
            let settings = Logging {
                level: "info".into(),
                format: LogFormat::Text,
                target,
            };
            let (done, is_done) = mpsc::channel();
            thread::spawn(move || {
                let subscriber = Registry::default().with(layer(&settings, queue));
                tracing::subscriber::with_default(subscriber, || {
                    let logged = (0..100_000).take_while(|number| {
                        tracing::warn!(number, "a line of the test");
                        dropped.dropped_lines() == 0
                    });
                    // Fails only when the test has given up.
                    let _ = done.send(logged.count());
                });
            });
            let logged = is_done.recv_timeout(Duration::from_secs(60));
            assert!(logged.expect("logging waits for the daemon") < 100_000);
            assert!(writer.dropped_lines() > 0);
            let mut buffer = [0; 1000];
            let length = daemon.recv(&mut buffer).expect("received");
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            assert!(text.contains("a line of the test"), "{text}");
            // Who waits in the writer's thread is sent on by the daemon's end.
            drop(daemon);
            drop(writer);
        }
    }
}
