//! Backend address to service address: an application sees the peer that it dialled.

use agent_ebpf::abi::{ReverseKey, SocketKey};
use aya_ebpf::programs::SockAddrContext;

use crate::ctx::{self, Form};
use crate::maps::{SOCK_REVERSE, SOCKETS};

/// The application asks whom a connected socket talks to.
#[inline(always)]
pub(crate) fn getpeername<F: Form>(ctx: &SockAddrContext) {
    latest::<F>(ctx, ctx::socket(ctx));
}

/// A datagram arrived: the application sees it come from what it dialled.
#[inline(always)]
pub(crate) fn recvmsg<F: Form>(ctx: &SockAddrContext) {
    let cookie = ctx::socket(ctx);
    if latest::<F>(ctx, cookie) {
        return;
    }
    let (address, port) = ctx::address::<F>(ctx);
    // SAFETY: a row that the LRU hands to another socket meanwhile gives this datagram a wrong source; the socket that
    // lost its row had not used it for as long as the map has rows.
    if let Some(service) = unsafe {
        SOCK_REVERSE.get(ReverseKey {
            cookie,
            address,
            port,
            pad: [0; 6],
        })
    } {
        ctx::set_address::<F>(ctx, &service.address, service.port);
    }
}

/// Translates if the address is the socket's latest backend.
#[inline(always)]
fn latest<F: Form>(ctx: &SockAddrContext, socket: SocketKey) -> bool {
    // SAFETY: only the socket's own programs write or remove its row.
    let Some(entry) = (unsafe { SOCKETS.get(socket) }) else {
        return false;
    };
    if (entry.backend_address, entry.backend_port) != ctx::address::<F>(ctx) {
        return false;
    }
    ctx::set_address::<F>(ctx, &entry.service.address, entry.service.port);
    true
}
