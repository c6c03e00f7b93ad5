//! What the kernel itself knows of the sockets in a network namespace, by sock_diag: state, queues, round-trip time. And
//! the namespace's cookie, by which the programs know it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::thread;
use std::time::Duration;

use agent_ebpf::abi::{SocketKey, TCP, UDP};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::{Domain, Socket, Type};

use super::sys;

/// A socket as the kernel sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketInfo {
    pub cookie: SocketKey,
    /// One of the kernel's `TCP_*` states; a connected UDP socket is established.
    pub state: u8,
    /// Bytes that have arrived and the application has not read.
    pub receive_queue: u32,
    /// Bytes that the application has written and the peer has not acknowledged.
    pub send_queue: u32,
    pub tcp: Option<TcpInfo>,
}

/// What `TCP_INFO` says, as far as it is of use here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpInfo {
    /// Smoothed.
    pub round_trip: Duration,
    pub retransmits: u32,
    /// Bytes that the peer has acknowledged.
    pub sent: u64,
    pub received: u64,
}

/// One network namespace and what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    pub cookie: u64,
    pub sockets: Vec<SocketInfo>,
}

/// The cookie of the network namespace at `path`: a pin, or `/proc/self/ns/net`.
pub fn netns_cookie(path: &Path) -> io::Result<u64> {
    within(path, || {
        sys::netns_cookie(Socket::new(Domain::UNIX, Type::DGRAM, None)?.as_fd())
    })
}

/// Every TCP and UDP socket in the network namespace at `path`.
pub fn sockets_in(path: &Path) -> io::Result<Namespace> {
    within(path, || {
        let mut diag = Socket::new(
            Domain::from(libc::AF_NETLINK),
            Type::DGRAM,
            Some(libc::NETLINK_SOCK_DIAG.into()),
        )?;
        let mut sockets = Vec::new();
        for protocol in [TCP, UDP] {
            for family in [libc::AF_INET, libc::AF_INET6] {
                list(&mut diag, family as u8, protocol, &mut sockets)?;
            }
        }
        Ok(Namespace {
            cookie: sys::netns_cookie(diag.as_fd())?,
            sockets,
        })
    })
}

/// Runs `work` in the namespace, on a thread of its own: a thread that has changed its namespace is of no other use.
pub(super) fn within<T: Send>(
    path: &Path,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    let netns = File::open(path)?;
    let inside = || {
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
        work()
    };
    thread::scope(|scope| match scope.spawn(inside).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

fn list(
    diag: &mut Socket,
    family: u8,
    protocol: u8,
    found: &mut Vec<SocketInfo>,
) -> io::Result<()> {
    diag.write_all(&request(family, protocol))?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = diag.read(&mut buffer)?;
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            let (message, after) = message(rest).ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidData, "malformed netlink message")
            })?;
            match message {
                Message::Socket(socket) => found.push(socket),
                Message::Done => return Ok(()),
                Message::Error(errno) => return Err(io::Error::from_raw_os_error(errno)),
            }
            rest = after;
        }
    }
}

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `NLM_F_REQUEST | NLM_F_DUMP`
const DUMP: u16 = 0x301;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const INET_DIAG_INFO: u16 = 2;

/// `struct nlmsghdr`
const HEADER_SIZE: usize = 16;
/// `struct inet_diag_req_v2`
const REQUEST_SIZE: usize = 56;
/// `struct inet_diag_msg`
const MESSAGE_SIZE: usize = 72;

/// Asks for every socket, with `TCP_INFO`.
fn request(family: u8, protocol: u8) -> Vec<u8> {
    let length = HEADER_SIZE + REQUEST_SIZE;
    let mut bytes = Vec::with_capacity(length);
    bytes.extend((length as u32).to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(DUMP.to_ne_bytes());
    // Sequence number and port id: one request is under way at a time, on a socket of its own.
    bytes.extend([0; 8]);
    bytes.extend([family, protocol, 1 << (INET_DIAG_INFO - 1), 0]);
    bytes.extend(u32::MAX.to_ne_bytes());
    bytes.resize(length, 0);
    bytes
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    Socket(SocketInfo),
    Done,
    /// A positive errno.
    Error(i32),
}

/// The first netlink message in `bytes`, and what follows it.
fn message(bytes: &[u8]) -> Option<(Message, &[u8])> {
    let length = word(bytes, 0)? as usize;
    let body = bytes.get(HEADER_SIZE..length)?;
    let rest = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    let message = match half(bytes, 4)? {
        NLMSG_DONE => Message::Done,
        NLMSG_ERROR => match word(body, 0)? as i32 {
            0 => Message::Done,
            negative => Message::Error(negative.wrapping_neg()),
        },
        _ => Message::Socket(socket(body)?),
    };
    Some((message, rest))
}

/// A `struct inet_diag_msg` and its attributes.
fn socket(body: &[u8]) -> Option<SocketInfo> {
    let cookie = u64::from(word(body, 44)?) | u64::from(word(body, 48)?) << 32;
    Some(SocketInfo {
        cookie: SocketKey(cookie),
        state: *body.get(1)?,
        receive_queue: word(body, 56)?,
        send_queue: word(body, 60)?,
        tcp: attribute(body.get(MESSAGE_SIZE..)?, INET_DIAG_INFO).and_then(tcp_info),
    })
}

fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(half(attributes, 0)?);
        if half(attributes, 2)? == wanted {
            return attributes.get(4..length);
        }
        // One that is shorter than its own head would be met for ever.
        attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
    }
}

/// `struct tcp_info`; UDP has none.
fn tcp_info(bytes: &[u8]) -> Option<TcpInfo> {
    let long = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    Some(TcpInfo {
        round_trip: Duration::from_micros(word(bytes, 68)?.into()),
        retransmits: word(bytes, 100)?,
        sent: long(120)?,
        received: long(128)?,
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(u32::from_ne_bytes(word))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    let half = bytes.get(at..at + 2)?.try_into().ok()?;
    Some(u16::from_ne_bytes(half))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use proptest::prelude::*;

    use super::*;

    const OWN: &str = "/proc/self/ns/net";

    #[test]
    fn a_socket_is_found_with_what_waits_in_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        client.write_all(b"hello").unwrap();
        let mut first = [0; 1];
        server.peek(&mut first).unwrap();

        let cookie = |socket: &TcpStream| SocketKey(sys::socket_cookie(socket.as_fd()).unwrap());
        let all = match sockets_in(Path::new(OWN)) {
            Ok(found) => found,
            Err(error) => {
                assert!(std::env::var_os("CI").is_none(), "no sock_diag: {error}");
                return println!("skipped: no sock_diag here: {error}");
            }
        };
        let find = |cookie| *all.sockets.iter().find(|it| it.cookie == cookie).unwrap();
        let (near, far) = (find(cookie(&client)), find(cookie(&server)));
        assert_eq!((near.state, near.receive_queue), (1, 0));
        assert_eq!(far.receive_queue, 5);
        assert_eq!(near.tcp.unwrap().received, 0);
        assert_eq!(far.tcp.unwrap().received, 5);
        assert_ne!(all.cookie, 0);
        assert_eq!(netns_cookie(Path::new(OWN)).unwrap(), all.cookie);
    }

    #[test]
    fn a_namespace_that_is_gone_is_an_error() {
        let error = netns_cookie(Path::new("/nowhere")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_to_an_end(bytes: Vec<u8>) {
            let mut rest = &bytes[..];
            while let Some((_, after)) = message(rest) {
                prop_assert!(after.len() < rest.len());
                rest = after;
            }
        }

        #[test]
        fn any_attributes_are_read_to_an_end(bytes: Vec<u8>, wanted: u16) {
            let _ = attribute(&bytes, wanted).map(tcp_info);
        }
    }
}
