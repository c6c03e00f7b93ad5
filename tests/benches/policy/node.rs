//! A node with its pods, and their policies as the agent compiles and writes them.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use agent_ebpf::abi::{ABI_VERSION, LinkIndex, TCP, maps as names};
use aya::maps::MapInfo;
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions, loaded_programs};
use ipnet::{IpNet, Ipv4Net};
use kernelet::cluster::ObjectKey;
use kernelet::dataplane::{self, Config, MapSizes, PodLinks, PolicyMaps, PolicyTables as _};
use kernelet::network::PodNetwork as _;
use kernelet::network::addresses::veth_name;
use kernelet::network::pods::{Settings, VethNetwork};
use kernelet::network::ranges::Ranges;
use kernelet::policy::compile::{Local, LocalLink, compile};
use kernelet::policy::state::PolicyState;
use kernelet::policy::types::{Block, Labels, Peer, Pod as PolicyPod, Policy, Ports, Rule, Which};
use kernelet::policy::view::View;
use kernelet_tests::host;
use kube::core::Expression;

use super::PREFIX;
use super::common::client::{self, BACKEND_PORT};
use super::common::{index_of, line};

const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The link for which the kernel runs a program that is tried: the loopback.
const TRIED: LinkIndex = LinkIndex(1);
/// The address of the pod that stands for it.
const TRIED_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 244, 9, 9);
const NAMESPACE: &str = "shop";

/// A pod's namespace, and its address.
pub struct Pod {
    pub netns: String,
    pub address: Ipv4Addr,
}

/// What a program is tried with.
#[derive(Clone, Copy, Debug)]
pub enum Packet {
    /// Asks for a connection.
    First,
    /// Belongs to one.
    Later,
}

pub struct Node {
    pub client: Pod,
    /// One for each number of rules.
    pub servers: Vec<Pod>,
    rules: Vec<u32>,
    maps: RefCell<(PolicyMaps, PolicyState)>,
}

/// Where programs of the agent's are pinned.
pub fn bpf_directory() -> PathBuf {
    PathBuf::from("/sys/fs/bpf").join(PREFIX)
}

fn maps_directory() -> PathBuf {
    bpf_directory().join(format!("v{ABI_VERSION}"))
}

fn netns() -> String {
    format!("{PREFIX}-node")
}

impl Node {
    pub fn new(rules: &[u32]) -> Node {
        let node = netns();
        line(format!("ip netns add {node}"));
        line(format!("ip -n {node} link set lo up"));
        // The node's own network, which nobody else is in.
        line(format!("ip -n {node} link add eth0 type bridge"));
        line(format!("ip -n {node} address add {NODE}/24 dev eth0"));
        line(format!("ip -n {node} link set eth0 up"));
        let pods = std::iter::once("client".to_owned())
            .chain(rules.iter().map(|rules| format!("rules-{rules}")));
        let pods: Vec<String> = pods.map(|name| format!("{PREFIX}-{name}")).collect();
        for netns in &pods {
            line(format!("ip netns add {netns}"));
            line(format!("ip -n {netns} link set lo up"));
        }
        connect(&node, &pods);
        let pods = pods.into_iter().enumerate().map(|(index, netns)| Pod {
            netns,
            address: address(index),
        });
        let mut pods: Vec<Pod> = pods.collect();
        let maps = PolicyMaps::open(&maps_directory()).unwrap_or_else(|error| panic!("{error}"));
        let state = PolicyState::adopt(maps.dump().unwrap_or_else(|error| panic!("{error}")));
        let servers = pods.split_off(1);
        let node = Node {
            client: pods.remove(0),
            servers,
            rules: rules.to_vec(),
            maps: RefCell::new((maps, state)),
        };
        node.load(0);
        node
    }

    /// Writes the policies of all pods; the pod that is tried gets that of the server with so many rules.
    pub fn load(&self, tried: u32) {
        let wanted = compile(&self.view(tried), &self.local());
        let (maps, state) = &mut *self.maps.borrow_mut();
        let mut write = |state: &mut PolicyState, ops: Vec<_>| {
            for op in ops {
                maps.apply(&op).unwrap_or_else(|error| panic!("{error}"));
                state.done(&op);
            }
        };
        let ops = state.plan(&wanted);
        write(state, ops.into_iter().collect());
        let ops = state.collect(|link| wanted.pods.contains_key(link));
        write(state, ops.into_iter().collect());
    }

    /// How long the program takes that sees what goes to a pod.
    pub fn run(&self, packet: Packet, times: u32) -> Duration {
        let bytes = segment(self.client.address, packet);
        let run = move |packet: &[u8], times| {
            let run = program("kn_pod_in").test_run(TestRunOptions {
                data_in: Some(packet),
                ctx_in: Some(&from_a_link()),
                repeat: times,
                ..TestRunOptions::default()
            });
            let run = run.unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(run.return_value, u32::MAX, "the packet passes");
            run.duration
        };
        let first = segment(self.client.address, Packet::First);
        let tried = move || {
            // Whatever is tried, the conversation is known.
            run(&first, 1);
            run(&bytes, times)
        };
        host::in_netns(&host::netns_path(&netns()), tried).unwrap_or_else(|error| panic!("{error}"))
    }

    fn view(&self, tried: u32) -> View {
        let key = |name: &str| ObjectKey::new(NAMESPACE, name);
        let pod = |rules: u32, address: Ipv4Addr, link: String| {
            Arc::new(PolicyPod {
                labels: labels(rules),
                ports: Arc::new([]),
                addresses: vec![address.into()],
                created: 0,
                link: Some(link.into()),
            })
        };
        let own = self.rules.iter().zip(&self.servers);
        let mut pods: BTreeMap<_, _> = own
            .map(|(rules, it)| {
                (
                    key(&it.netns),
                    pod(*rules, it.address, veth_name(&it.netns)),
                )
            })
            .collect();
        pods.insert(key("tried"), pod(tried, TRIED_ADDRESS, "lo".into()));
        let with_policy = self.rules.iter().filter(|rules| **rules > 0);
        let policies = with_policy.map(|rules| {
            let policy = policy(*rules, self.client.address);
            (key(&format!("rules-{rules}")), Arc::new(policy))
        });
        View {
            policies: policies.collect(),
            namespaces: [(NAMESPACE.into(), Labels::default())].into(),
            pods,
            complete: true,
            ..View::default()
        }
    }

    fn local(&self) -> Local {
        let link = |index, address: Ipv4Addr| LocalLink {
            index,
            addresses: vec![address.into()],
        };
        let mut links: BTreeMap<Box<str>, LocalLink> = BTreeMap::new();
        for pod in &self.servers {
            let name = veth_name(&pod.netns);
            let index = LinkIndex(index_of(&netns(), &name));
            links.insert(name.into(), link(index, pod.address));
        }
        links.insert("lo".into(), link(TRIED, TRIED_ADDRESS));
        Local {
            links,
            node: BTreeSet::from([NODE.into()]),
        }
    }
}

fn labels(rules: u32) -> Labels {
    Arc::new([("rules".to_owned(), rules.to_string())].into())
}

/// Ranges that a policy's rules are about; each comes with one port after the other.
const RANGES: u32 = 100;

/// Lets ranges in at ports, a range and a port a rule. The client, in the middle, may call the servers.
fn policy(rules: u32, client: Ipv4Addr) -> Policy {
    let rule = |n: u32| {
        let (range, port) = (n % RANGES, BACKEND_PORT + (n / RANGES) as u16);
        let first = u32::from(Ipv4Addr::new(100, 64, 0, 0));
        let range = match range == rules.min(RANGES) / 2 {
            true => Ipv4Net::from(client),
            false => Ipv4Net::from(Ipv4Addr::from(first + range)),
        };
        Rule {
            peers: Some(vec![Peer::Block(Block {
                range: IpNet::V4(range),
                except: vec![],
            })]),
            ports: Some(vec![Ports {
                protocol: TCP,
                which: Which::Range(port, port),
            }]),
        }
    };
    Policy {
        pods: Expression::Equal("rules".to_owned(), rules.to_string()).into(),
        ingress: Some((0..rules).map(rule).collect()),
        egress: None,
    }
}

fn address(index: usize) -> Ipv4Addr {
    let host = u8::try_from(index + 2).expect("few pods");
    Ipv4Addr::new(10, 244, 1, host)
}

/// A segment of the client's to the pod that is tried, for the link itself.
fn segment(client: Ipv4Addr, packet: Packet) -> Vec<u8> {
    let flags = match packet {
        Packet::First => 0x02,
        Packet::Later => 0x10,
    };
    let mut bytes = vec![0; 12];
    bytes.extend([8, 0, 0x45, 0, 0, 40, 0, 7, 0x40, 0, 64, TCP, 0, 0]);
    bytes.extend(client.octets());
    bytes.extend(TRIED_ADDRESS.octets());
    bytes.extend(40_000_u16.to_be_bytes());
    bytes.extend(BACKEND_PORT.to_be_bytes());
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 1, 1, 0, 0, 0, 0]);
    bytes
}

/// The beginning of a `struct __sk_buff` of a packet that came in by some link: what the node itself sends, policies let
/// pass.
fn from_a_link() -> [u8; 40] {
    let mut context = [0; 40];
    context[36..40].copy_from_slice(&7_u32.to_ne_bytes());
    context
}

/// The program of that name which reads this node's maps.
fn program(name: &'static str) -> SchedClassifier {
    let map = MapInfo::from_pin(maps_directory().join(names::POLICY_PODS));
    let map = map.expect("the map is pinned").id();
    let info = loaded_programs().flatten().find(|program| {
        let used = program.map_ids().ok().flatten().unwrap_or_default();
        program.name_as_str() == Some(name) && used.contains(&map)
    });
    let info = info.unwrap_or_else(|| panic!("{name} is loaded"));
    SchedClassifier::from_program_info(info, name.into()).unwrap_or_else(|error| panic!("{error}"))
}

/// What the agent does when it and the pods start.
fn connect(node: &str, pods: &[String]) {
    let cgroup = client::cgroup(PREFIX, "node");
    host::create_dir(&cgroup).unwrap_or_else(|error| panic!("{error}"));
    let probe = dataplane::probe(Some(&cgroup)).unwrap_or_else(|error| panic!("{error}"));
    let config = Config {
        bpf_dir: bpf_directory(),
        cgroup,
        sizes: MapSizes::default(),
    };
    let attach = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let dataplane = dataplane::start(&config, &probe);
            let dataplane = dataplane.unwrap_or_else(|error| panic!("{error}"));
            let guard = PodLinks::new(dataplane.link_programs, &dataplane.dir);
            let guard = guard.unwrap_or_else(|error| panic!("{error}"));
            let settings = Settings {
                ranges: Ranges::new(["10.244.1.0/24".parse().expect("a range")]).expect("one"),
                node_ips: vec![NODE.into()],
                mtu: None,
            };
            let network = VethNetwork::set_up(settings).await;
            let network = network.unwrap_or_else(|error| panic!("{error}"));
            let network = network.guarded_by(Arc::new(guard)).await;
            let network = network.unwrap_or_else(|error| panic!("{error}"));
            for (index, netns) in pods.iter().enumerate() {
                let given = network.attach(netns, &host::netns_path(netns)).await;
                let given = given.unwrap_or_else(|error| panic!("{error}"));
                assert_eq!(given, [IpAddr::from(address(index))]);
            }
        });
    };
    host::in_netns(&host::netns_path(node), attach).unwrap_or_else(|error| panic!("{error}"));
}
