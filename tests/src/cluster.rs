//! Bringing a cluster up, finding it again, and taking it down.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::command::output;
use crate::host::{self, create_dir, netns_path};
use crate::links::Links;
use crate::process::Process;
use crate::sweep::{Residue, sweep};
use crate::{Error, Result};

/// How long a part may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(30);
/// When a node is short of something: how full the machine's disk is says nothing about the code.
const SHORT: &str = "memory.available<100Mi,nodefs.available<1%,imagefs.available<1%";
/// What containerd's CRI runs to hold a sandbox's namespaces, where one is asked for: Kernelet never does.
pub const PAUSE: &str = "docker.io/library/pause:v0.0.1";
/// How long a part may take to end before it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// What kind of cluster is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// First part of every name that the cluster gives. At most six characters, for the sake of link names.
    pub prefix: String,
    /// Third byte of the nodes' addresses, `172.30.N.0/24`: clusters that run at the same time need different ones.
    pub subnet: u8,
    pub workers: u8,
    /// Where its data, logs and kubeconfig go.
    pub directory: PathBuf,
    /// Where `kernelet` and `kernelet-control-plane` are.
    pub binaries: PathBuf,
    /// OCI archives that every worker is given.
    pub images: Vec<PathBuf>,
    /// More arguments for `kernelet-control-plane`.
    pub control_plane_args: Vec<String>,
    /// More arguments for `kernelet run`.
    pub agent_args: Vec<String>,
    /// Of what nodes, pods and services have addresses. The nodes' IPv6 addresses are in `fd72:30:N::/64`.
    #[serde(default)]
    pub families: Families,
    /// So many of the workers, the last ones, are on a second link, `172.31.N.0/24`, behind a router.
    #[serde(default)]
    pub far: u8,
}

/// The families of a cluster's addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Families {
    #[default]
    V4,
    /// IPv4 first.
    Dual,
    /// Nothing is told of the machines' IPv4 addresses.
    V6,
}

impl Families {
    /// Where pods and services get their addresses, as `kernelet-control-plane` is told.
    fn ranges(self) -> &'static [&'static str] {
        match self {
            Families::V4 => &[],
            Families::Dual => &[
                "--pod-cidr",
                "10.244.0.0/16,fd00:10:244::/48",
                "--service-cidr",
                "10.96.0.0/12,fd00:10:96::/108",
            ],
            Families::V6 => &[
                "--pod-cidr",
                "fd00:10:244::/48",
                "--service-cidr",
                "fd00:10:96::/108",
            ],
        }
    }
}

impl Spec {
    /// A cluster for a scenario, with the sample application's images.
    pub fn scenario(prefix: &str, subnet: u8, workers: u8) -> Spec {
        Spec {
            prefix: prefix.to_owned(),
            subnet,
            workers,
            directory: target().join("scenarios").join(prefix),
            binaries: binaries(),
            images: ["frontend", "backend"]
                .map(|name| target().join(format!("images/{name}.tar")))
                .into(),
            control_plane_args: Vec::new(),
            agent_args: Vec::new(),
            families: Families::V4,
            far: 0,
        }
    }

    fn links(&self) -> Links<'_> {
        Links {
            prefix: &self.prefix,
            subnet: self.subnet,
            with_v6: self.families != Families::V4,
        }
    }

    fn run_directory(&self) -> PathBuf {
        Path::new("/run").join(&self.prefix)
    }

    fn bpf_directory(&self) -> PathBuf {
        Path::new("/sys/fs/bpf").join(&self.prefix)
    }

    fn sweep(&self) -> Result<()> {
        let directories = [
            self.run_directory(),
            self.bpf_directory(),
            self.directory.clone(),
        ];
        sweep(&Residue {
            prefix: &self.prefix,
            directories: &directories,
        })
    }
}

/// The workspace's `target` directory.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || {
            Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("../target")
                .components()
                .collect()
        },
        PathBuf::from,
    )
}

/// Where `cargo xtask build` puts the programs.
pub fn binaries() -> PathBuf {
    target().join("release")
}

/// Finds a program as a shell would.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}

/// What a node is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    ControlPlane,
    Worker,
}

/// A long-running program of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Program {
    ControlPlane,
    Containerd,
    Agent,
}

impl Program {
    /// The name of its executable and of its log.
    pub fn name(self) -> &'static str {
        match self {
            Program::ControlPlane => "kernelet-control-plane",
            Program::Containerd => "containerd",
            Program::Agent => "kernelet",
        }
    }
}

/// One machine of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub name: String,
    pub role: Role,
    pub address: Ipv4Addr,
    /// In a cluster with IPv6.
    #[serde(default)]
    pub address_v6: Option<Ipv6Addr>,
    /// Its network namespace, by `ip netns` name.
    pub netns: String,
    /// Its cgroup, from the root of every hierarchy, without a leading slash.
    pub cgroup: String,
    /// Sockets and pins.
    pub run_directory: PathBuf,
    /// Data and logs.
    pub directory: PathBuf,
    /// The programs that were started, whether or not they still run.
    pub processes: BTreeMap<Program, Process>,
}

impl Node {
    /// A command that will run in the node's network namespace.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        let mut net = std::ffi::OsString::from("--net=");
        net.push(netns_path(&self.netns));
        command.arg(net).arg(program);
        command
    }

    /// Runs `work` on a thread in the node's network namespace.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        host::in_netns(&netns_path(&self.netns), work)
    }

    /// Runs `work` on a thread in the network namespace of one of its pods.
    pub fn inside_pod<T: Send>(&self, uid: &str, work: impl FnOnce() -> T + Send) -> Result<T> {
        host::in_netns(&self.agent_run_directory().join("netns").join(uid), work)
    }

    /// The socket of its containerd.
    pub fn containerd_socket(&self) -> PathBuf {
        self.run_directory.join("containerd.sock")
    }

    /// The directory of the agent's sockets and pins.
    pub fn agent_run_directory(&self) -> PathBuf {
        self.run_directory.join("kernelet")
    }

    /// Where its containerd looks for network plugins, `bin`, and for which to use, `net.d`: Kernelet's pods need none.
    pub fn cni_directory(&self) -> PathBuf {
        self.directory.join("cni")
    }

    fn root_directory(&self) -> PathBuf {
        self.directory.join("kernelet")
    }

    fn log(&self, program: &str) -> PathBuf {
        self.directory.join(format!("{program}.log"))
    }

    /// Where its long-running programs are, and what they start outside of pods.
    pub fn system_cgroup(&self) -> Result<PathBuf> {
        Ok(host::cgroup2_mount()?.join(&self.cgroup).join("system"))
    }

    fn spawn(&mut self, program: Program, command: &Command) -> Result<()> {
        let cgroup = self.system_cgroup()?;
        create_dir(&cgroup)?;
        let process = Process::spawn(
            command,
            &netns_path(&self.netns),
            &cgroup,
            &self.log(program.name()),
        )?;
        self.processes.insert(program, process);
        Ok(())
    }

    /// Waits until `ready` says yes; a program that ended before is an error that shows its last words.
    fn await_start(&self, program: Program, mut ready: impl FnMut() -> bool) -> Result<()> {
        let log = self.log(program.name());
        let deadline = Instant::now() + START_LIMIT;
        while !ready() {
            let alive = self.processes.get(&program).is_some_and(Process::alive);
            if !alive {
                return Err(Error::Unexpected(format!(
                    "{} on {} ended: {}",
                    program.name(),
                    self.name,
                    last_line(&log)
                )));
            }
            if Instant::now() > deadline {
                return Err(Error::Timeout {
                    what: format!("the start of {} on {}", program.name(), self.name),
                    seconds: START_LIMIT.as_secs(),
                    hint: format!("see {}", log.display()),
                });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

fn last_line(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines()
        .next_back()
        .unwrap_or("it said nothing")
        .to_owned()
}

/// A running cluster, or one that ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    pub spec: Spec,
    pub nodes: Vec<Node>,
}

impl Cluster {
    /// Removes what an earlier run of the prefix left, then brings everything up. `progress` hears of each step.
    pub fn up(spec: Spec, mut progress: impl FnMut(&str)) -> Result<Cluster> {
        spec.sweep()?;
        create_dir(&spec.directory)?;
        let mut cluster = Cluster {
            nodes: Vec::new(),
            spec,
        };
        let result = cluster.start_all(&mut progress);
        if let Err(error) = result {
            // The logs are worth more than a clean directory; the next run removes them.
            for node in &cluster.nodes {
                for process in node.processes.values() {
                    process.stop(STOP_LIMIT)?;
                }
            }
            return Err(error);
        }
        Ok(cluster)
    }

    fn start_all(&mut self, progress: &mut dyn FnMut(&str)) -> Result<()> {
        progress("network");
        self.spec.links().create_near()?;
        if self.spec.far > 0 {
            self.spec.links().create_far()?;
        }
        self.add_node("control-plane", "cp", Role::ControlPlane, 10)?;
        for number in 1..=self.spec.workers {
            self.add_node(
                &format!("worker-{number}"),
                &format!("w{number}"),
                Role::Worker,
                10 + number,
            )?;
        }
        self.save()?;

        progress("control plane");
        self.start(0, Program::ControlPlane)?;
        self.write_kubeconfig()?;

        for index in 1..self.nodes.len() {
            progress(&self.nodes[index].name.clone());
            self.start(index, Program::Containerd)?;
            self.give_images(index)?;
            self.join(index)?;
            self.start(index, Program::Agent)?;
        }
        progress("nodes to be Ready");
        self.await_registration()?;
        output(self.kubectl().args([
            "wait",
            "--for=condition=Ready",
            "node",
            "--all",
            "--timeout=30s",
        ]))?;
        Ok(())
    }

    /// Waits until every worker has a Node object: waiting for all nodes that are there does not wait for those to come.
    fn await_registration(&self) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let nodes = output(self.kubectl().args(["get", "nodes", "-o", "name"]))?;
            if nodes.lines().count() >= usize::from(self.spec.workers) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Error::Timeout {
                    what: "the registration of the nodes".into(),
                    seconds: START_LIMIT.as_secs(),
                    hint: format!("only these came: {nodes}"),
                });
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn add_node(&mut self, name: &str, short: &str, role: Role, host: u8) -> Result<()> {
        let prefix = &self.spec.prefix;
        let links = self.spec.links();
        let is_far = host > 10 + self.spec.workers.saturating_sub(self.spec.far);
        let node = Node {
            name: name.to_owned(),
            role,
            address: links.v4(is_far, host),
            address_v6: links.v6(is_far, host),
            netns: format!("{prefix}-{name}"),
            cgroup: format!("{prefix}/{name}"),
            run_directory: self.spec.run_directory().join(name),
            directory: self.spec.directory.join(name),
            processes: BTreeMap::new(),
        };
        let with_router = self.spec.far > 0;
        links.attach(&node.netns, short, is_far, with_router, host)?;
        create_dir(&node.run_directory)?;
        create_dir(&node.directory)?;
        self.nodes.push(node);
        Ok(())
    }

    /// Starts a program of a node and waits until it answers. For the agent that is its introspection socket.
    pub fn start(&mut self, index: usize, program: Program) -> Result<()> {
        let command = self.command(index, program)?;
        let url = self.server();
        let node = &mut self.nodes[index];
        node.spawn(program, &command)?;
        match program {
            Program::ControlPlane => {
                let kubeconfig = node.directory.join("data/admin.kubeconfig");
                let address = (node.address, 6443);
                let log = node.log(program.name());
                node.await_start(program, || {
                    kubeconfig.exists()
                        && std::net::TcpStream::connect_timeout(
                            &address.into(),
                            Duration::from_secs(1),
                        )
                        .is_ok()
                })
                .map_err(|error| match error {
                    Error::Timeout { what, seconds, .. } => Error::Timeout {
                        what,
                        seconds,
                        hint: format!("{url} does not answer; see {}", log.display()),
                    },
                    other => other,
                })?;
            }
            Program::Containerd => {
                let socket = node.containerd_socket();
                node.await_start(program, || {
                    output(
                        Command::new("ctr")
                            .arg("--address")
                            .arg(&socket)
                            .arg("version"),
                    )
                    .is_ok()
                })?;
            }
            Program::Agent => {
                let socket = node.agent_run_directory().join("kernelet.sock");
                node.await_start(program, || {
                    std::os::unix::net::UnixStream::connect(&socket).is_ok()
                })?;
            }
        }
        self.save()
    }

    fn command(&self, index: usize, program: Program) -> Result<Command> {
        let node = &self.nodes[index];
        let binary = self.spec.binaries.join(program.name());
        Ok(match program {
            Program::ControlPlane => {
                let mut command = Command::new(binary);
                command.arg("--data-dir").arg(node.directory.join("data"));
                let addresses = self.addresses(node);
                let listen = match addresses[0] {
                    IpAddr::V4(_) => "0.0.0.0:6443",
                    IpAddr::V6(_) => "[::]:6443",
                };
                command.args(["--listen", listen]);
                command.args(["--advertise-address", &addresses[0].to_string()]);
                command.args(self.spec.families.ranges());
                command.args(&self.spec.control_plane_args);
                command
            }
            Program::Containerd => {
                let config = node.directory.join("containerd.toml");
                host::write(&config, containerd_config(node))?;
                let mut command = Command::new("containerd");
                command.arg("--config").arg(config);
                command
            }
            Program::Agent => {
                let mut command = Command::new(binary);
                command.arg("run");
                let addresses = self.addresses(node);
                let texts: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
                let node_ip = texts.join(",");
                command
                    .arg("--kubeconfig")
                    .arg(node.root_directory().join("kubeconfig"));
                command.args(["--node-name", &node.name, "--node-ip", &node_ip]);
                command.arg("--root-dir").arg(node.root_directory());
                command.arg("--run-dir").arg(node.agent_run_directory());
                command
                    .arg("--bpf-dir")
                    .arg(self.spec.bpf_directory().join(&node.name));
                command
                    .arg("--cgroup-root")
                    .arg(host::cgroup2_mount()?.join(&node.cgroup));
                command
                    .arg("--cgroup-parent")
                    .arg(format!("/{}", node.cgroup));
                command.arg("--containerd").arg(node.containerd_socket());
                command.args(["--eviction-hard", SHORT]);
                command.args(&self.spec.agent_args);
                command
            }
        })
    }

    fn give_images(&self, index: usize) -> Result<()> {
        let directory = self.nodes[index].root_directory().join("images");
        create_dir(&directory)?;
        for image in &self.spec.images {
            let name = image
                .file_name()
                .ok_or_else(|| Error::Unexpected(format!("{} is no file", image.display())))?;
            let target = directory.join(name);
            std::fs::copy(image, &target).map_err(|source| Error::File {
                path: image.clone(),
                source,
            })?;
        }
        Ok(())
    }

    fn join(&self, index: usize) -> Result<()> {
        let data = self.nodes[0].directory.join("data");
        let token = host::read(data.join("join-token"))?;
        let node = &self.nodes[index];
        let mut command = node.command(self.spec.binaries.join("kernelet"));
        command.args([
            "join",
            &self.server(),
            "--token",
            token.trim(),
            "--node-name",
            &node.name,
        ]);
        command.arg("--ca-file").arg(data.join("pki/ca.crt"));
        command.arg("--root-dir").arg(node.root_directory());
        output(&mut command)?;
        Ok(())
    }

    /// Kills a program of a node with a signal and waits until it has gone.
    pub fn kill(&mut self, node: &str, program: Program, signal: Signal) -> Result<()> {
        let node = self.node(node)?;
        let process = node.processes.get(&program).ok_or_else(|| {
            Error::Unexpected(format!(
                "{} was never started on {}",
                program.name(),
                node.name
            ))
        })?;
        process.signal(signal)?;
        if process.wait(STOP_LIMIT) {
            return Ok(());
        }
        Err(Error::Timeout {
            what: format!("the end of {} on {}", program.name(), node.name),
            seconds: STOP_LIMIT.as_secs(),
            hint: format!("see {}", process.log.display()),
        })
    }

    /// Starts a program of a named node again.
    pub fn restart(&mut self, node: &str, program: Program) -> Result<()> {
        let index = self.index(node)?;
        self.start(index, program)
    }

    /// A node by name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        Ok(&self.nodes[self.index(name)?])
    }

    fn index(&self, name: &str) -> Result<usize> {
        self.nodes
            .iter()
            .position(|node| node.name == name)
            .ok_or_else(|| {
                let names: Vec<&str> = self.nodes.iter().map(|node| node.name.as_str()).collect();
                Error::Unexpected(format!(
                    "there is no node {name}; there are {}",
                    names.join(", ")
                ))
            })
    }

    /// The nodes that run pods.
    pub fn workers(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.role == Role::Worker)
    }

    /// `kernelet` on a node, talking to the agent there.
    pub fn kernelet(&self, node: &Node) -> Command {
        let mut command = node.command(self.spec.binaries.join("kernelet"));
        command.env("KERNELET_RUN_DIR", node.agent_run_directory());
        command
    }

    /// The API server's address.
    pub fn server(&self) -> String {
        let address = SocketAddr::new(self.addresses(&self.nodes[0])[0], 6443);
        format!("https://{address}")
    }

    /// What Kernelet is told of a node's addresses, the primary one first.
    fn addresses(&self, node: &Node) -> Vec<IpAddr> {
        let v4 = Some(IpAddr::from(node.address));
        let v4 = v4.filter(|_| self.spec.families != Families::V6);
        let v6 = node.address_v6.map(IpAddr::from);
        v4.into_iter().chain(v6).collect()
    }

    /// The administrator's kubeconfig; works from the host.
    pub fn kubeconfig(&self) -> PathBuf {
        self.spec.directory.join("kubeconfig")
    }

    /// Stock kubectl, as the administrator.
    pub fn kubectl(&self) -> Command {
        let mut command = Command::new("kubectl");
        command.env("KUBECONFIG", self.kubeconfig());
        // Discovery is cached by server address, which the next cluster of this prefix will have too.
        command
            .arg("--cache-dir")
            .arg(self.spec.directory.join("kubectl-cache"));
        command
    }

    fn write_kubeconfig(&self) -> Result<()> {
        let source = self.nodes[0].directory.join("data/admin.kubeconfig");
        std::fs::copy(&source, self.kubeconfig()).map_err(|error| Error::File {
            path: source,
            source: error,
        })?;
        Ok(())
    }

    /// Resident memory, in bytes, of every program that runs.
    pub fn resident(&self) -> Vec<(String, &'static str, u64)> {
        let mut rows = Vec::new();
        for node in &self.nodes {
            for (program, process) in &node.processes {
                if let Some(bytes) = process.resident() {
                    rows.push((node.name.clone(), program.name(), bytes));
                }
            }
        }
        rows
    }

    fn save(&self) -> Result<()> {
        let text = serde_json::to_vec_pretty(self)
            .map_err(|error| Error::Unexpected(error.to_string()))?;
        host::write(state_file(&self.spec.directory), text)
    }

    /// The cluster that was brought up in a directory, if there is one.
    pub fn open(directory: &Path) -> Result<Option<Cluster>> {
        let path = state_file(directory);
        if !path.exists() {
            return Ok(None);
        }
        let text = host::read(&path)?;
        serde_json::from_str(&text).map(Some).map_err(|error| {
            Error::Unexpected(format!(
                "{} is not a cluster's state: {error}; remove it",
                path.display()
            ))
        })
    }

    /// Ends every program and removes everything that the cluster made.
    pub fn down(self) -> Result<()> {
        for program in [Program::Agent, Program::ControlPlane] {
            for node in &self.nodes {
                if let Some(process) = node.processes.get(&program) {
                    process.stop(STOP_LIMIT)?;
                }
            }
        }
        self.spec.sweep()
    }
}

fn state_file(directory: &Path) -> PathBuf {
    directory.join("cluster.json")
}

fn containerd_config(node: &Node) -> String {
    let (root, state, socket) = (
        node.directory.join("containerd"),
        node.run_directory.join("containerd"),
        node.containerd_socket(),
    );
    format!(
        r#"version = 2
root = "{root}"
state = "{state}"
oom_score = 0

[grpc]
  address = "{socket}"

[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  disable_tcp_service = true
  sandbox_image = "{PAUSE}"

[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{cni}/bin"
  conf_dir = "{cni}/net.d"
"#,
        cni = node.cni_directory().display(),
        root = root.display(),
        state = state.display(),
        socket = socket.display(),
    )
}
