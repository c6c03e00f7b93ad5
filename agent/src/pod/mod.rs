//! The kubelet half: what is to be done to a pod (pure) and the workers that do it.

mod table;

pub use table::{ContainerSummary, PodSummary, PodTable};
