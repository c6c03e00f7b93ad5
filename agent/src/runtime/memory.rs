//! How much memory a cgroup holds: counters that the kernel keeps.

use std::fs;
use std::path::{Path, PathBuf};

use super::cgroup::Hierarchy;

/// Counters of one cgroup, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryCounters {
    /// All that is charged to it, files included.
    pub usage: u64,
    /// Without what the kernel would give up first: files that were not used lately.
    pub working_set: u64,
    /// What belongs to no file.
    pub anonymous: u64,
    /// What belongs to files.
    pub files: u64,
    /// How much there may be; `None` without a limit.
    pub limit: Option<u64>,
}

/// Where the counters are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemoryHierarchy {
    V1(PathBuf),
    V2(PathBuf),
}

impl MemoryHierarchy {
    /// Among those that are mounted. Where v1 counts memory, v2 does not.
    pub fn find(mounted: &[Hierarchy]) -> Option<Self> {
        if let Some(v1) = mounted.iter().find(|hierarchy| hierarchy.has("memory")) {
            return Some(Self::V1(v1.mount.clone()));
        }
        let unified = mounted.iter().find(|hierarchy| hierarchy.is_unified())?;
        Some(Self::V2(unified.mount.clone()))
    }

    /// The counters of a cgroup; `None` when it is gone.
    pub fn read(&self, cgroup: &Path) -> Option<MemoryCounters> {
        let (Self::V1(mount) | Self::V2(mount)) = self;
        let directory = mount.join(cgroup.strip_prefix("/").unwrap_or(cgroup));
        let read = |file: &str| fs::read_to_string(directory.join(file)).ok();
        let (usage, limit, fields) = match self {
            Self::V1(_) => ("memory.usage_in_bytes", "memory.limit_in_bytes", V1),
            Self::V2(_) => ("memory.current", "memory.max", V2),
        };
        let limit = read(limit).unwrap_or_default();
        counters(&read(usage)?, &read("memory.stat")?, &limit, fields)
    }
}

/// What `memory.stat` calls files that were not used lately, what belongs to no file, and what belongs to files.
type Fields = [&'static str; 3];
const V1: Fields = ["total_inactive_file", "total_rss", "total_cache"];
const V2: Fields = ["inactive_file", "anon", "file"];
/// Where v1 has no limit it has a number of pages that no machine has.
const NO_LIMIT: u64 = 1 << 60;

fn counters(
    usage: &str,
    stat: &str,
    limit: &str,
    [inactive, anonymous, files]: Fields,
) -> Option<MemoryCounters> {
    let usage: u64 = usage.trim().parse().ok()?;
    let field = |name: &str| {
        let mut lines = stat.lines().filter_map(|line| line.split_once(' '));
        let (_, value) = lines.find(|(known, _)| *known == name)?;
        value.trim().parse::<u64>().ok()
    };
    Some(MemoryCounters {
        usage,
        working_set: usage.saturating_sub(field(inactive).unwrap_or(0)),
        anonymous: field(anonymous).unwrap_or(0),
        files: field(files).unwrap_or(0),
        limit: limit.trim().parse().ok().filter(|limit| *limit < NO_LIMIT),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_were_not_used_lately_are_not_of_the_working_set() {
        let stat =
            "cache 5\ninactive_file 1\ntotal_inactive_file 40\ntotal_rss 30\ntotal_cache 7\n";
        assert_eq!(
            counters("100\n", stat, "9223372036854771712\n", V1),
            Some(MemoryCounters {
                usage: 100,
                working_set: 60,
                anonymous: 30,
                files: 7,
                limit: None,
            })
        );
        // The two are not read at the same moment.
        let less = counters("10", stat, "4096\n", V1);
        assert_eq!(
            less.map(|less| (less.working_set, less.limit)),
            Some((0, Some(4096)))
        );
        let stat = "anon 30\nfile 7\ninactive_file 5\n";
        let new = counters("100\n", stat, "max\n", V2).unwrap();
        assert_eq!((new.working_set, new.files, new.limit), (95, 7, None));
        assert_eq!(counters("", stat, "", V1), None);
    }
}
