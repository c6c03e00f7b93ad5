//! How long handshakes took, from the kernel's buckets. Pure.

use std::time::Duration;

use agent_ebpf::abi::BackendStats;
use agent_ebpf::histogram::{BUCKETS, upper_bound_ns};

/// The time below which a share `q` of the handshakes were done, to within half an octave: the end of the bucket. `None`
/// without handshakes. Of what was beyond the last bucket's beginning nobody knows how far, so that is what it gives.
pub fn quantile(stats: &BackendStats, q: f64) -> Option<Duration> {
    let counts = || {
        stats
            .handshake_buckets
            .iter()
            .map(|count| u64::from(*count))
    };
    let total: u64 = counts().sum();
    if total == 0 {
        return None;
    }
    let rank = (q * total as f64).ceil().max(1.0);
    let mut below = 0;
    let bucket = counts().position(|count| {
        below += count;
        below as f64 >= rank
    });
    let bucket = bucket.unwrap_or(BUCKETS - 1);
    upper_bound_ns(bucket)
        .or_else(|| upper_bound_ns(bucket - 1))
        .map(Duration::from_nanos)
}

/// One bucket an octave, each with its end in seconds and its own count: the kernel has two, which is more than
/// Prometheus should store. The last has no end.
pub(super) fn octaves(stats: &BackendStats) -> Vec<(f64, u64)> {
    let mut octaves = Vec::with_capacity(BUCKETS / 2 + 1);
    let mut count = 0;
    for (bucket, more) in stats.handshake_buckets.iter().enumerate() {
        count += u64::from(*more);
        match upper_bound_ns(bucket) {
            Some(end) if bucket % 2 == 0 => {
                octaves.push((end as f64 / 1e9, std::mem::take(&mut count)));
            }
            Some(_) => {}
            None => octaves.push((f64::INFINITY, std::mem::take(&mut count))),
        }
    }
    octaves
}

#[cfg(test)]
mod tests {
    use agent_ebpf::histogram::bucket;
    use proptest::prelude::*;

    use super::*;

    fn stats(times: &[u64]) -> BackendStats {
        let mut stats = BackendStats::default();
        for ns in times {
            stats.handshake_buckets[bucket(*ns)] += 1;
        }
        stats
    }

    #[test]
    fn nothing_has_no_quantile() {
        assert_eq!(quantile(&stats(&[]), 0.5), None);
    }

    #[test]
    fn what_is_beyond_the_last_bucket_is_at_least_as_long() {
        let long = quantile(&stats(&[60_000_000_000]), 0.99).unwrap();
        assert_eq!(long, Duration::from_nanos(1 << 28));
    }

    proptest! {
        #[test]
        fn a_quantile_is_within_half_an_octave(
            mut times in prop::collection::vec(8_192_u64..250_000_000, 1..50),
            percent in 1_u32..=100,
        ) {
            let found = quantile(&stats(&times), f64::from(percent) / 100.0).unwrap();
            times.sort_unstable();
            let rank = (times.len() * percent as usize).div_ceil(100);
            let exact = times[rank - 1] as f64;
            let ratio = found.as_nanos() as f64 / exact;
            prop_assert!((1.0..=1.5).contains(&ratio), "{ratio}");
        }

        #[test]
        fn octaves_keep_every_count(times in prop::collection::vec(any::<u64>(), 0..50)) {
            let octaves = octaves(&stats(&times));
            prop_assert_eq!(octaves.iter().map(|(_, count)| count).sum::<u64>(), times.len() as u64);
            prop_assert!(octaves.windows(2).all(|pair| pair[0].0 < pair[1].0));
            for (index, (end, _)) in octaves.iter().enumerate() {
                let below = times.iter().filter(|ns| (**ns as f64 / 1e9) < *end).count() as u64;
                let sum: u64 = octaves[..=index].iter().map(|(_, count)| count).sum();
                prop_assert!(sum == below || end.is_infinite());
            }
        }
    }
}
