//! A real etcd for one test: its own directory, ports on loopback, gone when the test is over.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::EtcdConfig;

pub(super) struct EtcdServer {
    dir: tempfile::TempDir,
    client: u16,
    peer: u16,
    arguments: Vec<String>,
    child: Option<Child>,
}

impl EtcdServer {
    /// None, with the reason printed, where etcd is not installed; that is a failure under CI.
    pub(super) fn start() -> Option<Self> {
        Self::start_with("http", &|_| Vec::new())
    }

    /// The same with further arguments, which may name files in the directory that they are given.
    pub(super) fn start_with(
        scheme: &str,
        arguments: &dyn Fn(&Path) -> Vec<String>,
    ) -> Option<Self> {
        if let Err(error) = Command::new("etcd").arg("--version").output() {
            assert!(
                std::env::var_os("CI").is_none(),
                "etcd cannot be run: {error}"
            );
            println!("skipped: etcd cannot be run: {error}");
            return None;
        }
        let dir = tempfile::Builder::new()
            .prefix("kn-st-etcd")
            .tempdir()
            .unwrap();
        let (client, peer) = (free_port(), free_port());
        let url = format!("{scheme}://127.0.0.1:{client}");
        let mut all = vec![
            format!("--listen-client-urls={url}"),
            format!("--advertise-client-urls={url}"),
        ];
        all.extend(arguments(dir.path()));
        let mut server = Self {
            dir,
            client,
            peer,
            arguments: all,
            child: None,
        };
        server.run();
        Some(server)
    }

    /// Starts it, again with the same data after [`Self::kill`].
    pub(super) fn run(&mut self) {
        let peer = format!("http://127.0.0.1:{}", self.peer);
        let child = Command::new("etcd")
            .arg(format!(
                "--data-dir={}",
                self.dir.path().join("data").display()
            ))
            .arg(format!("--listen-peer-urls={peer}"))
            .arg(format!("--initial-advertise-peer-urls={peer}"))
            .arg(format!("--initial-cluster=default={peer}"))
            .args(["--logger=zap", "--log-level=error"])
            .args(&self.arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(("127.0.0.1", self.client)).is_err() {
            assert!(Instant::now() < deadline, "etcd does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(super) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub(super) fn config(&self) -> EtcdConfig {
        EtcdConfig {
            endpoints: vec![format!("127.0.0.1:{}", self.client)],
            ..EtcdConfig::default()
        }
    }

    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port()
}
