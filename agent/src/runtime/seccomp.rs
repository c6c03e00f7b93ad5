//! The system-call filter of `seccompProfile: RuntimeDefault`, which is also that of containers that name none.
//!
//! It allows what a program does with its own memory, files, sockets and processes, and refuses all else: what reaches the
//! machine rather than the container (modules, other kernels, clocks, keys, BPF, mounts, new namespaces, other machines of the
//! hypervisor, memory of unrelated processes), what is long out of use, and what kernels may learn yet.

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompBuilder, LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};

/// Allowed to everybody, of all architectures.
const ALLOWED: &str = "\
    _llseek _newselect accept accept4 access adjtimex alarm arch_prctl arm_fadvise64_64 arm_sync_file_range bind \
    breakpoint brk cacheflush cachestat capget capset chdir chmod chown chown32 chroot clock_getres \
    clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 close close_range connect \
    copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 \
    epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 \
    fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 \
    fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstat64 fstatat fstatat64 fstatfs fstatfs64 \
    fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake futimesat \
    get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 getgid \
    getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom \
    getresgid getresgid32 getresuid getresuid32 getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday \
    getuid getuid32 getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel \
    io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit ioctl ioprio_get ioprio_set ipc kill \
    landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat listen \
    listmount listxattr listxattrat llistxattr llseek lremovexattr lseek lsetxattr lstat lstat64 madvise \
    map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall \
    mmap mmap2 modify_ldt mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend \
    mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap \
    name_to_handle_at nanosleep newfstatat nice oldfstat oldlstat oldolduname oldstat olduname open openat openat2 \
    pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl \
    pread64 preadv preadv2 prlimit64 process_mrelease pselect6 pselect6_time64 ptrace pwrite64 pwritev pwritev2 read \
    readahead readdir readlink readlinkat readv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr \
    removexattrat rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask \
    rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo \
    sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler \
    sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam \
    sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop semtimedop_time64 sendfile sendfile64 \
    sendmmsg sendmsg sendto set_robust_list set_thread_area set_tid_address set_tls setfsgid setfsgid32 setfsuid \
    setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid \
    setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid setsockopt setuid setuid32 setxattr \
    setxattrat sgetmask shmat shmctl shmdt shmget shutdown sigaction sigaltstack signal signalfd signalfd4 sigpending \
    sigprocmask sigreturn sigsuspend socketcall socketpair splice ssetmask stat stat64 statfs statfs64 statmount statx \
    symlink symlinkat sync sync_file_range sync_file_range2 syncfs sysinfo tee tgkill time timer_create timer_delete \
    timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime \
    timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink \
    unlinkat utime utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev";

/// What a capability that was added for it is good for besides; the kernel asks for the capability anyway.
const ALLOWED_BY: &[(&str, &str)] = &[
    ("BPF", "bpf"),
    ("DAC_READ_SEARCH", "open_by_handle_at"),
    ("PERFMON", "perf_event_open"),
    ("SYSLOG", "syslog"),
    (
        "SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount open_tree open_tree_attr perf_event_open pivot_root quotactl quotactl_fd setdomainname sethostname setns swapoff swapon syslog umount umount2 unshare",
    ),
    ("SYS_BOOT", "kexec_file_load kexec_load reboot"),
    (
        "SYS_MODULE",
        "create_module delete_module finit_module init_module",
    ),
    (
        "SYS_NICE",
        "get_mempolicy mbind migrate_pages move_pages set_mempolicy set_mempolicy_home_node",
    ),
    ("SYS_PACCT", "acct"),
    (
        "SYS_PTRACE",
        "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev",
    ),
    ("SYS_RAWIO", "ioperm iopl"),
    (
        "SYS_TIME",
        "clock_adjtime clock_adjtime64 clock_settime clock_settime64 settimeofday stime",
    ),
    ("SYS_TTY_CONFIG", "vhangup"),
];

/// `CLONE_NEW*` flags of linux/sched.h but for `CLONE_NEWTIME`, which `clone` cannot take.
const NEW_NAMESPACES: u64 = 0x7e02_0000;
/// Linux, with addresses as short as they were once or with `uname` of 2.6, and the question which one it is; of
/// linux/personality.h. What others there are switch protections off.
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];
/// `AF_VSOCK` of linux/socket.h: sockets to the hypervisor and its other guests.
const AF_VSOCK: u64 = 40;

/// `EPERM` and `ENOSYS` in asm-generic/errno.h.
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// The filter for a container to which these capabilities are added.
pub(super) fn default_profile(added: &[String]) -> Result<LinuxSeccomp, OciSpecError> {
    let added = added.iter().map(|name| name.to_uppercase());
    let added: Vec<String> = added
        .map(|name| name.strip_prefix("CAP_").unwrap_or(&name).to_owned())
        .collect();
    let has = |name: &str| added.iter().any(|added| added == name || added == "ALL");
    let more = ALLOWED_BY
        .iter()
        .filter(|(capability, _)| has(capability))
        .flat_map(|(_, calls)| calls.split_whitespace());
    let all = ALLOWED.split_whitespace().chain(more);
    let mut syscalls = vec![allow(all, None)?];
    if !has("SYS_ADMIN") {
        let none = argument(
            NEW_NAMESPACES,
            Some(0),
            LinuxSeccompOperator::ScmpCmpMaskedEq,
        )?;
        syscalls.push(allow(["clone"].into_iter(), Some(none))?);
        // It hides its flags behind a pointer: "no such call" makes C libraries fall back to clone, which can be filtered.
        syscalls.push(
            LinuxSyscallBuilder::default()
                .names(vec!["clone3".to_owned()])
                .action(LinuxSeccompAction::ScmpActErrno)
                .errno_ret(ENOSYS)
                .build()?,
        );
    }
    let others = argument(AF_VSOCK, None, LinuxSeccompOperator::ScmpCmpNe)?;
    syscalls.push(allow(["socket"].into_iter(), Some(others))?);
    for personality in PERSONALITIES {
        let this = argument(personality, None, LinuxSeccompOperator::ScmpCmpEq)?;
        syscalls.push(allow(["personality"].into_iter(), Some(this))?);
    }
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(EPERM)
        .architectures(architectures())
        .syscalls(syscalls)
        .build()
}

/// A rule that allows calls, if their first argument is as it is to be.
fn allow<'a>(
    names: impl Iterator<Item = &'a str>,
    first: Option<LinuxSeccompArg>,
) -> Result<LinuxSyscall, OciSpecError> {
    let names: Vec<String> = names.map(str::to_owned).collect();
    let rule = LinuxSyscallBuilder::default()
        .names(names)
        .action(LinuxSeccompAction::ScmpActAllow);
    match first {
        Some(argument) => rule.args(vec![argument]).build(),
        None => rule.build(),
    }
}

/// What the first argument of a call is to be.
fn argument(
    value: u64,
    second: Option<u64>,
    op: LinuxSeccompOperator,
) -> Result<LinuxSeccompArg, OciSpecError> {
    let argument = LinuxSeccompArgBuilder::default()
        .index(0usize)
        .value(value)
        .op(op);
    match second {
        Some(second) => argument.value_two(second).build(),
        None => argument.build(),
    }
}

/// Each costs a container's start some milliseconds. Whoever calls the kernel in another's way is ended: of x86-64 with short
/// pointers (x32) there are hardly any programs.
fn architectures() -> Vec<Arch> {
    match std::env::consts::ARCH {
        "x86_64" => vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86],
        "aarch64" => vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm],
        _ => Vec::new(),
    }
}
