//! bpf(2) as the benchmarks need it: the least that programs can cost, and running one.
//!
//! ```text
//! empty programs   do nothing: what it costs that there is one
//! askers           only call those of the kernel's helpers without which the work cannot be done
//! ```

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::path::Path;

use agent_ebpf::abi::{Connection, FlowKey};

/// `BPF_MAP_CREATE`, `BPF_MAP_UPDATE_ELEM`, `BPF_PROG_LOAD`, `BPF_PROG_ATTACH`, `BPF_PROG_TEST_RUN`
const CREATE: libc::c_int = 0;
const UPDATE: libc::c_int = 2;
const LOAD: libc::c_int = 5;
const ATTACH: libc::c_int = 8;
const TEST_RUN: libc::c_int = 10;
/// `BPF_MAP_TYPE_LRU_HASH`
const LRU_HASH: u32 = 9;

/// What a program is of.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// `BPF_PROG_TYPE_*`
    program: u32,
    /// `BPF_CGROUP_*`; of programs at links 0.
    place: u32,
    /// What says that all goes on as it would without the program.
    on: i32,
}

pub const TC: Kind = Kind {
    program: 3,
    place: 0,
    on: -1,
};
pub const XDP: Kind = Kind {
    program: 6,
    place: 0,
    on: 2,
};
/// What a TCP connection of an IPv4 socket meets: as it connects, as its state changes, as its socket is released.
pub const OF_A_CONNECTION: [Kind; 3] = [
    Kind {
        program: 18,
        place: 10,
        on: 1,
    },
    Kind {
        program: 13,
        place: 3,
        on: 1,
    },
    Kind {
        program: 9,
        place: 34,
        on: 1,
    },
];

/// The beginning of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct Program {
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
    link: u32,
    place: u32,
}

/// The same for `BPF_MAP_CREATE`.
#[repr(C)]
struct Map {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

/// The same for `BPF_MAP_UPDATE_ELEM`.
#[repr(C)]
struct Row {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The same for `BPF_PROG_ATTACH`.
#[repr(C)]
struct Attachment {
    to: u32,
    program: u32,
    place: u32,
    flags: u32,
}

fn call<T>(command: libc::c_int, attributes: &mut T) -> i32 {
    let size = size_of::<T>();
    // SAFETY: the structure outlives the call, and its size is said; so does what it points to, in every caller.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size) };
    assert!(done >= 0, "bpf {command}: {}", io::Error::last_os_error());
    done as i32
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just made it, for nobody else.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Loads a program that does nothing.
pub fn empty(kind: Kind) -> OwnedFd {
    program(kind, "kn_empty", &[op::set(0, kind.on), op::EXIT])
}

fn program(kind: Kind, name: &str, code: &[u64]) -> OwnedFd {
    let mut attributes = Program {
        kind: kind.program,
        instructions: code.len() as u32,
        code: code.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        place: kind.place,
        ..Program::default()
    };
    attributes.name[..name.len()].copy_from_slice(name.as_bytes());
    owned(call(LOAD, &mut attributes))
}

/// Attaches a program to a cgroup, where it stays for as long as that is there.
pub fn attach(program: &OwnedFd, kind: Kind, cgroup: &Path) {
    let cgroup = File::open(cgroup).expect("the cgroup is there");
    let mut attributes = Attachment {
        to: cgroup.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        place: kind.place,
        flags: 0,
    };
    call(ATTACH, &mut attributes);
}

/// Instructions (Documentation/bpf/standardization/instruction-set.rst).
mod op {
    pub const EXIT: u64 = instruction(0x95, 0, 0, 0, 0);
    /// The frame pointer.
    pub const FRAME: u8 = 10;

    const fn instruction(code: u8, to: u8, from: u8, offset: i16, number: i32) -> u64 {
        u64::from_le_bytes([
            code,
            to | from << 4,
            offset.to_le_bytes()[0],
            offset.to_le_bytes()[1],
            number.to_le_bytes()[0],
            number.to_le_bytes()[1],
            number.to_le_bytes()[2],
            number.to_le_bytes()[3],
        ])
    }

    pub const fn set(to: u8, number: i32) -> u64 {
        instruction(0xb7, to, 0, 0, number)
    }

    pub const fn copy(to: u8, from: u8) -> u64 {
        instruction(0xbf, to, from, 0, 0)
    }

    pub const fn add(to: u8, number: i32) -> u64 {
        instruction(0x07, to, 0, 0, number)
    }

    /// Writes zeros, 8 bytes, to the stack.
    pub const fn zero(offset: i16) -> u64 {
        instruction(0x7a, FRAME, 0, offset, 0)
    }

    /// Writes a number of 4 bytes to the stack.
    pub const fn word(offset: i16, number: i32) -> u64 {
        instruction(0x62, FRAME, 0, offset, number)
    }

    /// Reads 4 bytes of what `from` points to.
    pub const fn load(to: u8, from: u8, offset: i16) -> u64 {
        instruction(0x61, to, from, offset, 0)
    }

    /// Writes 4 bytes to the stack.
    pub const fn store(offset: i16, from: u8) -> u64 {
        instruction(0x63, FRAME, from, offset, 0)
    }

    /// Names a map; the second of two words is zero.
    pub const fn map(to: u8, fd: i32) -> u64 {
        instruction(0x18, to, 1, 0, fd)
    }

    pub const fn call(helper: i32) -> u64 {
        instruction(0x85, 0, 0, 0, helper)
    }

    /// Skips instructions where `r0` is zero.
    pub const fn skip_if_zero(count: i16) -> u64 {
        instruction(0x15, 0, 0, count, 0)
    }

    /// Skips instructions where `r0` is not zero.
    pub const fn skip_if_not(count: i16) -> u64 {
        instruction(0x55, 0, 0, count, 0)
    }
}

const KEY: i16 = -(size_of::<FlowKey>() as i16);

/// A table of connections with one row, whose key is all zeros.
fn table() -> OwnedFd {
    let (key, value) = (
        [0_u8; size_of::<FlowKey>()],
        [0_u8; size_of::<Connection>()],
    );
    let mut attributes = Map {
        kind: LRU_HASH,
        key_size: key.len() as u32,
        value_size: value.len() as u32,
        max_entries: 1 << 16,
    };
    let map = owned(call(CREATE, &mut attributes));
    let mut row = Row {
        map: map.as_raw_fd() as u32,
        pad: 0,
        key: key.as_ptr() as u64,
        value: value.as_ptr() as u64,
        flags: 0,
    };
    call(UPDATE, &mut row);
    map
}

/// Looks its connection up. Where there is none, the program ends with a verdict that nobody wants.
fn look_up(map: &OwnedFd) -> Vec<u64> {
    const MAP_LOOKUP_ELEM: i32 = 1;
    vec![
        op::map(1, map.as_raw_fd()),
        0,
        op::copy(2, op::FRAME),
        op::add(2, KEY.into()),
        op::call(MAP_LOOKUP_ELEM),
        op::skip_if_not(1),
        op::EXIT,
    ]
}

fn zeros(from: i16, to: i16) -> Vec<u64> {
    (from..to).step_by(8).map(op::zero).collect()
}

/// Loads a program at a link that asks the kernel for what a packet of a known connection needs to be given another address:
/// its row, 14 bytes written, the transport's checksum made up for. `at` is where its IP header begins.
pub fn tc_asker(at: i32) -> OwnedFd {
    const SKB_STORE_BYTES: i32 = 9;
    const L4_CSUM_REPLACE: i32 = 11;
    const PSEUDO_HEADER: i32 = 0x10;
    let map = table();
    let mut code = vec![op::copy(6, 1)];
    code.extend(zeros(KEY, 0));
    code.extend(look_up(&map));
    code.extend([
        op::copy(1, 6),
        op::set(2, at + 10),
        op::copy(3, op::FRAME),
        op::add(3, KEY.into()),
        op::set(4, 14),
        op::set(5, 0),
        op::call(SKB_STORE_BYTES),
        op::copy(1, 6),
        op::set(2, at + 20 + 16),
        op::set(3, 0),
        op::set(4, 0),
        op::set(5, PSEUDO_HEADER),
        op::call(L4_CSUM_REPLACE),
        op::set(0, TC.on),
        op::EXIT,
    ]);
    program(TC, "kn_asks", &code)
}

/// The same before the network stack: both its rows, and where packets from `source` to `destination`, in network order, go on.
pub fn xdp_asker(source: [u8; 4], destination: [u8; 4]) -> OwnedFd {
    const FIB_LOOKUP: i32 = 69;
    const XDP_TX: i32 = 3;
    const INET: i32 = 2;
    /// `struct bpf_fib_lookup`, and in it family, link, addresses.
    const LENGTH: i16 = 64;
    const ASKED: i16 = KEY - LENGTH;
    let map = table();
    let mut code = vec![op::copy(6, 1)];
    code.extend(zeros(KEY, 0));
    code.extend(look_up(&map));
    code.extend(look_up(&map));
    code.extend(zeros(ASKED, KEY));
    code.extend([
        op::word(ASKED, INET),
        // `ingress_ifindex` of `struct xdp_md`
        op::load(1, 6, 12),
        op::store(ASKED + 8, 1),
        op::word(ASKED + 16, i32::from_ne_bytes(source)),
        op::word(ASKED + 32, i32::from_ne_bytes(destination)),
        op::copy(1, 6),
        op::copy(2, op::FRAME),
        op::add(2, ASKED.into()),
        op::set(3, LENGTH.into()),
        op::set(4, 0),
        op::call(FIB_LOOKUP),
        op::skip_if_zero(1),
        op::EXIT,
        op::set(0, XDP_TX),
        op::EXIT,
    ]);
    program(XDP, "kn_asks", &code)
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
