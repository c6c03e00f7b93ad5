//! The links to other machines: the programs there, and the rows that say which address the node has on each.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use agent_ebpf::abi::{LinkIndex, UplinkEntry, XDP_LINK_TAKES, XdpLink, maps as names};

use super::maps::{MapError, Maps};
use super::netdev::{XdpFeatures, xdp_features};
use super::sys;
use super::tc::{self, AttachError, Hook, LinkPrograms};
use super::versions::own_directory;
use super::xdp::XdpError;

/// Out first: what is let in is translated back.
pub(super) const HOOKS: [Hook; 2] = [Hook::UplinkOut, Hook::UplinkIn];

/// A link to other machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    pub name: String,
    pub own: UplinkEntry,
    /// Its hardware address, if packets are to be sent on before the network stack sees them.
    pub xdp: Option<[u8; 6]>,
}

/// Writes `UPLINKS` and `XDP_LINKS`, and attaches `kn_uplink_in`, `kn_uplink_out` and `kn_uplink_xdp`.
pub struct Uplinks {
    programs: LinkPrograms,
    maps: Maps,
    refused: BTreeMap<LinkIndex, XdpError>,
}

/// Why packets of other machines are not translated at a link.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    #[error(transparent)]
    Map(#[from] MapError),
    #[error(transparent)]
    Attach(#[from] AttachError),
}

/// The network links that have our filters, by what is pinned in `bpf_dir`: none where the programs are links, whose pins
/// are enough to find them by.
pub fn filtered_links(bpf_dir: &Path) -> Result<Vec<String>, MapError> {
    let dir = bpf_dir.join(own_directory());
    if sys::has_tcx() || !dir.join(names::UPLINKS).exists() {
        return Ok(Vec::new());
    }
    let links = Maps::open(&dir)?.uplinks()?.into_keys();
    Ok(links.filter_map(tc::link_name).collect())
}

/// Takes our filters from a network link.
pub fn remove_filters(link: &str) -> Result<(), AttachError> {
    HOOKS
        .into_iter()
        .try_for_each(|hook| tc::detach_filter(hook, link))
}

impl Uplinks {
    /// For the maps pinned in `dir`.
    pub fn new(programs: LinkPrograms, dir: &Path) -> Result<Self, MapError> {
        let maps = Maps::open(dir)?;
        Ok(Self {
            programs,
            maps,
            refused: BTreeMap::new(),
        })
    }

    /// Why links that were to run the XDP program do not, as of the last [`Self::apply`].
    pub fn refused(&self) -> &BTreeMap<LinkIndex, XdpError> {
        &self.refused
    }

    /// Makes these, and no others, the links at which packets are translated. A link that does not take the XDP program is
    /// [`Self::refused`], and served all the same. Goes on beyond a link at which that fails,
    /// and gives the first failure.
    pub fn apply(&mut self, wanted: &BTreeMap<LinkIndex, Uplink>) -> Result<(), UplinkError> {
        let mut outcome = Ok(());
        self.refused.clear();
        for index in self.without_xdp(wanted)? {
            // First the row: nothing is sent out any more by a link that may not be ready for it.
            self.maps.remove_xdp_link(index);
            self.programs.detach_xdp(index)?;
        }
        for (index, uplink) in wanted {
            let served = self.serve(*index, uplink);
            outcome = outcome.and(served);
        }
        for index in self.maps.uplinks()?.into_keys() {
            if !wanted.contains_key(&index) {
                // The programs leave alone what comes by a link without a row, or to no address of the node.
                for hook in HOOKS {
                    self.programs.detach(hook, index)?;
                }
                self.maps.remove_uplink(index);
            }
        }
        outcome
    }

    fn serve(&mut self, index: LinkIndex, uplink: &Uplink) -> Result<(), UplinkError> {
        self.maps.put_uplink(index, uplink.own)?;
        for hook in HOOKS {
            self.programs.attach(hook, index, &uplink.name)?;
        }
        let Some(mac) = uplink.xdp else {
            return Ok(());
        };
        match self.programs.attach_xdp(index) {
            Ok(()) => {
                // Many a driver can only once it runs a program.
                let takes = xdp_features(index.0).is_ok_and(|it| it.has(XdpFeatures::SEND));
                let flags = if takes { XDP_LINK_TAKES } else { 0 };
                self.maps.put_xdp_link(index, XdpLink { mac, flags })?;
            }
            Err(error) => {
                self.maps.remove_xdp_link(index);
                self.programs.detach_xdp(index)?;
                self.refused.insert(index, error);
            }
        }
        Ok(())
    }

    /// The links that have the XDP program or its row, and are to have neither.
    fn without_xdp(
        &self,
        wanted: &BTreeMap<LinkIndex, Uplink>,
    ) -> Result<BTreeSet<LinkIndex>, UplinkError> {
        let mut present: BTreeSet<LinkIndex> = self.programs.xdp_links()?.into_iter().collect();
        present.extend(self.maps.xdp_links()?.into_keys());
        present.retain(|index| wanted.get(index).is_none_or(|it| it.xdp.is_none()));
        Ok(present)
    }
}
