//! An IP address, as the rows hold it.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IP address in network order. An IPv4 address stands as `::ffff:a.b.c.d` (RFC 4291, section 2.5.5.2), which is also
/// how an IPv6 socket dials it: one key for one service, whatever the socket.
///
/// Held as words: BPF has no unaligned access, so bytes would be copied and compared one by one.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Address([u32; 4]);

impl Address {
    /// What stands before the octets of an IPv4 address.
    const MAPPED: [u32; 3] = [0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff])];

    /// The IPv4 address `octets`, in network order.
    #[inline(always)]
    pub const fn v4(octets: [u8; 4]) -> Self {
        Self::v4_word(u32::from_ne_bytes(octets))
    }

    /// The IPv4 address whose octets lie in `word` in network order.
    #[inline(always)]
    pub const fn v4_word(word: u32) -> Self {
        let [a, b, c] = Self::MAPPED;
        Self([a, b, c, word])
    }

    /// The address whose sixteen octets lie in `words` in network order.
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self(words)
    }

    /// The sixteen octets, in network order, a word for each four.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        self.0
    }

    /// The sixteen octets, in network order.
    #[inline(always)]
    pub const fn octets(&self) -> [u8; 16] {
        let [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]] = [
            self.0[0].to_ne_bytes(),
            self.0[1].to_ne_bytes(),
            self.0[2].to_ne_bytes(),
            self.0[3].to_ne_bytes(),
        ];
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }

    /// The octets of an IPv4 address, in network order; `None` for an IPv6 address.
    #[inline(always)]
    pub const fn as_v4(&self) -> Option<[u8; 4]> {
        let [a, b, c, word] = self.0;
        let [x, y, z] = Self::MAPPED;
        if a == x && b == y && c == z {
            Some(word.to_ne_bytes())
        } else {
            None
        }
    }

    /// The address that it stands for.
    pub fn to_ip(self) -> IpAddr {
        match self.as_v4() {
            Some(octets) => IpAddr::V4(octets.into()),
            None => IpAddr::V6(self.octets().into()),
        }
    }
}

/// As the octets are ordered.
impl Ord for Address {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        self.octets().cmp(&other.octets())
    }
}

impl PartialOrd for Address {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl From<[u8; 16]> for Address {
    #[inline(always)]
    fn from(octets: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
        let word = u32::from_ne_bytes;
        Self([
            word([a, b, c, d]),
            word([e, f, g, h]),
            word([i, j, k, l]),
            word([m, n, o, p]),
        ])
    }
}

impl From<Ipv4Addr> for Address {
    fn from(ip: Ipv4Addr) -> Self {
        Self::v4(ip.octets())
    }
}

impl From<Ipv6Addr> for Address {
    fn from(ip: Ipv6Addr) -> Self {
        ip.octets().into()
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => ip.into(),
            IpAddr::V6(ip) => ip.into(),
        }
    }
}

impl core::fmt::Debug for Address {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Debug::fmt(&self.to_ip(), f)
    }
}

impl core::fmt::Display for Address {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(&self.to_ip(), f)
    }
}
