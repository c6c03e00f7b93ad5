//! What the two sample programs share: who they are, what they say to each other, and how they serve and stop.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGINT, SIGTERM};
use tiny_http::{Header, Request, Response, Server};

/// How long a program keeps answering after SIGTERM: until every node has heard that it goes, also where disks are slow.
const DRAIN: Duration = Duration::from_secs(3);

/// Requests are answered by this many threads.
const THREADS: usize = 4;

/// Where a program runs, as the downward API told it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Identity {
    pub pod: String,
    pub node: String,
}

impl Identity {
    /// Reads `POD_NAME` and `NODE_NAME`; what is not set is `unknown`.
    pub fn from_env() -> Identity {
        let var = |name| std::env::var(name).unwrap_or_else(|_| "unknown".to_owned());
        Identity {
            pod: var("POD_NAME"),
            node: var("NODE_NAME"),
        }
    }
}

/// What the frontend's `/calls` answers: who asked, and how often which backend answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calls {
    pub frontend: Identity,
    pub answers: Vec<Answers>,
    /// How long each answered call took, in microseconds.
    pub times_us: Vec<u64>,
    /// Requests that got no answer.
    pub failures: u64,
    /// Why the first of them failed.
    pub first_failure: Option<String>,
}

/// How often one backend answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answers {
    pub backend: Identity,
    pub count: u64,
}

/// Serves `respond` on every address of `port` until SIGTERM or SIGINT, then drains and returns.
pub fn serve<F>(port: u16, respond: F) -> io::Result<()>
where
    F: Fn(&Request) -> Reply + Send + Sync + 'static,
{
    // On a machine with IPv6 that is every address of IPv4, too.
    let server = Server::http(("::", port)).or_else(|_| Server::http(("0.0.0.0", port)));
    let server = server.map_err(io::Error::other)?;
    let server = Arc::new(server);
    let respond = Arc::new(respond);
    let workers: Vec<_> = (0..THREADS)
        .map(|_| {
            let (server, respond) = (server.clone(), respond.clone());
            std::thread::spawn(move || {
                while let Ok(request) = server.recv() {
                    let reply = respond(&request);
                    // The client may be gone; there is nobody to tell.
                    let _ = request.respond(reply.into_response());
                }
            })
        })
        .collect();

    // As process 1 of a container, the program gets only the signals that it asks for.
    signal_hook::iterator::Signals::new([SIGTERM, SIGINT])?
        .forever()
        .next();
    std::thread::sleep(DRAIN);
    for _ in &workers {
        server.unblock();
    }
    for worker in workers {
        worker
            .join()
            .map_err(|_| io::Error::other("a worker thread panicked"))?;
    }
    Ok(())
}

/// One answer.
pub struct Reply {
    status: u16,
    content_type: &'static str,
    body: String,
}

impl Reply {
    /// An HTML page.
    pub fn html(body: String) -> Reply {
        Reply {
            status: 200,
            content_type: "text/html; charset=utf-8",
            body,
        }
    }

    /// A value as JSON.
    pub fn json(value: &impl Serialize) -> Reply {
        match serde_json::to_string(value) {
            Ok(body) => Reply {
                status: 200,
                content_type: "application/json",
                body,
            },
            Err(error) => Reply::text(500, error.to_string()),
        }
    }

    /// Plain text with a status.
    pub fn text(status: u16, body: impl Into<String>) -> Reply {
        Reply {
            status,
            content_type: "text/plain; charset=utf-8",
            body: body.into(),
        }
    }

    fn into_response(self) -> Response<io::Cursor<Vec<u8>>> {
        let response = Response::from_string(self.body).with_status_code(self.status);
        match Header::from_bytes("Content-Type", self.content_type) {
            Ok(header) => response.with_header(header),
            Err(()) => response,
        }
    }
}
