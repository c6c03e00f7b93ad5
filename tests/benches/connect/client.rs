//! A client process in a case's namespace and cgroup: it is told how many connections to make, and tells how long each took.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use kernelet_tests::host;
use rustix::thread::{CpuSet, sched_setaffinity};

use super::{BACKEND_PORT, PREFIX};

const FLAG: &str = "--connect-to";

/// The cgroup of a case's client.
pub fn cgroup(case: &str) -> PathBuf {
    host::cgroup2_mount()
        .unwrap_or_else(|error| panic!("{error}"))
        .join(PREFIX)
        .join(case)
}

/// The address that this process was started to connect to.
pub fn requested() -> Option<SocketAddrV4> {
    let mut arguments = std::env::args().skip_while(|argument| argument != FLAG);
    arguments.nth(1)?.parse().ok()
}

/// The client's main: listens on the backend's port, then connects as often as standard input asks, until that ends.
pub fn serve(target: SocketAddrV4) {
    let listener =
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, BACKEND_PORT)).expect("the namespace is its own");
    // Where the scheduler happens to put the two would be the largest part of the difference between cases.
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    run_on(0);
    std::thread::spawn(move || {
        run_on(processors - 1);
        for stream in listener.incoming() {
            drop(stream);
        }
    });
    let mut output = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let count: usize = line.expect("a line").parse().expect("a number");
        let mut answer = Vec::with_capacity(count * 8);
        for _ in 0..count {
            let began = Instant::now();
            let stream = TcpStream::connect(SocketAddr::V4(target)).expect("the backend listens");
            let nanoseconds = began.elapsed().as_nanos() as u64;
            answer.extend(nanoseconds.to_ne_bytes());
            // A reset leaves no TIME_WAIT behind, which would use up the ports.
            let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        }
        output.write_all(&answer).expect("the parent reads");
        output.flush().expect("the parent reads");
    }
}

/// Keeps this thread on one processor.
fn run_on(processor: usize) {
    let mut only = CpuSet::new();
    only.set(processor);
    sched_setaffinity(None, &only).expect("the processor is there");
}

/// The parent's end.
pub struct Client {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Client {
    /// Starts a client process.
    pub fn start(case: &str, netns: &str, target: SocketAddrV4) -> Client {
        let program = std::env::current_exe().expect("this program has a path");
        let mut child = Command::new("sh")
            .arg("-c")
            .arg("echo $$ > \"$0\" && exec nsenter --net=\"$1\" \"$2\" \"$3\" \"$4\"")
            .arg(cgroup(case).join("cgroup.procs"))
            .arg(host::netns_path(netns))
            .arg(program)
            .args([FLAG, &target.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh starts");
        let input = child.stdin.take().expect("it was piped");
        let output = BufReader::new(child.stdout.take().expect("it was piped"));
        Client {
            child,
            input,
            output,
        }
    }

    /// Has it connect, and gives how long each took.
    pub fn connect(&mut self, count: usize) -> Vec<Duration> {
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
