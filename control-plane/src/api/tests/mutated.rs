//! Requests of clients that have gone wrong: good ones with pieces changed, at every decoder that a client reaches (JSON,
//! YAML, protobuf, patches, selectors, quantities, continue tokens, options). None may be the server's fault, end a task or
//! hang.
//!
//! `KERNELET_TEST_REQUESTS` says how many are tried.

use std::panic::AssertUnwindSafe;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use futures::FutureExt as _;
use http::Uri;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestRunner};

use super::*;

/// No answer takes nearly as long, not even to a read that waits for a revision to come.
const HANGS: Duration = Duration::from_secs(60);

const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
pub(super) const APPLY: &str = "application/apply-patch+yaml";

/// What `kubectl create configmap conf --from-literal=k=v` sends as protobuf.
const PROTOBUF: &[u8] = b"k8s\0\n\x0f\n\x02v1\x12\x09ConfigMap\x12*\n\x14\n\x04conf\x12\0\x1a\0\"\0*\x002\x008\0B\0\x12\n\n\x03bin\x12\x03a\0b\x12\x06\n\x01k\x12\x01v\x1a\0\"\0";

/// What readers of text stumble over: the fuzzer's dictionary, and nothing at all.
static PIECES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let lines = include_str!("../../../fuzz/dictionary").lines();
    let pieces = lines.filter_map(|line| line.strip_prefix('"')?.strip_suffix('"'));
    pieces.map(unescaped).chain([Vec::new()]).collect()
});

/// A line of the dictionary without its `\xHH`.
fn unescaped(text: &str) -> Vec<u8> {
    let mut parts = text.split("\\x");
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (hex, rest) = part.split_at(2);
        bytes.push(u8::from_str_radix(hex, 16).expect("two digits"));
        bytes.extend(rest.bytes());
    }
    bytes
}

/// A request of a client that is right.
#[derive(Clone, Debug)]
struct Good {
    method: &'static str,
    uri: String,
    content_type: &'static str,
    body: Vec<u8>,
}

fn good(
    method: &'static str,
    uri: &str,
    content_type: &'static str,
    body: impl Into<Vec<u8>>,
) -> Good {
    Good {
        method,
        uri: uri.to_owned(),
        content_type,
        body: body.into(),
    }
}

/// A token that continues a list, as this server makes them.
fn token() -> String {
    BASE64_URL_SAFE_NO_PAD.encode(r#"{"v":"meta.k8s.io/v1","rv":5,"start":"default/a"}"#)
}

fn corpus() -> Vec<Good> {
    let reads = [
        format!("{PODS}?labelSelector=app in (a,b),tier!=x,!gone&fieldSelector=spec.nodeName=n1,status.phase!=Failed"),
        format!("{PODS}?limit=1&continue={}", token()),
        format!("{PODS}?resourceVersion=1&resourceVersionMatch=NotOlderThan&limit=2"),
        format!("{MAPS}?watch=true&timeoutSeconds=1&resourceVersion=0&allowWatchBookmarks=true"),
        format!("{MAPS}?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&timeoutSeconds=1"),
        format!("{MAPS}/there?pretty=true"),
        "/api/v1/nodes?limit=500".to_owned(),
        "/apis/apps/v1/namespaces/default/deployments/web/scale".to_owned(),
        "/apis/apps/v1?timeout=32s".to_owned(),
        "/openapi/v3/apis/apps/v1?hash=1".to_owned(),
        "/version".to_owned(),
    ]
    .map(|uri| good("GET", &uri.replace(' ', "%20"), JSON, ""));
    let deployment = r#"{"metadata":{"name":"web","labels":{"a":"b"}},"spec":{"replicas":2,"selector":{"matchLabels":{"a":"b"}},"strategy":{"rollingUpdate":{"maxSurge":"25%"}},"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i","ports":[{"containerPort":80}],"resources":{"requests":{"cpu":"100m","memory":"1Gi"}},"livenessProbe":{"httpGet":{"port":80,"path":"/"}}}],"volumes":[{"name":"v","emptyDir":{"sizeLimit":"1Gi"}}]}}}}"#;
    let writes = [
        good("POST", PODS, JSON, pod("new").to_string()),
        good(
            "POST",
            &format!("{MAPS}?dryRun=All&fieldValidation=Strict&fieldManager=me"),
            JSON,
            map("new").to_string(),
        ),
        good(
            "POST",
            MAPS,
            "application/vnd.kubernetes.protobuf",
            PROTOBUF,
        ),
        good(
            "POST",
            MAPS,
            "application/yaml",
            "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: y\n  annotations: {a: 'b'}\ndata:\n  k: |\n    text\n",
        ),
        good(
            "POST",
            "/apis/apps/v1/namespaces/default/deployments",
            JSON,
            deployment,
        ),
        good(
            "POST",
            "/api/v1/namespaces/default/services",
            JSON,
            r#"{"metadata":{"name":"s"},"spec":{"type":"NodePort","selector":{"a":"b"},"ports":[{"name":"p","port":80,"targetPort":"http","nodePort":30080,"protocol":"TCP"}],"clusterIPs":["10.96.0.77"],"ipFamilies":["IPv4"],"sessionAffinity":"ClientIP"}}"#,
        ),
        good(
            "POST",
            "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
            JSON,
            r#"{"metadata":{"name":"e"},"addressType":"IPv4","endpoints":[{"addresses":["10.1.1.1"],"conditions":{"ready":true},"hints":{"forZones":[{"name":"z"}]}}],"ports":[{"name":"p","port":80,"protocol":"TCP"}]}"#,
        ),
        good(
            "POST",
            "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies",
            JSON,
            r#"{"metadata":{"name":"n"},"spec":{"podSelector":{"matchExpressions":[{"key":"a","operator":"In","values":["b"]}]},"ingress":[{"from":[{"ipBlock":{"cidr":"10.0.0.0/8","except":["10.1.0.0/16"]}}],"ports":[{"port":80,"endPort":90}]}]}}"#,
        ),
        good(
            "POST",
            "/apis/batch/v1/namespaces/default/cronjobs",
            JSON,
            r#"{"metadata":{"name":"c"},"spec":{"schedule":"*/5 1-3 * JAN mon","timeZone":"Europe/Berlin","jobTemplate":{"spec":{"completions":3,"completionMode":"Indexed","backoffLimitPerIndex":1,"podFailurePolicy":{"rules":[{"action":"FailJob","onExitCodes":{"operator":"In","values":[42]}}]},"successPolicy":{"rules":[{"succeededIndexes":"0-1,2"}]},"template":{"spec":{"restartPolicy":"Never","containers":[{"name":"c","image":"i"}]}}}}}}"#,
        ),
        good(
            "POST",
            "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers",
            JSON,
            r#"{"metadata":{"name":"h","annotations":{"autoscaling.alpha.kubernetes.io/metrics":"[{\"type\":\"Resource\"}]"}},"spec":{"scaleTargetRef":{"kind":"Deployment","name":"web"},"maxReplicas":3,"targetCPUUtilizationPercentage":50}}"#,
        ),
        good(
            "POST",
            "/apis/policy/v1/namespaces/default/poddisruptionbudgets",
            JSON,
            r#"{"metadata":{"name":"b"},"spec":{"minAvailable":"50%","selector":{"matchLabels":{"a":"b"}}}}"#,
        ),
        good(
            "POST",
            "/apis/networking.k8s.io/v1/namespaces/default/ingresses",
            JSON,
            r#"{"metadata":{"name":"i"},"spec":{"rules":[{"host":"*.a.example","http":{"paths":[{"path":"/a","pathType":"Prefix","backend":{"service":{"name":"s","port":{"number":80}}}}]}}]}}"#,
        ),
        good(
            "POST",
            "/api/v1/namespaces/default/resourcequotas",
            JSON,
            r#"{"metadata":{"name":"q"},"spec":{"hard":{"pods":"10","requests.cpu":"1500m","count/jobs.batch":"3"},"scopeSelector":{"matchExpressions":[{"scopeName":"PriorityClass","operator":"In","values":["p"]}]}}}"#,
        ),
        good(
            "POST",
            "/api/v1/namespaces/default/limitranges",
            JSON,
            r#"{"metadata":{"name":"l"},"spec":{"limits":[{"type":"Container","default":{"cpu":"1"},"defaultRequest":{"memory":"1Mi"},"max":{"cpu":"2"},"maxLimitRequestRatio":{"cpu":"4"}}]}}"#,
        ),
        good(
            "POST",
            "/api/v1/namespaces/default/persistentvolumeclaims",
            JSON,
            r#"{"metadata":{"name":"v"},"spec":{"accessModes":["ReadWriteOnce"],"resources":{"requests":{"storage":"1Gi"}},"dataSource":{"kind":"PersistentVolumeClaim","name":"o"}}}"#,
        ),
        good(
            "PATCH",
            "/api/v1/namespaces/default",
            MERGE,
            r#"{"metadata":{"labels":{"pod-security.kubernetes.io/enforce":"baseline","pod-security.kubernetes.io/warn-version":"v1.30"}}}"#,
        ),
        good(
            "POST",
            "/apis/rbac.authorization.k8s.io/v1/clusterroles",
            JSON,
            r#"{"metadata":{"name":"r"},"rules":[{"apiGroups":[""],"resources":["pods/*"],"verbs":["get"]}],"aggregationRule":{"clusterRoleSelectors":[{"matchLabels":{"a":"b"}}]}}"#,
        ),
        good(
            "POST",
            "/apis/authorization.k8s.io/v1/subjectaccessreviews",
            JSON,
            r#"{"spec":{"user":"u","groups":["g"],"resourceAttributes":{"verb":"get","resource":"pods","fieldSelector":{"requirements":[{"key":"a","operator":"In","values":["b"]}]}}}}"#,
        ),
        good(
            "POST",
            "/apis/authentication.k8s.io/v1/tokenreviews",
            JSON,
            r#"{"spec":{"token":"eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJ4In0.c2ln","audiences":["a"]}}"#,
        ),
        good(
            "POST",
            "/api/v1/namespaces/default/serviceaccounts/default/token",
            JSON,
            r#"{"spec":{"audiences":["a"],"expirationSeconds":600,"boundObjectRef":{"kind":"Pod","apiVersion":"v1","name":"there"}}}"#,
        ),
        good(
            "POST",
            "/apis/certificates.k8s.io/v1/certificatesigningrequests",
            JSON,
            r#"{"metadata":{"name":"c"},"spec":{"request":"LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0KTUlIPQotLS0tLUVORCBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0K","signerName":"kubernetes.io/kube-apiserver-client","usages":["client auth"]}}"#,
        ),
        good(
            "POST",
            &format!("{PODS}/there/eviction"),
            JSON,
            r#"{"apiVersion":"policy/v1","kind":"Eviction","metadata":{"name":"there"},"deleteOptions":{"gracePeriodSeconds":0,"preconditions":{"uid":"u"}}}"#,
        ),
        good(
            "POST",
            &format!("{PODS}/there/binding"),
            JSON,
            r#"{"metadata":{"name":"there"},"target":{"kind":"Node","name":"n1"}}"#,
        ),
        good(
            "PUT",
            &format!("{MAPS}/there"),
            JSON,
            map("there").to_string(),
        ),
        good(
            "PUT",
            &format!("{PODS}/there/status"),
            JSON,
            pod("there").to_string(),
        ),
        good(
            "PUT",
            "/apis/apps/v1/namespaces/default/deployments/web/scale",
            JSON,
            r#"{"metadata":{"name":"web"},"spec":{"replicas":3}}"#,
        ),
        good(
            "PATCH",
            &format!("{MAPS}/there"),
            "application/json-patch+json",
            r#"[{"op":"test","path":"/data/k","value":"v"},{"op":"add","path":"/data/l","value":"w"},{"op":"move","from":"/data/l","path":"/data/m"},{"op":"copy","from":"/data","path":"/metadata/annotations"},{"op":"remove","path":"/data/k"}]"#,
        ),
        good(
            "PATCH",
            &format!("{MAPS}/there"),
            MERGE,
            r#"{"metadata":{"labels":{"a":null}},"data":{"k":"v2"}}"#,
        ),
        good(
            "PATCH",
            &format!("{PODS}/there"),
            STRATEGIC,
            r#"{"metadata":{"$deleteFromPrimitiveList/finalizers":["a"]},"spec":{"$setElementOrder/containers":[{"name":"c"}],"containers":[{"name":"c","image":"j","$patch":"merge"}],"tolerations":[{"key":"a","operator":"Exists"}]}}"#,
        ),
        good(
            "PATCH",
            "/apis/apps/v1/namespaces/default/deployments/web",
            STRATEGIC,
            r#"{"spec":{"strategy":{"$retainKeys":["type"],"type":"Recreate"},"template":{"spec":{"containers":[{"$patch":"replace"},{"name":"d","image":"i"}]}}}}"#,
        ),
        good(
            "PATCH",
            "/apis/apps/v1/namespaces/default/deployments/web?fieldManager=me&force=true",
            APPLY,
            deployment,
        ),
        good(
            "PATCH",
            &format!("{MAPS}/applied?fieldManager=me"),
            APPLY,
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: applied, finalizers: [a/b]}\ndata: {k: v}\n",
        ),
        good(
            "DELETE",
            &format!("{MAPS}/there"),
            JSON,
            r#"{"kind":"DeleteOptions","apiVersion":"v1","propagationPolicy":"Foreground","preconditions":{"resourceVersion":"1"},"gracePeriodSeconds":1}"#,
        ),
        good(
            "DELETE",
            &format!("{MAPS}?labelSelector=app=new&dryRun=All"),
            JSON,
            "",
        ),
    ];
    reads.into_iter().chain(writes).collect()
}

/// One change of a text.
#[derive(Clone, Debug)]
enum Edit {
    /// A piece in the place of so many bytes.
    Put(Index, usize, Vec<u8>),
    /// A part once more, elsewhere.
    Again(Index, usize, Index),
    /// Another byte.
    Byte(Index, u8),
    /// Nothing from here on.
    End(Index),
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        6 => (any::<Index>(), 0..12_usize, select(PIECES.clone())).prop_map(|(at, len, piece)| Edit::Put(at, len, piece)),
        2 => (any::<Index>(), 0..40_usize, any::<Index>()).prop_map(|(at, len, to)| Edit::Again(at, len, to)),
        2 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Edit::Byte(at, byte)),
        1 => any::<Index>().prop_map(Edit::End),
    ]
}

fn edited(mut text: Vec<u8>, edits: &[Edit]) -> Vec<u8> {
    for edit in edits {
        let size = text.len() + 1;
        let span = |at: &Index, len: usize| {
            let at = at.index(size);
            at..(at + len).min(size - 1)
        };
        match edit {
            Edit::Put(at, len, piece) => drop(text.splice(span(at, *len), piece.iter().copied())),
            Edit::Again(at, len, to) => {
                let part = text[span(at, *len)].to_vec();
                let to = to.index(size);
                drop(text.splice(to..to, part));
            }
            Edit::Byte(at, byte) => {
                if let Some(one) = text.get_mut(at.index(size)) {
                    *one = *byte;
                }
            }
            Edit::End(at) => text.truncate(at.index(size)),
        }
    }
    text
}

/// A text with some changes.
pub(super) fn changed(text: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    vec(edit(), 0..5).prop_map(move |edits| edited(text.clone(), &edits))
}

/// A request, and where it is changed. One place at a time is likeliest to come far.
fn request() -> impl Strategy<Value = Good> {
    let body = vec(edit(), 0..5);
    let uri = prop_oneof![3 => Just(Vec::new()), 1 => vec(edit(), 1..3)];
    (select(corpus()), body, uri).prop_map(|(mut good, body, uri)| {
        good.body = edited(good.body, &body);
        // What no server would be given: a client has to send a URI.
        let text = String::from_utf8(edited(good.uri.clone().into_bytes(), &uri));
        if let Some(uri) = text
            .ok()
            .filter(|text| text.starts_with('/') && text.parse::<Uri>().is_ok())
        {
            good.uri = uri;
        }
        good
    })
}

impl Fixture {
    /// The status of the answer, and its body unless it is a watch's.
    async fn answer(&self, good: &Good) -> (u16, String) {
        let request = Request::builder()
            .method(good.method)
            .uri(&good.uri)
            .header(header::CONTENT_TYPE, good.content_type);
        let response = self.send(admin(), request, good.body.clone()).await;
        let code = response.status().as_u16();
        // A watch goes on for as long as it was asked to, which may be for ever by now.
        if code == 200 && good.uri.contains("watch") {
            return (code, String::new());
        }
        let body = response.into_body().collect().await;
        let text = body.map(|body| body.to_bytes()).unwrap_or_default();
        (code, String::from_utf8_lossy(&text).into_owned())
    }
}

#[test]
fn no_request_is_the_servers_fault() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let f = runtime.block_on(async {
        let f = Fixture::new().await;
        for (uri, object) in [(MAPS, map("there")), (PODS, pod("there"))] {
            assert_eq!(f.call("POST", uri, object).await.code, 201);
        }
        f
    });
    let cases = std::env::var("KERNELET_TEST_REQUESTS");
    let cases = cases.map_or(3_000, |cases| cases.parse().expect("a number"));
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    let outcome = TestRunner::new(config).run(&request(), |good| {
        let answer = AssertUnwindSafe(f.answer(&good)).catch_unwind();
        let answer = runtime.block_on(async { tokio::time::timeout(HANGS, answer).await });
        match answer {
            // A revision that is not there yet: upstream's own answer.
            Ok(Ok((code, _))) if code < 500 || code == 504 => Ok(()),
            Ok(Ok((code, text))) => Err(TestCaseError::fail(format!("{code} {text}"))),
            Ok(Err(_)) => Err(TestCaseError::fail("it panics")),
            Err(_) => Err(TestCaseError::fail("it hangs")),
        }
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}
