//! What the programs tell of connections, in the real kernel: IPv6 services, counters, events.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use agent_ebpf::abi::{
    self, Address, BackendId, BackendStats, FlowEvent, ServiceStats, TCP, UDP, maps as names,
};
use agent_ebpf::histogram::{bucket, upper_bound_ns};
use aya::maps::{Map, MapData, RingBuf};

use super::testing::{
    Scratch, dialled, entry, on_scratch_node, put, service, service6, soon, tcp_backend,
    tcp_backend_at, udp_backend, udp_backend_at,
};
use super::{Dataplane, MapOp, ServiceMaps, StaleSockets, close_sockets};

fn stats(dataplane: &Dataplane, id: u32) -> BackendStats {
    dataplane.maps.backend_stats(BackendId(id)).unwrap()
}

fn sockets(dataplane: &Dataplane) -> usize {
    dataplane.maps.rows(names::SOCKETS).unwrap().len()
}

/// Takes what is in the ring now.
fn events(ring: &mut RingBuf<MapData>) -> Vec<FlowEvent> {
    std::iter::from_fn(|| {
        let item = ring.next()?;
        // SAFETY: the programs write nothing else there; any bytes are a record.
        Some(unsafe { item.as_ptr().cast::<FlowEvent>().read_unaligned() })
    })
    .collect()
}

fn ring(dataplane: &Dataplane) -> RingBuf<MapData> {
    let data = MapData::from_pin(dataplane.dir.join(names::EVENTS)).unwrap();
    RingBuf::try_from(Map::RingBuf(data)).unwrap()
}

/// A port on the loopback at which nobody listens.
fn closed_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

fn tcp_socket() -> socket2::Socket {
    socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap()
}

#[test]
fn ipv6_services_are_served_as_ipv4_ones_are() {
    on_scratch_node(|node| {
        let mut dataplane = node.start();
        let (web, dns, empty) = (
            service6(1, 80, TCP),
            service6(2, 53, UDP),
            service6(3, 80, TCP),
        );
        let (tcp, udp) = (
            tcp_backend_at("[::1]:0", "a"),
            udp_backend_at("[::1]:0", "b"),
        );
        let maps = &mut dataplane.maps;
        maps.apply_all(&put(web, entry(1, 1, 1, 1), &[(1, tcp)]))
            .unwrap();
        maps.apply_all(&put(dns, entry(2, 1, 1, 1), &[(2, udp)]))
            .unwrap();
        maps.apply(&MapOp::PutService(empty, entry(3, 1, 0, 0)))
            .unwrap();

        let mut stream = TcpStream::connect(dialled(web)).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), dialled(web));
        let mut name = String::new();
        stream.read_to_string(&mut name).unwrap();
        assert_eq!(name, "a");

        let mut buffer = [0; 8];
        let connected = UdpSocket::bind("[::]:0").unwrap();
        connected.connect(dialled(dns)).unwrap();
        assert_eq!(connected.peer_addr().unwrap(), dialled(dns));
        connected.send(b"?").unwrap();
        assert_eq!(connected.recv(&mut buffer).unwrap(), 1);

        let unconnected = UdpSocket::bind("[::]:0").unwrap();
        unconnected.send_to(b"?", dialled(dns)).unwrap();
        assert_eq!(unconnected.recv_from(&mut buffer).unwrap().1, dialled(dns));

        let refused = TcpStream::connect(dialled(empty)).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        let no_backend = ServiceStats {
            no_backend: 1,
            hole: 0,
        };
        assert_eq!(dataplane.maps.service_stats(3).unwrap(), no_backend);
    });
}

#[test]
fn one_udp_socket_talks_to_services_of_both_families() {
    on_scratch_node(|node| {
        let mut dataplane = node.start();
        let (v4, v6) = (service(2, 53, UDP), service6(2, 53, UDP));
        let maps = &mut dataplane.maps;
        let (four, six) = (udp_backend("4"), udp_backend_at("[::1]:0", "6"));
        maps.apply_all(&put(v4, entry(1, 1, 1, 1), &[(1, four)]))
            .unwrap();
        maps.apply_all(&put(v6, entry(2, 1, 1, 1), &[(2, six)]))
            .unwrap();

        let socket = UdpSocket::bind("[::]:0").unwrap();
        let mapped = super::testing::mapped(v4);
        for _ in 0..2 {
            socket.send_to(b"?", mapped).unwrap();
            socket.send_to(b"?", dialled(v6)).unwrap();
            let mut answers = [(); 2].map(|()| {
                let mut buffer = [0; 8];
                let (n, from) = socket.recv_from(&mut buffer).unwrap();
                (String::from_utf8_lossy(&buffer[..n]).into_owned(), from)
            });
            answers.sort();
            assert_eq!(
                answers,
                [("4".to_owned(), mapped), ("6".to_owned(), dialled(v6))]
            );
        }
    });
}

#[test]
fn a_udp_socket_keeps_its_backend_when_others_come_and_go() {
    on_scratch_node(|node| {
        let mut dataplane = node.start();
        let dns = service(1, 53, UDP);
        let servers: Vec<UdpSocket> = (0..4)
            .map(|_| UdpSocket::bind("127.0.0.1:0").unwrap())
            .collect();
        let at = |id: usize| (id as u32, servers[id - 1].local_addr().unwrap());
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let asked = |servers: &[UdpSocket]| {
            client.send_to(b"?", dialled(dns)).unwrap();
            let found = |server: &UdpSocket| {
                server.set_nonblocking(true).unwrap();
                server.recv_from(&mut [0; 8]).is_ok()
            };
            servers.iter().position(found).expect("a server hears it") + 1
        };
        let mut ops = put(dns, entry(1, 1, 2, 2), &[at(1), at(2)]);
        dataplane.maps.apply_all(&ops).unwrap();
        let mine = asked(&servers);
        let other = 3 - mine;
        // Each table has it in another place.
        let tables: [&[usize]; 3] = [&[3, mine, other], &[4, 3, other, mine], &[mine, 4]];
        for (generation, table) in (2..).zip(tables) {
            let rows: Vec<_> = table.iter().map(|id| at(*id)).collect();
            let ready = table.len() as u32;
            ops = put(dns, entry(1, generation, ready, ready), &rows);
            dataplane.maps.apply_all(&ops).unwrap();
            assert_eq!(asked(&servers), mine, "generation {generation}");
            assert_eq!(asked(&servers), mine, "generation {generation}");
        }
        assert_eq!(stats(&dataplane, mine as u32).opens, 1);
        ops = put(dns, entry(1, 5, 1, 1), &[at(3)]);
        dataplane.maps.apply_all(&ops).unwrap();
        assert_eq!(asked(&servers), 3);
        let seen = stats(&dataplane, mine as u32);
        assert_eq!((seen.opens, seen.closes), (1, 1));
    });
}

#[test]
fn handshakes_bytes_and_failures_are_counted_for_their_backend() {
    on_scratch_node(|node| {
        let mut dataplane = node.start();
        let (web, dead) = (service(1, 80, TCP), service(2, 80, TCP));
        let maps = &mut dataplane.maps;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let backend = listener.local_addr().unwrap();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                if stream.read_exact(&mut [0; 3]).is_ok() {
                    let _ = stream.write_all(b"hello");
                }
            }
        });
        maps.apply_all(&put(web, entry(1, 1, 1, 1), &[(1, backend)]))
            .unwrap();
        maps.apply_all(&put(dead, entry(2, 1, 1, 1), &[(2, closed_port())]))
            .unwrap();

        let mut stream = TcpStream::connect(dialled(web)).unwrap();
        stream.write_all(b"abc").unwrap();
        let mut name = String::new();
        stream.read_to_string(&mut name).unwrap();
        drop(stream);
        assert!(
            soon(|| stats(&dataplane, 1).bytes_received > 0),
            "{:?}",
            stats(&dataplane, 1)
        );
        let seen = stats(&dataplane, 1);
        assert_eq!(
            (seen.opens, seen.closes, seen.failures, seen.handshakes),
            (1, 1, 0, 1)
        );
        // TCP counts its SYN and FIN as a byte each.
        assert!((5..=6).contains(&seen.bytes_received), "{seen:?}");
        assert!((3..=5).contains(&seen.bytes_sent), "{seen:?}");
        assert!(seen.handshake_ns > 0);
        let at = bucket(seen.handshake_ns);
        assert_eq!(
            seen.handshake_buckets[at],
            1,
            "below {:?} ns",
            upper_bound_ns(at)
        );

        TcpStream::connect(dialled(dead)).unwrap_err();
        let seen = stats(&dataplane, 2);
        assert_eq!((seen.opens, seen.failures, seen.handshakes), (1, 1, 0));

        // A connect that goes past the services counts nowhere.
        drop(TcpStream::connect(backend).unwrap());
        assert_eq!(stats(&dataplane, 1).handshakes, 1);
    });
}

#[test]
fn a_sockets_row_goes_when_socket_and_connection_are_gone_whichever_is_last() {
    on_scratch_node(|node| {
        let mut dataplane = node.start();
        let web = service(1, 80, TCP);
        // This one closes when the client does, so that the client is the first; the others close first.
        let patient = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = patient.local_addr().unwrap();
        thread::spawn(move || {
            for mut stream in patient.incoming().flatten() {
                let _ = stream.read(&mut [0; 8]);
            }
        });
        dataplane
            .maps
            .apply_all(&put(web, entry(1, 1, 1, 1), &[(1, address)]))
            .unwrap();
        let stream = TcpStream::connect(dialled(web)).unwrap();
        assert_eq!(sockets(&dataplane), 1);
        drop(stream);
        assert!(soon(|| sockets(&dataplane) == 0), "client first");

        let hasty = put(web, entry(1, 2, 1, 1), &[(2, tcp_backend("a"))]);
        dataplane.maps.apply_all(&hasty).unwrap();
        let mut stream = TcpStream::connect(dialled(web)).unwrap();
        stream.read_to_string(&mut String::new()).unwrap();
        drop(stream);
        assert!(soon(|| sockets(&dataplane) == 0), "server first");

        let dead = put(web, entry(1, 3, 1, 1), &[(3, closed_port())]);
        dataplane.maps.apply_all(&dead).unwrap();
        TcpStream::connect(dialled(web)).unwrap_err();
        assert!(soon(|| sockets(&dataplane) == 0), "never established");
    });
}

#[test]
fn a_hundred_connections_at_once_leave_no_row_behind() {
    on_scratch_node(|node| {
        let mut dataplane = node.start();
        let web = service(1, 80, TCP);
        let backend = tcp_backend("a");
        dataplane
            .maps
            .apply_all(&put(web, entry(1, 1, 1, 1), &[(1, backend)]))
            .unwrap();
        thread::scope(|scope| {
            for _ in 0..10 {
                // The threads inherit this one's network namespace.
                scope.spawn(|| {
                    for n in 0..100 {
                        let mut stream = TcpStream::connect(dialled(web)).unwrap();
                        // Some wait for the end, some close while it is on its way, some break off.
                        match n % 3 {
                            0 => drop(stream.read_to_string(&mut String::new())),
                            1 => drop(stream.read(&mut [0; 1])),
                            _ => {}
                        }
                    }
                });
            }
        });
        assert!(
            soon(|| sockets(&dataplane) == 0),
            "{} rows left",
            sockets(&dataplane)
        );
        let seen = stats(&dataplane, 1);
        assert_eq!(
            (seen.opens, seen.closes, seen.handshakes),
            (1000, 1000, 1000)
        );
    });
}

#[test]
fn sampled_sockets_and_all_refusals_are_recorded() {
    on_scratch_node(|node| {
        let mut dataplane = node.start();
        let mut ring = ring(&dataplane);
        let (web, dead, empty) = (
            service(1, 80, TCP),
            service(2, 80, TCP),
            service(3, 53, UDP),
        );
        let backend = tcp_backend("hello");
        let maps = &mut dataplane.maps;
        maps.apply_all(&put(web, entry(1, 1, 1, 1), &[(1, backend)]))
            .unwrap();
        maps.apply_all(&put(dead, entry(2, 1, 1, 1), &[(2, closed_port())]))
            .unwrap();
        maps.apply(&MapOp::PutService(empty, entry(3, 1, 0, 0)))
            .unwrap();

        drop(TcpStream::connect(dialled(web)).unwrap());
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.send_to(b"?", dialled(empty)).unwrap_err();
        let seen = events(&mut ring);
        let kinds = |events: &[FlowEvent]| events.iter().map(|e| e.kind).collect::<Vec<_>>();
        assert_eq!(
            kinds(&seen),
            [abi::EVENT_NO_BACKEND],
            "nothing is sampled unless asked for"
        );
        assert_eq!((seen[0].dialled, seen[0].service_id), (empty.address, 3));
        assert_eq!((seen[0].protocol, seen[0].pid), (UDP, std::process::id()));
        assert_ne!(seen[0].comm, [0; 16]);

        dataplane.maps.set_sampling(1).unwrap();
        let mut stream = TcpStream::connect(dialled(web)).unwrap();
        stream.read_to_string(&mut String::new()).unwrap();
        drop(stream);
        TcpStream::connect(dialled(dead)).unwrap_err();
        let mut seen = Vec::new();
        assert!(soon(|| {
            seen.extend(events(&mut ring));
            seen.len() >= 5
        }));
        let of = |id| -> Vec<_> { seen.iter().filter(|e| e.backend == BackendId(id)).collect() };
        let life: Vec<_> = of(1).iter().map(|e| e.kind).collect();
        assert_eq!(
            life,
            [abi::EVENT_OPENED, abi::EVENT_ESTABLISHED, abi::EVENT_CLOSED]
        );
        let [opened, established, closed] = of(1)[..] else {
            unreachable!()
        };
        assert_eq!(opened.pid, std::process::id());
        assert_eq!(opened.backend_address, Address::v4([127, 0, 0, 1]));
        assert!(established.duration_ns > 0 && closed.duration_ns > established.duration_ns);
        assert!(closed.bytes_received >= 5);
        assert!(
            seen.iter()
                .all(|e| e.netns_cookie == opened.netns_cookie && e.netns_cookie != 0)
        );
        let failed: Vec<_> = of(2).iter().map(|e| e.kind).collect();
        assert_eq!(failed, [abi::EVENT_OPENED, abi::EVENT_FAILED]);
        assert_eq!(dataplane.maps.events_lost().unwrap(), 0);
    });
}

#[test]
fn records_that_find_the_ring_full_are_counted() {
    on_scratch_node(|node: &Scratch| {
        let mut dataplane = node.start();
        let empty = service(3, 53, UDP);
        dataplane
            .maps
            .apply(&MapOp::PutService(empty, entry(3, 1, 0, 0)))
            .unwrap();
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        let sent = 4_000;
        for _ in 0..sent {
            socket.send_to(b"?", dialled(empty)).unwrap_err();
        }
        let kept = events(&mut ring(&dataplane)).len() as u64;
        assert!(kept > 1_000);
        assert_eq!(kept + dataplane.maps.events_lost().unwrap(), sent);
    });
}

#[test]
fn a_dial_that_its_client_gives_up_is_no_failure_of_the_backend() {
    on_scratch_node(|node| {
        let mut dataplane = node.start();
        let web = service(1, 80, TCP);
        // A full accept queue: the SYN is dropped, and nobody says so.
        let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let listener = listener.unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        listener.bind(&any.into()).unwrap();
        listener.listen(0).unwrap();
        let backend = listener.local_addr().unwrap().as_socket().unwrap();
        let _fills = TcpStream::connect(backend).unwrap();
        dataplane
            .maps
            .apply_all(&put(web, entry(1, 1, 1, 1), &[(1, backend)]))
            .unwrap();
        let client = tcp_socket();
        client.set_nonblocking(true).unwrap();
        client.connect(&dialled(web).into()).unwrap_err();
        assert_eq!(sockets(&dataplane), 1);
        drop(client);
        assert!(soon(|| sockets(&dataplane) == 0));
        let seen = stats(&dataplane, 1);
        assert_eq!((seen.opens, seen.closes, seen.failures), (1, 1, 0));
    });
}

#[test]
fn a_row_that_waits_in_vain_for_its_second_end_is_swept_and_no_other() {
    on_scratch_node(|node| {
        let mut dataplane = node.start();
        let web = service(1, 80, TCP);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let backend = listener.local_addr().unwrap();
        dataplane
            .maps
            .apply_all(&put(web, entry(1, 1, 1, 1), &[(1, backend)]))
            .unwrap();
        let _open = TcpStream::connect(dialled(web)).unwrap();
        // Its connection is over, and nobody releases it.
        let broken = TcpStream::connect(dialled(web)).unwrap();
        let _first = listener.accept().unwrap();
        let second = socket2::Socket::from(listener.accept().unwrap().0);
        second.set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(second);
        assert!(
            soon(|| stats(&dataplane, 1).closes == 1),
            "over counts as closed"
        );

        // Refused, and nobody releases it.
        let gone = service(2, 80, TCP);
        dataplane
            .maps
            .apply_all(&put(gone, entry(2, 1, 1, 1), &[(2, closed_port())]))
            .unwrap();
        let refused = tcp_socket();
        refused.connect(&dialled(gone).into()).unwrap_err();

        let mut stale = StaleSockets::new(super::Maps::open(&dataplane.dir).unwrap());
        assert_eq!(stale.sweep().unwrap(), 0, "one look says nothing");
        assert_eq!(stale.sweep().unwrap(), 2);
        assert_eq!(sockets(&dataplane), 1);
        drop((broken, refused));
        let seen = stats(&dataplane, 1);
        assert_eq!((seen.opens, seen.closes), (2, 1));
    });
}

#[test]
fn a_refused_dial_counts_when_its_socket_dials_anew_or_is_released() {
    on_scratch_node(|node| {
        let mut dataplane = node.start();
        let (web, gone) = (service(1, 80, TCP), service(2, 80, TCP));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let backend = listener.local_addr().unwrap();
        for (key, id, at) in [(web, 1, backend), (gone, 2, closed_port())] {
            let ops = put(key, entry(id, 1, 1, 1), &[(id, at)]);
            dataplane.maps.apply_all(&ops).unwrap();
        }
        let counts = |id| {
            let seen = stats(&dataplane, id);
            (seen.opens, seen.closes, seen.failures, seen.handshakes)
        };
        let client = tcp_socket();
        client.connect(&dialled(gone).into()).unwrap_err();
        assert_eq!(counts(2), (1, 0, 0, 0), "the client may yet dial anew");
        client.connect(&dialled(gone).into()).unwrap_err();
        assert_eq!(counts(2), (2, 1, 1, 0));
        client.connect(&dialled(web).into()).unwrap();
        assert_eq!(counts(2), (2, 2, 2, 0));
        assert_eq!(counts(1), (1, 0, 0, 1));
        drop(client);
        assert!(soon(
            || counts(1) == (1, 1, 0, 1) && sockets(&dataplane) == 0
        ));

        let client = tcp_socket();
        client.connect(&dialled(gone).into()).unwrap_err();
        drop(client);
        assert_eq!(counts(2), (3, 3, 3, 0));
        assert_eq!(sockets(&dataplane), 0);
    });
}

#[test]
fn sockets_are_closed_in_every_namespace_that_has_some() {
    on_scratch_node(|node| {
        let mut dataplane = node.start();
        let web = service(1, 80, TCP);
        let at = "127.0.0.1:8080";
        let _here = TcpListener::bind(at).unwrap();
        dataplane
            .maps
            .apply_all(&put(web, entry(1, 1, 1, 1), &[(1, at.parse().unwrap())]))
            .unwrap();
        let mut near = TcpStream::connect(dialled(web)).unwrap();
        let (mut far, netns) = thread::spawn(move || {
            crate::self_test::place::enter_new_netns().unwrap();
            let listener = TcpListener::bind(at).unwrap();
            let far = TcpStream::connect(dialled(web)).unwrap();
            let netns = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
            std::mem::forget(listener);
            (far, netns)
        })
        .join()
        .unwrap();
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&netns));
        let all = [path.into(), "/proc/thread-self/ns/net".into()];
        let closed = close_sockets(&dataplane.maps, &[BackendId(1)].into(), &all).unwrap();
        assert_eq!((closed.sockets, closed.failed.len()), (2, 0));
        for victim in [&mut near, &mut far] {
            let error = victim.read(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionAborted);
        }
    });
}
