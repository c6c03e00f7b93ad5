//! VolumeAttachment: a volume that is to be attached to a node.

use k8s_openapi::api::storage::v1::{VolumeAttachment, VolumeAttachmentStatus};
use serde_json::{Value, json};

use super::{
    Column, FieldError, Strategy, Subresource, age, print,
    storageclass::provisioner,
    validate::{Path, immutable, names},
};

const MAX_MESSAGE: usize = 2048;

impl Strategy for VolumeAttachment {
    const SINGULAR: &'static str = "volumeattachment";
    const NAMESPACED: bool = false;
    const RETURNS_DELETED_OBJECT: bool = true;
    const SUBRESOURCES: &'static [Subresource] = &[Subresource::Status];
    const COLUMNS: &'static [Column] = &[
        Column::NAME,
        Column::text("Attacher", "The driver that attaches."),
        Column::text("PV", "The volume."),
        Column::text("Node", "Where it is to be."),
        Column {
            kind: "boolean",
            ..Column::text("Attached", "Whether it is there.")
        },
        Column::AGE,
    ];

    fn row(&self, now: i64) -> Vec<Value> {
        let volume = self.spec.source.persistent_volume_name.as_deref();
        let attached = self.status.as_ref().is_some_and(|status| status.attached);
        vec![
            json!(print::name(&self.metadata)),
            json!(self.spec.attacher),
            json!(volume.unwrap_or_default()),
            json!(self.spec.node_name),
            json!(attached),
            json!(age::of(&self.metadata, now)),
        ]
    }

    fn prepare_create(&mut self) {
        self.status = Some(VolumeAttachmentStatus::default());
    }

    fn prepare_update(&mut self, old: &Self) {
        self.status = old.status.clone();
    }

    fn prepare_status(&mut self, old: &Self) {
        self.spec = old.spec.clone();
    }

    fn validate(&self, old: Option<&Self>) -> Vec<FieldError> {
        let path = Path::new("spec");
        let mut errors = provisioner(&path.child("attacher"), &self.spec.attacher);
        let source = path.child("source");
        match (
            &self.spec.source.inline_volume_spec,
            self.spec.source.persistent_volume_name.as_deref(),
        ) {
            (None, None | Some("")) => {
                errors.push(source.required(
                    "must specify exactly one of inlineVolumeSpec and persistentVolumeName",
                ))
            }
            (Some(_), Some(_)) => errors.push(source.forbidden(
                "must specify exactly one of inlineVolumeSpec and persistentVolumeName",
            )),
            _ => {}
        }
        let (at, node) = (path.child("nodeName"), self.spec.node_name.as_str());
        errors.extend(at.invalid_all(node, names::dns1123_subdomain(node, false)));
        let status = self.status.clone().unwrap_or_default();
        for (field, error) in [
            ("attachError", status.attach_error),
            ("detachError", status.detach_error),
        ] {
            let message = error.and_then(|error| error.message).unwrap_or_default();
            if message.len() > MAX_MESSAGE {
                let path = Path::new("status").child(field).child("message");
                errors.push(path.too_long(MAX_MESSAGE));
            }
        }
        if let Some(old) = old {
            errors.extend(immutable(&path, &self.spec, &old.spec));
        }
        errors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(source: Value) -> VolumeAttachment {
        serde_json::from_value(
            json!({"spec": {"attacher": "d", "nodeName": "n", "source": source}}),
        )
        .unwrap()
    }

    #[test]
    fn one_volume_is_attached_to_one_node() {
        let errors = |attachment: &VolumeAttachment| Strategy::validate(attachment, None).len();
        assert_eq!(errors(&attachment(json!({"persistentVolumeName": "v"}))), 0);
        assert_eq!(errors(&attachment(json!({}))), 1);
        let both = json!({"persistentVolumeName": "v", "inlineVolumeSpec": {}});
        assert_eq!(errors(&attachment(both)), 1);
        let (old, new) = (
            attachment(json!({"persistentVolumeName": "v"})),
            attachment(json!({"persistentVolumeName": "w"})),
        );
        let errors = Strategy::validate(&new, Some(&old));
        assert!(errors[0].to_string().ends_with(": field is immutable"));
    }
}
