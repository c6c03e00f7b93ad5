//! A socket for the frames of one protocol on one link, and the multicast groups in which questions for IPv6 addresses come.

use std::io;
use std::mem::MaybeUninit;
use std::net::Ipv6Addr;

use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, SockFilter, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Room for what can be asked: longer frames are cut off, and then left alone.
const FRAME: usize = 512;

/// Frames of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Arp,
    /// ICMPv6 neighbour solicitations and advertisements.
    Ndp,
}

/// Frames of one kind on one link.
#[derive(Debug)]
pub(super) struct Frames(AsyncFd<Socket>);

impl Frames {
    /// Opens the socket in the calling thread's network namespace. Needs a tokio runtime.
    pub(super) fn open(kind: Kind, link: u32) -> io::Result<Self> {
        // Without a protocol nothing is heard before the socket is bound to its link.
        let socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking().cloexec(), None)?;
        if kind == Kind::Ndp {
            socket.attach_filter(&DISCOVERY)?;
        }
        let ethertype = match kind {
            Kind::Arp => libc::ETH_P_ARP,
            Kind::Ndp => libc::ETH_P_IPV6,
        };
        socket.bind(&address(ethertype, link)?)?;
        // SAFETY: the socket owns its descriptor, and closes it only when it is dropped.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE)? };
        Ok(Self(socket))
    }

    /// The next frame, with its Ethernet header. May be dropped without losing one.
    pub(super) async fn receive(&self) -> io::Result<Vec<u8>> {
        loop {
            let mut ready = self.0.readable().await?;
            let mut room = [MaybeUninit::uninit(); FRAME];
            let received = ready.try_io(|socket| {
                let length = socket.get_ref().recv(&mut room)?;
                let bytes = room.iter().take(length);
                // SAFETY: the kernel has written the first `length` bytes.
                Ok(bytes.map(|byte| unsafe { byte.assume_init() }).collect())
            });
            if let Ok(frame) = received {
                return frame;
            }
        }
    }

    /// Sends a frame. One that the link cannot take at once is lost, as frames are.
    pub(super) fn send(&self, frame: &[u8]) -> io::Result<()> {
        match self.0.get_ref().send(frame) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            sent => sent.map(drop),
        }
    }
}

fn address(ethertype: i32, link: u32) -> io::Result<SockAddr> {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: the storage is as large and as aligned as any socket address, and all zeros are a valid `sockaddr_ll`.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
    address.sll_protocol = u16::try_from(ethertype).map_err(io::Error::other)?.to_be();
    address.sll_ifindex = i32::try_from(link).map_err(io::Error::other)?;
    let length = u32::try_from(size_of::<libc::sockaddr_ll>()).map_err(io::Error::other)?;
    // SAFETY: the storage holds a `sockaddr_ll` of that length, whose family says so.
    Ok(unsafe { SockAddr::new(storage, length) })
}

/// The groups in which questions for IPv6 addresses come; left when it is dropped.
#[derive(Debug)]
pub(super) struct Groups {
    socket: Socket,
    link: u32,
}

impl Groups {
    pub(super) fn open(link: u32) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV6, Type::DGRAM.cloexec(), Some(Protocol::UDP))?;
        Ok(Self { socket, link })
    }

    pub(super) fn join(&self, group: Ipv6Addr) -> io::Result<()> {
        self.socket.join_multicast_v6(&group, self.link)
    }

    pub(super) fn leave(&self, group: Ipv6Addr) -> io::Result<()> {
        self.socket.leave_multicast_v6(&group, self.link)
    }
}

const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// Keeps the rest of the link's IPv6 traffic away: next header ICMPv6, and type 135 or 136.
const DISCOVERY: [SockFilter; 7] = [
    SockFilter::new(LOAD_BYTE, 0, 0, 20),
    SockFilter::new(JUMP_EQUAL, 0, 4, 58),
    SockFilter::new(LOAD_BYTE, 0, 0, 54),
    SockFilter::new(JUMP_EQUAL, 1, 0, 135),
    SockFilter::new(JUMP_EQUAL, 0, 1, 136),
    SockFilter::new(RETURN, 0, 0, FRAME as u32),
    SockFilter::new(RETURN, 0, 0, 0),
];
