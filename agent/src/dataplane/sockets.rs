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

use agent_ebpf::abi::{Address, BackendId, BackendStats, Port, SocketKey, TCP, UDP};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::Socket;
use tracing::{info, warn};

use super::maps::{MapError, Maps};
use super::sock_diag::{self, ANY_STATE, Family, Found, ID_SIZE, Message, SocketId, messages};
use super::{MapOp, PinnedState, Retired, ServiceMaps, Sockets};

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
        if let Err(error) = self.close(&gone.collect()) {
            warn!(%error, "sockets of backends that are gone stay open");
        }
        for op in &ops {
            // What cannot be read is as if nobody had read it since.
            if let MapOp::DeleteBackend(id, _) = op
                && let Ok(stats) = self.maps.backend_stats(*id)
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
/// path (`/proc/self/ns/net`, or a pin). A namespace that is gone has no sockets; one that fails does not keep the others.
pub fn close_sockets(
    maps: &Maps,
    gone: &BTreeSet<BackendId>,
    netns: &[PathBuf],
) -> Result<Closed, MapError> {
    let mut listeners: BTreeMap<Listener, BTreeSet<Address>> = BTreeMap::new();
    for id in gone {
        let BackendStats { opens, closes, .. } = maps.backend_stats(*id)?;
        if opens != closes
            && let Some(backend) = maps.backend(*id)?
        {
            let listener = (backend.protocol, backend.port);
            let addresses = listeners.entry(listener).or_default();
            addresses.insert(backend.address);
        }
    }
    if listeners.is_empty() {
        return Ok(Closed::default());
    }
    let sent_there = |socket: SocketKey| {
        let entry = maps.socket(socket)?;
        Ok(entry.is_some_and(|entry| gone.contains(&entry.service.backend)))
    };
    // A thread of its own, because it changes its namespace; it opens all of them from where it starts.
    thread::scope(|scope| {
        let each = || {
            let opened: Vec<_> = netns.iter().map(|path| (path, File::open(path))).collect();
            let mut closed = Closed::default();
            for (path, file) in opened {
                match close_in(file, &listeners, &sent_there) {
                    Ok(sockets) => closed.sockets += sockets,
                    Err(source) => closed.failed.push(CloseError {
                        netns: path.clone(),
                        source,
                    }),
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

fn close_in(
    netns: io::Result<File>,
    listeners: &BTreeMap<Listener, BTreeSet<Address>>,
    sent_there: &impl Fn(SocketKey) -> Result<bool, MapError>,
) -> io::Result<usize> {
    let netns = match netns {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        other => other?,
    };
    move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
    let mut diag = sock_diag::open()?;
    let mut closed = 0;
    for (listener, addresses) in listeners {
        for family in [Family::V4, Family::V6] {
            for Found { id, .. } in list(&mut diag, family, *listener)? {
                let to_backend = addresses.contains(&id.destination(family));
                if to_backend && sent_there(id.cookie()).map_err(io::Error::other)? {
                    closed += destroy(&mut diag, family, listener.0, &id)?;
                }
            }
        }
    }
    Ok(closed)
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

/// The sockets in this namespace whose peer has the port.
fn list(socket: &mut Socket, family: Family, (protocol, port): Listener) -> io::Result<Vec<Found>> {
    let mut peer = [0; ID_SIZE];
    peer[2..4].copy_from_slice(&port);
    sock_diag::list(socket, family, protocol, ANY_STATE, &SocketId(peer))
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
