//! The account files of an image, read from its layers without mounting them.
//!
//! An image is whatever somebody uploaded: its `/etc/passwd` may be a link to the node's own, a pipe, a device or without
//! an end. Links are resolved inside the layer, and only a regular file of a sane size is read.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use containerd_client::types::Mount;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat, fstat, open, openat2};
use rustix::io::Errno;

use super::RuntimeError;
use super::image_volumes::directories;
use super::oci::Accounts;

/// The largest account file that is read, in bytes.
const LIMIT: u64 = 4 << 20;

/// Images whose account files are kept in memory, and the size, in bytes, up to which they are.
const CACHED: (usize, usize) = (64, 64 << 10);

/// The account files of images, kept once they were read: layers never change.
#[derive(Default)]
pub(super) struct Known(Mutex<Vec<(String, Arc<Accounts>)>>);

impl Known {
    /// Those of the image whose layers together have this name; `read` reads them where that is to be done.
    pub(super) async fn of(
        &self,
        chain_id: &str,
        read: impl Future<Output = Result<Accounts, RuntimeError>>,
    ) -> Result<Arc<Accounts>, RuntimeError> {
        // Each change is one call that cannot stop half-way.
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = |all: &Vec<(String, Arc<Accounts>)>| {
            let found = all.iter().find(|(id, _)| id == chain_id);
            found.map(|(_, accounts)| accounts.clone())
        };
        if let Some(accounts) = known(&lock()) {
            return Ok(accounts);
        }
        let accounts = Arc::new(read.await?);
        let (images, bytes) = CACHED;
        if accounts.passwd.len() + accounts.group.len() <= bytes {
            let mut all = lock();
            if known(&all).is_none() {
                if all.len() == images {
                    all.remove(0);
                }
                all.push((chain_id.to_owned(), accounts.clone()));
            }
        }
        Ok(accounts)
    }
}

/// The account files of the root file system that `mounts` would make. Blocks.
pub(super) fn read(mounts: &[Mount]) -> Result<Accounts, RuntimeError> {
    let layers: Vec<&str> = directories(mounts).collect();
    let text = |file: &str| {
        topmost(&layers, file).map_err(|error| {
            RuntimeError::Config(format!("the image's /{file} cannot be read: {error}"))
        })
    };
    Ok(Accounts {
        passwd: text("etc/passwd")?,
        group: text("etc/group")?,
    })
}

/// The text of the file as the first layer that knows of it has it; empty where none does.
fn topmost(layers: &[&str], file: &str) -> io::Result<String> {
    for layer in layers {
        match within(Path::new(layer), file)? {
            Found::Text(text) => return Ok(text),
            Found::Removed => break,
            Found::Nothing => {}
        }
    }
    Ok(String::new())
}

/// What a layer says of a file.
enum Found {
    Text(String),
    /// It was in a layer below, and is not in the image.
    Removed,
    Nothing,
}

fn within(layer: &Path, file: &str) -> io::Result<Found> {
    let root = open(
        layer,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    // O_PATH opens nothing yet, so a pipe cannot block and a device is not touched.
    let found = match openat2(
        &root,
        file,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    ) {
        Ok(found) => found,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Found::Nothing),
        Err(errno) => return Err(errno.into()),
    };
    let stat = fstat(&found)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        _ if is_whiteout(&stat) => return Ok(Found::Removed),
        _ => return Err(io::Error::other("it is no regular file")),
    }
    let file = File::open(format!("/proc/self/fd/{}", found.as_raw_fd()))?;
    let mut bytes = Vec::new();
    file.take(LIMIT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LIMIT {
        return Err(io::Error::other(format!("it is larger than {LIMIT} bytes")));
    }
    Ok(Found::Text(String::from_utf8_lossy(&bytes).into_owned()))
}

/// How overlayfs marks in a layer that a file of a lower one is removed.
fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::fs::{CWD, mknodat};

    use super::*;

    /// Layers, the topmost first, whose files are made by `make`.
    fn layers(make: impl Fn(usize, &Path)) -> (tempfile::TempDir, Vec<Mount>) {
        let dir = tempfile::tempdir().unwrap();
        let paths: Vec<_> = (0..2)
            .map(|n| {
                let layer = dir.path().join(n.to_string());
                fs::create_dir_all(layer.join("etc")).unwrap();
                make(n, &layer);
                layer.display().to_string()
            })
            .collect();
        let mount = Mount {
            r#type: "overlay".into(),
            options: vec![format!("lowerdir={}", paths.join(":"))],
            ..Mount::default()
        };
        (dir, vec![mount])
    }

    #[test]
    fn the_topmost_layer_that_has_the_file_counts() {
        let (_dir, mounts) = layers(|n, layer| {
            fs::write(layer.join("etc/passwd"), format!("passwd {n}")).unwrap();
            if n == 1 {
                fs::write(layer.join("etc/group"), "group 1").unwrap();
            }
        });
        let accounts = read(&mounts).unwrap();
        assert_eq!(accounts.passwd, "passwd 0");
        assert_eq!(accounts.group, "group 1");
    }

    #[test]
    fn links_stay_inside_the_layer() {
        let (_dir, mounts) = layers(|n, layer| {
            if n == 0 {
                fs::write(layer.join("other"), "inside").unwrap();
                symlink("/other", layer.join("etc/passwd")).unwrap();
                symlink("../../../../../etc/hostname", layer.join("etc/group")).unwrap();
            }
        });
        let accounts = read(&mounts).unwrap();
        assert_eq!(accounts.passwd, "inside");
        assert_eq!(accounts.group, "", "the node's own file is out of reach");
    }

    #[test]
    fn a_pipe_is_refused_and_does_not_block() {
        let (_dir, mounts) = layers(|_, layer| {
            mknodat(CWD, layer.join("etc/passwd"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        });
        let error = read(&mounts).unwrap_err();
        assert!(error.to_string().contains("no regular file"), "{error}");
    }

    #[test]
    fn a_file_without_an_end_is_not_read_to_it() {
        let (_dir, mounts) = layers(|_, layer| {
            let file = File::create(layer.join("etc/passwd")).unwrap();
            file.set_len(LIMIT * 1024).unwrap();
        });
        let error = read(&mounts).unwrap_err();
        assert!(error.to_string().contains("larger than"), "{error}");
    }

    #[test]
    fn what_a_layer_removes_is_not_looked_for_below() {
        if !crate::testing::root_or_skip("device files need root") {
            return;
        }
        let (_dir, mounts) = layers(|n, layer| {
            let path = layer.join("etc/passwd");
            if n == 1 {
                fs::write(path, "below").unwrap();
            } else {
                mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
            }
        });
        assert_eq!(read(&mounts).unwrap().passwd, "");
    }
}
