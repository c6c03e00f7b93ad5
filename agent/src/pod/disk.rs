//! What a pod has on the node's disk, its containers' writable layers apart.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::paths::Paths;
use super::spec::PodView;
use crate::runtime::DiskUsage;

/// Directories below this are not looked into: each on the way there is open meanwhile.
const DEEPEST: usize = 256;

/// What a pod's logs and volumes take. Reading it takes a while.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFiles {
    /// By container.
    pub logs: BTreeMap<String, DiskUsage>,
    /// Those that are on the disk, by name.
    pub volumes: BTreeMap<String, DiskUsage>,
}

/// Measures them.
pub fn measure(paths: &Paths, pod: &PodView) -> PodFiles {
    let logs = paths.logs(&pod.id);
    let containers = pod.every_container();
    let logs = containers.map(|spec| (spec.name.clone(), size(&logs.join(&spec.name))));
    let own = paths.volumes(&pod.id.uid);
    let volumes = pod.spec().volumes.iter().flatten();
    let volumes = volumes.filter_map(|volume| {
        // Others are in memory, or not the pod's.
        let path = own.join(&volume.name);
        path.is_dir().then(|| (volume.name.clone(), size(&path)))
    });
    PodFiles {
        logs: logs.collect(),
        volumes: volumes.collect(),
    }
}

/// What is below a directory. What vanishes meanwhile does not count; what has several names counts once.
fn size(root: &Path) -> DiskUsage {
    let mut total = DiskUsage::default();
    let mut seen = BTreeSet::new();
    let mut add = |metadata: io::Result<Metadata>| match metadata {
        Ok(metadata)
            if metadata.nlink() == 1 || metadata.is_dir() || seen.insert(metadata.ino()) =>
        {
            // The kernel counts in blocks of 512 bytes.
            total.bytes += metadata.blocks() * 512;
            total.inodes += 1;
            metadata.is_dir()
        }
        _ => false,
    };
    // The directories on the way down: what is in one of them is read as it is counted, however much it is.
    let mut open = Vec::new();
    if add(fs::symlink_metadata(root)) {
        open.extend(fs::read_dir(root));
    }
    while let Some(directory) = open.last_mut() {
        match directory.next() {
            Some(Ok(entry)) if add(entry.metadata()) && open.len() < DEEPEST => {
                open.extend(fs::read_dir(entry.path()));
            }
            Some(Ok(_)) => {}
            Some(Err(_)) | None => {
                open.pop();
            }
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_below_counts_once_and_nothing_counts_as_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("a/b");
        fs::create_dir_all(&below).unwrap();
        let before = size(dir.path());
        assert_eq!(before.inodes, 3);
        let bytes: Vec<u8> = (0..1 << 20).map(|n: u32| (n % 251) as u8).collect();
        fs::write(below.join("file"), &bytes).unwrap();
        fs::hard_link(below.join("file"), dir.path().join("again")).unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("link")).unwrap();
        fs::File::open(below.join("file"))
            .unwrap()
            .sync_all()
            .unwrap();
        let after = size(dir.path());
        assert_eq!(after.inodes, 5);
        let grown = after.bytes - before.bytes;
        assert!((1 << 20..1 << 21).contains(&grown), "{grown}");
        assert_eq!(size(&dir.path().join("absent")), DiskUsage::default());
    }
}
