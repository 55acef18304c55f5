//! Looks at connections beside the thread that holds VIPs: for each one the kernel walks through its table of all connections of the
//! host, which takes 4 to 15 ms, and a VIP that is to be taken would wait for it.

use std::{collections::BTreeSet, net::IpAddr, time::Instant};

use tokio::task::JoinHandle;

use super::Connection;
use crate::priority::level_this_thread;

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
    running: JoinHandle<(Instant, Found)>,
}

/// One look at a time.
#[derive(Debug, Default)]
pub struct Looks {
    under_way: Option<UnderWay>,
    /// What was asked for meanwhile.
    next: BTreeSet<IpAddr>,
}

impl Looks {
    /// Has a look at these begun, now or behind the one that is under way; one look is for all that is asked for meanwhile. Must
    /// be called within a runtime, and by a thread of the network namespace that is meant.
    pub fn ask(&mut self, vips: impl IntoIterator<Item = IpAddr>) {
        self.next.extend(vips);
        self.begin();
    }

    fn begin(&mut self) {
        if self.under_way.is_some() || self.next.is_empty() {
            return;
        }
        let vips = std::mem::take(&mut self.next);
        let asked = vips.clone();
        let look = move || {
            level_this_thread();
            let begun = Instant::now();
            let found = super::at(&asked).map_err(|error| error.to_string());
            (begun, found)
        };
        let running = tokio::task::spawn_blocking(look);
        self.under_way = Some(UnderWay { vips, running });
    }

    /// The next look that has ended. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Look {
        let outcome = match &mut self.under_way {
            Some(under_way) => (&mut under_way.running).await,
            None => std::future::pending().await,
        };
        let ended = self.under_way.take();
        self.begin();
        let (begun, found) = outcome.unwrap_or_else(|error| {
            let why = format!("the look at the connections failed: {error}");
            (Instant::now(), Err(why))
        });
        Look {
            begun,
            vips: ended.map(|look| look.vips).unwrap_or_default(),
            found,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn what_is_asked_for_meanwhile_is_looked_at_afterwards_all_at_once() {
        let listener = TcpListener::bind("127.0.53.71:0").unwrap();
        let own = listener.local_addr().unwrap();
        let client = TcpStream::connect(own).unwrap();
        let others: [IpAddr; 2] = [[127, 0, 53, 72].into(), [127, 0, 53, 73].into()];
        let mut looks = Looks::default();
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
