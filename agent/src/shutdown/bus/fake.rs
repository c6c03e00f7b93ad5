//! A bus of a test's own, and on it one that answers as logind and systemd do.

use std::io::IoSlice;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};

use super::*;

/// A bus that ends with the test.
pub(crate) struct Daemon {
    child: Child,
    pub(crate) socket: PathBuf,
}

impl Daemon {
    /// Starts it; `None`, with the reason printed, where that is not possible.
    pub(crate) async fn start(directory: &Path) -> Option<Daemon> {
        let socket = directory.join("bus");
        let config = directory.join("bus.conf");
        let text = format!(
            "<busconfig><type>session</type><listen>unix:path={}</listen><policy context=\"default\">\
             <allow send_destination=\"*\"/><allow receive_sender=\"*\"/><allow own=\"*\"/></policy></busconfig>",
            socket.display()
        );
        std::fs::write(&config, text).unwrap();
        let spawned = Command::new("dbus-daemon")
            .arg("--nofork")
            .arg("--nopidfile")
            .arg(format!("--config-file={}", config.display()))
            .stdin(Stdio::null())
            .spawn();
        let Ok(child) = spawned else {
            assert!(std::env::var_os("CI").is_none(), "CI has dbus-daemon");
            println!("skipped: there is no dbus-daemon; `cargo xtask setup` installs it");
            return None;
        };
        let daemon = Daemon { child, socket };
        for _ in 0..500 {
            if Bus::connect(&daemon.socket).await.is_ok() {
                return Some(daemon);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("dbus-daemon does not answer");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a test tells the fake.
pub(crate) enum Order {
    /// A shutdown is prepared, or called off.
    Prepare(bool),
}

/// logind and systemd.
pub(crate) struct Logind {
    bus: Bus,
    /// Where its configuration is.
    pub(crate) config: PathBuf,
    allowed_us: u64,
    is_preparing: bool,
    orders: mpsc::Receiver<Order>,
    /// How many processes make shutdowns wait.
    locks: watch::Sender<usize>,
}

impl Logind {
    /// Lets shutdowns wait for five seconds, as logind does unless its configuration says otherwise.
    pub(crate) async fn start(
        daemon: &Daemon,
        config: PathBuf,
    ) -> (mpsc::Sender<Order>, watch::Receiver<usize>) {
        let mut bus = Bus::connect(&daemon.socket).await.unwrap();
        for name in ["org.freedesktop.login1", "org.freedesktop.systemd1"] {
            let arguments = [Argument::Text(name), Argument::Unsigned(0)];
            bus.call(&DAEMON, "RequestName", &arguments).await.unwrap();
        }
        let (sender, orders) = mpsc::channel(8);
        let (locks, held) = watch::channel(0);
        let logind = Logind {
            bus,
            config,
            allowed_us: 5_000_000,
            is_preparing: false,
            orders,
            locks,
        };
        tokio::spawn(logind.run());
        (sender, held)
    }

    async fn run(mut self) {
        loop {
            tokio::select! {
                message = self.bus.next() => match message {
                    Ok(message) if message.kind == Kind::Call => self.answer(&message).await,
                    Ok(_) => {}
                    Err(_) => return,
                },
                order = self.orders.recv() => match order {
                    Some(Order::Prepare(is_preparing)) => self.prepare(is_preparing).await,
                    None => return,
                },
            }
        }
    }

    async fn prepare(&mut self, is_preparing: bool) {
        self.is_preparing = is_preparing;
        let fields = [
            (1, 'o', "/org/freedesktop/login1"),
            (2, 's', "org.freedesktop.login1.Manager"),
            (3, 's', "PrepareForShutdown"),
        ];
        let mut body = Writer::default();
        body.number(is_preparing.into());
        self.send(Kind::Signal, &fields, None, "b", &body.0, None)
            .await;
    }

    async fn answer(&mut self, call: &Message) {
        let mut words = Reader::new(&call.body);
        let mut body = Writer::default();
        let mut held = None;
        let signature = match call.member.as_str() {
            "Get" => {
                assert_eq!(words.text().unwrap(), "org.freedesktop.login1.Manager");
                match words.text().unwrap().as_str() {
                    "InhibitDelayMaxUSec" => {
                        body.signature("t");
                        body.align(8);
                        body.0.extend(self.allowed_us.to_le_bytes());
                    }
                    "PreparingForShutdown" => {
                        body.signature("b");
                        body.number(self.is_preparing.into());
                    }
                    other => panic!("{other}"),
                }
                "v"
            }
            "Inhibit" => {
                assert_eq!(words.text().unwrap(), "shutdown");
                let (ours, theirs) =
                    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
                self.watch_lock(ours);
                held = Some(theirs);
                body.number(0);
                "h"
            }
            "KillUnit" => {
                let text = std::fs::read_to_string(&self.config).unwrap();
                let seconds = text
                    .lines()
                    .find_map(|line| line.strip_prefix("InhibitDelayMaxSec="));
                self.allowed_us = seconds.unwrap().parse::<u64>().unwrap() * 1_000_000;
                ""
            }
            other => panic!("{other}"),
        };
        let fields = [(6, 's', call.sender.as_str())];
        let reply_to = Some(call.serial);
        self.send(Kind::Answer, &fields, reply_to, signature, &body.0, held)
            .await;
    }

    /// Counts a process that makes shutdowns wait, until it closes what it was given.
    fn watch_lock(&self, ours: OwnedFd) {
        let locks = self.locks.clone();
        locks.send_modify(|locks| *locks += 1);
        let mut ours = pipe::Receiver::from_owned_fd(ours).unwrap();
        tokio::spawn(async move {
            use tokio::io::AsyncReadExt;
            let _ = ours.read_u8().await;
            locks.send_modify(|locks| *locks -= 1);
        });
    }

    async fn send(
        &mut self,
        kind: Kind,
        fields: &[(u8, char, &str)],
        reply_to: Option<u32>,
        signature: &str,
        body: &[u8],
        descriptor: Option<OwnedFd>,
    ) {
        self.bus.serial += 1;
        let mut array = Writer::default();
        for (code, kind, value) in fields {
            array.field(*code, *kind);
            array.text(value);
        }
        for (code, value) in [(5, reply_to), (9, descriptor.as_ref().map(|_| 1))] {
            if let Some(value) = value {
                array.field(code, 'u');
                array.number(value);
            }
        }
        if !signature.is_empty() {
            array.field(8, 'g');
            array.signature(signature);
        }
        let mut whole = Writer(vec![b'l', kind as u8, 0, 1]);
        whole.number(body.len() as u32);
        whole.number(self.bus.serial);
        whole.number(array.0.len() as u32);
        whole.0.extend(array.0);
        whole.align(8);
        whole.0.extend(body);

        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = descriptor.as_ref().map(|descriptor| [descriptor.as_fd()]);
        if let Some(descriptors) = &descriptors {
            control.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        // A message this small is taken whole.
        let stream = &self.bus.stream;
        stream
            .async_io(Interest::WRITABLE, || {
                let parts = [IoSlice::new(&whole.0)];
                let sent = rustix::net::sendmsg(stream, &parts, &mut control, SendFlags::empty())?;
                assert_eq!(sent, whole.0.len());
                Ok(())
            })
            .await
            .unwrap();
    }
}
