//! The sample backend: answers JSON that says which pod on which node it is.

use frontend_backend::{Identity, Reply, serve};

fn main() -> std::io::Result<()> {
    let identity = Identity::from_env();
    serve(8080, move |request| match request.url() {
        "/" => Reply::json(&identity),
        "/healthz" => Reply::text(200, "ok\n"),
        other => Reply::text(404, format!("there is nothing at {other}\n")),
    })
}
