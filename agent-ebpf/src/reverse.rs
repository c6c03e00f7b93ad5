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
    // A socket without a row has dialled no service, so it has no earlier backends either: mostly a server's.
    if latest::<F>(ctx, cookie) != Some(false) {
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

/// Translates if the address is the socket's latest backend; says whether it was. `None`: the socket has no backend.
#[inline(always)]
fn latest<F: Form>(ctx: &SockAddrContext, socket: SocketKey) -> Option<bool> {
    // SAFETY: only the socket's own programs write or remove its row.
    let entry = unsafe { SOCKETS.get(socket) }?;
    if (entry.backend_address, entry.backend_port) != ctx::address::<F>(ctx) {
        return Some(false);
    }
    ctx::set_address::<F>(ctx, &entry.service.address, entry.service.port);
    Some(true)
}
