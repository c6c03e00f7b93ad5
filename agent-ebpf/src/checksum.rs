//! The Internet checksum (RFC 1071), and how it changes with what it covers (RFC 1624). Pure.

/// A one's complement sum of 16-bit words in network order, not folded yet. Differences are sums, too: to take a word
/// away is to add its complement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u32);

impl Sum {
    /// The sum of `bytes`, the last of which is taken with a zero behind it when their number is odd.
    pub fn of(bytes: &[u8]) -> Self {
        let (words, last) = bytes.as_chunks::<2>();
        let sum = words
            .iter()
            .fold(Sum::default(), |sum, word| sum.add(*word));
        match last {
            [last] => sum.add([*last, 0]),
            _ => sum,
        }
    }

    /// With `word` added.
    #[inline(always)]
    #[must_use]
    pub const fn add(self, word: [u8; 2]) -> Self {
        Self(fold(self.0) + u16::from_be_bytes(word) as u32)
    }

    /// The sum of words as they lie in memory, taken four bytes at once: whichever end of a word is first, only the result's
    /// octets change places (RFC 1071, section 2 B).
    #[inline(always)]
    pub const fn of_native(words: u64) -> Self {
        let sum = (words & 0xffff_ffff) + (words >> 32);
        let sum = (sum & 0xffff_ffff) + (sum >> 32);
        let [a, b] = (fold(fold(sum as u32)) as u16).to_ne_bytes();
        Self(u16::from_be_bytes([a, b]) as u32)
    }

    /// With `other` added.
    #[inline(always)]
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(fold(self.0) + fold(other.0))
    }

    /// With `old` replaced by `new`.
    #[inline(always)]
    #[must_use]
    pub const fn replace(self, old: [u8; 2], new: [u8; 2]) -> Self {
        self.add(complement(old)).add(new)
    }

    /// The sum in 16 bits, in network order.
    #[inline(always)]
    pub const fn folded(self) -> [u8; 2] {
        (fold(fold(self.0)) as u16).to_be_bytes()
    }

    /// The checksum that makes up for this sum.
    #[inline(always)]
    pub const fn checksum(self) -> [u8; 2] {
        complement(self.folded())
    }
}

#[inline(always)]
const fn fold(sum: u32) -> u32 {
    (sum & 0xffff) + (sum >> 16)
}

#[inline(always)]
const fn complement(word: [u8; 2]) -> [u8; 2] {
    [!word[0], !word[1]]
}

/// The checksum after what it covers changed by `difference` (RFC 1624, equation 3).
#[inline(always)]
pub const fn updated(checksum: [u8; 2], difference: Sum) -> [u8; 2] {
    Sum(0).add(complement(checksum)).plus(difference).checksum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_example_of_rfc_1071_holds() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::of(&bytes).folded(), [0xdd, 0xf2]);
        assert_eq!(Sum::of(&[0x12]).folded(), [0x12, 0]);
    }

    #[test]
    fn the_example_of_rfc_1624_holds() {
        let difference = Sum::default().replace([0x55, 0x55], [0x32, 0x85]);
        assert_eq!(updated([0xdd, 0x2f], difference), [0, 0]);
    }

    proptest! {
        #[test]
        fn four_bytes_at_once_make_the_same_sum(words: [[u8; 4]; 10]) {
            let total = words.iter().map(|it| u64::from(u32::from_ne_bytes(*it))).sum();
            let once = Sum::of_native(total).folded();
            prop_assert_eq!(once, Sum::of(words.as_flattened()).folded());
        }

        /// An updated checksum is the one that a fresh computation gives, but for the two forms of zero.
        #[test]
        fn updating_is_computing_anew(
            mut bytes in proptest::collection::vec(any::<u8>(), 2..80),
            at: prop::sample::Index,
            word: [u8; 2],
        ) {
            let before = Sum::of(&bytes).checksum();
            let at = at.index(bytes.len() / 2) * 2;
            let old = [bytes[at], bytes[at + 1]];
            bytes[at..at + 2].copy_from_slice(&word);
            let after = updated(before, Sum::default().replace(old, word));
            let fresh = Sum::of(&bytes).checksum();
            let zero = |sum| sum == [0, 0] || sum == [0xff, 0xff];
            prop_assert!(after == fresh || zero(after) && zero(fresh), "{after:?} {fresh:?}");
            prop_assert_eq!(Sum::of(&bytes).add(fresh).folded(), [0xff, 0xff]);
        }
    }
}
