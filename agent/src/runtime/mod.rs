//! Containers and images through containerd, behind one small trait.
