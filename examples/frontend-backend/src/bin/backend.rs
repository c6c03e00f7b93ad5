//! The sample backend: answers JSON that says which pod on which node it is; for `/work?rounds=N` after so much arithmetic.

use std::hint::black_box;

use frontend_backend::{Identity, Reply, serve};

fn main() -> std::io::Result<()> {
    let identity = Identity::from_env();
    serve(8080, move |request| {
        let (path, query) = request.url().split_once('?').unwrap_or((request.url(), ""));
        match path {
            "/" => Reply::json(&identity),
            "/work" => match query.strip_prefix("rounds=").map(str::parse) {
                Some(Ok(rounds)) => {
                    work(rounds);
                    Reply::json(&identity)
                }
                _ => Reply::text(400, "say how much: /work?rounds=1000000\n"),
            },
            "/healthz" => Reply::text(200, "ok\n"),
            other => Reply::text(404, format!("there is nothing at {other}\n")),
        }
    })
}

/// Keeps a CPU busy, about a nanosecond a round.
fn work(rounds: u64) {
    let mut x: u64 = 1;
    for round in 0..rounds {
        x = black_box(x.rotate_left(5) ^ round);
    }
}
