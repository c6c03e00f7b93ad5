//! Event: what happened to an object. Served as core `v1`, which is stored, and as `events.k8s.io/v1`.

use k8s_openapi::api::{
    core::v1::{Event, EventSeries, EventSource},
    events::v1::{Event as Newer, EventSeries as NewerSeries},
};
use serde_json::{Value, json};

use super::{
    Column, FieldError, Strategy, age, decode,
    kind::Conversion,
    print,
    validate::{Path, names},
};

const COLUMNS: &[Column] = &[
    Column::text("Last Seen", "Time since it last happened."),
    Column::text("Type", "Normal or Warning."),
    Column::text("Reason", "One word for the cause."),
    Column::text("Object", "What it happened to."),
    Column::text("Subobject", "The part of the object that it happened to.").wide(),
    Column::text("Source", "Who reported it.").wide(),
    Column::text("Message", "What happened, for people."),
    Column::text("First Seen", "Time since it first happened.").wide(),
    Column::integer("Count", "How often it happened.").wide(),
    Column {
        priority: 1,
        ..Column::NAME
    },
];

/// The longest `note`, in bytes.
const NOTE: usize = 1024;
/// The largest event, in bytes of JSON. Upstream has no such bound; this is more than any program writes.
const LARGEST: usize = 32 * 1024;

impl Strategy for Event {
    const SINGULAR: &'static str = "event";
    const SHORT_NAMES: &'static [&'static str] = &["ev"];
    const COLUMNS: &'static [Column] = COLUMNS;

    fn row(&self, now: i64) -> Vec<Value> {
        let first = match &self.first_timestamp {
            Some(time) => age::since_time(Some(time), now),
            None => age::since_micro_time(self.event_time.as_ref(), now),
        };
        let (last, count) = match &self.series {
            Some(series) => (
                age::since_micro_time(series.last_observed_time.as_ref(), now),
                series.count.unwrap_or_default(),
            ),
            None => {
                let last = self
                    .last_timestamp
                    .as_ref()
                    .map(|time| age::since_time(Some(time), now));
                (
                    last.unwrap_or_else(|| first.clone()),
                    self.count.filter(|&count| count != 0).unwrap_or(1),
                )
            }
        };
        let object = &self.involved_object;
        let kind = object.kind.as_deref().unwrap_or_default().to_lowercase();
        vec![
            json!(last),
            json!(self.type_.as_deref().unwrap_or_default()),
            json!(self.reason.as_deref().unwrap_or_default()),
            json!(format!(
                "{kind}/{}",
                object.name.as_deref().unwrap_or_default()
            )),
            json!(object.field_path.as_deref().unwrap_or_default()),
            json!(source(self)),
            json!(self.message.as_deref().unwrap_or_default().trim()),
            json!(first),
            json!(count),
            json!(print::name(&self.metadata)),
        ]
    }

    fn validate(&self, _old: Option<&Self>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let namespace = self.metadata.namespace.as_deref().unwrap_or_default();
        let about = self
            .involved_object
            .namespace
            .as_deref()
            .unwrap_or_default();
        // Events about cluster-wide objects live in `default`.
        if namespace != about
            && !(about.is_empty() && matches!(namespace, "default" | "kube-system"))
        {
            errors.push(
                Path::new("involvedObject")
                    .child("namespace")
                    .invalid(about, "does not match event.namespace"),
            );
        }
        if !about.is_empty() {
            let path = Path::new("involvedObject").child("namespace");
            errors.extend(path.invalid_all(about, names::dns1123_label(about, false)));
        }
        if serde_json::to_vec(self).is_ok_and(|json| json.len() > LARGEST) {
            errors.push(Path::root().too_long(LARGEST));
        }
        errors
    }

    fn fields(&self) -> Vec<(&'static str, String)> {
        let object = &self.involved_object;
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let component = self
            .source
            .as_ref()
            .and_then(|source| source.component.clone());
        let reporter = self.reporting_component.clone();
        vec![
            ("involvedObject.kind", text(&object.kind)),
            ("involvedObject.namespace", text(&object.namespace)),
            ("involvedObject.name", text(&object.name)),
            ("involvedObject.uid", text(&object.uid)),
            ("involvedObject.apiVersion", text(&object.api_version)),
            (
                "involvedObject.resourceVersion",
                text(&object.resource_version),
            ),
            ("involvedObject.fieldPath", text(&object.field_path)),
            ("reason", text(&self.reason)),
            ("reportingComponent", text(&reporter)),
            (
                "source",
                component
                    .filter(|name| !name.is_empty())
                    .or(reporter)
                    .unwrap_or_default(),
            ),
            ("type", text(&self.type_)),
        ]
    }
}

/// `component, host`, whichever of the two is known.
fn source(event: &Event) -> String {
    let of = event.source.as_ref();
    let known = |text: Option<&String>| text.filter(|text| !text.is_empty()).cloned();
    let component = known(of.and_then(|source| source.component.as_ref()))
        .or_else(|| known(event.reporting_component.as_ref()));
    let host = known(of.and_then(|source| source.host.as_ref()))
        .or_else(|| known(event.reporting_instance.as_ref()));
    [component, host]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(", ")
}

impl Strategy for Newer {
    const SINGULAR: &'static str = "event";
    const SHORT_NAMES: &'static [&'static str] = &["ev"];
    const COLUMNS: &'static [Column] = COLUMNS;
    const CONVERSION: Option<Conversion> = Some(Conversion {
        group: "",
        version: "v1",
        to_stored: |value| decode::convert(value, stored),
        from_stored: |value| decode::convert(value, served),
    });

    fn row(&self, now: i64) -> Vec<Value> {
        stored(self.clone()).row(now)
    }

    fn validate(&self, old: Option<&Self>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        // What was written through the older version may lack what the newer one demands.
        if old.is_none() {
            let required = [
                ("eventTime", self.event_time.is_none()),
                ("reportingController", is_empty(&self.reporting_controller)),
                ("reportingInstance", is_empty(&self.reporting_instance)),
                ("action", is_empty(&self.action)),
                ("reason", is_empty(&self.reason)),
            ];
            errors.extend(
                required
                    .into_iter()
                    .filter(|(_, missing)| *missing)
                    .map(|(field, _)| Path::new(field).required("")),
            );
            let kind = self.type_.as_deref().unwrap_or_default();
            if !matches!(kind, "Normal" | "Warning") {
                errors.push(
                    Path::new("type").invalid(kind, "has invalid value: must be Normal or Warning"),
                );
            }
        }
        errors.extend(
            stored(self.clone())
                .validate(None)
                .into_iter()
                .map(|error| FieldError {
                    path: error.path.replace("involvedObject", "regarding"),
                    ..error
                }),
        );
        if old.is_none() && self.note.as_ref().is_some_and(|note| note.len() > NOTE) {
            errors.push(Path::new("note").too_long(NOTE));
        }
        errors
    }

    fn fields(&self) -> Vec<(&'static str, String)> {
        let mut fields = stored(self.clone()).fields();
        for (name, _) in &mut fields {
            *name = match *name {
                "involvedObject.kind" => "regarding.kind",
                "involvedObject.namespace" => "regarding.namespace",
                "involvedObject.name" => "regarding.name",
                "involvedObject.uid" => "regarding.uid",
                "involvedObject.apiVersion" => "regarding.apiVersion",
                "involvedObject.resourceVersion" => "regarding.resourceVersion",
                "involvedObject.fieldPath" => "regarding.fieldPath",
                "reportingComponent" => "reportingController",
                other => other,
            };
        }
        fields
    }
}

fn is_empty(text: &Option<String>) -> bool {
    text.as_deref().unwrap_or_default().is_empty()
}

/// The newer event as the older one.
fn stored(event: Newer) -> Event {
    Event {
        action: event.action,
        count: event.deprecated_count,
        event_time: event.event_time,
        first_timestamp: event.deprecated_first_timestamp,
        involved_object: event.regarding.unwrap_or_default(),
        last_timestamp: event.deprecated_last_timestamp,
        message: event.note,
        metadata: event.metadata,
        reason: event.reason,
        related: event.related,
        reporting_component: event.reporting_controller,
        reporting_instance: event.reporting_instance,
        series: event.series.map(|series| EventSeries {
            count: Some(series.count),
            last_observed_time: Some(series.last_observed_time),
        }),
        source: event.deprecated_source,
        type_: event.type_,
    }
}

/// The older event as the newer one.
fn served(event: Event) -> Newer {
    let epoch = k8s_openapi::jiff::Timestamp::UNIX_EPOCH;
    Newer {
        action: event.action,
        deprecated_count: event.count,
        deprecated_first_timestamp: event.first_timestamp,
        deprecated_last_timestamp: event.last_timestamp,
        deprecated_source: event
            .source
            .filter(|source| *source != EventSource::default()),
        event_time: event.event_time,
        metadata: event.metadata,
        note: event.message,
        reason: event.reason,
        regarding: Some(event.involved_object),
        related: event.related,
        reporting_controller: event.reporting_component,
        reporting_instance: event.reporting_instance,
        series: event.series.map(|series| NewerSeries {
            count: series.count.unwrap_or_default(),
            last_observed_time: series.last_observed_time.unwrap_or_else(|| epoch.into()),
        }),
        type_: event.type_,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn newer() -> Value {
        json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event",
            "metadata": { "name": "web.1", "namespace": "default" },
            "eventTime": "2026-01-01T00:00:00.000000Z",
            "action": "Scheduling", "reason": "Scheduled", "note": "to node-1", "type": "Normal",
            "regarding": { "kind": "Pod", "name": "web", "namespace": "default" },
            "reportingController": "default-scheduler", "reportingInstance": "a",
        })
    }

    #[test]
    fn both_versions_are_one_event() {
        let conversion = Newer::CONVERSION.unwrap();
        let stored = (conversion.to_stored)(&newer()).unwrap();
        assert_eq!(stored["apiVersion"], "v1");
        assert_eq!(stored["message"], "to node-1");
        assert_eq!(stored["involvedObject"]["name"], "web");
        assert_eq!((conversion.from_stored)(&stored).unwrap(), newer());
    }

    #[test]
    fn the_row_says_when_what_and_why() {
        let event: Newer = serde_json::from_value(newer()).unwrap();
        let now = 1_767_225_600 + 90;
        let row = event.row(now);
        assert_eq!(row[0], "90s");
        assert_eq!(row[3], "pod/web");
        assert_eq!(row[5], "default-scheduler, a");
        assert_eq!(row[8], 1);
    }

    #[test]
    fn an_event_is_short() {
        let mut event: Newer = serde_json::from_value(newer()).unwrap();
        event.note = Some("x".repeat(NOTE));
        assert!(Strategy::validate(&event, None).is_empty());
        event.note = Some("x".repeat(NOTE + 1));
        let errors = Strategy::validate(&event, None);
        assert_eq!(
            errors[0].to_string(),
            "note: Too long: may not be more than 1024 bytes"
        );
        let mut older = stored(event);
        assert!(Strategy::validate(&older, None).is_empty());
        older.reason = Some("x".repeat(LARGEST));
        assert_eq!(Strategy::validate(&older, None).len(), 1);
    }

    #[test]
    fn an_event_lives_beside_its_object() {
        let event: Event = serde_json::from_value(json!({
            "metadata": { "namespace": "a" }, "involvedObject": { "namespace": "b" }
        }))
        .unwrap();
        let errors: Vec<_> = Strategy::validate(&event, None)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            errors,
            ["involvedObject.namespace: Invalid value: \"b\": does not match event.namespace"]
        );
    }
}
