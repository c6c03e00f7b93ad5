//! The XDP program, packet in and packet out: in the kernel, with links that lead nowhere.
//!
//! ```text
//!  lo (by which a test's packets come in) ─ node ─┬─ up0 ─── clients
//!                                                 ├─ far0 ── a backend of another node
//!                                                 └─ pod0 ── a pod
//! ```

use std::fs;
use std::net::{IpAddr, SocketAddr};

use agent_ebpf::abi::{
    DropReason, FLAG_SOURCE_RANGES, LinkIndex, Scope, ServiceKey, TCP, UDP, UplinkEntry,
    XDP_LINK_TAKES, XdpLink,
};
use agent_ebpf::checksum::Sum;
use aya::programs::{Program, TestRun as _, TestRunOptions, Xdp};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::tc_tests::{flood, has_row, rounds};
use super::testing::{Scratch, entry, on_scratch_node, put};
use super::{Dataplane, LinkPrograms, ServiceMaps as _};
use crate::self_test::lab::{Lab, configure};

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_REDIRECT: u32 = 4;
const INGRESS: LinkIndex = LinkIndex(1);
/// Hardware addresses: the node's at `lo`, and that of everybody else.
const NODE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// The addresses of one family.
pub(super) struct Family {
    pub(super) client: &'static str,
    pub(super) node: &'static str,
    pub(super) far: &'static str,
    pod: &'static str,
    pub(super) balancer: &'static str,
    networks: [&'static str; 3],
}

pub(super) const FAMILIES: [Family; 2] = [
    Family {
        client: "198.51.100.2",
        node: "203.0.113.1",
        far: "203.0.113.2",
        pod: "192.0.2.130",
        balancer: "198.18.0.1",
        networks: ["198.51.100.1/24", "203.0.113.1/24", "192.0.2.129/25"],
    },
    Family {
        client: "2001:db8:10::2",
        node: "2001:db8:20::1",
        far: "2001:db8:20::2",
        pod: "2001:db8:30::2",
        balancer: "2001:db8:40::1",
        networks: [
            "2001:db8:10::1/64",
            "2001:db8:20::1/64",
            "2001:db8:30::1/64",
        ],
    },
];

/// A packet to be made.
#[derive(Clone, Copy)]
pub(super) struct Packet {
    macs: [[u8; 6]; 2],
    from: SocketAddr,
    to: SocketAddr,
    protocol: u8,
    /// Of TCP.
    flags: u8,
    hops: u8,
}

pub(super) const SYN: u8 = 2;
pub(super) const ACK: u8 = 16;

impl Packet {
    /// As it comes to the node.
    pub(super) fn new(from: (&str, u16), to: (&str, u16), protocol: u8, flags: u8) -> Self {
        let socket = |(ip, port): (&str, u16)| SocketAddr::new(ip.parse().unwrap(), port);
        Self {
            macs: [NODE_MAC, OTHER_MAC],
            from: socket(from),
            to: socket(to),
            protocol,
            flags,
            hops: 64,
        }
    }

    /// The same after the node has sent it on.
    fn sent_on(from: (&str, u16), to: (&str, u16), protocol: u8, flags: u8, by: [u8; 6]) -> Self {
        Self {
            macs: [OTHER_MAC, by],
            hops: 63,
            ..Self::new(from, to, protocol, flags)
        }
    }

    pub(super) fn bytes(self) -> Vec<u8> {
        let octets = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        let (from, to) = (octets(self.from.ip()), octets(self.to.ip()));
        let ports = [self.from.port(), self.to.port()].map(u16::to_be_bytes);
        let mut transport = ports.concat();
        let at = if self.protocol == TCP { 16 } else { 6 };
        match self.protocol {
            TCP => transport.extend([
                0, 0, 0, 1, 0, 0, 0, 2, 0x50, self.flags, 0xff, 0xff, 0, 0, 0, 0,
            ]),
            _ => transport.extend([0, 13, 0, 0]),
        }
        transport.extend(b"hello");
        let sum = Sum::of(&transport)
            .plus(Sum::of(&from))
            .plus(Sum::of(&to))
            .add([0, self.protocol])
            .add((transport.len() as u16).to_be_bytes());
        transport[at..at + 2].copy_from_slice(&sum.checksum());
        let mut header = Vec::new();
        let length = transport.len() as u16;
        if self.from.is_ipv4() {
            header.extend([0x45, 0]);
            header.extend((20 + length).to_be_bytes());
            header.extend([0, 7, 0x40, 0, self.hops, self.protocol, 0, 0]);
            header.extend([&from[..], &to].concat());
            let checksum = Sum::of(&header).checksum();
            header[10..12].copy_from_slice(&checksum);
        } else {
            header.extend([0x60, 0, 0, 0]);
            header.extend(length.to_be_bytes());
            header.extend([self.protocol, self.hops]);
            header.extend([&from[..], &to].concat());
        }
        let kind: [u8; 2] = if self.from.is_ipv4() {
            [0x08, 0]
        } else {
            [0x86, 0xdd]
        };
        [&self.macs.concat(), &kind[..], &header, &transport].concat()
    }
}

/// The node with its links. They go with the value.
pub(super) struct Node {
    pub(super) dataplane: Dataplane,
    /// The node's hardware addresses at `up0` and `far0`.
    macs: [[u8; 6]; 2],
    _lab: Lab,
}

pub(super) fn node(scratch: &Scratch) -> Node {
    for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        fs::write(format!("/proc/sys/net/{setting}"), "1").unwrap();
    }
    let mut dataplane = scratch.start();
    let mut lab = Lab::new("kn-dp-test-xdp-");
    let space = lab.space("others").unwrap();
    let names = ["up0", "far0", "pod0"];
    let mut links = [0; 3];
    configure(async |net| {
        net.up("lo").await?;
        for (n, name) in names.into_iter().enumerate() {
            let there = format!("{name}-there");
            net.veth(name, &space, &there).await?;
            net.up(name).await?;
            for family in &FAMILIES {
                net.address(name, family.networks[n].parse().unwrap())
                    .await?;
                let other = [family.client, family.far, family.pod][n];
                net.neighbour(name, other.parse().unwrap(), OTHER_MAC)
                    .await?;
            }
            links[n] = net.index(name).await?;
        }
        Ok(())
    })
    .unwrap();
    space
        .configure(async |net| {
            for name in ["up0-there", "far0-there", "pod0-there"] {
                net.up(name).await?;
            }
            Ok(())
        })
        .unwrap();
    let macs = ["up0", "far0"].map(hardware_address);
    let none = UplinkEntry {
        ipv4: agent_ebpf::abi::PodEntry::NONE,
        ipv6: agent_ebpf::abi::PodEntry::NONE,
    };
    let own = UplinkEntry {
        ipv4: FAMILIES[0].node.parse::<IpAddr>().unwrap().into(),
        ipv6: FAMILIES[1].node.parse::<IpAddr>().unwrap().into(),
    };
    let maps = &mut dataplane.maps;
    for (index, own, mac) in [
        (INGRESS, none, NODE_MAC),
        (LinkIndex(links[0]), none, macs[0]),
        (LinkIndex(links[1]), own, macs[1]),
    ] {
        maps.put_uplink(index, own).unwrap();
        let flags = XDP_LINK_TAKES;
        maps.put_xdp_link(index, XdpLink { mac, flags }).unwrap();
    }
    let mut id = 0;
    for family in &FAMILIES {
        for protocol in [TCP, UDP] {
            for (port, backend) in [(80, family.far), (81, family.pod)] {
                id += 1;
                let backend = SocketAddr::new(backend.parse().unwrap(), 8080);
                let ops = put(
                    key(family, port, protocol),
                    entry(id, 1, 1, 1),
                    &[(id, backend)],
                );
                maps.apply_all(&ops).unwrap();
            }
            id += 1;
            let ops = put(key(family, 82, protocol), entry(id, 1, 0, 0), &[]);
            maps.apply_all(&ops).unwrap();
            id += 1;
            let backend = SocketAddr::new(family.far.parse().unwrap(), 8080);
            let closed = agent_ebpf::abi::ServiceEntry {
                flags: FLAG_SOURCE_RANGES,
                ..entry(id, 1, 1, 1)
            };
            let ops = put(key(family, 83, protocol), closed, &[(id, backend)]);
            maps.apply_all(&ops).unwrap();
        }
    }
    Node {
        dataplane,
        macs,
        _lab: lab,
    }
}

fn hardware_address(name: &str) -> [u8; 6] {
    let mut found = [0; 6];
    configure(async |net| {
        found = net.mac(name).await?;
        Ok(())
    })
    .unwrap();
    found
}

pub(super) fn key(family: &Family, port: u16, protocol: u8) -> ServiceKey {
    ServiceKey {
        address: family.balancer.parse::<IpAddr>().unwrap().into(),
        port: port.to_be_bytes(),
        protocol,
        scope: Scope::EXTERNAL,
    }
}

impl Node {
    pub(super) fn run(&self, packet: &[u8]) -> (u32, Vec<u8>) {
        self.dataplane
            .link_programs
            .with_xdp(|program| run(program, packet))
    }
}

/// Verdict and packet.
fn run(program: &Xdp, packet: &[u8]) -> (u32, Vec<u8>) {
    let mut out = vec![0; packet.len() + 64];
    let result = program
        .test_run(TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            ..Default::default()
        })
        .unwrap();
    out.truncate(result.data_size_out as usize);
    (result.return_value, out)
}

/// Whether the checksums of an ordinary packet are right.
fn is_sound(frame: &[u8]) -> bool {
    let (header, addresses) = match frame[12..14] {
        [0x08, 0] => (20, 12..20),
        _ => (40, 8..40),
    };
    let packet = &frame[14..];
    let length = match header {
        20 => usize::from(u16::from_be_bytes([packet[2], packet[3]])),
        _ => 40 + usize::from(u16::from_be_bytes([packet[4], packet[5]])),
    };
    let protocol = packet[if header == 20 { 9 } else { 6 }];
    let least = if protocol == UDP { 8 } else { 20 };
    let transport = match packet.get(header..length) {
        Some(transport) if transport.len() >= least => transport,
        _ => return false,
    };
    let sums_up = |sum: Sum| sum.folded() == [0xff, 0xff];
    let sum = Sum::of(&packet[addresses])
        .plus(Sum::of(transport))
        .add([0, protocol])
        .add((transport.len() as u16).to_be_bytes());
    let has_none = protocol == UDP && transport[6..8] == [0, 0];
    (header == 40 || sums_up(Sum::of(&packet[..20]))) && (has_none || sums_up(sum))
}

impl LinkPrograms {
    /// Runs `work` with the XDP program.
    pub(super) fn with_xdp<T>(&self, work: impl FnOnce(&Xdp) -> T) -> T {
        let mut programs = self.programs.lock().unwrap();
        let Some(Program::Xdp(program)) = programs.program_mut(super::xdp::PROGRAM) else {
            panic!("no XDP program");
        };
        if program.fd().is_err() {
            program.load().unwrap();
        }
        work(program)
    }
}

#[test]
fn what_passes_through_the_node_is_sent_on_translated_both_ways() {
    on_scratch_node(|scratch| {
        let node = node(scratch);
        let [up, far] = node.macs;
        for family in &FAMILIES {
            for protocol in [TCP, UDP] {
                for flags in [SYN, ACK] {
                    let (client, balancer) = ((family.client, 4000), (family.balancer, 80));
                    let (own, backend) = ((family.node, 4000), (family.far, 8080));
                    let came = Packet::new(client, balancer, protocol, flags);
                    let left = Packet::sent_on(own, backend, protocol, flags, far);
                    assert_eq!(node.run(&came.bytes()), (XDP_REDIRECT, left.bytes()));
                    let came = Packet::new(backend, own, protocol, flags | ACK);
                    let left = Packet::sent_on(balancer, client, protocol, flags | ACK, up);
                    assert_eq!(node.run(&came.bytes()), (XDP_REDIRECT, left.bytes()));
                }
            }
        }
        let rows = node.dataplane.maps.rows("CONNECTIONS").unwrap();
        assert_eq!(rows.len(), 4 * 4);
        // Each backend was given one connection, which is open.
        let totals = node.dataplane.maps.totals().unwrap();
        let counts = totals.backends.values();
        let counts: Vec<_> = counts.map(|it| (it.opens, it.opens - it.closes)).collect();
        assert_eq!(counts, [(1, 1); 4]);
    });
}

#[test]
fn what_is_out_of_the_ordinary_goes_to_the_stack_unchanged() {
    on_scratch_node(|scratch| {
        let node = node(scratch);
        for family in &FAMILIES {
            let ask = |port| Packet::new((family.client, 4000), (family.balancer, port), TCP, SYN);
            let is_ipv4 = family.client.contains('.');
            let header = if is_ipv4 { 20 } else { 40 };
            let mut cases = vec![
                ("to a pod of this node", ask(81).bytes()),
                ("no backend", ask(82).bytes()),
                ("no service", ask(84).bytes()),
                ("its last hop", Packet { hops: 1, ..ask(80) }.bytes()),
                (
                    "another machine's frame",
                    Packet {
                        macs: [[2, 9, 9, 9, 9, 9], OTHER_MAC],
                        ..ask(80)
                    }
                    .bytes(),
                ),
                (
                    "from loopback",
                    Packet {
                        from: SocketAddr::new(
                            if is_ipv4 { "127.0.0.1" } else { "::1" }.parse().unwrap(),
                            4000,
                        ),
                        ..ask(80)
                    }
                    .bytes(),
                ),
            ];
            let mut unfinished = ask(80).bytes();
            // The sum of what is not the segment's own.
            let segment = unfinished[14 + header..].to_vec();
            let sum = Sum::of(&unfinished[14 + header - if is_ipv4 { 8 } else { 32 }..14 + header])
                .add([0, TCP])
                .add((segment.len() as u16).to_be_bytes());
            unfinished[14 + header + 16..][..2].copy_from_slice(&sum.folded());
            cases.push(("a checksum that is left to the device", unfinished));
            let mut short = ask(80).bytes();
            short.truncate(short.len() - 2);
            cases.push(("more buffers than one, or cut", short));
            let mut endless = ask(80).bytes();
            endless[if is_ipv4 { 16..18 } else { 18..20 }].fill(0);
            if is_ipv4 {
                let sum = Sum::of(&endless[14..34])
                    .replace([endless[24], endless[25]], [0, 0])
                    .checksum();
                endless[24..26].copy_from_slice(&sum);
            }
            cases.push(("no length", endless));
            if is_ipv4 {
                let mut fragment = ask(80).bytes();
                fragment[14 + 6] = 0x20;
                let sum = Sum::of(&fragment[14..34])
                    .replace([fragment[24], fragment[25]], [0, 0])
                    .checksum();
                fragment[24..26].copy_from_slice(&sum);
                cases.push(("a fragment", fragment));
                let mut broken = ask(80).bytes();
                broken[24] ^= 0xff;
                cases.push(("a broken header", broken));
            }
            for (what, packet) in cases {
                assert_eq!(node.run(&packet), (XDP_PASS, packet), "{what}");
            }
        }
        let drops = node.dataplane.maps.drops().unwrap();
        assert_eq!(drops.values().sum::<u64>(), 0);
    });
}

#[test]
fn who_is_not_served_is_told_off_at_once() {
    on_scratch_node(|scratch| {
        let node = node(scratch);
        for family in &FAMILIES {
            let packet = Packet::new((family.client, 4000), (family.balancer, 83), UDP, 0);
            assert_eq!(node.run(&packet.bytes()).0, XDP_DROP);
        }
        let drops = node.dataplane.maps.drops().unwrap();
        assert_eq!(drops[&DropReason::SourceRange], 2);
    });
}

#[test]
fn whatever_comes_is_left_alone_or_leaves_with_right_checksums_and_to_nobody_else() {
    on_scratch_node(|scratch| {
        let node = node(scratch);
        let [up, far] = node.macs;
        let mut random = StdRng::seed_from_u64(7);
        let mut onward = 0;
        node.dataplane.link_programs.with_xdp(|program| {
            for _ in 0..rounds() {
                let family = &FAMILIES[random.random_range(0..2)];
                let protocol = [TCP, UDP][random.random_range(0..2)];
                let (there, back) = (
                    (
                        (family.client, random.random_range(4000..4100)),
                        (family.balancer, random.random_range(79..85)),
                    ),
                    (
                        (family.far, 8080),
                        (family.node, random.random_range(4000..4100)),
                    ),
                );
                let (from, to) = if random.random() { there } else { back };
                let flags = [SYN, ACK, SYN | ACK, 4][random.random_range(0..4)];
                let mut packet = match random.random_range(0..16) {
                    0 => super::tc_tests::packet(&mut random),
                    _ => Packet::new(from, to, protocol, flags).bytes(),
                };
                let mutations = random.random_range(0..4);
                for _ in 0..mutations {
                    let at = random.random_range(0..packet.len());
                    packet[at] = random.random();
                }
                let (verdict, after) = run(program, &packet);
                match verdict {
                    XDP_PASS => assert_eq!(after, packet),
                    XDP_DROP => {}
                    XDP_REDIRECT => {
                        onward += 1;
                        let macs = [[OTHER_MAC, up].concat(), [OTHER_MAC, far].concat()];
                        assert!(macs.contains(&after[..12].to_vec()), "{after:02x?}");
                        let sound = mutations > 0 && !is_sound(&packet) || is_sound(&after);
                        assert!(sound, "{packet:02x?} {after:02x?}");
                    }
                    other => panic!("{other}: {packet:02x?}"),
                }
            }
        });
        assert!(onward > rounds() / 50, "{onward} were sent on");
    });
}

#[test]
fn a_flood_of_new_flows_leaves_those_that_are_in_use() {
    on_scratch_node(|scratch| {
        let node = node(scratch);
        let family = &FAMILIES[0];
        // To the service whose backend is a pod of this node: to one elsewhere there are as many connections as ports.
        let ask = |client: &str, port, flags| {
            let packet = Packet::new((client, port), (family.balancer, 81), TCP, flags);
            node.run(&packet.bytes()).0
        };
        flood(
            &node.dataplane,
            |n| {
                let client = format!("198.51.100.{}", 3 + n % 250);
                assert_eq!(ask(&client, 1024 + (n / 250) as u16, SYN), XDP_PASS);
            },
            |flags| assert_eq!(ask(family.client, 4000, flags), XDP_PASS),
        );
        assert!(has_row(&node.dataplane, "in TCP 198.51.100.2:4000 -> "));
    });
}
