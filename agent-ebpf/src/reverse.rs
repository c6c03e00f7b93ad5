//! Backend address to service address: an application sees the peer that it dialled.

use agent_ebpf::abi::{ReverseKey, SocketKey};
use aya_ebpf::programs::SockAddrContext;

use crate::ctx;
use crate::maps::{SOCK_REVERSE, SOCKETS};

/// The application asks whom a connected socket talks to.
#[inline(always)]
pub(crate) fn getpeername(ctx: &SockAddrContext) {
    latest(ctx, ctx::socket(ctx));
}

/// A datagram arrived: the application sees it come from what it dialled.
#[inline(always)]
pub(crate) fn recvmsg(ctx: &SockAddrContext) {
    let cookie = ctx::socket(ctx);
    if latest(ctx, cookie) {
        return;
    }
    let (address, port) = ctx::address(ctx);
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
fn latest(ctx: &SockAddrContext, socket: SocketKey) -> bool {
    // SAFETY: only the socket's own programs write or remove its row.
    let Some(entry) = (unsafe { SOCKETS.get(socket) }) else {
        return false;
    };
    if (entry.backend_address, entry.backend_port) != ctx::address(ctx) {
        return false;
    }
    ctx::set_address(ctx, entry.service.address, entry.service.port);
    true
}
