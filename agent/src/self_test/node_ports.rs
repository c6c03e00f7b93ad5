//! Node ports: dialled on the node, and left alone by who would bind them.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use agent_ebpf::abi::{
    BackendEntry, BackendId, SHARE_ONE, Scope, ServiceEntry, ServiceKey, SlotKey, TCP,
};

use super::Outcome;
use super::checks::{PATIENCE, expect, tcp_echo};
use super::place::Place;
use crate::dataplane::{Dataplane, MapOp, ServiceMaps as _};

const PORT: u16 = 30_080;
/// No row of the other checks has it.
const ID: u32 = 90;

pub(super) fn node_ports(place: &Place, dataplane: &mut Dataplane) -> Outcome {
    let maps = &mut dataplane.maps;
    maps.set_node_ports(30_000, 32_767)?;
    // Another of the loopback's addresses stands for one that others reach.
    let node = IpAddr::from([127, 0, 0, 7]);
    maps.set_node_addresses(&BTreeSet::from([node.into()]))?;
    let backend = tcp_echo(Ipv4Addr::LOCALHOST.into())?;
    maps.apply_all(&row(backend))?;
    for address in [node, Ipv4Addr::LOCALHOST.into()] {
        let dialled = SocketAddr::new(address, PORT);
        let stream = TcpStream::connect_timeout(&dialled, PATIENCE)?;
        expect("getpeername", stream.peer_addr()?, dialled)?;
    }
    let refusal = match place.probe.set_retval {
        true => ErrorKind::AddrInUse,
        false => ErrorKind::PermissionDenied,
    };
    for any in ["0.0.0.0", "::"] {
        let bound = TcpListener::bind((any, PORT)).err();
        // Without IPv6 there is no such socket.
        if any == "0.0.0.0" || TcpListener::bind((any, 0)).is_ok() {
            expect("bind", bound.map(|error| error.kind()), Some(refusal))?;
        }
    }
    TcpListener::bind(("0.0.0.0", PORT + 1))?;
    Ok(format!(
        "port {PORT} answered, and cannot be bound: {refusal}"
    ))
}

fn row(backend: SocketAddr) -> [MapOp; 3] {
    let id = BackendId(ID);
    let slot = SlotKey {
        service_id: ID,
        generation: 1,
        slot: 0,
    };
    let entry = ServiceEntry {
        service_id: ID,
        generation: 1,
        local: 1,
        zone: 0,
        ready: 1,
        terminating: 0,
        flags: 0,
        affinity_timeout_s: 0,
        local_share: SHARE_ONE,
    };
    let key = ServiceKey {
        address: Ipv4Addr::UNSPECIFIED.into(),
        port: PORT.to_be_bytes(),
        protocol: TCP,
        scope: Scope::CLUSTER,
    };
    let target = BackendEntry {
        address: backend.ip().into(),
        port: backend.port().to_be_bytes(),
        protocol: TCP,
        pad: 0,
    };
    [
        MapOp::PutBackend(id, target),
        MapOp::PutSlot(slot, id),
        MapOp::PutService(key, entry),
    ]
}
