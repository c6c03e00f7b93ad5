//! What a packet costs a program: the kernel runs it over and over with one packet.
//!
//! ```text
//!   node ── up0     client, backend and service are behind it: whatever is translated becomes what it was
//! ```
//!
//! A program that changes its packet finds the changed one at the next run, so addresses are chosen to change into
//! themselves: the backend has the service's address and port, the node's packets have the client's. All work is done
//! all the same, but for the checksum of ports, which costs where one changes. By XDP a packet loses a hop at each
//! run, so it has many. Beside each figure are that of a program which does nothing, and that of one which only calls the
//! kernel's helpers without which no packet of a known connection can be translated.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, OwnedFd};

use agent_ebpf::abi::{
    BackendEntry, BackendId, LinkIndex, PodEntry, SHARE_ONE, Scope, ServiceEntry, ServiceKey,
    SlotKey, TCP, UplinkEntry, maps as names,
};
use agent_ebpf::checksum::Sum;
use aya::maps::MapInfo;
use aya::programs::{ProgramInfo, loaded_programs};
use kernelet::dataplane::{self, Config, MapOp, MapSizes, ServiceMaps as _, Uplink, Uplinks};
use kernelet_tests::host;

use super::PREFIX;
use super::common::{Report, index_of, is_short, line};
use super::common::{bpf, client};
use super::kernelet::{bpf_directory, directory};

const SERVED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 80);
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);
const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
const PORT: u16 = 80;
const CLIENTS_PORT: u16 = 4000;
/// As many as a packet has hops to spend, and one that needs none.
const RUNS: u32 = 250;
const HOPS: u8 = 255;
const SYN: u8 = 2;
const ACK: u8 = 16;

const PASS: u32 = u32::MAX;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;

/// What comes, at which program, and what that says of it.
struct Tried {
    metric: &'static str,
    program: &'static str,
    is_xdp: bool,
    packet: Vec<u8>,
    verdict: u32,
}

/// The rows of the report.
pub fn measure(report: &mut Report) {
    let node = format!("{PREFIX}-packets-node");
    let there = format!("{PREFIX}-packets-there");
    for netns in [&node, &there] {
        line(format!("ip netns add {netns}"));
    }
    for setting in ["net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0"] {
        line(format!("ip netns exec {node} sysctl -qw {setting}"));
    }
    line(format!(
        "ip -n {node} link add up0 type veth peer name up0 netns {there}"
    ));
    line(format!("ip -n {there} link set up0 up"));
    line(format!("ip -n {node} address add 192.0.2.1/24 dev up0"));
    line(format!("ip -n {node} link set up0 up"));
    let mac = mac_of(&node);
    let text: Vec<String> = mac.iter().map(|it| format!("{it:02x}")).collect();
    for neighbour in [SERVED, ELSEWHERE, CLIENT] {
        line(format!(
            "ip -n {node} neighbour add {neighbour} lladdr {} dev up0 nud permanent",
            text.join(":")
        ));
    }
    let link = index_of(&node, "up0");
    let netns = host::netns_path(&node);
    let here = netns.clone();
    host::in_netns(&here, move || serve(link, mac)).unwrap_or_else(|error| panic!("{error}"));
    let rounds = if is_short() { 200 } else { 2000 };
    let tried = move || run_all(link, mac, rounds);
    let figures = host::in_netns(&netns, tried).unwrap_or_else(|error| panic!("{error}"));
    for (case, metric, ns) in figures {
        report.add(case, 0, metric, ns, "ns");
    }
}

fn mac_of(netns: &str) -> [u8; 6] {
    let shown = kernelet_tests::command::run(&format!("ip -n {netns} -j link show up0"));
    let shown = shown.unwrap_or_else(|error| panic!("{error}"));
    let shown: serde_json::Value = serde_json::from_str(&shown).expect("ip writes JSON");
    let text = shown[0]["address"].as_str().expect("links have one");
    let mut bytes = text.split(':').map(|it| u8::from_str_radix(it, 16));
    std::array::from_fn(|_| bytes.next().expect("six bytes").expect("hexadecimal"))
}

/// One service, and the programs at the link.
fn serve(link: u32, mac: [u8; 6]) {
    let cgroup = client::cgroup(PREFIX, "packets");
    host::create_dir(&cgroup).unwrap_or_else(|error| panic!("{error}"));
    let probe = dataplane::probe(Some(&cgroup)).unwrap_or_else(|error| panic!("{error}"));
    let config = Config {
        bpf_dir: bpf_directory(),
        cgroup,
        sizes: MapSizes::default(),
    };
    let dataplane = dataplane::start(&config, &probe);
    let mut dataplane = dataplane.unwrap_or_else(|error| panic!("{error}"));
    let backend = BackendEntry {
        address: SERVED.into(),
        port: PORT.to_be_bytes(),
        protocol: TCP,
        pad: 0,
    };
    let slot = SlotKey {
        service_id: 1,
        generation: 1,
        slot: 0,
    };
    let key = ServiceKey {
        address: SERVED.into(),
        port: PORT.to_be_bytes(),
        protocol: TCP,
        scope: Scope::EXTERNAL,
    };
    let entry = ServiceEntry {
        service_id: 1,
        generation: 1,
        local: 0,
        zone: 0,
        ready: 1,
        terminating: 0,
        flags: 0,
        affinity_timeout_s: 0,
        local_share: SHARE_ONE,
    };
    let written = dataplane.maps.apply_all(&[
        MapOp::PutBackend(BackendId(1), backend),
        MapOp::PutSlot(slot, BackendId(1)),
        MapOp::PutService(key, entry),
    ]);
    written.unwrap_or_else(|error| panic!("{error}"));
    let uplink = Uplink {
        name: "up0".into(),
        own: UplinkEntry {
            ipv4: CLIENT.into(),
            ipv6: PodEntry::NONE,
        },
        xdp: Some(mac),
    };
    let uplinks = Uplinks::new(dataplane.link_programs, &dataplane.dir);
    let mut uplinks = uplinks.unwrap_or_else(|error| panic!("{error}"));
    let applied = uplinks.apply(&BTreeMap::from([(LinkIndex(link), uplink)]));
    applied.unwrap_or_else(|error| panic!("{error}"));
    assert!(uplinks.refused().is_empty(), "the link takes XDP");
}

/// Takes turns, so that the machine's mood is everybody's; of each the fastest run counts, as what else runs only adds to it.
fn run_all(link: u32, mac: [u8; 6], rounds: usize) -> Vec<(&'static str, &'static str, f64)> {
    let there = |flags| packet(mac, (CLIENT, CLIENTS_PORT), (SERVED, PORT), flags);
    let back = || packet(mac, (SERVED, PORT), (CLIENT, CLIENTS_PORT), ACK);
    let other = || packet(mac, (CLIENT, CLIENTS_PORT), (ELSEWHERE, PORT), ACK);
    let [tc_in, tc_out] = ["kn_uplink_in", "kn_uplink_out"];
    let tc = |metric, program, packet| Tried {
        metric,
        program,
        is_xdp: false,
        packet,
        verdict: PASS,
    };
    let xdp = |metric, packet, verdict| Tried {
        metric,
        program: "kn_uplink_xdp",
        is_xdp: true,
        packet,
        verdict,
    };
    for program in [tc_in, tc_out] {
        Program::of(program, false, link).run(&there(SYN), 1);
    }
    let cases = [
        tc("a packet, tc in, to a service", tc_in, there(ACK)),
        tc("a packet, tc out, to its backend", tc_out, there(ACK)),
        tc("a packet, tc in, an answer", tc_in, back()),
        tc("a packet, tc out, an answer", tc_out, back()),
        tc("a packet, tc in, nobody's", tc_in, other()),
        tc("a packet, tc out, nobody's", tc_out, other()),
        xdp("a packet, XDP, to a service", there(ACK), XDP_TX),
        xdp("a packet, XDP, an answer", back(), XDP_TX),
        xdp("a packet, XDP, nobody's", other(), XDP_PASS),
    ];
    let here = |fd, is_xdp| Program { fd, link, is_xdp };
    let idle = [
        here(bpf::empty(bpf::TC), false),
        here(bpf::empty(bpf::XDP), true),
    ];
    let asking = [
        here(bpf::tc_asker(14), false),
        here(bpf::xdp_asker(SERVED.octets(), CLIENT.octets()), true),
    ];
    let mut figures = Vec::new();
    for case in &cases {
        let program = Program::of(case.program, case.is_xdp, link);
        let [idle, asking] = [&idle, &asking].map(|both| &both[usize::from(case.is_xdp)]);
        let (mut fastest, mut nothing, mut asked) = (u32::MAX, u32::MAX, u32::MAX);
        for _ in 0..rounds {
            let (verdict, ns) = program.run(&case.packet, RUNS);
            assert_eq!(verdict, case.verdict, "{}", case.metric);
            fastest = fastest.min(ns);
            nothing = nothing.min(idle.run(&case.packet, RUNS).1);
            let (verdict, ns) = asking.run(&case.packet, RUNS);
            assert_eq!(verdict, if case.is_xdp { XDP_TX } else { PASS });
            asked = asked.min(ns);
        }
        figures.push(("kernelet", case.metric, f64::from(fastest)));
        figures.push(("empty program", case.metric, f64::from(nothing)));
        figures.push(("the helpers alone", case.metric, f64::from(asked)));
    }
    figures
}

/// A TCP segment.
fn packet(mac: [u8; 6], from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), flags: u8) -> Vec<u8> {
    let (source, destination) = (from.0.octets(), to.0.octets());
    let ports = [from.1, to.1].map(u16::to_be_bytes).concat();
    let mut segment = [
        &ports[..],
        &[0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0],
    ]
    .concat();
    segment.extend([b'.'; 6]);
    let length = segment.len() as u16;
    let sum = Sum::of(&segment)
        .plus(Sum::of(&source))
        .plus(Sum::of(&destination))
        .add([0, TCP])
        .add(length.to_be_bytes());
    segment[16..18].copy_from_slice(&sum.checksum());
    let mut header = vec![0x45, 0];
    header.extend((20 + length).to_be_bytes());
    header.extend([0, 7, 0x40, 0, HOPS, TCP, 0, 0]);
    header.extend([source, destination].concat());
    let checksum = Sum::of(&header).checksum();
    header[10..12].copy_from_slice(&checksum);
    [&mac[..], &mac, &[8, 0], &header, &segment].concat()
}

/// A program, and what it is to think where it is.
struct Program {
    fd: OwnedFd,
    link: u32,
    is_xdp: bool,
}

impl Program {
    fn of(name: &'static str, is_xdp: bool, link: u32) -> Self {
        let fd = find(name).fd();
        let fd = fd.unwrap_or_else(|error| panic!("{name}: {error}"));
        let fd = fd
            .as_fd()
            .try_clone_to_owned()
            .expect("there is room for one");
        Self { fd, link, is_xdp }
    }

    /// Verdict, and nanoseconds a run.
    fn run(&self, packet: &[u8], times: u32) -> (u32, u32) {
        let (mut context, link) = ([0; 44], self.link.to_ne_bytes());
        let length = match self.is_xdp {
            true => {
                // `data_end` and `ingress_ifindex` of `struct xdp_md`.
                context[4..8].copy_from_slice(&(packet.len() as u32).to_ne_bytes());
                context[12..16].copy_from_slice(&link);
                20
            }
            false => {
                // `ingress_ifindex` and `ifindex` of `struct __sk_buff`.
                context[36..40].copy_from_slice(&link);
                context[40..44].copy_from_slice(&link);
                44
            }
        };
        bpf::run(self.fd.as_fd(), packet, &context[..length], times)
    }
}

fn find(name: &str) -> ProgramInfo {
    let map = MapInfo::from_pin(directory().join(names::CONNECTIONS));
    let map = map.expect("the map is pinned").id();
    let info = loaded_programs().flatten().find(|program| {
        let used = program.map_ids().ok().flatten().unwrap_or_default();
        program.name_as_str() == Some(name) && used.contains(&map)
    });
    info.unwrap_or_else(|| panic!("{name} is loaded"))
}
