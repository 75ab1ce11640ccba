//! HTTP and HTTPS probes, as the kubelet makes them.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use http::header::{ACCEPT, CONNECTION, HOST, LOCATION, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};

use super::location::Target;
use super::spec::{HttpGet, Scheme};
use super::{Failure, dial};
use crate::tls::unverified;
use crate::upstream::Dialer;

/// Asks, and follows redirects on the same host.
///
/// # Errors
/// If there is no answer, or one that is no success.
pub(super) async fn get(get: &HttpGet, dialer: &Dialer, pod: IpAddr, kubelet: &HeaderMap) -> Result<(), Failure> {
    let mut target = Target::new(get.scheme, get.port, &get.path);
    for _ in 0..=MAX_REDIRECTS {
        let address = SocketAddr::new(pod, target.port);
        let request = request(get, &target, address, kubelet)
            .map_err(|error| Failure::Protocol { address, reason: format!("the probe's own request: {error}") })?;
        let response = exchange(dialer, target.scheme, address, request).await?;
        let status = response.status();
        let next = redirect(&response).and_then(|location| target.follow(location, &pod.to_string()));
        match next {
            Some(next) => target = next,
            // A redirect that leads elsewhere is an answer.
            None if status.is_success() || status.is_redirection() => return finish(response, address).await,
            None => return Err(Failure::Status { address, status }),
        }
    }
    let address = SocketAddr::new(pod, target.port);
    Err(Failure::Protocol { address, reason: format!("stopped after {MAX_REDIRECTS} redirects") })
}

fn redirect(response: &Response<Incoming>) -> Option<&str> {
    let followed = [
        StatusCode::MOVED_PERMANENTLY,
        StatusCode::FOUND,
        StatusCode::SEE_OTHER,
        StatusCode::TEMPORARY_REDIRECT,
        StatusCode::PERMANENT_REDIRECT,
    ];
    followed.contains(&response.status()).then(|| response.headers().get(LOCATION)?.to_str().ok()).flatten()
}

fn request(
    get: &HttpGet,
    target: &Target,
    address: SocketAddr,
    kubelet: &HeaderMap,
) -> Result<Request<Empty<Bytes>>, http::Error> {
    let mut headers = HeaderMap::new();
    for header in &get.http_headers {
        headers.append(HeaderName::try_from(&header.name)?, HeaderValue::try_from(&header.value)?);
    }
    // The kubelet's own unless the probe says otherwise; an empty one is left out.
    let own = [(USER_AGENT, kubelet.get(USER_AGENT).cloned()), (ACCEPT, Some(HeaderValue::from_static("*/*")))];
    for (name, value) in own {
        match (headers.get(&name), value) {
            (Some(given), _) if given.is_empty() => drop(headers.remove(&name)),
            (None, Some(value)) => drop(headers.insert(name, value)),
            (Some(_), _) | (None, None) => {}
        }
    }
    let host = headers.remove(HOST).filter(|host| target.own_host && !host.is_empty());
    let host = host.map_or_else(|| HeaderValue::try_from(address.to_string()), Ok)?;
    headers.insert(HOST, host);
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    let mut request = Request::builder().method(Method::GET).uri(target.path.as_str()).body(Empty::new())?;
    *request.headers_mut() = headers;
    Ok(request)
}

async fn exchange(
    dialer: &Dialer,
    scheme: Scheme,
    address: SocketAddr,
    request: Request<Empty<Bytes>>,
) -> Result<Response<Incoming>, Failure> {
    let tcp = dial(dialer, address).await?;
    let protocol = |reason: String| Failure::Protocol { address, reason };
    match scheme {
        Scheme::Http => http1(tcp, request).await.map_err(|error| protocol(error.to_string())),
        Scheme::Https => {
            let tls = unverified::dial(tcp, address.ip()).await;
            let tls = tls.map_err(|error| protocol(format!("TLS: {error}")))?;
            let sent = match tls.get_ref().1.alpn_protocol() {
                Some(b"h2") => http2(tls, request).await,
                _ => http1(tls, request).await,
            };
            sent.map_err(|error| protocol(error.to_string()))
        }
    }
}

async fn http1<S>(stream: S, request: Request<Empty<Bytes>>) -> hyper::Result<Response<Incoming>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the response: the sender is dropped then.
    tokio::spawn(connection);
    sender.send_request(request).await
}

async fn http2<S>(stream: S, mut request: Request<Empty<Bytes>>) -> hyper::Result<Response<Incoming>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let headers = request.headers_mut();
    headers.remove(CONNECTION);
    let host = headers.remove(HOST);
    // Host travels as the authority (RFC 9113 §8.3.1).
    let authority = host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let uri = Uri::builder().scheme("https").authority(authority).path_and_query(path).build();
    if let Ok(uri) = uri {
        *request.uri_mut() = uri;
    }
    *request.version_mut() = Version::HTTP_2;
    let (mut sender, connection) = conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    sender.send_request(request).await
}

/// The answer counts when it has arrived whole, or as much of it as anyone reads.
async fn finish(response: Response<Incoming>, address: SocketAddr) -> Result<(), Failure> {
    let mut body = response.into_body();
    let mut left = MAX_BODY_BYTES;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Failure::Protocol { address, reason: error.to_string() })?;
        left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
        if left == 0 {
            break;
        }
    }
    Ok(())
}

/// As Go's `net/http`, and with it the kubelet.
const MAX_REDIRECTS: usize = 10;
/// As the kubelet's `maxRespBodyLength`.
const MAX_BODY_BYTES: usize = 10 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probes::HttpHeader;

    fn built(headers: &[(&str, &str)]) -> HeaderMap {
        let header = |(name, value): &(&str, &str)| HttpHeader { name: (*name).into(), value: (*value).into() };
        let get = HttpGet {
            scheme: Scheme::Http,
            port: 8080,
            path: "/up".into(),
            http_headers: headers.iter().map(header).collect(),
        };
        let kubelet = HeaderMap::from_iter([(USER_AGENT, HeaderValue::from_static("kube-probe/1.36"))]);
        let target = Target::new(Scheme::Http, 8080, "/up");
        request(&get, &target, "10.0.0.1:8080".parse().unwrap(), &kubelet).unwrap().headers().clone()
    }

    #[test]
    fn headers_are_those_the_kubelet_would_send() {
        let headers = built(&[("X-Probe", "1"), ("X-Probe", "2")]);
        assert_eq!(headers[HOST], "10.0.0.1:8080");
        assert_eq!(headers[USER_AGENT], "kube-probe/1.36");
        assert_eq!(headers[ACCEPT], "*/*");
        assert_eq!(headers.get_all("x-probe").iter().count(), 2);
    }

    #[test]
    fn the_probes_own_headers_win_and_empty_ones_are_left_out() {
        let headers = built(&[("Host", "api.shop"), ("User-Agent", "mine"), ("Accept", "")]);
        assert_eq!(headers[HOST], "api.shop");
        assert_eq!(headers[USER_AGENT], "mine");
        assert!(!headers.contains_key(ACCEPT));
    }
}
