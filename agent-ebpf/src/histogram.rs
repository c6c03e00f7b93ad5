//! Times sorted into buckets, two an octave, so that a program counts one with a shift and user space tells quantiles to
//! within half an octave.

/// Number of buckets. The first takes everything below 8 us, the last everything from 0.37 s on.
pub const BUCKETS: usize = 32;

/// log2 of the first bucket's end, in nanoseconds: 8,192.
const FIRST: u32 = 13;

/// The bucket that counts a time of `ns`.
#[inline(always)]
pub fn bucket(ns: u64) -> usize {
    if ns >> FIRST == 0 {
        return 0;
    }
    // The position of the highest bit without `leading_zeros`, which BPF would have to emulate.
    let (mut octave, mut rest) = (0, ns >> FIRST);
    let mut step = 16;
    while step > 0 {
        if rest >> step != 0 {
            octave += step;
            rest >>= step;
        }
        step /= 2;
    }
    if ns >> FIRST >= 1 << 32 {
        return BUCKETS - 1;
    }
    let half = (ns >> (octave + FIRST - 1)) & 1;
    let bucket = 1 + 2 * octave as usize + half as usize;
    if bucket < BUCKETS {
        bucket
    } else {
        BUCKETS - 1
    }
}

/// Where a bucket ends, in nanoseconds; `None` for the last, which has no end.
pub fn upper_bound_ns(bucket: usize) -> Option<u64> {
    if bucket + 1 >= BUCKETS {
        return None;
    }
    let octave = 1_u64 << (FIRST as usize + bucket.div_ceil(2));
    Some(if bucket.is_multiple_of(2) {
        octave
    } else {
        octave / 4 * 3
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn buckets_are_half_octaves_from_eight_microseconds() {
        let ends: Vec<_> = (0..4).map(upper_bound_ns).collect();
        assert_eq!(
            ends,
            [Some(8_192), Some(12_288), Some(16_384), Some(24_576)]
        );
        assert_eq!(upper_bound_ns(BUCKETS - 1), None);
        assert_eq!(bucket(0), 0);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    proptest! {
        #[test]
        fn a_time_lies_below_its_buckets_end_and_not_below_the_one_before(
            ns in prop_oneof![any::<u64>(), 0_u64..2_000_000_000],
        ) {
            let at = bucket(ns);
            if let Some(end) = upper_bound_ns(at) {
                prop_assert!(ns < end);
            }
            if at > 0 {
                prop_assert!(upper_bound_ns(at - 1).is_some_and(|start| ns >= start));
            }
        }
    }
}
