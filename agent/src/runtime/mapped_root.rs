//! The root file system of a container whose users are not the node's: the image's layers under its ids, and what it writes
//! on top as its own.
//!
//! Each layer is mounted once more, by the container's name, for as long as its root is being mounted: the overlay keeps what it is
//! made of. Images are shared with everybody else.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};

use containerd_client::types::Mount;
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::{Users, idmap};
use crate::network::namespaces::IdRange;

/// The users of a container by the spec that is kept of it.
pub(super) fn users(spec: &[u8]) -> Option<Users> {
    let spec: Spec = serde_json::from_slice(spec).ok()?;
    let linux = spec.linux().as_ref()?;
    let mut namespaces = linux.namespaces().iter().flatten();
    let namespace = namespaces.find(|it| it.typ() == LinuxNamespaceType::User)?;
    let first = linux.uid_mappings().as_ref()?.first()?.host_id();
    Some(Users {
        namespace: namespace.path().clone()?,
        ids: IdRange { first },
    })
}

/// Where the layers of a container are for a while, below the agent's own directory.
#[derive(Debug)]
pub(super) struct MappedRoot {
    directory: PathBuf,
}

impl MappedRoot {
    pub(super) fn new(scratch: &Path, id: &str) -> MappedRoot {
        let directory = scratch.join(format!("layers-{id}"));
        MappedRoot { directory }
    }

    /// What is to be mounted in place of `mounts`. Where nothing is to be, for want of an image, that is an empty root.
    pub(super) fn mounts(&self, mounts: Vec<Mount>, users: &Users) -> io::Result<Vec<Mount>> {
        self.remove()?;
        if mounts.is_empty() {
            return Ok(vec![empty(users.ids)]);
        }
        let mapped = mounts.into_iter().map(|mount| self.mapped(mount, users));
        mapped.collect()
    }

    fn mapped(&self, mut mount: Mount, users: &Users) -> io::Result<Mount> {
        if mount.r#type != "overlay" {
            give(Path::new(&mount.source), users.ids)?;
            return Ok(mount);
        }
        for option in &mut mount.options {
            match option.split_once('=') {
                Some(("lowerdir", layers)) => {
                    let layers = layers.split(':').map(Path::new).enumerate();
                    let shown = layers.map(|(at, layer)| self.show(layer, at, users));
                    let shown = shown.collect::<io::Result<Vec<_>>>()?;
                    *option = format!("lowerdir={}", shown.join(":"));
                }
                Some(("upperdir", path)) => give(Path::new(path), users.ids)?,
                _ => {}
            }
        }
        Ok(mount)
    }

    fn show(&self, layer: &Path, at: usize, users: &Users) -> io::Result<String> {
        let target = self.directory.join(at.to_string());
        fs::create_dir_all(&target)?;
        idmap::mount(layer, &target, &users.namespace)?;
        Ok(target.to_string_lossy().into_owned())
    }

    /// Takes the layers away again.
    pub(super) fn remove(&self) -> io::Result<()> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let path = entry?.path();
            idmap::detach(&path)?;
            // Never recursively: should a layer still be mounted there, it is not ours to remove.
            fs::remove_dir(path)?;
        }
        fs::remove_dir(&self.directory)
    }
}

/// A root with nothing in it but the points where things are mounted.
fn empty(ids: IdRange) -> Mount {
    let first = ids.first;
    Mount {
        r#type: "tmpfs".to_owned(),
        source: "tmpfs".to_owned(),
        options: vec![
            "mode=755".to_owned(),
            "size=64k".to_owned(),
            format!("uid={first}"),
            format!("gid={first}"),
        ],
        ..Mount::default()
    }
}

/// Makes a directory's owners those that the container has in their place, where it does not have them yet.
fn give(path: &Path, ids: IdRange) -> io::Result<()> {
    let owners = fs::metadata(path)?;
    let own = |id: u32| match ids.has(id) {
        true => id,
        false => ids.first.saturating_add(id),
    };
    lchown(path, Some(own(owners.uid())), Some(own(owners.gid())))
}
