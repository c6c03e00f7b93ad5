//! Quantities: `100m`, `128Mi`, `2e3`. Parsed exactly, written back in the canonical form that the API shows.

use std::{cmp::Ordering, collections::BTreeMap, fmt, str::FromStr};

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Written;

use super::validate::{FieldError, Path};

/// Amounts of resources, as they stand in an object.
pub type Amounts = BTreeMap<String, Written>;

/// How a quantity was written, which its canonical form keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// `12e6`
    DecimalExponent,
    /// `12Mi`
    BinarySi,
    /// `12M`, `100m`, `12`
    DecimalSi,
}

/// An amount in billionths, the finest grain that the API keeps; finer ones are rounded away from zero.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// What is wrong with a quantity, in upstream's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error(
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
    )]
    Shape,
    #[error("unable to parse quantity's suffix")]
    Suffix,
    #[error("quantity is too large to be represented")]
    TooLarge,
}

const NANO: i128 = 1_000_000_000;
/// More than 64 bits can count is refused; nothing that a cluster can have comes near.
const MAX: i128 = i64::MAX as i128 * NANO;

const DECIMAL: [(&str, i32); 10] = [
    ("n", -9),
    ("u", -6),
    ("m", -3),
    ("", 0),
    ("k", 3),
    ("M", 6),
    ("G", 9),
    ("T", 12),
    ("P", 15),
    ("E", 18),
];
const BINARY: [(&str, u32); 6] = [
    ("Ki", 10),
    ("Mi", 20),
    ("Gi", 30),
    ("Ti", 40),
    ("Pi", 50),
    ("Ei", 60),
];

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let (negative, rest) = match text.strip_prefix(['+', '-']) {
            Some(rest) => (text.starts_with('-'), rest),
            None => (false, text),
        };
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(QuantityError::Shape);
        }
        let (format, exponent, shift) = scale(suffix)?;
        let digits = format!("{whole}{fraction}");
        let digits = digits.trim_start_matches('0');
        let mantissa: i128 = match digits {
            "" => 0,
            digits => digits.parse().map_err(|_| QuantityError::TooLarge)?,
        };
        let fraction = i32::try_from(fraction.len()).map_err(|_| QuantityError::TooLarge)?;
        let shifted = mantissa
            .checked_mul(1 << shift)
            .ok_or(QuantityError::TooLarge)?;
        let nanos = times_ten_to(shifted, exponent - fraction + 9).filter(|&nanos| nanos <= MAX);
        let nanos = nanos.ok_or(QuantityError::TooLarge)?;
        Ok(Self {
            nanos: if negative { -nanos } else { nanos },
            format,
        })
    }
}

/// Format, power of ten and power of two of a suffix.
fn scale(suffix: &str) -> Result<(Format, i32, u32), QuantityError> {
    if let Some(&(_, power)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
        return Ok((Format::DecimalSi, power, 0));
    }
    if let Some(&(_, power)) = BINARY.iter().find(|(name, _)| *name == suffix) {
        return Ok((Format::BinarySi, 0, power));
    }
    let exponent = suffix
        .strip_prefix(['e', 'E'])
        .ok_or(QuantityError::Suffix)?;
    let exponent: i32 = exponent.parse().map_err(|_| QuantityError::Suffix)?;
    if (-100..=100).contains(&exponent) {
        Ok((Format::DecimalExponent, exponent, 0))
    } else {
        Err(QuantityError::TooLarge)
    }
}

/// `value · 10^power`, rounded up.
fn times_ten_to(value: i128, power: i32) -> Option<i128> {
    if value == 0 {
        return Some(0);
    }
    let factor = 10_i128.checked_pow(power.unsigned_abs());
    match (power >= 0, factor) {
        (true, factor) => value.checked_mul(factor?),
        (false, Some(factor)) => Some(value / factor + i128::from(value % factor != 0)),
        (false, None) => Some(1),
    }
}

impl Quantity {
    /// The amount in whole units, rounded up.
    pub fn ceil(&self) -> i64 {
        self.ceil_in(NANO)
    }

    /// The amount in thousandths, rounded up: CPU shares.
    pub fn ceil_milli(&self) -> i64 {
        self.ceil_in(NANO / 1000)
    }

    fn ceil_in(&self, unit: i128) -> i64 {
        let whole = self.nanos.div_euclid(unit) + i128::from(self.nanos.rem_euclid(unit) != 0);
        i64::try_from(whole).unwrap_or(if whole < 0 { i64::MIN } else { i64::MAX })
    }

    /// So many whole units.
    pub fn count(units: i64) -> Self {
        Self {
            nanos: i128::from(units) * NANO,
            format: Format::DecimalSi,
        }
    }

    /// The sum, written as `self` is unless that is zero. More than can be counted stays the most.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let format = if self.is_zero() {
            other.format
        } else {
            self.format
        };
        Self {
            nanos: (self.nanos + other.nanos).clamp(-MAX, MAX),
            format,
        }
    }

    /// The difference, written as `self` is unless that is zero.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        let nanos = -other.nanos;
        self.plus(Self { nanos, ..other })
    }

    /// How many times `other` this is; `other` is not zero.
    #[expect(clippy::cast_precision_loss, reason = "a ratio is for people to read")]
    pub fn ratio(self, other: Self) -> f64 {
        self.nanos as f64 / other.nanos as f64
    }

    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// Whether the amount is a whole number of units.
    pub fn is_whole(&self) -> bool {
        self.nanos % NANO == 0
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl fmt::Display for Quantity {
    /// The canonical form: no fraction, the largest suffix that allows that.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        // Below 1024, and for what is not whole, binary amounts are shown as decimal ones.
        if self.format == Format::BinarySi && self.is_whole() && self.nanos.abs() >= 1024 * NANO {
            let units = self.nanos / NANO;
            let largest = BINARY
                .iter()
                .rev()
                .find(|(_, power)| units % (1 << power) == 0);
            return match largest {
                Some((suffix, power)) => write!(f, "{}{suffix}", units >> power),
                None => write!(f, "{units}"),
            };
        }
        for (suffix, power) in DECIMAL.iter().rev() {
            let unit = 10_i128.pow((power + 9).unsigned_abs());
            if self.nanos % unit == 0 {
                let count = self.nanos / unit;
                return match (self.format, power) {
                    (Format::DecimalExponent, 0) => write!(f, "{count}"),
                    (Format::DecimalExponent, power) => write!(f, "{count}e{power}"),
                    _ => write!(f, "{count}{suffix}"),
                };
            }
        }
        Ok(())
    }
}

/// Amounts of resources, to reckon with.
pub type Sums = BTreeMap<String, Quantity>;

/// The amounts that can be read.
pub fn sums(amounts: Option<&Amounts>) -> Sums {
    let read = |(name, amount): (&String, &Written)| Some((name.clone(), amount.0.parse().ok()?));
    amounts.into_iter().flatten().filter_map(read).collect()
}

/// The same, as they stand in an object.
pub fn written(sums: &Sums) -> Amounts {
    let write = |(name, sum): (&String, &Quantity)| (name.clone(), Written(sum.to_string()));
    sums.iter().map(write).collect()
}

/// Adds amounts, each to its namesake.
pub fn add(total: &mut Sums, more: &Sums) {
    for (name, amount) in more {
        let sum = total.get(name).map_or(*amount, |sum| sum.plus(*amount));
        total.insert(name.clone(), sum);
    }
}

/// Raises amounts to their namesakes where those are larger.
pub fn raise(total: &mut Sums, other: &Sums) {
    for (name, amount) in other {
        if total.get(name).is_none_or(|there| there < amount) {
            total.insert(name.clone(), *amount);
        }
    }
}

/// Rewrites every amount that can be read in its canonical form.
pub fn canonicalize(amounts: Option<&mut Amounts>) {
    let amounts = amounts.into_iter().flat_map(BTreeMap::values_mut);
    amounts.for_each(canonicalize_one);
}

/// The same of one amount.
pub fn canonicalize_one(amount: &mut Written) {
    if let Ok(quantity) = amount.0.parse::<Quantity>() {
        amount.0 = quantity.to_string();
    }
}

/// What is wrong with amounts: not quantities, or negative.
pub fn errors(path: &Path, amounts: Option<&Amounts>) -> Vec<FieldError> {
    let wrong = |(name, amount): (&String, &Written)| {
        let path = path.key(name);
        match amount.0.parse::<Quantity>() {
            Err(error) => Some(path.invalid(amount.0.as_str(), error.to_string())),
            Ok(quantity) if quantity.is_negative() => {
                Some(path.invalid(amount.0.as_str(), "must be greater than or equal to 0"))
            }
            Ok(_) => None,
        }
    };
    amounts.into_iter().flatten().filter_map(wrong).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn canonical(text: &str) -> String {
        text.parse::<Quantity>().unwrap().to_string()
    }

    #[test]
    fn quantities_are_written_in_canonical_form() {
        let cases = [
            ("0", "0"),
            ("0Mi", "0"),
            ("1", "1"),
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1.5", "1500m"),
            ("1500m", "1500m"),
            ("1000", "1k"),
            ("1024", "1024"),
            ("1024Ki", "1Mi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Mi", "512Ki"),
            ("0.5Ki", "512"),
            ("1025Ki", "1025Ki"),
            ("100e3", "100e3"),
            ("1e3", "1e3"),
            ("1000e0", "1e3"),
            ("-100m", "-100m"),
            ("+2", "2"),
            (".5", "500m"),
            ("1n", "1n"),
            ("0.1n", "1n"),
            ("100000000", "100M"),
        ];
        for (text, expected) in cases {
            assert_eq!(canonical(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for (text, error) in [
            ("", QuantityError::Shape),
            ("Mi", QuantityError::Shape),
            ("1.2.3", QuantityError::Shape),
            ("1 Mi", QuantityError::Suffix),
            ("1KB", QuantityError::Suffix),
            ("1ki", QuantityError::Suffix),
            ("1e", QuantityError::Suffix),
            ("12E", QuantityError::TooLarge),
        ] {
            assert_eq!(text.parse::<Quantity>(), Err(error), "{text}");
        }
    }

    #[test]
    fn amounts_round_up() {
        let quantity = |text: &str| text.parse::<Quantity>().unwrap();
        assert_eq!(quantity("100m").ceil(), 1);
        assert_eq!(quantity("250m").ceil_milli(), 250);
        assert_eq!(quantity("2").ceil_milli(), 2000);
        assert_eq!(quantity("128Mi").ceil(), 128 << 20);
        assert!(quantity("1Gi") > quantity("1G"));
    }

    #[test]
    fn a_sum_is_written_as_its_first_part() {
        let quantity = |text: &str| text.parse::<Quantity>().unwrap();
        let sum = |a: &str, b: &str| quantity(a).plus(quantity(b)).to_string();
        assert_eq!(sum("1Gi", "1024Mi"), "2Gi");
        assert_eq!(sum("0", "1Gi"), "1Gi");
        assert_eq!(sum("500m", "1"), "1500m");
        assert_eq!(quantity("1").minus(quantity("250m")).to_string(), "750m");
        assert_eq!(Quantity::count(3).to_string(), "3");
        assert!((quantity("3").ratio(quantity("1500m")) - 2.0).abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn what_is_added_can_be_taken_away(a in 0_u32.., b in 0_u32..) {
            let (a, b) = (Quantity::count(a.into()), Quantity::count(b.into()));
            prop_assert_eq!(a.plus(b), b.plus(a));
            prop_assert_eq!(a.plus(b).minus(b), a);
        }

        #[test]
        fn canonical_form_keeps_the_amount_and_is_a_fixed_point(
            whole in 0_u32.., fraction in 0_u16..1000, suffix in prop::sample::select(vec!["", "m", "k", "M", "Ki", "Mi", "e2", "e-2"]),
        ) {
            let text = format!("{whole}.{fraction}{suffix}");
            let quantity: Quantity = text.parse().unwrap();
            let written = quantity.to_string();
            let again: Quantity = written.parse().unwrap();
            prop_assert_eq!(quantity, again);
            prop_assert_eq!(written.clone(), again.to_string());
            prop_assert!(!written.contains('.'));
        }
    }
}
