//! The socket address that a program was called for, in the terms of the ABI.

use core::arch::asm;

use agent_ebpf::abi::{Address, Port, Scope, ServiceKey, SocketEntry, SocketKey, TCP, UDP};
use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_get_socket_cookie;
use aya_ebpf::programs::SockAddrContext;

/// How a socket address holds an IP address.
pub(crate) trait Form {
    fn address(ctx: &SockAddrContext) -> Address;
    fn set_address(ctx: &SockAddrContext, address: &Address);
}

/// As an IPv4 socket has it.
pub(crate) struct V4;

/// As an IPv6 socket has it. An IPv4 address stands there as it does in an [`Address`].
pub(crate) struct V6;

impl Form for V4 {
    #[inline(always)]
    fn address(ctx: &SockAddrContext) -> Address {
        // SAFETY: the kernel passes a valid context, and the verifier checks each access.
        Address::v4_word(unsafe { (*ctx.sock_addr).user_ip4 })
    }

    #[inline(always)]
    fn set_address(ctx: &SockAddrContext, address: &Address) {
        let [.., word] = address.words();
        // SAFETY: as above; the field is writable in every program that calls this.
        unsafe { (*ctx.sock_addr).user_ip4 = word };
    }
}

impl Form for V6 {
    #[inline(always)]
    fn address(ctx: &SockAddrContext) -> Address {
        // SAFETY: as above.
        let words = unsafe { &raw const (*ctx.sock_addr).user_ip6 };
        // SAFETY: as above. Each word is read by itself: the verifier takes no copy of the whole.
        let word = |n: usize| unsafe { (&raw const (*words)[n]).read_volatile() };
        Address::from_words([word(0), word(1), word(2), word(3)])
    }

    #[inline(always)]
    fn set_address(ctx: &SockAddrContext, address: &Address) {
        // SAFETY: as above.
        let words = unsafe { &raw mut (*ctx.sock_addr).user_ip6 };
        for (n, word) in address.words().into_iter().enumerate() {
            // SAFETY: as above; the field is writable in every program that calls this.
            unsafe { (&raw mut (*words)[n]).write_volatile(word) };
        }
    }
}

/// What the application dialled or binds; `None` for a protocol that services do not have.
#[inline(always)]
pub(crate) fn key<F: Form>(ctx: &SockAddrContext) -> Option<ServiceKey> {
    // SAFETY: as above.
    let protocol = unsafe { (*ctx.sock_addr).protocol };
    if protocol != u32::from(TCP) && protocol != u32::from(UDP) {
        return None;
    }
    let (address, port) = address::<F>(ctx);
    Some(ServiceKey {
        address,
        port,
        protocol: protocol as u8,
        scope: Scope::CLUSTER,
    })
}

/// The address and port in the context.
#[inline(always)]
pub(crate) fn address<F: Form>(ctx: &SockAddrContext) -> (Address, Port) {
    // SAFETY: as above. The field holds network-order bytes, in the first two of its four.
    let port = unsafe { (*ctx.sock_addr).user_port };
    (F::address(ctx), (port as u16).to_ne_bytes())
}

/// Replaces address and port in the context.
#[inline(always)]
pub(crate) fn set_address<F: Form>(ctx: &SockAddrContext, address: &Address, port: Port) {
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

/// The flags in a socket's row, which two programs may change at once.
#[inline(always)]
pub(crate) fn flags(entry: &SocketEntry) -> u64 {
    // SAFETY: aligned and valid for the entry's life; one instruction reads all of it.
    unsafe { (&raw const entry.flags).read_volatile() }
}

/// Sets a bit in a socket's row and gives what was there. Written out because the compiler has no such operation for BPF.
#[inline(always)]
pub(crate) fn set_flag(entry: &mut SocketEntry, flag: u64) -> u64 {
    let before;
    // SAFETY: the operand is aligned, and valid for the entry's life. The instruction is a full barrier (Linux 5.12,
    // Documentation/bpf/standardization/instruction-set.rst).
    unsafe {
        asm!(
            "{value} = atomic_fetch_or((u64 *)({at} + 0), {value})",
            at = in(reg) &raw mut entry.flags,
            value = inout(reg) flag => before,
        );
    }
    before
}
