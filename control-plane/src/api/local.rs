//! The API called from within the process: a `kube::Client` whose transport is the router itself.

use axum::Router;
use axum::body::Body;
use http::Request;
use tower::ServiceExt;

use crate::auth::User;

/// A client that acts as `user`. Its requests pass the same pipeline as those from the network, authorizer included.
pub fn local_client(router: Router, user: User) -> kube::Client {
    let service = router.map_request(move |request: Request<kube::client::Body>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(user.clone());
        request
    });
    kube::Client::new(service, "default")
}
