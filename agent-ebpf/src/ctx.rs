//! The socket address that a program was called for, in the terms of the ABI.

use agent_ebpf::abi::{Ipv4, Port, ServiceKey, SocketKey, TCP, UDP};
use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_get_socket_cookie;
use aya_ebpf::programs::SockAddrContext;

/// How a socket address holds an IPv4 address.
pub(crate) trait Form {
    /// `None` when it holds another one.
    fn address(ctx: &SockAddrContext) -> Option<Ipv4>;
    fn set_address(ctx: &SockAddrContext, address: Ipv4);
}

/// As an IPv4 socket has it.
pub(crate) struct V4;

/// As an IPv6 socket has it: `::ffff:a.b.c.d` (RFC 4291, section 2.5.5.2).
pub(crate) struct V4Mapped;

impl Form for V4 {
    #[inline(always)]
    fn address(ctx: &SockAddrContext) -> Option<Ipv4> {
        // SAFETY: the kernel passes a valid context, and the verifier checks each access.
        Some(unsafe { (*ctx.sock_addr).user_ip4 }.to_ne_bytes())
    }

    #[inline(always)]
    fn set_address(ctx: &SockAddrContext, address: Ipv4) {
        // SAFETY: as above; the field is writable in every program that calls this.
        unsafe { (*ctx.sock_addr).user_ip4 = u32::from_ne_bytes(address) };
    }
}

impl Form for V4Mapped {
    #[inline(always)]
    fn address(ctx: &SockAddrContext) -> Option<Ipv4> {
        // SAFETY: as above.
        let words = unsafe { &raw const (*ctx.sock_addr).user_ip6 };
        // SAFETY: as above. Each word is read by itself: the verifier takes no copy of the whole.
        let word = |n: usize| unsafe { (&raw const (*words)[n]).read_volatile() };
        let mapped = word(0) == 0 && word(1) == 0 && word(2) == 0xffff_u32.to_be();
        mapped.then(|| word(3).to_ne_bytes())
    }

    #[inline(always)]
    fn set_address(ctx: &SockAddrContext, address: Ipv4) {
        // SAFETY: as above; the field is writable in every program that calls this.
        unsafe {
            let word = &raw mut (*ctx.sock_addr).user_ip6[3];
            word.write_volatile(u32::from_ne_bytes(address));
        }
    }
}

/// What the application dialled; `None` for an address or a protocol that services do not have.
#[inline(always)]
pub(crate) fn dialled<F: Form>(ctx: &SockAddrContext) -> Option<ServiceKey> {
    // SAFETY: as above.
    let protocol = unsafe { (*ctx.sock_addr).protocol };
    if protocol != u32::from(TCP) && protocol != u32::from(UDP) {
        return None;
    }
    let (address, port) = address::<F>(ctx)?;
    Some(ServiceKey {
        address,
        port,
        protocol: protocol as u8,
        pad: 0,
    })
}

/// The IPv4 address and port in the context.
#[inline(always)]
pub(crate) fn address<F: Form>(ctx: &SockAddrContext) -> Option<(Ipv4, Port)> {
    // SAFETY: as above. The field holds network-order bytes, in the first two of its four.
    let port = unsafe { (*ctx.sock_addr).user_port };
    Some((F::address(ctx)?, (port as u16).to_ne_bytes()))
}

/// Replaces address and port in the context.
#[inline(always)]
pub(crate) fn set_address<F: Form>(ctx: &SockAddrContext, address: Ipv4, port: Port) {
    F::set_address(ctx, address);
    // SAFETY: as above; the field is writable in every program that calls this.
    unsafe { (*ctx.sock_addr).user_port = u32::from(u16::from_ne_bytes(port)) };
}

/// Names the socket that the program was called for.
#[inline(always)]
pub(crate) fn socket(ctx: &impl EbpfContext) -> SocketKey {
    // SAFETY: a plain helper call on the program's own context.
    SocketKey(unsafe { bpf_get_socket_cookie(ctx.as_ptr()) })
}
