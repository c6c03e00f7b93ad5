//! The packet programs under whatever comes: in the kernel, without a network.

use agent_ebpf::abi::pods::PodTarget;
use agent_ebpf::abi::{Address, LinkIndex, PodEntry, UplinkEntry};
use aya::programs::{Program, SchedClassifier, TestRun as _, TestRunOptions};
use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};

use super::testing::{Scratch, entry, on_scratch_node, put, service};
use super::{Connections, Dataplane, Hook, Maps, ServiceMaps as _, monotonic_ns};

const LOOPBACK: LinkIndex = LinkIndex(1);
/// Where what goes to that address of IPv6 is handed to.
const TARGET: PodTarget = PodTarget {
    address: Address::from_words([0xfdfd_fdfd; 4]),
    link: LinkIndex(77),
    pod_mac: [6; 6],
    node_mac: [4; 6],
};
/// `TC_ACT_SHOT` and `TC_ACT_REDIRECT`.
const DROPPED: u32 = 2;
const HANDED_ON: u32 = 7;

/// Packets for each program: `KERNELET_TEST_PACKETS` of them.
pub(super) fn rounds() -> usize {
    let said = std::env::var("KERNELET_TEST_PACKETS").ok();
    said.and_then(|it| it.parse().ok()).unwrap_or(20_000)
}

/// A TCP segment of 10.0.0.7 to a service, with a header for each layer that may be broken.
pub(super) fn packet(random: &mut StdRng) -> Vec<u8> {
    let mut packet = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    if random.random() {
        // For the link itself.
        packet[..6].fill(0);
    }
    if random.random() {
        packet.extend([0x08, 0x00, 0x45, 0, 0, 60, 0, 7, 0, 0, 64]);
        packet.push([1, 6, 17][random.random_range(0..3)]);
        packet.extend([0, 0, 10, 0, 0, 7, 10, 96, 0, 1]);
    } else {
        packet.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 40]);
        packet.push([0, 6, 17, 43, 44, 58, 60][random.random_range(0..7)]);
        packet.push(64);
        packet.extend([0xfd; 32]);
    }
    let transport = packet.len();
    packet.extend([0x9c, 0x40, 0, 80]);
    packet.resize(transport + 40, 0);
    if random.random_range(0..3) == 0 {
        // An error of ICMP about a packet like this one.
        packet[transport] = [3, 11, 2, 1][random.random_range(0..4)];
        let quoted = packet[14..transport].to_vec();
        packet.splice(transport + 8.., quoted);
        packet.extend([0, 80, 0x9c, 0x40, 0, 0, 0, 0]);
    }
    for _ in 0..random.random_range(0..5) {
        let at = random.random_range(12..packet.len());
        packet[at] = random.random();
    }
    if random.random_range(0..4) == 0 {
        packet.truncate(random.random_range(14..=packet.len()));
    }
    if random.random_range(0..8) == 0 {
        random.fill_bytes(&mut packet);
    }
    packet
}

/// Verdict and length; `None` where the kernel itself takes no frame so short. The packet is the node's own.
pub(super) fn run(program: &SchedClassifier, packet: &[u8]) -> Option<(u32, usize)> {
    run_from(program, LinkIndex::NONE, packet)
}

/// The same for a packet that came to the node by a link.
fn run_from(program: &SchedClassifier, link: LinkIndex, packet: &[u8]) -> Option<(u32, usize)> {
    const HEADERS: usize = 14 + 40;
    /// Where `__sk_buff` has its `ingress_ifindex`.
    const CAME_BY: usize = 36;
    let mut context = [0; CAME_BY + 4];
    context[CAME_BY..].copy_from_slice(&link.0.to_ne_bytes());
    let mut out = vec![0; packet.len() + 64];
    let result = program.test_run(TestRunOptions {
        data_in: Some(packet),
        data_out: Some(&mut out),
        ctx_in: Some(&context),
        ..Default::default()
    });
    match result {
        Ok(result) => Some((result.return_value, result.data_size_out as usize)),
        Err(error) if packet.len() >= HEADERS => panic!("{error:?}: {packet:02x?}"),
        Err(_) => None,
    }
}

/// Rows for all that a program may look up.
fn filled(node: &Scratch) -> Dataplane {
    let mut dataplane = node.start();
    let maps = &mut dataplane.maps;
    let own = [[10, 0, 0, 7]; 2].map(|ip| std::net::IpAddr::from(ip).into());
    let [ipv4, _] = own;
    let ipv6 = TARGET.address;
    maps.put_pod(LOOPBACK, PodEntry { ipv4, ipv6 }).unwrap();
    let ipv6 = PodEntry::NONE;
    maps.put_pod_target(TARGET).unwrap();
    maps.put_uplink(LOOPBACK, UplinkEntry { ipv4, ipv6 })
        .unwrap();
    let mut key = service(1, 80, agent_ebpf::abi::TCP);
    key.scope = agent_ebpf::abi::Scope::EXTERNAL;
    let backend = "10.0.0.9:8080".parse().unwrap();
    maps.apply_all(&put(key, entry(1, 1, 1, 1), &[(1, backend)]))
        .unwrap();
    dataplane
}

#[test]
fn whatever_comes_is_passed_on_or_dropped_at_its_length() {
    on_scratch_node(|node| {
        let dataplane = filled(node);
        let mut random = StdRng::seed_from_u64(7);
        let mut counts = [0, 0];
        for hook in Hook::ALL {
            dataplane.link_programs.with(hook, |program| {
                for _ in 0..rounds() {
                    let packet = packet(&mut random);
                    let from = [LinkIndex::NONE, LOOPBACK][random.random_range(0..2)];
                    let Some((verdict, length)) = run_from(program, from, &packet) else {
                        continue;
                    };
                    let passed = verdict == u32::MAX;
                    let handed_on = verdict == HANDED_ON && !matches!(hook, Hook::PodIn);
                    assert!(
                        passed || handed_on || verdict == DROPPED,
                        "{hook:?}: {verdict}: {packet:02x?}"
                    );
                    counts[usize::from(handed_on)] += 1;
                    assert_eq!(length, packet.len(), "{hook:?}: {packet:02x?}");
                }
            });
        }
        assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
        let rows = dataplane.maps.rows("CONNECTIONS").unwrap();
        assert!(!rows.is_empty(), "none was a service's");
        let drops = dataplane.maps.drops().unwrap();
        assert!(drops[&agent_ebpf::abi::DropReason::Malformed] > 0);
        assert!(drops[&agent_ebpf::abi::DropReason::Spoofed] > 0);
        assert!(drops[&agent_ebpf::abi::DropReason::NotMasqueraded] > 0);
    });
}

/// A TCP segment without data, from port 40,000 to port 80.
fn segment(from: u32, to: [u8; 4], flags: u8) -> Vec<u8> {
    let mut packet = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    packet.extend([0x08, 0x00, 0x45, 0, 0, 40, 0, 7, 0, 0, 64, 6, 0, 0]);
    packet.extend(from.to_be_bytes());
    packet.extend(to);
    packet.extend([0x9c, 0x40, 0, 80]);
    packet.resize(54, 0);
    (packet[46], packet[47]) = (0x50, flags);
    packet
}

const SYN: u8 = 2;
const ACK: u8 = 16;

/// Passes the table's worth of new flows, and each 256th time a packet of the one that is in use.
pub(super) fn flood(dataplane: &Dataplane, begin: impl Fn(u32), use_one: impl Fn(u8)) {
    let most = dataplane.maps.summaries().unwrap();
    let most = most.iter().find(|map| map.name == "CONNECTIONS").unwrap();
    use_one(SYN);
    for other in 0..most.max_entries {
        begin(other);
        if other % 256 == 0 {
            use_one(ACK);
        }
    }
    let rows = dataplane.maps.rows("CONNECTIONS").unwrap();
    assert!(rows.len() <= most.max_entries as usize);
    let drops = dataplane.maps.drops().unwrap();
    assert_eq!(drops[&agent_ebpf::abi::DropReason::TableFull], 0);
    let mut table = Connections::new(Maps::open(&dataplane.dir).unwrap());
    let fill = table.sweep(monotonic_ns()).unwrap().fill;
    assert!(fill.is_crowded(), "{fill}");
}

/// Whether there is a row for packets of a flow, as people see it.
pub(super) fn has_row(dataplane: &Dataplane, flow: &str) -> bool {
    let rows = dataplane.maps.rows("CONNECTIONS").unwrap();
    rows.iter().any(|row| row.key.starts_with(flow))
}

#[test]
fn a_flood_of_new_flows_leaves_those_that_are_in_use() {
    on_scratch_node(|node| {
        let dataplane = filled(node);
        let service = [10, 96, 0, 1];
        dataplane.link_programs.with(Hook::UplinkIn, |program| {
            flood(
                &dataplane,
                |client| _ = run(program, &segment(0x0b00_0000 + client, service, SYN)),
                |flags| _ = run(program, &segment(0x0a00_0007, service, flags)),
            );
        });
        assert!(has_row(&dataplane, "in TCP 10.0.0.7:40000 -> "));
    });
}

#[test]
fn a_flood_of_what_a_pod_sends_leaves_what_is_in_use() {
    on_scratch_node(|node| {
        let dataplane = filled(node);
        // As by a pod's link: that is where the packets come from here.
        let to = |n: u32| (0x0b00_0000 + n).to_be_bytes();
        dataplane.link_programs.with(Hook::UplinkOut, |program| {
            flood(
                &dataplane,
                |n| _ = run_from(program, LOOPBACK, &segment(0x0a00_0009, to(n), SYN)),
                |flags| {
                    let packet = segment(0x0a00_0009, [192, 0, 2, 9], flags);
                    run_from(program, LOOPBACK, &packet);
                },
            );
        });
        assert!(has_row(
            &dataplane,
            "out TCP 10.0.0.9:40000 -> 192.0.2.9:80"
        ));
    });
}

impl super::LinkPrograms {
    /// Runs `work` with a program.
    pub(super) fn with(&self, hook: Hook, work: impl FnOnce(&SchedClassifier)) {
        let mut programs = self.programs.lock().unwrap();
        match programs.program_mut(hook.program()) {
            Some(Program::SchedClassifier(program)) => work(program),
            _ => panic!("{hook:?}"),
        }
    }
}
