//! Cluster DNS, answered on the node.

pub mod resolv_conf;
