//! Documents that were asked for lately. Making one takes a while, and clients that have none ask for all of them at once;
//! after that they are asked for rarely, so they are not kept for long.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;

use super::{Document, answer, wants_protobuf};

/// How long a document is kept after it was made.
const KEEP: Duration = Duration::from_secs(60);

/// By path, and whether it is protobuf.
type Key = (String, bool);

/// The documents at hand.
pub struct Documents {
    keep: Duration,
    made: Arc<Mutex<HashMap<Key, Document>>>,
}

impl Default for Documents {
    fn default() -> Self {
        Documents {
            keep: KEEP,
            made: Arc::default(),
        }
    }
}

impl Documents {
    /// As [`answer`]. One document is made at a time, whoever asks.
    pub async fn get(&self, path: &[&str], accept: &str) -> Option<Document> {
        let key = (path.join("/"), wants_protobuf(accept));
        let mut documents = self.made.lock().await;
        if let Some(document) = documents.get(&key) {
            return Some(document.clone());
        }
        let (place, accept) = (key.0.clone(), accept.to_owned());
        // Off the threads of the short tasks.
        let made = tokio::task::spawn_blocking(move || {
            answer(&place.split('/').collect::<Vec<_>>(), &accept)
        });
        let document = made.await.ok().flatten()?;
        documents.insert(key.clone(), document.clone());
        let (all, keep) = (Arc::downgrade(&self.made), self.keep);
        tokio::spawn(async move {
            tokio::time::sleep(keep).await;
            if let Some(all) = all.upgrade() {
                all.lock().await.remove(&key);
            }
        });
        Some(document)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_document_is_made_once_and_kept_for_a_while() {
        let documents = Documents {
            keep: Duration::from_secs(2),
            ..Documents::default()
        };
        let first = documents.get(&["v3"], "").await.expect("a document");
        let again = documents.get(&["v3"], "*/*").await.expect("a document");
        assert_eq!(first.body.as_ptr(), again.body.as_ptr(), "the same bytes");
        assert!(documents.get(&["v3", "no", "such"], "").await.is_none());
        assert_eq!(documents.made.lock().await.len(), 1);
        tokio::time::sleep(documents.keep * 2).await;
        assert!(documents.made.lock().await.is_empty());
    }
}
