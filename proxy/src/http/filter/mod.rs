//! Filters of a route rule, as an enum in the order they are configured: no boxed futures, no dynamic dispatch.

mod changes;
mod redirect;
mod rewrite;

use http::Response;
use http::request::Parts;
use http::response;

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

/// Applies `filters` to the head of a response.
pub fn on_response(filters: &[Filter], response: &mut response::Parts) {
    for filter in filters {
        match filter {
            Filter::ResponseHeaders(changes) => changes::apply(changes, &mut response.headers),
            Filter::RequestHeaders(_) | Filter::Rewrite(_) | Filter::Redirect(_) => {}
        }
    }
}
