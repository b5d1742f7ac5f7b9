//! Runs inside a sandbox: one forbidden thing a line, with the errno it gave.
#![allow(unsafe_code)]

use std::process::ExitCode;

pub fn main(args: &[String]) -> ExitCode {
    match args.first().map(String::as_str) {
        Some("calls") => calls(),
        Some("newest") => newest(),
        Some("eat") => eat(),
        Some("fork-for-ever") => fork_for_ever(),
        _ => return ExitCode::FAILURE,
    }
    ExitCode::SUCCESS
}

/// Never takes a no for an answer.
fn fork_for_ever() {
    loop {
        // SAFETY: this process has one thread; the child only waits for its end.
        if unsafe { libc::fork() } == 0 {
            loop {
                // SAFETY: takes no arguments.
                unsafe { libc::pause() };
            }
        }
    }
}

#[allow(clippy::print_stdout, reason = "the test reads it")]
fn calls() {
    let zero = [0u8; 128];
    let calls: [(&str, libc::c_long, [libc::c_long; 3]); 26] = [
        ("unshare", libc::SYS_unshare, [libc::CLONE_NEWUSER.into(), 0, 0]),
        ("unshare-mount", libc::SYS_unshare, [libc::CLONE_NEWNS.into(), 0, 0]),
        ("setns", libc::SYS_setns, [0, 0, 0]),
        ("clone-newuser", libc::SYS_clone, [(libc::CLONE_NEWUSER | libc::SIGCHLD).into(), 0, 0]),
        ("clone3", libc::SYS_clone3, [zero.as_ptr() as libc::c_long, 88, 0]),
        ("mount", libc::SYS_mount, [0, 0, 0]),
        ("fsopen", libc::SYS_fsopen, [c"tmpfs".as_ptr() as libc::c_long, 0, 0]),
        ("fsconfig", libc::SYS_fsconfig, [0, 0, 0]),
        ("open_tree", libc::SYS_open_tree, [0, 0, 0]),
        ("move_mount", libc::SYS_move_mount, [0, 0, 0]),
        ("pivot_root", libc::SYS_pivot_root, [0, 0, 0]),
        ("keyctl", libc::SYS_keyctl, [0, 0, 0]),
        ("add_key", libc::SYS_add_key, [0, 0, 0]),
        ("request_key", libc::SYS_request_key, [0, 0, 0]),
        ("io_uring_setup", libc::SYS_io_uring_setup, [1, zero.as_ptr() as libc::c_long, 0]),
        ("bpf", libc::SYS_bpf, [0, 0, 0]),
        ("perf_event_open", libc::SYS_perf_event_open, [0, 0, 0]),
        ("userfaultfd", libc::SYS_userfaultfd, [0, 0, 0]),
        ("kcmp", libc::SYS_kcmp, [1, 1, 0]),
        ("open_by_handle_at", libc::SYS_open_by_handle_at, [0, 0, 0]),
        ("process_vm_writev", libc::SYS_process_vm_writev, [1, 0, 0]),
        ("syslog", libc::SYS_syslog, [3, 0, 0]),
        ("socket-alg", libc::SYS_socket, [38, libc::SOCK_SEQPACKET.into(), 0]),
        ("socket-vsock", libc::SYS_socket, [40, libc::SOCK_STREAM.into(), 0]),
        ("personality", libc::SYS_personality, [0x0040_0000, 0, 0]),
        ("tiocsti", libc::SYS_ioctl, [0, 0x5412, zero.as_ptr() as libc::c_long]),
    ];
    for (name, number, [a, b, c]) in calls {
        // SAFETY: each call is refused before it looks at its arguments; if one is not, it is given null
        // pointers or memory of ours, and the test fails by what it prints.
        let result = unsafe { libc::syscall(number, a, b, c, 0, 0) };
        let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
        if result == 0 && name == "clone-newuser" {
            // The child of a clone that should not have been.
            std::process::abort();
        }
        println!("{name} {}", if result < 0 { errno } else { 0 });
    }
}

/// A number that no kernel has given to a call yet.
#[allow(clippy::print_stdout, reason = "the test reads it")]
fn newest() {
    // SAFETY: no kernel has it, so nothing is done.
    let result = unsafe { libc::syscall(9999, 0, 0, 0, 0, 0) };
    println!("{result} {}", std::io::Error::last_os_error().raw_os_error().unwrap_or(0));
}

/// Touches memory without end.
fn eat() {
    let mut all = Vec::new();
    loop {
        all.push(vec![1u8; 1 << 20]);
        std::hint::black_box(&all);
    }
}
