//! Amounts that are a number or a share of one.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{FieldError, Path, not_negative};

/// A number that is not negative, or a percentage, which is at most `most`.
pub fn int_or_percent(path: &Path, amount: &IntOrString, most: Option<i64>) -> Option<FieldError> {
    match (amount, percent(amount)) {
        (IntOrString::Int(number), _) => not_negative(path, (*number).into()),
        (IntOrString::String(text), Some(percent)) => most
            .is_some_and(|most| percent > most)
            .then(|| path.invalid(text.as_str(), "must not be greater than 100%")),
        (IntOrString::String(text), None) => Some(path.invalid(
            text.as_str(),
            "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')",
        )),
    }
}

pub fn is_zero(amount: &IntOrString) -> bool {
    matches!(amount, IntOrString::Int(0)) || percent(amount) == Some(0)
}

/// The number of a percentage.
fn percent(amount: &IntOrString) -> Option<i64> {
    match amount {
        IntOrString::Int(_) => None,
        IntOrString::String(text) => text
            .strip_suffix('%')
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?
            .parse()
            .ok(),
    }
}
