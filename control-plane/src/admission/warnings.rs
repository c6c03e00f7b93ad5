//! What is remarked on a request that is not refused for it: texts for `Warning` headers, annotations for the audit log.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Collects the remarks on one request. An update that is tried again says everything once.
#[derive(Debug, Default)]
pub struct Warnings {
    texts: Mutex<Vec<String>>,
    audited: Mutex<BTreeMap<&'static str, String>>,
}

impl Warnings {
    pub fn add(&self, text: String) {
        let mut all = self.texts.lock().unwrap_or_else(PoisonError::into_inner);
        if !all.contains(&text) {
            all.push(text);
        }
    }

    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.texts.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// An annotation of the request's event in the audit log.
    pub fn audit(&self, key: &'static str, value: impl Into<String>) {
        let mut all = self.audited.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(key, value.into());
    }

    pub fn audited(&self) -> BTreeMap<&'static str, String> {
        self.audited
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
