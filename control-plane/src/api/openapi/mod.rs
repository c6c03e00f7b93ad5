//! OpenAPI documents of what is served: version 3, one for each group, and version 2, in one, as JSON and as protobuf.
//!
//! Documents are large and rarely asked for, because clients keep them by hash; so they are made when asked for and kept
//! for a minute. Only their hashes stay.

mod definitions;
mod documents;
mod paths;
mod protobuf;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    sync::OnceLock,
};

use bytes::Bytes;
use prost::Message;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::api::reviews::{self, Review};
use crate::resources::{Kind, form::Form, kinds};
use definitions::Dialect;
pub use documents::Documents;

/// The content type of [`v2_protobuf`].
const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// What older clients ask for; as a content type they could not read it.
const V2_PROTOBUF_ASKED: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// A document as it goes on the wire.
#[derive(Clone, Debug)]
pub struct Document {
    pub body: Bytes,
    pub content_type: &'static str,
    /// Changes whenever the body does; without the quotes of the header.
    pub etag: String,
}

impl Document {
    fn new(body: Vec<u8>, content_type: &'static str) -> Self {
        Self {
            etag: hash(&body),
            body: body.into(),
            content_type,
        }
    }
}

fn hash(body: &[u8]) -> String {
    Sha256::digest(body)
        .iter()
        .fold(String::new(), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02X}");
            text
        })
}

/// What a document describes.
struct Served {
    kinds: Vec<&'static Kind>,
    reviews: Vec<&'static Review>,
}

impl Served {
    fn all() -> Self {
        Self {
            kinds: kinds().iter().collect(),
            reviews: reviews::all().iter().collect(),
        }
    }

    fn at(place_wanted: &str) -> Self {
        let mut served = Self::all();
        served
            .kinds
            .retain(|kind| place(kind.group, kind.version) == place_wanted);
        served
            .reviews
            .retain(|review| place(review.form.group, review.form.version) == place_wanted);
        served
    }

    /// What nobody stores and is sent or answered at the paths of these.
    fn forms(&self) -> Vec<Form> {
        let mut forms: Vec<Form> = self.reviews.iter().map(|review| review.form).collect();
        for kind in &self.kinds {
            let used = kind.subresources.iter().filter_map(|one| paths::form(*one));
            forms.extend(used);
        }
        forms
    }
}

/// The path below `/openapi/v3` of the document that describes a group's version: `api/v1`, `apis/apps/v1`.
fn place(group: &str, version: &str) -> String {
    match group {
        "" => format!("api/{version}"),
        group => format!("apis/{group}/{version}"),
    }
}

/// The document at a path below `/openapi`, in a form that the `Accept` header names.
pub fn answer(path: &[&str], accept: &str) -> Option<Document> {
    match path {
        ["v2"] if wants_protobuf(accept) => Some(v2_protobuf()),
        ["v2"] => Some(v2_json()),
        ["v3"] => Some(v3_index()),
        ["v3", place @ ..] => v3_document(&place.join("/")),
        _ => None,
    }
}

fn wants_protobuf(accept: &str) -> bool {
    [V2_PROTOBUF, V2_PROTOBUF_ASKED]
        .iter()
        .any(|form| accept.contains(form))
}

/// What `/openapi/v3` answers: where the documents are.
pub fn v3_index() -> Document {
    static HASHES: OnceLock<BTreeMap<String, String>> = OnceLock::new();
    let hashes = HASHES.get_or_init(|| {
        let Served { kinds, reviews } = Served::all();
        let kinds = kinds.iter().map(|kind| place(kind.group, kind.version));
        let reviews = reviews
            .iter()
            .map(|review| place(review.form.group, review.form.version));
        let places: BTreeSet<String> = kinds.chain(reviews).collect();
        places
            .into_iter()
            .filter_map(|place| v3_document(&place).map(|document| (place, document.etag)))
            .collect()
    });
    let paths: Map<String, Value> = hashes
        .iter()
        .map(|(place, hash)| {
            let url = format!("/openapi/v3/{place}?hash={hash}");
            (place.clone(), json!({ "serverRelativeURL": url }))
        })
        .collect();
    Document::new(
        json!({ "paths": paths }).to_string().into_bytes(),
        "application/json",
    )
}

/// What `/openapi/v3/<place>` answers, `place` being `api/v1` or `apis/<group>/<version>`.
pub fn v3_document(place_wanted: &str) -> Option<Document> {
    let served = Served::at(place_wanted);
    if served.kinds.is_empty() && served.reviews.is_empty() {
        return None;
    }
    let document = json!({
        "openapi": "3.0.0",
        "info": info(),
        "paths": paths::of(&served, Dialect::V3),
        "components": { "schemas": definitions::of(&served.kinds, &served.forms(), Dialect::V3) },
    });
    Some(Document::new(
        document.to_string().into_bytes(),
        "application/json",
    ))
}

/// What `/openapi/v2` answers to those who want JSON.
pub fn v2_json() -> Document {
    Document::new(v2().to_string().into_bytes(), "application/json")
}

/// What `/openapi/v2` answers to those who want protobuf.
pub fn v2_protobuf() -> Document {
    Document::new(protobuf::Document::of(&v2()).encode_to_vec(), V2_PROTOBUF)
}

fn v2() -> Value {
    let served = Served::all();
    json!({
        "swagger": "2.0",
        "info": info(),
        "paths": paths::of(&served, Dialect::V2),
        "definitions": definitions::of(&served.kinds, &served.forms(), Dialect::V2),
    })
}

fn info() -> Value {
    json!({ "title": "Kubernetes", "version": "v1.34.0" })
}

#[cfg(test)]
mod tests;
