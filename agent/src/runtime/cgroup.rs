//! The few cgroup files that the agent touches itself; runc does the rest.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::Resources;
use super::oci::CPU_PERIOD_US;

/// One mounted cgroup hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    pub mount: PathBuf,
    /// The v1 controllers on it; empty for v2.
    pub controllers: Vec<String>,
}

/// The hierarchies that are mounted.
pub fn mounted() -> Vec<Hierarchy> {
    hierarchies(&fs::read_to_string("/proc/self/mounts").unwrap_or_default())
}

/// Finds the hierarchies in the text of `/proc/self/mounts`.
pub fn hierarchies(mounts: &str) -> Vec<Hierarchy> {
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (_, mount, kind, options) = (
                fields.next()?,
                fields.next()?,
                fields.next()?,
                fields.next()?,
            );
            let controllers = match kind {
                "cgroup2" => Vec::new(),
                "cgroup" => options.split(',').map(str::to_owned).collect(),
                _ => return None,
            };
            Some(Hierarchy {
                mount: mount.into(),
                controllers,
            })
        })
        .collect()
}

impl Hierarchy {
    pub(super) fn is_unified(&self) -> bool {
        self.controllers.is_empty()
    }

    pub(super) fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }

    /// The file that holds a cgroup's share of the CPU, if this hierarchy divides it.
    fn weight(&self) -> Option<(&'static str, Weight)> {
        match self.is_unified() {
            true => Some(("cpu.weight", Weight::Unified)),
            false => self.has("cpu").then_some(("cpu.shares", Weight::Shares)),
        }
    }
}

/// Makes a cgroup where CPU and memory are divided, and sets what its processes may use together. Repeatable.
pub fn create(hierarchies: &[Hierarchy], cgroup: &Path, resources: &Resources) -> io::Result<()> {
    for hierarchy in hierarchies {
        let directory = below(hierarchy, cgroup);
        let mut settings = Vec::new();
        if hierarchy.is_unified() {
            delegate(hierarchy, cgroup, &["cpu", "memory"])?;
            settings.push((
                "cpu.weight",
                Weight::Unified.of(resources.cpu_shares).to_string(),
            ));
            let quota = resources.cpu_quota_us;
            settings.extend(quota.map(|quota| ("cpu.max", format!("{quota} {CPU_PERIOD_US}"))));
            let bytes = resources.memory_limit;
            settings.extend(bytes.map(|bytes| ("memory.max", bytes.to_string())));
        }
        if hierarchy.has("cpu") {
            settings.push(("cpu.shares", resources.cpu_shares.to_string()));
            if let Some(quota) = resources.cpu_quota_us {
                settings.push(("cpu.cfs_period_us", CPU_PERIOD_US.to_string()));
                settings.push(("cpu.cfs_quota_us", quota.to_string()));
            }
        }
        if hierarchy.has("memory") {
            let bytes = resources.memory_limit;
            settings.extend(bytes.map(|bytes| ("memory.limit_in_bytes", bytes.to_string())));
        }
        if !settings.is_empty() {
            fs::create_dir_all(&directory)?;
        }
        for (file, value) in settings {
            set(&directory.join(file), &value)?;
        }
    }
    Ok(())
}

/// Limits how many processes and threads a cgroup has, where a hierarchy counts them. Repeatable.
pub fn limit_pids(hierarchies: &[Hierarchy], cgroup: &Path, most: u64) -> io::Result<()> {
    for hierarchy in hierarchies {
        if hierarchy.is_unified() {
            delegate(hierarchy, cgroup, &["pids"])?;
        } else if hierarchy.has("pids") {
            fs::create_dir_all(below(hierarchy, cgroup))?;
        } else {
            continue;
        }
        set(
            &below(hierarchy, cgroup).join("pids.max"),
            &most.to_string(),
        )?;
    }
    Ok(())
}

/// Gives a cgroup as much of the CPU as its children ask for together.
pub fn weigh_by_children(hierarchies: &[Hierarchy], cgroup: &Path) -> io::Result<()> {
    // Two at once could leave the older sum behind.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    for hierarchy in hierarchies {
        let Some((file, weight)) = hierarchy.weight() else {
            continue;
        };
        let directory = below(hierarchy, cgroup);
        let mut sum = 0;
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let text = fs::read_to_string(entry.path().join(file)).unwrap_or_default();
            sum += text.trim().parse::<u64>().unwrap_or(0);
        }
        set(&directory.join(file), &weight.clamp(sum).to_string())?;
    }
    Ok(())
}

/// How a hierarchy counts shares of the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weight {
    /// v1: 1024 for a whole CPU.
    Shares,
    /// v2: the same range, drawn together.
    Unified,
}

impl Weight {
    fn of(self, shares: u64) -> u64 {
        match self {
            Weight::Shares => shares,
            Weight::Unified => 1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142,
        }
    }

    fn clamp(self, sum: u64) -> u64 {
        match self {
            Weight::Shares => sum.clamp(2, 262_144),
            Weight::Unified => sum.clamp(1, 10_000),
        }
    }
}

/// Makes the cgroups above one of v2 hand controllers down, as far as they have them.
fn delegate(hierarchy: &Hierarchy, cgroup: &Path, controllers: &[&str]) -> io::Result<()> {
    let path = cgroup.strip_prefix("/").unwrap_or(cgroup);
    let mut directory = hierarchy.mount.clone();
    for part in path.components() {
        let handed_down = directory.join("cgroup.subtree_control");
        let there = fs::read_to_string(directory.join("cgroup.controllers")).unwrap_or_default();
        let before = fs::read_to_string(&handed_down).unwrap_or_default();
        let has = |text: &str, name| text.split_whitespace().any(|has| has == name);
        for &name in controllers {
            if has(&there, name) && !has(&before, name) {
                set(&handed_down, &format!("+{name}"))?;
            }
        }
        directory.push(part);
        fs::create_dir_all(&directory)?;
    }
    Ok(())
}

/// Writes a setting. Without its file the controller is not here: on a machine with both versions, the other has it.
fn set(file: &Path, value: &str) -> io::Result<()> {
    match fs::File::options().write(true).open(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        opened => opened?.write_all(value.as_bytes()),
    }
}

/// Whether the kernel killed a process of this cgroup for want of memory.
pub fn out_of_memory(hierarchies: &[Hierarchy], cgroup: &Path) -> bool {
    hierarchies.iter().any(|hierarchy| {
        let directory = below(hierarchy, cgroup);
        let file = if hierarchy.is_unified() {
            directory.join("memory.events")
        } else if hierarchy.has("memory") {
            directory.join("memory.oom_control")
        } else {
            return false;
        };
        fs::read_to_string(file).is_ok_and(|text| oom_kills(&text) > 0)
    })
}

/// How many processes and threads a cgroup has.
pub fn processes(hierarchies: &[Hierarchy], cgroup: &Path) -> Option<u64> {
    let mut counting = hierarchies
        .iter()
        .filter(|hierarchy| hierarchy.is_unified() || hierarchy.has("pids"));
    counting.find_map(|hierarchy| {
        let file = below(hierarchy, cgroup).join("pids.current");
        fs::read_to_string(file).ok()?.trim().parse().ok()
    })
}

/// A process of a cgroup, if it has one.
pub fn any_process(hierarchies: &[Hierarchy], cgroup: &Path) -> Option<u32> {
    hierarchies.iter().find_map(|hierarchy| {
        let file = below(hierarchy, cgroup).join("cgroup.procs");
        fs::read_to_string(file).ok()?.lines().next()?.parse().ok()
    })
}

/// Removes an empty cgroup and its empty children from every hierarchy. One that is gone already is no error.
pub fn remove(hierarchies: &[Hierarchy], cgroup: &Path) -> io::Result<()> {
    hierarchies
        .iter()
        .try_for_each(|hierarchy| remove_tree(&below(hierarchy, cgroup)))
}

/// Removes an empty cgroup and its empty children from one hierarchy. One that is gone already is no error.
pub(crate) fn remove_tree(directory: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn below(hierarchy: &Hierarchy, cgroup: &Path) -> PathBuf {
    hierarchy
        .mount
        .join(cgroup.strip_prefix("/").unwrap_or(cgroup))
}

/// The `oom_kill` counter in the text of `memory.events` or `memory.oom_control`.
fn oom_kills(text: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill "))
        .and_then(|count| count.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_both_versions_are_found() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
            cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n\
            cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n";
        let found = hierarchies(mounts);
        assert_eq!(found.len(), 2);
        assert!(found[0].controllers.contains(&"memory".to_owned()));
        assert!(found[1].controllers.is_empty());
    }

    #[test]
    fn the_kill_counter_is_read_from_either_version() {
        assert_eq!(
            oom_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
            2
        );
        assert_eq!(oom_kills("low 0\nhigh 0\nmax 1\noom 1\noom_kill 0\n"), 0);
    }

    #[test]
    fn the_weight_of_version_two_spans_the_same_range() {
        let weights = [2, 102, 1024, 262_144].map(|shares| Weight::Unified.of(shares));
        assert_eq!(weights, [1, 4, 39, 10_000]);
        assert_eq!(Weight::Shares.clamp(0), 2);
        assert_eq!(Weight::Unified.clamp(20_000), 10_000);
    }

    #[test]
    fn controllers_are_handed_down_where_they_are_not_yet() {
        let dir = tempfile::tempdir().unwrap();
        let hierarchy = Hierarchy {
            mount: dir.path().to_owned(),
            controllers: Vec::new(),
        };
        let control = dir.path().join("cgroup.subtree_control");
        fs::write(dir.path().join("cgroup.controllers"), "cpuset cpu io\n").unwrap();
        for (before, after) in [("", "+cpu"), ("io cpu\n", "io cpu\n")] {
            fs::write(&control, before).unwrap();
            let path = Path::new("/a/b");
            create(
                std::slice::from_ref(&hierarchy),
                path,
                &Resources::default(),
            )
            .unwrap();
            assert_eq!(fs::read_to_string(&control).unwrap(), after);
            assert!(dir.path().join("a/b").exists());
        }
    }

    #[test]
    fn removing_a_missing_cgroup_succeeds() {
        let dir = tempfile::tempdir().unwrap();
        let hierarchy = Hierarchy {
            mount: dir.path().to_owned(),
            controllers: Vec::new(),
        };
        fs::create_dir_all(dir.path().join("a/b/c")).unwrap();
        remove(std::slice::from_ref(&hierarchy), Path::new("/a/b")).unwrap();
        assert!(!dir.path().join("a/b").exists());
        assert!(dir.path().join("a").exists());
        remove(&[hierarchy], Path::new("/a/b")).unwrap();
    }
}
