//! The BPF programs: thin shells over the library.
//!
//! ```text
//! connect4/6, sendmsg4/6         service address -> backend address      (translate.rs)
//! recvmsg4/6, getpeername4/6      backend address -> service address      (reverse.rs)
//! sock_ops                        handshakes, failures, bytes of TCP      (follow.rs)
//! bind4/6                         node ports are left to their services   (bind.rs)
//! sock_release                    the socket no longer counts             (count.rs)
//! tc at a pod's link              what leaves a pod, what goes to it      (pod.rs, untranslated.rs)
//! tc at an uplink                 services from outside, masquerade       (uplink.rs)
//! xdp at an uplink                of those, what only passes through      (xdp.rs)
//! ```
//!
//! Those that end in 6 are for IPv6 sockets, also when they speak to IPv4 addresses.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod bind;
mod clock;
mod count;
mod ctx;
mod enforce;
mod events;
mod follow;
mod maps;
mod memory;
mod packets;
mod pod;
mod reverse;
mod route;
mod rows;
mod shortcut;
mod skb;
mod tables;
mod traffic;
mod translate;
mod untranslated;
mod uplink;
mod way;
mod xdp;

use agent_ebpf::abi::{DropReason, Opened, Side};
use aya_ebpf::helpers::bpf_set_retval;
use aya_ebpf::macros::{cgroup_sock, cgroup_sock_addr, classifier, sock_ops, xdp};
use aya_ebpf::programs::{SockAddrContext, SockContext, SockOpsContext, TcContext, XdpContext};
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

#[cgroup_sock_addr(bind4)]
fn kn_bind4(ctx: SockAddrContext) -> i32 {
    bind::bind::<V4>(&ctx)
}

#[cgroup_sock_addr(bind6)]
fn kn_bind6(ctx: SockAddrContext) -> i32 {
    bind::bind::<V6>(&ctx)
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

/// Ingress of the node's end of a pod's link.
#[classifier]
fn kn_pod_out(ctx: TcContext) -> i32 {
    pod::leaving(&ctx)
}

/// Egress of the node's end of a pod's link.
#[classifier]
fn kn_pod_in(ctx: TcContext) -> i32 {
    pod::arriving(&ctx)
}

/// Goes on for `kn_pod_out`.
#[classifier]
fn kn_pod_dialled(ctx: TcContext) -> i32 {
    untranslated::dialled(&ctx)
}

/// Goes on for `kn_pod_in`.
#[classifier]
fn kn_pod_answered(ctx: TcContext) -> i32 {
    untranslated::answered(&ctx)
}

/// Fails the system call with `errno`, or with EPERM where the kernel cannot choose the error.
#[inline(always)]
fn refuse(errno: i32) -> i32 {
    if maps::has_set_retval() {
        // SAFETY: a plain helper call; the value is a valid negative errno.
        unsafe { bpf_set_retval(-errno) };
    }
    REJECT
}

/// Ingress of a link to other machines.
#[classifier]
fn kn_uplink_in(ctx: TcContext) -> i32 {
    if packets::is_forged(&ctx) {
        return packets::dropped(DropReason::ForeignPod);
    }
    uplink::translated(&ctx, Side::IN)
}

/// Egress of a link to other machines.
#[classifier]
fn kn_uplink_out(ctx: TcContext) -> i32 {
    uplink::translated(&ctx, Side::OUT)
}

/// Attached nowhere: the agent runs it with a frame that holds an [`Opened`].
#[classifier]
fn kn_opened(ctx: TcContext) -> i32 {
    if let Ok(order) = ctx.load::<Opened>(Opened::AT) {
        count::carried_over(order);
    }
    0
}

/// Ingress of a link to other machines, before there is a socket buffer. It may be attached to links whose packets lie in
/// several buffers.
#[xdp(frags)]
fn kn_uplink_xdp(ctx: XdpContext) -> u32 {
    xdp::forwarded(&ctx)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // The verifier refuses a program in which a panic can be reached.
    loop {}
}
