//! The Kubernetes HTTP API: routing, verbs, watch, patch, selectors, tables, discovery, OpenAPI.

pub mod patch;
