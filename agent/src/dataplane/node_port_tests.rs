//! Node ports in the real kernel, as sockets on the node and in pods see them; and the rows of services from outside.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Read as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;

use agent_ebpf::abi::{
    BackendId, DropReason, FLAG_HOST_PORT, FLAG_LOCAL_ONLY, FLAG_SOURCE_RANGES, MAGLEV_CHUNK,
    MaglevChunk, MaglevKey, Scope, ServiceEntry, ServiceKey, TCP, UDP, maps as names,
};
use agent_ebpf::select::Served;

use super::testing::{
    entry, in_a_pod, on_scratch_node, put, tcp_backend, tcp_backend_at, udp_backend,
};
use super::{MapOp, Maps, PinnedState, ServiceMaps as _, SourcePrefix};

const NODE: &str = "192.0.2.7";
const PORT: u16 = 30_080;

fn node_port(any: &str, protocol: u8) -> ServiceKey {
    ServiceKey {
        address: any.parse::<IpAddr>().unwrap().into(),
        port: PORT.to_be_bytes(),
        protocol,
        scope: Scope::CLUSTER,
    }
}

/// The node has [`NODE`], and node ports are answered there.
fn answer_node_ports(maps: &mut Maps) {
    let added = Command::new("ip")
        .args(["address", "add", NODE, "dev", "lo"])
        .status();
    assert!(added.unwrap().success());
    maps.set_node_ports(30_000, 32_767).unwrap();
    let addresses = BTreeSet::from([NODE.parse::<IpAddr>().unwrap().into()]);
    assert!(maps.set_node_addresses(&addresses).unwrap());
    assert!(!maps.set_node_addresses(&addresses).unwrap(), "as it was");
}

fn at(ip: &str) -> SocketAddr {
    (ip.parse::<IpAddr>().unwrap(), PORT).into()
}

/// Who answers, and whom the socket says that it talks to.
fn ask(address: SocketAddr) -> io::Result<(String, SocketAddr)> {
    let mut stream = TcpStream::connect(address)?;
    let peer = stream.peer_addr()?;
    let mut name = String::new();
    stream.read_to_string(&mut name)?;
    Ok((name, peer))
}

fn kind<T>(result: io::Result<T>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}

#[test]
fn a_node_port_is_dialled_at_loopback_and_at_the_nodes_addresses() {
    on_scratch_node(|node| {
        let mut dataplane = node.start();
        let maps = &mut dataplane.maps;
        let (four, six) = (tcp_backend("four"), tcp_backend_at("[::1]:0", "six"));
        for (id, any, backend) in [(1, "0.0.0.0", four), (2, "::", six)] {
            let key = node_port(any, TCP);
            maps.apply_all(&put(key, entry(id, 1, 1, 1), &[(id, backend)]))
                .unwrap();
        }
        assert_eq!(
            kind(ask(at("127.0.0.1"))),
            Some(ErrorKind::ConnectionRefused)
        );
        answer_node_ports(maps);
        for (ip, name) in [
            ("127.0.0.1", "four"),
            ("127.5.5.5", "four"),
            (NODE, "four"),
            ("::1", "six"),
            ("::ffff:192.0.2.7", "four"),
        ] {
            let (answered, peer) = ask(at(ip)).unwrap();
            assert_eq!((&*answered, peer), (name, at(ip)));
        }
        // People are told the same.
        let key = |ip: &str| ServiceKey {
            address: ip.parse::<IpAddr>().unwrap().into(),
            ..node_port("0.0.0.0", TCP)
        };
        let row = |ip, client| {
            maps.lookup(&key(ip), client)
                .unwrap()
                .map(|it| it.service.key)
        };
        for ip in [NODE, "127.0.0.1"] {
            assert_eq!(row(ip, None), Some(node_port("0.0.0.0", TCP)));
        }
        assert_eq!(row("127.0.0.1", Some(1)), None, "a pod's own");
        assert_eq!(row("192.0.2.8", None), None);
        // Another port of the range, and a port beyond it, are nobody's.
        for port in [30_081, 33_000] {
            let mut address = at(NODE);
            address.set_port(port);
            assert_eq!(kind(ask(address)), Some(ErrorKind::ConnectionRefused));
        }
        // What is watched and what node ports there are stand in one row.
        maps.set_sampling(5).unwrap();
        maps.set_sampling(0).unwrap();
        assert!(ask(at(NODE)).is_ok());
    });
}

#[test]
fn a_pod_dials_the_node_and_has_its_loopback_to_itself() {
    on_scratch_node(|node| {
        let mut dataplane = node.start();
        let maps = &mut dataplane.maps;
        // In the pod's namespace that is the pod's own.
        let backend: SocketAddr = "127.0.0.1:8080".parse().unwrap();
        let key = node_port("0.0.0.0", TCP);
        maps.apply_all(&put(key, entry(1, 1, 1, 1), &[(1, backend)]))
            .unwrap();
        answer_node_ports(maps);
        in_a_pod(|| {
            tcp_backend_at("127.0.0.1:8080", "service");
            let (name, peer) = ask(at(NODE)).unwrap();
            assert_eq!((&*name, peer), ("service", at(NODE)));
            assert_eq!(
                kind(ask(at("127.0.0.1"))),
                Some(ErrorKind::ConnectionRefused)
            );
            tcp_backend_at("127.0.0.1:30080", "own");
            assert_eq!(ask(at("127.0.0.1")).unwrap().0, "own");
        });
    });
}

#[test]
fn datagrams_to_a_node_port_come_back_from_where_they_were_sent() {
    on_scratch_node(|node| {
        let mut dataplane = node.start();
        let maps = &mut dataplane.maps;
        let key = node_port("0.0.0.0", UDP);
        maps.apply_all(&put(key, entry(1, 1, 1, 1), &[(1, udp_backend("udp"))]))
            .unwrap();
        answer_node_ports(maps);
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        let mut buffer = [0; 8];
        for ip in [NODE, "127.0.0.1"] {
            socket.send_to(b"?", at(ip)).unwrap();
            let (length, from) = socket.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..length], from), (&b"udp"[..], at(ip)));
        }
    });
}

#[test]
fn a_node_port_without_backends_refuses_and_is_counted() {
    on_scratch_node(|node| {
        let mut dataplane = node.start();
        let maps = &mut dataplane.maps;
        maps.apply(&MapOp::PutService(
            node_port("0.0.0.0", TCP),
            entry(7, 1, 0, 0),
        ))
        .unwrap();
        answer_node_ports(maps);
        assert_eq!(kind(ask(at(NODE))), Some(ErrorKind::ConnectionRefused));
        assert_eq!(maps.service_stats(7).unwrap().no_backend, 1);
    });
}

#[test]
fn a_live_node_port_is_not_bound_on_the_node() {
    on_scratch_node(|node| {
        let mut dataplane = node.start();
        let maps = &mut dataplane.maps;
        let key = node_port("0.0.0.0", TCP);
        maps.apply_all(&put(key, entry(1, 1, 1, 1), &[(1, tcp_backend("a"))]))
            .unwrap();
        answer_node_ports(maps);
        let expected = match node.probe.set_retval {
            true => ErrorKind::AddrInUse,
            false => ErrorKind::PermissionDenied,
        };
        for ip in ["0.0.0.0", "127.0.0.1", NODE, "::"] {
            assert_eq!(kind(TcpListener::bind(at(ip))), Some(expected), "{ip}");
        }
        assert!(UdpSocket::bind(at("0.0.0.0")).is_ok(), "TCP's alone");
        // A datagram service's, of either family.
        let maps = &mut dataplane.maps;
        for (id, any, backend) in [
            (2, "0.0.0.0", udp_backend("b")),
            (3, "::", "[::1]:9".parse().unwrap()),
        ] {
            let key = node_port(any, UDP);
            maps.apply_all(&put(key, entry(id, 1, 1, 1), &[(id, backend)]))
                .unwrap();
        }
        for ip in ["0.0.0.0", "127.0.0.1", NODE, "::", "::1"] {
            assert_eq!(kind(UdpSocket::bind(at(ip))), Some(expected), "{ip}");
        }
        assert!(TcpListener::bind(at("::1")).is_ok(), "IPv6 has none of TCP");
        assert!(TcpListener::bind("0.0.0.0:30081").is_ok(), "nobody's");
        assert!(TcpListener::bind("0.0.0.0:0").is_ok());
        in_a_pod(|| drop(TcpListener::bind(at("0.0.0.0")).expect("the pod's own")));

        maps.apply(&MapOp::DeleteService(key)).unwrap();
        assert!(TcpListener::bind(at("0.0.0.0")).is_ok());
    });
}

#[test]
fn maglev_tables_and_source_ranges_are_written_read_back_and_removed() {
    on_scratch_node(|node| {
        let maps = &mut node.start().maps;
        let key = MaglevKey {
            service_id: 7,
            generation: 1,
            chunk: 3,
        };
        let chunk = MaglevChunk([BackendId(9); MAGLEV_CHUNK]);
        let ranges = ["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "2001:db8::/32"]
            .map(|range| SourcePrefix::new(7, range.parse().unwrap()));
        let put = ranges.map(MapOp::PutSourceRange).into_iter();
        let put: Vec<MapOp> = put
            .chain([MapOp::PutMaglev(key, Box::new(chunk))])
            .collect();
        maps.apply_all(&put).unwrap();
        maps.apply_all(&put).unwrap();
        let state = maps.dump().unwrap();
        assert_eq!(state.source_ranges, ranges.into());
        assert_eq!(state.maglev, [(key, chunk)].into());

        let gone = ranges.map(MapOp::DeleteSourceRange).into_iter();
        let gone: Vec<MapOp> = gone.chain([MapOp::DeleteMaglev(key)]).collect();
        for _ in 0..2 {
            assert!(maps.remove_all(gone.clone()).is_empty());
            assert_eq!(maps.dump().unwrap(), PinnedState::default());
        }
    });
}

/// A row of a pod's host port.
fn host_port(ip: &str, port: u16) -> ServiceKey {
    ServiceKey {
        port: port.to_be_bytes(),
        ..node_port(ip, TCP)
    }
}

fn host_port_entry(id: u32) -> ServiceEntry {
    ServiceEntry {
        flags: FLAG_HOST_PORT | FLAG_LOCAL_ONLY,
        ..entry(id, 1, 1, 1)
    }
}

#[test]
fn a_host_port_is_dialled_and_guarded_as_a_node_port_is_whatever_its_number() {
    on_scratch_node(|node| {
        let mut dataplane = node.start();
        let maps = &mut dataplane.maps;
        answer_node_ports(maps);
        let of = |ip: &str, port| SocketAddr::from((ip.parse::<IpAddr>().unwrap(), port));
        let everywhere = host_port("0.0.0.0", 8081);
        for (id, key) in [(1, everywhere), (2, host_port("127.0.0.1", 8082))] {
            let backend = tcp_backend("pod");
            maps.apply_all(&put(key, host_port_entry(id), &[(id, backend)]))
                .unwrap();
        }
        for ip in [NODE, "127.0.0.1", "::ffff:192.0.2.7"] {
            assert_eq!(ask(of(ip, 8081)).unwrap(), ("pod".to_owned(), of(ip, 8081)));
        }
        assert!(ask(of("127.0.0.1", 8082)).is_ok());
        let refused = Some(ErrorKind::ConnectionRefused);
        assert_eq!(kind(ask(of(NODE, 8082))), refused, "of loopback alone");
        assert_eq!(kind(ask(of(NODE, 8083))), refused, "nobody's");
        let taken = Some(ErrorKind::AddrInUse);
        for (ip, port) in [("0.0.0.0", 8081), (NODE, 8081), ("127.0.0.1", 8082)] {
            assert_eq!(kind(TcpListener::bind(of(ip, port))), taken, "{ip} {port}");
        }
        in_a_pod(move || {
            let mut up = Command::new("ip");
            assert!(
                up.args(["link", "set", "lo", "up"])
                    .status()
                    .unwrap()
                    .success()
            );
            for port in [8081, 8082] {
                let own = of("127.0.0.1", port);
                assert_eq!(kind(ask(own)), refused, "a pod's own loopback is the pod's");
                assert!(TcpListener::bind(own).is_ok());
            }
        });
        assert_eq!(maps.rows(names::HOST_PORTS).unwrap().len(), 2);

        // A second row of the port keeps it.
        let other = host_port("::", 8081);
        let backend = tcp_backend_at("[::1]:0", "six");
        maps.apply_all(&put(other, host_port_entry(3), &[(3, backend)]))
            .unwrap();
        for (key, left) in [(everywhere, 2), (other, 1)] {
            maps.apply(&MapOp::DeleteService(key)).unwrap();
            assert_eq!(maps.rows(names::HOST_PORTS).unwrap().len(), left);
        }
        assert_eq!(kind(ask(of(NODE, 8081))), refused);
        assert!(TcpListener::bind(of("0.0.0.0", 8081)).is_ok());
    });
}

#[test]
fn source_ranges_hold_for_the_nodes_own_sockets_and_pods_are_left_to_their_packets() {
    on_scratch_node(|node| {
        let mut dataplane = node.start();
        let balancer: SocketAddr = "198.18.0.1:80".parse().unwrap();
        let key = ServiceKey {
            address: balancer.ip().into(),
            port: 80_u16.to_be_bytes(),
            protocol: TCP,
            scope: Scope::CLUSTER,
        };
        let closed = ServiceEntry {
            flags: FLAG_SOURCE_RANGES,
            ..entry(7, 1, 1, 1)
        };
        let links = super::PodLinks::new(dataplane.link_programs.clone(), &dataplane.dir).unwrap();
        links.refuse_at(&[NODE.parse().unwrap()]).unwrap();
        let maps = &mut dataplane.maps;
        maps.apply_all(&put(key, closed, &[(1, tcp_backend("closed"))]))
            .unwrap();
        let range = |text: &str| SourcePrefix::new(7, text.parse().unwrap());
        maps.apply(&MapOp::PutSourceRange(range("203.0.113.0/24")))
            .unwrap();
        // As a firewall of the node's says it.
        assert_eq!(kind(ask(balancer)), Some(ErrorKind::PermissionDenied));
        assert_eq!(maps.drops().unwrap()[&DropReason::SourceRange], 1);
        let served = |maps: &Maps, client| maps.lookup(&key, client).unwrap().unwrap().served;
        assert_eq!(served(maps, None), Served::No);
        assert_eq!(served(maps, Some(1)), Served::ByPacket);
        maps.apply(&MapOp::PutSourceRange(range("192.0.2.0/24")))
            .unwrap();
        assert_eq!(ask(balancer).unwrap().0, "closed");
        assert_eq!(served(maps, None), Served::Yes);
        // A pod's network has no way there: nothing was translated.
        in_a_pod(move || assert_eq!(kind(ask(balancer)), Some(ErrorKind::NetworkUnreachable)));
    });
}
