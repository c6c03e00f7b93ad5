//! The admission chain: what changes or refuses a request after it was authorized and before it is stored.
