//! Where the kernel's routes lead a packet.

use core::ffi::c_void;

use agent_ebpf::abi::FlowKey;
use agent_ebpf::packet::Network;
use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS,
    BPF_FIB_LOOKUP_OUTPUT, bpf_fib_lookup, bpf_redir_neigh,
};
use aya_ebpf::helpers::generated::{bpf_fib_lookup as fib_lookup, bpf_redirect_neigh};

use crate::memory::zeroed;

/// `AF_INET`, `AF_INET6`
const INET: u8 = 2;
const INET6: u8 = 10;

/// A question to the routing tables, and its answer.
pub(crate) struct Way(bpf_fib_lookup);

/// What they say.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// The link, and the hardware addresses.
    Neighbour,
    /// The link; whose it is there has to be asked for.
    Link,
    TooLarge,
    /// The network stack may know more.
    Nothing,
}

impl Way {
    /// Of a packet of `size` bytes that came by `link` and is now `flow`'s. Of size 0 the kernel looks for itself.
    #[inline(always)]
    pub(crate) fn of(link: u32, packet: &Network, flow: &FlowKey, size: u16) -> Self {
        // SAFETY: all fields are integers, for which zero is a value.
        let mut way: bpf_fib_lookup = unsafe { zeroed() };
        way.ifindex = link;
        way.l4_protocol = flow.protocol;
        way.sport = u16::from_ne_bytes(flow.source_port);
        way.dport = u16::from_ne_bytes(flow.destination_port);
        way.__bindgen_anon_1.tot_len = size;
        let (source, destination) = (flow.source.words(), flow.destination.words());
        if packet.is_ipv4 {
            way.family = INET;
            way.__bindgen_anon_3.ipv4_src = source[3];
            way.__bindgen_anon_4.ipv4_dst = destination[3];
        } else {
            way.family = INET6;
            way.__bindgen_anon_3.ipv6_src = source;
            way.__bindgen_anon_4.ipv6_dst = destination;
        }
        Self(way)
    }

    /// Asks. `ctx` is that of the program.
    #[inline(always)]
    pub(crate) fn look(&mut self, ctx: *mut c_void) -> Found {
        self.ask(ctx, 0)
    }

    /// The same for a packet that is to leave by `link`, as if the node itself had made it. Of IPv6 the kernel then minds no
    /// rule that goes by the source, as it does for what comes in: that is asked next.
    #[inline(always)]
    pub(crate) fn by(
        ctx: *mut c_void,
        link: u32,
        packet: &Network,
        flow: &FlowKey,
        size: u16,
    ) -> (Self, Found) {
        let mut way = Self::of(link, packet, flow, size);
        let mut found = way.ask(ctx, BPF_FIB_LOOKUP_OUTPUT);
        if !packet.is_ipv4 && !way.leads(found, link) {
            way = Self::of(link, packet, flow, size);
            found = way.ask(ctx, 0);
        }
        let found = match way.leads(found, link) {
            true => found,
            false => Found::Nothing,
        };
        (way, found)
    }

    #[inline(always)]
    fn leads(&self, found: Found, link: u32) -> bool {
        matches!(found, Found::Neighbour | Found::Link) && self.0.ifindex == link
    }

    #[inline(always)]
    fn ask(&mut self, ctx: *mut c_void, flags: u32) -> Found {
        let length = size_of::<bpf_fib_lookup>() as i32;
        // SAFETY: the structure outlives the call, and its size is said.
        match unsafe { fib_lookup(ctx, &raw mut self.0, length, flags) } as u32 {
            BPF_FIB_LKUP_RET_SUCCESS => Found::Neighbour,
            BPF_FIB_LKUP_RET_NO_NEIGH => Found::Link,
            BPF_FIB_LKUP_RET_FRAG_NEEDED => Found::TooLarge,
            _ => Found::Nothing,
        }
    }

    /// Index of the link by which the packet leaves.
    #[inline(always)]
    pub(crate) fn link(&self) -> u32 {
        self.0.ifindex
    }

    /// The hardware address of the next machine.
    #[inline(always)]
    pub(crate) fn neighbour(&self) -> [u8; 6] {
        self.0.dmac
    }

    /// The node's at that link.
    #[inline(always)]
    pub(crate) fn own(&self) -> [u8; 6] {
        self.0.smac
    }

    /// Sends a socket buffer there; gives the program's verdict.
    #[inline(always)]
    pub(crate) fn redirect(&self) -> i32 {
        // SAFETY: all fields are integers, for which zero is a value.
        let mut next: bpf_redir_neigh = unsafe { zeroed() };
        next.nh_family = self.0.family.into();
        // SAFETY: any bytes are an address of either family, and what was asked for was answered in its place.
        next.__bindgen_anon_1.ipv6_nh = unsafe { self.0.__bindgen_anon_4.ipv6_dst };
        let length = size_of::<bpf_redir_neigh>() as i32;
        // SAFETY: the structure outlives the call, and its size is said.
        (unsafe { bpf_redirect_neigh(self.0.ifindex, &raw mut next, length, 0) }) as i32
    }
}
