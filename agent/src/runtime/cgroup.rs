//! The few cgroup files that the agent touches itself; runc does the rest.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// One mounted cgroup hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    pub mount: PathBuf,
    /// The v1 controllers on it; empty for v2.
    pub controllers: Vec<String>,
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

/// Whether the kernel killed a process of this cgroup for want of memory.
pub fn out_of_memory(hierarchies: &[Hierarchy], cgroup: &Path) -> bool {
    hierarchies.iter().any(|hierarchy| {
        let directory = below(hierarchy, cgroup);
        let file = if hierarchy.controllers.is_empty() {
            directory.join("memory.events")
        } else if hierarchy.controllers.iter().any(|name| name == "memory") {
            directory.join("memory.oom_control")
        } else {
            return false;
        };
        fs::read_to_string(file).is_ok_and(|text| oom_kills(&text) > 0)
    })
}

/// Removes an empty cgroup and its empty children from every hierarchy. One that is gone already is no error.
pub fn remove(hierarchies: &[Hierarchy], cgroup: &Path) -> io::Result<()> {
    hierarchies
        .iter()
        .try_for_each(|hierarchy| remove_tree(&below(hierarchy, cgroup)))
}

fn remove_tree(directory: &Path) -> io::Result<()> {
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
