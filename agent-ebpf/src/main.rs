//! The BPF programs: thin shells over the library.
//!
//! ```text
//! connect4, sendmsg4          service address -> backend address   (translate.rs)
//! recvmsg4, getpeername4      backend address -> service address   (reverse.rs)
//! sock_release                the socket no longer counts          (count.rs)
//! ```
#![no_std]
#![no_main]

mod count;
mod ctx;
mod maps;
mod reverse;
mod translate;

use aya_ebpf::macros::{cgroup_sock, cgroup_sock_addr};
use aya_ebpf::programs::{SockAddrContext, SockContext};

/// Lets the system call go on, with the address as the program left it.
const PROCEED: i32 = 1;
/// Makes the system call fail.
const REJECT: i32 = 0;

#[cgroup_sock_addr(connect4)]
fn kn_connect4(ctx: SockAddrContext) -> i32 {
    translate::dial(&ctx)
}

#[cgroup_sock_addr(sendmsg4)]
fn kn_sendmsg4(ctx: SockAddrContext) -> i32 {
    translate::dial(&ctx)
}

#[cgroup_sock_addr(recvmsg4)]
fn kn_recvmsg4(ctx: SockAddrContext) -> i32 {
    reverse::recvmsg(&ctx);
    PROCEED
}

#[cgroup_sock_addr(getpeername4)]
fn kn_getpeername4(ctx: SockAddrContext) -> i32 {
    reverse::getpeername(&ctx);
    PROCEED
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
