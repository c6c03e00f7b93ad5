//! Connections to ports of a pod, forwarded over streams.
//!
//! For each connection the client opens two streams that name the port and share a request id: one for the data, and one
//! on which it is told what went wrong.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use super::negotiate::Upgrade;
use super::spdy::{self, Opened, SpdyError};
use super::{Channel, Incoming, websocket};
use crate::network::namespaces::{self, Namespace};

/// The protocol over SPDY.
pub(super) const SPDY: [&str; 1] = ["portforward.k8s.io"];
/// SPDY itself, and that in it, through the messages of a WebSocket.
pub(super) const WEBSOCKET: [&str; 1] = ["SPDY/3.1+portforward.k8s.io"];

/// How long a port may take to answer.
const CONNECT: Duration = Duration::from_secs(10);
/// So much is read at once, in bytes.
const PIECE: usize = 32 << 10;
/// Pairs of streams of which one half has come.
const HALVES: usize = 256;

/// A pod's network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Network {
    /// The node's own.
    Host,
    /// The pin of its namespace.
    Namespace(PathBuf),
}

/// The two streams of one connection.
struct Pair {
    port: u16,
    data: (Incoming, Channel),
    error: Channel,
}

/// Forwards until the client has gone.
pub(super) async fn run(upgrade: Upgrade, network: Network, pod: String) -> Result<(), SpdyError> {
    let (connection, mut opened) = match upgrade {
        Upgrade::Spdy(io) => spdy::serve(io)?,
        Upgrade::WebSocket(socket) => spdy::serve(websocket::tunnel(*socket))?,
    };
    let mut halves = Halves::default();
    let mut forwarded = JoinSet::new();
    loop {
        // Both are cancel-safe: what is ready stays so.
        let stream = tokio::select! {
            stream = opened.recv() => stream,
            Some(_) = forwarded.join_next() => continue,
        };
        let Some(stream) = stream else { break };
        match halves.add(stream) {
            Ok(Some(pair)) => {
                forwarded.spawn(forward(pair, network.clone(), pod.clone()));
            }
            Ok(None) => {}
            Err((channel, why)) => {
                tracing::debug!(why, "a stream to forward was refused");
                channel.end().await;
            }
        }
    }
    // Without the client there is nobody to forward for.
    drop(connection);
    Ok(())
}

/// Streams whose other half has not come yet, by request id.
#[derive(Default)]
struct Halves(HashMap<String, Half>);

enum Half {
    Error(Channel),
    Data(u16, Incoming, Channel),
}

impl Halves {
    fn add(&mut self, stream: Opened) -> Result<Option<Pair>, (Channel, &'static str)> {
        let headers = stream.headers;
        let Some(port) = headers.get("port").parse().ok().filter(|port| *port != 0) else {
            return Err((stream.channel, "its port is not one"));
        };
        let id = match headers.get("requestid") {
            // Old clients open the error stream, and the data stream directly after it, two ids further on.
            "" if headers.get("streamtype") == "error" => stream.id.to_string(),
            "" => stream.id.saturating_sub(2).to_string(),
            id => id.to_owned(),
        };
        let half = match headers.get("streamtype") {
            "error" => Half::Error(stream.channel),
            "data" => Half::Data(port, stream.incoming, stream.channel),
            _ => return Err((stream.channel, "its type is neither data nor error")),
        };
        match (self.0.remove(&id), half) {
            (Some(Half::Error(error)), Half::Data(port, incoming, channel))
            | (Some(Half::Data(port, incoming, channel)), Half::Error(error)) => Ok(Some(Pair {
                port,
                data: (incoming, channel),
                error,
            })),
            (None, half) if self.0.len() < HALVES => {
                self.0.insert(id, half);
                Ok(None)
            }
            (_, Half::Error(channel) | Half::Data(_, _, channel)) => {
                Err((channel, "it has no other half"))
            }
        }
    }
}

async fn forward(pair: Pair, network: Network, pod: String) {
    let Pair {
        port,
        data: (incoming, channel),
        error,
    } = pair;
    let forwarded = async {
        let stream = connect(network, port).await?;
        copy(stream, incoming, &channel).await
    };
    if let Err(problem) = forwarded.await {
        let text = format!("error forwarding port {port} to pod {pod}: {problem}");
        let _ = error.send(Bytes::from(text)).await;
    }
    error.end().await;
    channel.end().await;
}

/// Connects to a port of the pod, where its own processes would.
async fn connect(network: Network, port: u16) -> io::Result<TcpStream> {
    // Where a socket is made it stays; that it connects holds up no thread.
    let sockets = || (TcpSocket::new_v4(), TcpSocket::new_v6());
    let made = tokio::task::spawn_blocking(move || match network {
        Network::Host => Ok(sockets()),
        Network::Namespace(path) => namespaces::within(Namespace::Net, &path, sockets),
    });
    let (v4, v6) = made
        .await
        .map_err(io::Error::other)?
        .map_err(io::Error::other)?;
    let stream = match dial(v4, (Ipv4Addr::LOCALHOST, port).into()).await {
        Ok(stream) => stream,
        // What listens on IPv6 alone; where nothing does, the first refusal is the one to tell.
        Err(refused) => {
            let second = dial(v6, (Ipv6Addr::LOCALHOST, port).into()).await;
            second.map_err(|_| refused)?
        }
    };
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn dial(socket: io::Result<TcpSocket>, address: SocketAddr) -> io::Result<TcpStream> {
    let connected = tokio::time::timeout(CONNECT, socket?.connect(address));
    connected
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Until both directions have ended, or the port has gone.
async fn copy(stream: TcpStream, mut incoming: Incoming, channel: &Channel) -> io::Result<()> {
    let (mut read, mut write) = stream.into_split();
    let inwards = async {
        while let Some(data) = incoming.recv().await {
            write.write_all(&data).await?;
        }
        write.shutdown().await
    };
    let outwards = async {
        let mut bytes = BytesMut::new();
        loop {
            bytes.reserve(PIECE);
            if read.read_buf(&mut bytes).await? == 0 {
                return Ok(());
            }
            if channel.send(bytes.split().freeze()).await.is_err() {
                return Ok(());
            }
        }
    };
    tokio::pin!(inwards, outwards);
    // Each is polled on where it was. What the port has closed is over for the client, too, who might never close it.
    tokio::select! {
        done = &mut outwards => return done,
        done = &mut inwards => done?,
    }
    outwards.await
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::super::spdy::Headers;
    use super::*;

    fn stream(id: u32, kind: &str, port: &str, request: &str) -> Opened {
        let (queue, _) = mpsc::channel(1);
        let headers = [("streamtype", kind), ("port", port), ("requestid", request)];
        let own = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        Opened {
            id,
            headers: Headers::of(headers.map(own).into()),
            incoming: mpsc::channel(1).1,
            channel: Channel { id, queue },
        }
    }

    fn ports(streams: Vec<Opened>) -> Vec<Option<u16>> {
        let mut halves = Halves::default();
        let added = streams.into_iter().map(|stream| halves.add(stream));
        added
            .map(|added| added.ok().flatten().map(|pair| pair.port))
            .collect()
    }

    #[test]
    fn streams_of_one_request_belong_together() {
        let streams = vec![
            stream(1, "error", "80", "0"),
            stream(3, "error", "81", "1"),
            stream(5, "data", "81", "1"),
            stream(7, "data", "80", "0"),
        ];
        assert_eq!(ports(streams), [None, None, Some(81), Some(80)]);
        let old = vec![stream(1, "error", "80", ""), stream(3, "data", "80", "")];
        assert_eq!(ports(old), [None, Some(80)]);
    }

    #[test]
    fn what_is_no_half_of_a_pair_is_refused() {
        let mut halves = Halves::default();
        for stream in [
            stream(1, "error", "", "0"),
            stream(1, "error", "0", "0"),
            stream(1, "error", "70000", "0"),
            stream(1, "other", "80", "0"),
        ] {
            assert!(halves.add(stream).is_err());
        }
        assert!(halves.add(stream(1, "data", "80", "0")).is_ok());
        assert!(halves.add(stream(3, "data", "80", "0")).is_err());
    }
}
