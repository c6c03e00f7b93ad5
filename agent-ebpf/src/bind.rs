//! Keeps processes on the node from binding node ports and pods' host ports: clients would no longer know who answers.

use agent_ebpf::abi::{Address, FLAG_HOST_PORT, Port};
use agent_ebpf::node_port::{self, ANY_V4, ANY_V6, Node};
use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_get_netns_cookie;
use aya_ebpf::programs::SockAddrContext;

use crate::ctx::{self, Form};
use crate::maps::{CONFIG, NODE_ADDRESSES, SERVICES, node_netns};
use crate::{PROCEED, refuse, rows};

const EADDRINUSE: i32 = 98;

/// A socket is bound to an address.
#[inline(always)]
pub(crate) fn bind<F: Form>(ctx: &SockAddrContext) -> i32 {
    let Some(mut key) = ctx::key::<F>(ctx) else {
        return PROCEED;
    };
    if !node_port::is_bound(&ThisNode(ctx), &key) {
        return PROCEED;
    }
    if let Some(row) = SERVICES.get_ptr(&key) {
        // SAFETY: a row's memory stays mapped while the program runs; a word is read at once.
        let flags = unsafe { (&raw const (*row).entry.flags).read_volatile() };
        if flags & FLAG_HOST_PORT != 0 {
            return refuse(EADDRINUSE);
        }
    }
    let bound = key.address;
    key.address = node_port::any(&bound);
    if SERVICES.get_ptr(&key).is_some() {
        return refuse(EADDRINUSE);
    }
    // Such a socket has the port of IPv4, too.
    if bound == ANY_V6 {
        key.address = ANY_V4;
        if SERVICES.get_ptr(&key).is_some() {
            return refuse(EADDRINUSE);
        }
    }
    PROCEED
}

/// The node, as the maps have it. Each answer is a lookup or a helper call, made only when asked for.
pub(crate) struct ThisNode<'a>(pub(crate) &'a SockAddrContext);

impl Node for ThisNode<'_> {
    #[inline(always)]
    fn ports(&self) -> [u16; 2] {
        CONFIG.get(0).map_or([0; 2], |config| config.node_ports)
    }

    #[inline(always)]
    fn is_host_port(&self, port: Port) -> bool {
        rows::is_host_port(port)
    }

    #[inline(always)]
    fn has(&self, address: &Address) -> bool {
        NODE_ADDRESSES.get_ptr(address).is_some()
    }

    #[inline(always)]
    fn is_here(&self) -> bool {
        // SAFETY: a plain helper call on the program's own context.
        node_netns() == unsafe { bpf_get_netns_cookie(self.0.as_ptr()) }
    }
}
