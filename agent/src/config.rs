//! What the agent is told: paths, addresses and names. One declared table of flags, each also an environment variable.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::Args;

use crate::cluster::Locality;
use crate::dataplane::DEFAULT_SERVICES;

/// Where the agent keeps what it needs only while it runs.
pub const DEFAULT_RUN_DIR: &str = "/run/kernelet";
/// Where the agent keeps what has to outlive a reboot.
pub const DEFAULT_ROOT_DIR: &str = "/var/lib/kernelet";
/// Where the programs and maps are pinned.
pub const DEFAULT_BPF_DIR: &str = "/sys/fs/bpf/kernelet";
/// Below which path of every cgroup hierarchy the pods' cgroups are.
pub const DEFAULT_CGROUP_PARENT: &str = "/";
/// Where containerd listens.
pub const DEFAULT_CONTAINERD: &str = "/run/containerd/containerd.sock";

/// More would be gigabytes of kernel memory for the tables' indexes alone.
pub const MOST_SERVICES: i64 = 4_000_000;

/// What `kernelet run` is told.
#[derive(Args, Clone, Debug)]
pub struct AgentConfig {
    /// Kubeconfig with which to reach the API server [default: ROOT_DIR/kubeconfig, which `kernelet join` writes]
    #[arg(long, env = "KERNELET_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Name of this node [default: the host name]
    #[arg(long, env = "KERNELET_NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// Address at which other nodes reach this one [default: the one from which it reaches the API server]
    #[arg(long, env = "KERNELET_NODE_IP", value_name = "ADDRESS")]
    pub node_ip: Option<IpAddr>,
    /// Labels of the Node object, as KEY=VALUE,…
    #[arg(long, env = "KERNELET_NODE_LABELS", value_name = "LABELS", value_delimiter = ',', value_parser = label)]
    pub node_labels: Vec<(String, String)>,
    /// Directory for pods, logs, images and credentials
    #[arg(long, env = "KERNELET_ROOT_DIR", value_name = "DIR", default_value = DEFAULT_ROOT_DIR)]
    pub root_dir: PathBuf,
    /// Directory for namespaces and the socket that the other commands ask
    #[arg(long, env = "KERNELET_RUN_DIR", value_name = "DIR", default_value = DEFAULT_RUN_DIR)]
    pub run_dir: PathBuf,
    /// Directory on a BPF file system for programs and maps
    #[arg(long, env = "KERNELET_BPF_DIR", value_name = "DIR", default_value = DEFAULT_BPF_DIR)]
    pub bpf_dir: PathBuf,
    /// cgroup v2 directory that the service programs attach to [default: where cgroup v2 is mounted]
    #[arg(long, env = "KERNELET_CGROUP_ROOT", value_name = "DIR")]
    pub cgroup_root: Option<PathBuf>,
    /// Path, below the root of every cgroup hierarchy, under which the pods' cgroups go, in `kubepods`
    #[arg(
        long,
        env = "KERNELET_CGROUP_PARENT",
        value_name = "PATH",
        default_value = DEFAULT_CGROUP_PARENT
    )]
    pub cgroup_parent: PathBuf,
    /// containerd's socket
    #[arg(
        long,
        env = "KERNELET_CONTAINERD",
        value_name = "SOCKET",
        default_value = DEFAULT_CONTAINERD
    )]
    pub containerd: PathBuf,
    /// Where connections to a service go first if neither its trafficDistribution nor its annotation kernelet.io/locality
    /// says it
    #[arg(
        long,
        env = "KERNELET_LOCALITY",
        value_name = "WHERE",
        value_enum,
        default_value_t
    )]
    pub locality: Locality,
    /// Service ports that the maps have room for, with two backends each. Another number takes effect like an upgrade
    #[arg(
        long,
        env = "KERNELET_MAX_SERVICES",
        value_name = "N",
        default_value_t = DEFAULT_SERVICES,
        value_parser = clap::value_parser!(u32).range(1..=MOST_SERVICES)
    )]
    pub max_services: u32,
    /// Domain under which services have their names
    #[arg(
        long,
        env = "KERNELET_CLUSTER_DOMAIN",
        value_name = "DOMAIN",
        default_value = "cluster.local"
    )]
    pub cluster_domain: String,
    /// Only route services, in the place of kube-proxy: no pods, no DNS, no writes of the Node. Needs of the API server
    /// what upstream's cluster role system:node-proxier allows
    #[arg(long, env = "KERNELET_PROXY_ONLY")]
    pub proxy_only: bool,
    /// Where metrics are served with --proxy-only
    #[arg(
        long,
        env = "KERNELET_METRICS_BIND_ADDRESS",
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:10249"
    )]
    pub metrics_bind_address: SocketAddr,
    /// Where load balancers ask for the node's health with --proxy-only
    #[arg(
        long,
        env = "KERNELET_HEALTHZ_BIND_ADDRESS",
        value_name = "ADDRESS:PORT",
        default_value = "0.0.0.0:10256"
    )]
    pub healthz_bind_address: SocketAddr,
}

impl AgentConfig {
    /// The kubeconfig to use.
    pub fn kubeconfig(&self) -> PathBuf {
        self.kubeconfig
            .clone()
            .unwrap_or_else(|| self.root_dir.join("kubeconfig"))
    }

    /// The node's name: what was said, else the host's.
    pub fn node_name(&self) -> String {
        self.node_name.clone().unwrap_or_else(host_name)
    }

    /// The labels; of one that was said twice, the last.
    pub fn labels(&self) -> BTreeMap<String, String> {
        self.node_labels.iter().cloned().collect()
    }

    /// The socket on which the agent answers the other commands.
    pub fn socket(&self) -> PathBuf {
        socket_in(&self.run_dir)
    }
}

/// The introspection socket of the agent whose run directory is `run_dir`.
pub fn socket_in(run_dir: &Path) -> PathBuf {
    run_dir.join("kernelet.sock")
}

/// The host's name as a node may bear it: lower case.
pub fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .to_lowercase()
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not KEY=VALUE")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        config: AgentConfig,
    }

    fn parse(flags: &[&str]) -> Result<AgentConfig, clap::Error> {
        Command::try_parse_from(["run"].iter().chain(flags)).map(|command| command.config)
    }

    #[test]
    fn flags_follow_the_root_directory() {
        let config = parse(&[
            "--root-dir",
            "/srv/k",
            "--run-dir",
            "/tmp/r",
            "--node-name",
            "n1",
        ])
        .unwrap();
        assert_eq!(config.kubeconfig(), Path::new("/srv/k/kubeconfig"));
        assert_eq!(config.socket(), Path::new("/tmp/r/kernelet.sock"));
        assert_eq!(config.node_name(), "n1");
        assert_eq!(config.locality, Locality::Node);
        let config = parse(&["--locality", "zone"]).unwrap();
        assert_eq!(config.locality, Locality::Zone);
        assert!(parse(&["--locality", "planet"]).is_err());
    }

    #[test]
    fn labels_are_pairs() {
        let config = parse(&["--node-labels", "topology.kubernetes.io/zone=z1,disk="]).unwrap();
        let expected = [("disk", ""), ("topology.kubernetes.io/zone", "z1")];
        assert_eq!(
            config.labels(),
            expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into()
        );
        let error = parse(&["--node-labels", "zone"]).err().unwrap().to_string();
        assert!(error.contains("is not KEY=VALUE"), "{error}");
    }
}
