//! From client-side to server-side apply. What `kubectl apply` once applied by itself stands in an annotation, and whoever wrote
//! it may go over to server-side apply without conflicts with that former self.

use serde_json::Value;

use super::fields::Fields;
use super::typed::{self, Shape};
use super::{Manager, Operation};

/// What kubectl calls itself when it applies on the server. Another name opts out.
const KUBECTL: &str = "kubectl";
const ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// What all annotations of an object may hold together, in bytes.
const ANNOTATIONS: usize = 256 * 1024;

fn annotation(object: &Value) -> Option<&str> {
    object["metadata"]["annotations"][ANNOTATION].as_str()
}

fn is_kubectl(manager: &Manager) -> bool {
    manager.name == KUBECTL && manager.operation == Operation::Apply
}

/// The fields that are as the annotation says, if it is this manager's: nobody has changed them since.
pub(super) fn own_before(live: &Value, manager: &Manager, shape: Shape) -> Fields {
    let applied = annotation(live).filter(|_| is_kubectl(manager));
    let Some(applied) = applied.and_then(|text| serde_json::from_str::<Value>(text).ok()) else {
        return Fields::default();
    };
    let mut fields = typed::fields_of(&applied, shape).unwrap_or_default();
    let since = typed::difference(&applied, live, shape);
    fields.remove(&since.set);
    fields.remove(&since.gone);
    fields
}

/// Notes what is applied now in the annotation, if the object has it, for the next `kubectl apply` on the client's side.
pub(super) fn note(live: &Value, config: &Value, manager: &Manager, object: &mut Value) {
    if !is_kubectl(manager) || annotation(live).is_none() || annotation(object).is_none() {
        return;
    }
    let mut config = config.clone();
    let said = config.pointer_mut("/metadata/annotations");
    if let Some(annotations) = said.and_then(Value::as_object_mut) {
        annotations.shift_remove(ANNOTATION);
    }
    let kept = object.pointer_mut("/metadata/annotations");
    let Some(annotations) = kept.and_then(Value::as_object_mut) else {
        return;
    };
    annotations.insert(ANNOTATION.to_owned(), format!("{config}\n").into());
    let size = annotations
        .iter()
        .map(|(key, value)| key.len() + value.as_str().map_or(0, str::len));
    if size.sum::<usize>() > ANNOTATIONS {
        annotations.shift_remove(ANNOTATION);
    }
}
