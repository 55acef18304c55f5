//! Asks a service again and again, as a client would, and keeps when it was answered.

use std::{
    io::{self, IoSliceMut, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt},
        time::TimeSpec,
    },
    time::ClockId,
};

use crate::lab::{LabError, namespace::Namespace};

/// A page takes milliseconds; a question that was lost must not hide for long that the next one would be answered.
const PAGE_PATIENCE: Duration = Duration::from_millis(100);

/// How often who waits for answers looks whether it is to end.
const LOOK_UP_EVERY: Duration = Duration::from_millis(50);

/// An answer that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub at: Instant,
    /// Whether a question that was asked before had no answer yet.
    pub more_asked: bool,
}

/// When a service was asked and when it answered, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    pub answers: Vec<Answer>,
    /// Of every question, where the prober does not wait for one answer before it asks again.
    asked: Vec<Instant>,
    /// What lies between two questions, if they are asked in time.
    interval: Duration,
}

impl Answers {
    /// The longest time without an answer between `from` and `until`, and when it began. The time after the last answer counts. That
    /// nothing was asked, though it was time to, does not: a silence in which every question was answered begins at the instant at
    /// which the next one was due, seen from when it was asked.
    pub fn longest_gap(&self, from: Instant, until: Instant) -> (Instant, Duration) {
        let before = self.answers.iter().rev().find(|answer| answer.at <= from);
        let inside = self.answers.iter().filter(|a| from < a.at && a.at < until);
        let mut begins = before.map_or(from, |answer| self.silent_from(answer));
        let mut longest = (begins, Duration::ZERO);
        for (at, next) in inside
            .map(|answer| (answer.at, self.silent_from(answer)))
            .chain([(until, until)])
        {
            let gap = at.saturating_duration_since(begins);
            if gap > longest.1 {
                longest = (begins, gap);
            }
            begins = next;
        }
        longest
    }

    /// When a silence behind this answer begins.
    fn silent_from(&self, answer: &Answer) -> Instant {
        if answer.more_asked {
            return answer.at;
        }
        let next = self.asked.partition_point(|asked| *asked <= answer.at);
        let due = self
            .asked
            .get(next)
            .and_then(|asked| asked.checked_sub(self.interval));
        due.map_or(answer.at, |due| due.max(answer.at))
    }

    /// Whether the last answer is younger than `age` at `now`.
    pub fn is_live(&self, now: Instant, age: Duration) -> bool {
        self.answers.last().is_some_and(|last| now - last.at < age)
    }
}

/// A prober at work. `finish` it; dropping it ends it too.
#[derive(Debug)]
pub struct Prober {
    stop: Arc<AtomicBool>,
    answers: Arc<Mutex<Answers>>,
    threads: Vec<JoinHandle<()>>,
}

impl Prober {
    /// Calls `attempt` until stopped, every `interval`; each `true` is an answer.
    fn start(interval: Duration, mut attempt: impl FnMut() -> bool + Send + 'static) -> Self {
        let mut prober = Self {
            stop: Arc::default(),
            answers: Arc::default(),
            threads: vec![],
        };
        prober.spawn(move |stop, answers| {
            while !stop.load(Ordering::Relaxed) {
                let next = Instant::now() + interval;
                if attempt() {
                    let answer = Answer {
                        at: Instant::now(),
                        more_asked: false,
                    };
                    lock(answers).answers.push(answer);
                }
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
            }
        });
        prober
    }

    fn spawn(&mut self, work: impl FnOnce(&AtomicBool, &Mutex<Answers>) + Send + 'static) {
        let (stop, answers) = (self.stop.clone(), self.answers.clone());
        self.threads.push(std::thread::spawn(move || {
            // What is measured is the service, not how long this thread waits for a processor.
            pontoon::priority::prefer_this_thread();
            work(&stop, &answers);
        }));
    }

    /// DNS over UDP from `client`: asks `server` for the A record of `name`, a positive answer counts.
    ///
    /// It asks every `interval`, answered or not: the kernel counts what a receiver waits in ticks of its own, several milliseconds
    /// each, so one that waited for its answer first would see twice the silence that there is. An answer counts from when the
    /// kernel received it.
    pub fn dns(
        client: &Namespace,
        server: SocketAddr,
        name: &str,
        interval: Duration,
    ) -> Result<Self, LabError> {
        let failed = |source| LabError::Enter {
            namespace: client.name().to_owned(),
            source,
        };
        let asking = client.enter(|| udp_to(server))?.map_err(failed)?;
        let listening = asking.try_clone().map_err(failed)?;
        let look = listening.set_read_timeout(Some(LOOK_UP_EVERY));
        look.map_err(failed)?;
        let stamped = setsockopt(&listening, sockopt::ReceiveTimestampns, &true);
        stamped.map_err(|errno| failed(errno.into()))?;
        let name = name.to_owned();
        let mut prober = Self {
            stop: Arc::default(),
            answers: Arc::default(),
            threads: vec![],
        };
        lock(&prober.answers).interval = interval;
        prober.spawn(move |stop, answers| {
            let mut next = Instant::now();
            while !stop.load(Ordering::Relaxed) {
                let id = {
                    let mut answers = lock(answers);
                    answers.asked.push(Instant::now());
                    id_of(answers.asked.len() - 1)
                };
                // An error is the echo of an earlier question (port unreachable) or the lack of a neighbour: no answer comes.
                let _ = asking.send(&question(id, &name));
                next = (next + interval).max(Instant::now());
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
            }
        });
        prober.spawn(move |stop, answers| {
            let mut buffer = [0; 1500];
            while !stop.load(Ordering::Relaxed) {
                // Nothing within the time, or an echo as above: no answer.
                let Ok((length, at)) = receive(&listening, &mut buffer) else {
                    continue;
                };
                let message = buffer.get(..length).unwrap_or(&[]);
                if let ([high, low, ..], true) = (message, is_positive(message)) {
                    let mut answers = lock(answers);
                    let asked = answers.asked.partition_point(|asked| *asked <= at);
                    let newest = asked.checked_sub(1).map(id_of);
                    let more_asked = newest != Some(u16::from_be_bytes([*high, *low]));
                    answers.answers.push(Answer { at, more_asked });
                }
            }
        });
        Ok(prober)
    }

    /// HTTP from `client`: opens a connection and asks for `/`; a page with status 200 counts.
    pub fn http(client: &Arc<Namespace>, server: SocketAddr, interval: Duration) -> Self {
        let client = client.clone();
        Self::start(interval, move || {
            matches!(client.enter(|| page(server, PAGE_PATIENCE)), Ok(Ok(_)))
        })
    }

    /// Any other operation; `true` is success.
    pub fn of(interval: Duration, attempt: impl FnMut() -> bool + Send + 'static) -> Self {
        Self::start(interval, attempt)
    }

    /// What was answered so far.
    pub fn answers(&self) -> Answers {
        lock(&self.answers).clone()
    }

    /// Waits until answers come.
    pub fn wait_until_live(&self, what: &str, within: Duration) -> Result<(), LabError> {
        let since = Instant::now();
        let is_over =
            |answers: &Answers| answers.answers.last().is_some_and(|last| last.at >= since);
        while !is_over(&lock(&self.answers)) {
            if since.elapsed() > within {
                return Err(LabError::Waited {
                    what: what.to_owned(),
                    seconds: within.as_secs(),
                });
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// The longest time without an answer from then until now, and when it began. Ends the prober.
    pub fn longest_gap_since(self, from: Instant) -> (Instant, Duration) {
        // Before the end, which takes a while.
        let until = Instant::now();
        self.finish().longest_gap(from, until)
    }

    pub fn finish(mut self) -> Answers {
        self.end();
        self.answers()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join(); // its panic has been printed
        }
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.end();
    }
}

fn udp_to(server: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => [0, 0, 0, 0].into(),
        SocketAddr::V6(_) => [0u16; 8].into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    // Connected: an answer from another address than the one asked is none.
    socket.connect(server)?;
    Ok(socket)
}

fn lock(answers: &Mutex<Answers>) -> MutexGuard<'_, Answers> {
    answers.lock().expect("no holder panics")
}

/// The id of the question with this number, from 0.
fn id_of(number: usize) -> u16 {
    u16::try_from(number % (1 << 16)).expect("the remainder")
}

/// The length of the next datagram, and when the kernel received it.
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, Instant)> {
    let mut parts = [IoSliceMut::new(buffer)];
    let mut control = nix::cmsg_space!(TimeSpec);
    let fd = socket.as_raw_fd();
    let message = recvmsg::<()>(fd, &mut parts, Some(&mut control), MsgFlags::empty())?;
    let (now, clock) = (Instant::now(), ClockId::CLOCK_REALTIME.now()?);
    let mut stamps = message.cmsgs()?.filter_map(|part| match part {
        ControlMessageOwned::ScmTimestampns(at) => Some(at),
        _ => None,
    });
    let age = stamps
        .next()
        .map(|at| Duration::from(clock).saturating_sub(at.into()));
    Ok((message.bytes, now - age.unwrap_or_default()))
}

/// A question for the A record of `name` (RFC 1035 section 4).
fn question(id: u16, name: &str) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.').filter(|label| !label.is_empty()) {
        message.push(u8::try_from(label.len()).expect("labels have at most 63 octets"));
        message.extend_from_slice(label.as_bytes());
    }
    message.extend_from_slice(&[0, 0, 1, 0, 1]);
    message
}

/// A response without error that has at least one answer record.
fn is_positive(message: &[u8]) -> bool {
    let [_, _, flags, code, _, _, high, low, ..] = message else {
        return false;
    };
    flags & 0x80 != 0 && code & 0x0f == 0 && (*high, *low) != (0, 0)
}

/// The page at `/`, its body.
pub fn page(server: SocketAddr, patience: Duration) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&server, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    stream.write_all(b"GET / HTTP/1.0\r\nHost: lab\r\n\r\n")?;
    let mut response = String::new();
    stream.take(1 << 16).read_to_string(&mut response)?;
    match response.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.") && head.contains(" 200 ") => {
            Ok(body.to_owned())
        }
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "no page")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(start: Instant, millis: &[u64]) -> Vec<Answer> {
        let answer = |ms: &u64| Answer {
            at: start + Duration::from_millis(*ms),
            more_asked: false,
        };
        millis.iter().map(answer).collect()
    }

    #[test]
    fn the_longest_gap_is_found_wherever_it_lies() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let answers = Answers {
            answers: answered(start, &[0, 10, 20, 320, 330]),
            ..Answers::default()
        };
        for (from, until, begins, gap) in [
            (15, 340, 20, 300),
            (25, 340, 20, 300),   // the fault came a little after the last answer
            (15, 1000, 330, 670), // never came back
            (0, 25, 0, 10),
            (325, 335, 320, 10),
        ] {
            let found = answers.longest_gap(at(from), at(until));
            assert_eq!(
                found,
                (at(begins), Duration::from_millis(gap)),
                "{from} to {until}"
            );
        }
        let silent = Answers::default();
        assert_eq!(
            silent.longest_gap(at(0), at(50)).1,
            Duration::from_millis(50)
        );
        assert!(!silent.is_live(at(0), Duration::from_secs(1)));
    }

    #[test]
    fn only_what_was_asked_for_is_a_silence() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let ms = Duration::from_millis;
        // Asked every 2 ms but for a pause of the prober from 14 to 40.
        let mut answers = Answers {
            answers: answered(start, &[1, 3, 15, 41, 43]),
            asked: [0, 2, 4, 6, 8, 10, 12, 14, 40, 42].map(at).to_vec(),
            interval: ms(2),
        };
        assert_eq!(answers.longest_gap(at(2), at(44)), (at(3), ms(12)));
        assert_eq!(answers.longest_gap(at(16), at(44)), (at(38), ms(3)));
        // What had been asked was not answered before the pause was over.
        answers.answers[2].more_asked = true;
        assert_eq!(answers.longest_gap(at(2), at(44)), (at(15), ms(26)));
        // It was asked again, too, and not answered.
        answers.answers[2].more_asked = false;
        answers.asked.insert(8, at(17));
        assert_eq!(answers.longest_gap(at(2), at(44)), (at(15), ms(26)));
    }

    #[test]
    fn an_answer_came_when_the_kernel_received_it() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        setsockopt(&receiver, sockopt::ReceiveTimestampns, &true).unwrap();
        let sender = udp_to(receiver.local_addr().unwrap()).unwrap();
        sender.send(b"answer").unwrap();
        let mut buffer = [0; 16];
        receiver.peek(&mut buffer).unwrap();
        let there = Instant::now();
        let (length, at) = receive(&receiver, &mut buffer).unwrap();
        assert_eq!(buffer[..length], *b"answer");
        assert!(at <= there, "{:?} after it was there", at - there);
    }

    #[test]
    fn questions_are_well_formed_and_only_positive_answers_count() {
        let asked = question(0x0102, "www.demo.test.");
        assert_eq!(asked.len(), 12 + 15 + 4);
        assert_eq!(asked[12..17], [3, b'w', b'w', b'w', 4]);
        let response = |flags, code, answers| [1, 2, flags, code, 0, 1, 0, answers, 0, 0, 0, 0];
        assert!(is_positive(&response(0x84, 0, 1)));
        assert!(!is_positive(&response(0x84, 3, 1)), "NXDOMAIN");
        assert!(!is_positive(&response(0x84, 0, 0)), "no data");
        assert!(!is_positive(&asked), "a question");
        assert!(!is_positive(&[0; 5]));
    }
}
