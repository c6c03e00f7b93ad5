//! The program that sends packets on before the network stack sees them, attached where a link's driver runs it natively.
//!
//! It is a link, pinned at `<bpf-dir>/links/kn_uplink_xdp-INDEX`, which outlives this process and is told in one atomic step
//! to run another program. It is put into the kernel when the first link is to have it.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::PoisonError;

use agent_ebpf::abi::LinkIndex;
use aya::programs::{Program, ProgramError, Xdp};

use super::sys;
use super::tc::{AttachError, LinkPrograms, absent_is_fine, at, pinned};

/// Name of the program.
pub(super) const PROGRAM: &str = "kn_uplink_xdp";

/// Why a link does not run the program. Its packets are all the stack's then, which serves them as well.
#[derive(Debug, thiserror::Error)]
pub enum XdpError {
    #[error("the kernel did not take the program")]
    Load(#[source] Box<ProgramError>),
    #[error("another XDP program is attached")]
    Taken,
    #[error("the driver runs none")]
    Driver,
    #[error(
        "the link's MTU, queues or receive offloads do not allow it; the kernel's log may say more"
    )]
    Settings(#[source] io::Error),
    #[error("it cannot be attached")]
    Other(#[source] io::Error),
    #[error(transparent)]
    Pin(#[from] AttachError),
}

impl XdpError {
    fn attaching(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EBUSY | libc::EEXIST) => Self::Taken,
            Some(libc::EOPNOTSUPP) => Self::Driver,
            Some(libc::EINVAL | libc::ERANGE | libc::ENOMEM | libc::ENOSPC | libc::E2BIG) => {
                Self::Settings(error)
            }
            _ => Self::Other(error),
        }
    }
}

impl LinkPrograms {
    /// Sees to it that the program runs at a network link, natively. One of an earlier agent that is attached there gives
    /// way to it in one step.
    pub(super) fn attach_xdp(&self, LinkIndex(index): LinkIndex) -> Result<(), XdpError> {
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        let program = loaded(programs.program_mut(PROGRAM))?;
        let fd = program.fd().map_err(|it| XdpError::Load(Box::new(it)))?;
        let pin = self.xdp_pin(index);
        if let Some(link) = pinned(&pin)?
            && sys::network_link_of(link.as_fd()).map_err(XdpError::Other)? == index
        {
            return sys::update_link(link.as_fd(), fd.as_fd()).map_err(XdpError::attaching);
        }
        let link = sys::attach_xdp(fd.as_fd(), index).map_err(XdpError::attaching)?;
        let fresh = pin.with_file_name(format!("{PROGRAM}-{index}_new"));
        absent_is_fine(&fresh, fs::remove_file(&fresh))?;
        sys::pin(link.as_fd(), &fresh).map_err(at(&fresh))?;
        Ok(fs::rename(&fresh, &pin).map_err(at(&pin))?)
    }

    /// Takes the program from a network link, if it is there. The link may be gone.
    pub(super) fn detach_xdp(&self, LinkIndex(index): LinkIndex) -> Result<(), AttachError> {
        let pin = self.xdp_pin(index);
        absent_is_fine(&pin, fs::remove_file(&pin))
    }

    /// Makes every link that runs another version's program run ours, which leaves all to the stack until it is told of the
    /// link. Where that fails the other version's goes: its tables are old.
    pub(super) fn take_over_xdp(&self) -> Result<(), AttachError> {
        for index in self.xdp_links()? {
            if self.attach_xdp(index).is_err() {
                self.detach_xdp(index)?;
            }
        }
        Ok(())
    }

    /// The network links that have the program, by its pins.
    pub(super) fn xdp_links(&self) -> Result<Vec<LinkIndex>, AttachError> {
        let mut links = Vec::new();
        for pin in fs::read_dir(&self.pins).map_err(at(&self.pins))? {
            let name = pin.map_err(at(&self.pins))?.file_name();
            let index = name.to_str().and_then(|name| name.strip_prefix(PROGRAM));
            let index = index.and_then(|rest| rest.strip_prefix('-')?.parse().ok());
            links.extend(index.map(LinkIndex));
        }
        Ok(links)
    }

    fn xdp_pin(&self, index: u32) -> PathBuf {
        self.pins.join(format!("{PROGRAM}-{index}"))
    }
}

fn loaded(program: Option<&mut Program>) -> Result<&mut Xdp, XdpError> {
    let Some(Program::Xdp(program)) = program else {
        return Err(AttachError::Missing { program: PROGRAM }.into());
    };
    if program.fd().is_err() {
        program
            .load()
            .map_err(|error| XdpError::Load(Box::new(error)))?;
    }
    Ok(program)
}
