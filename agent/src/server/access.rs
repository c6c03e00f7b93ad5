//! Who may ask this node what. As upstream's kubelet in webhook mode: whose token it is, and what its bearer may do to the node,
//! is asked of the API server, and remembered for a while.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::Method;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};
use sha2::{Digest, Sha256};

/// The group whose members may ask anything. The API server's own certificate is of it, so that it is answered while it
/// cannot be asked itself.
pub(super) const ADMINISTRATORS: &str = "system:masters";
const AUTHENTICATED: &str = "system:authenticated";

/// How long an answer of the API server holds, as upstream: a token's, and what is and is not allowed.
const TOKEN: Duration = Duration::from_secs(120);
const ALLOWED: Duration = Duration::from_secs(300);
const REFUSED: Duration = Duration::from_secs(30);
/// Answers of a kind that are remembered at once.
const REMEMBERED: usize = 1024;

/// Somebody who is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Caller {
    pub(super) name: String,
    pub(super) groups: Vec<String>,
    uid: String,
    extra: BTreeMap<String, Vec<String>>,
}

impl Caller {
    /// Whom a certificate names.
    pub(super) fn certified(name: String, mut groups: Vec<String>) -> Self {
        groups.push(AUTHENTICATED.to_owned());
        Self {
            name,
            groups,
            ..Self::default()
        }
    }
}

/// What is asked of the node, in the authorizer's words: the verb, and the subresource of `nodes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Question {
    pub(super) verb: &'static str,
    pub(super) subresource: &'static str,
}

impl Question {
    /// What a request asks.
    pub(super) fn of(method: &Method, path: &str) -> Self {
        let verb = match *method {
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => "get",
        };
        let first = path.trim_start_matches('/').split('/').next();
        let subresource = match first.unwrap_or_default() {
            "stats" => "stats",
            "metrics" => "metrics",
            "logs" => "log",
            _ => "proxy",
        };
        Self { verb, subresource }
    }

    /// What it asks in narrower words, where there are some: who may not do that may do all (KEP-2862).
    pub(super) fn narrowly(self, path: &str) -> Option<Self> {
        let subresource = match path.trim_matches('/') {
            "configz" => "configz",
            "healthz" => "healthz",
            "pods" | "runningpods" => "pods",
            _ => return None,
        };
        Some(Self {
            subresource,
            ..self
        })
    }
}

/// Answers of the API server, each with the time until which it holds.
struct Answers<Q, A>(Mutex<HashMap<Q, (A, Instant)>>);

impl<Q: Eq + Hash, A: Clone> Answers<Q, A> {
    fn new() -> Self {
        Self(Mutex::new(HashMap::new()))
    }

    fn get(&self, question: &Q, now: Instant) -> Option<A> {
        let all = self.lock();
        let (answer, until) = all.get(question)?;
        (now < *until).then(|| answer.clone())
    }

    fn put(&self, question: Q, answer: A, until: Instant, now: Instant) {
        let mut all = self.lock();
        if all.len() >= REMEMBERED {
            all.retain(|_, (_, until)| now < *until);
        }
        // Whoever asks so much is answered by the API server each time.
        if all.len() < REMEMBERED {
            all.insert(question, (answer, until));
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Q, (A, Instant)>> {
        // Each change is one call that cannot stop half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks the API server.
pub struct Access {
    client: Client,
    node: String,
    /// By the digest of the token.
    tokens: Answers<[u8; 32], Caller>,
    verdicts: Answers<(Caller, Question), bool>,
}

impl Access {
    /// For the node of that name.
    pub fn new(client: Client, node: String) -> Self {
        Self {
            client,
            node,
            tokens: Answers::new(),
            verdicts: Answers::new(),
        }
    }

    /// Whose token it is; `None` if nobody's.
    pub(super) async fn bearer(&self, token: &str) -> Result<Option<Caller>, kube::Error> {
        let (digest, now) = (Sha256::digest(token).into(), Instant::now());
        if let Some(known) = self.tokens.get(&digest, now) {
            return Ok(Some(known));
        }
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences: None,
            },
            ..TokenReview::default()
        };
        let reviews: Api<TokenReview> = Api::all(self.client.clone());
        let answer = reviews.create(&PostParams::default(), &review).await?;
        let status = answer.status.unwrap_or_default();
        let user = match status.authenticated {
            Some(true) => status.user.unwrap_or_default(),
            _ => return Ok(None),
        };
        let caller = Caller {
            name: user.username.unwrap_or_default(),
            groups: user.groups.unwrap_or_default(),
            uid: user.uid.unwrap_or_default(),
            extra: user.extra.unwrap_or_default(),
        };
        self.tokens.put(digest, caller.clone(), now + TOKEN, now);
        Ok(Some(caller))
    }

    /// Whether the caller may ask that.
    pub(super) async fn may(
        &self,
        caller: &Caller,
        question: Question,
    ) -> Result<bool, kube::Error> {
        if caller.groups.iter().any(|group| group == ADMINISTRATORS) {
            return Ok(true);
        }
        let (key, now) = ((caller.clone(), question), Instant::now());
        if let Some(known) = self.verdicts.get(&key, now) {
            return Ok(known);
        }
        let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: text(&caller.name),
                groups: Some(caller.groups.clone()),
                uid: text(&caller.uid),
                extra: Some(caller.extra.clone()).filter(|extra| !extra.is_empty()),
                resource_attributes: Some(ResourceAttributes {
                    verb: text(question.verb),
                    version: text("v1"),
                    resource: text("nodes"),
                    subresource: text(question.subresource),
                    name: text(&self.node),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let reviews: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let answer = reviews.create(&PostParams::default(), &review).await?;
        let allowed = answer.status.is_some_and(|status| status.allowed);
        let held = if allowed { ALLOWED } else { REFUSED };
        self.verdicts.put(key, allowed, now + held, now);
        Ok(allowed)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::body::Body;
    use http_body_util::BodyExt;
    use serde_json::{Value, json};

    use super::*;

    /// An API server that knows the token `good` of `reader`, who may read the node's metrics. Counts what it is asked.
    pub(in crate::server) fn access(asked: Arc<AtomicUsize>) -> Access {
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            asked.fetch_add(1, Ordering::SeqCst);
            async move {
                let bytes = request
                    .into_body()
                    .collect()
                    .await
                    .map(|body| body.to_bytes());
                let mut review: Value = serde_json::from_slice(&bytes.unwrap_or_default()).unwrap();
                let (spec, asked) = (&review["spec"], &review["spec"]["resourceAttributes"]);
                review["status"] = match spec["token"].as_str() {
                    Some("good") => json!({"authenticated": true, "user": {"username": "reader"}}),
                    Some(_) => json!({"error": "nobody's"}),
                    None => json!({"allowed": spec["user"] == "reader" && asked["verb"] == "get"
                        && asked["subresource"] == "metrics" && asked["name"] == "node-1"}),
                };
                Ok::<_, Infallible>(http::Response::new(Body::from(review.to_string())))
            }
        });
        Access::new(Client::new(service, "default"), "node-1".to_owned())
    }

    #[test]
    fn requests_are_put_into_the_authorizers_words() {
        for (method, path, verb, subresource) in [
            (Method::GET, "/metrics", "get", "metrics"),
            (Method::GET, "/metrics/cadvisor", "get", "metrics"),
            (Method::GET, "/stats/summary", "get", "stats"),
            (Method::GET, "/logs/x", "get", "log"),
            (Method::GET, "/containerLogs/n/p/c", "get", "proxy"),
            (Method::POST, "/exec/n/p/c", "create", "proxy"),
            (Method::GET, "/metricsfoo", "get", "proxy"),
        ] {
            assert_eq!(
                Question::of(&method, path),
                Question { verb, subresource },
                "{path}"
            );
        }
    }

    #[test]
    fn some_requests_are_put_into_narrower_words_first() {
        let narrowly = |path| {
            let question = Question::of(&Method::GET, path);
            question.narrowly(path).map(|it| (it.verb, it.subresource))
        };
        assert_eq!(narrowly("/pods"), Some(("get", "pods")));
        assert_eq!(narrowly("/runningpods/"), Some(("get", "pods")));
        assert_eq!(narrowly("/healthz"), Some(("get", "healthz")));
        assert_eq!(narrowly("/configz"), Some(("get", "configz")));
        for path in ["/pods/x", "/exec/n/p/c", "/metrics", "/containerLogs/n/p/c"] {
            assert_eq!(narrowly(path), None, "{path}");
        }
    }

    #[tokio::test]
    async fn the_api_server_is_asked_once_for_a_while() {
        let asked = Arc::new(AtomicUsize::new(0));
        let access = access(asked.clone());
        let metrics = Question::of(&Method::GET, "/metrics");
        for _ in 0..3 {
            let reader = access.bearer("good").await.unwrap().unwrap();
            assert!(access.may(&reader, metrics).await.unwrap());
            assert!(
                !access
                    .may(&reader, Question::of(&Method::GET, "/pods"))
                    .await
                    .unwrap()
            );
        }
        assert_eq!(asked.load(Ordering::SeqCst), 3);
        // What is nobody's is not remembered: it may be somebody's later.
        assert!(access.bearer("bad").await.unwrap().is_none());
        assert!(access.bearer("bad").await.unwrap().is_none());
        assert_eq!(asked.load(Ordering::SeqCst), 5);
    }

    #[tokio::test]
    async fn administrators_are_answered_without_asking() {
        let asked = Arc::new(AtomicUsize::new(0));
        let admin = Caller::certified("admin".into(), vec![ADMINISTRATORS.into()]);
        let exec = Question::of(&Method::POST, "/exec/n/p/c");
        assert!(access(asked.clone()).may(&admin, exec).await.unwrap());
        assert_eq!(asked.load(Ordering::SeqCst), 0);
    }
}
