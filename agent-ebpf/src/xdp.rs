//! The links to other machines, before the network stack: the kernel's side of [`agent_ebpf::forward`].
//!
//! The agent attaches it where the driver runs it natively; a packet that it leaves alone goes the way of
//! [`crate::uplink`], by the same rows.

use core::arch::asm;

use agent_ebpf::abi::{
    Address, Connection, FlowKey, FragmentKey, FragmentPorts, LinkIndex, Port, XDP_LINK_TAKES,
};
use agent_ebpf::checksum::{Sum, updated};
use agent_ebpf::flow::Fragments;
use agent_ebpf::forward::{Course, Roads, forward};
use agent_ebpf::guard::is_foreign_pod;
use agent_ebpf::nat::{Node, Work};
use agent_ebpf::packet::{Bytes, Network};
use agent_ebpf::rewrite::{Covered, Frame, adjusted};
use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX};
use aya_ebpf::helpers::generated::bpf_redirect;
use aya_ebpf::programs::XdpContext;

use crate::maps::{POD_RANGES, SCRATCH, XDP_LINKS, port_range};
use crate::memory::{load, store, zeroed};
use crate::packets::dropped;
use crate::rows::is_tunnel;
use crate::way::{Found, Way};
use crate::{clock, count, events, rows};

/// A packet that comes in by an uplink.
#[inline(always)]
pub(crate) fn forwarded(ctx: &XdpContext) -> u32 {
    let Some(work) = SCRATCH.get_ptr_mut(0) else {
        return XDP_PASS;
    };
    // SAFETY: as at `uplink::translated`.
    let work = unsafe { &mut *work.cast::<Work>() };
    let came_by = ctx.ingress_ifindex() as u32;
    let mut arrival = Arrival {
        ctx: XdpContext::new(ctx.ctx),
        link: came_by,
        // SAFETY: words of zeros.
        hardware: unsafe { zeroed() },
    };
    match forward(&mut arrival, work) {
        Course::Stack => XDP_PASS,
        Course::Onward if arrival.link == came_by => XDP_TX,
        // SAFETY: a plain helper call.
        Course::Onward => match unsafe { bpf_redirect(arrival.link, 0) } as u32 {
            XDP_REDIRECT => XDP_REDIRECT,
            _ => XDP_DROP,
        },
        Course::Drop(reason) => {
            events::not_begun(&work.key, reason);
            dropped(reason);
            XDP_DROP
        }
    }
}

/// A packet, and the node that it comes to.
struct Arrival {
    ctx: XdpContext,
    /// By which it came, and then by which it leaves.
    link: u32,
    /// What the frame begins with when it leaves, in words as they lie in memory: the neighbour's address, and the node's.
    hardware: [u32; 3],
}

impl Arrival {
    /// The place of `N` bytes from `at` on, if the packet has it in one piece.
    #[inline(always)]
    fn place<const N: usize>(&self, at: u32) -> Option<*mut [u8; N]> {
        /// No header begins behind; it says to the verifier that the sum below does not overflow.
        const FURTHEST: usize = 1 << 10;
        let at = as_it_is(at as usize);
        if at > FURTHEST {
            return None;
        }
        let (start, end) = self.bounds();
        let start = start + at;
        if as_it_is(start + N) > end {
            return None;
        }
        Some(start as *mut [u8; N])
    }

    /// Where the packet begins, and where it ends. The compiler may not know that the kernel's structure has 32 bits of each: it
    /// would cut what it has read before to that many, which is no pointer any more.
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        let (start, end): (usize, usize);
        // SAFETY: the kernel passes a valid context, whose first fields these are.
        unsafe {
            asm!("{0} = *(u32 *)({1} + 0)", out(reg) start, in(reg) self.ctx.ctx, options(pure, readonly, nostack));
            asm!("{0} = *(u32 *)({1} + 4)", out(reg) end, in(reg) self.ctx.ctx, options(pure, readonly, nostack));
        }
        (start, end)
    }
}

/// Hides from the compiler where a number comes from: it would compare something else, which the verifier does not follow.
#[inline(always)]
fn as_it_is(mut number: usize) -> usize {
    // SAFETY: it moves a register onto itself.
    unsafe { asm!("{0} = {0}", inout(reg) number, options(pure, nomem, nostack)) };
    number
}

impl Bytes for Arrival {
    /// Of a packet in several buffers, what is in the first: it then ends before it says, and is the stack's.
    #[inline(always)]
    fn length(&self) -> u32 {
        (self.ctx.data_end() - self.ctx.data()) as u32
    }

    #[inline(always)]
    fn read<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        let place = self.place::<N>(at)?;
        // SAFETY: within the packet, as the verifier checks.
        Some(unsafe { load(place.cast()) })
    }
}

impl Frame for Arrival {
    #[inline(always)]
    fn write<const N: usize>(&mut self, at: u32, bytes: &[u8; N]) -> Option<()> {
        let place = self.place::<N>(at)?;
        // SAFETY: as for reading; nobody else has the packet.
        unsafe { store(place.cast(), bytes) };
        Some(())
    }

    #[inline(always)]
    fn adjust_header(&mut self, at: u32, difference: Sum) -> Option<()> {
        let old = self.read(at)?;
        self.write(at, &updated(old, difference))
    }

    #[inline(always)]
    fn adjust(&mut self, at: u32, difference: Sum, of: Covered) -> Option<()> {
        let old = self.read(at)?;
        self.write(at, &adjusted(old, difference, of.is_udp))
    }
}

impl Roads for Arrival {
    #[inline(always)]
    fn is_forged(&self) -> bool {
        let own = POD_RANGES.get(0);
        own.is_some_and(|own| is_foreign_pod(self, own))
    }

    #[inline(always)]
    fn is_for_node(&self) -> bool {
        // SAFETY: user space replaces a row by a new one, and only when the link's address changes.
        match (unsafe { XDP_LINKS.get(LinkIndex(self.link)) }, self.read(0)) {
            (Some(own), Some(to)) => own.mac == to,
            _ => false,
        }
    }

    #[inline(never)]
    fn take(&mut self, packet: &Network, flow: &FlowKey, by: u32) -> bool {
        let size = (packet.end - packet.at) as u16;
        let ctx = self.ctx.ctx.cast();
        let mut way = Way::of(self.link, packet, flow, size);
        let mut found = way.look(ctx);
        // Other nodes' pods are reached through a tunnel by no link but that.
        let leads_there = |way: &Way, found| {
            found != Found::Nothing && (way.link() == by || is_tunnel(way.link()))
        };
        if by != 0 && !leads_there(&way, found) {
            let (other, by_other) = Way::by(ctx, by, packet, flow, size);
            if by_other != Found::Nothing {
                (way, found) = (other, by_other);
            }
        }
        if found != Found::Neighbour {
            return false;
        }
        // What goes to a pod, into a tunnel, or out by a link whose driver sends only what the stack gives it, is the stack's.
        if way.link() != self.link {
            // SAFETY: as above.
            match unsafe { XDP_LINKS.get(LinkIndex(way.link())) } {
                Some(out) if out.flags & XDP_LINK_TAKES != 0 => {}
                _ => return false,
            }
        }
        self.link = way.link();
        let ([a, b, c, d, e, f], [g, h, i, j, k, l]) = (way.neighbour(), way.own());
        self.hardware = [[a, b, c, d], [e, f, g, h], [i, j, k, l]].map(u32::from_ne_bytes);
        true
    }

    #[inline(always)]
    fn leads_back(&self) -> bool {
        let [[a, b, c, d], [e, f, ..], _] = self.hardware.map(u32::to_ne_bytes);
        self.read(6) == Some([a, b, c, d, e, f])
    }

    #[inline(always)]
    fn address(&mut self) -> Option<()> {
        let [[a, b, c, d], [e, f, g, h], [i, j, k, l]] = self.hardware.map(u32::to_ne_bytes);
        self.write(0, &[a, b, c, d, e, f, g, h, i, j, k, l])
    }
}

impl Fragments for Arrival {
    /// A fragment is the stack's before it gets here.
    #[inline(always)]
    fn remember(&self, _: &FragmentKey, _: &FragmentPorts) {}

    #[inline(always)]
    fn ports(&self, _: &FragmentKey) -> Option<FragmentPorts> {
        None
    }
}

impl Node for Arrival {
    #[inline(always)]
    fn now_ns(&self) -> u64 {
        clock::coarse_ns()
    }

    #[inline(always)]
    fn link(&self) -> u32 {
        self.link
    }

    #[inline(always)]
    fn is_tunnel(&self) -> bool {
        rows::is_tunnel(self.link)
    }

    #[inline(always)]
    fn own_address(&self, is_ipv4: bool) -> Address {
        rows::own_address(self.link, is_ipv4)
    }

    #[inline(always)]
    fn is_node_address(&self, address: &Address) -> bool {
        rows::is_node_address(address)
    }

    #[inline(always)]
    fn node_ports(&self) -> (u16, u16) {
        rows::node_ports()
    }

    #[inline(always)]
    fn is_host_port(&self, port: Port) -> bool {
        rows::is_host_port(port)
    }

    #[inline(always)]
    fn port_range(&self) -> (u16, u16) {
        port_range()
    }

    #[inline(always)]
    fn has_socket(&self, answers: &FlowKey) -> bool {
        rows::has_socket(self.ctx.ctx.cast(), answers)
    }

    /// What leaves a pod does not come in by an uplink.
    #[inline(always)]
    fn is_pods(&self) -> bool {
        false
    }

    /// What is for one is the stack's.
    #[inline(always)]
    fn has_pod(&self, _: &Address) -> bool {
        false
    }

    #[inline(always)]
    fn masquerades(&self, _: &Address) -> bool {
        false
    }

    #[inline(always)]
    fn is_own(&self) -> bool {
        false
    }

    #[inline(always)]
    fn opened(&self, key: &FlowKey, row: &Connection) {
        count::opened_outside(row.backend);
        events::given(key, row);
    }

    #[inline(always)]
    fn is_near(&self, backend: &Address) -> bool {
        rows::is_near(backend)
    }

    #[inline(always)]
    fn former(&self, address: &Address) -> Option<Address> {
        rows::former(address)
    }

    /// The packet is the stack's, whose program refuses and counts it.
    #[inline(always)]
    fn refused(&self, _: &FlowKey, _: u32, _: bool) {}
}

rows::with_rows!(Arrival);
