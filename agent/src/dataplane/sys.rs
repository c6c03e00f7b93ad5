//! The few system calls that no library offers: `bpf(2)` on links of programs, and the cookies of sockets.

use std::ffi::CString;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya::Pod;
use rustix::time::{ClockId, clock_gettime};

const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;

#[repr(C)]
struct ObjectAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
struct InfoAttr {
    fd: u32,
    length: u32,
    info: u64,
}

#[repr(C)]
struct LinkUpdateAttr {
    link: u32,
    new_program: u32,
    flags: u32,
    old_program: u32,
}

/// Of the parts that differ by kind of link, that of TCX.
#[repr(C)]
struct LinkCreateAttr {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    pad: u32,
    expected_revision: u64,
}

#[repr(C)]
struct QueryAttr {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    program_ids: u64,
    program_count: u32,
    pad: u32,
    program_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// `struct bpf_link_info` up to the fields of a cgroup link.
#[repr(C)]
struct CgroupLinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    pad: u32,
    cgroup: u64,
    attach_type: u32,
    pad2: u32,
}

/// `struct bpf_link_info` up to the fields of a TCX or XDP link.
#[repr(C)]
struct TcxLinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    pad: u32,
    network_link: u32,
    attach_type: u32,
}

/// Opens the link pinned at `path`.
pub(super) fn open_link(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let fd = bpf(
        BPF_OBJ_GET,
        &mut ObjectAttr {
            path: path.as_ptr() as u64,
            fd: 0,
            flags: 0,
        },
    )?;
    // SAFETY: the call succeeded, so this is a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Makes the link run `program` from now on. The change is atomic: each event runs the old or the new program.
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let link = link.as_raw_fd() as u32;
    let new_program = program.as_fd().as_raw_fd() as u32;
    bpf(
        BPF_LINK_UPDATE,
        &mut LinkUpdateAttr {
            link,
            new_program,
            flags: 0,
            old_program: 0,
        },
    )
    .map(drop)
}

/// Id of the cgroup that the link is attached to; 0 when that cgroup is gone.
pub(super) fn cgroup_of(link: BorrowedFd<'_>) -> io::Result<u64> {
    // SAFETY: all fields are integers, for which zero is a value.
    let mut info: CgroupLinkInfo = unsafe { zeroed() };
    let length = size_of::<CgroupLinkInfo>() as u32;
    bpf(
        BPF_OBJ_GET_INFO_BY_FD,
        &mut InfoAttr {
            fd: link.as_raw_fd() as u32,
            length,
            info: &raw mut info as u64,
        },
    )?;
    Ok(info.cgroup)
}

const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;

/// Attaches `program` to the ingress or egress of a network link, behind the programs that are there.
pub(super) fn attach_tcx(
    program: BorrowedFd<'_>,
    network_link: u32,
    ingress: bool,
) -> io::Result<OwnedFd> {
    let fd = bpf(
        BPF_LINK_CREATE,
        &mut LinkCreateAttr {
            program: program.as_raw_fd() as u32,
            target: network_link,
            attach_type: if ingress {
                BPF_TCX_INGRESS
            } else {
                BPF_TCX_EGRESS
            },
            flags: 0,
            relative: 0,
            pad: 0,
            expected_revision: 0,
        },
    )?;
    // SAFETY: the call succeeded, so this is a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Attaches `program` to a network link, for its driver to run.
pub(super) fn attach_xdp(program: BorrowedFd<'_>, network_link: u32) -> io::Result<OwnedFd> {
    const BPF_XDP: u32 = 37;
    const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
    let fd = bpf(
        BPF_LINK_CREATE,
        &mut LinkCreateAttr {
            program: program.as_raw_fd() as u32,
            target: network_link,
            attach_type: BPF_XDP,
            flags: XDP_FLAGS_DRV_MODE,
            relative: 0,
            pad: 0,
            expected_revision: 0,
        },
    )?;
    // SAFETY: the call succeeded, so this is a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Index of the network link that a TCX or XDP link is attached to; 0 when that is gone, or it is a link of another kind.
pub(super) fn network_link_of(link: BorrowedFd<'_>) -> io::Result<u32> {
    const BPF_LINK_TYPE_XDP: u32 = 6;
    const BPF_LINK_TYPE_TCX: u32 = 11;
    // SAFETY: all fields are integers, for which zero is a value.
    let mut info: TcxLinkInfo = unsafe { zeroed() };
    bpf(
        BPF_OBJ_GET_INFO_BY_FD,
        &mut InfoAttr {
            fd: link.as_raw_fd() as u32,
            length: size_of::<TcxLinkInfo>() as u32,
            info: &raw mut info as u64,
        },
    )?;
    Ok(match info.kind {
        BPF_LINK_TYPE_XDP | BPF_LINK_TYPE_TCX => info.network_link,
        _ => 0,
    })
}

/// Pins what `object` is open on at `path`.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    bpf(
        BPF_OBJ_PIN,
        &mut ObjectAttr {
            path: path.as_ptr() as u64,
            fd: object.as_raw_fd() as u32,
            flags: 0,
        },
    )
    .map(drop)
}

/// Whether programs can be attached to an interface's packet path by links that share it (Linux 6.6).
pub(super) fn has_tcx() -> bool {
    const LOOPBACK: u32 = 1;
    // SAFETY: all fields are integers, for which zero is a value.
    let mut attr: QueryAttr = unsafe { zeroed() };
    (attr.target, attr.attach_type) = (LOOPBACK, BPF_TCX_INGRESS);
    match bpf(BPF_PROG_QUERY, &mut attr) {
        Ok(_) => true,
        // Nothing was ever attached there. A kernel that does not know the attach type says EINVAL.
        Err(error) => error.raw_os_error() == Some(libc::ENOENT),
    }
}

fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is the `repr(C)` argument of this command, valid for its stated size for the length of the call, and
    // the addresses in it point to values that outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr as *mut T, size_of::<T>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// `include/uapi/asm-generic/socket.h`; Linux 5.14.
const SO_NETNS_COOKIE: libc::c_int = 71;
#[cfg(test)]
const SO_COOKIE: libc::c_int = 57;

/// Cookie of the network namespace of a socket.
pub(super) fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    number(socket, SO_NETNS_COOKIE)
}

/// A socket's own cookie, which names it for as long as the machine runs.
#[cfg(test)]
pub(super) fn socket_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    number(socket, SO_COOKIE)
}

/// A socket option that is a 64-bit number.
fn number(socket: BorrowedFd<'_>, option: libc::c_int) -> io::Result<u64> {
    let mut value = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: both pointers are to values that outlive the call, and `length` says how large `value` is.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(value)
    }
}

/// The clock by which the programs tell times (`bpf_ktime_get_ns`), in nanoseconds.
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // It begins at 0 with the machine and never goes back.
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
/// Bytes for the rows of one batch; more of them cost no fewer calls worth the memory.
const BATCH_BYTES: usize = 1 << 18;

#[repr(C)]
struct BatchAttr {
    before: u64,
    after: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// Gives every row of a hash map, as [`each_row`] does.
pub(super) fn each_pair<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    mut row: impl FnMut(K, V),
) -> io::Result<()> {
    each_row(map, size_of::<K>(), size_of::<V>(), |key, value| {
        // SAFETY: so many bytes of each, and any bytes are a value.
        let (key, value) = unsafe {
            (
                key.as_ptr().cast::<K>().read_unaligned(),
                value.as_ptr().cast::<V>().read_unaligned(),
            )
        };
        row(key, value);
    })
}

/// Gives every row of a hash map or a trie as bytes. Reads many with one call: asking for one key after the other takes a hundred
/// times as long, and begins anew where a key has gone meanwhile. `value_size` is that of all CPUs' values.
fn each_row(
    map: BorrowedFd<'_>,
    key_size: usize,
    value_size: usize,
    mut row: impl FnMut(&[u8], &[u8]),
) -> io::Result<()> {
    let most = (BATCH_BYTES / (key_size + value_size)).clamp(64, 4096);
    let (mut keys, mut values) = (vec![0_u8; most * key_size], vec![0_u8; most * value_size]);
    // The kernel's place between two batches: of a hash a bucket's number, of other maps a key.
    let mut place = vec![0_u8; key_size.max(size_of::<u32>())];
    let mut first = true;
    loop {
        let mut attr = BatchAttr {
            before: if first { 0 } else { place.as_ptr() as u64 },
            after: place.as_mut_ptr() as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: most as u32,
            map: map.as_raw_fd() as u32,
            element_flags: 0,
            flags: 0,
        };
        let result = bpf(BPF_MAP_LOOKUP_BATCH, &mut attr);
        first = false;
        // The end of the map comes with the last rows.
        let ended = matches!(&result, Err(error) if error.raw_os_error() == Some(libc::ENOENT));
        if !ended {
            result?;
        }
        let read = keys
            .chunks_exact(key_size)
            .zip(values.chunks_exact(value_size));
        for (key, value) in read.take(attr.count as usize) {
            row(key, value);
        }
        if ended {
            return Ok(());
        }
    }
}

/// How many rows such a map has. `value_size` is as in [`each_row`].
pub(super) fn count_rows(
    map: BorrowedFd<'_>,
    key_size: usize,
    value_size: usize,
) -> io::Result<u32> {
    let mut total = 0;
    each_row(map, key_size, value_size, |_, _| total += 1)?;
    Ok(total)
}
