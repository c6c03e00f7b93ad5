//! What the agent was told, in the words of a kubelet's configuration file (`kubelet.config.k8s.io/v1beta1`). Pure.

use serde_json::{Value, json};

use super::AgentConfig;

/// Where the kubelet API answers.
pub const KUBELET_PORT: u16 = 10250;

impl AgentConfig {
    /// The settings that have a name there, those that cannot be changed here included.
    pub fn configz(&self) -> Value {
        let keeping = &self.housekeeping;
        json!({
            "evictionHard": keeping.eviction_hard.to_json(),
            "evictionSoft": keeping.eviction_soft.to_json(),
            "evictionSoftGracePeriod": keeping.eviction_soft_grace_period.to_json(),
            "evictionMinimumReclaim": keeping.eviction_minimum_reclaim.to_json(),
            "evictionMaxPodGracePeriod": keeping.eviction_max_pod_grace_period,
            "evictionPressureTransitionPeriod": keeping.eviction_pressure_transition_period.to_string(),
            "imageGCHighThresholdPercent": keeping.image_gc_high_threshold,
            "imageGCLowThresholdPercent": keeping.image_gc_low_threshold,
            "imageMinimumGCAge": keeping.minimum_image_ttl_duration.to_string(),
            "shutdownGracePeriod": self.shutdown.shutdown_grace_period.to_string(),
            "shutdownGracePeriodCriticalPods": self.shutdown.shutdown_grace_period_critical_pods.to_string(),
            "staticPodPath": self.pod_manifest_path,
            "allowedUnsafeSysctls": self.allowed_unsafe_sysctls,
            "fileCheckFrequency": "20s",
            "enableServer": true,
            "port": KUBELET_PORT,
            "authentication": {
                "x509": {},
                "webhook": {"enabled": true, "cacheTTL": "2m0s"},
                "anonymous": {"enabled": false},
            },
            "authorization": {
                "mode": "Webhook",
                "webhook": {"cacheAuthorizedTTL": "5m0s", "cacheUnauthorizedTTL": "30s"},
            },
            "serverTLSBootstrap": true,
            "rotateCertificates": true,
            "clusterDomain": self.cluster_domain,
            "cgroupRoot": self.cgroup_parent,
            "cgroupDriver": "cgroupfs",
            "cgroupsPerQOS": true,
            "containerRuntimeEndpoint": format!("unix://{}", self.containerd.display()),
            "maxPods": self.max_pods,
            "podPidsLimit": self.pod_max_pids,
            "nodeStatusUpdateFrequency": "10s",
            "nodeStatusReportFrequency": "5m0s",
            "nodeLeaseDurationSeconds": 40,
            "serializeImagePulls": false,
        })
    }
}
