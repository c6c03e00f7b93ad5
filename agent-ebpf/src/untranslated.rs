//! Packets of pods whose sockets the programs do not see: of virtual machines, of foreign cgroups, of raw sockets. They go to
//! services untranslated, and are translated at the pod's link. A packet that was translated at its socket is told from
//! them by a look at an array; for the others there are programs of their own, which have the whole of a stack.

use agent_ebpf::abi::{
    Address, DropReason, LinkIndex, Port, Scope, ServiceKey, Side, TCP, TRANSLATING_LINKS, UDP,
    service_port_bit,
};
use agent_ebpf::node_port::{self, Node};
use agent_ebpf::packet::{Bytes as _, Network, Part, TCP_ACK, TCP_SYN};
use agent_ebpf::policy::Direction;
use aya_ebpf::helpers::generated::bpf_redirect;
use aya_ebpf::programs::TcContext;

use crate::enforce::{examine, is_isolated, judge};
use crate::maps::{CONFIG, NODE_ADDRESSES, PODS, SERVICE_PORTS, SERVICES, STAGES, TRANSLATING};
use crate::packets::{PASS, dropped};
use crate::pod::{is_ip, memory};
use crate::rows;
use crate::skb::Skb;
use crate::traffic;
use crate::uplink::translated;

/// What those programs are for: their places in `STAGES`.
#[derive(Clone, Copy)]
pub(crate) enum Stage {
    /// A packet that a pod sends may be for a service.
    Dialled = 0,
    /// A packet to a pod may be a service's answer.
    Answered = 1,
}

/// Lets the packet go on in another program.
#[inline(always)]
pub(crate) fn go_on(ctx: &TcContext, stage: Stage) {
    // SAFETY: the context is the program's own.
    unsafe { STAGES.tail_call(ctx, stage as u32) };
}

/// A packet that a pod sends, which may be for a service. Policy is about the backend that it gets.
#[inline(always)]
pub(crate) fn dialled(ctx: &TcContext) -> i32 {
    match translated(ctx, Side::FROM_POD) {
        PASS => sent_on(ctx),
        verdict => verdict,
    }
}

/// A packet to a pod, which may be a service's answer.
#[inline(always)]
pub(crate) fn answered(ctx: &TcContext) -> i32 {
    translated(ctx, Side::TO_POD)
}

#[inline(always)]
fn sent_on(ctx: &TcContext) -> i32 {
    let skb = Skb::of(ctx);
    let link = LinkIndex(skb.link());
    let Some(work) = memory() else {
        return PASS;
    };
    if !matches!(is_ip(&skb, work), Ok(true)) {
        return dropped(DropReason::Malformed);
    }
    // SAFETY: a row is read once.
    let pod = unsafe { PODS.get(link) };
    let own = &work.network.destination;
    if pod.is_some_and(|pod| pod.ipv4 == *own || pod.ipv6 == *own) {
        return back(&skb);
    }
    if is_isolated(link) {
        let judged =
            examine(&skb, work, false).and_then(|()| judge(&work.packet, link, Direction::Egress));
        if let Err(reason) = judged {
            return dropped(reason);
        }
    }
    traffic::sent(link, &skb);
    PASS
}

/// Returns a packet to the pod that sent it: the backend that it got is itself. No route would lead it there, as the kernel
/// lets nothing from a service's address in by a pod's link.
#[inline(always)]
fn back(skb: &Skb) -> i32 {
    let turned = skb
        .read::<12>(0)
        .and_then(|[a, b, c, d, e, f, g, h, i, j, k, l]| {
            skb.write(0, &[g, h, i, j, k, l, a, b, c, d, e, f], 0)
        });
    match turned {
        // SAFETY: a plain helper call.
        Some(()) => unsafe { bpf_redirect(skb.link(), 0) as i32 },
        None => dropped(DropReason::Malformed),
    }
}

/// Whether packets were translated at the link of a pod.
#[inline(always)]
pub(crate) fn is_translating(link: u32) -> bool {
    let seen = TRANSLATING.get(link % TRANSLATING_LINKS);
    seen.is_some_and(|seen| *seen != 0)
}

/// Whether what a pod sends has to be looked at more closely: it dials a service, or did before.
#[inline(always)]
pub(crate) fn concerns(skb: &Skb, network: &Network) -> bool {
    let link = skb.link();
    if is_translating(link) {
        return true;
    }
    let Some(port) = opened(skb, network) else {
        return false;
    };
    let (word, bit) = service_port_bit(network.protocol, port);
    if SERVICE_PORTS.get(word).is_none_or(|bits| bits & bit == 0) {
        return false;
    }
    let mut key = ServiceKey {
        address: network.destination,
        port,
        protocol: network.protocol,
        scope: Scope::CLUSTER,
    };
    let mut is_service = SERVICES.get_ptr(&key).is_some();
    if !is_service && node_port::is_dialled(&Outside, &key) {
        key.address = node_port::any(&network.destination);
        is_service = SERVICES.get_ptr(&key).is_some();
    }
    if is_service && let Some(seen) = TRANSLATING.get_ptr_mut(link % TRANSLATING_LINKS) {
        // SAFETY: whoever writes at the same time writes the same.
        unsafe { seen.write_volatile(1) };
    }
    is_service
}

/// The port that is dialled, by a packet that may begin a flow.
#[inline(always)]
fn opened(skb: &Skb, network: &Network) -> Option<Port> {
    if network.part == Part::Later {
        return None;
    }
    match network.protocol {
        UDP => skb.near(network.transport_at + 2),
        TCP => {
            let header: [u8; 12] = skb.near(network.transport_at + 2)?;
            let opens = header[11] & (TCP_SYN | TCP_ACK) == TCP_SYN;
            opens.then_some([header[0], header[1]])
        }
        _ => None,
    }
}

/// The node, as a packet of a pod meets it: what comes over a link was not sent to loopback.
struct Outside;

impl Node for Outside {
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
        false
    }
}
