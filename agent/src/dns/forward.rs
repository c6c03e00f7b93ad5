//! Asks the node's own resolvers about names outside the cluster.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, Query};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;
use tracing::debug;

use super::resolv_conf::ResolvConf;
use super::wire::Transport;

/// Until the next resolver is asked.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often the list of resolvers is gone through.
const ROUNDS: usize = 2;
/// The largest answer that is taken over UDP, in bytes.
const MAX_UDP_ANSWER: usize = 4096;

/// Why a question stays without an answer.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    #[error("{0} names no resolver but this one, so names outside the cluster cannot be looked up")]
    NoResolver(PathBuf),
    #[error("none of the node's resolvers answered")]
    NoAnswer,
}

/// Where questions about other names go.
#[derive(Clone, Debug)]
pub struct Forwarder {
    resolv_conf: PathBuf,
    /// The port that resolvers listen at: 53.
    port: u16,
    /// Ourselves, whom asking would go round in circles.
    own: Vec<IpAddr>,
    /// Who answered last. One that is dead then costs the first question its patience, and not every one.
    last: Arc<Mutex<Option<IpAddr>>>,
}

impl Forwarder {
    /// Forwards to the name servers in `resolv_conf`, which is read anew for each question, except to `own`.
    pub fn new(resolv_conf: PathBuf, own: Vec<IpAddr>) -> Self {
        Forwarder {
            resolv_conf,
            port: 53,
            own,
            last: Arc::default(),
        }
    }

    /// The same with resolvers at another port than 53.
    pub fn with_port(self, port: u16) -> Self {
        Forwarder { port, ..self }
    }

    /// Asks and returns the answer's bytes, with the id that the question has.
    pub async fn ask(
        &self,
        question: &Message,
        transport: Transport,
    ) -> Result<Vec<u8>, ForwardError> {
        let resolvers = self.resolvers();
        if resolvers.is_empty() {
            return Err(ForwardError::NoResolver(self.resolv_conf.clone()));
        }
        for address in resolvers.iter().cycle().take(resolvers.len() * ROUNDS) {
            let resolver = SocketAddr::new(*address, self.port);
            match timeout(PATIENCE, exchange(resolver, question, transport)).await {
                Ok(Ok(answer)) => {
                    *self.last() = Some(*address);
                    return Ok(answer);
                }
                Ok(Err(error)) => debug!(%resolver, %error, "resolver did not answer"),
                Err(_) => debug!(%resolver, "resolver did not answer in time"),
            }
        }
        Err(ForwardError::NoAnswer)
    }

    /// Whom to ask, in that order.
    fn resolvers(&self) -> Vec<IpAddr> {
        // A small file of the node's: reading it where we are is cheaper than handing it to another thread.
        let text = fs::read_to_string(&self.resolv_conf).unwrap_or_default();
        let mut resolvers = ResolvConf::parse(&text).nameservers;
        resolvers.retain(|address| !self.own.contains(address));
        let last = *self.last();
        if let Some(at) = resolvers.iter().position(|address| Some(*address) == last) {
            resolvers[..=at].rotate_right(1);
        }
        resolvers
    }

    fn last(&self) -> MutexGuard<'_, Option<IpAddr>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One question to one resolver.
async fn exchange(
    resolver: SocketAddr,
    question: &Message,
    transport: Transport,
) -> io::Result<Vec<u8>> {
    // An id and a source port of its own for each question: whoever wants to forge an answer has to guess both.
    let mut sent = question.clone();
    sent.metadata.id = rand::random();
    let bytes = sent.to_vec().map_err(io::Error::other)?;
    let mut answer = match transport {
        Transport::Udp => over_udp(resolver, &bytes, &sent).await?,
        Transport::Tcp => over_tcp(resolver, &bytes, &sent).await?,
    };
    if let Some(id) = answer.get_mut(..2) {
        id.copy_from_slice(&question.metadata.id.to_be_bytes());
    }
    Ok(answer)
}

async fn over_udp(resolver: SocketAddr, question: &[u8], sent: &Message) -> io::Result<Vec<u8>> {
    let any: IpAddr = if resolver.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(resolver).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; MAX_UDP_ANSWER];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if answers(&buffer[..length], sent) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn over_tcp(resolver: SocketAddr, question: &[u8], sent: &Message) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(resolver).await?;
    write_framed(&mut stream, question).await?;
    let answer = read_framed(&mut stream).await?;
    if answers(&answer, sent) {
        Ok(answer)
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the answer is to another question",
        ))
    }
}

/// Whether these bytes are the answer to what was sent.
fn answers(bytes: &[u8], sent: &Message) -> bool {
    let same = |ours: &Query, theirs: &Query| {
        ours.name == theirs.name
            && ours.query_type == theirs.query_type
            && ours.query_class == theirs.query_class
    };
    Message::from_vec(bytes).is_ok_and(|answer| {
        answer.metadata.message_type == MessageType::Response
            && answer.metadata.id == sent.metadata.id
            && answer.queries.len() == sent.queries.len()
            && answer
                .queries
                .iter()
                .zip(&sent.queries)
                .all(|(theirs, ours)| same(ours, theirs))
    })
}

/// Reads one message of a TCP stream: its length in 16 bits, big-endian, then the message.
pub async fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// Writes one message to a TCP stream.
pub async fn write_framed(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    // One write, so that the length and the message leave in one segment.
    stream
        .write_all(&[&length.to_be_bytes()[..], message].concat())
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_answered_last_is_asked_first() {
        let conf = tempfile::NamedTempFile::new().unwrap();
        fs::write(
            conf.path(),
            "nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\n",
        )
        .unwrap();
        let own = vec![IpAddr::from([10, 244, 0, 1])];
        let forwarder = Forwarder::new(conf.path().to_owned(), own);
        let order = || {
            let all = forwarder.resolvers();
            all.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(order(), ["192.0.2.1", "192.0.2.2", "192.0.2.3"]);
        *forwarder.last() = Some(IpAddr::from([192, 0, 2, 3]));
        assert_eq!(order(), ["192.0.2.3", "192.0.2.1", "192.0.2.2"]);
        *forwarder.last() = Some(IpAddr::from([198, 51, 100, 1]));
        assert_eq!(order(), ["192.0.2.1", "192.0.2.2", "192.0.2.3"]);
    }
}
