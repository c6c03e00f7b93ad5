//! How full the node's file systems are, and how many processes there may be yet, for people and metrics.

use std::path::Path;

use super::eviction::Observation;
use super::observe::disk;
use crate::node::facts;

/// What there is, and how much of it is available; nothing of what cannot be seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Bytes and inodes of the file system of pods' files.
    pub node: Option<[Observation; 2]>,
    /// Of that of images and of what containers write.
    pub images: Option<[Observation; 2]>,
    pub processes: Option<Observation>,
}

impl Room {
    /// Looks at the file systems of these directories.
    pub fn of(root: &Path, images: Option<&Path>) -> Room {
        let processes = facts::tasks().ok().map(|(tasks, most)| Observation {
            available: most.saturating_sub(tasks),
            capacity: most,
        });
        Room {
            node: disk(root).ok(),
            images: images.and_then(|images| disk(images).ok()),
            processes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_seen_is_not_there() {
        let room = Room::of(Path::new("/"), None);
        let [bytes, inodes] = room.node.unwrap();
        assert!(0 < bytes.available && bytes.available <= bytes.capacity);
        assert!(inodes.available <= inodes.capacity);
        assert!(room.processes.unwrap().capacity > 0);
        assert_eq!(room.images, None);
        assert_eq!(Room::of(Path::new("/no/such/dir"), None).node, None);
    }
}
