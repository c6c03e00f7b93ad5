//! What a network link's device does for the stack, switched for a test: `ioctl(2)` of `SIOCETHTOOL`.

use std::io;
use std::os::fd::AsRawFd as _;

use rustix::net::{AddressFamily, SocketType, socket};

/// What is switched: `ETHTOOL_S*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Offload {
    /// Checksums of what is sent are left to the device.
    SendChecksum = 0x17,
    /// Packets that come in are put together. Of a veth pair it makes this end take what XDP sends from the other.
    Receive = 0x2c,
}

/// `struct ethtool_value`
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Switches it at a link of the namespace that the calling thread is in.
pub(super) fn switch(link: &str, offload: Offload, on: bool) -> io::Result<()> {
    const SIOCETHTOOL: libc::Ioctl = 0x8946;
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    let mut value = Value {
        command: offload as u32,
        data: on.into(),
    };
    // SAFETY: all fields are integers or pointers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    let name = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..name].iter_mut().zip(link.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the request and what it points to outlive the call, and are what it takes.
    match unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
