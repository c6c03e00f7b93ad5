use k8s_openapi::api::autoscaling::v1::HorizontalPodAutoscaler as Older;

use super::*;

fn autoscaler(spec: Value) -> HorizontalPodAutoscaler {
    let mut value = json!({
        "metadata": { "name": "web" },
        "spec": { "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": "web" }, "maxReplicas": 5 },
    });
    for (field, one) in spec.as_object().into_iter().flatten() {
        value["spec"][field] = one.clone();
    }
    let mut autoscaler: HorizontalPodAutoscaler = serde_json::from_value(value).unwrap();
    autoscaler.set_defaults();
    autoscaler
}

fn errors(spec: Value) -> Vec<String> {
    let errors = Strategy::validate(&autoscaler(spec), None);
    errors.iter().map(ToString::to_string).collect()
}

#[test]
fn a_plain_one_looks_at_cpu() {
    let plain =
        autoscaler(json!({ "behavior": { "scaleDown": { "stabilizationWindowSeconds": 60 } } }));
    let spec = serde_json::to_value(&plain.spec).unwrap();
    assert_eq!(spec["minReplicas"], 1);
    assert_eq!(
        spec["metrics"],
        json!([{ "type": "Resource", "resource": { "name": "cpu", "target": { "type": "Utilization", "averageUtilization": 80 } } }])
    );
    assert_eq!(
        spec["behavior"],
        json!({
            "scaleUp": { "selectPolicy": "Max", "stabilizationWindowSeconds": 0, "policies": [
                { "type": "Pods", "value": 4, "periodSeconds": 15 }, { "type": "Percent", "value": 100, "periodSeconds": 15 },
            ] },
            "scaleDown": { "selectPolicy": "Max", "stabilizationWindowSeconds": 60, "policies": [
                { "type": "Percent", "value": 100, "periodSeconds": 15 },
            ] },
        })
    );
    assert_eq!(
        Value::from(plain.row(0)),
        json!([
            "web",
            "Deployment/web",
            "cpu: <unknown>/80%",
            "1",
            "5",
            "0",
            "<unknown>"
        ])
    );
}

#[test]
fn numbers_make_sense() {
    assert_eq!(errors(json!({})), Vec::<String>::new());
    assert_eq!(
        errors(
            json!({ "minReplicas": 0, "maxReplicas": -1, "scaleTargetRef": { "kind": "", "name": "a/b" } })
        ),
        [
            "spec.minReplicas: Invalid value: 0: must be greater than or equal to 1",
            "spec.maxReplicas: Invalid value: -1: must be greater than 0",
            "spec.maxReplicas: Invalid value: -1: must be greater than or equal to `minReplicas`",
            "spec.scaleTargetRef.kind: Required value",
            "spec.scaleTargetRef.name: Invalid value: \"a/b\": may not contain '/'",
        ]
    );
    assert_eq!(
        errors(json!({ "behavior": { "scaleUp": {
            "stabilizationWindowSeconds": 3601, "selectPolicy": "Some",
            "policies": [{ "type": "Nodes", "value": 0, "periodSeconds": 1801 }],
        } } })),
        [
            "spec.behavior.scaleUp.stabilizationWindowSeconds: Invalid value: 3601: must be less than or equal to 3600",
            "spec.behavior.scaleUp.selectPolicy: Unsupported value: \"Some\": supported values: \"Disabled\", \"Max\", \"Min\"",
            "spec.behavior.scaleUp.policies[0].type: Unsupported value: \"Nodes\": supported values: \"Percent\", \"Pods\"",
            "spec.behavior.scaleUp.policies[0].value: Invalid value: 0: must be greater than zero",
            "spec.behavior.scaleUp.policies[0].periodSeconds: Invalid value: 1801: must be less than or equal to 1800",
        ]
    );
}

#[test]
fn a_metric_says_what_it_should_be() {
    let metrics = json!([
        { "type": "Resource", "resource": { "name": "memory", "target": { "type": "Utilization", "averageUtilization": 0, "averageValue": "0" } } },
        { "type": "Pods" },
        { "type": "Object", "object": { "describedObject": { "kind": "Ingress", "name": "i" }, "metric": { "name": "" }, "target": { "type": "Some" } } },
        { "type": "Resource", "pods": { "metric": { "name": "m" }, "target": { "type": "AverageValue", "averageValue": "1" } } },
    ]);
    assert_eq!(
        errors(json!({ "metrics": metrics })),
        [
            "spec.metrics[0].resource.target.averageValue: Invalid value: \"0\": must be positive",
            "spec.metrics[0].resource.target.averageUtilization: Invalid value: 0: must be greater than 0",
            "spec.metrics[0].resource.target.averageValue: Forbidden: may not set both a target raw value and a target utilization",
            "spec.metrics[1].pods: Required value: must populate information for the given metric source",
            "spec.metrics[2].object.metric.name: Required value: must specify a metric name",
            "spec.metrics[2].object.target.type: Invalid value: \"Some\": must be either Utilization, Value, or AverageValue",
            "spec.metrics[2].object.target.averageValue: Required value: must set either a target value or averageValue",
            "spec.metrics[3].resource: Required value: must populate information for the given metric source",
        ]
    );
}

/// One metric of each kind.
fn all_metrics() -> Value {
    json!([
        { "type": "Pods", "pods": { "metric": { "name": "rps", "selector": { "matchLabels": { "a": "b" } } }, "target": { "type": "AverageValue", "averageValue": "10" } } },
        { "type": "External", "external": { "metric": { "name": "queue", "selector": { "matchLabels": { "a": "b" } } }, "target": { "type": "Value", "value": "30" } } },
        { "type": "Object", "object": { "describedObject": { "kind": "Ingress", "name": "i" }, "metric": { "name": "hits" }, "target": { "type": "AverageValue", "averageValue": "2" } } },
        { "type": "ContainerResource", "containerResource": { "name": "cpu", "container": "c", "target": { "type": "Utilization", "averageUtilization": 60 } } },
        { "type": "Resource", "resource": { "name": "memory", "target": { "type": "AverageValue", "averageValue": "64Mi" } } },
        { "type": "Resource", "resource": { "name": "cpu", "target": { "type": "Utilization", "averageUtilization": 70 } } },
    ])
}

#[test]
fn both_versions_are_one_object() {
    let mut whole = autoscaler(json!({ "metrics": all_metrics(), "behavior": {} }));
    whole.metadata.annotations = Some([("note".to_owned(), "x".to_owned())].into());
    whole.status = serde_json::from_value(json!({
        "currentReplicas": 2, "desiredReplicas": 3,
        "conditions": [{ "type": "AbleToScale", "status": "True" }],
        "currentMetrics": [
            { "type": "Resource", "resource": { "name": "cpu", "current": { "averageUtilization": 55, "averageValue": "110m" } } },
            { "type": "Object", "object": { "describedObject": { "kind": "Ingress", "name": "i" }, "metric": { "name": "hits" }, "current": { "averageValue": "2" } } },
        ],
    }))
    .unwrap();
    let stored = serde_json::to_value(&whole).unwrap();
    let conversion = Older::CONVERSION.unwrap();
    let older = (conversion.from_stored)(&stored).unwrap();
    assert_eq!(older["apiVersion"], "autoscaling/v1");
    assert_eq!(older["spec"]["targetCPUUtilizationPercentage"], 70);
    assert_eq!(older["status"]["currentCPUUtilizationPercentage"], 55);
    let metrics =
        older["metadata"]["annotations"]["autoscaling.alpha.kubernetes.io/metrics"].as_str();
    let metrics: Value = serde_json::from_str(metrics.unwrap()).unwrap();
    assert_eq!(
        metrics[1],
        json!({ "type": "External", "external": { "metricName": "queue", "metricSelector": { "matchLabels": { "a": "b" } }, "targetValue": "30" } })
    );
    assert_eq!(
        metrics[2],
        json!({ "type": "Object", "object": { "target": { "kind": "Ingress", "name": "i" }, "metricName": "hits", "averageValue": "2" } })
    );
    assert_eq!((conversion.to_stored)(&older).unwrap(), stored);
}

#[test]
fn the_older_version_has_the_same_rules() {
    let mut older: Older = serde_json::from_value(json!({
        "metadata": { "name": "web" },
        "spec": { "scaleTargetRef": { "kind": "Deployment", "name": "web" }, "maxReplicas": 0 },
    }))
    .unwrap();
    older.set_defaults();
    let spec = older.spec.as_ref().unwrap();
    assert_eq!(
        (spec.min_replicas, spec.target_cpu_utilization_percentage),
        (Some(1), Some(80))
    );
    let errors = Strategy::validate(&older, None);
    assert_eq!(
        errors[0].to_string(),
        "spec.maxReplicas: Invalid value: 0: must be greater than 0"
    );
    assert_eq!(older.row(0)[2], "cpu: <unknown>/80%");
}

#[test]
fn many_metrics_are_counted() {
    let row = autoscaler(json!({ "metrics": all_metrics() })).row(0);
    assert_eq!(row[2], "<unknown>/10, <unknown>/30 + 4 more...");
}
