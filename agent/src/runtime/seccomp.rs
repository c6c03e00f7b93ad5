//! The system-call filter of `seccompProfile: RuntimeDefault`, which is also that of containers that name none.
//!
//! It forbids what reaches the machine rather than the container: modules, other kernels, clocks, keys, BPF, mounts and new
//! namespaces, tracing of unrelated memory. Everything else is allowed, so a program that works without the filter but
//! for these works with it.

use std::collections::BTreeSet;

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArgBuilder, LinuxSeccompBuilder,
    LinuxSeccompOperator, LinuxSyscallBuilder,
};

/// Refused with `EPERM`.
const FORBIDDEN: &[&str] = &[
    "acct",
    "add_key",
    "bpf",
    "clock_adjtime",
    "clock_adjtime64",
    "clock_settime",
    "clock_settime64",
    "create_module",
    "delete_module",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "get_kernel_syms",
    "get_mempolicy",
    "init_module",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "ioperm",
    "iopl",
    "kcmp",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "mbind",
    "mount",
    "mount_setattr",
    "move_mount",
    "move_pages",
    "nfsservctl",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "pivot_root",
    "process_vm_readv",
    "process_vm_writev",
    "query_module",
    "quotactl",
    "quotactl_fd",
    "reboot",
    "request_key",
    "set_mempolicy",
    "setns",
    "settimeofday",
    "stime",
    "swapoff",
    "swapon",
    "sysfs",
    "umount",
    "umount2",
    "unshare",
    "uselib",
    "userfaultfd",
    "ustat",
    "vm86",
    "vm86old",
    "vhangup",
];

/// What of these a capability that was added for it is good for; the kernel asks for the capability anyway.
const ALLOWED_BY: &[(&str, &[&str])] = &[
    (
        "SYS_ADMIN",
        &[
            "bpf",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "lookup_dcookie",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "perf_event_open",
            "pivot_root",
            "quotactl",
            "quotactl_fd",
            "setns",
            "swapoff",
            "swapon",
            "umount",
            "umount2",
            "unshare",
        ],
    ),
    ("BPF", &["bpf"]),
    ("DAC_READ_SEARCH", &["open_by_handle_at"]),
    ("PERFMON", &["perf_event_open"]),
    ("SYS_BOOT", &["kexec_file_load", "kexec_load", "reboot"]),
    (
        "SYS_MODULE",
        &[
            "create_module",
            "delete_module",
            "finit_module",
            "init_module",
        ],
    ),
    (
        "SYS_NICE",
        &["get_mempolicy", "mbind", "move_pages", "set_mempolicy"],
    ),
    ("SYS_PACCT", &["acct"]),
    (
        "SYS_PTRACE",
        &["kcmp", "process_vm_readv", "process_vm_writev"],
    ),
    ("SYS_RAWIO", &["ioperm", "iopl"]),
    (
        "SYS_TIME",
        &[
            "clock_adjtime",
            "clock_adjtime64",
            "clock_settime",
            "clock_settime64",
            "settimeofday",
            "stime",
        ],
    ),
    ("SYS_TTY_CONFIG", &["vhangup"]),
];

/// `CLONE_NEW*` flags of linux/sched.h but for `CLONE_NEWTIME`, which `clone` cannot take.
const NEW_NAMESPACES: u64 = 0x7e02_0000;

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
    let allowed: BTreeSet<&str> = ALLOWED_BY
        .iter()
        .filter(|(capability, _)| has(capability))
        .flat_map(|(_, calls)| calls.iter().copied())
        .collect();
    let forbidden = LinuxSyscallBuilder::default()
        .names(
            FORBIDDEN
                .iter()
                .filter(|name| !allowed.contains(**name))
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>(),
        )
        .action(LinuxSeccompAction::ScmpActErrno)
        .errno_ret(EPERM)
        .build()?;
    // clone3 hides its flags behind a pointer: "no such call" makes C libraries fall back to clone, which can be filtered.
    let clone3 = LinuxSyscallBuilder::default()
        .names(vec!["clone3".to_owned()])
        .action(LinuxSeccompAction::ScmpActErrno)
        .errno_ret(ENOSYS)
        .build()?;
    let mut syscalls = vec![forbidden];
    let makes_namespaces = has("SYS_ADMIN");
    syscalls.extend((!makes_namespaces).then_some(clone3));
    for bit in (0..64)
        .map(|shift| 1u64 << shift)
        .filter(|bit| !makes_namespaces && NEW_NAMESPACES & bit != 0)
    {
        syscalls.push(
            LinuxSyscallBuilder::default()
                .names(vec!["clone".to_owned()])
                .action(LinuxSeccompAction::ScmpActErrno)
                .errno_ret(EPERM)
                .args(vec![
                    LinuxSeccompArgBuilder::default()
                        .index(0usize)
                        .value(bit)
                        .value_two(bit)
                        .op(LinuxSeccompOperator::ScmpCmpMaskedEq)
                        .build()?,
                ])
                .build()?,
        );
    }
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActAllow)
        .architectures(architectures())
        .syscalls(syscalls)
        .build()
}

fn architectures() -> Vec<Arch> {
    match std::env::consts::ARCH {
        "x86_64" => vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32],
        "aarch64" => vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm],
        _ => Vec::new(),
    }
}
