//! Kubernetes quantities (`100m`, `64Mi`, `1e3`): whether a text is one, and which of two is more.

/// The value in thousand-millionths of the unit, which is as fine as Kubernetes goes. `None`: no quantity above 0, or
/// one beyond what is counted here (10²⁹).
pub(super) fn nanos(text: &str) -> Option<i128> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || fraction.len() > 9 || whole.len() > 18 {
        return None;
    }
    let scaled: i128 = format!("{whole}{fraction:0<9}").parse().ok()?;
    let value = match suffix {
        "n" => Some(scaled / 1_000_000_000),
        "u" => Some(scaled / 1_000_000),
        "m" => Some(scaled / 1_000),
        _ => scaled.checked_mul(multiplier(suffix)?),
    };
    value.filter(|value| *value > 0)
}

fn multiplier(suffix: &str) -> Option<i128> {
    const DECIMAL: [&str; 7] = ["", "k", "M", "G", "T", "P", "E"];
    const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let power = |base: i128, names: [&str; 7]| {
        let at = names.iter().position(|name| *name == suffix)?;
        base.checked_pow(u32::try_from(at).ok()?)
    };
    if let Some(exponent) = suffix.strip_prefix(['e', 'E']).and_then(|text| text.parse::<u32>().ok()) {
        return 10_i128.checked_pow(exponent);
    }
    power(1000, DECIMAL).or_else(|| power(1024, BINARY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_compared_whatever_their_suffix() {
        for (less, more) in [("100m", "1"), ("64Mi", "68M"), ("1", "1.5"), ("999M", "1e9"), ("1k", "1Ki"), ("1u", "1m")]
        {
            assert!(nanos(less).unwrap() < nanos(more).unwrap(), "{less} {more}");
        }
        assert_eq!(nanos("0.1"), nanos("100m"));
        assert_eq!(nanos(".5"), nanos("500m"));
    }

    #[test]
    fn what_is_no_quantity_is_told() {
        for text in ["", "m", "1.2.3", "1 Mi", "-1", "0", "ten", "1mi", "1e", "Mi"] {
            assert_eq!(nanos(text), None, "{text}");
        }
    }
}
