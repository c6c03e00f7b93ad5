//! Links between programs and the node's cgroup, pinned so that they outlive this process.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, Program};

use super::load::LoadError;
use super::sys;

/// Loads `program` into the kernel.
pub(super) fn load(name: &'static str, program: &mut Program) -> Result<(), LoadError> {
    match program {
        Program::CgroupSockAddr(p) => p.load(),
        Program::CgroupSock(p) => p.load(),
        Program::SockOps(p) => p.load(),
        Program::SchedClassifier(p) => p.load(),
        _ => return Err(LoadError::Missing { name }),
    }
    .map_err(|source| LoadError::Program {
        name,
        source: Box::new(source),
    })
}

/// Makes a link that is pinned at `pin` run the loaded `program` on `cgroup`. One that is pinned there already, or at one
/// of the places `elsewhere`, is told to run it in one atomic step, and moves to `pin`. True when there was one.
pub(super) fn attach(
    name: &'static str,
    program: &mut Program,
    cgroup: &File,
    pin: &Path,
    elsewhere: &[PathBuf],
) -> Result<bool, LoadError> {
    let moved = |source| LoadError::Path {
        path: pin.to_owned(),
        source,
    };
    for place in std::iter::once(pin).chain(elsewhere.iter().map(PathBuf::as_path)) {
        let Some(link) = pinned_on(cgroup, place)? else {
            continue;
        };
        let fd = program.fd().map_err(|source| LoadError::Program {
            name,
            source: Box::new(source),
        })?;
        sys::update_link(link.as_fd(), fd.as_fd())
            .map_err(|source| LoadError::Update { name, source })?;
        if place != pin {
            fs::rename(place, pin).map_err(moved)?;
        }
        return Ok(true);
    }
    let link = new_link(name, program, cgroup)?;
    // The new link is attached before a pin of an older one, on another cgroup, gives way to it.
    let fresh = pin.with_file_name(format!("{name}_new"));
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(moved(error)),
        _ => {}
    }
    link.pin(&fresh)
        .map_err(|source| LoadError::Pin { name, source })?;
    fs::rename(&fresh, pin).map_err(moved)?;
    Ok(false)
}

/// The link pinned at `pin`, if there is one and it still is on `cgroup`.
fn pinned_on(cgroup: &File, pin: &Path) -> Result<Option<OwnedFd>, LoadError> {
    let failed = |source| LoadError::Path {
        path: pin.to_owned(),
        source,
    };
    let link = match sys::open_link(pin) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    // The id of a cgroup is the inode of its directory.
    let wanted = cgroup.metadata().map_err(failed)?.ino();
    let attached = sys::cgroup_of(link.as_fd()).map_err(failed)?;
    Ok((attached == wanted).then_some(link))
}

fn new_link(name: &'static str, program: &mut Program, cgroup: &File) -> Result<FdLink, LoadError> {
    let failed = |source| LoadError::Program {
        name,
        source: Box::new(source),
    };
    // The kernel lets links share a cgroup with other programs whatever the mode; the flags of the other modes it refuses.
    let mode = CgroupAttachMode::Single;
    let link = match program {
        Program::CgroupSockAddr(p) => {
            let id = p.attach(cgroup, mode).map_err(failed)?;
            p.take_link(id).map_err(failed)?.try_into()
        }
        Program::CgroupSock(p) => {
            let id = p.attach(cgroup, mode).map_err(failed)?;
            p.take_link(id).map_err(failed)?.try_into()
        }
        Program::SockOps(p) => {
            let id = p.attach(cgroup, mode).map_err(failed)?;
            p.take_link(id).map_err(failed)?.try_into()
        }
        _ => return Err(LoadError::Missing { name }),
    };
    link.map_err(|source| LoadError::Link { name, source })
}
