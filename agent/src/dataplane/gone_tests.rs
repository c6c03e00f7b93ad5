//! What becomes of sockets when their backend goes, in every form of address.

use std::io::{ErrorKind, Read as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::symlink;
use std::time::Duration;

use agent_ebpf::abi::{BackendId, ServiceKey, TCP, UDP};
use tempfile::TempDir;

use super::testing::{
    dialled, entry, mapped, on_scratch_node, put, service, service6, tcp_backend_at, udp_backend_at,
};
use super::{ClosingMaps, MapOp, ServiceMaps as _, Sockets};

/// How services are dialled, and where their backends are.
struct Form {
    web: ServiceKey,
    dns: ServiceKey,
    address: fn(ServiceKey) -> SocketAddr,
    /// Any port of a client's, and of a backend's.
    client: &'static str,
    backend: &'static str,
}

const V4: (&str, &str) = ("0.0.0.0:0", "127.0.0.1:0");
const V6: (&str, &str) = ("[::]:0", "[::1]:0");

fn forms() -> [Form; 3] {
    let form = |web, dns, address, client, backend| Form {
        web,
        dns,
        address,
        client,
        backend,
    };
    [
        form(
            service(1, 80, TCP),
            service(2, 53, UDP),
            dialled,
            V4.0,
            V4.1,
        ),
        form(
            service6(3, 80, TCP),
            service6(4, 53, UDP),
            dialled,
            V6.0,
            V6.1,
        ),
        form(service(5, 80, TCP), service(6, 53, UDP), mapped, V6.0, V4.1),
    ]
}

/// A directory of pods' network namespaces, which has that in which this thread is.
fn pins() -> TempDir {
    let pins = tempfile::tempdir().unwrap();
    let thread = rustix::thread::gettid().as_raw_nonzero();
    let here = format!("/proc/self/task/{thread}/ns/net");
    symlink(here, pins.path().join("pod")).unwrap();
    pins
}

/// A client whose reads end in an error rather than never.
fn udp(at: &str) -> UdpSocket {
    let socket = UdpSocket::bind(at).unwrap();
    let patience = Some(Duration::from_secs(20));
    socket.set_read_timeout(patience).unwrap();
    socket
}

/// Who answers, and from where.
fn ask(socket: &UdpSocket, address: SocketAddr) -> (String, SocketAddr) {
    socket.send_to(b"?", address).unwrap();
    let mut buffer = [0; 8];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    (String::from_utf8_lossy(&buffer[..length]).into(), from)
}

#[test]
fn connected_sockets_of_a_gone_backend_are_closed_and_unconnected_ones_switch() {
    on_scratch_node(|node| {
        let dataplane = node.start();
        let pins = pins();
        let mut maps = ClosingMaps::new(dataplane.maps, pins.path().to_owned());
        for (form, base) in forms().into_iter().zip([10_u32, 20, 30]) {
            go(&mut maps, &form, base);
        }
    });
}

/// `base`: where the ids of this form's services and backends begin.
fn go(maps: &mut ClosingMaps, form: &Form, base: u32) {
    let (web, dns) = ((form.address)(form.web), (form.address)(form.dns));
    let listener = TcpListener::bind(form.backend).unwrap();
    let goes = listener.local_addr().unwrap();
    let goes_too = udp_backend_at(form.backend, "goes");
    for (key, id, at) in [(form.web, base, goes), (form.dns, base + 1, goes_too)] {
        let ops = put(key, entry(id, 1, 1, 1), &[(id, at)]);
        maps.apply_all(&ops).unwrap();
    }
    let mut stream = TcpStream::connect(web).unwrap();
    let patience = Some(Duration::from_secs(20));
    stream.set_read_timeout(patience).unwrap();
    let mut direct = TcpStream::connect(goes).unwrap();
    let connected = udp(form.client);
    connected.connect(dns).unwrap();
    connected.send(b"?").unwrap();
    assert_eq!(connected.recv(&mut [0; 8]).unwrap(), 4);
    let unconnected = udp(form.client);
    assert_eq!(ask(&unconnected, dns), ("goes".to_owned(), dns));

    let stay = tcp_backend_at(form.backend, "stays");
    let stay_too = udp_backend_at(form.backend, "stays");
    for (key, id, at) in [(form.web, base, stay), (form.dns, base + 1, stay_too)] {
        let ops = put(key, entry(id, 2, 1, 1), &[(id + 2, at)]);
        maps.apply_all(&ops).unwrap();
    }
    let gone = [base, base + 1].map(|id| MapOp::DeleteBackend(BackendId(id), Sockets::Close));
    assert!(maps.remove_all(gone.to_vec()).is_empty());

    let aborted = ErrorKind::ConnectionAborted;
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), aborted, "{web}");
    let heard = connected.recv(&mut [0]);
    assert_eq!(heard.unwrap_err().kind(), aborted, "{dns}");
    assert!(connected.send(b"?").is_err(), "{dns}");
    // Who dialled the backend itself is none of ours.
    direct.set_nonblocking(true).unwrap();
    let open = direct.read(&mut [0]).unwrap_err().kind();
    assert_eq!(open, ErrorKind::WouldBlock);
    for _ in 0..2 {
        assert_eq!(ask(&unconnected, dns), ("stays".to_owned(), dns));
    }
    // Both reconnect at once.
    let mut name = String::new();
    let mut again = TcpStream::connect(web).unwrap();
    again.read_to_string(&mut name).unwrap();
    assert_eq!(name, "stays");
    connected.connect(dns).unwrap();
    connected.send(b"?").unwrap();
    assert_eq!(connected.recv(&mut [0; 8]).unwrap(), 5);
}

#[test]
fn namespaces_that_others_pinned_are_looked_through_whatever_else_is_there() {
    on_scratch_node(|node| {
        let dataplane = node.start();
        let pins = pins();
        // As `ip netns` leaves it after a restart of the machine: a file that is no namespace.
        std::fs::write(pins.path().join("a-left-over"), "").unwrap();
        std::fs::create_dir(pins.path().join("b-directory")).unwrap();
        symlink("/nowhere/at/all", pins.path().join("c-gone")).unwrap();
        let mut maps = ClosingMaps::new(dataplane.maps, pins.path().to_owned());
        go(&mut maps, &forms()[0], 10);
    });
}
