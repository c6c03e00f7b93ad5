//! Closes the sockets of backends that are gone, so that their clients reconnect at once.
//!
//! sock_diag finds them in each network namespace and closes them, but for those that the programs did not send there:
//! `SOCKETS` knows. Unconnected UDP sockets have no peer and are never found; they go elsewhere by themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::thread;

use agent_ebpf::abi::{Address, BackendId, Port, SocketEntry, SocketKey, TCP, UDP};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::Socket;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::block_in_place;
use tracing::{info, warn};

use super::maps::{MapError, Maps};
use super::sock_diag::{self, Family, Found, ID_SIZE, Message, SocketId, WITH_PEER, messages};
use super::{MapOp, PinnedState, Retired, ServiceMaps, Sockets, sys};

/// Maps that close the sockets of a backend that is gone before they remove its row.
pub struct ClosingMaps {
    maps: Maps,
    /// Directory of the pins of the pods' network namespaces.
    namespaces: PathBuf,
    retired: Retired,
}

impl ClosingMaps {
    /// Closes in this process's network namespace and in those that are pinned in `namespaces`.
    pub fn new(maps: Maps, namespaces: PathBuf) -> Self {
        Self {
            maps,
            namespaces,
            retired: Retired::default(),
        }
    }

    /// Tells `retired` what the counters of a backend said last, before they go with it.
    #[must_use]
    pub fn telling(self, retired: Retired) -> Self {
        Self { retired, ..self }
    }

    fn close(&self, gone: &BTreeSet<BackendId>) -> Result<(), MapError> {
        let pods = std::fs::read_dir(&self.namespaces);
        let mut all: Vec<PathBuf> = pods
            .into_iter()
            .flatten()
            .flatten()
            .map(|pin| pin.path())
            .collect();
        all.push("/proc/self/ns/net".into());
        let Closed { sockets, failed } = close_sockets(&self.maps, gone, &all)?;
        if sockets > 0 {
            info!(sockets, "closed the sockets of backends that are gone");
        }
        for error in failed {
            warn!(%error, reason = %error.source, "sockets of backends that are gone stay open");
        }
        Ok(())
    }
}

impl ServiceMaps for ClosingMaps {
    fn apply(&mut self, op: &MapOp) -> Result<(), MapError> {
        self.maps.apply(op)
    }

    fn remove_all(&mut self, ops: Vec<MapOp>) -> Vec<(MapOp, MapError)> {
        // Before their rows go: whoever dies in between finds the rows again, and closes again. No table has named these
        // backends for a while, so no socket comes to them meanwhile.
        let gone = ops.iter().filter_map(|op| match op {
            MapOp::DeleteBackend(id, Sockets::Close) => Some(*id),
            _ => None,
        });
        let gone = gone.collect();
        if let Err(error) = off_the_runtime(|| self.close(&gone)) {
            warn!(%error, "sockets of backends that are gone stay open");
        }
        for op in &ops {
            // What cannot be read is as if nobody had read it since.
            if let MapOp::DeleteBackend(id, _) = op
                && let Ok(stats) = self.maps.last_words(*id)
            {
                self.retired.add(*id, stats);
            }
        }
        self.maps.remove_all(ops)
    }

    fn dump(&self) -> Result<PinnedState, MapError> {
        self.maps.dump()
    }
}

/// Runs work that takes a while, so that other tasks go on meanwhile where there are other threads.
fn off_the_runtime<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => block_in_place(work),
        _ => work(),
    }
}

/// What came of closing sockets.
#[derive(Debug, Default)]
pub struct Closed {
    /// How many were closed.
    pub sockets: usize,
    /// The namespaces in which some may be open still.
    pub failed: Vec<CloseError>,
}

/// Why the sockets of a network namespace could not be closed.
#[derive(Debug, thiserror::Error)]
#[error("cannot close sockets in the network namespace {}", netns.display())]
pub struct CloseError {
    pub netns: PathBuf,
    pub source: io::Error,
}

/// Closes every connected socket that was sent to one of the backends `gone`, in each of the network namespaces named by a
/// path (`/proc/self/ns/net`, or a pin) that has such a socket. A namespace that is gone has no sockets; one that fails
/// does not keep the others.
pub fn close_sockets(
    maps: &Maps,
    gone: &BTreeSet<BackendId>,
    netns: &[PathBuf],
) -> Result<Closed, MapError> {
    let mut victims = Victims::default();
    if !gone.is_empty() {
        for (socket, entry) in maps.sockets()? {
            if gone.contains(&entry.service.backend) {
                victims.add(socket, &entry);
            }
        }
    }
    if victims.sockets.is_empty() {
        return Ok(Closed::default());
    }
    // A thread of its own, because it changes its namespace; it opens all of them from where it starts.
    thread::scope(|scope| {
        let each = || {
            let opened: Vec<_> = netns.iter().map(|path| (path, File::open(path))).collect();
            let mut closed = Closed::default();
            for (path, file) in opened {
                if let Err(source) = close_in(file, &victims, &mut closed.sockets) {
                    let netns = path.clone();
                    closed.failed.push(CloseError { netns, source });
                }
            }
            closed
        };
        match scope.spawn(each).join() {
            Ok(closed) => Ok(closed),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Protocol and port, which many backends share: their sockets are listed together.
type Listener = (u8, Port);

/// The sockets to close, and where to look for them.
#[derive(Default)]
struct Victims {
    /// With where the programs sent it: its application may have connected it elsewhere since.
    sockets: BTreeMap<SocketKey, Address>,
    listeners: BTreeSet<Listener>,
    /// Cookies of their network namespaces.
    namespaces: BTreeSet<u64>,
}

impl Victims {
    fn add(&mut self, socket: SocketKey, entry: &SocketEntry) {
        self.sockets.insert(socket, entry.backend_address);
        self.listeners.insert((entry.protocol, entry.backend_port));
        self.namespaces.insert(entry.netns_cookie);
    }

    /// Of a row that was carried over from the first version the namespace is not known: 0.
    fn may_be_in(&self, namespace: u64) -> bool {
        self.namespaces.contains(&namespace) || self.namespaces.contains(&0)
    }
}

/// Adds to `closed`. A socket that cannot be closed does not keep the others; the first error of all is given.
fn close_in(netns: io::Result<File>, victims: &Victims, closed: &mut usize) -> io::Result<()> {
    let netns = match netns {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
    let mut diag = sock_diag::open()?;
    if !victims.may_be_in(sys::netns_cookie(diag.as_fd())?) {
        return Ok(());
    }
    let mut outcome = Ok(());
    for listener in &victims.listeners {
        for family in [Family::V4, Family::V6] {
            for Found { id, .. } in list(&mut diag, family, *listener)? {
                if victims.sockets.get(&id.cookie()) == Some(&id.destination(family)) {
                    match destroy(&mut diag, family, listener.0, &id) {
                        Ok(count) => *closed += count,
                        Err(error) => outcome = outcome.and(Err(error)),
                    }
                }
            }
        }
    }
    outcome
}

/// Closes one socket; gives how many that were.
fn destroy(socket: &mut Socket, family: Family, protocol: u8, id: &SocketId) -> io::Result<usize> {
    let mut closed = 0;
    socket.write_all(&sock_diag::destroy(family, protocol, id))?;
    let mut buffer = [0; 4096];
    let length = socket.read(&mut buffer)?;
    for message in messages(&buffer[..length]) {
        match message? {
            Message::Done => closed += 1,
            // It closed by itself meanwhile.
            Message::Error(libc::ENOENT) => {}
            Message::Error(errno) => return Err(io::Error::from_raw_os_error(errno)),
            Message::Socket(_) => {}
        }
    }
    Ok(closed)
}

/// The sockets in this namespace that have a peer, and that with this port.
fn list(socket: &mut Socket, family: Family, (protocol, port): Listener) -> io::Result<Vec<Found>> {
    let mut peer = [0; ID_SIZE];
    peer[2..4].copy_from_slice(&port);
    sock_diag::list(socket, family, protocol, WITH_PEER, &SocketId(peer))
}

/// Whether this kernel closes sockets that are asked for by their ids. A module may be loaded to tell.
pub(super) fn can_close_sockets() -> bool {
    [TCP, UDP].into_iter().all(|protocol| {
        // A kernel that can looks for the socket, and there is none to port 0 with that cookie.
        let closes = || {
            let mut diag = sock_diag::open()?;
            list(&mut diag, Family::V4, (protocol, [0; 2]))?;
            destroy(&mut diag, Family::V4, protocol, &SocketId([0xff; ID_SIZE]))
        };
        closes().is_ok()
    })
}
