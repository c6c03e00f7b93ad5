//! The programs of the packets' path, attached to network links as these come.
//!
//! Where the kernel has TCX (6.6) each is a link, pinned at `<bpf-dir>/links/PROGRAM-INDEX`. Elsewhere it is a filter of the
//! clsact qdisc, at a place that is always the same. Either outlives this process, and is told in one atomic step to run
//! another program. Both go with the network link.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use agent_ebpf::abi::LinkIndex;
use aya::Ebpf;
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact,
    qdisc_detach_program,
};
use aya::programs::{Program, ProgramError, SchedClassifier, TcAttachType};

use super::{sys, xdp};

/// Where a program runs on a link's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// The node's end of a pod's link: what the pod sends.
    PodOut,
    /// The same: what goes to the pod.
    PodIn,
    /// A link to other machines: what comes in.
    UplinkIn,
    /// The same: what leaves.
    UplinkOut,
}

impl Hook {
    pub(super) const ALL: [Hook; 4] = [Hook::PodOut, Hook::PodIn, Hook::UplinkIn, Hook::UplinkOut];

    /// Name of its program.
    pub(super) const fn program(self) -> &'static str {
        match self {
            Hook::PodOut => "kn_pod_out",
            Hook::PodIn => "kn_pod_in",
            Hook::UplinkIn => "kn_uplink_in",
            Hook::UplinkOut => "kn_uplink_out",
        }
    }

    /// What a pod sends comes in at the node.
    fn direction(self) -> Direction {
        match self {
            Hook::PodOut | Hook::UplinkIn => Direction::Ingress,
            Hook::PodIn | Hook::UplinkOut => Direction::Egress,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Ingress,
    Egress,
}

/// The place of our filters among those of a clsact qdisc.
const PRIORITY: u16 = 75;
const HANDLE: TcHandle = TcHandle::new(0, 1);

/// Why a program could not be attached to a network link. Trying again is safe.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error("the BPF object has no program {program}")]
    Missing { program: &'static str },
    #[error("cannot attach program {program} to network link {link}")]
    Link {
        program: &'static str,
        link: String,
        #[source]
        source: io::Error,
    },
    #[error(
        "cannot attach program {program} to network link {link}; has the kernel the modules sch_ingress and cls_bpf?"
    )]
    Filter {
        program: &'static str,
        link: String,
        #[source]
        source: Box<ProgramError>,
    },
    #[error("cannot use {}", path.display())]
    Pin {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The programs, in the kernel. Clones share them.
#[derive(Clone)]
pub struct LinkPrograms {
    pub(super) programs: Arc<Mutex<Ebpf>>,
    /// Where links are pinned.
    pub(super) pins: PathBuf,
    tcx: bool,
}

impl LinkPrograms {
    pub(super) fn new(programs: Arc<Mutex<Ebpf>>, pins: PathBuf, tcx: bool) -> Self {
        Self {
            programs,
            pins,
            tcx,
        }
    }

    /// Sees to it that the program of `hook` runs at the network link called `name`. One of an earlier agent that is
    /// attached there gives way to it in one step.
    pub fn attach(&self, hook: Hook, index: LinkIndex, name: &str) -> Result<(), AttachError> {
        let program = hook.program();
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        match programs.program_mut(program) {
            Some(Program::SchedClassifier(classifier)) if self.tcx => {
                self.attach_tcx(hook, classifier, index, name)
            }
            Some(Program::SchedClassifier(classifier)) => {
                filter(hook, classifier, name).map_err(|source| AttachError::Filter {
                    program,
                    link: name.to_owned(),
                    source: Box::new(source),
                })
            }
            _ => Err(AttachError::Missing { program }),
        }
    }

    fn attach_tcx(
        &self,
        hook: Hook,
        classifier: &SchedClassifier,
        LinkIndex(index): LinkIndex,
        name: &str,
    ) -> Result<(), AttachError> {
        let program = hook.program();
        let failed = |source| AttachError::Link {
            program,
            link: name.to_owned(),
            source,
        };
        let fd = classifier
            .fd()
            .map_err(|error| failed(io::Error::other(error)))?;
        let pin = self.pins.join(format!("{program}-{index}"));
        if let Some(link) = pinned(&pin)?
            && sys::network_link_of(link.as_fd()).map_err(failed)? == index
        {
            return sys::update_link(link.as_fd(), fd.as_fd()).map_err(failed);
        }
        let ingress = hook.direction() == Direction::Ingress;
        let link = sys::attach_tcx(fd.as_fd(), index, ingress).map_err(failed)?;
        let fresh = self.pins.join(format!("{program}-{index}_new"));
        absent_is_fine(&fresh, fs::remove_file(&fresh))?;
        sys::pin(link.as_fd(), &fresh).map_err(at(&fresh))?;
        fs::rename(&fresh, &pin).map_err(at(&pin))
    }

    /// Takes the program of `hook` from a network link, if it is there. The link may be gone.
    pub fn detach(&self, hook: Hook, LinkIndex(index): LinkIndex) -> Result<(), AttachError> {
        let program = hook.program();
        let pin = self.pins.join(format!("{program}-{index}"));
        absent_is_fine(&pin, fs::remove_file(&pin))?;
        if !self.tcx
            && let Some(name) = link_name(LinkIndex(index))
        {
            detach_filter(hook, &name)?;
        }
        Ok(())
    }

    /// Removes the pins of what was attached to one network link that is gone.
    pub fn sweep_link(&self, LinkIndex(index): LinkIndex) -> Result<(), AttachError> {
        for hook in Hook::ALL {
            let pin = self.pins.join(format!("{}-{index}", hook.program()));
            absent_is_fine(&pin, fs::remove_file(&pin))?;
        }
        self.detach_xdp(LinkIndex(index))
    }

    /// Removes the pins of what is attached to network links that are gone.
    pub fn sweep(&self) -> Result<(), AttachError> {
        for pin in fs::read_dir(&self.pins).map_err(at(&self.pins))? {
            let path = pin.map_err(at(&self.pins))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let ours = is_link_pin(&name) || name.strip_suffix("_new").is_some_and(is_link_pin);
            if ours
                && let Some(link) = pinned(&path)?
                && sys::network_link_of(link.as_fd()).map_err(at(&path))? == 0
            {
                absent_is_fine(&path, fs::remove_file(&path))?;
            }
        }
        Ok(())
    }
}

/// Whether a pin of this name is of a program at a network link.
pub(super) fn is_link_pin(name: &str) -> bool {
    let Some((program, index)) = name.rsplit_once('-') else {
        return false;
    };
    let known = Hook::ALL.iter().any(|hook| hook.program() == program);
    (known || program == xdp::PROGRAM) && index.parse::<u32>().is_ok()
}

/// The link pinned at `path`, if there is one.
pub(super) fn pinned(path: &Path) -> Result<Option<OwnedFd>, AttachError> {
    match sys::open_link(path) {
        Ok(link) => Ok(Some(link)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at(path)(error)),
    }
}

/// Makes our filter on the link run the program, or puts it there.
fn filter(hook: Hook, classifier: &mut SchedClassifier, name: &str) -> Result<(), ProgramError> {
    let way = way(hook);
    let present = SchedClassifierLink::attached(name, way, PRIORITY, HANDLE, None)?;
    let id = match classifier.attach_to_link(present) {
        Ok(id) => id,
        Err(_) => {
            // It fails where there is one, which is as good.
            let _ = qdisc_add_clsact(name);
            let options = TcAttachOptions::Netlink(NlOptions {
                priority: PRIORITY,
                handle: HANDLE,
                classid: None,
            });
            classifier.attach_with_options(name, way, options)?
        }
    };
    // Dropped, it would be detached. The filter stays with the network link.
    std::mem::forget(classifier.take_link(id)?);
    Ok(())
}

/// Takes our filter from a link, if it is there.
pub(super) fn detach_filter(hook: Hook, name: &str) -> Result<(), AttachError> {
    let program = hook.program();
    match qdisc_detach_program(name, way(hook), program) {
        Err(TcError::IoError(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(|error| AttachError::Filter {
            program,
            link: name.to_owned(),
            source: Box::new(error.into()),
        }),
    }
}

/// The name of a network link; `None` when it is gone.
pub(super) fn link_name(LinkIndex(index): LinkIndex) -> Option<String> {
    use rustix::net::{AddressFamily, SocketType, socket};
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None).ok()?;
    rustix::net::netdevice::index_to_name(&socket, index).ok()
}

fn way(hook: Hook) -> TcAttachType {
    match hook.direction() {
        Direction::Ingress => TcAttachType::Ingress,
        Direction::Egress => TcAttachType::Egress,
    }
}

pub(super) fn at(path: &Path) -> impl FnOnce(io::Error) -> AttachError + use<> {
    let path = path.to_owned();
    move |source| AttachError::Pin { path, source }
}

pub(super) fn absent_is_fine(path: &Path, result: io::Result<()>) -> Result<(), AttachError> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_pins_of_network_links_are_known() {
        for ours in ["kn_pod_out-12", "kn_pod_in-1", "kn_uplink_xdp-3"] {
            assert!(is_link_pin(ours), "{ours}");
        }
        for other in [
            "kn_pod_out",
            "kn_connect4",
            "kn_connect4-3",
            "kn_pod_in-",
            "kn_pod_in-x",
            "x-1",
        ] {
            assert!(!is_link_pin(other), "{other}");
        }
    }
}
