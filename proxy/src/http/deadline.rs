//! When the answer to a request must be there, and how a gRPC server is told (gRPC `PROTOCOL-HTTP2.md`, Timeout). Pure.

use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue};

const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The earlier of what the route gives and what a gRPC client asks for. A timeout that cannot be read is the server's to refuse.
pub fn of(arrived: Instant, route: Option<Duration>, grpc: bool, headers: &HeaderMap) -> Option<Instant> {
    length(route, grpc, headers).and_then(|limit| arrived.checked_add(limit))
}

/// How long the answer may take; `None`: as long as it likes.
pub fn length(route: Option<Duration>, grpc: bool, headers: &HeaderMap) -> Option<Duration> {
    let asked = if grpc { headers.get(GRPC_TIMEOUT).and_then(parse) } else { None };
    earliest(route, asked)
}

/// Tells a gRPC server how long it has left.
pub fn tell(headers: &mut HeaderMap, left: Duration) {
    // Rounded up: 0 is no timeout that could be met.
    let millis = left.as_millis() + 1;
    let (amount, unit) = if millis < MAX_AMOUNT { (millis, 'm') } else { (u128::from(left.as_secs()), 'S') };
    if let Ok(value) = HeaderValue::try_from(format!("{}{unit}", amount.min(MAX_AMOUNT - 1))) {
        headers.insert(GRPC_TIMEOUT, value);
    }
}

/// The earlier of two, if there is any.
pub fn earliest<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn parse(value: &HeaderValue) -> Option<Duration> {
    let (unit, digits) = value.as_bytes().split_last()?;
    if digits.is_empty() || digits.len() > MAX_DIGITS || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let amount = digits.iter().fold(0, |amount, digit| amount * 10 + u64::from(digit - b'0'));
    match unit {
        b'H' => Some(Duration::from_secs(amount * 3600)),
        b'M' => Some(Duration::from_secs(amount * 60)),
        b'S' => Some(Duration::from_secs(amount)),
        b'm' => Some(Duration::from_millis(amount)),
        b'u' => Some(Duration::from_micros(amount)),
        b'n' => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

/// gRPC `PROTOCOL-HTTP2.md`: a TimeoutValue has at most eight digits.
const MAX_DIGITS: usize = 8;
/// The first amount that has more.
const MAX_AMOUNT: u128 = 100_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(route: Option<u64>, grpc: bool, asked: &str) -> Option<Duration> {
        let headers = HeaderMap::from_iter([(GRPC_TIMEOUT, HeaderValue::try_from(asked).unwrap())]);
        let now = Instant::now();
        of(now, route.map(Duration::from_millis), grpc, &headers).map(|deadline| deadline - now)
    }

    fn told(left: Duration) -> String {
        let mut headers = HeaderMap::new();
        tell(&mut headers, left);
        headers[GRPC_TIMEOUT].to_str().unwrap().to_owned()
    }

    #[test]
    fn the_earlier_of_the_route_s_and_the_client_s_holds() {
        let millis = |millis| Some(Duration::from_millis(millis));
        assert_eq!(limit(Some(500), true, "2S"), millis(500));
        assert_eq!(limit(Some(500), true, "20m"), millis(20));
        assert_eq!(limit(None, true, "1M"), millis(60_000));
        assert_eq!(limit(Some(500), false, "20m"), millis(500), "only gRPC means it so");
        assert_eq!(limit(None, true, "99999999H"), millis(99_999_999 * 3_600_000));
        for wrong in ["", "m", "1", "1x", "-1S", "123456789m", "1.5S"] {
            assert_eq!(limit(None, true, wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_left_is_told_in_eight_digits() {
        assert_eq!(told(Duration::ZERO), "1m");
        assert_eq!(told(Duration::from_millis(1_499)), "1500m");
        assert_eq!(told(Duration::from_secs(200_000)), "200000S");
        assert_eq!(told(Duration::MAX), "99999999S");
    }
}
