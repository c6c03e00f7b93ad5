//! The socket address that a program was called for, in the terms of the ABI.

use agent_ebpf::abi::{Ipv4, Port, ServiceKey, SocketKey, TCP, UDP};
use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_get_socket_cookie;
use aya_ebpf::programs::SockAddrContext;

/// What the application dialled; `None` for a protocol that services do not have.
#[inline(always)]
pub(crate) fn dialled(ctx: &SockAddrContext) -> Option<ServiceKey> {
    // SAFETY: the kernel passes a valid context, and the verifier checks each access.
    let protocol = unsafe { (*ctx.sock_addr).protocol };
    if protocol != u32::from(TCP) && protocol != u32::from(UDP) {
        return None;
    }
    let (address, port) = address(ctx);
    Some(ServiceKey {
        address,
        port,
        protocol: protocol as u8,
        pad: 0,
    })
}

/// The address in the context.
#[inline(always)]
pub(crate) fn address(ctx: &SockAddrContext) -> (Ipv4, Port) {
    // SAFETY: as above.
    let (address, port) = unsafe { ((*ctx.sock_addr).user_ip4, (*ctx.sock_addr).user_port) };
    // Both fields hold network-order bytes; the port is in the first two of its four.
    (address.to_ne_bytes(), (port as u16).to_ne_bytes())
}

/// Replaces the address in the context.
#[inline(always)]
pub(crate) fn set_address(ctx: &SockAddrContext, address: Ipv4, port: Port) {
    // SAFETY: as above; both fields are writable in every program that calls this.
    unsafe {
        (*ctx.sock_addr).user_ip4 = u32::from_ne_bytes(address);
        (*ctx.sock_addr).user_port = u32::from(u16::from_ne_bytes(port));
    }
}

/// Names the socket that the program was called for.
#[inline(always)]
pub(crate) fn socket(ctx: &impl EbpfContext) -> SocketKey {
    // SAFETY: a plain helper call on the program's own context.
    SocketKey(unsafe { bpf_get_socket_cookie(ctx.as_ptr()) })
}
