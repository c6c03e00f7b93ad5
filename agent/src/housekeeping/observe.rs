//! Reading what is available on the node.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::statvfs;

use super::eviction::{Observation, Observations};
use super::signal::Signal;
use crate::node::facts;

/// What there is of everything. What cannot be read is left out, and logged.
pub(super) fn all(root_dir: &Path, image_dir: &Path) -> Observations {
    let nodefs = [Signal::NodefsAvailable, Signal::NodefsInodesFree];
    let imagefs = [Signal::ImagefsAvailable, Signal::ImagefsInodesFree];
    let mut seen = Observations::new();
    for (directory, signals) in [(root_dir, nodefs), (image_dir, imagefs)] {
        match disk(directory) {
            Ok(found) => seen.extend(signals.into_iter().zip(found)),
            Err(error) => {
                let directory = directory.display();
                tracing::warn!(%error, %directory, "cannot see how full a file system is");
            }
        }
    }
    match memory_and_processes() {
        Ok(found) => seen.extend(found),
        Err(error) => tracing::warn!(%error, "cannot see what the node has left"),
    }
    seen
}

/// Bytes and inodes of the file system that a directory is on.
pub(super) fn disk(directory: &Path) -> io::Result<[Observation; 2]> {
    let found = statvfs(directory)?;
    let bytes = Observation {
        available: found.f_bavail.saturating_mul(found.f_frsize),
        capacity: found.f_blocks.saturating_mul(found.f_frsize),
    };
    let inodes = match found.f_files {
        // A file system without a limit on them is never short of them.
        0 => Observation {
            available: u64::MAX,
            capacity: u64::MAX,
        },
        files => Observation {
            available: found.f_favail,
            capacity: files,
        },
    };
    Ok([bytes, inodes])
}

fn memory_and_processes() -> Result<[(Signal, Observation); 2], facts::FactsError> {
    let [total, free, inactive] = facts::meminfo(["MemTotal", "MemFree", "Inactive(file)"])?;
    // As upstream: all but the working set, to which files that were not used lately do not count.
    let memory = Observation {
        available: (free + inactive).min(total),
        capacity: total,
    };
    let (tasks, most) = facts::tasks()?;
    let processes = Observation {
        available: most.saturating_sub(tasks),
        capacity: most,
    };
    Ok([
        (Signal::MemoryAvailable, memory),
        (Signal::PidAvailable, processes),
    ])
}

/// Whether two directories are on one file system; so they count where that cannot be seen.
pub(super) fn is_shared(a: &Path, b: &Path) -> bool {
    match (a.metadata(), b.metadata()) {
        (Ok(a), Ok(b)) => a.dev() == b.dev(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_something_of_everything() {
        let seen = all(Path::new("/"), Path::new("/tmp"));
        for signal in Signal::ALL {
            let of = seen[&signal];
            assert!(
                0 < of.available && of.available <= of.capacity,
                "{signal:?} {of:?}"
            );
        }
        let without = all(Path::new("/no/such/dir"), Path::new("/"));
        assert!(!without.contains_key(&Signal::NodefsAvailable));
        assert!(is_shared(Path::new("/"), Path::new("/")));
        assert!(!is_shared(Path::new("/"), Path::new("/proc")));
    }
}
