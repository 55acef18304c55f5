//! The log: levels, formats and targets as `node.toml` says, changeable by a reload.

use std::io::{self, Write};

use tracing::{Level, Metadata};
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::{
    EnvFilter, Layer, Registry, fmt::MakeWriter, layer::SubscriberExt, reload,
    util::SubscriberInitExt,
};

use super::{
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
    dropped: Option<tracing_appender::non_blocking::ErrorCounter>,
    _worker: Option<WorkerGuard>,
}

impl Log {
    /// Sets up the log of this process.
    ///
    /// # Errors
    /// When the target cannot be opened, or a log was set up before.
    pub fn start(settings: &Logging) -> Result<Self, LogError> {
        let (filter, handle) = reload::Layer::new(filter(&settings.level)?);
        let (output, sink, problem) = open(&settings.target)?;
        let layer: Box<dyn Layer<_> + Send + Sync> = match output {
            Output::Journald(journald) => Box::new(journald),
            Output::Lines(lines) => format_layer(settings.format, lines),
        };
        tracing_subscriber::registry()
            .with(filter)
            .with(layer)
            .try_init()
            .map_err(|_| LogError::Twice)?;
        if let Some(problem) = problem {
            tracing::warn!("{problem}");
        }
        let Sink {
            worker,
            dropped,
            reopen,
        } = sink;
        Ok(Self {
            settings: settings.clone(),
            filter: handle,
            reopen,
            dropped,
            _worker: worker,
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

    /// Lines lost because the writer was too slow.
    pub fn dropped_lines(&self) -> u64 {
        self.dropped
            .as_ref()
            .map_or(0, |counter| counter.dropped_lines() as u64)
    }
}

enum Output {
    Lines(Lines),
    Journald(tracing_journald::Layer),
}

struct Sink {
    worker: Option<WorkerGuard>,
    dropped: Option<tracing_appender::non_blocking::ErrorCounter>,
    reopen: Option<Reopen>,
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
fn open(target: &LogTarget) -> Result<(Output, Sink, Option<String>), LogError> {
    match target {
        LogTarget::Journald => match tracing_journald::layer() {
            Ok(layer) => {
                let sink = Sink {
                    worker: None,
                    dropped: None,
                    reopen: None,
                };
                let output = Output::Journald(layer.with_priority_mappings(priorities()));
                Ok((output, sink, None))
            }
            Err(error) => {
                let (output, sink) = queue(io::stderr(), false, None);
                let problem = format!(
                    "logging.target = \"journald\": journald does not answer ({error}); the log goes to standard error until the node is restarted"
                );
                Ok((output, sink, Some(problem)))
            }
        },
        LogTarget::Stderr => {
            let (output, sink) = queue(io::stderr(), false, None);
            Ok((output, sink, None))
        }
        LogTarget::Syslog => {
            let (daemon, problem) = Syslog::open(syslog::SOCKET);
            let (output, sink) = queue(daemon, true, None);
            let problem = problem.map(|error| {
                format!(
                    "logging.target = \"syslog\": no daemon answers at {} ({error}); the log goes to standard error until one does",
                    syslog::SOCKET
                )
            });
            Ok((output, sink, problem))
        }
        LogTarget::File {
            path,
            max_size,
            keep,
        } => {
            let file = RotatingFile::open(path, *max_size, *keep).map_err(|source| {
                let target = path.display().to_string();
                LogError::Target { target, source }
            })?;
            let reopen = file.reopen_handle();
            let (output, sink) = queue(file, false, Some(reopen));
            Ok((output, sink, None))
        }
    }
}

/// The severities of syslog for our levels, the same for both daemons.
fn priorities() -> PriorityMappings {
    PriorityMappings {
        error: Priority::Error,
        warn: Priority::Warning,
        info: Priority::Informational,
        debug: Priority::Debug,
        trace: Priority::Debug,
    }
}

fn queue(
    writer: impl Write + Send + 'static,
    syslog: bool,
    reopen: Option<Reopen>,
) -> (Output, Sink) {
    let (queue, worker) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(QUEUE_LINES)
        .finish(writer);
    let dropped = Some(queue.error_counter());
    (
        Output::Lines(Lines { queue, syslog }),
        Sink {
            worker: Some(worker),
            dropped,
            reopen,
        },
    )
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
