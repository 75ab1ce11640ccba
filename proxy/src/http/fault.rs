//! What goes wrong on purpose: delays and aborts of FaultInjection, before anything else is done with a request.

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};

use super::body::Body;
use super::error::{self, Cause};
use super::route;
use crate::metrics::Faults;
use crate::tables::route::{AbortStatus, Fault};

/// Waits if the request is to be delayed, and gives the answer if it is to be aborted. Each share is drawn for itself.
pub async fn inject(
    fault: &Fault,
    headers: &HeaderMap,
    grpc: bool,
    mut draw: impl FnMut(u32) -> u32,
    count: &Faults,
) -> Option<Response<Body>> {
    if !is_meant(fault, headers) {
        return None;
    }
    let mut hit = |per_million| draw(MILLION) < per_million;
    if let Some(delay) = fault.delay.as_ref().filter(|delay| hit(delay.per_million)) {
        count.delayed();
        tokio::time::sleep(delay.length).await;
    }
    let abort = fault.abort.as_ref().filter(|abort| hit(abort.per_million))?;
    count.aborted();
    Some(answer(abort.status, grpc))
}

/// Whether requests with these headers are hit at all.
pub fn is_meant(fault: &Fault, headers: &HeaderMap) -> bool {
    fault.headers.iter().all(|(name, value)| route::header_matches(headers.get_all(name), value))
}

fn answer(status: AbortStatus, grpc: bool) -> Response<Body> {
    let mut response = if grpc {
        let mut response = Response::new(Body::empty());
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from(grpc_status(status)));
        headers.insert("grpc-message", HeaderValue::from_static(Cause::FaultInjected.advice()));
        response
    } else {
        let mut response = Response::new(Body::full(error::text(Cause::FaultInjected).into()));
        *response.status_mut() = http_status(status);
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        response
    };
    error::name_cause(response.headers_mut(), Cause::FaultInjected);
    response
}

/// gRPC `http-grpc-status-mapping.md`.
fn grpc_status(status: AbortStatus) -> u16 {
    match status {
        AbortStatus::Grpc(status) => status,
        AbortStatus::Http(status) => match status.as_u16() {
            400 => 13,
            401 => 16,
            403 => 7,
            404 => 12,
            429 | 502 | 503 | 504 => 14,
            _ => 2,
        },
    }
}

/// `google.rpc.Code`, "HTTP Mapping".
pub fn http_status(status: AbortStatus) -> StatusCode {
    let code = match status {
        AbortStatus::Http(status) => return status,
        AbortStatus::Grpc(0) => 200,
        AbortStatus::Grpc(1) => 499,
        AbortStatus::Grpc(3 | 9 | 11) => 400,
        AbortStatus::Grpc(4) => 504,
        AbortStatus::Grpc(5) => 404,
        AbortStatus::Grpc(6 | 10) => 409,
        AbortStatus::Grpc(7) => 403,
        AbortStatus::Grpc(8) => 429,
        AbortStatus::Grpc(12) => 501,
        AbortStatus::Grpc(14) => 503,
        AbortStatus::Grpc(16) => 401,
        AbortStatus::Grpc(_) => 500,
    };
    StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// Shares are counted in millionths.
const MILLION: u32 = 1_000_000;
