//! Answers: objects, lists and events in the shape that the client asked for.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use super::content::Shape;
use super::error::ApiError;
use super::list::ListMeta;
use super::meta;
use super::stored;
use super::table::{self, Include};
use crate::resources::Kind;

/// How one request's objects are shown.
#[derive(Clone, Copy)]
pub struct Presenter {
    pub kind: &'static Kind,
    pub shape: Shape,
    pub include: Include,
}

impl Presenter {
    /// Whether the stored bytes can go out as they are.
    fn is_plain(&self) -> bool {
        self.shape == Shape::Object && self.kind.conversion.is_none()
    }

    fn served(&self, stored: &[u8]) -> Result<Value, ApiError> {
        stored::presented(
            self.kind,
            serde_json::from_slice(stored).map_err(ApiError::internal)?,
        )
    }

    /// One stored object as an answer.
    pub fn stored(&self, json: &Bytes) -> Result<Response, ApiError> {
        if self.is_plain() {
            return Ok(json_response(StatusCode::OK, Body::from(json.clone())));
        }
        Ok(self.object(StatusCode::OK, self.served(json)?))
    }

    /// One object, in the version that the client speaks, as an answer.
    pub fn object(&self, code: StatusCode, object: Value) -> Response {
        value(code, &self.shaped(object))
    }

    fn shaped(&self, object: Value) -> Value {
        match self.shape {
            Shape::Object => object,
            Shape::Metadata(version) => table::partial(object, version),
            Shape::Table(version) => {
                let metadata = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
                let row = table::row(self.kind, object, self.include, version, meta::now());
                table::table(
                    metadata,
                    Some(table::columns(self.kind)),
                    vec![row],
                    version,
                )
            }
        }
    }

    /// A list of stored objects as an answer.
    pub fn list(&self, items: &[Bytes], meta: &ListMeta) -> Result<Response, ApiError> {
        let body = match self.shape {
            Shape::Object => self.plain_list(items, meta)?,
            Shape::Metadata(version) => {
                let items: Result<Vec<Value>, ApiError> = items
                    .iter()
                    .map(|item| Ok(table::partial(self.served(item)?, version)))
                    .collect();
                let list = json!({
                    "kind": "PartialObjectMetadataList",
                    "apiVersion": version.api_version(),
                    "metadata": meta.value(),
                    "items": items?,
                });
                to_bytes(&list)
            }
            Shape::Table(version) => {
                let now = meta::now();
                let rows: Result<Vec<Value>, ApiError> = items
                    .iter()
                    .map(|item| {
                        Ok(table::row(
                            self.kind,
                            self.served(item)?,
                            self.include,
                            version,
                            now,
                        ))
                    })
                    .collect();
                to_bytes(&table::table(
                    meta.value(),
                    Some(table::columns(self.kind)),
                    rows?,
                    version,
                ))
            }
        };
        Ok(json_response(StatusCode::OK, Body::from(body)))
    }

    fn plain_list(&self, items: &[Bytes], meta: &ListMeta) -> Result<Bytes, ApiError> {
        let head = json!({"kind": format!("{}List", self.kind.kind), "apiVersion": self.kind.api_version(), "metadata": meta.value()});
        let head = head.to_string();
        let size: usize = items.iter().map(|i| i.len() + 1).sum();
        let mut body = BytesMut::with_capacity(head.len() + size + 16);
        body.extend_from_slice(head.trim_end_matches('}').as_bytes());
        // The trim took the braces of metadata and of the list itself.
        body.extend_from_slice(b"},\"items\":[");
        for (at, item) in items.iter().enumerate() {
            if at > 0 {
                body.extend_from_slice(b",");
            }
            if self.is_plain() {
                body.extend_from_slice(item);
            } else {
                body.extend_from_slice(&to_bytes(&self.served(item)?));
            }
        }
        body.extend_from_slice(b"]}");
        Ok(body.freeze())
    }

    /// One line of a watch. `first` says that a table has to bring its columns.
    pub fn event(&self, event: &str, stored: &Bytes, first: bool) -> Result<Bytes, ApiError> {
        if self.is_plain() {
            return Ok(frame(event, stored));
        }
        let object = self.served(stored)?;
        let shaped = match self.shape {
            Shape::Table(version) => {
                let metadata = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
                let row = table::row(self.kind, object, self.include, version, meta::now());
                table::table(
                    metadata,
                    first.then(|| table::columns(self.kind)),
                    vec![row],
                    version,
                )
            }
            _ => self.shaped(object),
        };
        Ok(frame(event, &to_bytes(&shaped)))
    }

    /// The line that says how far a watch has come.
    pub fn bookmark(&self, revision: u64, initial_events_end: bool) -> Bytes {
        let mut metadata =
            json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if initial_events_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match self.shape {
            Shape::Object => {
                json!({"kind": self.kind.kind, "apiVersion": self.kind.api_version(), "metadata": metadata})
            }
            Shape::Metadata(version) => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": version.api_version(), "metadata": metadata})
            }
            Shape::Table(version) => table::table(metadata, None, Vec::new(), version),
        };
        frame("BOOKMARK", &to_bytes(&object))
    }
}

/// The line that ends a watch with a reason.
pub fn error_event(error: &ApiError) -> Bytes {
    frame("ERROR", &to_bytes(&error.status()))
}

fn frame(event: &str, object: &[u8]) -> Bytes {
    let mut line = BytesMut::with_capacity(object.len() + 40);
    line.extend_from_slice(b"{\"type\":\"");
    line.extend_from_slice(event.as_bytes());
    line.extend_from_slice(b"\",\"object\":");
    line.extend_from_slice(object);
    line.extend_from_slice(b"}\n");
    line.freeze()
}

fn to_bytes(value: &Value) -> Bytes {
    Bytes::from(value.to_string())
}

/// Any JSON value as an answer.
pub fn value(code: StatusCode, value: &Value) -> Response {
    json_response(code, Body::from(to_bytes(value)))
}

/// `Status: Success` about an object that is gone or was acted on.
pub fn success(code: StatusCode, kind: &Kind, name: &str, uid: &str) -> Response {
    let mut details = json!({"name": name});
    if !kind.group.is_empty() {
        details["group"] = json!(kind.group);
    }
    details["kind"] = json!(kind.plural);
    if !uid.is_empty() {
        details["uid"] = json!(uid);
    }
    let mut status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
    if code != StatusCode::OK {
        status["code"] = json!(code.as_u16());
    }
    value(code, &status)
}

pub fn json_response(code: StatusCode, body: Body) -> Response {
    let mut response = (code, body).into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, private"),
    );
    response
}

/// Clients take only so much in headers: characters of all warnings, and of one where that is too much, as upstream.
const ALL_WARNINGS: usize = 4096;
const ONE_WARNING: usize = 256;

/// Adds `Warning` headers: what the server did not like but let pass.
pub fn warn(response: &mut Response, warnings: &[String]) {
    let whole: usize = warnings.iter().map(|text| text.chars().count()).sum();
    let most = if whole > ALL_WARNINGS {
        ONE_WARNING
    } else {
        ALL_WARNINGS
    };
    let mut room = ALL_WARNINGS;
    for warning in warnings {
        let warning: String = warning.chars().take(most).collect();
        let Some(left) = room.checked_sub(warning.len()) else {
            break;
        };
        room = left;
        let quoted = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(header) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append(header::WARNING, header);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources;
    use http_body_util::BodyExt;

    fn presenter(shape: Shape) -> Presenter {
        let kind = resources::find("", "v1", "configmaps").expect("a kind");
        Presenter {
            kind,
            shape,
            include: Include::Metadata,
        }
    }

    async fn body(response: Response) -> Value {
        let bytes = response
            .into_body()
            .collect()
            .await
            .expect("a body")
            .to_bytes();
        serde_json::from_slice(&bytes).expect("JSON")
    }

    #[tokio::test]
    async fn a_plain_list_is_its_items_bytes() {
        let items = [
            Bytes::from_static(b"{\"a\":1}"),
            Bytes::from_static(b"{\"a\":2}"),
        ];
        for (next, items) in [("", &items[..]), ("more", &items[..1]), ("", &[])] {
            let meta = ListMeta {
                resource_version: 7,
                next: next.into(),
                remaining: None,
            };
            let list = body(presenter(Shape::Object).list(items, &meta).expect("a list")).await;
            assert_eq!(list["kind"], "ConfigMapList");
            assert_eq!(list["metadata"]["resourceVersion"], "7");
            assert_eq!(list["items"].as_array().map(Vec::len), Some(items.len()));
        }
    }

    #[test]
    fn an_event_is_one_line() {
        let line = presenter(Shape::Object)
            .event("ADDED", &Bytes::from_static(b"{}"), true)
            .expect("an event");
        assert_eq!(line, "{\"type\":\"ADDED\",\"object\":{}}\n");
    }

    #[test]
    fn warnings_are_quoted() {
        let mut response = value(StatusCode::OK, &json!({}));
        warn(&mut response, &["unknown field \"spec.foo\"".to_owned()]);
        assert_eq!(
            response.headers()[header::WARNING],
            "299 - \"unknown field \\\"spec.foo\\\"\""
        );
        warn(&mut response, &vec!["x".repeat(1000); 100]);
        let sizes = response.headers().get_all(header::WARNING).iter();
        assert!(sizes.map(HeaderValue::len).sum::<usize>() < 2 * ALL_WARNINGS);
    }
}
