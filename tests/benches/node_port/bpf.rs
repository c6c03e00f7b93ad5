//! bpf(2) as the benchmark needs it: programs that do nothing, to see what it costs to run one, and running one.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

/// At a link of tc, and of XDP.
pub const NAMES: [&str; 2] = ["kn_empty_tc", "kn_empty_xdp"];
/// `BPF_PROG_TYPE_SCHED_CLS`, `BPF_PROG_TYPE_XDP`
const TYPES: [u32; 2] = [3, 6];
/// `BPF_PROG_LOAD`, `BPF_PROG_TEST_RUN`
const LOAD: libc::c_int = 5;
const TEST_RUN: libc::c_int = 10;

/// The beginning of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
struct Attributes {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// Loads both. They stay until the process ends.
pub fn load() {
    // `r0 = 2`, which is `XDP_PASS`; `exit`
    let code = [0x0000_0002_0000_00b7_u64, 0x0000_0000_0000_0095];
    for (name, kind) in NAMES.into_iter().zip(TYPES) {
        let mut attributes = Attributes {
            kind,
            instructions: code.len() as u32,
            code: code.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            log_level: 0,
            log_size: 0,
            log: 0,
            kernel_version: 0,
            flags: 0,
            name: [0; 16],
        };
        attributes.name[..name.len()].copy_from_slice(name.as_bytes());
        let (size, attributes) = (size_of::<Attributes>(), &raw mut attributes);
        // SAFETY: the structure and what it points to outlive the call, and its size is said.
        let fd = unsafe { libc::syscall(libc::SYS_bpf, LOAD, attributes, size) };
        assert!(fd >= 0, "{name}: {}", io::Error::last_os_error());
        // SAFETY: the kernel has just made it, for nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        // Whoever looks for the program finds it as long as somebody has it open.
        std::mem::forget(fd);
    }
}

/// `union bpf_attr` for `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Default)]
struct Run {
    program: u32,
    verdict: u32,
    packet_length: u32,
    out_length: u32,
    packet: u64,
    out: u64,
    repeat: u32,
    duration: u32,
    context_length: u32,
    context_out_length: u32,
    context: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch: u32,
    pad: u32,
}

/// Runs a program over and over with a packet, each time with what the run before has left of it. Gives the last verdict, and
/// nanoseconds a run.
pub fn run(program: BorrowedFd<'_>, packet: &[u8], context: &[u8], times: u32) -> (u32, u32) {
    let mut run = Run {
        program: program.as_raw_fd() as u32,
        packet_length: packet.len() as u32,
        packet: packet.as_ptr() as u64,
        repeat: times,
        context_length: context.len() as u32,
        context: context.as_ptr() as u64,
        ..Run::default()
    };
    // SAFETY: as above; nothing is written but to the structure.
    let done = unsafe { libc::syscall(libc::SYS_bpf, TEST_RUN, &raw mut run, size_of::<Run>()) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
    (run.verdict, run.duration)
}
