//! The API called from within the process: a `kube::Client` whose transport is the router itself.

use std::convert::Infallible;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, Request, header};
use tower::{Service, ServiceExt, service_fn};

use super::error::ApiError;
use crate::auth::User;
use crate::lead::Term;

type InProcess = Request<kube::client::Body>;

/// A client that acts as `user`. Its requests pass the same pipeline as those from the network, authorizer included.
pub fn local_client(router: Router, user: User) -> kube::Client {
    kube::Client::new(acting_as(router, user), "default")
}

/// The same for a leader: when its term is over, every request is refused.
pub fn leaders_client(router: Router, user: User, term: Term) -> kube::Client {
    let service = acting_as(router, user);
    let service = service_fn(move |request: InProcess| {
        let (service, term) = (service.clone(), term.clone());
        async move {
            if !term.lasts(Instant::now()) {
                let why = "this control plane does not lead any more";
                return Ok(ApiError::unavailable(why).into_response());
            }
            service.oneshot(request).await
        }
    });
    kube::Client::new(service, "default")
}

fn acting_as(
    router: Router,
    user: User,
) -> impl Service<InProcess, Response = Response, Error = Infallible, Future: Send>
+ Clone
+ Send
+ 'static {
    // What the owners of fields are called after, as that of any other program.
    let program = user.name.strip_prefix("system:").unwrap_or(&user.name);
    let program = HeaderValue::from_str(program).ok();
    router.map_request(move |request: InProcess| {
        let mut request = request.map(Body::new);
        if let Some(program) = &program {
            let headers = request.headers_mut();
            headers.insert(header::USER_AGENT, program.clone());
        }
        request.extensions_mut().insert(user.clone());
        request
    })
}
