//! The monotonic clock. A virtual machine takes as long to read it exactly as a program takes to look two rows up, so that is
//! done for people who watch only.

use agent_ebpf::abi::SOCKET_SAMPLED;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;

/// Nanoseconds of `CLOCK_MONOTONIC` at the last tick of the kernel, at most 10 ms ago (Linux 5.11).
#[inline(always)]
pub(crate) fn coarse_ns() -> u64 {
    // SAFETY: a plain helper call.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// Nanoseconds of `CLOCK_MONOTONIC`, exact for a socket with these flags whose events are recorded.
#[inline(always)]
pub(crate) fn socket_ns(flags: u64) -> u64 {
    if flags & SOCKET_SAMPLED != 0 {
        // SAFETY: a plain helper call.
        unsafe { bpf_ktime_get_ns() }
    } else {
        coarse_ns()
    }
}
