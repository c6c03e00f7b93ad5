//! Closes the sockets of backends that are gone, so that their clients reconnect at once.
//!
//! sock_diag finds them in each network namespace and closes them, but for those that the programs did not send there:
//! `SOCKETS` knows. Unconnected UDP sockets have no peer and are never found; they go elsewhere by themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::thread;

use agent_ebpf::abi::{Address, BackendId, BackendStats, Port, SocketKey, TCP, UDP};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::{Domain, Socket, Type};
use tracing::{info, warn};

use super::maps::{MapError, Maps};
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
    let mut diag = open_diag()?;
    let mut closed = 0;
    for (listener, addresses) in listeners {
        for family in [Family::V4, Family::V6] {
            for id in list(&mut diag, family, *listener)? {
                let to_backend = addresses.contains(&id.destination(family));
                if to_backend && sent_there(id.cookie()).map_err(io::Error::other)? {
                    closed += destroy(&mut diag, family, listener.0, &id)?;
                }
            }
        }
    }
    Ok(closed)
}

fn open_diag() -> io::Result<Socket> {
    Socket::new(
        Domain::from(libc::AF_NETLINK),
        Type::DGRAM,
        Some(libc::NETLINK_SOCK_DIAG.into()),
    )
}

/// Closes one socket; gives how many that were.
fn destroy(diag: &mut Socket, family: Family, protocol: u8, id: &SocketId) -> io::Result<usize> {
    let mut closed = 0;
    diag.write_all(&request(SOCK_DESTROY, ACKNOWLEDGE, family, protocol, &id.0))?;
    let mut buffer = [0; 4096];
    let length = diag.read(&mut buffer)?;
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
fn list(
    diag: &mut Socket,
    family: Family,
    (protocol, port): Listener,
) -> io::Result<Vec<SocketId>> {
    let mut wanted = [0; ID_SIZE];
    wanted[2..4].copy_from_slice(&port);
    diag.write_all(&request(
        SOCK_DIAG_BY_FAMILY,
        DUMP,
        family,
        protocol,
        &wanted,
    ))?;
    let mut found = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = diag.read(&mut buffer)?;
        for message in messages(&buffer[..length]) {
            match message? {
                Message::Socket(id) => found.push(id),
                Message::Done => return Ok(found),
                Message::Error(errno) => return Err(io::Error::from_raw_os_error(errno)),
            }
        }
    }
}

/// Whether this kernel closes sockets that are asked for by their ids. A module may be loaded to tell.
pub(super) fn can_close_sockets() -> bool {
    [TCP, UDP].into_iter().all(|protocol| {
        // A kernel that can looks for the socket, and there is none to port 0 with that cookie.
        let closes = || {
            let mut diag = open_diag()?;
            list(&mut diag, Family::V4, (protocol, [0; 2]))?;
            destroy(&mut diag, Family::V4, protocol, &SocketId([0xff; ID_SIZE]))
        };
        closes().is_ok()
    })
}

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// `NLM_F_REQUEST | NLM_F_DUMP`
const DUMP: u16 = 0x301;
/// `NLM_F_REQUEST | NLM_F_ACK`
const ACKNOWLEDGE: u16 = 0x5;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// `struct nlmsghdr`
const HEADER_SIZE: usize = 16;
/// `struct inet_diag_sockid`
const ID_SIZE: usize = 48;
/// What precedes the id in `struct inet_diag_msg`.
const ID_AT: usize = 4;

/// What a socket was made for. One for IPv6 may have an IPv4 peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Family {
    V4 = libc::AF_INET as u8,
    V6 = libc::AF_INET6 as u8,
}

/// `struct inet_diag_sockid`: ports and addresses in network order, interface, cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SocketId([u8; ID_SIZE]);

impl SocketId {
    fn destination(&self, family: Family) -> Address {
        let mut address = [0; 16];
        address.copy_from_slice(&self.0[20..36]);
        match (family, address) {
            (Family::V4, [a, b, c, d, ..]) => Address::v4([a, b, c, d]),
            (Family::V6, _) => Address(address),
        }
    }

    fn cookie(&self) -> SocketKey {
        let half = |at: usize| u64::from(word(&self.0, at));
        SocketKey(half(40) | half(44) << 32)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    Socket(SocketId),
    /// The end of a dump, or an acknowledgement.
    Done,
    /// A positive errno.
    Error(i32),
}

/// A `struct inet_diag_req_v2` for sockets in any state.
fn request(kind: u16, flags: u16, family: Family, protocol: u8, id: &[u8; ID_SIZE]) -> Vec<u8> {
    let length = HEADER_SIZE + 8 + ID_SIZE;
    let mut bytes = Vec::with_capacity(length);
    bytes.extend((length as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Sequence number and port id: one request is under way at a time, on a socket of its own.
    bytes.extend([0; 8]);
    bytes.extend([family as u8, protocol, 0, 0]);
    bytes.extend(u32::MAX.to_ne_bytes());
    bytes.extend(id);
    bytes
}

/// The netlink messages in one received datagram.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = io::Result<Message>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        match message(bytes) {
            Some((message, rest)) => {
                bytes = rest;
                Some(Ok(message))
            }
            None => {
                bytes = &[];
                Some(Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "malformed netlink message",
                )))
            }
        }
    })
}

fn message(bytes: &[u8]) -> Option<(Message, &[u8])> {
    let header = bytes.get(..HEADER_SIZE)?;
    let length = word(header, 0) as usize;
    let body = bytes.get(HEADER_SIZE..length)?;
    let rest = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    let kind = u16::from_ne_bytes([header[4], header[5]]);
    let message = match kind {
        NLMSG_DONE => Message::Done,
        NLMSG_ERROR => match word(body.get(..4)?, 0) as i32 {
            0 => Message::Done,
            negative => Message::Error(negative.wrapping_neg()),
        },
        _ => Message::Socket(SocketId(body.get(ID_AT..ID_AT + ID_SIZE)?.try_into().ok()?)),
    };
    Some((message, rest))
}

/// The word at `at`, which the caller knows to be there.
fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn framed(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = ((HEADER_SIZE + body.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(body);
        bytes
    }

    #[test]
    fn a_dump_is_read_message_by_message() {
        let mut id = [0; ID_SIZE];
        id[2..4].copy_from_slice(&8080_u16.to_be_bytes());
        id[20..24].copy_from_slice(&[10, 244, 1, 5]);
        id[40..44].copy_from_slice(&7_u32.to_ne_bytes());
        id[44..48].copy_from_slice(&1_u32.to_ne_bytes());
        let mut body = vec![0; 72];
        body[ID_AT..ID_AT + ID_SIZE].copy_from_slice(&id);
        let bytes = [
            framed(SOCK_DIAG_BY_FAMILY, &body),
            framed(NLMSG_ERROR, &(-libc::ENOENT).to_ne_bytes()),
            framed(NLMSG_DONE, &[0; 4]),
        ];
        let read: Vec<_> = messages(&bytes.concat()).map(|m| m.unwrap()).collect();
        assert_eq!(
            read,
            [
                Message::Socket(SocketId(id)),
                Message::Error(libc::ENOENT),
                Message::Done
            ]
        );
        assert_eq!(
            SocketId(id).destination(Family::V4),
            Address::v4([10, 244, 1, 5])
        );
        id[20..36].copy_from_slice(&Address::v4([10, 244, 1, 5]).0);
        assert_eq!(
            SocketId(id).destination(Family::V6),
            Address::v4([10, 244, 1, 5])
        );
        assert_eq!(SocketId(id).cookie(), SocketKey(1 << 32 | 7));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_to_an_end(bytes: Vec<u8>) {
            prop_assert!(messages(&bytes).count() <= bytes.len());
        }
    }
}
