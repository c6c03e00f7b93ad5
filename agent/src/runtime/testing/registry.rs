//! A registry on this machine's loopback, which gives the one image of an archive under every name and counts who is given it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path as Parts, State};
use axum::response::IntoResponse;
use axum::routing::get;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_util::task::AbortOnDropHandle;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// It listens until it is dropped.
pub(crate) struct Registry {
    /// Where, as names of images begin.
    pub(crate) address: String,
    gate: Arc<Gate>,
    _server: AbortOnDropHandle<()>,
}

/// Everyone who asks for a manifest waits here until he is let go.
struct Gate {
    blobs: BTreeMap<String, Vec<u8>>,
    manifest: String,
    turns: Semaphore,
    waiting: watch::Sender<usize>,
}

impl Registry {
    /// Gives the image of this archive.
    pub(crate) async fn start(archive: &Path) -> Registry {
        let mut blobs = blobs(archive);
        let index: serde_json::Value = serde_json::from_slice(&blobs["index.json"]).unwrap();
        let digest = |text: &str| text.replace('/', ":");
        blobs = blobs
            .into_iter()
            .filter_map(|(path, bytes)| Some((digest(path.strip_prefix("blobs/")?), bytes)))
            .collect();
        let gate = Arc::new(Gate {
            blobs,
            manifest: index["manifests"][0]["digest"].as_str().unwrap().to_owned(),
            turns: Semaphore::new(0),
            waiting: watch::Sender::default(),
        });
        let router = Router::new()
            .route("/v2/{name}/manifests/{of}", get(manifest))
            .route("/v2/{name}/blobs/{of}", get(blob))
            .with_state(gate.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Registry {
            address,
            gate,
            _server: AbortOnDropHandle::new(server),
        }
    }

    /// How many ask for a manifest by its tag and are not let go yet: the first thing that a pull asks for.
    pub(crate) fn waiting(&self) -> watch::Receiver<usize> {
        self.gate.waiting.subscribe()
    }

    /// Lets so many go, of those who wait or come later.
    pub(crate) fn let_go(&self, count: usize) {
        self.gate.turns.add_permits(count);
    }
}

/// The files of an archive, by their paths.
fn blobs(archive: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(File::open(archive).unwrap());
    let read = |entry: std::io::Result<tar::Entry<'_, File>>| {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        (path, bytes)
    };
    archive.entries().unwrap().map(read).collect()
}

async fn manifest(
    State(gate): State<Arc<Gate>>,
    Parts((_, of)): Parts<(String, String)>,
) -> impl IntoResponse {
    if !of.contains(':') {
        gate.waiting.send_modify(|waiting| *waiting += 1);
        // Nobody closes it.
        gate.turns.acquire().await.unwrap().forget();
        gate.waiting.send_modify(|waiting| *waiting -= 1);
    }
    let bytes = gate.blobs[&gate.manifest].clone();
    let digest = gate.manifest.clone();
    let headers = [
        (CONTENT_TYPE.as_str(), MANIFEST.to_owned()),
        ("docker-content-digest", digest),
    ];
    (headers, bytes)
}

async fn blob(
    State(gate): State<Arc<Gate>>,
    Parts((_, of)): Parts<(String, String)>,
) -> impl IntoResponse {
    gate.blobs.get(&of).cloned().ok_or(StatusCode::NOT_FOUND)
}
