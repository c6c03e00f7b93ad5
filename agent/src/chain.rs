//! An error as a person reads it.

use std::error::Error;

/// An error with its causes in one line, none said twice.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text += &format!(": {said}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] Middle);

    /// Says its cause itself.
    #[derive(Debug, thiserror::Error)]
    #[error("middle: {0}")]
    struct Middle(#[source] std::fmt::Error);

    #[test]
    fn each_cause_is_said_once() {
        let inner = std::fmt::Error;
        assert_eq!(
            chain(&Outer(Middle(inner))),
            format!("outer: middle: {inner}")
        );
    }
}
