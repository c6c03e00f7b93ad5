//! Datagrams from outside that never rest: flows that are kept, and new ones without pause, none of which may be lost or led to
//! a stranger.

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kernelet_tests::host;
use kernelet_tests::scenario::{Scenario, eventually};
use serde_json::{Value, json};

use super::PATIENCE;
use super::services::{await_ready, own};
use super::traffic::any;

const NODE_PORT: u16 = 30_086;
/// Where backends listen, and who is none.
const PORT: u16 = 9092;
/// Flows that are kept, of each family.
const KEPT: usize = 40;
/// Flows that each round begins, of each family.
const NEW: usize = 1;
/// Between two rounds, and how long a server waits until it looks whether it shall stop.
const PAUSE: Duration = Duration::from_millis(25);

pub fn objects() -> Vec<Value> {
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "datagrams"},
        "spec": {
            "type": "NodePort", "selector": {"talks": "yes"}, "ipFamilyPolicy": "RequireDualStack",
            "ports": [{"port": 90, "targetPort": PORT, "nodePort": NODE_PORT, "protocol": "UDP"}],
        },
    });
    vec![service]
}

#[derive(Default)]
struct Record {
    stop: AtomicBool,
    phase: Mutex<&'static str>,
    rounds: AtomicU64,
    /// Who answered new flows.
    answered: Mutex<BTreeSet<String>>,
    strayed: AtomicU64,
    failed: Mutex<Option<String>>,
}

/// The client and its servers. They stop with the value.
pub struct Datagrams {
    record: Arc<Record>,
    threads: Vec<JoinHandle<()>>,
}

/// A flow, and the node of its backend.
struct Flow {
    socket: UdpSocket,
    node: String,
}

impl Datagrams {
    /// Begins flows to two backends at the node `ingress`, then lets a third come.
    pub fn begin(scenario: &Scenario, netns: &str, ingress: &str) -> Datagrams {
        let record = Arc::new(Record::default());
        let mut threads = Vec::new();
        for number in 1..=3 {
            let node = format!("worker-{number}");
            let socket = bound(scenario, &format!("backend-{node}"), &node);
            let record = record.clone();
            threads.push(thread::spawn(move || answer(&record, &socket, &node)));
        }
        let stranger = bound(scenario, "ported", "worker-1");
        let seen = record.clone();
        threads.push(thread::spawn(move || count_strays(&seen, &stranger)));

        let talks = |node: &str| scenario.kubectl(&format!("label pod backend-{node} talks=yes"));
        talks("worker-1");
        talks("worker-2");
        await_ready(scenario, ingress, "datagrams", 2);
        let netns = host::netns_path(netns);
        let targets = own(scenario.node(ingress).unwrap()).map(|ip| SocketAddr::new(ip, NODE_PORT));
        let kept: Vec<Flow> = targets
            .iter()
            .flat_map(|to| vec![*to; KEPT])
            .map(|to| eventually("a flow is answered", PATIENCE, || opened(&netns, to)))
            .collect();
        let nodes: BTreeSet<&str> = kept.iter().map(|flow| &*flow.node).collect();
        assert_eq!(nodes, ["worker-1", "worker-2"].into());
        talks("worker-3");
        await_ready(scenario, ingress, "datagrams", 3);
        let client = record.clone();
        threads.push(thread::spawn(move || talk(&client, &netns, targets, &kept)));
        Datagrams { record, threads }
    }

    /// From now on what goes wrong does so in this phase. Waits until so many rounds more went well.
    pub fn goes_on(&self, phase: &'static str, count: u64) {
        *self.record.phase.lock().unwrap() = phase;
        let before = self.record.rounds.load(Ordering::Relaxed);
        eventually(phase, 2 * PATIENCE, || {
            self.nothing_went_wrong();
            let rounds = self.record.rounds.load(Ordering::Relaxed) - before;
            (rounds > count)
                .then_some(())
                .ok_or(format!("{rounds} rounds"))
        });
    }

    fn nothing_went_wrong(&self) {
        if let Some(why) = &*self.record.failed.lock().unwrap() {
            panic!("{why}");
        }
        assert_eq!(
            self.record.strayed.load(Ordering::Relaxed),
            0,
            "a stranger was asked"
        );
    }

    /// Stops, and tells what became of it all.
    pub fn end(mut self) {
        self.record.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        self.nothing_went_wrong();
        let answered = self.record.answered.lock().unwrap().clone();
        assert_eq!(answered.len(), 3, "new flows were answered by {answered:?}");
        let rounds = self.record.rounds.load(Ordering::Relaxed);
        println!(
            "datagrams: {rounds} rounds of {} flows, none lost",
            2 * (KEPT + NEW)
        );
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        self.record.stop.store(true, Ordering::Relaxed);
    }
}

fn bound(scenario: &Scenario, pod: &str, node: &str) -> UdpSocket {
    let pod = scenario.get(&format!("pod {pod}"));
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let bind = || UdpSocket::bind(("::", PORT)).unwrap();
    let socket = scenario.node(node).unwrap().inside_pod(uid, bind).unwrap();
    socket.set_read_timeout(Some(PAUSE)).unwrap();
    socket
}

/// Sends back what comes, after the node's name.
fn answer(record: &Record, socket: &UdpSocket, node: &str) {
    let mut asked = [0; 64];
    while !record.stop.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut asked) {
            let mut answer = format!("{node} ").into_bytes();
            answer.extend_from_slice(&asked[..length]);
            // Who does not get it says so.
            let _ = socket.send_to(&answer, from);
        }
    }
}

fn count_strays(record: &Record, socket: &UdpSocket) {
    while !record.stop.load(Ordering::Relaxed) {
        if socket.recv(&mut [0; 64]).is_ok() {
            record.strayed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn connected(netns: &Path, to: SocketAddr) -> io::Result<UdpSocket> {
    let connect = || {
        let socket = UdpSocket::bind((any(to), 0))?;
        socket.connect(to)?;
        Ok(socket)
    };
    host::in_netns(netns, connect).unwrap()
}

/// A flow that has been answered once. What was asked may be lost while its neighbours are found, so it is asked anew.
fn opened(netns: &Path, to: SocketAddr) -> Result<Flow, String> {
    let open = || {
        let socket = connected(netns, to)?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        socket.send(b"0")?;
        let node = heard(&socket, 0)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Flow { socket, node })
    };
    open().map_err(|error: io::Error| format!("{to}: {error}"))
}

/// The node that answers a number.
fn heard(socket: &UdpSocket, number: u64) -> io::Result<String> {
    let mut bytes = [0; 64];
    let length = socket.recv(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
    match text.split_once(' ') {
        Some((node, said)) if said == number.to_string() => Ok(node.to_owned()),
        _ => Err(io::Error::other(format!(
            "{number} is answered by {text:?}"
        ))),
    }
}

/// Rounds, in each of which every flow asks once and is answered once, until one is not.
fn talk(record: &Record, netns: &Path, targets: [SocketAddr; 2], kept: &[Flow]) {
    while !record.stop.load(Ordering::Relaxed) {
        let number = record.rounds.load(Ordering::Relaxed) + 1;
        if let Err(why) = round(record, netns, targets, kept, number) {
            let phase = *record.phase.lock().unwrap();
            *record.failed.lock().unwrap() = Some(format!("{phase}: {why}"));
            return;
        }
        record.rounds.store(number, Ordering::Relaxed);
        thread::sleep(PAUSE);
    }
}

fn round(
    record: &Record,
    netns: &Path,
    targets: [SocketAddr; 2],
    kept: &[Flow],
    number: u64,
) -> Result<(), String> {
    let fresh = targets.iter().flat_map(|to| vec![*to; NEW]).map(|to| {
        let socket = connected(netns, to).map_err(|error| error.to_string())?;
        socket
            .set_read_timeout(Some(PATIENCE))
            .map_err(|error| error.to_string())?;
        Ok::<_, String>(socket)
    });
    let fresh = fresh.collect::<Result<Vec<UdpSocket>, _>>()?;
    let what = |socket: &UdpSocket| format!("{:?} of round {number}", socket.local_addr());
    for socket in kept.iter().map(|flow| &flow.socket).chain(&fresh) {
        let asked = number.to_string();
        socket
            .send(asked.as_bytes())
            .map_err(|error| format!("{}: {error}", what(socket)))?;
    }
    for Flow { socket, node } in kept {
        match heard(socket, number) {
            Ok(found) if found == *node => {}
            other => return Err(format!("{} was with {node}: {other:?}", what(socket))),
        }
    }
    for socket in &fresh {
        let node = heard(socket, number).map_err(|error| format!("{}: {error}", what(socket)))?;
        record.answered.lock().unwrap().insert(node);
    }
    Ok(())
}
