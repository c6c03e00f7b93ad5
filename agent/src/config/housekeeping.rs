//! When the node counts as short of something, in a kubelet's words.

use clap::Args;

use crate::housekeeping::eviction::{Rules, Threshold};
use crate::housekeeping::images::ImageRules;
use crate::housekeeping::signal::{Amount, BySignal, GoDuration, graces, reclaims, thresholds};

/// Thresholds of eviction and of image collection. Each has the meaning, and the default, that a kubelet's flag of the same name has.
#[derive(Args, Clone, Debug)]
pub struct HousekeepingConfig {
    /// Below which of these pods are evicted at once: memory.available, nodefs.available, nodefs.inodesFree,
    /// imagefs.available, imagefs.inodesFree and pid.available
    #[arg(
        long,
        env = "KERNELET_EVICTION_HARD",
        value_name = "SIGNAL<AMOUNT,…",
        default_value = "memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%,imagefs.available<15%,imagefs.inodesFree<5%",
        value_parser = thresholds
    )]
    pub eviction_hard: BySignal<Amount>,
    /// Below which of these pods are evicted when that lasts
    #[arg(long, env = "KERNELET_EVICTION_SOFT", value_name = "SIGNAL<AMOUNT,…", default_value = "", value_parser = thresholds)]
    pub eviction_soft: BySignal<Amount>,
    /// How long each soft threshold has to last
    #[arg(long, env = "KERNELET_EVICTION_SOFT_GRACE_PERIOD", value_name = "SIGNAL=TIME,…", default_value = "", value_parser = graces)]
    pub eviction_soft_grace_period: BySignal<GoDuration>,
    /// How much beyond its threshold is to be free before reclaiming stops
    #[arg(long, env = "KERNELET_EVICTION_MINIMUM_RECLAIM", value_name = "SIGNAL=AMOUNT,…", default_value = "", value_parser = reclaims)]
    pub eviction_minimum_reclaim: BySignal<Amount>,
    /// Seconds that a pod evicted after a soft threshold may take to end, at most
    #[arg(
        long,
        env = "KERNELET_EVICTION_MAX_POD_GRACE_PERIOD",
        value_name = "SECONDS",
        default_value_t = 0
    )]
    pub eviction_max_pod_grace_period: u32,
    /// How long a condition of the node holds after the last of its thresholds
    #[arg(
        long,
        env = "KERNELET_EVICTION_PRESSURE_TRANSITION_PERIOD",
        value_name = "TIME",
        default_value = "5m0s"
    )]
    pub eviction_pressure_transition_period: GoDuration,
    /// Per cent of the images' file system from which on unused images are removed
    #[arg(long, env = "KERNELET_IMAGE_GC_HIGH_THRESHOLD", value_name = "PERCENT", default_value_t = 85, value_parser = clap::value_parser!(u64).range(0..=100))]
    pub image_gc_high_threshold: u64,
    /// Per cent to which that brings it
    #[arg(long, env = "KERNELET_IMAGE_GC_LOW_THRESHOLD", value_name = "PERCENT", default_value_t = 80, value_parser = clap::value_parser!(u64).range(0..=100))]
    pub image_gc_low_threshold: u64,
    /// An image is not removed before it was here for so long
    #[arg(
        long,
        env = "KERNELET_MINIMUM_IMAGE_TTL_DURATION",
        value_name = "TIME",
        default_value = "2m0s"
    )]
    pub minimum_image_ttl_duration: GoDuration,
}

impl HousekeepingConfig {
    /// The thresholds; an error where they make no sense together.
    pub fn rules(&self) -> Result<Rules, String> {
        let thresholds: Vec<Threshold> = Rules::thresholds(
            &self.eviction_hard,
            &self.eviction_soft,
            &self.eviction_soft_grace_period,
            &self.eviction_minimum_reclaim,
        )?;
        Ok(Rules {
            thresholds,
            max_pod_grace: jiff::SignedDuration::from_secs(
                self.eviction_max_pod_grace_period.into(),
            ),
            transition: self.eviction_pressure_transition_period.0,
        })
    }

    pub fn image_rules(&self) -> Result<ImageRules, String> {
        let (high, low) = (self.image_gc_high_threshold, self.image_gc_low_threshold);
        if low >= high && high < 100 {
            return Err(format!(
                "--image-gc-low-threshold {low} is not below --image-gc-high-threshold {high}"
            ));
        }
        Ok(ImageRules {
            high_threshold: high,
            low_threshold: low,
            min_age: self.minimum_image_ttl_duration.0,
        })
    }
}
