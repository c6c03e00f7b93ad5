//! A container's own streams, followed and written by a client.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::copy::to_process;
use super::exec::follow_sizes;
use super::remote::Remote;
use super::status::Ending;
use crate::runtime::{Attached, Output, OutputStream, Process, Runtime};

/// Until the container has ended or the client has gone.
pub(super) async fn run(
    runtime: Arc<dyn Runtime>,
    container: String,
    attached: Attached,
    mut remote: Remote,
) {
    let process = Process {
        container,
        exec: String::new(),
    };
    let Attached {
        mut output,
        stdin,
        stdio,
    } = attached;
    let (incoming, resize) = (remote.stdin.take(), remote.resize.take());
    let gone = remote.connection.gone.clone();
    let writes = incoming.is_some() && stdin.is_some();
    let close = async || {
        if writes
            && stdio.stdin_once
            && let Err(error) = runtime.close_stdin(&process).await
        {
            tracing::debug!(%error, "a container's stdin stays open");
        }
    };
    let is_closed = AtomicBool::new(false);
    let input = async {
        if let (Some(incoming), Some(pipe)) = (incoming, stdin) {
            to_process(incoming, pipe).await;
            close().await;
            is_closed.store(true, Ordering::Relaxed);
        }
        std::future::pending::<()>().await;
    };
    let ending = {
        let outputs = pass_on(&mut output, &remote);
        let resizing = follow_sizes(runtime.as_ref(), &process, resize);
        tokio::pin!(outputs, input, resizing);
        loop {
            // Each is polled on where it was; the end of the output, or of the client, ends the loop.
            tokio::select! {
                passed = &mut outputs => break match passed {
                    Ok(()) => Ending::Exit(0),
                    Err(error) => Ending::Failed(format!("the output cannot be followed: {error}")),
                },
                () = gone.cancelled() => break Ending::Exit(0),
                () = &mut input => {}
                () = &mut resizing => {}
            }
        }
    };
    // Its first client has gone, in whatever way.
    if !is_closed.load(Ordering::Relaxed) {
        close().await;
    }
    remote.finish(&ending).await;
}

async fn pass_on(output: &mut Output, remote: &Remote) -> io::Result<()> {
    while let Some((stream, text)) = output.next().await? {
        let channel = match stream {
            OutputStream::Out => &remote.stdout,
            OutputStream::Err => &remote.stderr,
        };
        if let Some(channel) = channel
            && channel.send(text).await.is_err()
        {
            break;
        }
    }
    Ok(())
}
