//! A cluster of network namespaces, each node with its own containerd.
