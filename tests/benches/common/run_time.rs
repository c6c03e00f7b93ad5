//! How long BPF programs run, by the kernel's own count.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use agent_ebpf::abi::maps as names;
use aya::maps::MapInfo;
use aya::programs::loaded_programs;
use kernelet_tests::host;

const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// The time that the programs which use the maps pinned in `directory` run while `work` does its work. Counting costs some
/// ten nanoseconds a run, which are part of it.
pub fn of(directory: &Path, work: impl FnOnce()) -> Duration {
    let set = |value| host::write(SWITCH, value).unwrap_or_else(|error| panic!("{error}"));
    let before = spent(directory);
    set("1");
    work();
    set("0");
    spent(directory) - before
}

fn spent(directory: &Path) -> Duration {
    let maps: BTreeSet<u32> = [names::SERVICES, names::SOCKETS]
        .iter()
        .map(|name| {
            let info = MapInfo::from_pin(directory.join(name)).expect("the map is pinned");
            info.id()
        })
        .collect();
    loaded_programs()
        // A program may be unloaded while they are listed.
        .flatten()
        .filter(|program| {
            let used = program.map_ids().ok().flatten().unwrap_or_default();
            used.iter().any(|id| maps.contains(id))
        })
        .map(|program| program.run_time())
        .sum()
}
