//! Secret.

use k8s_openapi::{ByteString, api::core::v1::Secret};
use serde_json::{Value, json};

use super::{
    Column, FieldError, Strategy, age,
    configmap::{MAX_SIZE, count, frozen},
    print,
    validate::{Path, immutable, names},
};

const OPAQUE: &str = "Opaque";
const SERVICE_ACCOUNT_TOKEN: &str = "kubernetes.io/service-account-token";
const SERVICE_ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";

impl Strategy for Secret {
    const SINGULAR: &'static str = "secret";
    const COLUMNS: &'static [Column] = &[
        Column::NAME,
        Column::text("Type", "What the secret is for."),
        Column::text("Data", "How many entries there are."),
        Column::AGE,
    ];

    fn row(&self, now: i64) -> Vec<Value> {
        vec![
            json!(print::name(&self.metadata)),
            json!(self.type_.as_deref().unwrap_or_default()),
            json!(count(self.data.as_ref())),
            json!(age::of(&self.metadata, now)),
        ]
    }

    fn set_defaults(&mut self) {
        if self.type_.as_deref().unwrap_or_default().is_empty() {
            self.type_ = Some(OPAQUE.to_owned());
        }
        // `stringData` is for writing only: it ends up in `data`.
        for (key, value) in self.string_data.take().into_iter().flatten() {
            self.data
                .get_or_insert_default()
                .insert(key, ByteString(value.into_bytes()));
        }
    }

    fn validate(&self, old: Option<&Self>) -> Vec<FieldError> {
        let path = Path::new("data");
        let mut errors = Vec::new();
        let mut size = 0;
        for (key, value) in self.data.iter().flatten() {
            errors.extend(path.key(key).invalid_all(key, names::config_key(key)));
            size += value.0.len();
        }
        if size > MAX_SIZE {
            errors.push(path.too_long(MAX_SIZE));
        }
        for key in required(self.type_.as_deref().unwrap_or_default()) {
            if !self
                .data
                .as_ref()
                .is_some_and(|data| data.contains_key(*key))
            {
                errors.push(path.key(key).required(""));
            }
        }
        if self.type_.as_deref() == Some(SERVICE_ACCOUNT_TOKEN) {
            let account = self.metadata.annotations.iter().flatten();
            let mut account = account.filter(|(key, _)| *key == SERVICE_ACCOUNT_NAME);
            if account.all(|(_, name)| name.is_empty()) {
                let path = Path::new("metadata").child("annotations");
                errors.push(path.key(SERVICE_ACCOUNT_NAME).required(""));
            }
        }
        if let Some(old) = old {
            errors.extend(immutable(&Path::new("type"), &self.type_, &old.type_));
            if old.immutable == Some(true) {
                errors.extend(frozen("immutable", self.immutable != Some(true)));
                errors.extend(frozen("data", self.data != old.data));
            }
        }
        errors
    }

    fn fields(&self) -> Vec<(&'static str, String)> {
        vec![("type", self.type_.clone().unwrap_or_default())]
    }
}

/// The keys that a type of secret cannot do without.
fn required(kind: &str) -> &'static [&'static str] {
    match kind {
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_becomes_data() {
        let mut secret: Secret =
            serde_json::from_value(json!({ "stringData": { "password": "hunter2" } })).unwrap();
        secret.set_defaults();
        assert_eq!(
            serde_json::to_value(&secret).unwrap(),
            json!({
                "apiVersion": "v1", "kind": "Secret", "metadata": {},
                "type": "Opaque", "data": { "password": "aHVudGVyMg==" }
            })
        );
    }

    #[test]
    fn a_tls_secret_needs_both_halves() {
        let secret: Secret = serde_json::from_value(
            json!({ "type": "kubernetes.io/tls", "data": { "tls.crt": "" } }),
        )
        .unwrap();
        let errors: Vec<_> = Strategy::validate(&secret, None)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(errors, ["data[tls.key]: Required value"]);
    }
}
