//! The maps. User space pins them by name and may give the tables other sizes when it creates them.
//!
//! Tables that user space fills are allocated row by row, so an idle node pays for what it has. LRU maps are allocated
//! whole, so they are small.

use agent_ebpf::abi::pods::{PodTarget, PodTraffic};
use agent_ebpf::abi::policy::{self, FlowRow, IdentityRow, PodRow, PolicyDrop, RuleKey};
use agent_ebpf::abi::{
    Address, AffinityEntry, AffinityKey, BackendEntry, BackendId, BackendStats, Connection,
    DROP_COUNTERS, FlowEvent, FlowKey, FragmentKey, FragmentPorts, HOST_PORT_WORDS, LinkIndex,
    MaglevChunk, MaglevKey, Member, PodEntry, PodRanges, ProgramConfig, ReverseEntry, ReverseKey,
    SERVICE_PORT_WORDS, ServiceKey, ServiceRow, ServiceStats, SlotKey, SocketEntry, SocketKey,
    SourceRange, TRANSLATING_LINKS, UplinkEntry, XdpLink,
};
use agent_ebpf::nat::Work;
use agent_ebpf::policy::Window;
use agent_ebpf::router;
use aya_ebpf::Global;
use aya_ebpf::btf_maps::{
    Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, ProgramArray, RingBuf,
};
use aya_ebpf::macros::btf_map;

/// `BPF_F_NO_PREALLOC`
const BY_ROW: usize = 1;

#[btf_map]
pub(crate) static SERVICES: HashMap<ServiceKey, ServiceRow, 32_768, BY_ROW> = HashMap::new();

#[btf_map]
pub(crate) static BACKEND_TABLE: HashMap<SlotKey, BackendId, 131_072, BY_ROW> = HashMap::new();

#[btf_map]
pub(crate) static BACKENDS: HashMap<BackendId, BackendEntry, 65_536, BY_ROW> = HashMap::new();

/// The addresses of this node at which node ports are answered.
#[btf_map]
pub(crate) static NODE_ADDRESSES: HashMap<Address, Member, 1_024, BY_ROW> = HashMap::new();

/// A bit for each port that pods have as a host port, of whatever protocol.
#[btf_map]
pub(crate) static HOST_PORTS: Array<u64, { HOST_PORT_WORDS as usize }> = Array::new();

/// A bit for each port of TCP and of UDP at which sockets in the cluster find a service somewhere. Those of services that
/// are gone may stay.
#[btf_map]
pub(crate) static SERVICE_PORTS: Array<u64, { SERVICE_PORT_WORDS as usize }> = Array::new();

/// Not 0 for pods' links at which packets to services were translated.
#[btf_map]
pub(crate) static TRANSLATING: Array<u32, { TRANSLATING_LINKS as usize }> = Array::new();

/// Programs that others go on in. Pinned, as it loses them when nobody has it open.
#[btf_map]
pub(crate) static STAGES: ProgramArray<2> = ProgramArray::new();

/// From which ranges this node's pods have their addresses.
#[btf_map]
pub(crate) static POD_RANGES: Array<PodRanges, 1> = Array::new();

#[btf_map]
pub(crate) static MAGLEV: HashMap<MaglevKey, MaglevChunk, 65_536, BY_ROW> = HashMap::new();

#[btf_map]
pub(crate) static SOURCE_RANGES: LpmTrie<SourceRange, Member, 16_384> = LpmTrie::new();

/// The pods of this node, by the links that lead to them.
#[btf_map]
pub(crate) static PODS: HashMap<LinkIndex, PodEntry, 4_096, BY_ROW> = HashMap::new();

/// Where the pods of this node are, by their addresses. A pod without a row is reached by the kernel's routes.
#[btf_map]
pub(crate) static POD_ADDRESSES: HashMap<Address, PodTarget, 8_192, BY_ROW> = HashMap::new();

/// What passed the links of pods.
#[btf_map]
pub(crate) static POD_TRAFFIC: PerCpuHashMap<LinkIndex, PodTraffic, 4_096, BY_ROW> =
    PerCpuHashMap::new();

/// Which rules hold for the pods of this node.
#[btf_map]
pub(crate) static POLICY_PODS: HashMap<LinkIndex, PodRow, 4_096, BY_ROW> = HashMap::new();

#[btf_map]
pub(crate) static POLICY_RULES: LpmTrie<RuleKey, Member, 262_144> = LpmTrie::new();

#[btf_map]
pub(crate) static IDENTITIES: LpmTrie<Address, IdentityRow, 262_144> = LpmTrie::new();

/// As of which generation those three are read.
#[btf_map]
pub(crate) static POLICY_GENERATION: Array<u32, 1> = Array::new();

/// Conversations of isolated pods.
#[btf_map]
pub(crate) static POLICY_FLOWS: LruHashMap<policy::FlowKey, FlowRow, 65_536> = LruHashMap::new();

/// Bytes; about 1,000 records.
#[btf_map]
pub(crate) static POLICY_DROPS: RingBuf<PolicyDrop, { 64 * 1024 }> = RingBuf::new();

/// Packets dropped, by `DropReason`.
#[btf_map]
pub(crate) static DROPS: PerCpuArray<u64, { DROP_COUNTERS as usize }> = PerCpuArray::new();

/// The links by which packets come from other machines and go to them.
#[btf_map]
pub(crate) static UPLINKS: HashMap<LinkIndex, UplinkEntry, 1_024, BY_ROW> = HashMap::new();

/// Those of them where packets are sent on before the network stack sees them.
#[btf_map]
pub(crate) static XDP_LINKS: HashMap<LinkIndex, XdpLink, 1_024, BY_ROW> = HashMap::new();

/// Translated connections, two rows each.
#[btf_map]
pub(crate) static CONNECTIONS: LruHashMap<FlowKey, Connection, 131_072> = LruHashMap::new();

/// Ports of packets that come in fragments.
#[btf_map]
pub(crate) static FRAGMENTS: LruHashMap<FragmentKey, FragmentPorts, 4_096> = LruHashMap::new();

/// Destinations that see pods' own addresses.
#[btf_map]
pub(crate) static EXEMPT: LpmTrie<Address, Member, 16_384> = LpmTrie::new();

/// Other nodes' addresses and their pods', of nodes that share a link with this one.
#[btf_map]
pub(crate) static NEAR: LpmTrie<Address, Member, 16_384> = LpmTrie::new();

/// Load balancers' addresses that were another node's until they came to this one, and an address of that node's.
#[btf_map]
pub(crate) static FORMERS: HashMap<Address, Address, 4_096, BY_ROW> = HashMap::new();

/// Memory for one `Work`, as words: the kernel does not take the description of a Rust enum. Not pinned, as what a program
/// keeps there is of no use to another.
#[btf_map]
pub(crate) static SCRATCH: PerCpuArray<[u64; size_of::<Work>().div_ceil(8)], 1> =
    PerCpuArray::new();

/// The same for what the programs at pods' links know of a packet.
#[btf_map]
pub(crate) static POD_SCRATCH: PerCpuArray<[u64; size_of::<router::Work>().div_ceil(8)], 1> =
    PerCpuArray::new();

/// What this CPU was told last of senders to pods. Not pinned either.
#[btf_map]
pub(crate) static REVERSE_PATHS: PerCpuArray<
    [u64; size_of::<router::ReversePath>().div_ceil(8)],
    { router::REVERSE_PATHS as usize },
> = PerCpuArray::new();

/// A plain hash: a row costs a connect a third of what socket storage does, and goes when its socket is released. Its
/// rows are allocated at start: taking memory for one would be felt in each connect.
#[btf_map]
pub(crate) static SOCKETS: HashMap<SocketKey, SocketEntry, 65_536> = HashMap::new();

#[btf_map]
pub(crate) static SOCK_REVERSE: LruHashMap<ReverseKey, ReverseEntry, 16_384> = LruHashMap::new();

#[btf_map]
pub(crate) static AFFINITY: LruHashMap<AffinityKey, AffinityEntry, 16_384> = LruHashMap::new();

#[btf_map]
pub(crate) static STATS: PerCpuHashMap<BackendId, BackendStats, 65_536, BY_ROW> =
    PerCpuHashMap::new();

/// Connections from outside that backends were given. What becomes of them is in `CONNECTIONS`.
#[btf_map]
pub(crate) static OUTSIDE_OPENS: PerCpuHashMap<BackendId, u64, 65_536, BY_ROW> =
    PerCpuHashMap::new();

#[btf_map]
pub(crate) static SERVICE_STATS: PerCpuHashMap<u32, ServiceStats, 32_768, BY_ROW> =
    PerCpuHashMap::new();

#[btf_map]
pub(crate) static CONFIG: Array<ProgramConfig, 1> = Array::new();

/// Bytes; about 2,000 records.
#[btf_map]
pub(crate) static EVENTS: RingBuf<FlowEvent, { 256 * 1024 }> = RingBuf::new();

/// How many records of what packets were refused each CPU has made in a window of time, and when that began, in nanoseconds: of
/// policies, and of services. Of no use to other programs, so not pinned.
#[btf_map]
pub(crate) static DROP_RECORDS: PerCpuArray<Window, 2> = PerCpuArray::new();
/// Places in it.
pub(crate) const BY_POLICY: u32 = 0;
pub(crate) const BY_SERVICE: u32 = 1;

/// Whether what a packet is refused may be recorded now.
#[inline(always)]
pub(crate) fn admits(place: u32, now_ns: u64) -> bool {
    DROP_RECORDS.get_ptr_mut(place).is_some_and(|window| {
        // SAFETY: this CPU's own row.
        unsafe { (*window).admits(now_ns) }
    })
}

/// Records that found their ring full, or that were too many.
#[btf_map]
pub(crate) static EVENTS_LOST: PerCpuArray<u64, 1> = PerCpuArray::new();

/// 1 where the kernel has `bpf_set_retval` (5.18). Set by the loader; the verifier then drops the branch not taken, so
/// that an older kernel never sees the call.
#[unsafe(no_mangle)]
static HAS_SET_RETVAL: Global<u32> = Global::new(0);

/// Whether packets take ways past the node's routes where these are equivalent. Set by the loader.
#[unsafe(no_mangle)]
static FAST_PATHS: Global<u32> = Global::new(0);

#[inline(always)]
pub(crate) fn has_fast_paths() -> bool {
    FAST_PATHS.load() != 0
}

/// Cookie of the node's own network namespace. Set by the loader, which runs there.
#[unsafe(no_mangle)]
static NODE_NETNS: Global<u64> = Global::new(0);

#[inline(always)]
pub(crate) fn node_netns() -> u64 {
    NODE_NETNS.load()
}

/// The first of the ports that connections of others get at the node's address, and how many there are. Set by the loader:
/// the node's own sockets use others.
#[unsafe(no_mangle)]
static FIRST_PORT: Global<u32> = Global::new(61_000);
#[unsafe(no_mangle)]
static PORT_COUNT: Global<u32> = Global::new(4_536);

#[inline(always)]
pub(crate) fn port_range() -> (u16, u16) {
    (FIRST_PORT.load() as u16, PORT_COUNT.load() as u16)
}

#[inline(always)]
pub(crate) fn has_set_retval() -> bool {
    HAS_SET_RETVAL.load() != 0
}
