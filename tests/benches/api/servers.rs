//! API servers to be measured, each with its store: this project's over either, and another one over etcd.

use std::fs::File;
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kernelet_tests::alone::ControlPlane;
use kernelet_tests::cluster::target;
use kernelet_tests::host;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 77, 6, 2);
const ETCD: &str = "http://127.77.6.2:2379";
/// Of a second, as the kernel counts for programs.
const TICKS: u32 = 100;
/// How long a start may take.
const START: Duration = Duration::from_secs(60);
/// What the peer knows its administrator by.
const TOKEN: &str = "of-a-benchmark";

/// Whose requests are measured.
pub enum Which {
    Embedded,
    Etcd,
    /// A kube-apiserver.
    Peer(PathBuf),
}

impl Which {
    pub fn name(&self) -> &'static str {
        match self {
            Which::Embedded => "embedded",
            Which::Etcd => "etcd",
            Which::Peer(_) => "peer, etcd",
        }
    }
}

/// A server that runs, with what it needs. It ends with its value.
pub struct Server {
    ours: Option<ControlPlane>,
    /// Those that are no [`ControlPlane`]: the peer first, its store last.
    others: Vec<Child>,
    pub config: kube::Config,
}

impl Server {
    /// Starts one on nothing.
    pub async fn start(which: &Which) -> Server {
        let directory = target().join("bench-api");
        let _ = std::fs::remove_dir_all(&directory);
        host::create_dir(&directory).unwrap_or_else(|error| panic!("{error}"));
        let mut others = Vec::new();
        if !matches!(which, Which::Embedded) {
            others.push(etcd(&directory));
        }
        let ours = match which {
            Which::Embedded => Some(Vec::new()),
            Which::Etcd => Some(vec!["--etcd-endpoints", ETCD]),
            Which::Peer(program) => {
                others.insert(0, peer(program, &directory));
                None
            }
        };
        let ours = ours.map(|arguments| {
            let started = ControlPlane::start(&directory, ADDRESS, &arguments);
            started.unwrap_or_else(|error| panic!("{error}"))
        });
        let config = match &ours {
            Some(server) => config_of(&server.kubeconfig()).await,
            None => peers_config(),
        };
        Server {
            ours,
            others,
            config,
        }
    }

    /// The process whose work is measured.
    fn pid(&self) -> u32 {
        self.ours
            .as_ref()
            .map_or_else(|| self.others[0].id(), ControlPlane::pid)
    }

    /// The processor time that the server has used.
    pub fn processor_time(&self) -> Duration {
        let path = format!("/proc/{}/stat", self.pid());
        let stat = host::read(path).unwrap_or_else(|error| panic!("{error}"));
        // The program's name may hold anything but the last parenthesis.
        let (_, rest) = stat.rsplit_once(')').expect("the kernel writes one");
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let ticks = |index: usize| fields[index].parse::<u64>().expect("a number");
        Duration::from_secs(ticks(11) + ticks(12)) / TICKS
    }

    /// Its resident memory, in bytes.
    pub fn resident(&self) -> u64 {
        let path = format!("/proc/{}/status", self.pid());
        let status = host::read(path).unwrap_or_else(|error| panic!("{error}"));
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
        let kilobytes = kilobytes.and_then(|number| number.parse::<u64>().ok());
        kilobytes.expect("the kernel writes it") * 1024
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.ours.take());
        for child in &mut self.others {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

async fn config_of(kubeconfig: &Path) -> kube::Config {
    let kubeconfig = kube::config::Kubeconfig::read_from(kubeconfig).expect("it was written");
    kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default())
        .await
        .expect("the kubeconfig is usable")
}

fn peers_config() -> kube::Config {
    let url = format!("https://{ADDRESS}:6443");
    let mut config = kube::Config::new(url.parse().expect("a URL"));
    config.accept_invalid_certs = true;
    config.auth_info.token = Some(TOKEN.to_owned().into());
    config
}

fn etcd(directory: &Path) -> Child {
    let peers = ETCD.replace("2379", "2380");
    let mut command = Command::new("etcd");
    command
        .arg("--data-dir")
        .arg(directory.join("etcd"))
        .args([
            "--listen-client-urls",
            ETCD,
            "--advertise-client-urls",
            ETCD,
        ])
        .args(["--listen-peer-urls", &peers])
        .args(["--initial-advertise-peer-urls", &peers])
        .args(["--initial-cluster", &format!("default={peers}")]);
    started(&mut command, &directory.join("etcd.log"), 2379)
}

/// A kube-apiserver that lets its administrator do everything.
fn peer(program: &Path, directory: &Path) -> Child {
    let key = directory.join("sa.key");
    let tokens = directory.join("tokens.csv");
    let file = |path: &Path| path.display().to_string();
    host::write(&tokens, format!("{TOKEN},admin,admin,system:masters\n"))
        .unwrap_or_else(|error| panic!("{error}"));
    kernelet_tests::command::run(&format!("openssl genrsa -out {} 2048", key.display()))
        .unwrap_or_else(|error| panic!("{error}"));
    let mut command = Command::new(program);
    command
        .args(["--etcd-servers", ETCD])
        .args(["--bind-address", &ADDRESS.to_string()])
        .args(["--advertise-address", "192.0.2.1"])
        .args(["--secure-port", "6443"])
        .args(["--cert-dir", &file(&directory.join("certificates"))])
        .args(["--token-auth-file", &file(&tokens)])
        .args(["--authorization-mode", "RBAC"])
        .args(["--service-cluster-ip-range", "10.96.0.0/12"])
        .args(["--service-account-issuer", "https://kubernetes.default.svc"])
        .args(["--service-account-key-file", &file(&key)])
        .args(["--service-account-signing-key-file", &file(&key)])
        // Without a controller nobody makes the account that it would ask for.
        .args(["--disable-admission-plugins", "ServiceAccount"]);
    started(&mut command, &directory.join("peer.log"), 6443)
}

/// Starts a program, and waits until it listens.
fn started(command: &mut Command, log: &Path, port: u16) -> Child {
    let output = File::create(log).unwrap_or_else(|error| panic!("{error}"));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(output)
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let deadline = Instant::now() + START;
    while TcpStream::connect((ADDRESS, port)).is_err() {
        let over = Instant::now() >= deadline || !matches!(child.try_wait(), Ok(None));
        assert!(!over, "{command:?} does not serve: see {}", log.display());
        std::thread::sleep(Duration::from_millis(50));
    }
    child
}
