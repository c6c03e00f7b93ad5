//! What the kernel's routing tables say, asked by a program.

use agent_ebpf::abi::{Address, TCP, UDP};
use agent_ebpf::packet::{Bytes as _, ETHERNET_LENGTH, Network, Part};
use agent_ebpf::router::ReversePath;
use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup, bpf_redir_neigh,
};
use aya_ebpf::helpers::generated::{bpf_fib_lookup as fib_lookup, bpf_redirect_neigh};

use crate::clock::coarse_ns;
use crate::maps::REVERSE_PATHS;
use crate::memory::zeroed;
use crate::skb::Skb;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// By which link the node would answer the source of a packet that comes to the pod at the link `pod`; 0 where the answer
/// is not simply a link.
#[inline(never)]
pub(crate) fn link_back(skb: &Skb, network: &Network, pod: u32) -> u32 {
    let asked_ns = coarse_ns();
    let Some(last) = REVERSE_PATHS.get_ptr_mut(ReversePath::place(network)) else {
        return 0;
    };
    // SAFETY: this CPU's own, and no other program of this object runs before this one ends. All zeros, which it begins with,
    // is a value of each field.
    let last = unsafe { &mut *last.cast::<ReversePath>() };
    if !last.holds(network, pod, asked_ns) {
        *last = ReversePath {
            source: network.source,
            destination: network.destination,
            pod,
            link: ask_back(skb, network, pod),
            asked_ns,
        };
    }
    last.link
}

#[inline(always)]
fn ask_back(skb: &Skb, network: &Network, pod: u32) -> u32 {
    let mut asked = question(network, &network.destination, &network.source, pod);
    // The size of no packet in particular: else the kernel would look at what this one's is there.
    asked.__bindgen_anon_1.tot_len = 1;
    match ask(skb, &mut asked) {
        true => asked.ifindex,
        false => 0,
    }
}

/// Where a packet goes on, and to whom.
pub(crate) struct Hop {
    pub link: u32,
    to: bpf_redir_neigh,
}

/// The next hop of a packet that came by the link `from`; none where the kernel would do more than pass the packet on: cut
/// it, put it into a tunnel, refuse it, or hear it itself.
#[inline(always)]
pub(crate) fn next_hop(skb: &Skb, network: &Network, from: u32) -> Option<Hop> {
    let mut asked = question(network, &network.source, &network.destination, from);
    let (length, ports) = look(skb, network)?;
    asked.__bindgen_anon_1.tot_len = length;
    (asked.sport, asked.dport) = ports;
    asked.__bindgen_anon_2.flowinfo = class(skb, network)?;
    if !ask(skb, &mut asked) {
        return None;
    }
    // SAFETY: all fields are integers, for which zero is a value.
    let mut to: bpf_redir_neigh = unsafe { zeroed() };
    to.nh_family = u32::from(asked.family);
    // SAFETY: of an IPv4 address the kernel has written the first word. The others are the packet's own.
    to.__bindgen_anon_1.ipv6_nh = unsafe { asked.__bindgen_anon_4.ipv6_dst };
    Some(Hop {
        link: asked.ifindex,
        to,
    })
}

/// Has the packet sent on.
#[inline(always)]
pub(crate) fn send(hop: &mut Hop) -> i32 {
    let length = size_of::<bpf_redir_neigh>() as i32;
    // SAFETY: the helper copies the structure.
    unsafe { bpf_redirect_neigh(hop.link, &raw mut hop.to, length, 0) as i32 }
}

#[inline(always)]
fn question(network: &Network, from: &Address, to: &Address, link: u32) -> bpf_fib_lookup {
    // SAFETY: all fields are integers, for which zero is a value.
    let mut asked: bpf_fib_lookup = unsafe { zeroed() };
    asked.l4_protocol = network.protocol;
    asked.ifindex = link;
    let (from, to) = (from.words(), to.words());
    if network.is_ipv4 {
        asked.family = AF_INET;
        asked.__bindgen_anon_3.ipv4_src = from[3];
        asked.__bindgen_anon_4.ipv4_dst = to[3];
    } else {
        asked.family = AF_INET6;
        asked.__bindgen_anon_3.ipv6_src = from;
        asked.__bindgen_anon_4.ipv6_dst = to;
    }
    asked
}

/// Whether there is an ordinary route. Neighbours that are not known yet are the kernel's to find.
#[inline(always)]
fn ask(skb: &Skb, asked: &mut bpf_fib_lookup) -> bool {
    let length = size_of::<bpf_fib_lookup>() as i32;
    // SAFETY: the helper reads and writes the structure, which is as long as is said.
    let answer = unsafe { fib_lookup(skb.raw().cast(), asked, length, 0) };
    answer == i64::from(BPF_FIB_LKUP_RET_SUCCESS) || answer == i64::from(BPF_FIB_LKUP_RET_NO_NEIGH)
}

/// The length of the packet, or of the longest that it will be cut into, and the ports that may choose among several next
/// hops.
#[inline(always)]
fn look(skb: &Skb, network: &Network) -> Option<(u16, (u16, u16))> {
    let at = network.transport_at;
    let has_ports = matches!(network.protocol, TCP | UDP) && network.part == Part::Whole;
    let mut ports = (0, 0);
    if has_ports {
        let [a, b, c, d]: [u8; 4] = skb.near(at)?;
        ports = (u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]));
    }
    let segment = skb.segment();
    let mut length = skb.frame_length() - ETHERNET_LENGTH;
    if segment != 0 {
        let header = match network.protocol {
            TCP if has_ports => {
                let [offset]: [u8; 1] = skb.near(at + 12)?;
                u32::from(offset >> 4) * 4
            }
            UDP if has_ports => 8,
            _ => return None,
        };
        length = at - ETHERNET_LENGTH + header + segment;
    }
    Some((u16::try_from(length).ok()?, ports))
}

/// The bits of the header by which rules may choose another routing table.
#[inline(always)]
fn class(skb: &Skb, network: &Network) -> Option<u32> {
    let word: [u8; 4] = skb.near(network.at)?;
    let [first, second, ..] = word;
    Some(match network.is_ipv4 {
        true => u32::from_ne_bytes([second, 0, 0, 0]),
        false => u32::from_ne_bytes([first & 0x0f, second & 0xf0, 0, 0]),
    })
}
