//! Tokens: what is signed is verified, and nothing else.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
const NOW: i64 = 1_800_000_000;

fn authority(dir: &std::path::Path) -> Authority {
    Authority::new(Keys::open(dir).unwrap(), ISSUER.to_owned())
}

fn claims() -> Claims {
    Claims {
        aud: vec![ISSUER.to_owned(), "vault".to_owned()],
        exp: NOW + 600,
        iat: NOW,
        nbf: NOW,
        jti: "j".to_owned(),
        sub: "system:serviceaccount:ns:me".to_owned(),
        private: Private {
            namespace: "ns".to_owned(),
            serviceaccount: Object {
                name: "me".to_owned(),
                uid: "u".to_owned(),
            },
            pod: Some(Object {
                name: "p".to_owned(),
                uid: "pu".to_owned(),
            }),
            warnafter: Some(NOW + 60),
            ..Private::default()
        },
        ..Claims::default()
    }
}

fn api() -> Vec<String> {
    vec![ISSUER.to_owned()]
}

#[test]
fn what_was_signed_is_good_for_its_time_and_its_audiences() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    let token = authority.issue(claims()).unwrap();
    let good = authority.verify(&token, &api(), NOW).unwrap();
    assert_eq!(good.bound.account.name, "me");
    assert_eq!(good.bound.pod.as_ref().unwrap().uid, "pu");
    assert_eq!(
        (good.audiences, good.stale, good.id.as_str()),
        (api(), false, "j")
    );
    assert!(authority.verify(&token, &api(), NOW + 61).unwrap().stale);
    assert_eq!(
        authority.verify(&token, &api(), NOW + 600),
        Err(Refused::Expired(NOW + 600))
    );
    assert_eq!(
        authority.verify(&token, &api(), NOW - 1),
        Err(Refused::Early(NOW))
    );
    let other = vec!["other".to_owned()];
    assert!(matches!(
        authority.verify(&token, &other, NOW),
        Err(Refused::Audience(..))
    ));
    let both = vec!["vault".to_owned(), "other".to_owned()];
    assert_eq!(
        authority.verify(&token, &both, NOW).unwrap().audiences,
        ["vault"]
    );
}

#[test]
fn the_claims_have_upstreams_names() {
    let dir = tempfile::tempdir().unwrap();
    let token = authority(dir.path()).issue(claims()).unwrap();
    let claims = token.split('.').nth(1).unwrap();
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
    assert_eq!(
        claims,
        json!({
            "aud": [ISSUER, "vault"], "exp": NOW + 600, "iat": NOW, "iss": ISSUER, "jti": "j", "nbf": NOW,
            "kubernetes.io": {
                "namespace": "ns", "pod": {"name": "p", "uid": "pu"},
                "serviceaccount": {"name": "me", "uid": "u"}, "warnafter": NOW + 60,
            },
            "sub": "system:serviceaccount:ns:me",
        })
    );
}

#[test]
fn a_token_of_a_secret_has_no_end() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    let account = Object {
        name: "me".to_owned(),
        uid: "u".to_owned(),
    };
    let token = authority
        .issue_legacy(&Legacy::new("ns", "s", &account))
        .unwrap();
    let good = authority.verify(&token, &api(), i64::MAX).unwrap();
    assert!(good.bound.legacy);
    assert_eq!(
        (good.bound.account, good.bound.secret.unwrap().name),
        (account, "s".to_owned())
    );
}

#[test]
fn a_key_that_was_replaced_verifies_until_it_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let token = authority(dir.path()).issue(claims()).unwrap();
    let key = dir.path().join("sa.key");
    std::fs::rename(&key, dir.path().join("sa-old.key")).unwrap();
    let rotated = authority(dir.path());
    assert!(rotated.verify(&token, &api(), NOW).is_ok());
    assert_eq!(rotated.key_set()["keys"].as_array().unwrap().len(), 2);
    let new = rotated.issue(claims()).unwrap();
    std::fs::remove_file(dir.path().join("sa-old.key")).unwrap();
    let alone = authority(dir.path());
    assert_eq!(alone.verify(&token, &api(), NOW), Err(Refused::Signature));
    assert!(alone.verify(&new, &api(), NOW).is_ok());
}

#[test]
fn a_file_that_is_no_key_is_named() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("sa.key"), "nonsense").unwrap();
    let error = Keys::open(dir.path()).err().unwrap().to_string();
    assert!(
        error.contains("sa.key") && error.contains("PKCS #8"),
        "{error}"
    );
}

#[test]
fn relying_parties_are_told_where_the_keys_are() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    let document = authority.discovery("192.0.2.1:6443");
    assert_eq!(document["issuer"], ISSUER);
    assert_eq!(
        document["jwks_uri"],
        "https://192.0.2.1:6443/openid/v1/jwks"
    );
    assert_eq!(
        document["id_token_signing_alg_values_supported"],
        json!(["ES256"])
    );
    let key = &authority.key_set()["keys"][0];
    assert_eq!(
        (&key["kty"], &key["crv"], &key["use"]),
        (&json!("EC"), &json!("P-256"), &json!("sig"))
    );
    assert_eq!(key["x"].as_str().unwrap().len(), 43);
}

proptest! {
    #[test]
    fn no_change_of_a_token_is_good(at in 0usize..400, to in "[A-Za-z0-9_.-]") {
        let dir = tempfile::tempdir().unwrap();
        let authority = authority(dir.path());
        let token = authority.issue(claims()).unwrap();
        let at = at % token.len();
        let mut changed = token.clone();
        changed.replace_range(at..=at, &to);
        // The last character of a part may differ in bits that mean nothing.
        let decoded = |token: &str| token.split('.').map(|part| URL_SAFE_NO_PAD.decode(part).ok()).collect::<Vec<_>>();
        prop_assume!(decoded(&changed) != decoded(&token));
        prop_assert!(authority.verify(&changed, &api(), NOW).is_err());
    }
}
