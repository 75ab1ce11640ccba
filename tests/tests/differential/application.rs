//! The application in each pod: answers with what it was asked.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use heddle_tests::pods::MeshPod;
use heddle_tests::{h2c, origin};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use serde_json::json;

/// How often each request came to each application.
pub type Attempts = Arc<Mutex<HashMap<(String, &'static str), u32>>>;

/// Answers in the name of `service` and of its pod `name`. `x-fail: 503/2` makes the first two attempts fail, with a gRPC status if it is a call;
/// `x-slow: 700` takes milliseconds.
pub fn start(pod: &MeshPod, name: &'static str, service: &'static str, attempts: Attempts) {
    origin::http_in_time(pod, 8080, move |request| {
        let answer = answer(name, service, &request, &attempts);
        let slow = text(&request, "x-slow").and_then(|slow| slow.parse().ok()).map(Duration::from_millis);
        async move {
            if let Some(slow) = slow {
                tokio::time::sleep(slow).await;
            }
            answer
        }
    });
}

fn answer(name: &str, service: &'static str, request: &Request<Bytes>, attempts: &Attempts) -> Answer {
    let attempt = {
        let mut attempts = attempts.lock().unwrap();
        let count = attempts.entry((text(request, "x-id").unwrap_or_default().to_owned(), service)).or_insert(0);
        *count += 1;
        *count
    };
    let fail = text(request, "x-fail").and_then(|fail| fail.split_once('/'));
    let fail = fail.filter(|(_, times)| times.parse::<u32>().is_ok_and(|times| attempt <= times));
    let fail = fail.map(|(code, _)| code);
    let told = told(name, service, request);
    if request.uri().path() == "/grpc.health.v1.Health/Check" {
        // `HealthCheckResponse.status` SERVING.
        return grpc(None, vec![8, 1]);
    }
    if text(request, "content-type") == Some("application/grpc") {
        grpc(fail, told.into_bytes())
    } else {
        http(fail, told)
    }
}

fn text<'a>(request: &'a Request<Bytes>, name: &str) -> Option<&'a str> {
    request.headers().get(name).and_then(|value| value.to_str().ok())
}

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

fn http(fail: Option<&str>, told: String) -> Answer {
    let status: u16 = fail.and_then(|code| code.parse().ok()).unwrap_or(200);
    let answer = Response::builder().status(status).header("x-answer", "theirs").header("x-gone", "theirs");
    answer.body(Full::from(told).boxed_unsync()).unwrap()
}

/// A call that fails is answered by trailers only (gRPC `PROTOCOL-HTTP2.md`).
fn grpc(fail: Option<&str>, told: Vec<u8>) -> Answer {
    let answer = Response::builder().header("content-type", "application/grpc");
    let answer = answer.header("x-answer", "theirs").header("x-gone", "theirs");
    if let Some(code) = fail {
        return answer.header("grpc-status", code).body(Full::default().boxed_unsync()).unwrap();
    }
    let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))]);
    let message = Full::from(h2c::grpc_message(&told));
    answer.body(message.with_trailers(std::future::ready(Some(Ok(trailers)))).boxed_unsync()).unwrap()
}

fn told(pod: &str, service: &str, request: &Request<Bytes>) -> String {
    let fields = request.headers().iter();
    let mut fields: Vec<_> =
        fields.map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes()))).collect();
    fields.sort();
    // In HTTP/2 the target comes with its authority, which is told as HTTP/1's Host.
    let target = request.uri().path_and_query().map_or("", |target| target.as_str());
    if let Some(authority) = request.uri().authority() {
        fields.insert(0, format!("host: {authority}"));
    }
    json!({ "service": service, "pod": pod, "line": format!("{} {target}", request.method()), "fields": fields })
        .to_string()
}
