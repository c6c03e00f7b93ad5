//! The links to other machines, and pods' links: the kernel's side of [`agent_ebpf::nat`].

use agent_ebpf::abi::{
    Address, Connection, FlowKey, FragmentKey, FragmentPorts, LinkIndex, Port, Side, TCP,
};
use agent_ebpf::checksum::Sum;
use agent_ebpf::flow::Fragments;
use agent_ebpf::nat::{Fate, Handover, Neighbours, Node, Work, read, translate};
use agent_ebpf::packet::{Bytes, Network};
use agent_ebpf::rewrite::{Covered, Frame, spend_hop};
use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, TC_ACT_REDIRECT};
use aya_ebpf::helpers::generated::{bpf_csum_update, bpf_l3_csum_replace, bpf_l4_csum_replace};
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::programs::TcContext;

use crate::maps::{EXEMPT, FRAGMENTS, PODS, SCRATCH, UPLINKS, port_range};
use crate::packets::{PASS, dropped};
use crate::shortcut;
use crate::skb::Skb;
use crate::way::{Found, Way};
use crate::{clock, count, events, rows};

/// A packet at one side of an uplink or of a pod's link.
#[inline(always)]
pub(crate) fn translated(ctx: &TcContext, side: Side) -> i32 {
    let Some(work) = SCRATCH.get_ptr_mut(0) else {
        return PASS;
    };
    // SAFETY: this CPU's own, and no other program of this object runs before this one ends. All zeros, which it begins with,
    // is a value of each field.
    let work = unsafe { &mut *work.cast::<Work>() };
    let mut uplink = Uplink(Skb::of(ctx));
    // What belongs to a VLAN meets the programs at the VLAN's own link.
    let is_elsewhere = matches!(side, Side::IN | Side::OUT) && uplink.0.has_vlan();
    if is_elsewhere || !read(&uplink, work) {
        return PASS;
    }
    match translate(&mut uplink, work, side) {
        // It may be for a pod by now.
        Fate::Translated if side == Side::IN => {
            work.network.source = work.row.source;
            work.network.destination = work.row.destination;
            shortcut::from_uplink(&uplink.0, &work.network).unwrap_or(PASS)
        }
        Fate::Reached => shortcut::to_own_pod(&uplink.0, &work.network).unwrap_or(PASS),
        Fate::Pass | Fate::Translated => PASS,
        Fate::Onward => TC_ACT_REDIRECT,
        Fate::Drop(reason) => {
            events::not_begun(&work.key, reason);
            dropped(reason)
        }
    }
}

/// A packet, and the node that it passes.
struct Uplink(Skb);

impl Bytes for Uplink {
    #[inline(always)]
    fn length(&self) -> u32 {
        self.0.length()
    }

    #[inline(always)]
    fn read<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        self.0.read(at)
    }

    #[inline(always)]
    fn near<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        self.0.near(at)
    }
}

/// A sum as the kernel holds it: of words as they lie in memory.
#[inline(always)]
fn native(sum: Sum) -> u32 {
    u32::from(u16::from_ne_bytes(sum.folded()))
}

#[inline(always)]
fn done(result: i64) -> Option<()> {
    (result == 0).then_some(())
}

impl Frame for Uplink {
    #[inline(always)]
    fn write<const N: usize>(&mut self, at: u32, bytes: &[u8; N]) -> Option<()> {
        self.0.write(at, bytes, 0)
    }

    #[inline(always)]
    fn adjust_header(&mut self, at: u32, difference: Sum) -> Option<()> {
        let to = u64::from(native(difference));
        // SAFETY: the helper checks that the packet has the place.
        done(unsafe { bpf_l3_csum_replace(self.0.raw(), at, 0, to, 0) })
    }

    #[inline(always)]
    fn adjust(&mut self, at: u32, difference: Sum, of: Covered) -> Option<()> {
        let difference = native(difference);
        let mut flags = 0;
        if of.addresses {
            flags |= u64::from(BPF_F_PSEUDO_HDR);
        }
        if of.is_udp {
            flags |= u64::from(BPF_F_MARK_MANGLED_0);
        }
        // SAFETY: as above.
        unsafe {
            done(bpf_l4_csum_replace(
                self.0.raw(),
                at,
                0,
                u64::from(difference),
                flags,
            ))?;
            if of.addresses && !of.is_ipv4 {
                // A device's sum over the packet stays: of IPv6, the addresses' change and the checksum's make up for each
                // other. The helper above takes it for IPv4's, where the header's checksum changes, too.
                bpf_csum_update(self.0.raw(), difference);
            }
        }
        Some(())
    }
}

impl Fragments for Uplink {
    #[inline(always)]
    fn remember(&self, key: &FragmentKey, ports: &FragmentPorts) {
        let _ = FRAGMENTS.insert(key, ports, 0);
    }

    #[inline(always)]
    fn ports(&self, key: &FragmentKey) -> Option<FragmentPorts> {
        // SAFETY: four bytes, which are read at once. A row that was handed to another packet's fragments meanwhile spoils
        // this packet, which its receiver notices.
        unsafe { FRAGMENTS.get(key) }.copied()
    }
}

impl Neighbours for Uplink {
    #[inline(always)]
    fn hand_over(&mut self, packet: &Network, flow: &FlowKey, may_ask: bool) -> Handover {
        let mut way = Way::of(self.0.link(), packet, flow, self.size(packet));
        let found = way.look(self.0.raw().cast());
        match found {
            Found::Neighbour if self.read(6) == Some(way.neighbour()) => Handover::Impossible,
            Found::Link if !may_ask => Handover::Impossible,
            Found::Neighbour | Found::Link if packet.hops > 1 => {
                match spend_hop(self, packet).map(|()| way.redirect()) {
                    Some(TC_ACT_REDIRECT) if found == Found::Link => Handover::Asked,
                    Some(TC_ACT_REDIRECT) => Handover::Done,
                    _ => Handover::Impossible,
                }
            }
            Found::TooLarge => Handover::TooLarge,
            _ => Handover::Impossible,
        }
    }

    #[inline(always)]
    fn leave_by(&mut self, link: u32, packet: &Network, flow: &FlowKey) -> bool {
        if UPLINKS.get_ptr(LinkIndex(link)).is_none() {
            return false;
        }
        let size = self.size(packet);
        let (way, found) = Way::by(self.0.raw().cast(), link, packet, flow, size);
        matches!(found, Found::Neighbour | Found::Link) && way.redirect() == TC_ACT_REDIRECT
    }
}

impl Uplink {
    /// The size of a packet as it will leave: several of a stream may have been put together.
    #[inline(always)]
    fn size(&self, packet: &Network) -> u16 {
        // SAFETY: the kernel passes a valid context, and the verifier checks each access.
        let of_each = unsafe { (*self.0.raw()).gso_size };
        if of_each == 0 {
            return (packet.end - packet.at) as u16;
        }
        let transport = match packet.protocol {
            TCP => self
                .read(packet.transport_at + 12)
                .map_or(20, |[offset, _]: [u8; 2]| u32::from(offset >> 4) * 4),
            _ => 8,
        };
        (packet.transport_at - packet.at + transport + of_each) as u16
    }
}

impl Node for Uplink {
    #[inline(always)]
    fn now_ns(&self) -> u64 {
        clock::coarse_ns()
    }

    #[inline(always)]
    fn link(&self) -> u32 {
        self.0.link()
    }

    #[inline(always)]
    fn is_tunnel(&self) -> bool {
        rows::is_tunnel(self.0.link())
    }

    #[inline(always)]
    fn own_address(&self, is_ipv4: bool) -> Address {
        rows::own_address(self.0.link(), is_ipv4)
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
        rows::has_socket(self.0.raw().cast(), answers)
    }

    #[inline(always)]
    fn is_pods(&self) -> bool {
        // The row of no link is not a pod's.
        !self.is_own() && PODS.get_ptr(LinkIndex(self.0.came_by())).is_some()
    }

    #[inline(always)]
    fn has_pod(&self, address: &Address) -> bool {
        shortcut::is_own_pods(address)
    }

    #[inline(always)]
    fn masquerades(&self, destination: &Address) -> bool {
        EXEMPT.get(&Key::new(128, *destination)).is_none()
    }

    #[inline(always)]
    fn is_own(&self) -> bool {
        self.0.came_by() == 0
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

    #[inline(always)]
    fn refused(&self, key: &FlowKey, service_id: u32, is_hole: bool) {
        match is_hole {
            true => count::hole(service_id),
            false => count::refused(service_id),
        }
        events::turned_away(key, service_id, is_hole);
    }
}

rows::with_rows!(Uplink);
