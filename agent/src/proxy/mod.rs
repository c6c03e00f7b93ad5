//! The service half: Services and EndpointSlices to load-balancer state to map writes. Pure.
