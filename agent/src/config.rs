//! What the agent is told: paths, addresses and names. One declared table of flags, each also an environment variable.

mod configz;
mod housekeeping;
mod shutdown;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::Args;
use ipnet::IpNet;

use crate::cluster::Locality;
use crate::dataplane::{DEFAULT_CONNECTIONS, DEFAULT_SERVICES};
use crate::network::node_addresses::NodePortAddresses;
use crate::network::tunnel::{DEFAULT_PORT, DEFAULT_VNI};
use crate::network::xdp::Xdp;
use crate::node::reserve::{KeptBack, Reserved};
use crate::pod::sysctls::Allowed;

pub use configz::KUBELET_PORT;
pub use housekeeping::HousekeepingConfig;
pub use shutdown::ShutdownConfig;

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

/// More would be gigabytes of kernel memory.
pub const MOST_CONNECTIONS: i64 = 8_000_000;

/// What `kernelet run` is told.
#[derive(Args, Clone, Debug)]
pub struct AgentConfig {
    /// Kubeconfig with which to reach the API server [default: ROOT_DIR/kubeconfig, which `kernelet join` writes]
    #[arg(long, env = "KERNELET_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Name of this node [default: the host name]
    #[arg(long, env = "KERNELET_NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// Address at which other nodes reach this one, or one of each family with a comma between, the primary one first
    /// [default: the one from which it reaches the API server]
    #[arg(long, env = "KERNELET_NODE_IP", value_name = "ADDRESS[,ADDRESS]", value_parser = node_ips)]
    pub node_ip: Option<NodeIps>,
    /// The largest packet of a pod, in bytes [default: what the node's link takes]
    #[arg(long, env = "KERNELET_POD_MTU", value_name = "BYTES", value_parser = clap::value_parser!(u32).range(68..=65_535))]
    pub pod_mtu: Option<u32>,
    /// Whether pods' packets go past the node's routes where that makes no difference to them. Rules of iptables and nft on the
    /// node do not see them then
    #[arg(long, env = "KERNELET_POD_FAST_PATH", value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub pod_fast_path: bool,
    /// UDP port of the VXLAN tunnel between nodes that share no link; the same on all nodes
    #[arg(long, env = "KERNELET_VXLAN_PORT", value_name = "PORT", default_value_t = DEFAULT_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    pub vxlan_port: u16,
    /// Network identifier in that tunnel's packets
    #[arg(long, env = "KERNELET_VXLAN_ID", value_name = "ID", default_value_t = DEFAULT_VNI, value_parser = clap::value_parser!(u32).range(1..1 << 24))]
    pub vxlan_id: u32,
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
    /// Addresses of this node at which node ports are answered: CIDR,…, or `primary` for the Node object's [default: all that
    /// other machines reach]
    #[arg(
        long,
        env = "KERNELET_NODEPORT_ADDRESSES",
        value_name = "CIDRS",
        value_delimiter = ','
    )]
    pub nodeport_addresses: Vec<NodePortAddresses>,
    /// Ports that node ports are among, as the API server has it
    #[arg(
        long,
        env = "KERNELET_SERVICE_NODE_PORT_RANGE",
        value_name = "FIRST-LAST",
        default_value = "30000-32767",
        value_parser = port_range
    )]
    pub service_node_port_range: (u16, u16),
    /// Destinations outside of the cluster that see pods' own addresses, not the node's: those that have routes to pods. All,
    /// with 0.0.0.0/0,::/0
    #[arg(
        long,
        env = "KERNELET_MASQUERADE_EXEMPT",
        value_name = "CIDR",
        value_delimiter = ','
    )]
    pub masquerade_exempt: Vec<IpNet>,
    /// Connections from outside, and of pods to the world, that the maps have room for, 352 bytes each. When they are full
    /// the longest idle give way. Another number takes effect like an upgrade
    #[arg(
        long,
        env = "KERNELET_MAX_CONNECTIONS",
        value_name = "N",
        default_value_t = DEFAULT_CONNECTIONS,
        value_parser = clap::value_parser!(u32).range(1..=MOST_CONNECTIONS)
    )]
    pub max_connections: u32,
    /// At which links to other machines packets that only pass through the node, to a service's backend on another one and
    /// back, are sent on before the network stack sees them: rules of iptables or nft do not see them either
    #[arg(
        long,
        env = "KERNELET_XDP",
        value_name = "WHERE",
        value_enum,
        default_value_t
    )]
    pub xdp: Xdp,
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
    /// Leave network policies to another program. Unless told so, the agent needs to list and watch NetworkPolicies,
    /// Namespaces and Pods of the whole cluster, and closes new pods until it could
    #[arg(long, env = "KERNELET_IGNORE_NETWORK_POLICIES")]
    pub ignore_network_policies: bool,
    /// Directory of files each of which is a pod that the node runs whatever the API says; the API shows a mirror of it
    #[arg(long, env = "KERNELET_POD_MANIFEST_PATH", value_name = "DIR")]
    pub pod_manifest_path: Option<PathBuf>,
    /// Kernel parameters that pods may set for their own namespaces beyond the safe ones: NAME or PREFIX*,…
    #[arg(
        long,
        env = "KERNELET_ALLOWED_UNSAFE_SYSCTLS",
        value_name = "NAMES",
        value_delimiter = ','
    )]
    pub allowed_unsafe_sysctls: Vec<Allowed>,
    /// Pods that the node takes at most
    #[arg(
        long,
        env = "KERNELET_MAX_PODS",
        value_name = "N",
        default_value_t = 110
    )]
    pub max_pods: u32,
    /// Processes and threads that each pod may have; -1 for as many as the node
    #[arg(
        long,
        env = "KERNELET_POD_MAX_PIDS",
        value_name = "N",
        default_value_t = -1,
        allow_negative_numbers = true
    )]
    pub pod_max_pids: i64,
    /// What the machine's own programs are to have, and pods not: cpu=AMOUNT,memory=AMOUNT,ephemeral-storage=AMOUNT
    #[arg(
        long,
        env = "KERNELET_SYSTEM_RESERVED",
        value_name = "RESOURCE=AMOUNT,…",
        default_value = ""
    )]
    pub system_reserved: Reserved,
    /// The same for the programs of Kubernetes on the node
    #[arg(
        long,
        env = "KERNELET_KUBE_RESERVED",
        value_name = "RESOURCE=AMOUNT,…",
        default_value = ""
    )]
    pub kube_reserved: Reserved,
    #[command(flatten)]
    pub housekeeping: HousekeepingConfig,
    #[command(flatten)]
    pub shutdown: ShutdownConfig,
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

    /// What is not for pods.
    pub fn kept_back(&self) -> KeptBack {
        KeptBack {
            reserved: self.system_reserved.and(self.kube_reserved),
            eviction: self.housekeeping.eviction_hard.clone(),
            max_pods: self.max_pods,
        }
    }

    /// How many processes and threads each pod may have, where that is limited.
    pub fn pod_max_pids(&self) -> Option<u64> {
        let most = u64::try_from(self.pod_max_pids).ok();
        most.filter(|most| *most > 0)
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

/// A node's addresses, as `--node-ip` names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeIps(pub Vec<IpAddr>);

fn node_ips(text: &str) -> Result<NodeIps, String> {
    let parse = |text: &str| {
        let address = text.trim().parse::<IpAddr>();
        let address = address.map_err(|_| format!("{text:?} is no IP address"))?;
        let usable = !address.is_unspecified() && !address.is_multicast();
        // Other nodes would have to know on which of their links it is.
        let link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        match usable && !link_local {
            true => Ok(address),
            false => Err(format!(
                "{address} is no address at which other nodes reach this one"
            )),
        }
    };
    let addresses: Vec<IpAddr> = text.split(',').map(parse).collect::<Result<_, _>>()?;
    match *addresses {
        [_] => Ok(NodeIps(addresses)),
        [first, second] if first.is_ipv4() != second.is_ipv4() => Ok(NodeIps(addresses)),
        _ => Err("give one address, or one of IPv4 and one of IPv6".to_owned()),
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not KEY=VALUE")),
    }
}

fn port_range(text: &str) -> Result<(u16, u16), String> {
    let parse = |(first, last): (&str, &str)| Some((first.parse().ok()?, last.parse().ok()?));
    let range = text.split_once('-').and_then(parse);
    range
        .filter(|(first, last)| 0 < *first && first <= last)
        .ok_or_else(|| format!("{text:?} is not FIRST-LAST, ports from 1 to 65535"))
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
        let configz = config.configz();
        assert_eq!(configz["clusterDomain"], "cluster.local");
        assert_eq!(
            configz["containerRuntimeEndpoint"],
            "unix:///run/containerd/containerd.sock"
        );
    }

    #[test]
    fn node_ports_have_a_range_and_addresses() {
        let config = parse(&[]).unwrap();
        assert_eq!(config.service_node_port_range, (30_000, 32_767));
        assert!(config.nodeport_addresses.is_empty());
        let config = parse(&[
            "--service-node-port-range",
            "80-8080",
            "--nodeport-addresses",
            "primary,10.0.0.0/8",
        ]);
        let config = config.unwrap();
        assert_eq!(config.service_node_port_range, (80, 8080));
        assert_eq!(config.nodeport_addresses.len(), 2);
        for wrong in ["30000", "2-1", "0-9", "1-65536"] {
            assert!(parse(&["--service-node-port-range", wrong]).is_err());
        }
        assert!(parse(&["--nodeport-addresses", "eth0"]).is_err());
    }

    #[test]
    fn a_node_has_one_address_of_each_family_at_most() {
        let addresses = |text| parse(&["--node-ip", text]).map(|config| config.node_ip.unwrap().0);
        let parsed = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let dual: Vec<IpAddr> = parsed(&["2001:db8::1", "192.0.2.1"]);
        assert_eq!(addresses("2001:db8::1,192.0.2.1").unwrap(), dual);
        assert_eq!(addresses("192.0.2.1").unwrap(), dual[1..]);
        for (text, why) in [
            ("192.0.2.1,192.0.2.2", "one of IPv4 and one of IPv6"),
            (
                "192.0.2.1,2001:db8::1,2001:db8::2",
                "one of IPv4 and one of IPv6",
            ),
            ("fe80::1", "no address at which other nodes reach this one"),
            ("::", "no address at which other nodes reach this one"),
            ("worker", "is no IP address"),
        ] {
            let error = addresses(text).err().unwrap().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn thresholds_have_the_kubelets_defaults_and_make_sense_together() {
        let config = parse(&[]).unwrap();
        assert_eq!(config.housekeeping.rules().unwrap().thresholds.len(), 5);
        let configz = config.configz();
        assert_eq!(configz["evictionHard"]["memory.available"], "100Mi");
        assert_eq!(configz["evictionHard"]["imagefs.available"], "15%");
        assert_eq!(configz["evictionPressureTransitionPeriod"], "5m0s");
        assert_eq!(configz["imageGCHighThresholdPercent"], 85);
        let none = parse(&["--eviction-hard", ""]).unwrap();
        assert!(none.housekeeping.rules().unwrap().thresholds.is_empty());
        let soft = ["--eviction-soft", "memory.available<1Gi"];
        assert!(parse(&soft).unwrap().housekeeping.rules().is_err());
        let low = ["--image-gc-low-threshold", "85"];
        assert!(parse(&low).unwrap().housekeeping.image_rules().is_err());
        assert!(parse(&["--eviction-hard", "disk<1"]).is_err());
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
