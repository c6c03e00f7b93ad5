//! Which images give way when their file system fills up. Pure.
//!
//! At the high threshold as much is to be freed as brings it to the low one: first what was not used for the longest time.
//! An image that a container uses, one that is pinned and one that has only just come stay.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use super::eviction::Observation;
use crate::runtime::ImageSummary;

/// What flags say, in a kubelet's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageRules {
    /// In per cent of the file system.
    pub high_threshold: u64,
    pub low_threshold: u64,
    /// An image is not removed before it was here for so long.
    pub min_age: SignedDuration,
}

/// How many bytes are to be freed.
pub fn to_free(rules: &ImageRules, disk: Observation) -> Option<u64> {
    let free = disk
        .available
        .saturating_mul(100)
        .checked_div(disk.capacity)?;
    let used = 100_u64.saturating_sub(free);
    let wanted = disk.capacity / 100 * 100_u64.saturating_sub(rules.low_threshold);
    (used >= rules.high_threshold).then(|| wanted.saturating_sub(disk.available))
}

/// When images came and were used last, by digest; as far as this agent has seen it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImageMemory(BTreeMap<String, Seen>);

#[derive(Clone, Copy, Debug, PartialEq)]
struct Seen {
    first: Timestamp,
    used: Option<Timestamp>,
}

impl ImageMemory {
    /// Takes in what there is now.
    pub fn look(&mut self, images: &[ImageSummary], now: Timestamp) {
        let mut before = std::mem::take(&mut self.0);
        for image in images {
            let known = before.remove(&image.digest);
            let mut seen = known.unwrap_or(Seen {
                first: now,
                used: None,
            });
            if image.in_use {
                seen.used = Some(now);
            }
            self.0.insert(image.digest.clone(), seen);
        }
    }

    /// The images to remove so that so many bytes are freed, or all that may go if those are fewer.
    pub fn choose<'a>(
        &self,
        images: &'a [ImageSummary],
        bytes: u64,
        min_age: SignedDuration,
        now: Timestamp,
    ) -> Vec<&'a ImageSummary> {
        let mut may_go: Vec<(Seen, &ImageSummary)> = images
            .iter()
            .filter(|image| !image.in_use && !image.is_pinned)
            .filter_map(|image| Some((*self.0.get(&image.digest)?, image)))
            .filter(|(seen, _)| now.duration_since(seen.first) >= min_age)
            .collect();
        may_go.sort_by_key(|(seen, image)| (seen.used, seen.first, image.digest.clone()));
        let mut freed = 0_u64;
        may_go
            .into_iter()
            .map(|(_, image)| image)
            .take_while(|image| {
                let is_needed = freed < bytes;
                freed = freed.saturating_add(image.size_bytes);
                is_needed
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn image(digest: &str, size_bytes: u64) -> ImageSummary {
        ImageSummary {
            names: vec![format!("{digest}:latest")],
            digest: digest.into(),
            size_bytes,
            in_use: false,
            is_pinned: false,
        }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000_000 + seconds).unwrap()
    }

    const MIN_AGE: SignedDuration = SignedDuration::from_secs(120);

    fn chosen(memory: &ImageMemory, images: &[ImageSummary], bytes: u64, now: i64) -> Vec<String> {
        let chosen = memory.choose(images, bytes, MIN_AGE, at(now));
        chosen.iter().map(|image| image.digest.clone()).collect()
    }

    #[test]
    fn so_much_is_freed_that_the_low_threshold_is_reached() {
        let rules = ImageRules {
            high_threshold: 85,
            low_threshold: 80,
            min_age: MIN_AGE,
        };
        let free = |available, capacity| {
            to_free(
                &rules,
                Observation {
                    available,
                    capacity,
                },
            )
        };
        assert_eq!(free(160, 1000), None);
        assert_eq!(free(150, 1000), Some(50));
        assert_eq!(free(0, 1000), Some(200));
        assert_eq!(free(0, 0), None, "nothing is known of it");
    }

    #[test]
    fn the_longest_unused_go_first_and_the_used_pinned_and_new_stay() {
        let mut images = vec![
            image("old", 10),
            image("used", 10),
            image("late", 10),
            image("pinned", 10),
        ];
        (images[1].in_use, images[3].is_pinned) = (true, true);
        let mut memory = ImageMemory::default();
        memory.look(&images, at(0));
        images[2].in_use = true;
        memory.look(&images, at(60));
        images[2].in_use = false;
        images.push(image("new", 10));
        memory.look(&images, at(119));
        assert_eq!(
            chosen(&memory, &images, 100, 119),
            [""; 0],
            "all are too young"
        );
        assert_eq!(chosen(&memory, &images, 1, 120), ["old"]);
        assert_eq!(chosen(&memory, &images, 10, 120), ["old"]);
        assert_eq!(chosen(&memory, &images, 11, 120), ["old", "late"]);
        assert_eq!(
            chosen(&memory, &images, u64::MAX, 239),
            ["old", "new", "late"],
            "never used comes before used once"
        );
        images.remove(0);
        memory.look(&images, at(300));
        images.insert(0, image("old", 10));
        memory.look(&images, at(310));
        assert_eq!(
            chosen(&memory, &images, 1, 310),
            ["new"],
            "what came back is new"
        );
    }

    proptest! {
        #[test]
        fn none_too_many_go_and_none_that_must_not(
            all in prop::collection::vec((0..50u64, any::<bool>(), any::<bool>(), 0..200i64), 0..12),
            bytes in 0..300u64,
        ) {
            let mut images = Vec::new();
            let mut memory = ImageMemory::default();
            let mut order: Vec<_> = all.iter().enumerate().collect();
            order.sort_by_key(|(_, (_, _, _, came))| *came);
            for (n, (size, in_use, is_pinned, came)) in order {
                images.push(ImageSummary { in_use: *in_use, is_pinned: *is_pinned, ..image(&n.to_string(), *size) });
                memory.look(&images, at(*came));
            }
            let gone = memory.choose(&images, bytes, MIN_AGE, at(200));
            for image in &gone {
                prop_assert!(!image.in_use && !image.is_pinned);
                let (_, _, _, came) = all[image.digest.parse::<usize>().unwrap()];
                prop_assert!(200 - came >= 120);
            }
            let without_last: u64 = gone.iter().rev().skip(1).map(|image| image.size_bytes).sum();
            prop_assert!(gone.is_empty() || without_last < bytes);
        }
    }
}
