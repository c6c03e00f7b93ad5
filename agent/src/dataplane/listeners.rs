//! How full the accept queues of pods' listeners are.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::thread;

use agent_ebpf::abi::{Port, TCP};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::Socket;

use super::sock_diag::{self, Family, ID_SIZE, LISTENING, SocketId};

/// After so many rests a namespace is no longer asked for. Not at once: its turn may come again.
const RESTS: u32 = 20;

/// Connections that stand and are not accepted yet, and how many of them may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    pub waiting: u32,
    pub room: u32,
}

impl Backlog {
    /// From 0 to 1.
    pub fn fill(&self) -> f64 {
        f64::from(self.waiting) / f64::from(self.room.max(1))
    }
}

/// Looks into network namespaces by their pins. What it has open keeps a namespace alive: see [`Listeners::rest`].
#[derive(Debug, Default)]
pub struct Listeners {
    /// By pin; and the rests since it was used.
    open: HashMap<PathBuf, (Socket, u32)>,
}

impl Listeners {
    /// The fullest TCP listener on a port in a namespace; `None` when nobody listens there.
    pub fn backlog(&mut self, netns: &Path, port: Port) -> io::Result<Option<Backlog>> {
        if !self.open.contains_key(netns) {
            self.open.insert(netns.to_owned(), (open_in(netns)?, 0));
        }
        let Some((socket, unused)) = self.open.get_mut(netns) else {
            return Ok(None);
        };
        *unused = 0;
        let mut fullest: Option<Backlog> = None;
        for family in [Family::V4, Family::V6] {
            let all = sock_diag::list(socket, family, TCP, LISTENING, &SocketId([0; ID_SIZE]))?;
            for found in all.iter().filter(|found| found.id.port() == port) {
                let backlog = Backlog {
                    waiting: found.receive_queue,
                    room: found.send_queue,
                };
                if fullest.is_none_or(|known| known.fill() < backlog.fill()) {
                    fullest = Some(backlog);
                }
            }
        }
        Ok(fullest)
    }

    /// To be called again and again: lets go of the namespaces that were not asked for in between, so that they go with
    /// their pods.
    pub fn rest(&mut self) {
        self.open.retain(|_, (_, unused)| {
            *unused += 1;
            *unused < RESTS
        });
    }
}

/// A socket of the namespace, opened by a thread that goes there.
fn open_in(netns: &Path) -> io::Result<Socket> {
    let file = File::open(netns)?;
    let there = || {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
        sock_diag::open()
    };
    thread::scope(|scope| match scope.spawn(there).join() {
        Ok(socket) => socket,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn connections_that_are_not_accepted_are_seen_to_wait() {
        let own = Path::new("/proc/self/ns/net");
        let mut listeners = Listeners::default();
        if let Err(error) = listeners.backlog(own, [0, 1]) {
            assert!(std::env::var_os("CI").is_none(), "{error}");
            println!("skipped: no network namespace may be entered: {error}");
            return;
        }
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let at = listener.local_addr().unwrap();
            let port = at.port().to_be_bytes();
            let _waiting = [
                TcpStream::connect(at).unwrap(),
                TcpStream::connect(at).unwrap(),
            ];
            let seen = listeners.backlog(own, port).unwrap().unwrap();
            assert_eq!(seen.waiting, 2);
            assert!(seen.room >= 2);
            drop(listener);
            assert_eq!(listeners.backlog(own, port).unwrap(), None);
        }
        for _ in 1..RESTS {
            listeners.rest();
            assert_eq!(listeners.open.len(), 1, "its turn may come again");
        }
        listeners.rest();
        assert!(listeners.open.is_empty());
    }
}
