//! The maps. User space pins them by name and may give the tables other sizes when it creates them.
//!
//! Tables that user space fills are allocated row by row, so an idle node pays for what it has. LRU maps are allocated
//! whole, so they are small.

use agent_ebpf::abi::{
    AffinityEntry, AffinityKey, BackendEntry, BackendId, BackendStats, FlowEvent, ProgramConfig,
    ReverseEntry, ReverseKey, ServiceKey, ServiceRow, ServiceStats, SlotKey, SocketEntry,
    SocketKey,
};
use aya_ebpf::Global;
use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf};
use aya_ebpf::macros::btf_map;

/// `BPF_F_NO_PREALLOC`
const BY_ROW: usize = 1;

#[btf_map]
pub(crate) static SERVICES: HashMap<ServiceKey, ServiceRow, 32_768, BY_ROW> = HashMap::new();

#[btf_map]
pub(crate) static BACKEND_TABLE: HashMap<SlotKey, BackendId, 131_072, BY_ROW> = HashMap::new();

#[btf_map]
pub(crate) static BACKENDS: HashMap<BackendId, BackendEntry, 65_536, BY_ROW> = HashMap::new();

/// A plain hash: a row costs a connect a third of what socket storage does, and goes when its socket is released.
#[btf_map]
pub(crate) static SOCKETS: HashMap<SocketKey, SocketEntry, 65_536, BY_ROW> = HashMap::new();

#[btf_map]
pub(crate) static SOCK_REVERSE: LruHashMap<ReverseKey, ReverseEntry, 16_384> = LruHashMap::new();

#[btf_map]
pub(crate) static AFFINITY: LruHashMap<AffinityKey, AffinityEntry, 16_384> = LruHashMap::new();

#[btf_map]
pub(crate) static STATS: PerCpuHashMap<BackendId, BackendStats, 65_536, BY_ROW> =
    PerCpuHashMap::new();

#[btf_map]
pub(crate) static SERVICE_STATS: PerCpuHashMap<u32, ServiceStats, 32_768, BY_ROW> =
    PerCpuHashMap::new();

#[btf_map]
pub(crate) static CONFIG: Array<ProgramConfig, 1> = Array::new();

/// Bytes; about 2,000 records.
#[btf_map]
pub(crate) static EVENTS: RingBuf<FlowEvent, { 256 * 1024 }> = RingBuf::new();

/// Records that found `EVENTS` full.
#[btf_map]
pub(crate) static EVENTS_LOST: PerCpuArray<u64, 1> = PerCpuArray::new();

/// 1 where the kernel has `bpf_set_retval` (5.18). Set by the loader; the verifier then drops the branch not taken, so
/// that an older kernel never sees the call.
#[unsafe(no_mangle)]
static HAS_SET_RETVAL: Global<u32> = Global::new(0);

#[inline(always)]
pub(crate) fn has_set_retval() -> bool {
    HAS_SET_RETVAL.load() != 0
}
