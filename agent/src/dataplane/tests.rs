//! The programs in the real kernel: sockets dial service addresses and reach backends on the loopback.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read};
use std::net::{Ipv6Addr, SocketAddr, TcpStream, UdpSocket};

use agent_ebpf::abi::{
    Address, BackendId, SHARE_ONE, Scope, ServiceEntry, ServiceKey, ServiceStats, TCP, UDP,
    maps as names,
};
use ipnet::IpNet;

use super::testing::{
    Dialler, Scratch, dial, dialled, entry, mapped, on_scratch_node, put, service, slot_key, soon,
    tcp_backend, udp_backend,
};
use super::{MapError, MapOp, MapSizes, ServiceMaps, Sockets, close_sockets, start};

pub(super) const WEB: ServiceKey = ServiceKey {
    address: Address::v4([10, 96, 0, 1]),
    port: [0, 80],
    protocol: TCP,
    scope: Scope::CLUSTER,
};

#[test]
fn a_tcp_socket_reaches_the_backend_and_sees_the_service() {
    on_scratch_node(|node| {
        let mut dataplane = node.start();
        assert!(!dataplane.adopted);
        let backend = tcp_backend("a");
        dataplane
            .maps
            .apply_all(&put(WEB, entry(1, 1, 1, 1), &[(1, backend)]))
            .unwrap();

        let mut stream = TcpStream::connect(dialled(WEB)).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), dialled(WEB));
        let mut name = String::new();
        stream.read_to_string(&mut name).unwrap();
        assert_eq!(name, "a");

        let stats = dataplane.maps.backend_stats(BackendId(1)).unwrap();
        assert_eq!((stats.opens, stats.closes), (1, 0));
        drop(stream);
        assert!(soon(|| dataplane
            .maps
            .backend_stats(BackendId(1))
            .unwrap()
            .closes
            == 1));
    });
}

#[test]
fn an_ipv6_socket_reaches_an_ipv4_service_and_sees_it() {
    on_scratch_node(|node| {
        let mut dataplane = node.start();
        let dns = service(2, 53, UDP);
        let (tcp, udp) = (tcp_backend("a"), udp_backend("b"));
        let maps = &mut dataplane.maps;
        maps.apply_all(&put(WEB, entry(1, 1, 1, 1), &[(1, tcp)]))
            .unwrap();
        maps.apply_all(&put(dns, entry(2, 1, 1, 1), &[(2, udp)]))
            .unwrap();

        let mut stream = TcpStream::connect(mapped(WEB)).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), mapped(WEB));
        let mut name = String::new();
        stream.read_to_string(&mut name).unwrap();
        assert_eq!(name, "a");

        let connected = UdpSocket::bind("[::]:0").unwrap();
        connected.connect(mapped(dns)).unwrap();
        assert_eq!(connected.peer_addr().unwrap(), mapped(dns));
        connected.send(b"?").unwrap();
        let mut buffer = [0; 8];
        assert_eq!(connected.recv(&mut buffer).unwrap(), 1);

        let unconnected = UdpSocket::bind("[::]:0").unwrap();
        unconnected.send_to(b"?", mapped(dns)).unwrap();
        assert_eq!(unconnected.recv_from(&mut buffer).unwrap().1, mapped(dns));

        maps.apply(&MapOp::PutService(WEB, entry(1, 2, 0, 0)))
            .unwrap();
        let refused = TcpStream::connect(mapped(WEB)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);

        // An address that is IPv6 indeed is left alone, whatever its last four bytes are.
        let other = SocketAddr::from(([0xfd00, 0, 0, 0, 0, 0xffff, 0x0a60, 0x0001], 80));
        assert_eq!(
            TcpStream::connect(other).unwrap_err().kind(),
            ErrorKind::NetworkUnreachable
        );
    });
}

#[test]
fn addresses_that_are_no_service_are_not_touched() {
    on_scratch_node(|node| {
        let mut dataplane = node.start();
        let backend = tcp_backend("a");
        dataplane
            .maps
            .apply_all(&put(WEB, entry(1, 1, 1, 1), &[(1, backend)]))
            .unwrap();

        let other_port = TcpStream::connect(dialled(service(1, 81, TCP))).unwrap_err();
        assert_eq!(other_port.kind(), ErrorKind::NetworkUnreachable);
        let direct = TcpStream::connect(backend).unwrap();
        assert_eq!(direct.peer_addr().unwrap(), backend);
        assert_eq!(dataplane.maps.totals().unwrap(), super::Totals::default());
    });
}

#[test]
fn a_service_without_backends_refuses_at_once_and_counts() {
    on_scratch_node(|node| {
        let mut dataplane = node.start();
        let dns = service(2, 53, UDP);
        dataplane
            .maps
            .apply_all(&put(WEB, entry(1, 1, 0, 0), &[]))
            .unwrap();
        dataplane
            .maps
            .apply_all(&put(dns, entry(2, 1, 0, 0), &[]))
            .unwrap();

        // Refused, not timed out: that is what "at once" means to a client.
        assert_eq!(dial(WEB).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        assert_eq!(
            socket.send_to(b"?", dialled(dns)).unwrap_err().kind(),
            ErrorKind::ConnectionRefused
        );
        assert_eq!(
            socket.connect(dialled(dns)).unwrap_err().kind(),
            ErrorKind::ConnectionRefused
        );

        let refused = |no_backend| ServiceStats {
            no_backend,
            hole: 0,
        };
        assert_eq!(dataplane.maps.service_stats(1).unwrap(), refused(1));
        assert_eq!(dataplane.maps.service_stats(2).unwrap(), refused(2));
    });
}

#[test]
fn a_missing_row_is_refused_and_counted_as_a_hole() {
    on_scratch_node(|node| {
        let mut dataplane = node.start();
        dataplane
            .maps
            .apply(&MapOp::PutService(WEB, entry(1, 1, 1, 1)))
            .unwrap();
        assert_eq!(dial(WEB).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert_eq!(
            dataplane.maps.service_stats(1).unwrap(),
            ServiceStats {
                no_backend: 0,
                hole: 1
            }
        );
    });
}

#[test]
fn a_connected_udp_socket_talks_to_one_backend_and_sees_the_service() {
    on_scratch_node(|node| {
        let mut dataplane = node.start();
        let dns = service(2, 53, UDP);
        let backends = [
            (1, udp_backend("a")),
            (2, udp_backend("b")),
            (3, udp_backend("c")),
        ];
        dataplane
            .maps
            .apply_all(&put(dns, entry(1, 1, 3, 3), &backends))
            .unwrap();

        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect(dialled(dns)).unwrap();
        assert_eq!(socket.peer_addr().unwrap(), dialled(dns));
        let mut buffer = [0; 8];
        socket.send(b"?").unwrap();
        let (n, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!((n, from), (1, dialled(dns)));
    });
}

#[test]
fn an_unconnected_udp_socket_keeps_its_backend_and_sees_the_services() {
    on_scratch_node(|node| {
        let mut dataplane = node.start();
        let (dns, ntp) = (service(2, 53, UDP), service(3, 123, UDP));
        let of_dns = [
            (1, udp_backend("a")),
            (2, udp_backend("b")),
            (3, udp_backend("c")),
        ];
        dataplane
            .maps
            .apply_all(&put(dns, entry(1, 1, 3, 3), &of_dns))
            .unwrap();
        dataplane
            .maps
            .apply_all(&put(ntp, entry(2, 1, 1, 1), &[(4, udp_backend("ntp"))]))
            .unwrap();

        let ask = |socket: &UdpSocket, key| {
            let mut buffer = [0; 8];
            socket.send_to(b"?", dialled(key)).unwrap();
            let (n, from) = socket.recv_from(&mut buffer).unwrap();
            assert_eq!(from, dialled(key));
            String::from_utf8_lossy(&buffer[..n]).into_owned()
        };
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..40 {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            let first = ask(&socket, dns);
            assert_eq!(ask(&socket, ntp), "ntp");
            assert!((0..5).all(|_| ask(&socket, dns) == first));
            seen.insert(first);
        }
        assert_eq!(seen.len(), 3, "sockets spread over the backends");

        // An answer to an earlier question arrives after the socket has asked another service.
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.send_to(b"?", dialled(dns)).unwrap();
        socket.send_to(b"?", dialled(ntp)).unwrap();
        let mut buffer = [0; 8];
        let mut from: Vec<SocketAddr> = (0..2)
            .map(|_| socket.recv_from(&mut buffer).unwrap().1)
            .collect();
        from.sort();
        assert_eq!(from, [dialled(dns), dialled(ntp)]);

        drop(socket);
        let active = || {
            let stats = dataplane.maps.totals().unwrap().backends;
            stats.values().map(|s| s.opens - s.closes).sum::<u64>()
        };
        assert!(soon(|| active() == 0), "{:?}", dataplane.maps.totals());
    });
}

#[test]
fn new_connections_stay_on_the_node_as_the_share_says() {
    on_scratch_node(|node| {
        let mut dataplane = node.start();
        let backends = [
            (1, tcp_backend("local")),
            (2, tcp_backend("far")),
            (3, tcp_backend("far")),
        ];
        for (share, low, high) in [
            (SHARE_ONE, 1000, 1000),
            (SHARE_ONE / 4, 180, 330),
            (0, 0, 0),
        ] {
            let entry = ServiceEntry {
                local_share: share,
                ..entry(1, 1, 1, 3)
            };
            dataplane
                .maps
                .apply_all(&put(WEB, entry, &backends))
                .unwrap();
            let local = (0..1000).filter(|_| dial(WEB).unwrap() == "local").count();
            assert!(
                (low..=high).contains(&local),
                "share {share}: {local} of 1000 stayed"
            );
        }
    });
}

#[test]
fn session_affinity_holds_for_a_network_namespace() {
    on_scratch_node(|node| {
        let mut dataplane = node.start();
        let backends = [
            (1, tcp_backend("a")),
            (2, tcp_backend("b")),
            (3, tcp_backend("c")),
        ];
        let sticky = ServiceEntry {
            affinity_timeout_s: 60,
            ..entry(1, 1, 3, 3)
        };
        dataplane
            .maps
            .apply_all(&put(WEB, sticky, &backends))
            .unwrap();
        let first = dial(WEB).unwrap();
        assert!((0..50).all(|_| dial(WEB).unwrap() == first));

        let reversed = [backends[2], backends[1], backends[0]];
        let next = ServiceEntry {
            generation: 2,
            ..sticky
        };
        dataplane
            .maps
            .apply_all(&put(WEB, next, &reversed))
            .unwrap();
        assert!(
            (0..50).all(|_| dial(WEB).unwrap() == first),
            "the table changed, the backend did not"
        );
    });
}

#[test]
fn flips_under_continuous_connects_fail_none_and_never_lead_to_a_stranger() {
    on_scratch_node(|node| {
        let mut dataplane = node.start();
        let shop = service(2, 80, TCP);
        let (web_backends, shop_backends) = (
            [tcp_backend("web"), tcp_backend("web")],
            [tcp_backend("shop")],
        );
        let tables = |generation: u32| {
            let id = generation * 10;
            let web = entry(1, generation, 1, 1 + generation % 2);
            let web_rows = [(id, web_backends[0]), (id + 1, web_backends[1])];
            let mut ops = put(WEB, web, &web_rows[..web.ready as usize]);
            ops.extend(put(
                shop,
                entry(2, generation, 0, 1),
                &[(id + 2, shop_backends[0])],
            ));
            ops
        };
        dataplane.maps.apply_all(&tables(1)).unwrap();
        let diallers = [Dialler::start(WEB, "web"), Dialler::start(shop, "shop")];
        let mut generation = 1;
        while diallers.iter().any(|d| d.count() < 3000) {
            let old = tables(generation);
            generation += 1;
            dataplane.maps.apply_all(&tables(generation)).unwrap();
            for op in old {
                let undo = match op {
                    MapOp::PutBackend(id, _) => MapOp::DeleteBackend(id, Sockets::Keep),
                    MapOp::PutSlot(key, _) => MapOp::DeleteSlot(key),
                    _ => continue,
                };
                dataplane.maps.apply(&undo).unwrap();
            }
        }
        for dialler in diallers {
            assert_eq!(dialler.stop(), Vec::<String>::new());
        }
        assert!(generation > 1000, "only {generation} flips");
        let totals = dataplane.maps.totals().unwrap();
        assert!(totals.services.values().all(|s| s.hole == 0), "{totals:?}");
        let state = dataplane.maps.dump().unwrap();
        assert!(state.slots.keys().all(|slot| slot.generation == generation));
    });
}

#[test]
fn the_kernel_serves_on_without_user_space_and_is_adopted_without_a_gap() {
    on_scratch_node(|node| {
        let mut dataplane = node.start();
        let backend = tcp_backend("a");
        dataplane
            .maps
            .apply_all(&put(WEB, entry(1, 1, 1, 1), &[(1, backend)]))
            .unwrap();
        let before = dataplane.maps.dump().unwrap();
        drop(dataplane);
        assert_eq!(dial(WEB).unwrap(), "a");

        let dialler = Dialler::start(WEB, "a");
        for _ in 0..5 {
            let dataplane = node.start();
            assert!(dataplane.adopted);
            assert_eq!(dataplane.maps.dump().unwrap(), before);
        }
        assert!(soon(|| dialler.count() > 100));
        assert_eq!(dialler.stop(), Vec::<String>::new());
    });
}

#[test]
fn programs_move_to_another_cgroup_when_told_so() {
    on_scratch_node(|node| {
        let inner = node.config.cgroup.join("inner");
        std::fs::create_dir(&inner).unwrap();
        let elsewhere = super::Config {
            cgroup: inner.clone(),
            ..node.config.clone()
        };
        let mut dataplane = start(&elsewhere, &node.probe).unwrap();
        let backend = tcp_backend("a");
        dataplane
            .maps
            .apply_all(&put(WEB, entry(1, 1, 1, 1), &[(1, backend)]))
            .unwrap();
        assert!(
            dial(WEB).is_err(),
            "this process is not in the inner cgroup"
        );

        std::fs::remove_dir(&inner).unwrap();
        let dataplane = node.start();
        assert!(!dataplane.adopted);
        assert_eq!(dial(WEB).unwrap(), "a");
    });
}

#[test]
fn sockets_of_a_gone_backend_are_closed_and_no_others() {
    on_scratch_node(|node| {
        let mut dataplane = node.start();
        let dns = service(2, 53, UDP);
        let (gone, stays) = (quiet_tcp_backend(), quiet_tcp_backend());
        let gone_udp = udp_backend("gone");
        let maps = &mut dataplane.maps;
        maps.apply_all(&put(WEB, entry(1, 1, 1, 1), &[(1, gone)]))
            .unwrap();
        maps.apply_all(&put(service(3, 80, TCP), entry(3, 1, 1, 1), &[(3, stays)]))
            .unwrap();
        maps.apply_all(&put(dns, entry(2, 1, 1, 1), &[(2, gone_udp)]))
            .unwrap();
        let mut victim = TcpStream::connect(dialled(WEB)).unwrap();
        let mut victim6 = TcpStream::connect(mapped(WEB)).unwrap();
        let other = TcpStream::connect(dialled(service(3, 80, TCP))).unwrap();
        let direct = TcpStream::connect(gone).unwrap();
        let connected = UdpSocket::bind("0.0.0.0:0").unwrap();
        connected.connect(dialled(dns)).unwrap();
        let unconnected = UdpSocket::bind("0.0.0.0:0").unwrap();
        unconnected.send_to(b"?", dialled(dns)).unwrap();

        let here = [
            // No namespace: it fails, and the others are gone through all the same.
            std::path::PathBuf::from("/proc/self/stat"),
            "/proc/thread-self/ns/net".into(),
            "/nowhere".into(),
        ];
        let closed_to = |id| {
            let closed = close_sockets(maps, &[BackendId(id)].into(), &here).unwrap();
            assert_eq!(closed.failed.len(), 1, "{:?}", closed.failed);
            closed.sockets
        };
        assert_eq!(closed_to(1), 2);
        assert_eq!(closed_to(2), 1);

        for victim in [&mut victim, &mut victim6] {
            assert_eq!(
                victim.read(&mut [0]).unwrap_err().kind(),
                ErrorKind::ConnectionAborted
            );
        }
        assert_eq!(
            connected.recv(&mut [0]).unwrap_err().kind(),
            ErrorKind::ConnectionAborted
        );
        for stream in [&other, &direct] {
            stream.set_nonblocking(true).unwrap();
            assert_eq!(
                (&*stream).read(&mut [0]).unwrap_err().kind(),
                ErrorKind::WouldBlock
            );
        }
        assert_eq!(unconnected.recv_from(&mut [0; 8]).unwrap().1, dialled(dns));
    });
}

/// A TCP backend that accepts in its backlog and never speaks.
fn quiet_tcp_backend() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::mem::forget(listener);
    address
}

#[test]
fn removal_leaves_no_pin_and_no_program() {
    on_scratch_node(|node| {
        let mut dataplane = node.start();
        dataplane
            .maps
            .apply_all(&put(WEB, entry(1, 1, 1, 1), &[(1, tcp_backend("a"))]))
            .unwrap();
        super::remove(&node.config.bpf_dir).unwrap();
        drop(dataplane);
        assert!(!node.config.bpf_dir.exists());
        assert!(soon(
            || dial(WEB).is_err_and(|e| e.kind() == ErrorKind::NetworkUnreachable)
        ));
        super::remove(&node.config.bpf_dir).unwrap();
    });
}

#[test]
fn a_full_map_says_which_and_how_large() {
    on_scratch_node(|node| {
        let sizes = MapSizes {
            services: 4,
            ..MapSizes::default()
        };
        let config = super::Config {
            sizes,
            ..node.config.clone()
        };
        let mut dataplane = start(&config, &node.probe).unwrap();
        let write = |maps: &mut super::Maps, host| {
            maps.apply(&MapOp::PutService(
                service(host, 80, TCP),
                entry(u32::from(host), 1, 0, 0),
            ))
        };
        let full = (0..64)
            .find_map(|host| write(&mut dataplane.maps, host).err())
            .unwrap();
        assert!(
            matches!(
                full,
                MapError::Full {
                    map: names::SERVICES,
                    max_entries: 4,
                    ..
                }
            ),
            "{full}"
        );
        assert!(
            full.to_string()
                .starts_with("map SERVICES is full at 4 entries"),
            "{full}"
        );
        write(&mut dataplane.maps, 0).expect("a row that is there can be replaced");
    });
}

#[test]
fn writes_are_idempotent_and_what_is_shown_is_what_was_written() {
    on_scratch_node(|node: &Scratch| {
        let mut dataplane = node.start();
        let maps = &mut dataplane.maps;
        let ops = put(
            WEB,
            entry(7, 3, 1, 1),
            &[(9, SocketAddr::from(([10, 244, 1, 5], 8080)))],
        );
        maps.apply_all(&ops).unwrap();
        maps.apply_all(&ops).unwrap();

        let found = maps.lookup(&WEB, None).unwrap().unwrap();
        assert_eq!(found.tables(), maps.dump().unwrap());
        let behind = found.rows();
        let text: Vec<_> = behind
            .iter()
            .map(|r| format!("{} {} -> {}", r.map, r.key, r.value))
            .collect();
        assert_eq!(
            text,
            [
                "SERVICES 10.96.0.1:80 TCP -> service 7 generation 3: 1 local, 0 zone, 1 ready, 0 terminating, \
                 local share 1.000",
                "BACKEND_TABLE service 7 generation 3 slot 0 -> backend 9",
                "BACKENDS backend 9 -> 10.244.1.5:8080 TCP",
            ]
        );
        let raw_key = [&WEB.address.octets()[..], &[0, 80, TCP, 0]].concat();
        assert_eq!(behind[0].raw_key, raw_key);
        assert_eq!(maps.rows(names::SERVICES).unwrap(), behind[..1]);
        let fill: Vec<_> = maps
            .summaries()
            .unwrap()
            .into_iter()
            .map(|s| (s.name, s.entries))
            .collect();
        assert_eq!(
            fill[..4],
            [
                ("SERVICES", 1),
                ("BACKEND_TABLE", 1),
                ("BACKENDS", 1),
                ("SOCKETS", 0)
            ]
        );
        assert!(matches!(maps.rows("NOPE"), Err(MapError::Unknown { .. })));

        for _ in 0..2 {
            maps.apply(&MapOp::DeleteService(WEB)).unwrap();
            maps.apply(&MapOp::DeleteSlot(slot_key(&entry(7, 3, 1, 1), 0)))
                .unwrap();
            maps.apply(&MapOp::DeleteBackend(BackendId(9), Sockets::Keep))
                .unwrap();
        }
        assert_eq!(maps.dump().unwrap(), super::PinnedState::default());
        assert_eq!(maps.lookup(&WEB, None).unwrap(), None);
    });
}

#[test]
fn the_rows_of_a_trie_are_counted_however_many_there_are() {
    on_scratch_node(|node| {
        let mut dataplane = node.start();
        let range = |number: u32| IpNet::new(Ipv6Addr::from_bits(number.into()).into(), 128);
        let wanted: BTreeSet<IpNet> = (0..5_000).map(|number| range(number).unwrap()).collect();
        let none = BTreeSet::new();
        dataplane.maps.set_exempt(&none, &wanted).unwrap();
        let summaries = dataplane.maps.summaries().unwrap();
        let exempt = summaries.iter().find(|it| it.name == names::EXEMPT);
        assert_eq!(exempt.unwrap().entries, 5_000);
    });
}
