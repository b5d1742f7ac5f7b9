//! System calls that neither std nor nix wrap. The crate's unsafe code is here and nowhere else.
//!
//! Each function is a thin, checked form of one call: descriptors come as borrowed ones and go as owned
//! ones, every failure is an errno.
#![allow(unsafe_code)]

use nix::errno::Errno;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

type Result<T> = std::result::Result<T, Errno>;

fn check(result: libc::c_long) -> Result<libc::c_long> {
    if result < 0 { Err(Errno::last()) } else { Ok(result) }
}

fn owned(result: libc::c_long) -> Result<OwnedFd> {
    let fd = RawFd::try_from(check(result)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes a descriptor that recvmsg(2) has put into our table.
pub(crate) fn own_received(fd: RawFd) -> OwnedFd {
    // SAFETY: SCM_RIGHTS makes a new descriptor for each one received; nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Descriptor 0, which init was started with as its control socket.
pub(crate) fn take_control_socket() -> Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC on any number is harmless; a closed one gives EBADF.
    owned(unsafe { libc::c_long::from(libc::fcntl(0, libc::F_DUPFD_CLOEXEC, 3)) })
}

/// An empty file in memory that may be executed, and sealed.
pub(crate) fn executable_memory() -> io::Result<File> {
    let name: &CStr = c"keelway-init";
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // MFD_EXEC is needed where vm.memfd_noexec is set and unknown before 6.3.
    // SAFETY: the name is NUL-terminated and lives through the call.
    let mut fd =
        owned(unsafe { libc::syscall(libc::SYS_memfd_create, name.as_ptr(), flags | libc::MFD_EXEC) });
    if matches!(fd, Err(Errno::EINVAL)) {
        // SAFETY: as above.
        fd = owned(unsafe { libc::syscall(libc::SYS_memfd_create, name.as_ptr(), flags) });
    }
    Ok(File::from(fd?))
}

/// Seals such a file: nobody can change it any more. Gives a read-only descriptor of it, since executing a file that is
/// open for writing gives ETXTBSY.
pub(crate) fn seal(memory: &File) -> io::Result<OwnedFd> {
    let seals = libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;
    // SAFETY: fcntl with a descriptor we own and integer arguments.
    check(unsafe { libc::c_long::from(libc::fcntl(memory.as_raw_fd(), libc::F_ADD_SEALS, seals)) })?;
    Ok(File::open(format!("/proc/self/fd/{}", memory.as_raw_fd()))?.into())
}

/// The child's side or the parent's of [`clone_into`].
pub(crate) enum Cloned {
    Child,
    Parent { pid: i32, pidfd: OwnedFd },
}

/// clone3(2) with new namespaces, like fork otherwise. Only for a process with one thread.
pub(crate) fn clone_into(namespaces: libc::c_int) -> Result<Cloned> {
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain data; all zeroes is its empty form.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = namespaces as u64 | libc::CLONE_PIDFD as u64;
    args.pidfd = &raw mut pidfd as u64;
    // A sibling ends as its parent would.
    if namespaces & libc::CLONE_PARENT == 0 {
        args.exit_signal = libc::SIGCHLD as u64;
    }
    // SAFETY: no CLONE_VM and no stack, so the child goes on with a copy of everything as after fork(2);
    // the caller has one thread, so no lock can be held by a thread that the child lacks.
    let pid =
        check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) })?;
    if pid == 0 {
        return Ok(Cloned::Child);
    }
    let pid = i32::try_from(pid).map_err(|_| Errno::EOVERFLOW)?;
    Ok(Cloned::Parent { pid, pidfd: owned(libc::c_long::from(pidfd))? })
}

/// fork(2) for a process with one thread. `None` in the child.
pub(crate) fn fork() -> Result<Option<i32>> {
    // SAFETY: init has one thread, so the child's copy of memory is consistent.
    let pid = check(libc::c_long::from(unsafe { libc::fork() }))?;
    Ok(if pid == 0 { None } else { Some(i32::try_from(pid).map_err(|_| Errno::EOVERFLOW)?) })
}

/// Ends this process at once: no destructors, no buffers.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) takes any number and does not return.
    unsafe { libc::_exit(code) }
}

pub(crate) fn fsopen(kind: &CStr) -> Result<OwnedFd> {
    // SAFETY: NUL-terminated text that lives through the call.
    owned(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), libc::FSOPEN_CLOEXEC) })
}

/// fsconfig(2) with a text value.
pub(crate) fn fsconfig_string(fs: BorrowedFd<'_>, key: &CStr, value: &CStr) -> Result<()> {
    let command = libc::FSCONFIG_SET_STRING;
    // SAFETY: both texts are NUL-terminated and live through the call.
    check(unsafe {
        libc::syscall(libc::SYS_fsconfig, fs.as_raw_fd(), command, key.as_ptr(), value.as_ptr(), 0)
    })?;
    Ok(())
}

pub(crate) fn fsconfig_flag(fs: BorrowedFd<'_>, key: &CStr) -> Result<()> {
    let (command, none) = (libc::FSCONFIG_SET_FLAG, std::ptr::null::<u8>());
    // SAFETY: the key is NUL-terminated; a flag has no value.
    check(unsafe { libc::syscall(libc::SYS_fsconfig, fs.as_raw_fd(), command, key.as_ptr(), none, 0) })?;
    Ok(())
}

/// Makes the file system and a detached mount of it, with `MOUNT_ATTR_*`.
pub(crate) fn fs_mount(fs: BorrowedFd<'_>, attributes: u64) -> Result<OwnedFd> {
    let (command, none) = (libc::FSCONFIG_CMD_CREATE, std::ptr::null::<u8>());
    // SAFETY: the command takes neither key nor value.
    check(unsafe { libc::syscall(libc::SYS_fsconfig, fs.as_raw_fd(), command, none, none, 0) })?;
    // SAFETY: integer arguments only.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, fs.as_raw_fd(), libc::FSMOUNT_CLOEXEC, attributes) })
}

/// A detached copy of the mount at a path descriptor.
pub(crate) fn open_tree_clone(at: BorrowedFd<'_>, recursive: bool) -> Result<OwnedFd> {
    let mut flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH as libc::c_uint;
    if recursive {
        flags |= libc::AT_RECURSIVE as libc::c_uint;
    }
    // SAFETY: the empty path is NUL-terminated.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, at.as_raw_fd(), c"".as_ptr(), flags) })
}

/// Attaches a detached mount onto exactly the file or directory that `target` is open on.
pub(crate) fn move_mount(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<()> {
    const EMPTY_PATHS: libc::c_uint = 0x4 | 0x40;
    let (from, to) = (mount.as_raw_fd(), target.as_raw_fd());
    // SAFETY: the empty paths are NUL-terminated.
    check(unsafe { libc::syscall(libc::SYS_move_mount, from, c"".as_ptr(), to, c"".as_ptr(), EMPTY_PATHS) })?;
    Ok(())
}

/// Makes a detached mount translate ids by the map of a user namespace.
pub(crate) fn mount_idmap(mount: BorrowedFd<'_>, user: BorrowedFd<'_>, recursive: bool) -> Result<()> {
    let userns_fd = u64::try_from(user.as_raw_fd()).map_err(|_| Errno::EBADF)?;
    set_attributes(
        mount,
        libc::mount_attr { attr_set: libc::MOUNT_ATTR_IDMAP, attr_clr: 0, propagation: 0, userns_fd },
        recursive,
    )
}

/// mount_setattr(2) on an open mount.
pub(crate) fn mount_setattr(
    mount: BorrowedFd<'_>,
    set: u64,
    propagation: libc::c_ulong,
    recursive: bool,
) -> Result<()> {
    set_attributes(
        mount,
        libc::mount_attr { attr_set: set, attr_clr: 0, propagation, userns_fd: 0 },
        recursive,
    )
}

fn set_attributes(mount: BorrowedFd<'_>, attributes: libc::mount_attr, recursive: bool) -> Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    let (fd, size) = (mount.as_raw_fd(), size_of::<libc::mount_attr>());
    // SAFETY: the structure lives through the call and its size is given.
    check(unsafe {
        libc::syscall(libc::SYS_mount_setattr, fd, c"".as_ptr(), flags, &raw const attributes, size)
    })?;
    Ok(())
}

/// A new, empty session keyring, so that the process cannot see the one of its owner.
pub(crate) fn new_session_keyring() -> Result<()> {
    let none = std::ptr::null::<libc::c_char>();
    // SAFETY: a null name asks for an anonymous keyring.
    check(unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, none) })?;
    Ok(())
}

/// prctl(2) with integer arguments.
pub(crate) fn prctl(option: libc::c_int, a: libc::c_ulong, b: libc::c_ulong) -> Result<()> {
    // SAFETY: only options whose arguments are integers are used in this crate.
    check(libc::c_long::from(unsafe { libc::prctl(option, a, b, 0 as libc::c_ulong, 0 as libc::c_ulong) }))?;
    Ok(())
}

/// Marks every descriptor from `first` on to be closed by exec.
pub(crate) fn close_on_exec_from(first: libc::c_uint) -> Result<()> {
    // SAFETY: sets a flag on descriptors; closes nothing.
    check(unsafe {
        libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
    })?;
    Ok(())
}

/// Closes every descriptor from `first` on. Only before anything owns one of them, or where no owner is ever asked again.
pub(crate) fn close_from(first: libc::c_uint) -> Result<()> {
    // SAFETY: called at the very start of init, when no object of this process owns such a descriptor, or by a
    // process that ends without a destructor.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) })?;
    Ok(())
}

/// Sets effective, permitted and inheritable capabilities (bit masks).
pub(crate) fn capset(effective: u64, permitted: u64, inheritable: u64) -> Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    // _LINUX_CAPABILITY_VERSION_3
    let header = Header { version: 0x2008_0522, pid: 0 };
    let part = |shift: u32| Data {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let data = [part(0), part(32)];
    // SAFETY: version 3 takes two data elements; both structures live through the call.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) })?;
    Ok(())
}

/// The permitted capabilities of this thread.
fn permitted() -> Result<u64> {
    // _LINUX_CAPABILITY_VERSION_3, this thread
    let header: [u32; 2] = [0x2008_0522, 0];
    let mut data = [0_u32; 6];
    // SAFETY: version 3 writes two elements of three u32 each; both arrays live through the call.
    check(unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), data.as_mut_ptr()) })?;
    Ok(u64::from(data[1]) | u64::from(data[4]) << 32)
}

/// What this thread makes in a file system belongs to these ids from now on; it keeps its powers over files.
pub(crate) fn own_files_as(id: u32) -> Result<()> {
    // SAFETY: integer arguments only. Neither call can say that it failed, but the second gives the id that is set.
    let set = unsafe {
        libc::setfsgid(id);
        libc::setfsuid(id);
        (libc::setfsgid(id), libc::setfsuid(id))
    };
    let wanted = libc::c_int::try_from(id).map_err(|_| Errno::EINVAL)?;
    if set != (wanted, wanted) {
        return Err(Errno::EPERM);
    }
    // Leaving id 0 took the file capabilities out of the effective set.
    let all = permitted()?;
    capset(all, all, 0)
}

/// Loads a seccomp program for this thread. Needs no_new_privs, or CAP_SYS_ADMIN in the user namespace.
pub(crate) fn seccomp(program: &[libc::sock_filter]) -> Result<()> {
    let len = libc::c_ushort::try_from(program.len()).map_err(|_| Errno::EINVAL)?;
    let filter = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: the kernel reads `len` instructions from a slice that is that long, and writes nothing.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const filter) })?;
    Ok(())
}

/// Is the action known to the kernel's seccomp?
pub(crate) fn seccomp_action_available(action: u32) -> Result<()> {
    // SAFETY: the kernel reads one u32.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) })?;
    Ok(())
}

/// Brings the loopback of the current network namespace up.
pub(crate) fn loopback_up() -> Result<()> {
    // SAFETY: integer arguments only.
    let socket = owned(libc::c_long::from(unsafe {
        libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0)
    }))?;
    // SAFETY: ifreq is plain data; all zeroes is its empty form.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request lives through the call and has the form SIOCSIFFLAGS wants.
    check(libc::c_long::from(unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request)
    }))?;
    Ok(())
}

/// pidfd_send_signal(2).
pub(crate) fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<()> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo asks for the one of kill(2).
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, none, 0) })?;
    Ok(())
}

/// CPU time of the dead and waited-for children of this process.
pub(crate) fn children_cpu() -> std::time::Duration {
    // SAFETY: rusage is plain data that getrusage fills in.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a structure that lives through the call.
    if unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage) } != 0 {
        return std::time::Duration::ZERO;
    }
    let of = |t: libc::timeval| {
        std::time::Duration::new(u64::try_from(t.tv_sec).unwrap_or(0), 0)
            + std::time::Duration::from_micros(u64::try_from(t.tv_usec).unwrap_or(0))
    };
    of(usage.ru_utime) + of(usage.ru_stime)
}

/// Puts `fd` at the number `at` (0, 1 or 2), not closed by exec.
pub(crate) fn place_fd(fd: BorrowedFd<'_>, at: RawFd) -> Result<()> {
    debug_assert!((0..=2).contains(&at));
    // SAFETY: 0 to 2 are owned by no object in init.
    check(libc::c_long::from(unsafe { libc::dup2(fd.as_raw_fd(), at) }))?;
    Ok(())
}

/// execve(2). Returns only on failure.
pub(crate) fn exec(path: &CStr, argv: &Vector, env: &Vector) -> Errno {
    // SAFETY: both vectors are arrays of pointers to NUL-terminated texts that end with a null pointer.
    unsafe { libc::execve(path.as_ptr(), argv.pointers.as_ptr(), env.pointers.as_ptr()) };
    Errno::last()
}

/// Texts as exec(2) wants them: pointers into memory that this value owns.
pub(crate) struct Vector {
    pointers: Vec<*const libc::c_char>,
    _texts: Vec<CString>,
}

impl Vector {
    pub(crate) fn new(texts: Vec<CString>) -> Self {
        let pointers = texts.iter().map(|t| t.as_ptr()).chain([std::ptr::null()]).collect();
        Self { pointers, _texts: texts }
    }
}

/// fstatfs(2)'s type of the file system.
pub(crate) fn fs_type(fd: impl AsFd) -> Result<i64> {
    // SAFETY: statfs is plain data that fstatfs fills in.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a structure that lives through the call.
    check(libc::c_long::from(unsafe { libc::fstatfs(fd.as_fd().as_raw_fd(), &raw mut stat) }))?;
    Ok(stat.f_type as i64)
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Code(i32),
    Signal(i32),
}

/// Reaps one dead child: `pid` -1 is any. `None` where none is dead (only without `block`) or there is none.
/// nix's form does not know real-time signals.
pub(crate) fn reap(pid: i32, block: bool) -> Option<(i32, Ended)> {
    loop {
        let mut status = 0;
        // SAFETY: the status lives through the call.
        let pid = unsafe { libc::waitpid(pid, &raw mut status, if block { 0 } else { libc::WNOHANG }) };
        if pid < 0 && Errno::last() == Errno::EINTR {
            continue;
        }
        if pid <= 0 {
            return None;
        }
        return Some(if libc::WIFSIGNALED(status) {
            (pid, Ended::Signal(libc::WTERMSIG(status)))
        } else {
            (pid, Ended::Code(libc::WEXITSTATUS(status)))
        });
    }
}

/// kill(2) with any number, real-time signals included.
pub(crate) fn kill(pid: i32, signal: i32) -> Result<()> {
    // SAFETY: integer arguments only.
    check(libc::c_long::from(unsafe { libc::kill(pid, signal) }))?;
    Ok(())
}

/// Every signal at its default: an ignored one would stay ignored in the program (Rust ignores SIGPIPE, and posix_spawn
/// libc's own two, which its signal(3) does not touch).
pub(crate) fn default_signals() {
    let default = [0u64; 4];
    for signal in 1..=64 {
        // SAFETY: the kernel reads its sigaction, which is no longer than this: all zeros are the default, without a
        // handler. SIGKILL and SIGSTOP give EINVAL.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null_mut::<u64>(), 8)
        };
    }
}

/// The process's side of a terminal, whose other side is `owner`: found without any path.
pub(crate) fn terminal_peer(owner: BorrowedFd<'_>) -> Result<OwnedFd> {
    let unlocked: libc::c_int = 0;
    let fd = owner.as_raw_fd();
    // SAFETY: the kernel reads one int that lives through the call.
    check(libc::c_long::from(unsafe { libc::ioctl(fd, libc::TIOCSPTLCK, &raw const unlocked) }))?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the argument is a number.
    owned(libc::c_long::from(unsafe { libc::ioctl(fd, libc::TIOCGPTPEER, flags) }))
}

/// Sets the size of a terminal's window.
pub(crate) fn set_window(terminal: BorrowedFd<'_>, rows: u16, columns: u16) -> Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel reads one structure that lives through the call.
    check(libc::c_long::from(unsafe {
        libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size)
    }))?;
    Ok(())
}

/// Makes a terminal that of this session, which has none. The caller leads the session.
pub(crate) fn take_terminal(terminal: BorrowedFd<'_>) -> Result<()> {
    let steal: libc::c_int = 0;
    // SAFETY: the argument is a number.
    check(libc::c_long::from(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, steal) }))?;
    Ok(())
}
