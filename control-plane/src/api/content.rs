//! Content negotiation: what a body is written in, and what shape the client wants its answer in.

use http::{HeaderMap, header};

use super::error::ApiError;

/// The shape of an answer that holds objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Object,
    /// `Table`, with the version of `meta.k8s.io` that was asked for.
    Table(MetaVersion),
    /// `PartialObjectMetadata` or its list.
    Metadata(MetaVersion),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetaVersion {
    V1,
    V1Beta1,
}

impl MetaVersion {
    pub fn api_version(self) -> &'static str {
        match self {
            MetaVersion::V1 => "meta.k8s.io/v1",
            MetaVersion::V1Beta1 => "meta.k8s.io/v1beta1",
        }
    }
}

const SPOKEN: &str = "application/json, application/json;stream=watch";

/// One alternative of an `Accept` header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediaRange<'a> {
    pub essence: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
}

impl<'a> MediaRange<'a> {
    pub fn parameter(&self, name: &str) -> &'a str {
        self.parameters
            .iter()
            .find(|(n, _)| *n == name)
            .map_or("", |(_, v)| v)
    }
}

/// The alternatives of `Accept`, in the client's order; everything when the header is absent.
pub fn accepted(headers: &HeaderMap) -> Vec<MediaRange<'_>> {
    let lists = headers.get_all(header::ACCEPT);
    let ranges: Vec<_> = lists
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(media_range)
        .filter(|range| !range.essence.is_empty())
        .collect();
    if ranges.is_empty() {
        vec![media_range("*/*")]
    } else {
        ranges
    }
}

fn media_range(text: &str) -> MediaRange<'_> {
    let mut parts = text.split(';').map(str::trim);
    MediaRange {
        essence: parts.next().unwrap_or_default(),
        parameters: parts.filter_map(|p| p.split_once('=')).collect(),
    }
}

fn is_json(range: &MediaRange<'_>) -> bool {
    matches!(range.essence, "application/json" | "application/*" | "*/*")
}

/// Picks the first alternative that this server speaks.
pub fn shape(headers: &HeaderMap) -> Result<Shape, ApiError> {
    accepted(headers)
        .iter()
        .filter(|range| is_json(range))
        .find_map(|range| {
            let version = match range.parameter("v") {
                "v1" => MetaVersion::V1,
                "v1beta1" => MetaVersion::V1Beta1,
                _ => return range.parameter("as").is_empty().then_some(Shape::Object),
            };
            match (range.parameter("g"), range.parameter("as")) {
                ("meta.k8s.io", "Table") => Some(Shape::Table(version)),
                ("meta.k8s.io", "PartialObjectMetadata" | "PartialObjectMetadataList") => {
                    Some(Shape::Metadata(version))
                }
                (_, "") => Some(Shape::Object),
                _ => None,
            }
        })
        .ok_or_else(|| ApiError::not_acceptable(SPOKEN))
}

/// Whether the client can read JSON at all.
pub fn require_json(headers: &HeaderMap) -> Result<(), ApiError> {
    if accepted(headers).iter().any(is_json) {
        Ok(())
    } else {
        Err(ApiError::not_acceptable(SPOKEN))
    }
}

/// How a body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Json,
    Yaml,
    Protobuf,
}

/// The essence of `Content-Type`, lower-case; empty when there is none.
pub fn content_type(headers: &HeaderMap) -> String {
    let value = headers
        .get(header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    value
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase()
}

/// What an object in a request's body is written in.
pub fn encoding(headers: &HeaderMap) -> Result<Encoding, ApiError> {
    match content_type(headers).as_str() {
        // A missing type, and curl's default, have always been taken for JSON.
        "" | "application/json" | "*/*" | "application/x-www-form-urlencoded" => Ok(Encoding::Json),
        "application/yaml" | "application/x-yaml" | "text/yaml" => Ok(Encoding::Yaml),
        "application/vnd.kubernetes.protobuf" => Ok(Encoding::Protobuf),
        _ => Err(ApiError::unsupported_media_type(
            "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepting(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::ACCEPT, value.parse().expect("a header"))])
    }

    #[test]
    fn the_first_alternative_that_is_spoken_wins() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(
            shape(&accepting(kubectl)),
            Ok(Shape::Table(MetaVersion::V1))
        );
        let client_go = "application/vnd.kubernetes.protobuf,application/json";
        assert_eq!(shape(&accepting(client_go)), Ok(Shape::Object));
        let metadata = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
        assert_eq!(
            shape(&accepting(metadata)),
            Ok(Shape::Metadata(MetaVersion::V1))
        );
        assert_eq!(shape(&accepting("*/*")), Ok(Shape::Object));
        assert_eq!(shape(&HeaderMap::new()), Ok(Shape::Object));
    }

    #[test]
    fn protobuf_is_read_but_not_written() {
        let only = accepting("application/vnd.kubernetes.protobuf");
        assert_eq!(shape(&only).map_err(|e| e.code.as_u16()), Err(406));
        assert!(require_json(&only).is_err());
        let body = |value: &str| {
            encoding(&HeaderMap::from_iter([(
                header::CONTENT_TYPE,
                value.parse().expect("a header"),
            )]))
        };
        assert_eq!(
            body("application/vnd.kubernetes.protobuf"),
            Ok(Encoding::Protobuf)
        );
        assert_eq!(
            body("application/protobuf").map_err(|e| e.code.as_u16()),
            Err(415)
        );
    }
}
