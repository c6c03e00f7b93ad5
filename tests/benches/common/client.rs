//! Processes in a case's namespace and cgroup: a client is told how many exchanges to make, and tells how long each took.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use kernelet_tests::host;
use rustix::thread::{CpuSet, sched_setaffinity};
use socket2::{Domain, SockRef, Socket, Type};

/// Where every server listens.
pub const BACKEND_PORT: u16 = 8080;

const CLIENT: &str = "--client";
const SERVER: &str = "--server";
/// What one exchange of [`Exchange::Stream`] carries.
pub const BLOCK: usize = 16 << 20;

/// What a client does over and over, and what its server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exchange {
    /// A TCP connection, which is broken off at once.
    Connect,
    /// A datagram to and one back, all on one unconnected socket.
    Request,
    /// A byte to and one back, all on one TCP connection.
    Call,
    /// [`BLOCK`] bytes to the server over one connection.
    Stream,
}

impl Exchange {
    fn name(self) -> &'static str {
        match self {
            Exchange::Connect => "connect",
            Exchange::Request => "request",
            Exchange::Call => "call",
            Exchange::Stream => "stream",
        }
    }

    fn named(name: &str) -> Option<Exchange> {
        [
            Exchange::Connect,
            Exchange::Request,
            Exchange::Call,
            Exchange::Stream,
        ]
        .into_iter()
        .find(|exchange| exchange.name() == name)
    }
}

/// The cgroup of a case's client, below one that has the benchmark's prefix.
pub fn cgroup(prefix: &str, case: &str) -> PathBuf {
    host::cgroup2_mount()
        .unwrap_or_else(|error| panic!("{error}"))
        .join(prefix)
        .join(case)
}

/// Runs as client or server if this process was started as one; false when it was not.
pub fn played_a_part() -> bool {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, CLIENT, exchange, target, server] => {
            let exchange = Exchange::named(exchange).expect("an exchange");
            let target = target.parse().expect("an address");
            if server == "here" {
                let serve = server_of(exchange);
                std::thread::spawn(move || {
                    run_on(processor_of_server(exchange));
                    serve();
                });
            }
            measure(exchange, target);
            true
        }
        [_, SERVER, exchange] => {
            let exchange = Exchange::named(exchange).expect("an exchange");
            let serve = server_of(exchange);
            println!("ready");
            run_on(processor_of_server(exchange));
            serve();
            true
        }
        _ => false,
    }
}

/// Binds the backend's port in this namespace, for both families; gives what serves it.
fn server_of(exchange: Exchange) -> Box<dyn FnOnce() + Send> {
    let kind = match exchange {
        Exchange::Request => Type::DGRAM,
        Exchange::Connect | Exchange::Call | Exchange::Stream => Type::STREAM,
    };
    let socket = Socket::new(Domain::IPV6, kind, None).expect("a socket");
    socket.set_only_v6(false).expect("both families");
    // An earlier server may have left connections that linger.
    socket.set_reuse_address(true).expect("sockets have it");
    let everywhere = SocketAddr::from((Ipv6Addr::UNSPECIFIED, BACKEND_PORT));
    socket
        .bind(&everywhere.into())
        .expect("the namespace is its own");
    if kind == Type::STREAM {
        socket.listen(1024).expect("it listens");
    }
    match exchange {
        Exchange::Connect => Box::new(move || {
            for stream in TcpListener::from(socket).incoming() {
                drop(stream);
            }
        }),
        Exchange::Request => Box::new(move || {
            let socket = UdpSocket::from(socket);
            let mut buffer = [0; 64];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&buffer[..length], from);
            }
        }),
        Exchange::Call => Box::new(move || {
            for stream in TcpListener::from(socket).incoming().flatten() {
                // Several clients may keep a connection each.
                std::thread::spawn(|| echo(stream));
            }
        }),
        Exchange::Stream => Box::new(move || {
            for stream in TcpListener::from(socket).incoming().flatten() {
                std::thread::spawn(|| sink(stream));
            }
        }),
    }
}

/// Sends each byte back.
fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut byte = [0];
    loop {
        stream.read_exact(&mut byte)?;
        stream.write_all(&byte)?;
    }
}

/// Says so after each block that has come in.
fn sink(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 18];
    let mut seen = 0;
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            length => seen += length,
        }
        if seen >= BLOCK {
            seen -= BLOCK;
            stream.write_all(&[1])?;
        }
    }
}

/// The client's main: exchanges as often as standard input asks, until that ends.
fn measure(exchange: Exchange, target: SocketAddr) {
    // Where the scheduler happens to put client and server would be the largest part of the difference between cases.
    run_on(0);
    let mut once = exchanger(exchange, target);
    let mut output = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let count: usize = line.expect("a line").parse().expect("a number");
        let mut answer = Vec::with_capacity(count * 8);
        for _ in 0..count {
            answer.extend((once().as_nanos() as u64).to_ne_bytes());
        }
        output.write_all(&answer).expect("the parent reads");
        output.flush().expect("the parent reads");
    }
}

/// Makes one exchange and gives how long it took.
fn exchanger(exchange: Exchange, target: SocketAddr) -> Box<dyn FnMut() -> Duration> {
    match exchange {
        Exchange::Connect => Box::new(move || {
            let began = Instant::now();
            let stream = TcpStream::connect(target).expect("the backend listens");
            let elapsed = began.elapsed();
            // A reset leaves no TIME_WAIT behind, which would use up the ports.
            let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            elapsed
        }),
        Exchange::Request => {
            let any: IpAddr = match target {
                SocketAddr::V4(_) => [0; 4].into(),
                SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let socket = UdpSocket::bind((any, 0)).expect("a port");
            let mut buffer = [0; 64];
            Box::new(move || {
                let began = Instant::now();
                socket.send_to(b"request", target).expect("it is sent");
                let (_, from) = socket.recv_from(&mut buffer).expect("it is answered");
                let elapsed = began.elapsed();
                assert_eq!(from, target, "the answer comes from what was dialled");
                elapsed
            })
        }
        Exchange::Call => {
            let mut stream = TcpStream::connect(target).expect("the backend listens");
            stream.set_nodelay(true).expect("TCP has it");
            Box::new(move || {
                let began = Instant::now();
                stream.write_all(&[7]).expect("it is taken");
                stream.read_exact(&mut [0]).expect("it is answered");
                began.elapsed()
            })
        }
        Exchange::Stream => {
            let mut stream = TcpStream::connect(target).expect("the backend listens");
            let block = vec![7; BLOCK];
            Box::new(move || {
                let began = Instant::now();
                stream.write_all(&block).expect("it is taken");
                stream.read_exact(&mut [0]).expect("it is acknowledged");
                began.elapsed()
            })
        }
    }
}

/// Apart from the client's, but for requests: how long a processor of a virtual machine takes to wake up is several times
/// what a datagram costs, and differs from one run to the next.
fn processor_of_server(exchange: Exchange) -> usize {
    match exchange {
        Exchange::Request | Exchange::Call => 0,
        Exchange::Connect | Exchange::Stream => {
            std::thread::available_parallelism().map_or(1, usize::from) - 1
        }
    }
}

/// Keeps this thread on one processor.
fn run_on(processor: usize) {
    let mut only = CpuSet::new();
    only.set(processor);
    sched_setaffinity(None, &only).expect("the processor is there");
}

/// This program, started in a namespace and a cgroup.
fn start(cgroup: &Path, netns: &str, arguments: &[&str]) -> Child {
    let program = std::env::current_exe().expect("this program has a path");
    host::create_dir(cgroup).unwrap_or_else(|error| panic!("{error}"));
    Command::new("sh")
        .arg("-c")
        .arg("echo $$ > \"$0\" && exec nsenter --net=\"$@\"")
        .arg(cgroup.join("cgroup.procs"))
        .arg(host::netns_path(netns))
        .arg(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("sh starts")
}

/// A server on its own, for clients in other namespaces.
pub struct Server(Child);

impl Server {
    /// Starts one, and waits until it listens.
    pub fn start(cgroup: &Path, netns: &str, exchange: Exchange) -> Server {
        let mut child = start(cgroup, netns, &[SERVER, exchange.name()]);
        let mut line = String::new();
        let output = child.stdout.take().expect("it was piped");
        BufReader::new(output)
            .read_line(&mut line)
            .expect("it says that it is ready");
        Server(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The parent's end of a client.
pub struct Client {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Client {
    /// Starts a client process. With `serve` it is its own server.
    pub fn start(
        cgroup: &Path,
        netns: &str,
        exchange: Exchange,
        target: SocketAddr,
        serve: bool,
    ) -> Client {
        let server = if serve { "here" } else { "elsewhere" };
        let arguments = [CLIENT, exchange.name(), &target.to_string(), server];
        let mut child = start(cgroup, netns, &arguments);
        let input = child.stdin.take().expect("it was piped");
        let output = BufReader::new(child.stdout.take().expect("it was piped"));
        Client {
            child,
            input,
            output,
        }
    }

    /// Has it make exchanges, and gives how long each took.
    pub fn exchange(&mut self, count: usize) -> Vec<Duration> {
        writeln!(self.input, "{count}").expect("the client runs");
        let mut answer = vec![0; count * 8];
        self.output
            .read_exact(&mut answer)
            .expect("the client answers");
        answer
            .chunks_exact(8)
            .map(|bytes| {
                Duration::from_nanos(u64::from_ne_bytes(bytes.try_into().expect("eight bytes")))
            })
            .collect()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
