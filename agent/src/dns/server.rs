//! Cluster DNS on the wire: one UDP socket, one TCP listener.
//!
//! What the view knows is answered where it is received: that is a look into a map. Only what has to wait, mostly for other
//! servers, gets a task, and those are bounded.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record};
use rand::seq::SliceRandom;
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};

use super::answer::{Answer, answer};
use super::forward::{Forwarder, read_framed, write_framed};
use super::wire::{self, Incoming, Transport, cluster_response, encode, error_response};
use crate::cluster::Cluster;

/// The largest question that is taken over UDP, in bytes.
const MAX_UDP_QUESTION: usize = 4096;
/// UDP questions that wait for something at once. More are refused: clients that ask faster than others answer must not
/// fill memory.
const MAX_WAITING: usize = 256;
/// How long a question waits for the view to be complete, in all and between looks: less than resolvers wait for us.
const SYNC_PATIENCE: (Duration, Duration) = (Duration::from_secs(3), Duration::from_millis(25));
/// TCP connections that wait to be accepted.
const TCP_BACKLOG: i32 = 128;
/// TCP connections at once.
const MAX_CONNECTIONS: usize = 128;
/// A TCP connection that is silent for so long is closed.
const IDLE: Duration = Duration::from_secs(10);

/// Why cluster DNS cannot start.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    #[error(
        "cannot listen for DNS at {address} ({transport}): {source}; is another DNS server running on this node?"
    )]
    Listen {
        address: SocketAddr,
        transport: &'static str,
        source: io::Error,
    },
    #[error("the cluster domain {domain:?} is no domain name: {source}")]
    Domain {
        domain: String,
        source: hickory_proto::ProtoError,
    },
}

/// A server that has its sockets.
#[derive(Debug)]
pub struct DnsServer {
    udp: Arc<UdpSocket>,
    tcp: TcpListener,
    resolver: Arc<Resolver>,
}

/// What answers questions, whichever way they came.
#[derive(Debug)]
struct Resolver {
    cluster: Cluster,
    zone: Name,
    forwarder: Forwarder,
}

impl DnsServer {
    /// Takes the sockets: `address` is a gateway's, port 53. It need not be on a link yet, so that a busy port is known
    /// before anything is changed on the node.
    pub fn bind(
        address: SocketAddr,
        domain: &str,
        cluster: Cluster,
        forwarder: Forwarder,
    ) -> Result<Self, DnsError> {
        let zone = Name::from_ascii(format!("{}.", domain.trim_matches('.')))
            .map_err(|source| DnsError::Domain {
                domain: domain.to_owned(),
                source,
            })?
            .to_lowercase();
        let failed = |transport| {
            move |source| DnsError::Listen {
                address,
                transport,
                source,
            }
        };
        let udp = udp_socket(address).map_err(failed("UDP"))?;
        // With port 0 (in tests) both have to be the same.
        let address = udp.local_addr().map_err(failed("UDP"))?;
        let tcp = tcp_listener(address).map_err(failed("TCP"))?;
        info!(%address, %zone, "cluster DNS listens");
        let resolver = Arc::new(Resolver {
            cluster,
            zone,
            forwarder,
        });
        Ok(DnsServer {
            udp: Arc::new(udp),
            tcp,
            resolver,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }

    /// Serves until dropped.
    pub async fn run(self) {
        // Both run for ever, so neither is ever cancelled by the other.
        tokio::join!(
            serve_udp(self.udp, self.resolver.clone()),
            serve_tcp(self.tcp, self.resolver)
        );
    }
}

fn udp_socket(address: SocketAddr) -> io::Result<UdpSocket> {
    UdpSocket::from_std(free_socket(address, Type::DGRAM)?.into())
}

fn tcp_listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = free_socket(address, Type::STREAM)?;
    socket.listen(TCP_BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// A socket bound to an address that this machine may not have yet.
fn free_socket(address: SocketAddr, kind: Type) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
        socket.set_freebind_v6(true)?;
    } else {
        socket.set_freebind_v4(true)?;
    }
    // Connections of an earlier agent may still be ending.
    socket.set_reuse_address(kind == Type::STREAM)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

async fn serve_udp(socket: Arc<UdpSocket>, resolver: Arc<Resolver>) {
    let waiting = Arc::new(Semaphore::new(MAX_WAITING));
    let mut buffer = vec![0; MAX_UDP_QUESTION];
    loop {
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                // Some errors belong to an earlier answer whose client is gone; a lasting one must not spin.
                debug!(%error, "receiving a DNS question failed");
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let question = match resolver.at_once(&buffer[..length], Transport::Udp) {
            AtOnce::Done(Some(response)) => {
                send(&socket, &response, client).await;
                continue;
            }
            AtOnce::Done(None) => continue,
            AtOnce::Wait(question) => question,
        };
        let Ok(permit) = waiting.clone().try_acquire_owned() else {
            let refused = failed(
                &question.request,
                "too many questions wait already",
                Transport::Udp,
            );
            if let Some(response) = refused {
                send(&socket, &response, client).await;
            }
            continue;
        };
        let (socket, resolver) = (socket.clone(), resolver.clone());
        tokio::spawn(async move {
            if let Some(response) = resolver.wait(*question, Transport::Udp).await {
                send(&socket, &response, client).await;
            }
            drop(permit);
        });
    }
}

async fn send(socket: &UdpSocket, response: &[u8], client: SocketAddr) {
    if let Err(error) = socket.send_to(response, client).await {
        debug!(%client, %error, "DNS answer not sent");
    }
}

async fn serve_tcp(listener: TcpListener, resolver: Arc<Resolver>) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, client)) => {
                let resolver = resolver.clone();
                tokio::spawn(async move {
                    if let Err(error) = serve_connection(stream, &resolver).await {
                        debug!(%client, %error, "DNS connection ended");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                warn!(%error, "accepting a DNS connection failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_connection(mut stream: TcpStream, resolver: &Resolver) -> io::Result<()> {
    loop {
        let question = match timeout(IDLE, read_framed(&mut stream)).await {
            Ok(Ok(question)) => question,
            // The client has no more questions.
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Ok(Err(error)) => return Err(error),
            Err(_) => return Ok(()),
        };
        let response = match resolver.at_once(&question, Transport::Tcp) {
            AtOnce::Done(response) => response,
            AtOnce::Wait(question) => resolver.wait(*question, Transport::Tcp).await,
        };
        match response {
            Some(response) => timeout(IDLE, write_framed(&mut stream, &response)).await??,
            None => return Ok(()),
        }
    }
}

/// What can be said without waiting.
enum AtOnce {
    /// The response, or silence.
    Done(Option<Vec<u8>>),
    /// Another server has to be asked, or the view is not complete yet.
    Wait(Box<Question>),
}

/// A question that cannot be answered at once.
struct Question {
    request: Message,
    query: Query,
    answer: Answer,
}

impl Resolver {
    fn at_once(&self, bytes: &[u8], transport: Transport) -> AtOnce {
        let (request, query) = match wire::read(bytes) {
            Incoming::Question(request, query) => (request, query),
            Incoming::Refused(request, code) => {
                return AtOnce::Done(encode(error_response(&request, code), &request, transport));
            }
            Incoming::Ignored => return AtOnce::Done(None),
        };
        let answer = self.answer(&query);
        let known = (answer != Answer::NotKnownYet)
            .then(|| cluster_response(&request, &self.zone, &answer));
        match known.flatten() {
            Some(response) => AtOnce::Done(finish(response, &request, transport)),
            None => AtOnce::Wait(Box::new(Question {
                request,
                query,
                answer,
            })),
        }
    }

    async fn wait(&self, question: Question, transport: Transport) -> Option<Vec<u8>> {
        let Question {
            request,
            query,
            mut answer,
        } = question;
        if answer == Answer::NotKnownYet {
            answer = self.when_known(&query).await;
        }
        if let Some(response) = cluster_response(&request, &self.zone, &answer) {
            return finish(response, &request, transport);
        }
        let Answer::Alias { chain, target } = answer else {
            return match self.forwarder.ask(&request, transport).await {
                Ok(response) => Some(response),
                Err(error) => failed(&request, &error.to_string(), transport),
            };
        };
        // Clients do not follow aliases by themselves, so the target's records go along.
        let mut about_target = request.clone();
        about_target.queries = vec![Query::query(target, query.query_type)];
        let bytes = match self.forwarder.ask(&about_target, transport).await {
            Ok(bytes) => bytes,
            Err(error) => return failed(&request, &error.to_string(), transport),
        };
        match Message::from_vec(&bytes) {
            Ok(theirs) => {
                let answers = chain.into_iter().chain(theirs.answers).collect();
                let mut response = wire::records_response(&request, answers, Vec::new());
                response.metadata.response_code = theirs.metadata.response_code;
                response.metadata.truncation = theirs.metadata.truncation;
                encode(response, &request, transport)
            }
            Err(error) => failed(&request, &error.to_string(), transport),
        }
    }

    fn answer(&self, query: &Query) -> Answer {
        answer(&self.cluster.view(), &self.zone, query)
    }

    /// The answer once the view is complete. Right after the agent's start that is a matter of milliseconds, and a pod that
    /// is told of a failure would fail in turn.
    async fn when_known(&self, query: &Query) -> Answer {
        let (patience, pause) = SYNC_PATIENCE;
        let deadline = Instant::now() + patience;
        loop {
            let answer = self.answer(query);
            if answer != Answer::NotKnownYet || Instant::now() >= deadline {
                return answer;
            }
            tokio::time::sleep(pause).await;
        }
    }
}

fn finish(mut response: Message, request: &Message, transport: Transport) -> Option<Vec<u8>> {
    spread(&mut response.answers);
    encode(response, request, transport)
}

fn failed(request: &Message, why: &str, transport: Transport) -> Option<Vec<u8>> {
    debug!(why, "a DNS question stays without an answer");
    encode(
        error_response(request, ResponseCode::ServFail),
        request,
        transport,
    )
}

/// Mixes the addresses of a headless service, as clients take the first. Chains of aliases keep their order.
fn spread(answers: &mut [Record]) {
    if answers
        .iter()
        .all(|record| matches!(record.data, RData::A(_)))
    {
        answers.shuffle(&mut rand::rng());
    }
}
