//! What the machine allows, found once at start.

use std::fs;
use std::path::Path;

use super::cgroup;
use crate::node::facts::{HUGE_PAGES, huge_pages};

/// Facts about the machine that decide how a container can be set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The lowest `oom_score_adj` that a container may be given, when it is not just any.
    pub oom_score_floor: Option<i32>,
    /// The only cgroup hierarchy is v2.
    pub unified_cgroups: bool,
    /// And it says how much of a container's memory may be swapped out.
    pub limits_swap: bool,
    /// Capabilities that this process could hand on, as the bits of `CapBnd`.
    pub capabilities: u64,
    /// Identifies this boot of the machine.
    pub boot_id: String,
    /// Sizes of huge pages, in bytes, of which the machine has some that can be shared out; `None` where nothing limits who
    /// takes how many.
    pub huge_pages: Option<Vec<u64>>,
    /// The kernel labels processes and files by SELinux.
    pub selinux: bool,
    /// The architecture in the words of OCI images: `amd64`, `arm64`.
    pub architecture: &'static str,
}

/// `CAP_SYS_RESOURCE` in linux/capability.h.
const CAP_SYS_RESOURCE: u64 = 24;

impl Host {
    /// Looks at `/proc` and `/sys`. What cannot be read counts as not allowed.
    pub fn probe() -> Host {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let own_score = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let may_lower = capability_bits(&status, "CapEff:") & (1 << CAP_SYS_RESOURCE) != 0;
        Host {
            oom_score_floor: (!may_lower).then(|| own_score.trim().parse().unwrap_or(0)),
            unified_cgroups: !mounts
                .lines()
                .any(|line| line.split(' ').nth(2) == Some("cgroup")),
            limits_swap: limits_swap(&mounts),
            capabilities: capability_bits(&status, "CapBnd:"),
            boot_id: boot_id.trim().to_owned(),
            huge_pages: limits_huge_pages(&mounts).then(sizes_of_huge_pages),
            selinux: Path::new("/sys/fs/selinux/enforce").exists(),
            architecture: match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            },
        }
    }

    /// The `oom_score_adj` nearest to `wanted` that can be set here.
    pub fn oom_score_adj(&self, wanted: i32) -> i32 {
        self.oom_score_floor
            .map_or(wanted, |floor| wanted.max(floor))
    }
}

/// Whether the only cgroup hierarchy limits swap, which kernels can be built or booted without. The file is in all groups but
/// the root.
fn limits_swap(mounts: &str) -> bool {
    let hierarchies = cgroup::hierarchies(mounts);
    let [only] = &hierarchies[..] else {
        return false;
    };
    let groups = fs::read_dir(&only.mount).into_iter().flatten().flatten();
    only.is_unified()
        && groups
            .map(|group| group.path())
            .any(|group| group.join("memory.swap.max").exists())
}

/// Whether a cgroup hierarchy limits huge pages.
fn limits_huge_pages(mounts: &str) -> bool {
    cgroup::hierarchies(mounts).iter().any(|hierarchy| {
        let file = hierarchy.mount.join("cgroup.controllers");
        let unified = || fs::read_to_string(file).unwrap_or_default();
        hierarchy.has("hugetlb")
            || hierarchy.is_unified() && unified().split_whitespace().any(|it| it == "hugetlb")
    })
}

fn sizes_of_huge_pages() -> Vec<u64> {
    let pages = huge_pages(Path::new(HUGE_PAGES)).into_iter();
    pages
        .filter(|(_, bytes)| *bytes > 0)
        .map(|(size, _)| size)
        .collect()
}

/// Whether the kernel confines processes by AppArmor profiles.
pub fn app_armor_is_on() -> bool {
    let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    enabled.is_ok_and(|text| text.trim() == "Y")
}

fn capability_bits(status: &str, field: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .and_then(|value| u64::from_str_radix(value.trim(), 16).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capability_bits_are_read_from_the_status_file() {
        let status = "Name:\tx\nCapEff:\t000001fffeffffff\nCapBnd:\t0000000000000001\n";
        assert_eq!(capability_bits(status, "CapBnd:"), 1);
        assert_eq!(
            capability_bits(status, "CapEff:") & (1 << CAP_SYS_RESOURCE),
            0,
            "bit 24 is off in this mask"
        );
        assert_eq!(capability_bits("", "CapEff:"), 0);
    }

    #[test]
    fn a_score_below_the_floor_is_raised_to_it() {
        let mut host = Host::probe();
        host.oom_score_floor = Some(0);
        assert_eq!(host.oom_score_adj(-997), 0);
        assert_eq!(host.oom_score_adj(1000), 1000);
        host.oom_score_floor = None;
        assert_eq!(host.oom_score_adj(-997), -997);
    }
}
