//! The API called from within the process: a `kube::Client` whose transport is the router itself.

use axum::Router;
use axum::body::Body;
use http::{HeaderValue, Request, header};
use tower::ServiceExt;

use crate::auth::User;

/// A client that acts as `user`. Its requests pass the same pipeline as those from the network, authorizer included.
pub fn local_client(router: Router, user: User) -> kube::Client {
    // What the owners of fields are called after, as that of any other program.
    let program = user.name.strip_prefix("system:").unwrap_or(&user.name);
    let program = HeaderValue::from_str(program).ok();
    let service = router.map_request(move |request: Request<kube::client::Body>| {
        let mut request = request.map(Body::new);
        if let Some(program) = &program {
            let headers = request.headers_mut();
            headers.insert(header::USER_AGENT, program.clone());
        }
        request.extensions_mut().insert(user.clone());
        request
    });
    kube::Client::new(service, "default")
}
