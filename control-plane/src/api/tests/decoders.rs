//! Each decoder by itself, fed with good texts of which pieces are changed. None may panic or take long, and what one
//! accepts must mean the same when it is written down and read again.
//!
//! `KERNELET_TEST_REQUESTS` says how many texts each is tried with.

use http::{HeaderMap, HeaderValue};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};

use super::mutated::{APPLY, MERGE, PROTOBUF, STRATEGIC, changed};
use super::*;
use crate::api::apply::Owners;
use crate::api::body::{self, FieldValidation};
use crate::api::content::Encoding;
use crate::api::options::ListOptions;
use crate::api::patching;
use crate::api::request::Query;
use crate::api::selectors::{FieldSelector, LabelSelector};
use crate::auth::bearer;
use crate::resources::quantity::Quantity;
use crate::resources::{self, Kind, duplicate_fields, form};

/// Tries a decoder with what becomes of the seeds.
fn fed<S: AsRef<[u8]>>(seeds: &[S], decoder: impl Fn(&[u8]) -> Result<(), TestCaseError>) {
    let cases = std::env::var("KERNELET_TEST_REQUESTS");
    let cases = cases.map_or(1_000, |cases| cases.parse().expect("a number"));
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    let seeds: Vec<Vec<u8>> = seeds.iter().map(|seed| seed.as_ref().to_vec()).collect();
    for seed in &seeds {
        decoder(seed).unwrap_or_else(|error| panic!("a seed: {error}"));
    }
    let text = select(seeds).prop_flat_map(changed);
    let outcome = TestRunner::new(config).run(&text, |text| decoder(&text));
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

/// The same for decoders of text.
fn read(seeds: &[&str], decoder: impl Fn(&str) -> Result<(), TestCaseError>) {
    fed(seeds, |bytes| match std::str::from_utf8(bytes) {
        Ok(text) => decoder(text),
        Err(_) => Ok(()),
    });
}

const POD: &str = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","labels":{"a":"b"},"creationTimestamp":"2026-01-01T00:00:00Z","finalizers":["a/b"],"managedFields":[{"manager":"m","operation":"Apply","apiVersion":"v1","time":"2026-01-01T00:00:00Z","fieldsType":"FieldsV1","fieldsV1":{"f:spec":{"f:containers":{"k:{\"name\":\"c\"}":{".":{},"f:image":{}}}}}}]},"spec":{"containers":[{"name":"c","image":"i","command":["a"],"ports":[{"containerPort":80}],"resources":{"limits":{"cpu":"1500m","memory":"1Gi"}},"livenessProbe":{"httpGet":{"port":"http"}}}],"tolerations":[{"key":"k","operator":"Exists","tolerationSeconds":3}],"volumes":[{"name":"v","emptyDir":{"sizeLimit":"1Gi"}}]}}"#;

const POD_YAML: &str = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: &n p\n  labels: {a: 'b', c: \"d\"}\nspec:\n  containers:\n  - name: c\n    image: i\n    args: [*n, \"1\"]\n    env:\n    - name: TEXT\n      value: |\n        some\n        lines\n    resources:\n      limits: {cpu: 1500m, memory: 1Gi}\n  terminationGracePeriodSeconds: 0x10\n";

fn pods() -> &'static Kind {
    resources::find("", "v1", "pods").expect("a kind")
}

/// What is accepted is accepted again, unchanged.
fn object(text: &[u8], encoding: Encoding) -> Result<(), TestCaseError> {
    let Ok(once) = body::object(pods(), text, encoding, FieldValidation::Warn) else {
        return Ok(());
    };
    let written = once.object.to_string();
    let strict = FieldValidation::Strict;
    let again = body::object(pods(), written.as_bytes(), Encoding::Json, strict);
    let again = again.map_err(|error| TestCaseError::fail(error.message))?;
    prop_assert_eq!(again.object, once.object);
    Ok(())
}

#[test]
fn json() {
    fed(&[POD], |text| object(text, Encoding::Json));
    fed(&[POD], |text| {
        drop(duplicate_fields(text));
        Ok(())
    });
}

#[test]
fn yaml() {
    fed(&[POD_YAML, POD], |text| object(text, Encoding::Yaml));
}

#[test]
fn what_nobody_stores() {
    let seeds = [
        r#"{"apiVersion":"autoscaling/v1","kind":"Scale","metadata":{"name":"a"},"spec":{"replicas":3}}"#,
        r#"{"apiVersion":"policy/v1beta1","kind":"Eviction","metadata":{"name":"a"},"deleteOptions":{"gracePeriodSeconds":3,"preconditions":{"uid":"u"}}}"#,
        r#"{"kind":"Binding","metadata":{"name":"a"},"target":{"kind":"Node","name":"n"}}"#,
        r#"{"spec":{"audiences":["a"],"expirationSeconds":600,"boundObjectRef":{"kind":"Pod","name":"p"}}}"#,
        r#"{"spec":{"user":"u","extra":{"a":["b"]},"resourceAttributes":{"labelSelector":{"rawSelector":"a=b"}}}}"#,
    ];
    let forms = [
        form::SCALE,
        form::EVICTION,
        form::BINDING,
        form::TOKEN_REQUEST,
        form::SUBJECT_ACCESS_REVIEW,
    ];
    fed(&seeds, |text| {
        for form in &forms {
            drop(body::form(
                form,
                text,
                Encoding::Json,
                FieldValidation::Warn,
            ));
        }
        Ok(())
    });
}

#[test]
fn protobuf() {
    let maps = resources::find("", "v1", "configmaps").expect("a kind");
    fed(&[PROTOBUF], |bytes| {
        let Ok(value) = body::parse(bytes, Encoding::Protobuf) else {
            return Ok(());
        };
        let written = value.to_string();
        let again = body::parse(written.as_bytes(), Encoding::Json);
        prop_assert_eq!(
            again.map_err(|error| TestCaseError::fail(error.message))?,
            value
        );
        drop(body::object(
            maps,
            bytes,
            Encoding::Protobuf,
            FieldValidation::Warn,
        ));
        Ok(())
    });
}

#[test]
fn patches() {
    let pod: Value = serde_json::from_str(POD).expect("JSON");
    let seeds = [
        r#"[{"op":"test","path":"/spec/containers/0/name","value":"c"},{"op":"add","path":"/metadata/labels/x~1y","value":"w"},{"op":"move","from":"/metadata/labels/a","path":"/metadata/labels/m"},{"op":"copy","from":"/spec","path":"/status"},{"op":"remove","path":"/spec/containers/-"}]"#,
        r#"{"metadata":{"labels":{"a":null,"$patch":"replace"},"$deleteFromPrimitiveList/finalizers":["a/b"]},"spec":{"$setElementOrder/containers":[{"name":"c"}],"containers":[{"name":"c","image":"j","$patch":"merge"},{"$patch":"delete","name":"d"}],"volumes":[{"name":"v","$retainKeys":["name","hostPath"],"hostPath":{"path":"/"}}]}}"#,
    ];
    fed(&seeds, |text| {
        for content_type in ["application/json-patch+json", MERGE, STRATEGIC] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
            let Ok(patch) = patching::patch_of(&headers, &text.to_vec().into()) else {
                continue;
            };
            let Ok(once) = patching::apply(&patch, Some(pods()), &pod) else {
                continue;
            };
            if content_type == MERGE {
                let twice = patching::apply(&patch, Some(pods()), &once);
                prop_assert_eq!(twice.map_err(|error| error.message), Ok(once));
            }
        }
        Ok(())
    });
}

#[test]
fn owners_of_fields() {
    fed(&[POD], |text| {
        let Ok(pod) = serde_json::from_slice::<Value>(text) else {
            return Ok(());
        };
        let Ok(owners) = Owners::of(&pod) else {
            return Ok(());
        };
        let written = json!({"metadata": {"managedFields": owners.to_json()}});
        prop_assert_eq!(Owners::of(&written), Ok(owners));
        Ok(())
    });
}

#[test]
fn selectors() {
    let labels = [("app".to_owned(), "web".to_owned())];
    let seeds = [
        "app in (a, b),tier!=x,!gone,n>3,m<-4,k notin (),x==y",
        "app",
    ];
    read(&seeds, |text| {
        if let Ok(selector) = LabelSelector::parse(text) {
            selector.matches(&labels);
        }
        Ok(())
    });
    let fields = [("metadata.name", "a".to_owned())];
    let seeds = ["spec.nodeName=n1,status.phase!=Failed,metadata.name==a\\,b"];
    read(&seeds, |text| {
        if let Ok(selector) = FieldSelector::parse(text) {
            selector.matches(&fields);
            drop(selector.check(&["metadata.name"]));
        }
        Ok(())
    });
}

#[test]
fn quantities() {
    let seeds = ["1500m", "1Gi", "-0.5e3", "12E", "+1.25Ki", "100n", "1E-4"];
    read(&seeds, |text| {
        let Ok(quantity) = text.parse::<Quantity>() else {
            return Ok(());
        };
        let written = quantity.to_string();
        let again = written.parse::<Quantity>();
        let again = again.map_err(|error| TestCaseError::fail(format!("{written}: {error}")))?;
        prop_assert_eq!(again, quantity);
        prop_assert_eq!(again.to_string(), written);
        Ok(())
    });
}

#[test]
fn options_and_continue_tokens() {
    let seeds = [
        "limit=2&continue=eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6NSwic3RhcnQiOiJkZWZhdWx0L2EifQ",
        "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&timeoutSeconds=1&labelSelector=a%3Db",
    ];
    read(&seeds, |text| {
        let Ok(uri) = format!("/x?{text}").parse() else {
            return Ok(());
        };
        let Ok(options) = ListOptions::parse(&Query::of(&uri)) else {
            return Ok(());
        };
        let Some(page) = options.page else {
            return Ok(());
        };
        let uri = format!("/x?continue={}", page.token());
        let again = ListOptions::parse(&Query::of(&uri.parse().expect("a URI")));
        prop_assert_eq!(again.expect("options").page, Some(page));
        Ok(())
    });
}

#[test]
fn credentials() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let f = runtime.block_on(Fixture::new());
    let made = runtime.block_on(f.call(
        "POST",
        "/api/v1/namespaces/default/serviceaccounts/default/token",
        json!({}),
    ));
    let token = made.body["status"]["token"].as_str().expect("a token");
    let header = format!("Bearer {token}");
    let seeds = [&header, "Bearer abcdef.0123456789abcdef"];
    read(&seeds, |text| {
        let Some(shown) = bearer(text) else {
            return Ok(());
        };
        let outcome = f.api.authenticator.authenticate(None, Some(shown), 0);
        // Before the token was made it was nobody's.
        prop_assert!(!matches!(outcome, Ok(crate::auth::Credential::Account(_))));
        let now = crate::api::meta::now();
        let outcome = f.api.authenticator.authenticate(None, Some(shown), now);
        if matches!(outcome, Ok(crate::auth::Credential::Account(_))) {
            prop_assert_eq!(shown, token);
        }
        Ok(())
    });
}

#[test]
fn applied_configurations() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let f = runtime.block_on(Fixture::new());
    let uri = format!("{PODS}/p?fieldManager=m&force=true&dryRun=All");
    let seed = POD_YAML.replace("name: &n p", "name: p").replace("*n", "n");
    read(&[&seed], |text| {
        let answer = runtime.block_on(f.call_as(admin(), "PATCH", &uri, APPLY, text));
        prop_assert!(answer.code < 500, "{} {}", answer.code, answer.message());
        Ok(())
    });
}
