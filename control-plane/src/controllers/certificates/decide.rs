//! What is to be done about a CertificateSigningRequest. The signers' rules themselves are in `auth::csr`. No I/O.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use crate::auth::csr::{
    CLIENT_SIGNER, KUBELET_CLIENT_SIGNER, KUBELET_SERVING_SIGNER, Names, Refusal, SigningRequest,
    approve,
};
use crate::auth::{BOOTSTRAPPERS, SAME_MACHINE, User};

/// A node asks for its serving certificate while it is still telling its addresses.
const ADDRESSES_LATER: Duration = Duration::from_secs(60);
/// Decided requests are kept for people to look at.
const KEEP_DECIDED: Duration = Duration::from_secs(3600);
const KEEP_PENDING: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, PartialEq)]
pub(super) enum Step {
    Approve,
    Deny(String),
    Sign,
    /// Nothing to do for now.
    Wait(Duration),
    /// Old enough to go.
    Remove,
}

pub(super) fn request_of<'a>(
    csr: &'a CertificateSigningRequest,
    pem: &'a str,
) -> SigningRequest<'a> {
    SigningRequest {
        pem,
        signer: &csr.spec.signer_name,
        usages: csr.spec.usages.as_deref().unwrap_or_default(),
        expiration_seconds: csr.spec.expiration_seconds,
    }
}

pub(super) fn decide(csr: &CertificateSigningRequest, names: &Names<'_>, now: Timestamp) -> Step {
    let created = csr
        .metadata
        .creation_timestamp
        .as_ref()
        .map_or(now, |time| time.0);
    let age = Duration::try_from(now.duration_since(created)).unwrap_or_default();
    let kept = |limit: Duration| {
        if age >= limit {
            Step::Remove
        } else {
            Step::Wait(limit - age)
        }
    };
    let status = csr.status.as_ref();
    let has = |type_: &str| {
        status.is_some_and(|status| {
            status
                .conditions
                .iter()
                .flatten()
                .any(|condition| condition.type_ == type_)
        })
    };
    let signed = status.is_some_and(|status| status.certificate.is_some());
    if signed || has("Denied") || has("Failed") {
        return kept(KEEP_DECIDED);
    }
    let kubelets = [KUBELET_CLIENT_SIGNER, KUBELET_SERVING_SIGNER];
    let signer = csr.spec.signer_name.as_str();
    let signs = signer == CLIENT_SIGNER || kubelets.contains(&signer);
    if has("Approved") && signs {
        return Step::Sign;
    }
    // Other signers' requests are for a person or another program.
    if !kubelets.contains(&signer) {
        return kept(KEEP_PENDING);
    }
    let groups = csr.spec.groups.clone().unwrap_or_default();
    let extra = csr.spec.extra.as_ref();
    let user = User {
        name: csr.spec.username.clone().unwrap_or_default(),
        groups,
        uid: String::new(),
        extra: BTreeMap::new(),
        same_machine: extra.is_some_and(|extra| extra.contains_key(SAME_MACHINE)),
    };
    let pem = String::from_utf8_lossy(&csr.spec.request.0);
    match approve(&request_of(csr, &pem), &user, names) {
        Ok(()) => Step::Approve,
        Err(Refusal::ForeignAddress(_)) if age < ADDRESSES_LATER => {
            Step::Wait(ADDRESSES_LATER - age)
        }
        // Whose token joins machines only with somebody's consent.
        Err(Refusal::NotTheirs { .. }) if user.is_in(BOOTSTRAPPERS) => kept(KEEP_PENDING),
        Err(refusal) => Step::Deny(refusal.to_string()),
    }
}

pub(super) fn condition(
    type_: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) -> CertificateSigningRequestCondition {
    CertificateSigningRequestCondition {
        type_: type_.into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;
    use crate::auth::NODE_BOOTSTRAPPERS;
    use crate::auth::csr::Reserved;
    use crate::controllers::testing::at;

    fn pem(node: &str, names: &[&str]) -> String {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::OrganizationName, "system:nodes");
        params
            .distinguished_name
            .push(DnType::CommonName, format!("system:node:{node}"));
        params.subject_alt_names = names
            .iter()
            .map(|ip| SanType::IpAddress(ip.parse().unwrap()))
            .collect();
        params
            .serialize_request(&KeyPair::generate().unwrap())
            .unwrap()
            .pem()
            .unwrap()
    }

    fn csr(signer: &str, user: &str, groups: &[&str], pem: String) -> CertificateSigningRequest {
        let mut csr = CertificateSigningRequest::default();
        csr.metadata.creation_timestamp = Some(Time(at(1000)));
        csr.spec.signer_name = signer.into();
        csr.spec.username = Some(user.into());
        csr.spec.groups = Some(groups.iter().map(|group| (*group).to_owned()).collect());
        csr.spec.request = ByteString(pem.into_bytes());
        let own = if signer == KUBELET_SERVING_SIGNER {
            "server auth"
        } else {
            "client auth"
        };
        csr.spec.usages = Some(vec!["digital signature".into(), own.into()]);
        csr
    }

    fn judge(csr: &CertificateSigningRequest, own: &[String], now: Timestamp) -> Step {
        let names = Names {
            own,
            others: &[],
            reserved: &Reserved::default(),
        };
        decide(csr, &names, now)
    }

    #[test]
    fn a_joining_node_gets_its_first_certificate_and_a_stranger_does_not() {
        let asks = |groups: &[&str]| {
            let user = "system:bootstrap:abcdef";
            csr(KUBELET_CLIENT_SIGNER, user, groups, pem("w1", &[]))
        };
        let joining = asks(&[BOOTSTRAPPERS, NODE_BOOTSTRAPPERS]);
        assert_eq!(judge(&joining, &[], at(1000)), Step::Approve);
        let other = asks(&[BOOTSTRAPPERS, "system:bootstrappers:workers"]);
        assert!(matches!(judge(&other, &[], at(1000)), Step::Wait(_)));
        let stranger = csr(KUBELET_CLIENT_SIGNER, "jane", &["people"], pem("w1", &[]));
        assert!(
            matches!(judge(&stranger, &[], at(1000)), Step::Deny(reason) if reason.contains("jane"))
        );
    }

    #[test]
    fn a_serving_certificate_waits_for_the_nodes_addresses() {
        let serving = csr(
            KUBELET_SERVING_SIGNER,
            "system:node:w1",
            &["system:nodes"],
            pem("w1", &["192.0.2.7"]),
        );
        assert_eq!(
            judge(&serving, &[], at(1010)),
            Step::Wait(Duration::from_secs(50))
        );
        assert_eq!(
            judge(&serving, &["192.0.2.7".into()], at(1010)),
            Step::Approve
        );
        assert!(matches!(
            judge(&serving, &["192.0.2.8".into()], at(1060)),
            Step::Deny(_)
        ));
    }

    #[test]
    fn an_approved_request_is_signed_once_and_removed_later() {
        let mut request = csr(KUBELET_CLIENT_SIGNER, "jane", &[], pem("w1", &[]));
        let status = request.status.get_or_insert_default();
        status.conditions = Some(vec![condition(
            "Approved",
            "Manual",
            String::new(),
            at(1001),
        )]);
        assert_eq!(
            judge(&request, &[], at(1002)),
            Step::Sign,
            "a person may approve what we would not"
        );
        request.status.as_mut().unwrap().certificate = Some(ByteString(b"pem".to_vec()));
        assert_eq!(judge(&request, &[], at(1000)), Step::Wait(KEEP_DECIDED));
        assert_eq!(judge(&request, &[], at(4600)), Step::Remove);
    }

    #[test]
    fn other_signers_are_left_alone() {
        let other = csr("example.com/mine", "jane", &[], "-----BEGIN".into());
        assert_eq!(judge(&other, &[], at(1000)), Step::Wait(KEEP_PENDING));
    }

    #[test]
    fn a_clients_request_is_signed_once_a_person_has_approved_it() {
        let mut request = csr(CLIENT_SIGNER, "jane", &[], pem("w1", &[]));
        assert_eq!(judge(&request, &[], at(1000)), Step::Wait(KEEP_PENDING));
        let approved = condition("Approved", "KubectlApprove", String::new(), at(1000));
        request.status.get_or_insert_default().conditions = Some(vec![approved]);
        assert_eq!(judge(&request, &[], at(1000)), Step::Sign);
    }
}
