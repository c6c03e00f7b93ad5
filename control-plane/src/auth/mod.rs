//! Who asks, and may they: the cluster CA, client certificates, tokens, the authorizer.
