//! Kubernetes quantities as numbers the scheduler can add up.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::resources::quantity::{Quantity as Exact, QuantityError};

/// What counts as the most, in the unit asked for: no node has so much, and thousands of pods that ask for it still add up.
const MOST: i64 = 1 << 50;

/// The value in thousandths, rounded up; `None` when it is not a quantity.
pub(super) fn milli(quantity: &Quantity) -> Option<i64> {
    bounded(quantity, Exact::ceil_milli)
}

/// The value in whole units, rounded up; `None` when it is not a quantity.
pub(super) fn whole(quantity: &Quantity) -> Option<i64> {
    bounded(quantity, Exact::ceil)
}

fn bounded(quantity: &Quantity, count: fn(&Exact) -> i64) -> Option<i64> {
    match quantity.0.parse::<Exact>() {
        Ok(exact) => Some(count(&exact).clamp(-MOST, MOST)),
        Err(QuantityError::TooLarge) if quantity.0.starts_with('-') => Some(-MOST),
        Err(QuantityError::TooLarge) => Some(MOST),
        Err(QuantityError::Shape | QuantityError::Suffix) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_upstream_reads_them() {
        for (text, thousandths) in [
            ("1", 1000),
            ("100m", 100),
            ("0.5", 500),
            ("1.5k", 1_500_000),
            ("2Ki", 2_048_000),
            ("1e3", 1_000_000),
            ("12E-1", 1200),
            ("1n", 1),
            ("-1", -1000),
        ] {
            assert_eq!(milli(&Quantity(text.into())), Some(thousandths), "{text}");
        }
        assert_eq!(whole(&Quantity("1500m".into())), Some(2));
        for text in ["", "x", "1x", "1.2.3", "Ki", "1e"] {
            assert_eq!(milli(&Quantity(text.into())), None, "{text}");
        }
    }

    /// A pod that asks for more than can be counted must not pass for one that asks for nothing.
    #[test]
    fn too_much_is_the_most() {
        for text in ["7Ei", "8Ei", "9e18", "1e99", "99999999999999999999999"] {
            assert_eq!(milli(&Quantity(text.into())), Some(MOST), "{text}");
            assert_eq!(whole(&Quantity(text.into())), Some(MOST), "{text}");
        }
        assert_eq!(whole(&Quantity("-1e99".into())), Some(-MOST));
    }
}
