//! Backend address to service address: an application sees the peer that it dialled.

use agent_ebpf::abi::{ReverseKey, TCP};
use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_get_socket_cookie;
use aya_ebpf::programs::SockAddrContext;

use crate::ctx;
use crate::maps::{SOCK_REVERSE, SOCKETS};

/// The application asks whom a connected socket talks to.
#[inline(always)]
pub(crate) fn getpeername(ctx: &SockAddrContext) {
    latest(ctx);
}

/// A datagram arrived: the application sees it come from what it dialled.
#[inline(always)]
pub(crate) fn recvmsg(ctx: &SockAddrContext) {
    // SAFETY: the kernel passes a valid context, and the verifier checks the access.
    if latest(ctx) || unsafe { (*ctx.sock_addr).protocol } == u32::from(TCP) {
        return;
    }
    let (address, port) = ctx::address(ctx);
    // SAFETY: a plain helper call on the program's own context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    // SAFETY: a row that the LRU hands to another socket meanwhile gives this datagram a wrong source; the socket that
    // lost its row had not used it for as long as the map has rows.
    if let Some(service) = unsafe {
        SOCK_REVERSE.get(ReverseKey {
            cookie,
            address,
            port,
            pad: [0; 2],
        })
    } {
        ctx::set_address(ctx, service.address, service.port);
    }
}

/// Translates if the address is the socket's latest backend.
#[inline(always)]
fn latest(ctx: &SockAddrContext) -> bool {
    // SAFETY: the context's socket is valid for the length of the program.
    let entry = unsafe { SOCKETS.get_ptr_mut(ctx) };
    // SAFETY: not null, so it is this socket's storage, which lives as long as the socket.
    let Some(entry) = (unsafe { entry.as_ref() }) else {
        return false;
    };
    if (entry.backend_address, entry.backend_port) != ctx::address(ctx) {
        return false;
    }
    ctx::set_address(ctx, entry.service.address, entry.service.port);
    true
}
