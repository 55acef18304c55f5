//! Looks at connections beside the thread that holds VIPs: for each one the kernel walks through its table of all connections of the
//! host, which takes 4 to 15 ms, and a VIP that is to be taken would wait for it.

use std::{
    collections::BTreeSet,
    fs, io,
    net::IpAddr,
    pin::Pin,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::Connection;
use crate::priority::{idle_this_thread, level_this_thread};

/// Between two walks of a look that nobody waits for. A kernel that does not preempt itself lets nobody else have the processor in
/// the midst of one: questions that wait for it meanwhile are answered between them.
const PAUSE: Duration = Duration::from_millis(10);

type Found = Result<Vec<Connection>, String>;

/// What connections there are at some VIPs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// What was there then is found, unless it has ended.
    pub begun: Instant,
    pub vips: BTreeSet<IpAddr>,
    /// As of `connections::at`, or why it is not known.
    pub found: Found,
}

#[derive(Debug)]
struct UnderWay {
    vips: BTreeSet<IpAddr>,
    running: oneshot::Receiver<(Instant, Found)>,
}

/// Who waits for a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Packets of connections do.
    Soon,
    /// Nobody: it takes no processor that somebody else could use.
    Idle,
}

/// One look at a time.
#[derive(Debug)]
pub struct Looks {
    pace: Pace,
    under_way: Option<UnderWay>,
    /// What was asked for meanwhile.
    next: BTreeSet<IpAddr>,
}

impl Looks {
    pub fn new(pace: Pace) -> Self {
        Self {
            pace,
            under_way: None,
            next: BTreeSet::new(),
        }
    }

    /// Has a look at these begun, now or behind the one that is under way; one look is for all that is asked for meanwhile. Must
    /// be called by a thread of the network namespace that is meant.
    pub fn ask(&mut self, vips: impl IntoIterator<Item = IpAddr>) {
        self.next.extend(vips);
        self.begin();
    }

    fn begin(&mut self) {
        if self.under_way.is_some() || self.next.is_empty() {
            return;
        }
        let vips = std::mem::take(&mut self.next);
        let (asked, pace) = (vips.clone(), self.pace);
        let (answer, running) = oneshot::channel();
        let look = move || {
            let begun = Instant::now();
            // Who asked may have ended.
            let _ = answer.send((begun, look(&asked, pace)));
        };
        // A thread of its own: one that idles may not be permitted to stop doing so. If there can be none, that is what `next` tells.
        let thread = std::thread::Builder::new().name("vip-look".to_owned());
        if let Err(error) = thread.spawn(look) {
            tracing::debug!(%error, "no thread for a look at the connections");
        }
        self.under_way = Some(UnderWay { vips, running });
    }

    /// The next look that has ended. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Look {
        let outcome = match &mut self.under_way {
            Some(under_way) => Pin::new(&mut under_way.running).await,
            None => std::future::pending().await,
        };
        let ended = self.under_way.take();
        self.begin();
        let (begun, found) = outcome.unwrap_or_else(|_| {
            let why = "the thread that looks at the connections could not be started, or ended";
            (Instant::now(), Err(why.to_owned()))
        });
        Look {
            begun,
            vips: ended.map(|look| look.vips).unwrap_or_default(),
            found,
        }
    }
}

/// Before Linux 6.9 a walk has a lock that all walks of the host wait for: there one that is put aside for long would hold up those of others.
fn may_idle(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= (6u32, 9u32),
        _ => false,
    }
}

fn look(vips: &BTreeSet<IpAddr>, pace: Pace) -> Found {
    level_this_thread();
    let between: fn() = match pace {
        Pace::Soon => || {},
        Pace::Idle => {
            if may_idle(&fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default()) {
                idle_this_thread();
            }
            || std::thread::sleep(PAUSE)
        }
    };
    super::at(vips, between).map_err(|error: io::Error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn only_a_kernel_without_the_lock_puts_a_look_aside() {
        for (release, expected) in [
            ("6.18.44-custom\n", true),
            ("6.9.0", true),
            ("7.0", true),
            ("6.8.12-generic", false),
            ("6.1.0-37-amd64", false),
            ("5.16.0", false),
            ("", false),
        ] {
            assert_eq!(may_idle(release), expected, "{release}");
        }
    }

    #[tokio::test]
    async fn what_is_asked_for_meanwhile_is_looked_at_afterwards_all_at_once() {
        let listener = TcpListener::bind("127.0.53.71:0").unwrap();
        let own = listener.local_addr().unwrap();
        let client = TcpStream::connect(own).unwrap();
        let others: [IpAddr; 2] = [[127, 0, 53, 72].into(), [127, 0, 53, 73].into()];
        for pace in [Pace::Soon, Pace::Idle] {
            let mut looks = Looks::new(pace);
            assert!(futures::poll!(Box::pin(looks.next())).is_pending());

            looks.ask([own.ip()]);
            others.iter().for_each(|vip| looks.ask([*vip]));
            let asked = Instant::now();
            let first = looks.next().await;
            assert_eq!(first.vips, [own.ip()].into());
            assert_eq!(first.found, Ok(vec![(client.local_addr().unwrap(), own)]));
            let second = looks.next().await;
            assert_eq!((second.vips, second.found), (others.into(), Ok(vec![])));
            assert!(second.begun >= asked);
            assert!(futures::poll!(Box::pin(looks.next())).is_pending());
        }
    }
}
