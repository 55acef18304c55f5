//! Some threads of a process stand still while the others go on: what a deadlock or a call that never returns looks like from outside.
//!
//! Signals stop whole processes, and so does the freezer of control groups. A debugger can stop threads: a thread of ours attaches to
//! them as one (ptrace), stops them and holds them. It must be one thread from the first to the last, for only who attached may let go;
//! should it end, however it ends, the kernel lets them go.

use std::{
    collections::BTreeSet,
    fs,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::wait::{WaitPidFlag, WaitStatus, waitpid},
    unistd::Pid,
};

use super::LabError;

/// A thread stops as soon as it runs, or in the middle of a call it waits in.
const PATIENCE: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_millis(5);

/// Threads that stand still until this is dropped.
#[derive(Debug)]
pub struct Frozen {
    threads: BTreeSet<String>,
    release: Option<Sender<()>>,
    holder: Option<JoinHandle<()>>,
}

impl Frozen {
    /// Stops the threads of a process whose names are accepted. An error if there is none.
    pub fn threads(
        pid: Pid,
        is_meant: impl Fn(&str) -> bool + Send + 'static,
    ) -> Result<Self, LabError> {
        let (release, released) = channel();
        let (stopped, has_stopped) = channel();
        let holder = std::thread::Builder::new()
            .name("freeze".to_owned())
            .spawn(move || {
                let mut held = Held::default();
                let names = held.stop_all(pid, &is_meant);
                let _ = stopped.send(names); // nobody waits: it is released below
                held.hold(&released);
            })
            .map_err(|source| LabError::Start {
                command: "freeze".to_owned(),
                source,
            })?;
        let threads = has_stopped.recv().unwrap_or(Err(Errno::ESRCH));
        let frozen = Self {
            threads: threads.as_ref().ok().cloned().unwrap_or_default(),
            release: Some(release),
            holder: Some(holder),
        };
        threads.map_err(|error| LabError::Freeze {
            pid: pid.as_raw(),
            source: error.into(),
        })?;
        Ok(frozen)
    }

    /// The names of the threads that stand still.
    pub fn names(&self) -> &BTreeSet<String> {
        &self.threads
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        drop(self.release.take());
        if let Some(holder) = self.holder.take() {
            let _ = holder.join();
        }
    }
}

/// What the holding thread holds.
#[derive(Default)]
struct Held {
    threads: BTreeSet<Pid>,
}

impl Held {
    /// Again until no thread is new: one that runs may start another while it is being stopped.
    fn stop_all(
        &mut self,
        pid: Pid,
        is_meant: &impl Fn(&str) -> bool,
    ) -> nix::Result<BTreeSet<String>> {
        let mut names = BTreeSet::new();
        loop {
            let mut found = threads_of(pid)?;
            found.retain(|(id, name)| is_meant(name) && !self.threads.contains(id));
            if found.is_empty() {
                break;
            }
            for (id, name) in found {
                match stop(id) {
                    Ok(()) => drop(names.insert(name)),
                    Err(Errno::ESRCH) => continue, // has ended meanwhile
                    Err(error) => return Err(error),
                }
                self.threads.insert(id);
            }
        }
        match names.is_empty() {
            true => Err(Errno::ENOENT),
            false => Ok(names),
        }
    }

    /// Until released. Threads that are killed meanwhile are mourned here, or their process would not end.
    fn hold(&mut self, released: &Receiver<()>) {
        while released.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
            let ended = |id: &Pid| matches!(seen(*id), Ok(status) if is_end(&status));
            self.threads.retain(|id| !ended(id));
        }
        for id in &self.threads {
            let _ = trace(libc::PTRACE_DETACH, *id); // killed just now: as well
            let _ = seen(*id);
        }
    }
}

fn seen(id: Pid) -> nix::Result<WaitStatus> {
    waitpid(id, Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL))
}

fn is_end(status: &WaitStatus) -> bool {
    matches!(status, WaitStatus::Exited(..) | WaitStatus::Signaled(..))
}

fn stop(id: Pid) -> nix::Result<()> {
    trace(libc::PTRACE_SEIZE, id)?;
    trace(libc::PTRACE_INTERRUPT, id)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match seen(id)? {
            WaitStatus::StillAlive if Instant::now() < deadline => std::thread::sleep(TICK),
            WaitStatus::StillAlive => return Err(Errno::ETIMEDOUT),
            status if is_end(&status) => return Err(Errno::ESRCH),
            _ => return Ok(()),
        }
    }
}

fn trace(request: libc::c_uint, id: Pid) -> nix::Result<()> {
    let nothing = std::ptr::null_mut::<libc::c_void>();
    #[expect(unsafe_code, reason = "nix is built without ptrace")]
    // SAFETY: these requests take no address and no data; a wrong id is an error.
    let done = unsafe { libc::ptrace(request, id.as_raw(), nothing, nothing) };
    Errno::result(done).map(drop)
}

/// The threads of a process with their names.
fn threads_of(pid: Pid) -> nix::Result<Vec<(Pid, String)>> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).map_err(|_| Errno::ESRCH)?;
    let named = |entry: fs::DirEntry| {
        let id = entry.file_name().to_str()?.parse().ok()?;
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        Some((Pid::from_raw(id), name.trim_end().to_owned()))
    };
    Ok(entries.flatten().filter_map(named).collect())
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader},
        process::{Child, Command, Stdio},
    };

    use super::*;

    const CHILD: &str = "JEPSEN_TEST_FREEZE";

    struct Killed(Child);

    impl Drop for Killed {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// Not a test of its own: the process whose threads are stopped below. Each of two threads counts on a line of its own.
    #[test]
    fn child() {
        if std::env::var_os(CHILD).is_none() {
            return;
        }
        let count = |name: &'static str| {
            let run = move || {
                for number in 0..100_000 {
                    // Without a lock, which one that stands still might hold.
                    let line = format!("{name} {number}\n");
                    nix::unistd::write(std::io::stderr(), line.as_bytes()).unwrap();
                    std::thread::sleep(Duration::from_millis(2));
                }
            };
            let thread = std::thread::Builder::new().name(name.to_owned());
            thread.spawn(run).unwrap()
        };
        let threads = ["dns-worker", "other"].map(count);
        for thread in threads {
            thread.join().unwrap();
        }
    }

    #[test]
    fn the_threads_that_are_meant_stand_still_and_the_others_go_on() {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "lab::freeze::tests::child", "--nocapture"]);
        child.env(CHILD, "1").stdout(Stdio::null());
        let mut child = Killed(child.stderr(Stdio::piped()).spawn().unwrap());
        let lines = BufReader::new(child.0.stderr.take().unwrap()).lines();
        let mut lines = lines.map_while(Result::ok);
        let mut wait_for = |name: &str| lines.find(|line| line.starts_with(name)).unwrap();
        wait_for("dns-worker");
        let pid = Pid::from_raw(child.0.id().try_into().unwrap());

        let frozen = Frozen::threads(pid, |name| name.starts_with("dns-")).unwrap();
        assert_eq!(*frozen.names(), ["dns-worker".to_owned()].into());
        let state = |name: &str| {
            let all = threads_of(pid).unwrap();
            let (id, _) = all.into_iter().find(|(_, other)| other == name).unwrap();
            let status = fs::read_to_string(format!("/proc/{pid}/task/{id}/status")).unwrap();
            let state = status.lines().find(|line| line.starts_with("State:"));
            state.unwrap().to_owned()
        };
        assert!(
            state("dns-worker").contains("tracing stop"),
            "{}",
            state("dns-worker")
        );
        for _ in 0..50 {
            wait_for("other");
        }
        assert!(!state("other").contains("tracing stop"));
        drop(frozen);
        wait_for("dns-worker");
        assert!(!state("dns-worker").contains("tracing stop"));

        // Killed while it is held, the process ends.
        let frozen = Frozen::threads(pid, |name| name.starts_with("dns-")).unwrap();
        child.0.kill().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while child.0.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(TICK);
        }
        drop(frozen);
        assert!(Frozen::threads(pid, |_| true).is_err());
    }

    #[test]
    fn a_process_without_such_threads_is_an_error() {
        let own = Pid::this();
        let error = Frozen::threads(own, |name| name == "no such thread").unwrap_err();
        assert!(matches!(error, LabError::Freeze { .. }), "{error}");
    }
}
