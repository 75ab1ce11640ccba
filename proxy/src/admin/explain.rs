//! The page `/explain`: why a request goes where it goes, as the data path sees it now. Nothing is sent; a destination that
//! nobody used yet is asked for, as the first request to it would.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use crate::explain::{self, Asked, Explained, Form, Invalid, Sight, Target, text};
use crate::resolve;
use crate::worker::Shared;

/// Why there is no answer.
enum Error {
    Invalid(Invalid),
    Unknown(Target),
}

/// `GET`: the question is a query, the answer text, or JSON with `output=json`.
pub(super) async fn get(State(shared): State<Arc<Shared>>, RawQuery(query): RawQuery) -> Response {
    let query = query.unwrap_or_default();
    let as_json = query.split('&').any(|pair| pair == "output=json");
    let answer = match explain::read_query(&query) {
        Ok(form) => answer(&shared, &form).await,
        Err(invalid) => Err(Error::Invalid(invalid)),
    };
    match answer {
        Ok(explained) if as_json => axum::Json(explained).into_response(),
        Ok(Explained::Outbound(answer)) => text::outbound(&answer, "").into_response(),
        Ok(Explained::Inbound(answer)) => text::inbound(&answer, "").into_response(),
        Err(error) => error.into_response(),
    }
}

/// `POST`: question and answer are JSON.
pub(super) async fn post(State(shared): State<Arc<Shared>>, body: String) -> Response {
    let answer = match serde_json::from_str::<Form>(&body) {
        Ok(form) => answer(&shared, &form).await,
        Err(error) => Err(Error::Invalid(Invalid::Json(error.to_string()))),
    };
    match answer {
        Ok(explained) => axum::Json(explained).into_response(),
        Err(error) => error.into_response(),
    }
}

async fn answer(shared: &Shared, form: &Form) -> Result<Explained, Error> {
    let asked = form.asked().map_err(Error::Invalid)?;
    let destination = match &asked {
        Asked::To(target) => Some(destination(shared, target).await.ok_or_else(|| Error::Unknown(target.clone()))?),
        Asked::Port(_) => None,
    };
    if let Some(destination) = destination {
        // What it says is read below, together with the rest.
        let _ = shared.destination(destination).await;
    }
    let tables = shared.tables.load_full();
    let sight = Sight { tables: &tables, elapsed: shared.started.elapsed(), wall: SystemTime::now() };
    let explained = match (asked, destination) {
        (Asked::To(_), Some(destination)) => form.outbound(&sight, destination),
        (Asked::To(target), None) => return Err(Error::Unknown(target)),
        (Asked::Port(port), _) => form.inbound(&sight, port),
    };
    explained.map_err(Error::Invalid)
}

/// Of a Service that is known by name, or else as the application would resolve it.
async fn destination(shared: &Shared, target: &Target) -> Option<SocketAddr> {
    if let Some(known) = explain::find(&shared.tables.load(), target) {
        return Some(known);
    }
    let first = resolve::addresses(&target.host).await.ok()?.into_iter().next()?;
    Some(SocketAddr::new(first, target.port))
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        match self {
            Self::Invalid(invalid) => (StatusCode::BAD_REQUEST, format!("{invalid}\n")).into_response(),
            Self::Unknown(target) => {
                let text = format!(
                    "destination `{target}`: neither a Service this sidecar has used nor a name it can resolve; give an address\n"
                );
                (StatusCode::NOT_FOUND, text).into_response()
            }
        }
    }
}
