//! Which conversations are open in a network namespace, and who began them.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use agent_ebpf::abi::{Address, Port, TCP, UDP};

use super::diag::within;
use super::sock_diag::{self, Family, ID_SIZE, LISTENING, SocketId, WITH_PEER};

/// Connections that are being made: `TCP_SYN_SENT`, `TCP_SYN_RECV`, `TCP_NEW_SYN_RECV`.
const UNFINISHED: u32 = 1 << 2 | 1 << 3 | 1 << 12;
const ANY: SocketId = SocketId([0; ID_SIZE]);

/// A TCP connection, or a UDP socket that is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenConversation {
    /// [`TCP`] or [`UDP`].
    pub protocol: u8,
    pub own_port: Port,
    pub peer: Address,
    pub peer_port: Port,
    /// Somebody listens at the port in the namespace, so the peer began it.
    pub was_called: bool,
}

/// Every conversation in the network namespace at `path`.
pub fn conversations_in(path: &Path) -> io::Result<Vec<OpenConversation>> {
    within(path, || {
        let mut diag = sock_diag::open()?;
        let mut listening = BTreeSet::new();
        for family in [Family::V4, Family::V6] {
            let found = sock_diag::list(&mut diag, family, TCP, LISTENING, &ANY)?;
            listening.extend(found.iter().map(|it| it.id.port()));
        }
        let mut open = Vec::new();
        for protocol in [TCP, UDP] {
            for family in [Family::V4, Family::V6] {
                let states = WITH_PEER & !UNFINISHED;
                for found in sock_diag::list(&mut diag, family, protocol, states, &ANY)? {
                    open.push(OpenConversation {
                        protocol,
                        own_port: found.id.port(),
                        peer: found.id.destination(family),
                        peer_port: found.id.peer_port(),
                        was_called: protocol == TCP && listening.contains(&found.id.port()),
                    });
                }
            }
        }
        Ok(open)
    })
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn a_connection_is_seen_from_both_ends() {
        if !crate::testing::root_or_skip("it enters a network namespace") {
            return;
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (_server, _) = listener.accept().unwrap();
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        datagrams.connect(listener.local_addr().unwrap()).unwrap();
        let found = conversations_in(Path::new("/proc/self/ns/net")).unwrap();
        let (near, far) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        let expected = |own: SocketAddr, peer: SocketAddr, protocol, was_called| OpenConversation {
            protocol,
            own_port: own.port().to_be_bytes(),
            peer: peer.ip().into(),
            peer_port: peer.port().to_be_bytes(),
            was_called,
        };
        assert!(found.contains(&expected(near, far, TCP, false)));
        assert!(found.contains(&expected(far, near, TCP, true)));
        let own = datagrams.local_addr().unwrap();
        assert!(found.contains(&expected(own, far, UDP, false)));
    }
}
