//! The maps as a person looks at them: how full each is, and its rows, decoded and raw.

use std::fmt::Debug;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use agent_ebpf::abi::pods::{Mac, Passed, PodTarget, PodTraffic};
use agent_ebpf::abi::{
    Address, AffinityEntry, AffinityKey, BackendEntry, BackendId, BackendStats, CONNECTION_DIRECT,
    CONNECTION_FORMER, CONNECTION_UNCHANGED, Connection, DropReason, FLAG_DIRECT_RETURN,
    FLAG_HOST_PORT, FLAG_LOCAL_ONLY, FLAG_MAGLEV, FLAG_SOURCE_RANGES, FlowKey, FragmentKey,
    FragmentPorts, LinkIndex, MAGLEV_CHUNK, MAGLEV_SIZE_SHIFT, MAGLEV_SIZES, MaglevChunk,
    MaglevKey, Member, PodEntry, Port, ReverseEntry, ReverseKey, SHARE_ONE, Scope, ServiceKey,
    ServiceRow, ServiceStats, Side, SlotKey, SocketEntry, SocketKey, SourceRange, TCP, UDP,
    UplinkEntry, XDP_LINK_TAKES, XdpLink, host_port_bit, maps as names,
};
use aya::Pod;
use aya::maps::lpm_trie::Key;
use aya::maps::{IterableMap as _, MapData, MapError as AyaError, MapInfo, MapType, PerCpuHashMap};
use aya::util::nr_cpus;

use super::SourcePrefix;
use super::load::STAGES;
use super::maps::{MapError, Maps, SumUp, read};
use super::sys::count_rows;

/// One map and how full it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapSummary {
    pub name: &'static str,
    /// The kernel's map type, `Hash`, `LruHash` …
    pub kind: String,
    pub entries: u32,
    pub max_entries: u32,
    pub pin: PathBuf,
}

/// One row of a map. Per-CPU values are summed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapRow {
    pub map: &'static str,
    pub key: String,
    pub value: String,
    pub raw_key: Vec<u8>,
    pub raw_value: Vec<u8>,
}

impl Maps {
    /// Every map with its fill.
    pub fn summaries(&self) -> Result<Vec<MapSummary>, MapError> {
        names::ALL
            .into_iter()
            .map(|name| self.summary(name))
            .collect()
    }

    fn summary(&self, name: &'static str) -> Result<MapSummary, MapError> {
        let entries = match name {
            names::SERVICES => count(self.services.map()),
            names::BACKEND_TABLE => count(self.slots.map()),
            names::BACKENDS => count(self.backends.map()),
            names::SOCKETS => count(self.sockets.map()),
            names::SOCK_REVERSE => count(self.reverse.map()),
            names::AFFINITY => count(self.affinity.map()),
            names::STATS => count(self.stats.map()),
            names::OUTSIDE_OPENS => count(self.outside_opens.map()),
            names::SERVICE_STATS => count(self.service_stats.map()),
            names::NODE_ADDRESSES => count(self.node_addresses.map()),
            names::HOST_PORTS => Ok(self.marked_host_ports()?.len() as u32),
            names::STAGES => Ok(STAGES.len() as u32),
            names::SERVICE_PORTS => Ok(self.marked_service_ports()?),
            names::TRANSLATING => Ok(self.translating()?.len() as u32),
            names::MAGLEV => count(self.maglev.map()),
            names::SOURCE_RANGES => count(self.source_ranges.map()),
            names::PODS => count(self.pods.map()),
            names::POD_ADDRESSES => count(self.pod_addresses.map()),
            names::POD_TRAFFIC => count(self.pod_traffic.map()),
            names::UPLINKS => count(self.uplinks.map()),
            names::XDP_LINKS => count(self.xdp_links.map()),
            names::CONNECTIONS => count(self.connections.map()),
            names::FRAGMENTS => count(self.fragments.map()),
            names::EXEMPT => count(self.exempt.map()),
            names::NEAR => count(self.near.map()),
            names::FORMERS => count(self.formers.map()),
            names::POLICY_PODS => count(self.policy.pods.map()),
            names::POLICY_RULES => count(self.policy.rules.map()),
            names::POLICY_FLOWS => count(self.policy.flows.map()),
            names::IDENTITIES => count(self.policy.identities.map()),
            names::POLICY_GENERATION => Ok(1),
            names::POLICY_DROPS => Ok(0),
            names::CONFIG | names::EVENTS_LOST | names::POD_RANGES => Ok(1),
            names::DROPS => Ok(DropReason::ALL.len() as u32),
            // Records pass through it; none stays.
            names::EVENTS => Ok(0),
            other => {
                return Err(MapError::Unknown {
                    name: other.to_owned(),
                });
            }
        };
        let pin = self.dir.join(name);
        let info = MapInfo::from_pin(&pin).map_err(|source| MapError::Open {
            path: pin.clone(),
            source,
        })?;
        let kind = info.map_type().map_err(|source| read(name, source))?;
        Ok(MapSummary {
            name,
            kind: format!("{kind:?}"),
            entries: entries.map_err(|source| read(name, source))?,
            max_entries: info.max_entries(),
            pin,
        })
    }

    /// Every row of the map called `name`, in the map's own order.
    pub fn rows(&self, name: &str) -> Result<Vec<MapRow>, MapError> {
        match name {
            names::SERVICES => table(names::SERVICES, self.services.iter()),
            names::BACKEND_TABLE => table(names::BACKEND_TABLE, self.slots.iter()),
            names::BACKENDS => table(names::BACKENDS, self.backends.iter()),
            names::SOCK_REVERSE => table(names::SOCK_REVERSE, self.reverse.iter()),
            names::AFFINITY => table(names::AFFINITY, self.affinity.iter()),
            names::STATS => per_cpu(names::STATS, &self.stats),
            names::OUTSIDE_OPENS => per_cpu(names::OUTSIDE_OPENS, &self.outside_opens),
            names::SERVICE_STATS => per_cpu(names::SERVICE_STATS, &self.service_stats),
            names::SOCKETS => table(names::SOCKETS, self.sockets.iter()),
            names::NODE_ADDRESSES => table(names::NODE_ADDRESSES, self.node_addresses.iter()),
            names::HOST_PORTS => {
                let marked = self.marked_host_ports()?.into_iter();
                let row = |port: u16| MapRow {
                    map: names::HOST_PORTS,
                    key: port.to_string(),
                    value: "a pod's".to_owned(),
                    raw_key: bytes(&host_port_bit(port.to_be_bytes()).0),
                    raw_value: bytes(&host_port_bit(port.to_be_bytes()).1),
                };
                Ok(marked.map(row).collect())
            }
            names::SERVICE_PORTS => {
                let marked = self.marked_service_ports()?;
                let text = format!("{marked} ports of TCP and UDP");
                Ok(vec![only_row(names::SERVICE_PORTS, text, &marked)])
            }
            names::TRANSLATING => {
                let links = self.translating()?.into_iter();
                let row = |link: u32| MapRow {
                    map: names::TRANSLATING,
                    key: format!("link {link}"),
                    value: "packets to services are translated at the link".to_owned(),
                    raw_key: bytes(&link),
                    raw_value: bytes(&1_u32),
                };
                Ok(links.map(row).collect())
            }
            names::MAGLEV => table(names::MAGLEV, self.maglev.iter()),
            names::SOURCE_RANGES => table(names::SOURCE_RANGES, self.source_ranges.iter()),
            names::PODS => table(names::PODS, self.pods.iter()),
            names::POD_ADDRESSES => table(names::POD_ADDRESSES, self.pod_addresses.iter()),
            names::POD_TRAFFIC => per_cpu(names::POD_TRAFFIC, &self.pod_traffic),
            names::UPLINKS => table(names::UPLINKS, self.uplinks.iter()),
            names::XDP_LINKS => table(names::XDP_LINKS, self.xdp_links.iter()),
            names::CONNECTIONS => table(names::CONNECTIONS, self.connections.iter()),
            names::FRAGMENTS => table(names::FRAGMENTS, self.fragments.iter()),
            names::EXEMPT => table(names::EXEMPT, self.exempt.iter()),
            names::NEAR => table(names::NEAR, self.near.iter()),
            names::FORMERS => table(names::FORMERS, self.formers.iter()),
            names::POLICY_PODS => table(names::POLICY_PODS, self.policy.pods.iter()),
            names::POLICY_RULES => table(names::POLICY_RULES, self.policy.rules.iter()),
            names::POLICY_FLOWS => table(names::POLICY_FLOWS, self.policy.flows.iter()),
            names::IDENTITIES => table(names::IDENTITIES, self.policy.identities.iter()),
            names::POLICY_GENERATION => {
                let generation = self.policy.generation()?;
                let text = format!("generation {generation}");
                Ok(vec![only_row(names::POLICY_GENERATION, text, &generation)])
            }
            // Nothing that says more than that they are there.
            names::POLICY_DROPS | names::STAGES => Ok(Vec::new()),
            names::DROPS => {
                let drops = self.drops()?.into_iter();
                Ok(drops
                    .map(|(reason, count)| MapRow {
                        map: names::DROPS,
                        key: reason.name().to_owned(),
                        value: format!("{count} packets"),
                        raw_key: bytes(&(reason as u32)),
                        raw_value: bytes(&count),
                    })
                    .collect())
            }
            names::POD_RANGES => {
                let row = self.pod_ranges.get(&0, 0);
                let row = row.map_err(|source| read(names::POD_RANGES, source))?;
                let v4 = Ipv4Addr::from(u32::from_be(row.ipv4));
                let v6 = Address::from_words(row.ipv6);
                let length =
                    |words: &[u32]| words.iter().map(|word| word.count_ones()).sum::<u32>();
                let text = format!(
                    "{v4}/{} {v6}/{}",
                    length(&[row.ipv4_mask]),
                    length(&row.ipv6_mask)
                );
                Ok(vec![only_row(names::POD_RANGES, text, &row)])
            }
            names::CONFIG => {
                let config = self.config.get(&0, 0);
                let config = config.map_err(|source| read(names::CONFIG, source))?;
                let text = format!("one in {} sockets is recorded", config.sample_every);
                Ok(vec![only_row(names::CONFIG, text, &config)])
            }
            names::EVENTS_LOST => {
                let lost = self.events_lost()?;
                let text = format!("{lost} records found the ring full");
                Ok(vec![only_row(names::EVENTS_LOST, text, &lost)])
            }
            names::EVENTS => Ok(Vec::new()),
            other => Err(MapError::Unknown {
                name: other.to_owned(),
            }),
        }
    }
}

/// How many rows a hash map or a trie has.
fn count(map: &MapData) -> Result<u32, AyaError> {
    let info = map.info()?;
    let key_size = info.key_size() as usize;
    let value_size = info.value_size() as usize;
    let per_cpu = matches!(
        info.map_type()?,
        MapType::PerCpuHash | MapType::LruPerCpuHash
    );
    let value_size = if per_cpu {
        let cpus = nr_cpus().map_err(|(_, error)| AyaError::IoError(error))?;
        value_size.next_multiple_of(8) * cpus
    } else {
        value_size
    };
    count_rows(map.fd().as_fd(), key_size, value_size).map_err(AyaError::IoError)
}

fn table<K: Pod + Show, V: Pod + Show>(
    name: &'static str,
    pairs: impl Iterator<Item = Result<(K, V), AyaError>>,
) -> Result<Vec<MapRow>, MapError> {
    let rows = pairs.map(|pair| pair.map(|(k, v)| row(name, &k, &v)));
    rows.collect::<Result<_, _>>()
        .map_err(|source| read(name, source))
}

fn per_cpu<K, V>(
    name: &'static str,
    map: &PerCpuHashMap<MapData, K, V>,
) -> Result<Vec<MapRow>, MapError>
where
    K: Pod + Show,
    V: Pod + Show + super::maps::Sum,
{
    let rows = map
        .iter()
        .map(|pair| pair.map(|(k, cpus)| row(name, &k, &cpus.iter().copied().sum_up())));
    rows.collect::<Result<_, _>>()
        .map_err(|source| read(name, source))
}

pub(super) fn present<T>(
    name: &'static str,
    result: Result<T, AyaError>,
) -> Result<Option<T>, MapError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(AyaError::KeyNotFound) => Ok(None),
        Err(source) => Err(read(name, source)),
    }
}

pub(super) fn row<K: Pod + Show, V: Pod + Show>(map: &'static str, key: &K, value: &V) -> MapRow {
    MapRow {
        map,
        key: key.show(),
        value: value.show(),
        raw_key: bytes(key),
        raw_value: bytes(value),
    }
}

/// The only row of an array.
fn only_row<V: Pod>(map: &'static str, value: String, raw: &V) -> MapRow {
    MapRow {
        map,
        key: "0".to_owned(),
        value,
        raw_key: bytes(&0_u32),
        raw_value: bytes(raw),
    }
}

fn bytes<T: Pod>(value: &T) -> Vec<u8> {
    // SAFETY: the ABI's `Pod` types have no padding, so every byte is initialized, and the slice ends with the value.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast::<u8>(), size_of::<T>()) }
        .to_vec()
}

/// Text for people.
pub(super) trait Show {
    fn show(&self) -> String;
}

pub(super) fn endpoint(address: Address, port: Port) -> String {
    SocketAddr::from((address.to_ip(), u16::from_be_bytes(port))).to_string()
}

fn protocol(number: u8) -> String {
    match number {
        TCP => "TCP".to_owned(),
        UDP => "UDP".to_owned(),
        1 => "ICMP".to_owned(),
        58 => "ICMPv6".to_owned(),
        other => format!("protocol {other}"),
    }
}

impl Show for ServiceKey {
    fn show(&self) -> String {
        let scope = match self.scope {
            Scope::EXTERNAL => " from outside",
            _ => "",
        };
        format!(
            "{} {}{scope}",
            endpoint(self.address, self.port),
            protocol(self.protocol)
        )
    }
}

impl Show for Address {
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Show for LinkIndex {
    fn show(&self) -> String {
        format!("link {}", self.0)
    }
}

impl Show for PodEntry {
    fn show(&self) -> String {
        let addresses = [self.ipv4, self.ipv6].into_iter();
        let own = addresses.filter(|address| *address != PodEntry::NONE);
        let own: Vec<String> = own.map(|address| address.to_string()).collect();
        format!("pod {}", own.join(" "))
    }
}

impl Show for XdpLink {
    fn show(&self) -> String {
        let [a, b, c, d, e, f] = self.mac;
        let takes = match self.flags & XDP_LINK_TAKES {
            0 => "",
            _ => ", sends what came in by others",
        };
        format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}{takes}")
    }
}

impl Show for PodTarget {
    fn show(&self) -> String {
        let mac = |mac: &Mac| mac.map(|byte| format!("{byte:02x}")).join(":");
        let (pod, node) = (mac(&self.pod_mac), mac(&self.node_mac));
        format!("link {}, pod {pod}, node {node}", self.link.0)
    }
}

impl Show for PodTraffic {
    fn show(&self) -> String {
        let of = |passed: &Passed| format!("{} packets, {} bytes", passed.packets, passed.bytes);
        format!("sent {}, received {}", of(&self.sent), of(&self.received))
    }
}

impl Show for UplinkEntry {
    fn show(&self) -> String {
        let addresses = [self.ipv4, self.ipv6].into_iter();
        let own = addresses.filter(|address| *address != PodEntry::NONE);
        let own: Vec<String> = own.map(|address| address.to_string()).collect();
        format!("as {}", own.join(" "))
    }
}

impl Show for FlowKey {
    fn show(&self) -> String {
        let side = match self.side {
            Side::IN => "in",
            Side::OUT => "out",
            Side::FROM_POD => "from pod",
            _ => "to pod",
        };
        format!(
            "{side} {} {} -> {}",
            protocol(self.protocol),
            endpoint(self.source, self.source_port),
            endpoint(self.destination, self.destination_port)
        )
    }
}

impl Show for Connection {
    fn show(&self) -> String {
        let to = format!(
            "{} -> {}",
            endpoint(self.source, self.source_port),
            endpoint(self.destination, self.destination_port)
        );
        let whose = match (self.service_id, self.backend) {
            (0, _) if self.kind & CONNECTION_UNCHANGED != 0 => "unchanged".to_owned(),
            (0, _) => "masqueraded".to_owned(),
            (service, BackendId(0)) => format!("service {service}, refused"),
            (service, backend) => format!("service {service}, {}", backend.show()),
        };
        let whose = match self.kind & (CONNECTION_DIRECT | CONNECTION_FORMER) {
            0 => whose,
            CONNECTION_DIRECT => format!("{whose}, whose node answers"),
            _ => format!("{whose}, opened by the node that had the address before"),
        };
        let seconds = self.last_seen_ns / 1_000_000_000;
        format!("{to}, {whose}, last seen {seconds} s after boot")
    }
}

impl Show for FragmentKey {
    fn show(&self) -> String {
        format!(
            "{} {} -> {}, identification {}",
            protocol(self.protocol),
            self.source,
            self.destination,
            self.identification
        )
    }
}

impl Show for FragmentPorts {
    fn show(&self) -> String {
        let [from, to] = [self.source, self.destination].map(u16::from_be_bytes);
        format!("ports {from} -> {to}")
    }
}

impl Show for Key<Address> {
    fn show(&self) -> String {
        let (address, bits) = (self.data(), self.prefix_len());
        let length = address.as_v4().map_or(bits, |_| bits.saturating_sub(96));
        format!("{address}/{length}")
    }
}

impl Show for Member {
    fn show(&self) -> String {
        String::new()
    }
}

impl Show for MaglevKey {
    fn show(&self) -> String {
        format!(
            "service {} generation {} from {}",
            self.service_id,
            self.generation,
            self.chunk as usize * MAGLEV_CHUNK
        )
    }
}

impl Show for MaglevChunk {
    fn show(&self) -> String {
        let ids = self.0.map(|id| id.0.to_string());
        format!("backends {}", ids.join(" "))
    }
}

impl Show for Key<SourceRange> {
    fn show(&self) -> String {
        let prefix = SourcePrefix::from(Key::new(self.prefix_len(), self.data()));
        format!("service {}: {prefix}", prefix.service_id())
    }
}

impl Show for ServiceRow {
    fn show(&self) -> String {
        let e = &self.entry;
        let share = f64::from(e.local_share) / f64::from(SHARE_ONE);
        let mut text = format!(
            "service {} generation {}: {} local, {} zone, {} ready, {} terminating, local share {share:.3}",
            e.service_id, e.generation, e.local, e.zone, e.ready, e.terminating
        );
        if e.affinity_timeout_s > 0 {
            text += &format!(", affinity {} s", e.affinity_timeout_s);
        }
        for (flag, name) in [
            (FLAG_LOCAL_ONLY, "local only"),
            (FLAG_SOURCE_RANGES, "source ranges"),
            (FLAG_DIRECT_RETURN, "direct return"),
            (FLAG_HOST_PORT, "host port"),
        ] {
            if e.flags & flag != 0 {
                text += &format!(", {name}");
            }
        }
        if e.flags & FLAG_MAGLEV != 0 {
            let size = (e.flags >> MAGLEV_SIZE_SHIFT) as usize % MAGLEV_SIZES.len();
            text += &format!(", Maglev of {}", MAGLEV_SIZES[size]);
        }
        text
    }
}

impl Show for SlotKey {
    fn show(&self) -> String {
        format!(
            "service {} generation {} slot {}",
            self.service_id, self.generation, self.slot
        )
    }
}

impl Show for BackendId {
    fn show(&self) -> String {
        format!("backend {}", self.0)
    }
}

impl Show for u32 {
    fn show(&self) -> String {
        format!("service {self}")
    }
}

impl Show for BackendEntry {
    fn show(&self) -> String {
        format!(
            "{} {}",
            endpoint(self.address, self.port),
            protocol(self.protocol)
        )
    }
}

impl Show for SocketKey {
    fn show(&self) -> String {
        format!("socket {}", self.0)
    }
}

impl Show for SocketEntry {
    fn show(&self) -> String {
        let backend = endpoint(self.backend_address, self.backend_port);
        format!("to {backend}, {}", self.service.show())
    }
}

impl Show for ReverseKey {
    fn show(&self) -> String {
        format!(
            "socket {} to {}",
            self.cookie.0,
            endpoint(self.address, self.port)
        )
    }
}

impl Show for ReverseEntry {
    fn show(&self) -> String {
        let dialled = endpoint(self.address, self.port);
        format!(
            "dialled {dialled}, service {}, backend {}",
            self.service_id, self.backend.0
        )
    }
}

impl Show for AffinityKey {
    fn show(&self) -> String {
        format!(
            "service {} client netns {}",
            self.service_id, self.netns_cookie
        )
    }
}

impl Show for AffinityEntry {
    fn show(&self) -> String {
        let seconds = self.last_use_ns / 1_000_000_000;
        format!(
            "backend {}, last used {seconds} s after boot",
            self.backend.0
        )
    }
}

impl Show for BackendStats {
    fn show(&self) -> String {
        format!(
            "{} opens, {} active, {} failed, {} bytes sent, {} received",
            self.opens,
            self.opens.saturating_sub(self.closes),
            self.failures,
            self.bytes_sent,
            self.bytes_received,
        )
    }
}

impl Show for u64 {
    fn show(&self) -> String {
        format!("{self} opens")
    }
}

impl Show for ServiceStats {
    fn show(&self) -> String {
        format!(
            "{} refused for want of a backend, {} holes",
            self.no_backend, self.hole
        )
    }
}
