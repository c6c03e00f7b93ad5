//! A node of plain tables.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::abi::{
    AffinityEntry, AffinityKey, BackendEntry, FragmentKey, FragmentPorts, MaglevKey, Port,
    SHARE_ONE, Scope, ServiceEntry, ServiceKey, ServiceRow, SlotKey, SourceRange,
};
use crate::checksum::Sum;
use crate::forward::{Course, Roads, forward};
use crate::packet::{ICMP, testing::*};
use crate::rewrite::Covered;
use crate::select::Tables;

pub(crate) const NODE: &str = "203.0.113.1";
pub(crate) const CLIENT: &str = "198.51.100.2";
pub(crate) const POD: &str = "10.244.1.7";
pub(crate) const FAR: &str = "10.244.2.7";
/// The same of IPv6.
pub(crate) const NODE_V6: &str = "2001:db8:1::1";
pub(crate) const CLIENT_V6: &str = "2001:db8:2::2";
pub(crate) const POD_V6: &str = "fd00:10:244:1::7";
pub(crate) const FAR_V6: &str = "fd00:10:244:2::7";
pub(crate) const BALANCER_V6: &str = "2001:db8:3::80";
/// A node that had the balancer's address before.
pub(crate) const FORMER: &str = "203.0.113.3";
pub(crate) const BALANCER: &str = "192.0.2.80";
/// By which clients come, mostly, and another one.
pub(crate) const LINK: u32 = 7;
pub(crate) const OTHER_LINK: u32 = 8;
/// A pod has it.
pub(crate) const HOST_PORT: u16 = 8081;

/// The node, and the packet that passes it.
pub(crate) struct World {
    frame: Vec<u8>,
    pub(crate) rows: RefCell<BTreeMap<FlowKey, Connection>>,
    fragments: RefCell<BTreeMap<FragmentKey, FragmentPorts>>,
    services: BTreeMap<ServiceKey, ServiceEntry>,
    pub(crate) backends: BTreeMap<BackendId, BackendEntry>,
    pub(crate) ranges: BTreeSet<SourceRange>,
    pub(crate) sockets: BTreeSet<u16>,
    pub(crate) refused: Cell<u32>,
    pub(crate) opened: Cell<u32>,
    pub(crate) now_ns: u64,
    pub(crate) full: bool,
    /// Of whom the packet comes.
    pub(crate) sender: Sender,
    pub(crate) is_for_node: bool,
    pub(crate) is_forged: bool,
    /// Packets can be sent on before the stack has them.
    pub(crate) has_road: bool,
    is_before_stack: bool,
    /// Where other nodes' pods are handed their packets, if they are.
    pub(crate) handover: Option<Handover>,
    pub(crate) leads_back: bool,
    /// At which the packet is.
    pub(crate) link: u32,
    /// The node's address of IPv6, where it has one.
    pub(crate) own_ipv6: Option<Address>,
    /// And that is a tunnel.
    pub(crate) is_tunnel: bool,
    /// Other links lead to clients, too.
    pub(crate) has_way: bool,
    /// By which link a packet was to leave last, and of which flow.
    pub(crate) asked: Option<(u32, FlowKey)>,
    /// Whose the balancer's address was before.
    pub(crate) former: Option<Address>,
    /// The last node that was to be handed a packet.
    pub(crate) handed_to: Option<Address>,
}

/// What a frame begins with when it is sent on.
pub(crate) const HARDWARE: [u8; 12] = [9; 12];

impl Default for World {
    fn default() -> Self {
        Self {
            frame: Vec::new(),
            rows: RefCell::default(),
            fragments: RefCell::default(),
            services: BTreeMap::new(),
            backends: BTreeMap::new(),
            ranges: BTreeSet::new(),
            sockets: BTreeSet::new(),
            refused: Cell::new(0),
            opened: Cell::new(0),
            now_ns: 0,
            full: false,
            sender: Sender::Other,
            is_forged: false,
            is_for_node: true,
            has_road: true,
            is_before_stack: false,
            handover: None,
            leads_back: false,
            link: LINK,
            own_ipv6: None,
            is_tunnel: false,
            has_way: true,
            asked: None,
            former: None,
            handed_to: None,
        }
    }
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Sender {
    #[default]
    Other,
    Pod,
    Own,
}

impl World {
    /// A node whose service `id` at an address and port has these backends, for clients outside.
    pub(crate) fn serve(
        &mut self,
        id: u32,
        at: (&str, u16),
        protocol: u8,
        backends: &[(&str, u16)],
    ) {
        self.serve_to(Scope::EXTERNAL, id, at, protocol, backends);
    }

    /// The same for clients in `scope`.
    pub(super) fn serve_to(
        &mut self,
        scope: Scope,
        id: u32,
        at: (&str, u16),
        protocol: u8,
        backends: &[(&str, u16)],
    ) {
        let key = ServiceKey {
            address: address(at.0),
            port: at.1.to_be_bytes(),
            protocol,
            scope,
        };
        let entry = ServiceEntry {
            service_id: id,
            generation: 1,
            local: 0,
            zone: 0,
            ready: backends.len() as u32,
            terminating: 0,
            flags: 0,
            affinity_timeout_s: 0,
            local_share: SHARE_ONE,
        };
        self.services.insert(key, entry);
        for (slot, (ip, port)) in backends.iter().enumerate() {
            let row = BackendEntry {
                address: address(ip),
                port: port.to_be_bytes(),
                protocol,
                pad: 0,
            };
            self.backends.insert(BackendId(id * 100 + slot as u32), row);
        }
    }

    pub(crate) fn flag(&mut self, flags: u32) {
        for entry in self.services.values_mut() {
            entry.flags |= flags;
        }
    }

    /// What becomes of a frame at one side.
    pub(crate) fn pass(&mut self, frame: Vec<u8>, side: Side) -> Result<Vec<u8>, DropReason> {
        self.frame = frame;
        let mut work = work();
        let fate = match read(self, &mut work) {
            true => translate(self, &mut work, side),
            false => Fate::Pass,
        };
        match fate {
            Fate::Pass | Fate::Translated | Fate::Reached | Fate::Onward => {
                Ok(std::mem::take(&mut self.frame))
            }
            Fate::Drop(reason) => Err(reason),
        }
    }
}

impl World {
    /// A frame comes in by an uplink for a pod's own address.
    pub(super) fn reach(&mut self, frame: Vec<u8>) {
        let passed = self.pass(frame.clone(), Side::IN);
        assert_eq!(passed, Ok(frame), "it goes on as it is");
    }

    /// What becomes of a frame before the stack has it.
    pub(crate) fn forward(&mut self, frame: Vec<u8>) -> (Course, Vec<u8>) {
        self.frame = frame;
        self.is_before_stack = true;
        let course = forward(self, &mut work());
        self.is_before_stack = false;
        (course, std::mem::take(&mut self.frame))
    }
}

impl Neighbours for World {
    fn hand_over(&mut self, _: &Network, flow: &FlowKey, may_ask: bool) -> Handover {
        self.handed_to = Some(flow.destination);
        match self.handover {
            Some(Handover::Asked) if !may_ask => Handover::Impossible,
            handover => handover.unwrap_or(Handover::Impossible),
        }
    }
    fn leave_by(&mut self, link: u32, _: &Network, flow: &FlowKey) -> bool {
        self.asked = Some((link, *flow));
        self.has_way
    }
}

impl Roads for World {
    fn is_forged(&self) -> bool {
        self.is_forged
    }
    fn is_for_node(&self) -> bool {
        self.is_for_node
    }
    fn take(&mut self, _: &Network, flow: &FlowKey, by: u32) -> bool {
        self.asked = Some((by, *flow));
        self.has_road && flow.destination != address(POD)
    }
    fn leads_back(&self) -> bool {
        self.leads_back
    }
    fn address(&mut self) -> Option<()> {
        self.frame.write(0, &HARDWARE)
    }
}

pub(crate) fn work() -> Work {
    let network = Network {
        source: PodEntry::NONE,
        destination: PodEntry::NONE,
        at: 0,
        transport_at: 0,
        end: 0,
        identification: 0,
        part: Part::Whole,
        protocol: 0,
        hops: 0,
        is_ipv4: false,
    };
    Work {
        network,
        transport: Transport::Other,
        quoted: network,
        quoted_transport: Transport::Other,
        key: FlowKey::EMPTY,
        row: Connection::EMPTY,
        back_key: FlowKey::EMPTY,
        back: Connection::EMPTY,
        other: Connection::EMPTY,
        used: Use {
            now_ns: 0,
            bytes: 0,
            flags: 0,
        },
        first_port: 0,
        port_count: 0,
        keeps_port: false,
        coming: FlowKey::EMPTY,
        leaving: FlowKey::EMPTY,
    }
}

impl Bytes for World {
    fn length(&self) -> u32 {
        self.frame.length()
    }
    fn read<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        self.frame.read(at)
    }
}

impl Frame for World {
    fn write<const N: usize>(&mut self, at: u32, bytes: &[u8; N]) -> Option<()> {
        self.frame.write(at, bytes)
    }
    fn adjust_header(&mut self, at: u32, difference: Sum) -> Option<()> {
        self.frame.adjust_header(at, difference)
    }
    fn adjust(&mut self, at: u32, difference: Sum, of: Covered) -> Option<()> {
        self.frame.adjust(at, difference, of)
    }
}

impl Fragments for World {
    fn remember(&self, key: &FragmentKey, ports: &FragmentPorts) {
        self.fragments.borrow_mut().insert(*key, *ports);
    }
    fn ports(&self, key: &FragmentKey) -> Option<FragmentPorts> {
        self.fragments.borrow().get(key).copied()
    }
}

impl Connections for World {
    fn row(&self, key: &FlowKey, into: &mut Connection, use_now: Option<&mut Use>) -> bool {
        let mut rows = self.rows.borrow_mut();
        let Some(row) = rows.get_mut(key) else {
            return false;
        };
        assert_eq!(row.key_hash, key.hash());
        *into = *row;
        if let Some(used) = use_now {
            used.now_ns = self.now_ns;
            let Use {
                now_ns,
                bytes,
                flags,
            } = *used;
            row.bytes += u64::from(bytes);
            row.last_seen_ns = now_ns;
            row.seen |= flags;
        }
        true
    }
    fn add(&self, key: &FlowKey, row: &Connection) -> Added {
        if self.full {
            return Added::Full;
        }
        match self.rows.borrow_mut().entry(*key) {
            std::collections::btree_map::Entry::Occupied(_) => Added::Present,
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(*row);
                Added::Added
            }
        }
    }
    fn put(&self, key: &FlowKey, row: &Connection) -> bool {
        self.rows.borrow_mut().insert(*key, *row);
        true
    }
    fn moved(&self, key: &FlowKey, link: u32) {
        if let Some(row) = self.rows.borrow_mut().get_mut(key) {
            row.link = link;
        }
    }
    fn uncount(&self, key: &FlowKey, bytes: u32) {
        if let Some(row) = self.rows.borrow_mut().get_mut(key) {
            row.bytes -= u64::from(bytes);
        }
    }
}

impl Node for World {
    fn now_ns(&self) -> u64 {
        self.now_ns
    }
    fn link(&self) -> u32 {
        self.link
    }
    fn is_tunnel(&self) -> bool {
        self.is_tunnel
    }
    fn own_address(&self, is_ipv4: bool) -> Address {
        match is_ipv4 {
            true => address(NODE),
            false => self.own_ipv6.unwrap_or(PodEntry::NONE),
        }
    }
    fn is_node_address(&self, ip: &Address) -> bool {
        *ip == address(NODE) || Some(*ip) == self.own_ipv6
    }
    fn node_ports(&self) -> (u16, u16) {
        (30_000, 32_767)
    }
    fn is_host_port(&self, port: Port) -> bool {
        port == HOST_PORT.to_be_bytes()
    }
    fn port_range(&self) -> (u16, u16) {
        (61_000, 4_536)
    }
    fn has_socket(&self, answers: &FlowKey) -> bool {
        let port = u16::from_be_bytes(answers.destination_port);
        self.sockets.contains(&port)
    }
    fn is_pods(&self) -> bool {
        self.sender == Sender::Pod
    }
    fn has_pod(&self, of: &Address) -> bool {
        *of == address(POD) || *of == address(POD_V6)
    }
    fn masquerades(&self, destination: &Address) -> bool {
        let [first, ..] = destination.octets();
        !matches!(destination.as_v4(), Some([10, ..])) && first != 0xfd
    }
    fn is_own(&self) -> bool {
        self.sender == Sender::Own
    }
    fn opened(&self, _: &FlowKey, _: &Connection) {
        self.opened.set(self.opened.get() + 1);
    }
    fn is_near(&self, backend: &Address) -> bool {
        let is_other = [FAR, FORMER].iter().any(|it| *backend == address(it));
        self.handover.is_some() && is_other
    }
    fn former(&self, of: &Address) -> Option<Address> {
        self.former.filter(|_| *of == address(BALANCER))
    }
    fn refused(&self, _: &FlowKey, _: u32, is_hole: bool) {
        assert!(!is_hole);
        if self.is_before_stack {
            return;
        }
        self.refused.set(self.refused.get() + 1);
    }
}

impl Tables for World {
    fn service(&self, key: &ServiceKey) -> Option<ServiceRow> {
        let entry = *self.services.get(key)?;
        Some(ServiceRow { key: *key, entry })
    }
    fn slot(&self, key: &SlotKey) -> Option<BackendId> {
        let of = |id: &&BackendId| id.0 / 100 == key.service_id;
        self.backends
            .keys()
            .filter(of)
            .nth(key.slot as usize)
            .copied()
    }
    fn backend(&self, id: BackendId) -> Option<BackendEntry> {
        self.backends.get(&id).copied()
    }
    fn affinity(&self, _: &AffinityKey) -> Option<AffinityEntry> {
        None
    }
    fn remember(&self, _: &AffinityKey, _: &AffinityEntry) {}
}

impl OutsideTables for World {
    fn maglev(&self, _: &MaglevKey, _: usize) -> Option<BackendId> {
        None
    }
    fn is_service(&self, key: &ServiceKey) -> bool {
        self.services.contains_key(key)
    }
    fn serves(&self, client: &SourceRange) -> bool {
        self.ranges.contains(client)
    }
}

/// An error of `router` to `to` about a segment.
pub(crate) fn error(router: &str, to: &str, about: Vec<u8>) -> Vec<u8> {
    packet(router, to, ICMP, &icmp(3, 4, [0, 0, 5, 0], &about[14..]))
}
