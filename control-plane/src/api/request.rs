//! What a request asks for, read from its method, path and query alone.

use std::collections::HashMap;

use http::{Method, Uri};

/// A request, understood. Everything that decides (authorization, routing) works with this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Resource(ResourceRequest),
    /// `/healthz`, `/version`, discovery …
    Path,
}

/// A request for objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceRequest {
    pub verb: &'static str,
    /// Empty for the core group.
    pub group: String,
    pub version: String,
    /// Empty for cluster-scoped resources and for lists over all namespaces.
    pub namespace: String,
    pub resource: String,
    /// Empty for collections.
    pub name: String,
    /// Empty when the object itself is meant.
    pub subresource: String,
}

impl ResourceRequest {
    /// The kind that the request's parameters are: `CreateOptions` and its siblings.
    pub fn options(&self) -> &'static str {
        match self.verb {
            "update" => "UpdateOptions",
            "patch" => "PatchOptions",
            "delete" | "deletecollection" => "DeleteOptions",
            "list" | "watch" => "ListOptions",
            "get" => "GetOptions",
            _ => "CreateOptions",
        }
    }
}

/// Reads a request's target. None for a path below `/api/v1` or `/apis/GROUP/VERSION` that no resource can have.
///
/// Here escaped characters of the path are decoded, once: what is authorized is what is looked up.
pub fn target(method: &Method, uri: &Uri, query: &Query) -> Option<Target> {
    let (path, _) = split_proxied(uri.path());
    let parts = path.trim_matches('/').split('/').map(segment);
    let parts: Vec<String> = parts.collect::<Option<_>>()?;
    let mut parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let (group, version) = match parts.as_slice() {
        ["api", version, _, ..] => {
            let version = *version;
            parts.drain(..2);
            ("", version)
        }
        ["apis", group, version, _, ..] => {
            let (group, version) = (*group, *version);
            parts.drain(..3);
            (group, version)
        }
        _ => return Some(Target::Path),
    };
    if parts.iter().any(|part| part.is_empty()) {
        return None;
    }
    // The old way to ask for a watch, of a collection or of one object.
    let watched = parts.len() > 1 && parts[0] == "watch";
    if watched {
        parts.remove(0);
    }
    let (namespace, rest) = match parts.as_slice() {
        // A namespace is itself an object; its subresources share the shape of the things inside it.
        ["namespaces", name, "status" | "finalize"] => ("", &["namespaces", name, parts[2]][..]),
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
        all => ("", all),
    };
    let (resource, name, subresource) = match rest {
        [resource] => (*resource, "", ""),
        [resource, name] => (*resource, *name, ""),
        [resource, name, subresource] => (*resource, *name, *subresource),
        _ => return None,
    };
    let verb = match *method {
        Method::GET | Method::HEAD if watched => "watch",
        _ if watched => "",
        // Upstream, too, gives one object as it is, whether or not `watch` is asked for.
        Method::GET | Method::HEAD if name.is_empty() && query.flag("watch") => "watch",
        Method::GET | Method::HEAD if name.is_empty() => "list",
        Method::GET | Method::HEAD => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if name.is_empty() => "deletecollection",
        Method::DELETE => "delete",
        _ => "",
    };
    Some(Target::Resource(ResourceRequest {
        verb,
        group: group.to_owned(),
        version: version.to_owned(),
        namespace: namespace.to_owned(),
        resource: resource.to_owned(),
        name: name.to_owned(),
        subresource: subresource.to_owned(),
    }))
}

/// Splits the path of a request that is passed on (`/api/v1/nodes/NAME/proxy/…`) into what names the receiver, and what is
/// the receiver's. Of any other path all is of the first kind.
pub fn split_proxied(path: &str) -> (&str, &str) {
    let parts: Vec<&str> = path.split('/').take(8).collect();
    let own = match parts.as_slice() {
        ["", "api", _, "nodes", _, "proxy", ..] => 6,
        [
            "",
            "api",
            _,
            "namespaces",
            _,
            "pods" | "services",
            _,
            "proxy",
            ..,
        ] => 8,
        _ => return (path, ""),
    };
    let end = parts[..own]
        .iter()
        .map(|part| part.len() + 1)
        .sum::<usize>()
        - 1;
    path.split_at(end)
}

/// The parameters after the `?`. The first of several values with one name counts.
#[derive(Clone, Debug, Default)]
pub struct Query(HashMap<String, String>);

impl Query {
    pub fn of(uri: &Uri) -> Self {
        let mut all = HashMap::new();
        for (name, value) in pairs(uri) {
            all.entry(name).or_insert(value);
        }
        Query(all)
    }

    /// The value, empty when the parameter is absent.
    pub fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    pub fn flag(&self, name: &str) -> bool {
        // `?watch` alone means true, as upstream has it.
        self.0
            .get(name)
            .is_some_and(|v| !matches!(v.as_str(), "0" | "false"))
    }

    /// A whole number, None when the parameter is absent; the message when it is no number.
    pub fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, String> {
        match self.get(name) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                format!("unable to decode query parameter {name}: \"{text}\" is not a whole number in range")
            }),
        }
    }
}

/// Every parameter after the `?`, in order, decoded.
pub fn pairs(uri: &Uri) -> impl Iterator<Item = (String, String)> {
    let query = uri.query().unwrap_or_default();
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (unescape(name), unescape(value))
        })
}

/// One part of a path, decoded. None for what cannot be part of a name.
fn segment(text: &str) -> Option<String> {
    let decoded = String::from_utf8(decode(text)).ok()?;
    (!decoded.contains(['/', '%']) && decoded != "." && decoded != "..").then_some(decoded)
}

/// Undoes form encoding: `+` is a space, `%41` is a byte.
fn unescape(text: &str) -> String {
    String::from_utf8_lossy(&decode(&text.replace('+', " "))).into_owned()
}

/// The text without percent encoding, for what is no part of a path.
pub fn decoded(text: &str) -> String {
    String::from_utf8_lossy(&decode(text)).into_owned()
}

/// Undoes percent encoding; leaves what is none.
fn decode(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match (first, tail) {
            (b'%', [high, low, after @ ..]) => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => {
                    bytes.push(high << 4 | low);
                    rest = after;
                }
                _ => bytes.push(b'%'),
            },
            (byte, _) => bytes.push(*byte),
        }
    }
    bytes
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|d| u8::try_from(d).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(method: Method, uri: &str) -> Option<Target> {
        let uri: Uri = uri.parse().expect("a uri");
        target(&method, &uri, &Query::of(&uri))
    }

    fn resource(method: Method, uri: &str) -> ResourceRequest {
        match read(method, uri) {
            Some(Target::Resource(r)) => r,
            other => panic!("{uri}: {other:?}"),
        }
    }

    #[test]
    fn what_is_passed_on_is_not_read() {
        let cases = [
            (
                "/api/v1/nodes/n/proxy/a//b%2Fc",
                ("/api/v1/nodes/n/proxy", "/a//b%2Fc"),
            ),
            ("/api/v1/nodes/n/proxy", ("/api/v1/nodes/n/proxy", "")),
            (
                "/api/v1/namespaces/a/services/http:s:web/proxy/",
                ("/api/v1/namespaces/a/services/http:s:web/proxy", "/"),
            ),
            (
                "/api/v1/namespaces/a/pods/p/log",
                ("/api/v1/namespaces/a/pods/p/log", ""),
            ),
            (
                "/api/v1/nodes/n/proxies/a",
                ("/api/v1/nodes/n/proxies/a", ""),
            ),
        ];
        for (path, split) in cases {
            assert_eq!(split_proxied(path), split);
        }
        let asked = resource(Method::POST, "/api/v1/namespaces/a/pods/p:80/proxy/x/../y");
        let own = (asked.verb, &*asked.name, &*asked.subresource);
        assert_eq!(own, ("create", "p:80", "proxy"));
    }

    #[test]
    fn paths_and_methods_become_verbs() {
        let cases = [
            (
                Method::GET,
                "/api/v1/pods",
                ("list", "", "", "pods", "", ""),
            ),
            (
                Method::GET,
                "/api/v1/pods?watch=1",
                ("watch", "", "", "pods", "", ""),
            ),
            (
                Method::GET,
                "/api/v1/watch/namespaces/a/pods/p",
                ("watch", "", "a", "pods", "p", ""),
            ),
            (
                Method::GET,
                "/apis/apps/v1/watch/deployments",
                ("watch", "apps", "", "deployments", "", ""),
            ),
            (
                Method::GET,
                "/api/v1/namespaces/a/pods/p",
                ("get", "", "a", "pods", "p", ""),
            ),
            (
                Method::GET,
                "/api/v1/namespaces/a/pods/p?watch=true",
                ("get", "", "a", "pods", "p", ""),
            ),
            (
                Method::GET,
                "/api/v1/namespaces/a/pods/p/log",
                ("get", "", "a", "pods", "p", "log"),
            ),
            (
                Method::GET,
                "/api/v1/namespaces/a",
                ("get", "", "", "namespaces", "a", ""),
            ),
            (
                Method::PUT,
                "/api/v1/namespaces/a/finalize",
                ("update", "", "", "namespaces", "a", "finalize"),
            ),
            (
                Method::POST,
                "/apis/apps/v1/namespaces/a/deployments",
                ("create", "apps", "a", "deployments", "", ""),
            ),
            (
                Method::PATCH,
                "/apis/apps/v1/namespaces/a/deployments/d/scale",
                ("patch", "apps", "a", "deployments", "d", "scale"),
            ),
            (
                Method::DELETE,
                "/api/v1/nodes",
                ("deletecollection", "", "", "nodes", "", ""),
            ),
            (
                Method::DELETE,
                "/api/v1/nodes/n",
                ("delete", "", "", "nodes", "n", ""),
            ),
        ];
        for (method, uri, (verb, group, namespace, plural, name, sub)) in cases {
            let r = resource(method, uri);
            assert_eq!(
                (
                    r.verb,
                    &*r.group,
                    &*r.namespace,
                    &*r.resource,
                    &*r.name,
                    &*r.subresource
                ),
                (verb, group, namespace, plural, name, sub),
                "{uri}"
            );
        }
    }

    #[test]
    fn other_paths_are_not_resources() {
        for uri in [
            "/",
            "/healthz",
            "/api",
            "/api/v1",
            "/apis",
            "/apis/apps",
            "/apis/apps/v1",
            "/openapi/v2",
        ] {
            assert_eq!(read(Method::GET, uri), Some(Target::Path), "{uri}");
        }
        assert_eq!(read(Method::GET, "/api/v1/namespaces/a/pods/p/x/y/z"), None);
        assert_eq!(read(Method::GET, "/api/v1//pods"), None);
    }

    #[test]
    fn paths_are_decoded_once() {
        let escaped = resource(Method::GET, "/api/v1/%6Eamespaces/a/events/web%3Ax.1%20+");
        assert_eq!(
            (&*escaped.namespace, &*escaped.resource, &*escaped.name),
            ("a", "events", "web:x.1 +")
        );
        for uri in [
            "/api/v1/namespaces/a%2Fb/pods",
            "/api/v1/namespaces/a/pods/%2e%2e",
            "/api/v1/namespaces/a/pods/%2541",
            "/api/v1/namespaces/a/pods/%zz",
            "/api/v1/namespaces/a/pods/%ff",
        ] {
            assert_eq!(read(Method::GET, uri), None, "{uri}");
        }
    }

    #[test]
    fn queries_are_unescaped() {
        let uri: Uri = "/x?labelSelector=a%20in+%28b%2Cc%29&watch&limit=5&limit=6"
            .parse()
            .expect("a uri");
        let query = Query::of(&uri);
        assert_eq!(query.get("labelSelector"), "a in (b,c)");
        assert!(query.flag("watch"));
        assert_eq!(query.number::<usize>("limit"), Ok(Some(5)));
        assert!(query.number::<usize>("labelSelector").is_err());
    }
}
