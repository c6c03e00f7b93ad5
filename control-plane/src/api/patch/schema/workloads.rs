//! The kinds that make pods, and those that watch over them.

use super::{
    Field, METADATA, Merge, Owned, POD_TEMPLATE_SPEC, TYPE, Type, by_key, plain, values, whole,
};

static STATEFUL_SET_SPEC: Type = Type {
    name: "io.k8s.api.apps.v1.StatefulSetSpec",
    fields: &[whole("selector"), plain("template", &POD_TEMPLATE_SPEC)],
};

static STATEFUL_SET_STATUS: Type = Type {
    name: "io.k8s.api.apps.v1.StatefulSetStatus",
    fields: &[by_key("conditions", TYPE, None)],
};

static STATEFUL_SET: Type = Type {
    name: "io.k8s.api.apps.v1.StatefulSet",
    fields: &[
        METADATA,
        plain("spec", &STATEFUL_SET_SPEC),
        plain("status", &STATEFUL_SET_STATUS),
    ],
};

static DAEMON_SET_SPEC: Type = Type {
    name: "io.k8s.api.apps.v1.DaemonSetSpec",
    fields: &[whole("selector"), plain("template", &POD_TEMPLATE_SPEC)],
};

static DAEMON_SET_STATUS: Type = Type {
    name: "io.k8s.api.apps.v1.DaemonSetStatus",
    fields: &[by_key("conditions", TYPE, None)],
};

static DAEMON_SET: Type = Type {
    name: "io.k8s.api.apps.v1.DaemonSet",
    fields: &[
        METADATA,
        plain("spec", &DAEMON_SET_SPEC),
        plain("status", &DAEMON_SET_STATUS),
    ],
};

static CONTROLLER_REVISION: Type = Type {
    name: "io.k8s.api.apps.v1.ControllerRevision",
    fields: &[METADATA],
};

static JOB_SPEC: Type = Type {
    name: "io.k8s.api.batch.v1.JobSpec",
    fields: &[whole("selector"), plain("template", &POD_TEMPLATE_SPEC)],
};

static UNCOUNTED_PODS: Type = Type {
    name: "io.k8s.api.batch.v1.UncountedTerminatedPods",
    fields: &[values("failed"), values("succeeded")],
};

static JOB_STATUS: Type = Type {
    name: "io.k8s.api.batch.v1.JobStatus",
    fields: &[
        // Merged by those who patch, and yet of one owner.
        Field {
            owned: Owned::Whole,
            ..by_key("conditions", TYPE, None)
        },
        plain("uncountedTerminatedPods", &UNCOUNTED_PODS),
    ],
};

static JOB: Type = Type {
    name: "io.k8s.api.batch.v1.Job",
    fields: &[
        METADATA,
        plain("spec", &JOB_SPEC),
        plain("status", &JOB_STATUS),
    ],
};

static JOB_TEMPLATE_SPEC: Type = Type {
    name: "io.k8s.api.batch.v1.JobTemplateSpec",
    fields: &[METADATA, plain("spec", &JOB_SPEC)],
};

static CRON_JOB_SPEC: Type = Type {
    name: "io.k8s.api.batch.v1.CronJobSpec",
    fields: &[plain("jobTemplate", &JOB_TEMPLATE_SPEC)],
};

static CRON_JOB: Type = Type {
    name: "io.k8s.api.batch.v1.CronJob",
    fields: &[METADATA, plain("spec", &CRON_JOB_SPEC)],
};

static DISRUPTION_BUDGET_SPEC: Type = Type {
    name: "io.k8s.api.policy.v1.PodDisruptionBudgetSpec",
    fields: &[Field {
        merge: Merge::Replace,
        ..whole("selector")
    }],
};

static DISRUPTION_BUDGET_STATUS: Type = Type {
    name: "io.k8s.api.policy.v1.PodDisruptionBudgetStatus",
    fields: &[by_key("conditions", TYPE, None)],
};

static DISRUPTION_BUDGET: Type = Type {
    name: "io.k8s.api.policy.v1.PodDisruptionBudget",
    fields: &[
        METADATA,
        plain("spec", &DISRUPTION_BUDGET_SPEC),
        plain("status", &DISRUPTION_BUDGET_STATUS),
    ],
};

static AUTOSCALER_SPEC: Type = Type {
    name: "io.k8s.api.autoscaling.v2.HorizontalPodAutoscalerSpec",
    fields: &[whole("scaleTargetRef")],
};

static AUTOSCALER_STATUS: Type = Type {
    name: "io.k8s.api.autoscaling.v2.HorizontalPodAutoscalerStatus",
    fields: &[by_key("conditions", TYPE, None)],
};

static AUTOSCALER: Type = Type {
    name: "io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler",
    fields: &[
        METADATA,
        plain("spec", &AUTOSCALER_SPEC),
        plain("status", &AUTOSCALER_STATUS),
    ],
};

static OLDER_AUTOSCALER_SPEC: Type = Type {
    name: "io.k8s.api.autoscaling.v1.HorizontalPodAutoscalerSpec",
    fields: &[whole("scaleTargetRef")],
};

static OLDER_AUTOSCALER: Type = Type {
    name: "io.k8s.api.autoscaling.v1.HorizontalPodAutoscaler",
    fields: &[METADATA, plain("spec", &OLDER_AUTOSCALER_SPEC)],
};

static REPLICATION_CONTROLLER_SPEC: Type = Type {
    name: "io.k8s.api.core.v1.ReplicationControllerSpec",
    fields: &[whole("selector"), plain("template", &POD_TEMPLATE_SPEC)],
};

static REPLICATION_CONTROLLER_STATUS: Type = Type {
    name: "io.k8s.api.core.v1.ReplicationControllerStatus",
    fields: &[by_key("conditions", TYPE, None)],
};

static REPLICATION_CONTROLLER: Type = Type {
    name: "io.k8s.api.core.v1.ReplicationController",
    fields: &[
        METADATA,
        plain("spec", &REPLICATION_CONTROLLER_SPEC),
        plain("status", &REPLICATION_CONTROLLER_STATUS),
    ],
};

static POD_TEMPLATE: Type = Type {
    name: "io.k8s.api.core.v1.PodTemplate",
    fields: &[METADATA, plain("template", &POD_TEMPLATE_SPEC)],
};

pub(super) static TYPES: &[&Type] = &[
    &STATEFUL_SET_SPEC,
    &STATEFUL_SET_STATUS,
    &STATEFUL_SET,
    &DAEMON_SET_SPEC,
    &DAEMON_SET_STATUS,
    &DAEMON_SET,
    &CONTROLLER_REVISION,
    &JOB_SPEC,
    &UNCOUNTED_PODS,
    &JOB_STATUS,
    &JOB,
    &JOB_TEMPLATE_SPEC,
    &CRON_JOB_SPEC,
    &CRON_JOB,
    &DISRUPTION_BUDGET_SPEC,
    &DISRUPTION_BUDGET_STATUS,
    &DISRUPTION_BUDGET,
    &AUTOSCALER_SPEC,
    &AUTOSCALER_STATUS,
    &AUTOSCALER,
    &OLDER_AUTOSCALER_SPEC,
    &OLDER_AUTOSCALER,
    &REPLICATION_CONTROLLER_SPEC,
    &REPLICATION_CONTROLLER_STATUS,
    &REPLICATION_CONTROLLER,
    &POD_TEMPLATE,
];
