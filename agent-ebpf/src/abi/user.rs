//! What user space may read and write as the bytes that rows are.

use super::*;

macro_rules! pod {
    ($($type:ty),+ $(,)?) => { $(
        // SAFETY: `repr(C)`, no implicit padding and valid for any bit pattern; the tests check the sizes.
        unsafe impl aya::Pod for $type {}
    )+ };
}

pod!(
    ServiceKey,
    ServiceRow,
    SlotKey,
    BackendId,
    BackendEntry,
    SocketKey,
    SocketEntry,
    ReverseKey,
    ReverseEntry,
    AffinityKey,
    AffinityEntry,
    BackendStats,
    ServiceStats,
    ProgramConfig,
    PodRanges,
    FlowEvent,
    MaglevKey,
    MaglevChunk,
    SourceRange,
    Address,
    Member,
    LinkIndex,
    PodEntry,
    UplinkEntry,
    XdpLink,
    FlowKey,
    Connection,
    FragmentKey,
    FragmentPorts,
);
