//! Other versions of the maps, in the real kernel: their programs serve until ours take over, and what can be carried is.

use std::fs;
use std::net::{TcpStream, UdpSocket};
use std::path::{Path, PathBuf};

use agent_ebpf::abi::{
    AffinityKey, BackendId, Connection, FlowKey, ServiceEntry, ServiceKey, SlotKey, SocketKey, TCP,
    UDP, maps as names,
};
use aya::Pod;
use aya::maps::{HashMap, MapData, PerCpuHashMap, PerCpuValues};
use socket2::SockRef;

use super::testing::{
    Dialler, Scratch, dial, dialled, entry, on_scratch_node, put, slot_key, soon, tcp_backend,
    udp_backend,
};
use super::tests::WEB;
use super::{Carried, Dataplane, MapSizes, ServiceMaps, close_sockets, start, upgrade_check, v1};

const DNS: ServiceKey = ServiceKey {
    protocol: UDP,
    port: [0, 53],
    ..WEB
};

fn directory(node: &Scratch, name: &str) -> PathBuf {
    node.config.bpf_dir.join(name)
}

/// What is pinned directly below the BPF directory.
fn pinned(node: &Scratch) -> Vec<String> {
    let entries = fs::read_dir(&node.config.bpf_dir).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// Makes what serves now another version: one whose rows are as ours, as if it had been set aside.
fn becomes_another(node: &Scratch, name: &str) {
    fs::rename(directory(node, "v2"), directory(node, name)).unwrap();
}

fn take_over(dataplane: &mut Dataplane) {
    dataplane.take_over.as_mut().unwrap().run().unwrap();
}

fn active(dataplane: &Dataplane, backend: u32) -> (u64, u64) {
    let stats = dataplane.maps.backend_stats(BackendId(backend)).unwrap();
    (stats.opens, stats.closes)
}

#[test]
fn another_versions_programs_serve_until_ours_take_over_and_nobody_is_refused() {
    on_scratch_node(|node| {
        let mut before = node.start();
        let ops = put(WEB, entry(1, 1, 1, 1), &[(1, tcp_backend("a"))]);
        before.maps.apply_all(&ops).unwrap();
        let dns = put(DNS, entry(2, 1, 1, 1), &[(2, udp_backend("b"))]);
        before.maps.apply_all(&dns).unwrap();
        let stream = TcpStream::connect(dialled(WEB)).unwrap();
        let udp = UdpSocket::bind("0.0.0.0:0").unwrap();
        udp.send_to(b"?", dialled(DNS)).unwrap();
        drop(before);
        becomes_another(node, "v2-0");

        let dialler = Dialler::start(WEB, "a");
        assert!(soon(|| dialler.count() > 100));
        let mut after = node.start();
        assert!(!after.adopted);
        assert_eq!(after.maps.dump().unwrap().services.len(), 2, "the tables");
        let dialled_before = dialler.count();
        assert!(soon(|| dialler.count() > dialled_before + 100));
        let served = after.maps.totals().unwrap().backends;
        assert!(served.is_empty(), "by the other version: {served:?}");

        take_over(&mut after);
        assert_eq!(pinned(node), ["links", "v2"]);
        let dialled_before = dialler.count();
        assert!(soon(|| dialler.count() > dialled_before + 100));
        assert_eq!(dialler.stop(), Vec::<String>::new());

        assert_eq!(stream.peer_addr().unwrap(), dialled(WEB));
        assert_eq!(udp.recv_from(&mut [0; 8]).unwrap().1, dialled(DNS));
        assert!(
            soon(|| {
                let (opens, closes) = active(&after, 1);
                opens == closes + 1
            }),
            "one connection is open: {:?}",
            active(&after, 1)
        );
        let opens_and_closes = active(&after, 2);
        assert_eq!(opens_and_closes.0, opens_and_closes.1 + 1);
        drop((stream, udp));
        assert!(soon(|| [1, 2].iter().all(|id| {
            let (opens, closes) = active(&after, *id);
            opens == closes
        })));
        let left = || after.maps.rows(names::SOCKETS).unwrap();
        assert!(soon(|| left().is_empty()), "{:?}", left());
    });
}

#[test]
fn a_take_over_that_broke_off_is_continued() {
    on_scratch_node(|node| {
        let mut first = node.start();
        let ops = put(WEB, entry(1, 1, 1, 1), &[(1, tcp_backend("a"))]);
        first.maps.apply_all(&ops).unwrap();
        let stream = TcpStream::connect(dialled(WEB)).unwrap();
        drop(first);
        becomes_another(node, "v2-0");
        let dialler = Dialler::start(WEB, "a");

        // Before the first full state.
        drop(node.start());
        assert_eq!(pinned(node), ["links", "v2", "v2-0"]);
        drop(node.start());

        // With half of the links still where the other version has them.
        let links = directory(node, "v2-0/links");
        for name in ["kn_connect4", "kn_getpeername4", "kn_sendmsg4"] {
            fs::rename(directory(node, "links").join(name), links.join(name)).unwrap();
        }
        let mut second = node.start();
        take_over(&mut second);
        drop(second);
        assert_eq!(pinned(node), ["links", "v2"]);
        assert!(directory(node, "links/kn_connect4").exists());
        assert_eq!(stream.peer_addr().unwrap(), dialled(WEB));

        // Before the other version was removed.
        fs::create_dir_all(directory(node, "v1/links")).unwrap();
        let mut third = node.start();
        assert!(third.take_over.is_some());
        take_over(&mut third);
        assert_eq!(pinned(node), ["links", "v2"]);

        assert!(soon(|| dialler.count() > 100));
        assert_eq!(dialler.stop(), Vec::<String>::new());
        assert!(node.start().take_over.is_none());
        assert_eq!(stream.peer_addr().unwrap(), dialled(WEB));
    });
}

#[test]
fn maps_of_another_size_are_replaced_without_a_gap() {
    on_scratch_node(|node| {
        let small = MapSizes {
            services: 64,
            ..MapSizes::default()
        };
        let config = super::Config {
            sizes: small,
            ..node.config.clone()
        };
        let mut before = start(&config, &node.probe).unwrap();
        let ops = put(WEB, entry(1, 1, 1, 1), &[(1, tcp_backend("a"))]);
        before.maps.apply_all(&ops).unwrap();
        drop(before);
        let dialler = Dialler::start(WEB, "a");

        let plan = upgrade_check(&node.config.bpf_dir, MapSizes::default()).unwrap();
        let differing: Vec<&str> = plan.differences.iter().map(|d| d.map.as_str()).collect();
        assert_eq!(differing, ["SERVICES", "SERVICE_STATS"]);
        assert_eq!(plan.set_aside.as_deref(), Some("v2-0"));
        assert_eq!(pinned(node), ["links", "v2"], "the check changes nothing");

        let mut after = node.start();
        take_over(&mut after);
        assert_eq!(pinned(node), ["links", "v2"]);
        let summaries = after.maps.summaries().unwrap();
        assert_eq!(summaries[0].max_entries, MapSizes::default().services);
        assert!(soon(|| dialler.count() > 100));
        assert_eq!(dialler.stop(), Vec::<String>::new());
        drop(after);
        assert!(node.start().adopted);
    });
}

#[test]
fn a_smaller_table_takes_over_the_connections_that_were_seen_last() {
    on_scratch_node(|node| {
        const ROWS: u16 = 3000;
        const LATEST: u16 = 500;
        let mut before = node.start();
        let key = |number: u16| FlowKey {
            source_port: number.to_be_bytes(),
            protocol: TCP,
            ..FlowKey::EMPTY
        };
        // In no order of the table's.
        for number in (0..ROWS).rev() {
            let row = Connection {
                last_seen_ns: number.into(),
                ..Connection::EMPTY
            };
            let put = before.maps.connections.insert(key(number), row, 0);
            put.unwrap();
        }
        drop(before);
        let config = super::Config {
            sizes: MapSizes {
                connections: 1024,
                ..MapSizes::default()
            },
            ..node.config.clone()
        };
        let mut after = start(&config, &node.probe).unwrap();
        take_over(&mut after);
        let carried = |number: &u16| after.maps.connections.get(&key(*number), 0).is_ok();
        let lost: Vec<u16> = (ROWS - LATEST..ROWS).filter(|it| !carried(it)).collect();
        assert_eq!(lost, Vec::<u16>::new());
        assert!(!carried(&0));
    });
}

#[test]
fn a_downgrade_carries_nothing_and_refuses_nobody() {
    on_scratch_node(|node| {
        let mut newer = node.start();
        let ops = put(WEB, entry(1, 1, 1, 1), &[(1, tcp_backend("a"))]);
        newer.maps.apply_all(&ops).unwrap();
        drop(newer);
        becomes_another(node, "v3");
        let (known, new) = ("links/kn_getpeername6", "links/kn_new_in_3");
        fs::rename(directory(node, known), directory(node, new)).unwrap();
        let dialler = Dialler::start(WEB, "a");

        let mut older = node.start();
        assert_eq!(older.maps.dump().unwrap(), super::PinnedState::default());
        assert!(soon(|| dialler.count() > 100));
        older.maps.apply_all(&ops).unwrap();
        take_over(&mut older);
        let dialled_before = dialler.count();
        assert!(soon(|| dialler.count() > dialled_before + 100));
        assert_eq!(dialler.stop(), Vec::<String>::new());
        assert_eq!(pinned(node), ["links", "v2"]);
        assert!(!directory(node, "links/kn_new_in_3").exists());
    });
}

/// Makes a map as version 1 made it.
fn v1_map<K: Pod, V: Pod>(dir: &Path, name: &str, rows: &[(K, V)]) {
    let mut map = HashMap::<MapData, K, V>::create(64, 0).unwrap();
    for (key, value) in rows {
        map.insert(key, value, 0).unwrap();
    }
    map.pin(dir.join(name)).unwrap();
}

fn v1_service(id: u32, protocol: u8) -> (v1::ServiceKey, v1::ServiceRow) {
    let key = v1::ServiceKey {
        address: [10, 96, 0, 1],
        port: [0, 80],
        protocol,
        pad: 0,
    };
    let entry = v1::ServiceEntry {
        service_id: id,
        generation: 4,
        local: 1,
        zone: 0,
        ready: 1,
        terminating: 0,
        flags: 0,
        affinity_timeout_s: 60,
        local_share: 1 << 16,
    };
    (key, v1::ServiceRow { key, entry })
}

#[test]
fn rows_of_version_1_are_carried_over() {
    on_scratch_node(|node| {
        let backend = tcp_backend("a");
        let std::net::SocketAddr::V4(at) = backend else {
            panic!("IPv4");
        };
        let (address, port) = (at.ip().octets(), at.port().to_be_bytes());
        // A connection that version 1 sent to the backend.
        let stream = TcpStream::connect(backend).unwrap();
        let cookie = SockRef::from(&stream).cookie().unwrap();
        let row = v1::SocketEntry {
            backend_address: address,
            backend_port: port,
            pad: [0; 2],
            service: v1::ReverseEntry {
                address: [10, 96, 0, 1],
                port: [0, 80],
                pad: [0; 2],
                backend: 9,
                service_id: 7,
            },
        };
        let backend_row = v1::BackendEntry {
            address,
            port,
            protocol: TCP,
            pad: 0,
        };
        let slot = SlotKey {
            service_id: 7,
            generation: 4,
            slot: 0,
        };
        let client = v1::AffinityKey {
            netns_cookie: 77,
            service_id: 7,
            pad: 0,
        };
        let last = v1::AffinityEntry {
            last_use_ns: 5,
            backend: 9,
            generation: 4,
            slot: 0,
            pad: 0,
        };
        let dir = directory(node, "v1");
        fs::create_dir_all(dir.join("links")).unwrap();
        v1_map(&dir, names::SERVICES, &[v1_service(7, TCP)]);
        v1_map(&dir, names::BACKEND_TABLE, &[(slot, BackendId(9))]);
        v1_map(&dir, names::BACKENDS, &[(BackendId(9), backend_row)]);
        v1_map(&dir, names::SOCKETS, &[(SocketKey(cookie), row)]);
        let cpus = aya::util::nr_cpus().unwrap();
        let counted = v1::BackendStats {
            opens: 3,
            closes: 2,
        };
        let mut stats =
            PerCpuHashMap::<MapData, BackendId, v1::BackendStats>::create(64, 0).unwrap();
        let mut values = vec![
            v1::BackendStats {
                opens: 0,
                closes: 0
            };
            cpus
        ];
        values[cpus - 1] = counted;
        let values = PerCpuValues::try_from(values).unwrap();
        stats.insert(BackendId(9), values, 0).unwrap();
        stats.pin(dir.join(names::STATS)).unwrap();
        let mut affinity =
            aya::maps::HashMap::<MapData, v1::AffinityKey, v1::AffinityEntry>::create(64, 0)
                .unwrap();
        affinity.insert(client, last, 0).unwrap();
        affinity.pin(dir.join(names::AFFINITY)).unwrap();

        let plan = upgrade_check(&node.config.bpf_dir, MapSizes::default()).unwrap();
        assert_eq!(plan.sources[0].carried, Carried::V1);
        let mut dataplane = node.start();
        let state = dataplane.maps.dump().unwrap();
        let carried: ServiceEntry = state.services[&WEB];
        assert_eq!((carried.service_id, carried.generation), (7, 4));
        assert_eq!(state.slots[&slot_key(&carried, 0)], BackendId(9));
        assert_eq!(
            state.backends[&BackendId(9)].address,
            at.ip().to_owned().into()
        );
        assert_eq!(stream.peer_addr().unwrap(), backend, "nobody serves yet");

        take_over(&mut dataplane);
        assert_eq!(stream.peer_addr().unwrap(), dialled(WEB));
        assert_eq!(active(&dataplane, 9), (3, 2));
        let client = AffinityKey {
            netns_cookie: 77,
            service_id: 7,
            pad: 0,
        };
        let last = dataplane.maps.affinity.get(&client, 0).unwrap();
        assert_eq!((last.backend, last.last_use_ns), (BackendId(9), 5));
        assert_eq!(pinned(node), ["links", "v2"]);
        assert_eq!(dial(WEB).unwrap(), "a");
        let here = ["/proc/thread-self/ns/net".into()];
        let closed = close_sockets(&dataplane.maps, &[BackendId(9)].into(), &here).unwrap();
        assert_eq!(closed.sockets, 1, "it is closed when its backend goes");
        drop(stream);
        assert!(soon(|| active(&dataplane, 9) == (4, 4)));
    });
}
