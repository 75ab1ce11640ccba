//! FaultInjections that rules name among their filters.

use crate::api::fault_injection::{self as api, FaultInjectionSpec};
use crate::api::required_header::RequiredHeader;
use crate::model::route::{Abort, AbortStatus, Delay, Fault, HeaderValue};

/// What goes wrong, of a spec that can be meant.
pub(super) fn fault(spec: &FaultInjectionSpec) -> Fault {
    Fault {
        delay: spec.delay.as_ref().map(|delay| Delay {
            length: delay.duration.get(),
            per_million: api::per_million(delay.percent, delay.fraction),
        }),
        abort: spec.abort.as_ref().and_then(abort),
        headers: spec.headers.iter().map(required_header).collect(),
    }
}

fn abort(given: &api::Abort) -> Option<Abort> {
    let http = given.http_status.map(AbortStatus::Http);
    let status = http.or(given.grpc_status.map(AbortStatus::Grpc))?;
    Some(Abort { status, per_million: api::per_million(given.percent, given.fraction) })
}

/// A header that a request must have, by its name in lower case.
pub(super) fn required_header(given: &RequiredHeader) -> HeaderValue {
    HeaderValue { name: given.name.to_ascii_lowercase(), value: given.value.clone() }
}
