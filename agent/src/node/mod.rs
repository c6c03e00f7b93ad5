//! The Node object: registration, status, Lease, joining the cluster.
