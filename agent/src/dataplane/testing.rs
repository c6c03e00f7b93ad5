//! A scratch node for tests in the real kernel: a [`Place`], a network namespace that this thread is in, and backends.

use std::io::{self, Read};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::ops::Deref;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use agent_ebpf::abi::{
    Address, BackendEntry, BackendId, SHARE_ONE, Scope, ServiceEntry, ServiceKey, SlotKey,
};

use super::{Dataplane, MapOp, probe, start};
use crate::self_test::place::{Place, enter_new_netns};

const PREFIX: &str = "kn-dp-test-";

/// A process is in one cgroup at a time, so tests that move it take turns.
static TURN: Mutex<()> = Mutex::new(());

/// One test's node.
pub(crate) struct Scratch(Place);

impl Deref for Scratch {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.0
    }
}

/// Runs `test` on a scratch node, or says why it cannot; under `CI` that is a failure.
pub(crate) fn on_scratch_node(test: fn(&Scratch)) {
    if let Some(reason) = missing() {
        assert!(
            std::env::var_os("CI").is_none(),
            "cannot run under CI: {reason}"
        );
        println!("skipped: {reason}");
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let body = move || {
        let scratch = Scratch(Place::new(PREFIX).expect("a place in the kernel"));
        enter_new_netns().expect("a network namespace");
        test(&scratch);
    };
    if let Err(panic) = thread::spawn(body).join() {
        resume_unwind(panic);
    }
}

/// Runs `test` in a network namespace of its own, as a pod's process is.
pub(crate) fn in_a_pod(test: impl FnOnce() + Send + 'static) {
    let pod = thread::spawn(|| {
        enter_new_netns().expect("a network namespace");
        test();
    });
    if let Err(panic) = pod.join() {
        resume_unwind(panic);
    }
}

fn missing() -> Option<String> {
    if super::object::object().is_none() {
        return Some("no BPF object; run `cargo xtask build`".to_owned());
    }
    probe(None).err().map(|error| error.to_string())
}

impl Scratch {
    pub(crate) fn start(&self) -> Dataplane {
        start(&self.config, &self.probe).expect("the dataplane starts")
    }
}

/// The key of a service on 10.96.0.`host`.
pub(crate) fn service(host: u8, port: u16, protocol: u8) -> ServiceKey {
    ServiceKey {
        address: Address::v4([10, 96, 0, host]),
        port: port.to_be_bytes(),
        protocol,
        scope: Scope::CLUSTER,
    }
}

/// The key of a service on fd00:96::`host`.
pub(crate) fn service6(host: u16, port: u16, protocol: u8) -> ServiceKey {
    ServiceKey {
        address: Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, host).into(),
        port: port.to_be_bytes(),
        protocol,
        scope: Scope::CLUSTER,
    }
}

/// The address of a service as an IPv6 socket dials it.
pub(crate) fn mapped(key: ServiceKey) -> SocketAddr {
    (
        Ipv6Addr::from(key.address.octets()),
        u16::from_be_bytes(key.port),
    )
        .into()
}

pub(crate) fn dialled(key: ServiceKey) -> SocketAddr {
    (key.address.to_ip(), u16::from_be_bytes(key.port)).into()
}

/// An entry that keeps everything on the node as long as it can.
pub(crate) fn entry(service_id: u32, generation: u32, local: u32, ready: u32) -> ServiceEntry {
    ServiceEntry {
        service_id,
        generation,
        local,
        zone: 0,
        ready,
        terminating: 0,
        flags: 0,
        affinity_timeout_s: 0,
        local_share: SHARE_ONE,
    }
}

/// The writes that bring a service to `backends`, in the order of the update protocol.
pub(crate) fn put(
    key: ServiceKey,
    entry: ServiceEntry,
    backends: &[(u32, SocketAddr)],
) -> Vec<MapOp> {
    let mut ops = Vec::new();
    for (slot, (id, address)) in backends.iter().enumerate() {
        let backend = BackendEntry {
            address: address.ip().into(),
            port: address.port().to_be_bytes(),
            protocol: key.protocol,
            pad: 0,
        };
        ops.push(MapOp::PutBackend(BackendId(*id), backend));
        ops.push(MapOp::PutSlot(
            slot_key(&entry, slot as u32),
            BackendId(*id),
        ));
    }
    ops.push(MapOp::PutService(key, entry));
    ops
}

pub(crate) fn slot_key(entry: &ServiceEntry, slot: u32) -> SlotKey {
    SlotKey {
        service_id: entry.service_id,
        generation: entry.generation,
        slot,
    }
}

/// Waits for what the kernel does shortly after a socket is closed.
pub(crate) fn soon(mut what: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline {
        if what() {
            return true;
        }
        thread::sleep(Duration::from_millis(10));
    }
    false
}

/// A TCP backend on the loopback that answers each connection with its name. It serves until the test's process ends.
pub(crate) fn tcp_backend_at(at: &str, name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind(at).expect("a port");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = io::Write::write_all(&mut &stream, name.as_bytes());
        }
    });
    address
}

/// A UDP backend on the loopback that answers each datagram with its name.
pub(crate) fn udp_backend_at(at: &str, name: &'static str) -> SocketAddr {
    let socket = UdpSocket::bind(at).expect("a port");
    let address = socket.local_addr().expect("bound");
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(name.as_bytes(), from);
        }
    });
    address
}

pub(crate) fn tcp_backend(name: &'static str) -> SocketAddr {
    tcp_backend_at("127.0.0.1:0", name)
}

pub(crate) fn udp_backend(name: &'static str) -> SocketAddr {
    udp_backend_at("127.0.0.1:0", name)
}

/// Connects and reads the name of the backend.
pub(crate) fn dial(key: ServiceKey) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(dialled(key))?;
    let mut name = String::new();
    stream.read_to_string(&mut name)?;
    Ok(name)
}

/// Dials in a loop on a thread of its own until told to stop.
pub(crate) struct Dialler {
    stop: Arc<AtomicBool>,
    dialled: Arc<AtomicU32>,
    thread: thread::JoinHandle<Vec<String>>,
}

impl Dialler {
    /// Collects as failures every error and every answer that is not `expected`.
    pub(crate) fn start(key: ServiceKey, expected: &'static str) -> Self {
        let (stop, dialled) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU32::new(0)),
        );
        let (stopped, count) = (stop.clone(), dialled.clone());
        let thread = thread::spawn(move || {
            let mut failures = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                match dial(key) {
                    Ok(name) if name == expected => drop(count.fetch_add(1, Ordering::Relaxed)),
                    other => failures.push(format!("{other:?}")),
                }
            }
            failures
        });
        Self {
            stop,
            dialled,
            thread,
        }
    }

    pub(crate) fn count(&self) -> u32 {
        self.dialled.load(Ordering::Relaxed)
    }

    /// The failures.
    pub(crate) fn stop(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}
