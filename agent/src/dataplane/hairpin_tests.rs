//! A pod that dials its own service and draws itself.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::Duration;

use agent_ebpf::abi::{BackendId, TCP, UDP};

use super::ServiceMaps as _;
use super::testing::{dialled, entry, in_a_pod, mapped, on_scratch_node, put, service, service6};

const V4: &str = "10.244.0.7";
const V6: &str = "fd00:244::7";
const PORT: u16 = 8080;

fn at(ip: &str) -> SocketAddr {
    (ip.parse::<IpAddr>().unwrap(), PORT).into()
}

/// Answers each connection and each datagram at this address with that of the client.
fn serve(own: SocketAddr) {
    let listener = TcpListener::bind(own).unwrap();
    thread::spawn(move || {
        while let Ok((mut stream, client)) = listener.accept() {
            let _ = stream.write_all(client.ip().to_string().as_bytes());
        }
    });
    let socket = UdpSocket::bind(own).unwrap();
    thread::spawn(move || {
        while let Ok((_, client)) = socket.recv_from(&mut [0; 8]) {
            let _ = socket.send_to(client.ip().to_string().as_bytes(), client);
        }
    });
}

/// What a client of the pod's hears from its own service. It sees the service, and is seen as what it is.
fn reach(web: SocketAddr, dns: SocketAddr, own: &str) {
    let mut stream = TcpStream::connect(web).unwrap();
    assert_eq!(stream.peer_addr().unwrap(), web);
    let mut client = String::new();
    stream.read_to_string(&mut client).unwrap();
    assert_eq!(client, own);

    let any = if dns.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let mut buffer = [0; 64];
    for connects in [true, false] {
        let socket = UdpSocket::bind(any).unwrap();
        let patience = Some(Duration::from_secs(20));
        socket.set_read_timeout(patience).unwrap();
        if connects {
            socket.connect(dns).unwrap();
            assert_eq!(socket.peer_addr().unwrap(), dns);
            socket.send(b"?").unwrap();
        } else {
            socket.send_to(b"?", dns).unwrap();
        }
        let (length, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!(from, dns);
        assert_eq!(&buffer[..length], own.as_bytes());
    }
}

#[test]
fn a_pod_reaches_itself_through_its_own_service() {
    on_scratch_node(|node| {
        let mut dataplane = node.start();
        let (web, dns) = (service(1, 80, TCP), service(2, 53, UDP));
        let (web6, dns6) = (service6(1, 80, TCP), service6(2, 53, UDP));
        let all = [(web, 1, V4), (dns, 2, V4), (web6, 3, V6), (dns6, 4, V6)];
        for (key, id, ip) in all {
            let ops = put(key, entry(id, 1, 1, 1), &[(id, at(ip))]);
            dataplane.maps.apply_all(&ops).unwrap();
        }
        in_a_pod(move || {
            for ip in [V4, V6] {
                let mut add = Command::new("ip");
                add.args(["address", "add", ip, "dev", "lo"]);
                let add = add.args(ip.contains(':').then_some("nodad"));
                assert!(add.status().unwrap().success());
                serve(at(ip));
            }
            reach(dialled(web), dialled(dns), V4);
            reach(dialled(web6), dialled(dns6), V6);
            reach(mapped(web), mapped(dns), V4);
        });
        let opens = |id| dataplane.maps.backend_stats(BackendId(id)).unwrap().opens;
        assert_eq!([1, 2, 3, 4].map(opens), [2, 4, 1, 2]);
    });
}
