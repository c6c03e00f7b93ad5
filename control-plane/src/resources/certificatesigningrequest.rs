//! CertificateSigningRequest: how a node gets its certificate.

use std::collections::HashSet;

use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestStatus,
};
use serde_json::{Value, json};

use super::{
    Column, FieldError, Strategy, Subresource, age, print,
    validate::{self, NameRule, Path, names},
};

const USAGES: &[&str] = &[
    "signing",
    "digital signature",
    "content commitment",
    "key encipherment",
    "key agreement",
    "data encipherment",
    "cert sign",
    "crl sign",
    "encipher only",
    "decipher only",
    "any",
    "server auth",
    "client auth",
    "code signing",
    "email protection",
    "s/mime",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "timestamping",
    "ocsp signing",
    "microsoft sgc",
    "netscape sgc",
];

/// The longest `spec.request`, in bytes. A key and many names take a few thousand.
const REQUEST: usize = 64 * 1024;

impl Strategy for CertificateSigningRequest {
    const SINGULAR: &'static str = "certificatesigningrequest";
    const SHORT_NAMES: &'static [&'static str] = &["csr"];
    const NAMESPACED: bool = false;
    const SUBRESOURCES: &'static [Subresource] = &[Subresource::Status, Subresource::Approval];
    const COLUMNS: &'static [Column] = &[
        Column::NAME,
        Column::AGE,
        Column::text("SignerName", "Who is asked to sign."),
        Column::text("Requestor", "Who asks."),
        Column::text(
            "RequestedDuration",
            "How long the certificate is to be good for.",
        ),
        Column::text("Condition", "How far the request has come."),
    ];
    const PRIVATE_TO_NODE: bool = true;
    const NAME_RULE: NameRule = names::path_segment;

    fn row(&self, now: i64) -> Vec<Value> {
        let duration = self
            .spec
            .expiration_seconds
            .map(|seconds| age::human_duration(seconds.into()));
        vec![
            json!(print::name(&self.metadata)),
            json!(age::of(&self.metadata, now)),
            json!(print::or_none(Some(&self.spec.signer_name))),
            json!(self.spec.username.as_deref().unwrap_or_default()),
            json!(print::or_none(duration.as_deref())),
            json!(condition(self)),
        ]
    }

    fn set_defaults(&mut self) {
        if self.spec.usages.as_ref().is_none_or(Vec::is_empty) {
            self.spec.usages = Some(vec![
                "digital signature".to_owned(),
                "key encipherment".to_owned(),
            ]);
        }
        for condition in self
            .status
            .iter_mut()
            .flat_map(|status| status.conditions.iter_mut().flatten())
        {
            if condition.status.is_empty() {
                condition.status = "True".to_owned();
            }
        }
    }

    fn prepare_create(&mut self) {
        self.status = Some(CertificateSigningRequestStatus::default());
    }

    fn prepare_update(&mut self, old: &Self) {
        self.spec = old.spec.clone();
        self.status = old.status.clone();
    }

    fn prepare_status(&mut self, old: &Self) {
        self.spec = old.spec.clone();
        self.metadata.labels = old.metadata.labels.clone();
        self.metadata.annotations = old.metadata.annotations.clone();
    }

    fn validate(&self, old: Option<&Self>) -> Vec<FieldError> {
        let path = Path::new("spec");
        let mut errors = Vec::new();
        if self.spec.request.0.is_empty() {
            errors.push(
                path.child("request")
                    .required("must be a PEM block of type CERTIFICATE REQUEST"),
            );
        } else if self.spec.request.0.len() > REQUEST {
            errors.push(path.child("request").too_long(REQUEST));
        } else if !self.spec.request.0.starts_with(b"-----BEGIN") {
            errors.push(path.child("request").invalid(
                String::from_utf8_lossy(&self.spec.request.0).into_owned(),
                "PEM block type must be CERTIFICATE REQUEST",
            ));
        }
        errors.extend(signer(&path.child("signerName"), &self.spec.signer_name));
        let usages = self.spec.usages.as_deref().unwrap_or_default();
        let mut seen = HashSet::new();
        for (index, usage) in usages.iter().enumerate() {
            errors.extend(validate::one_of(
                &path.child("usages").index(index),
                Some(usage),
                USAGES,
            ));
            if !seen.insert(usage) {
                errors.push(path.child("usages").index(index).duplicate(usage.as_str()));
            }
        }
        if let Some(seconds) = self
            .spec
            .expiration_seconds
            .filter(|&seconds| seconds < 600)
        {
            errors.push(path.child("expirationSeconds").invalid(
                seconds,
                "may not specify a duration less than 600 seconds (10 minutes)",
            ));
        }
        errors.extend(verdicts(self, old));
        errors
    }

    fn fields(&self) -> Vec<(&'static str, String)> {
        vec![("spec.signerName", self.spec.signer_name.clone())]
    }
}

fn conditions(request: &CertificateSigningRequest) -> &[CertificateSigningRequestCondition] {
    request
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default()
}

fn is_set(request: &CertificateSigningRequest, kind: &str) -> bool {
    conditions(request)
        .iter()
        .any(|condition| condition.type_ == kind)
}

/// `Pending`, or the verdict and what became of it.
fn condition(request: &CertificateSigningRequest) -> String {
    let issued = request
        .status
        .as_ref()
        .and_then(|status| status.certificate.as_ref())
        .is_some();
    let verdict = match (is_set(request, "Denied"), is_set(request, "Approved")) {
        (true, _) => "Denied",
        (false, true) => "Approved",
        (false, false) => "Pending",
    };
    let mut words = vec![verdict];
    if is_set(request, "Failed") {
        words.push("Failed");
    }
    if issued {
        words.push("Issued");
    }
    words.join(",")
}

fn signer(path: &Path, name: &str) -> Vec<FieldError> {
    if name.is_empty() {
        return vec![path.required("")];
    }
    match name.split_once('/') {
        Some((domain, rest)) if !domain.is_empty() && !rest.is_empty() => {
            path.invalid_all(domain, names::dns1123_subdomain(domain, false))
        }
        _ => vec![path.invalid(
            name,
            "must be a fully qualified domain and path of the form 'example.com/signer-name'",
        )],
    }
}

fn verdicts(
    new: &CertificateSigningRequest,
    old: Option<&CertificateSigningRequest>,
) -> Vec<FieldError> {
    let path = Path::new("status").child("conditions");
    let mut errors = Vec::new();
    for (index, condition) in conditions(new).iter().enumerate() {
        if condition.type_.is_empty() {
            errors.push(path.index(index).child("type").required(""));
        }
        if matches!(condition.type_.as_str(), "Approved" | "Denied" | "Failed")
            && condition.status != "True"
        {
            errors.push(
                path.index(index)
                    .child("status")
                    .unsupported(&condition.status, &["True"]),
            );
        }
    }
    if is_set(new, "Approved") && is_set(new, "Denied") {
        errors.push(path.invalid(
            "Denied",
            "Approved and Denied conditions are mutually exclusive",
        ));
    }
    if let Some(old) = old {
        for kind in ["Approved", "Denied", "Failed"] {
            if is_set(old, kind) && !is_set(new, kind) {
                errors.push(path.forbidden(format!(
                    "updates may not remove a condition of type {kind:?}"
                )));
            }
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(value: Value) -> CertificateSigningRequest {
        let mut request: CertificateSigningRequest = serde_json::from_value(value).unwrap();
        request.set_defaults();
        request
    }

    #[test]
    fn a_request_goes_from_pending_to_issued() {
        let at = |status: Value| condition(&request(json!({ "status": status })));
        assert_eq!(at(json!({})), "Pending");
        assert_eq!(
            at(json!({ "conditions": [{ "type": "Approved" }] })),
            "Approved"
        );
        assert_eq!(
            at(json!({ "conditions": [{ "type": "Approved" }], "certificate": "YQ==" })),
            "Approved,Issued"
        );
        assert_eq!(
            at(json!({ "conditions": [{ "type": "Denied" }] })),
            "Denied"
        );
    }

    #[test]
    fn a_bad_request_is_explained() {
        let bad = request(json!({
            "spec": { "request": "", "signerName": "nobody", "usages": ["x"], "expirationSeconds": 5 }
        }));
        let errors: Vec<_> = Strategy::validate(&bad, None)
            .iter()
            .map(|error| error.path.clone())
            .collect();
        assert_eq!(
            errors,
            [
                "spec.request",
                "spec.signerName",
                "spec.usages[0]",
                "spec.expirationSeconds"
            ]
        );
    }

    #[test]
    fn a_request_is_no_place_to_store_things() {
        let mut large = request(json!({ "spec": { "signerName": "example.com/x" } }));
        large.spec.request.0 = [b"-----BEGIN", "x".repeat(REQUEST).as_bytes()].concat();
        let errors = Strategy::validate(&large, None);
        assert_eq!(
            errors[0].to_string(),
            "spec.request: Too long: may not be more than 65536 bytes"
        );
    }

    #[test]
    fn a_verdict_stays() {
        let with = |kinds: &[&str]| {
            let conditions: Vec<_> = kinds.iter().map(|kind| json!({ "type": kind })).collect();
            request(json!({ "status": { "conditions": conditions } }))
        };
        assert!(verdicts(&with(&["Approved"]), Some(&with(&[]))).is_empty());
        assert_eq!(verdicts(&with(&[]), Some(&with(&["Approved"]))).len(), 1);
        assert_eq!(verdicts(&with(&["Approved", "Denied"]), None).len(), 1);
    }
}
