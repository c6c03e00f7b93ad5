//! A client outside of the cluster that never rests: connections that it keeps, and new ones without pause.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use frontend_backend::Identity;
use kernelet_tests::host;
use kernelet_tests::scenario::eventually;
use socket2::{Domain, Protocol, Socket, Type};

/// Longer than anything here is away, with the pauses between what a TCP sends again.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two requests of a connection that is kept, and between two new connections of a target.
const PAUSE: Duration = Duration::from_millis(25);
/// Ports of new connections; those that are kept get theirs from the kernel, above.
const PORTS: std::ops::Range<u16> = 1024..32_000;

/// One that is open to a backend, with its answers so far.
struct Kept {
    target: SocketAddr,
    node: String,
    answers: AtomicU64,
    lost: Mutex<Option<String>>,
}

/// A new connection that came to nothing.
#[derive(Clone)]
pub struct Refused {
    phase: &'static str,
    target: SocketAddr,
    port: u16,
    error: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Refused {
            phase,
            target,
            port,
            error,
        } = self;
        write!(f, "{phase}: from port {port} to {target}: {error}")
    }
}

#[derive(Default)]
struct Record {
    stop: AtomicBool,
    phase: Mutex<&'static str>,
    begun: AtomicU64,
    answered: Mutex<BTreeMap<SocketAddr, u64>>,
    refused: Mutex<Vec<Refused>>,
}

/// The client. It stops with the value.
pub struct Traffic {
    netns: PathBuf,
    record: Arc<Record>,
    kept: Vec<Arc<Kept>>,
}

impl Traffic {
    /// Opens a connection to each of `nodes` at each target, and begins. Everything happens in the network namespace.
    pub fn begin(netns: &str, targets: &[SocketAddr], nodes: &BTreeSet<String>) -> Traffic {
        let netns = host::netns_path(netns);
        let record = Arc::new(Record::default());
        let mut kept = Vec::new();
        for target in targets {
            for (node, stream) in one_of_each(&netns, *target, nodes) {
                let one = Arc::new(Kept {
                    target: *target,
                    node,
                    answers: AtomicU64::new(0),
                    lost: Mutex::default(),
                });
                kept.push(one.clone());
                let record = record.clone();
                thread::spawn(move || keep(&record, &one, stream));
            }
        }
        for target in targets.iter().copied() {
            let record = record.clone();
            // Threads are in the namespace of the one that starts them.
            host::in_netns(&netns, || {
                thread::spawn(move || begin_anew(&record, target));
            })
            .unwrap();
        }
        Traffic {
            netns,
            record,
            kept,
        }
    }

    /// From now on what goes wrong does so in this phase.
    pub fn enter(&self, phase: &'static str) {
        *self.record.phase.lock().unwrap() = phase;
    }

    /// Waits until every kept connection was answered, and at every target `count` new ones.
    pub fn goes_on(&self, what: &str, count: u64) {
        let before: Vec<u64> = self.kept.iter().map(|it| it.answered()).collect();
        let began = self.record.answered.lock().unwrap().clone();
        eventually(what, PATIENCE, || {
            self.nothing_was_lost();
            for (kept, before) in self.kept.iter().zip(&before) {
                if kept.answered() <= *before {
                    return Err(format!("{} is silent at {}", kept.node, kept.target));
                }
            }
            let answered = self.record.answered.lock().unwrap();
            let slow = answered.iter().find(|(target, answers)| {
                let began = began.get(*target).copied().unwrap_or_default();
                **answers < began + count
            });
            match slow {
                Some((target, _)) => Err(format!("few new connections to {target} are answered")),
                None if answered.is_empty() => Err("none is answered".to_owned()),
                None => Ok(()),
            }
        });
    }

    /// Waits until so many more connections were begun, whatever becomes of them.
    pub fn begins(&self, count: u64) {
        let before = self.record.begun.load(Ordering::Relaxed);
        eventually("new connections are begun", PATIENCE, || {
            let begun = self.record.begun.load(Ordering::Relaxed);
            (begun >= before + count)
                .then_some(())
                .ok_or(format!("{begun}"))
        });
    }

    pub fn nothing_was_lost(&self) {
        for kept in &self.kept {
            if let Some(why) = &*kept.lost.lock().unwrap() {
                panic!(
                    "a connection to {} at {} is lost: {why}",
                    kept.node, kept.target
                );
            }
        }
    }

    /// New connections that came to nothing so far.
    pub fn refused(&self) -> Vec<Refused> {
        self.record.refused.lock().unwrap().clone()
    }

    /// The node that answers where a refused connection is dialled again: the choice of a backend is by address and port.
    pub fn node_of(&self, refused: &Refused) -> String {
        let (target, port) = (refused.target, refused.port);
        eventually("one that was refused is answered", PATIENCE, || {
            let asked = host::in_netns(&self.netns, || call(target, Some(port))).unwrap();
            asked.map_err(|error| error.to_string())
        })
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.record.stop.store(true, Ordering::Relaxed);
    }
}

impl Kept {
    fn answered(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }
}

fn one_of_each(
    netns: &std::path::Path,
    target: SocketAddr,
    nodes: &BTreeSet<String>,
) -> BTreeMap<String, TcpStream> {
    let mut open = BTreeMap::new();
    eventually(
        &format!("each backend answers at {target}"),
        PATIENCE,
        || {
            let dialled = host::in_netns(netns, || {
                let mut stream = dial(target, None)?;
                Ok((ask(&mut stream)?, stream))
            });
            let dialled: io::Result<_> = dialled.map_err(|error| error.to_string())?;
            let (node, stream) = dialled.map_err(|error| error.to_string())?;
            open.entry(node).or_insert(stream);
            let found: BTreeSet<&String> = open.keys().collect();
            match nodes.iter().all(|node| found.contains(node)) {
                true => Ok(()),
                false => Err(format!("only {found:?}")),
            }
        },
    );
    open
}

fn keep(record: &Record, kept: &Kept, mut stream: TcpStream) {
    while !record.stop.load(Ordering::Relaxed) {
        match ask(&mut stream) {
            Ok(node) if node == kept.node => {
                kept.answers.fetch_add(1, Ordering::Relaxed);
            }
            other => {
                let phase = *record.phase.lock().unwrap();
                *kept.lost.lock().unwrap() = Some(format!("{phase}: {other:?}"));
                return;
            }
        }
        thread::sleep(PAUSE);
    }
}

fn begin_anew(record: &Arc<Record>, target: SocketAddr) {
    for port in PORTS.cycle() {
        if record.stop.load(Ordering::Relaxed) {
            return;
        }
        record.begun.fetch_add(1, Ordering::Relaxed);
        let phase = *record.phase.lock().unwrap();
        let record = record.clone();
        // One that waits holds up no other.
        thread::spawn(move || match call(target, Some(port)) {
            Ok(_) => *record.answered.lock().unwrap().entry(target).or_default() += 1,
            Err(error) => record.refused.lock().unwrap().push(Refused {
                phase,
                target,
                port,
                error: error.to_string(),
            }),
        });
        thread::sleep(PAUSE);
    }
}

/// The node of the backend that answers a new connection.
fn call(target: SocketAddr, port: Option<u16>) -> io::Result<String> {
    ask(&mut dial(target, port)?)
}

fn dial(target: SocketAddr, port: Option<u16>) -> io::Result<TcpStream> {
    dial_from(port.map(|port| SocketAddr::new(any(target), port)), target)
}

/// The address that stands for all of a target's family.
pub fn any(target: SocketAddr) -> IpAddr {
    match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// A connection, from an address and port of the caller's choice.
pub fn dial_from(source: Option<SocketAddr>, target: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(
        Domain::for_address(target),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if let Some(source) = source {
        socket.set_reuse_address(true)?;
        socket.bind(&source.into())?;
    }
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect_timeout(&target.into(), PATIENCE)?;
    Ok(socket.into())
}

/// One request and the node that answers it; the connection stays open.
pub fn ask(stream: &mut TcpStream) -> io::Result<String> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: outside\r\n\r\n")?;
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let who: Identity = serde_json::from_slice(&body)?;
    Ok(who.node)
}
