//! A better place in the kernel's scheduler for the few threads on which others wait: a flood of questions or connections on the
//! same machine must delay neither a heartbeat nor the end of a lease.

/// By how much: a thread that is better by 10 gets about nine times the share of another, where both want the processor all the time.
const BETTER_BY: i32 = 10;

/// Prefers the calling thread to the others of this process. Needs `CAP_SYS_NICE` or `RLIMIT_NICE`; without them the thread stays where
/// it is, and the margins of the lease have to do.
pub fn prefer_this_thread() {
    set(of_this_process() - BETTER_BY);
}

/// Takes back what the calling thread has inherited from one that is preferred.
pub fn level_this_thread() {
    set(of_this_process());
}

/// The nice value of the first thread, which is the one that the operator chose.
#[expect(unsafe_code, reason = "a system call that nix does not offer")]
fn of_this_process() -> i32 {
    // SAFETY: takes integers and returns one; a process finds itself.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, std::process::id()) }
}

#[expect(unsafe_code, reason = "a system call that nix does not offer")]
fn set(nice: i32) {
    // SAFETY: takes integers; on Linux 0 means the calling thread, and what is out of range is the nearest in it.
    let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(unsafe_code, reason = "a system call that nix does not offer")]
    fn of_this_thread() -> i32 {
        // SAFETY: takes integers and returns one; 0 is the calling thread.
        unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
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
        if preferred == usual {
            // Only with the privilege is there more to see.
            assert!(!nix::unistd::geteuid().is_root() || usual == -20);
        } else {
            assert_eq!(preferred, (usual - BETTER_BY).max(-20));
        }
    }
}
