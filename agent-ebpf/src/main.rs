//! The BPF programs: thin shells over the library.
//!
//! ```text
//! connect4/6, sendmsg4/6         service address -> backend address      (translate.rs)
//! recvmsg4/6, getpeername4/6      backend address -> service address      (reverse.rs)
//! sock_ops                        handshakes, failures, bytes of TCP      (follow.rs)
//! sock_release                    the socket no longer counts             (count.rs)
//! ```
//!
//! Those that end in 6 are for IPv6 sockets, also when they speak to IPv4 addresses.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod count;
mod ctx;
mod events;
mod follow;
mod maps;
mod reverse;
mod translate;

use aya_ebpf::macros::{cgroup_sock, cgroup_sock_addr, sock_ops};
use aya_ebpf::programs::{SockAddrContext, SockContext, SockOpsContext};
use ctx::{V4, V6};

/// Lets the system call go on, with the address as the program left it.
const PROCEED: i32 = 1;
/// Makes the system call fail.
const REJECT: i32 = 0;

#[cgroup_sock_addr(connect4)]
fn kn_connect4(ctx: SockAddrContext) -> i32 {
    translate::dial::<V4>(&ctx)
}

#[cgroup_sock_addr(connect6)]
fn kn_connect6(ctx: SockAddrContext) -> i32 {
    translate::dial::<V6>(&ctx)
}

#[cgroup_sock_addr(sendmsg4)]
fn kn_sendmsg4(ctx: SockAddrContext) -> i32 {
    translate::dial::<V4>(&ctx)
}

#[cgroup_sock_addr(sendmsg6)]
fn kn_sendmsg6(ctx: SockAddrContext) -> i32 {
    translate::dial::<V6>(&ctx)
}

#[cgroup_sock_addr(recvmsg4)]
fn kn_recvmsg4(ctx: SockAddrContext) -> i32 {
    reverse::recvmsg::<V4>(&ctx);
    PROCEED
}

#[cgroup_sock_addr(recvmsg6)]
fn kn_recvmsg6(ctx: SockAddrContext) -> i32 {
    reverse::recvmsg::<V6>(&ctx);
    PROCEED
}

#[cgroup_sock_addr(getpeername4)]
fn kn_getpeername4(ctx: SockAddrContext) -> i32 {
    reverse::getpeername::<V4>(&ctx);
    PROCEED
}

#[cgroup_sock_addr(getpeername6)]
fn kn_getpeername6(ctx: SockAddrContext) -> i32 {
    reverse::getpeername::<V6>(&ctx);
    PROCEED
}

#[sock_ops]
fn kn_sock_ops(ctx: SockOpsContext) -> u32 {
    follow::event(&ctx);
    PROCEED as u32
}

#[cgroup_sock(sock_release)]
fn kn_sock_release(ctx: SockContext) -> i32 {
    count::released(&ctx);
    PROCEED
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // The verifier refuses a program in which a panic can be reached.
    loop {}
}
