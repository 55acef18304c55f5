//! A better place in the kernel's scheduler for the few threads on which others wait: a flood of questions or connections on the
//! same machine must delay neither a heartbeat nor the end of a lease.

/// By how much: a thread that is better by 10 gets about nine times the share of another, where both want the processor all the time.
const BETTER_BY: i32 = 10;

/// Prefers the calling thread to the others of this process. Needs `CAP_SYS_NICE` or `RLIMIT_NICE`; without them the thread stays where
/// it is, and the margins of the lease have to do.
pub fn prefer_this_thread() {
    let usual = of_this_process();
    // The kernel refuses what is beyond the limit instead of giving what is within.
    let _ = (1..=BETTER_BY).rev().any(|by| set(usual - by));
}

/// Takes back what the calling thread has inherited from one that is preferred.
pub fn level_this_thread() {
    let _ = set(of_this_process());
}

/// Lets the calling thread run only while nobody else wants its processor (SCHED_IDLE), for good: going back may not be permitted. Others
/// need not wait for it until the end of its slice, as they do for one that is merely less preferred.
#[expect(unsafe_code, reason = "a system call that nix does not offer")]
pub fn idle_this_thread() {
    let param = libc::sched_param { sched_priority: 0 };
    // SAFETY: reads the structure, which lives; 0 means the calling thread. It is always permitted, and without it the thread is as others.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const param) };
}

/// The nice value of the first thread, which is the one that the operator chose.
#[expect(unsafe_code, reason = "a system call that nix does not offer")]
fn of_this_process() -> i32 {
    // SAFETY: takes integers and returns one; a process finds itself.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, std::process::id()) }
}

/// Sets it for the calling thread. Whether that was permitted.
#[expect(unsafe_code, reason = "a system call that nix does not offer")]
fn set(nice: i32) -> bool {
    // SAFETY: takes integers; on Linux 0 means the calling thread, and what is beyond -20 and 19 is the nearest of them.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(unsafe_code, reason = "a system call that nix does not offer")]
    fn of_this_thread() -> i32 {
        // SAFETY: takes integers and returns one; 0 is the calling thread.
        unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
    }

    #[expect(unsafe_code, reason = "a system call that nix does not offer")]
    fn policy_of_this_thread() -> i32 {
        // SAFETY: takes an integer and returns one; 0 is the calling thread.
        unsafe { libc::sched_getscheduler(0) }
    }

    #[test]
    fn a_thread_that_idles_is_alone_in_it() {
        let usual = policy_of_this_thread();
        let idle = std::thread::spawn(|| {
            idle_this_thread();
            policy_of_this_thread()
        });
        assert_eq!(idle.join().unwrap(), libc::SCHED_IDLE);
        assert_eq!(policy_of_this_thread(), usual);
    }

    #[test]
    fn a_thread_is_preferred_alone_and_what_it_starts_may_go_back() {
        let usual = of_this_process();
        let seen = std::thread::spawn(|| {
            prefer_this_thread();
            let heir = std::thread::spawn(|| {
                let inherited = of_this_thread();
                level_this_thread();
                (inherited, of_this_thread())
            });
            (of_this_thread(), heir.join().unwrap())
        });
        let (preferred, (inherited, level)) = seen.join().unwrap();
        assert_eq!(of_this_process(), usual, "no other thread");
        assert_eq!((inherited, level), (preferred, usual));
        // How much better is what the system permits: nothing, for a plain user.
        let permitted = std::thread::spawn(move || set(usual - 1)).join().unwrap();
        assert_eq!(preferred < usual, permitted && usual > -20);
        assert!(preferred >= usual - BETTER_BY, "{preferred}");
    }
}
