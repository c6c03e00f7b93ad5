//! Kubernetes quantities as numbers the scheduler can add up.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// The value in thousandths, rounded up; `None` when it is not a quantity.
pub(super) fn milli(quantity: &Quantity) -> Option<i64> {
    let thousandths = scaled(&quantity.0, 1000)?;
    i64::try_from(thousandths).ok()
}

/// The value in whole units, rounded up; `None` when it is not a quantity.
pub(super) fn whole(quantity: &Quantity) -> Option<i64> {
    i64::try_from(scaled(&quantity.0, 1)?).ok()
}

/// Exact in integers: `number * 10^-decimals * suffix * scale`, rounded up.
fn scaled(text: &str, scale: i128) -> Option<i128> {
    let split = text
        .find(|c: char| !c.is_ascii_digit() && !matches!(c, '.' | '+' | '-'))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let (numerator, denominator) = factor(suffix)?;
    let (integer, fraction) = number.split_once('.').unwrap_or((number, ""));
    if integer.is_empty() && fraction.is_empty() {
        return None;
    }
    let decimals = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let digits: i128 = format!("{integer}{fraction}").parse().ok()?;
    let dividend = digits.checked_mul(numerator)?.checked_mul(scale)?;
    let divisor = denominator.checked_mul(decimals)?;
    Some(dividend.div_euclid(divisor) + i128::from(dividend.rem_euclid(divisor) != 0))
}

fn factor(suffix: &str) -> Option<(i128, i128)> {
    let binary = |power: u32| Some((1024_i128.pow(power), 1));
    let decimal = |power: u32| Some((1000_i128.pow(power), 1));
    match suffix {
        "n" => Some((1, 1_000_000_000)),
        "u" => Some((1, 1_000_000)),
        "m" => Some((1, 1000)),
        "" => Some((1, 1)),
        "k" => decimal(1),
        "M" => decimal(2),
        "G" => decimal(3),
        "T" => decimal(4),
        "P" => decimal(5),
        "E" => decimal(6),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10_i128.checked_pow(exponent.unsigned_abs())?;
            Some(if exponent < 0 { (1, power) } else { (power, 1) })
        }
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
        assert_eq!(whole(&Quantity("8Ei".into())), None, "more than 63 bits");
        for text in ["", "x", "1x", "1.2.3", "Ki", "1e"] {
            assert_eq!(milli(&Quantity(text.into())), None, "{text}");
        }
    }
}
