//! What a client is told of the end of a command. Pure.

use bytes::Bytes;
use serde_json::json;

/// How a command, or what was attached to, ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// With this exit code.
    Exit(i32),
    /// It could not be run, or be followed to its end.
    Failed(String),
}

/// How the error stream is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Report {
    /// A `Status` always, from version 4 of the protocol on.
    Status,
    /// A sentence, and only on failure.
    Text,
}

/// What goes to the error stream.
pub(super) fn render(ending: &Ending, report: Report) -> Bytes {
    let text = match ending {
        Ending::Exit(0) => String::new(),
        Ending::Exit(code) => format!("command terminated with exit code {code}"),
        Ending::Failed(why) => why.clone(),
    };
    if report == Report::Text {
        return text.into();
    }
    let status = match ending {
        Ending::Exit(0) => json!({"metadata": {}, "status": "Success"}),
        Ending::Exit(code) => json!({
            "metadata": {}, "status": "Failure", "message": text, "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Ending::Failed(_) => json!({
            "metadata": {}, "status": "Failure", "message": text, "reason": "InternalError",
            "details": {"causes": [{"message": text}]}, "code": 500,
        }),
    };
    status.to_string().into()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn the_exit_code_is_a_cause() {
        let told = render(&Ending::Exit(3), Report::Status);
        let status: Value = serde_json::from_slice(&told).unwrap();
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(
            status["details"]["causes"],
            json!([{"reason": "ExitCode", "message": "3"}])
        );
        let told = render(&Ending::Exit(0), Report::Status);
        let status: Value = serde_json::from_slice(&told).unwrap();
        assert_eq!(status["status"], "Success");
    }

    #[test]
    fn older_clients_read_a_sentence_or_nothing() {
        assert!(render(&Ending::Exit(0), Report::Text).is_empty());
        let why = Ending::Failed("no such container".into());
        assert_eq!(render(&why, Report::Text), "no such container");
    }
}
