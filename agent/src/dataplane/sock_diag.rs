//! sock_diag: the kernel's list of a network namespace's sockets, over netlink.

use std::io::{self, Read as _, Write as _};

use agent_ebpf::abi::{Address, Port, SocketKey};
use socket2::{Domain, Socket, Type};

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
pub(super) const ID_SIZE: usize = 48;
/// What precedes the id in `struct inet_diag_msg`.
const ID_AT: usize = 4;
/// What precedes the two queues there: id and timer.
const QUEUES_AT: usize = ID_AT + ID_SIZE + 4;
/// A set of states of sockets: all of them, `TCP_LISTEN` only, or those with a peer that may be closed, which a socket in
/// `TCP_TIME_WAIT`, `TCP_CLOSE` (an unconnected UDP socket too) or `TCP_LISTEN` is not.
const ANY_STATE: u32 = u32::MAX;
pub(super) const LISTENING: u32 = 1 << 10;
pub(super) const WITH_PEER: u32 = !(1 << 6 | 1 << 7 | LISTENING);

/// A socket for requests about the network namespace in which it was opened, wherever its thread goes later.
pub(super) fn open() -> io::Result<Socket> {
    let protocol = Some(libc::NETLINK_SOCK_DIAG.into());
    Socket::new(Domain::from(libc::AF_NETLINK), Type::DGRAM, protocol)
}

/// The sockets in one of the states that have the ports that `like` names; 0 is any.
pub(super) fn list(
    socket: &mut Socket,
    family: Family,
    protocol: u8,
    states: u32,
    like: &SocketId,
) -> io::Result<Vec<Found>> {
    let kind = SOCK_DIAG_BY_FAMILY;
    socket.write_all(&request(kind, DUMP, family, protocol, states, like))?;
    let mut found = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = socket.read(&mut buffer)?;
        for message in messages(&buffer[..length]) {
            match message? {
                Message::Socket(socket) => found.push(socket),
                Message::Done => return Ok(found),
                Message::Error(errno) => return Err(io::Error::from_raw_os_error(errno)),
            }
        }
    }
}

/// A request to close one socket.
pub(super) fn destroy(family: Family, protocol: u8, id: &SocketId) -> Vec<u8> {
    request(SOCK_DESTROY, ACKNOWLEDGE, family, protocol, ANY_STATE, id)
}

/// What a socket was made for. One for IPv6 may have an IPv4 peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Family {
    V4 = libc::AF_INET as u8,
    V6 = libc::AF_INET6 as u8,
}

/// `struct inet_diag_sockid`: ports and addresses in network order, interface, cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SocketId(pub(super) [u8; ID_SIZE]);

impl SocketId {
    pub(super) fn destination(&self, family: Family) -> Address {
        let mut address = [0; 16];
        address.copy_from_slice(&self.0[20..36]);
        match (family, address) {
            (Family::V4, [a, b, c, d, ..]) => Address::v4([a, b, c, d]),
            (Family::V6, _) => address.into(),
        }
    }

    /// The port that the socket itself has.
    pub(super) fn port(&self) -> Port {
        [self.0[0], self.0[1]]
    }

    /// The port that its peer has.
    pub(super) fn peer_port(&self) -> Port {
        [self.0[2], self.0[3]]
    }

    pub(super) fn cookie(&self) -> SocketKey {
        let half = |at: usize| u64::from(word(&self.0, at));
        SocketKey(half(40) | half(44) << 32)
    }
}

/// A socket of a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) id: SocketId,
    /// Of a listener the connections that wait to be accepted, else the bytes that wait to be read.
    pub(super) receive_queue: u32,
    /// Of a listener how many may wait, else the bytes that wait to be sent.
    pub(super) send_queue: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    Socket(Found),
    /// The end of a dump, or an acknowledgement.
    Done,
    /// A positive errno.
    Error(i32),
}

/// A `struct inet_diag_req_v2`.
fn request(
    kind: u16,
    flags: u16,
    family: Family,
    protocol: u8,
    states: u32,
    id: &SocketId,
) -> Vec<u8> {
    let length = HEADER_SIZE + 8 + ID_SIZE;
    let mut bytes = Vec::with_capacity(length);
    bytes.extend((length as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Sequence number and port id: one request is under way at a time, on a socket of its own.
    bytes.extend([0; 8]);
    bytes.extend([family as u8, protocol, 0, 0]);
    bytes.extend(states.to_ne_bytes());
    bytes.extend(id.0);
    bytes
}

/// The netlink messages in one received datagram.
pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = io::Result<Message>> {
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
        _ => {
            let queues = body.get(QUEUES_AT..QUEUES_AT + 8)?;
            Message::Socket(Found {
                id: SocketId(body.get(ID_AT..ID_AT + ID_SIZE)?.try_into().ok()?),
                receive_queue: word(queues, 0),
                send_queue: word(queues, 4),
            })
        }
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
        body[QUEUES_AT..QUEUES_AT + 4].copy_from_slice(&3_u32.to_ne_bytes());
        body[QUEUES_AT + 4..QUEUES_AT + 8].copy_from_slice(&128_u32.to_ne_bytes());
        let bytes = [
            framed(SOCK_DIAG_BY_FAMILY, &body),
            framed(NLMSG_ERROR, &(-libc::ENOENT).to_ne_bytes()),
            framed(NLMSG_DONE, &[0; 4]),
        ];
        let read: Vec<_> = messages(&bytes.concat()).map(|m| m.unwrap()).collect();
        assert_eq!(
            read,
            [
                Message::Socket(Found {
                    id: SocketId(id),
                    receive_queue: 3,
                    send_queue: 128
                }),
                Message::Error(libc::ENOENT),
                Message::Done
            ]
        );
        assert_eq!(
            SocketId(id).destination(Family::V4),
            Address::v4([10, 244, 1, 5])
        );
        id[20..36].copy_from_slice(&Address::v4([10, 244, 1, 5]).octets());
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
