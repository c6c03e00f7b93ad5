//! Bringing a cluster up, finding it again, and taking it down.

mod node;
mod spec;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::command::output;
use crate::host::{self, create_dir};
use crate::{Error, Result};

use self::node::START_LIMIT;
pub use self::node::{Node, Program, Role};
pub use self::spec::{Families, Spec};

/// When a node is short of something: how full the machine's disk is says nothing about the code.
const SHORT: &str = "memory.available<100Mi,nodefs.available<1%,imagefs.available<1%";
/// What containerd's CRI runs to hold a sandbox's namespaces, where one is asked for: Kernelet never does.
pub const PAUSE: &str = "docker.io/library/pause:v0.0.1";
/// How long a part may take to end before it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(10);

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
