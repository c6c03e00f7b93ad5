//! Ranges of ports as prefixes, which is what a trie can look up. Pure.

/// Ports that begin with the first `bits` of `base`, in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortPrefix {
    pub base: u16,
    pub bits: u8,
}

/// The fewest prefixes that have the ports from `first` to `last`; at most 30.
pub fn prefixes(first: u16, last: u16) -> Vec<PortPrefix> {
    let (mut next, end) = (u32::from(first), u32::from(last) + 1);
    let mut found = Vec::new();
    while next < end {
        // As large as its place allows, and as what is left does.
        let place = next.trailing_zeros().min(16);
        let left = (end - next).ilog2();
        let size = place.min(left);
        found.push(PortPrefix {
            base: next as u16,
            bits: (16 - size) as u8,
        });
        next += 1 << size;
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn all_ports_are_one_prefix_and_one_port_is_one() {
        let all = PortPrefix { base: 0, bits: 0 };
        assert_eq!(prefixes(0, 65_535), [all]);
        let one = PortPrefix { base: 80, bits: 16 };
        assert_eq!(prefixes(80, 80), [one]);
        assert_eq!(prefixes(2, 1), []);
        assert_eq!(prefixes(1, 65_534).len(), 30);
    }

    proptest! {
        #[test]
        fn a_range_is_its_prefixes(a: u16, b: u16, near in -2..3_i32, port: u16) {
            let (first, last) = (a.min(b), a.max(b));
            let found = prefixes(first, last);
            prop_assert!(found.len() <= 30);
            let edges = [first, last].map(|edge| (i32::from(edge) + near) as u16);
            for port in edges.into_iter().chain([port]) {
                let count = found.iter().filter(|it| {
                    let mask = u16::MAX.checked_shl(16 - u32::from(it.bits)).unwrap_or(0);
                    port & mask == it.base
                });
                prop_assert_eq!(count.count() == 1, (first..=last).contains(&port));
            }
        }
    }
}
