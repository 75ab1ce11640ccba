//! Filters of a route rule, as an enum in the order they are configured: no boxed futures, no dynamic dispatch.

mod changes;
mod redirect;
mod rewrite;

use http::request::Parts;
use http::{HeaderMap, Response};

use super::body::Body;
use crate::tables::route::Filter;

/// What request filters decided.
pub enum Verdict {
    /// Send the request on.
    Continue,
    /// Answer with this; nothing goes upstream.
    Answer(Response<Body>),
}

/// Applies `filters` to a request. `port` is the one the client dialled, for redirects that keep it.
pub fn on_request(filters: &[Filter], request: &mut Parts, port: u16) -> Verdict {
    for filter in filters {
        match filter {
            Filter::RequestHeaders(changes) => changes::apply(changes, &mut request.headers),
            Filter::Rewrite(rewrite) => rewrite::apply(rewrite, request),
            Filter::Redirect(redirect) => return Verdict::Answer(redirect::answer(redirect, request, port)),
            Filter::ResponseHeaders(_) => {}
        }
    }
    Verdict::Continue
}

/// Applies `filters` to the headers of a response.
pub fn on_response(filters: &[Filter], response: &mut HeaderMap) {
    for filter in filters {
        match filter {
            Filter::ResponseHeaders(changes) => changes::apply(changes, response),
            Filter::RequestHeaders(_) | Filter::Rewrite(_) | Filter::Redirect(_) => {}
        }
    }
}
