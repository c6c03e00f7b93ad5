//! Keys and values of the maps by which programs reach pods past the node's routes, and of those that count pods' traffic.

use super::{Address, LinkIndex};

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Value of `POD_ADDRESSES`, whose keys are pods' addresses: where the pod of this node is that has it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodTarget {
    /// The row's own key: the kernel may hand the memory of a row that is removed to another one while a program still
    /// reads it. A reader looks at it last.
    pub address: Address,
    /// The node's end of the pod's link.
    pub link: LinkIndex,
    /// Of the pod's end, and of the node's, in the order of a frame's header.
    pub pod_mac: Mac,
    pub node_mac: Mac,
}

/// Value of `POD_TRAFFIC`, keyed by [`LinkIndex`]: what passed a pod's link, as the link counts it. Segments that go through
/// the node as one large packet are one. What is dropped is not among it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodTraffic {
    pub sent: Passed,
    pub received: Passed,
}

/// What passed in one direction.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Passed {
    pub packets: u64,
    /// Of whole frames.
    pub bytes: u64,
}

#[cfg(feature = "user")]
mod pod {
    use super::{PodTarget, PodTraffic};

    // SAFETY: `repr(C)`, no implicit padding and valid for any bit pattern; a test checks the sizes.
    unsafe impl aya::Pod for PodTarget {}
    // SAFETY: as above.
    unsafe impl aya::Pod for PodTraffic {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_have_no_implicit_padding() {
        assert_eq!(size_of::<PodTarget>(), 16 + 4 + 6 + 6);
        assert_eq!(size_of::<PodTraffic>(), 4 * 8);
    }
}
