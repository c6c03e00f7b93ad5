//! A socket buffer, as the library's packet logic sees it.

use core::arch::asm;
use core::mem::MaybeUninit;

use agent_ebpf::packet::Bytes;
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::bpf_skb_load_bytes;
use aya_ebpf::helpers::generated::bpf_skb_store_bytes;
use aya_ebpf::programs::TcContext;

use crate::memory::load;

/// A packet on its way into or out of a link.
#[derive(Clone, Copy)]
pub(crate) struct Skb(*mut __sk_buff);

impl Bytes for Skb {
    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: the kernel passes a valid context, and the verifier checks each access.
        unsafe { (*self.0).len }
    }

    #[inline(always)]
    fn read<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: the helper writes all of the array, or fails. It reads also what lies in fragments of the buffer.
        unsafe {
            let skb = self.0.cast();
            match bpf_skb_load_bytes(skb, at, bytes.as_mut_ptr().cast(), N as u32) {
                0 => Some(bytes.assume_init()),
                _ => None,
            }
        }
    }

    #[inline(always)]
    fn near<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        self.peek(at).or_else(|| self.read(at))
    }
}

/// How far into a packet headers are read where they lie. The verifier wants a bound; behind it the helper is as good.
const NEAR: u32 = 255;

impl Skb {
    /// Reads bytes where they lie, which costs a third of the helper; `None` for what does not lie in the buffer's linear part.
    #[inline(always)]
    fn peek<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        if at > NEAR {
            return None;
        }
        // SAFETY: the kernel passes a valid context. The verifier lets nothing be read that was not compared with the end, and
        // reads words where the kernel lays a header's words out, which is where the processor can read them.
        unsafe {
            let (start, end) = ((*self.0).data as usize, (*self.0).data_end as usize);
            let mut from = start;
            // The compiler may not take the sum apart: the verifier knows the bounds of this very register.
            asm!("{0} += {1}", inout(reg) from, in(reg) at as usize, options(nomem, nostack));
            if from + N > end {
                return None;
            }
            Some(load(from as *const u8))
        }
    }

    #[inline(always)]
    pub(crate) fn of(ctx: &TcContext) -> Self {
        Self(ctx.skb.skb)
    }

    /// Index of the link that the program is attached to.
    #[inline(always)]
    pub(crate) fn link(&self) -> u32 {
        // SAFETY: the kernel passes a valid context, and the verifier checks each access.
        unsafe { (*self.0).ifindex }
    }

    /// Index of the link by which the packet came to the node; 0 for what the node's own sockets send.
    #[inline(always)]
    pub(crate) fn came_by(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.0).ingress_ifindex }
    }

    /// Bytes of the frame.
    #[inline(always)]
    pub(crate) fn frame_length(&self) -> u32 {
        self.length()
    }

    /// Bytes of payload in each segment that a larger packet will be cut into; 0 for one that will not.
    #[inline(always)]
    pub(crate) fn segment(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.0).gso_size }
    }

    /// Whether the frame is addressed to the link that it came by.
    #[inline(always)]
    pub(crate) fn is_for_us(&self) -> bool {
        /// `PACKET_HOST`
        const HOST: u32 = 0;
        // SAFETY: as above.
        unsafe { (*self.0).pkt_type == HOST }
    }

    /// Replaces bytes from `at` on. `None` when that cannot be done; the packet is then of no use any more.
    #[inline(always)]
    pub(crate) fn write<const N: usize>(&self, at: u32, bytes: &[u8; N], flags: u64) -> Option<()> {
        // SAFETY: the helper reads the array and checks that the packet has the place.
        let result =
            unsafe { bpf_skb_store_bytes(self.0, at, bytes.as_ptr().cast(), N as u32, flags) };
        (result == 0).then_some(())
    }

    #[inline(always)]
    pub(crate) fn raw(&self) -> *mut __sk_buff {
        self.0
    }

    /// Whether the frame is of a VLAN. Its tag is kept beside it; one that only says a priority names none.
    #[inline(always)]
    pub(crate) fn has_vlan(&self) -> bool {
        /// `VLAN_VID_MASK`
        const ID: u32 = 0x0fff;
        // SAFETY: as above.
        unsafe { (*self.0).vlan_present != 0 && (*self.0).vlan_tci & ID != 0 }
    }
}
