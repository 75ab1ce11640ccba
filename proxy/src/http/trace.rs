//! Trace context and request id: passed on as they come, begun where there is none.

use std::fmt::Write;

use http::{HeaderMap, HeaderName, HeaderValue};

/// Names one request in every log it passes.
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// W3C Trace Context §3.2.
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Begins what the request does not carry. A begun trace is not sampled (W3C Trace Context §3.2.2.5, flags 00): who
/// samples decides.
pub fn begin(headers: &mut HeaderMap, rng: &mut fastrand::Rng) {
    if !headers.contains_key(X_REQUEST_ID) {
        // RFC 9562 §5.4, version 4.
        let id = rng.u128(..) & !(0xf << 76 | 0x3 << 62) | 0x4 << 76 | 0x2 << 62;
        let text = format!(
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            id >> 96,
            id >> 80 & 0xffff,
            id >> 64 & 0xffff,
            id >> 48 & 0xffff,
            id & 0xffff_ffff_ffff
        );
        insert(headers, X_REQUEST_ID, &text);
    }
    if !headers.contains_key(TRACEPARENT) {
        let mut text = String::with_capacity(55);
        // Writing to a String cannot fail; all-zero ids are invalid and never drawn.
        let _ = write!(text, "00-{:032x}-{:016x}-00", rng.u128(1..), rng.u64(1..));
        insert(headers, TRACEPARENT, &text);
    }
}

fn insert(headers: &mut HeaderMap, name: HeaderName, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_stays_and_what_is_missing_is_begun() {
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT, HeaderValue::from_static("00-given"));
        begin(&mut headers, &mut fastrand::Rng::with_seed(1));
        assert_eq!(headers[TRACEPARENT], "00-given");
        let id = headers[X_REQUEST_ID].to_str().unwrap();
        assert_eq!((id.len(), &id[14..15]), (36, "4"));
        let mut headers = HeaderMap::new();
        begin(&mut headers, &mut fastrand::Rng::with_seed(1));
        let parent = headers[TRACEPARENT].to_str().unwrap();
        assert_eq!((parent.len(), &parent[..3], &parent[52..]), (55, "00-", "-00"));
    }
}
