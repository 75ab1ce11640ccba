//! Reading a ClientHello without answering it.

use rustls::server::{Acceptor, ClientHello};

use crate::detect;
use crate::http::error::Cause;
use crate::stream::Stream;

/// Who began a TLS connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hello {
    /// A sidecar, for HTTP.
    SidecarHttp,
    /// A sidecar, for opaque bytes.
    SidecarTcp,
    /// The application's own TLS, or something that only looks like TLS.
    Application,
}

/// What was found at the beginning of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Looked<T> {
    /// The ClientHello is not whole yet.
    More,
    /// This, in a ClientHello.
    Found(T),
    /// No ClientHello.
    Nothing,
}

/// Whose ClientHello `bytes` begin with.
pub fn client_hello(bytes: &[u8]) -> Looked<Hello> {
    look(bytes, |hello| {
        let mut offered = hello.alpn().into_iter().flatten();
        offered.find_map(sidecar).unwrap_or(Hello::Application)
    })
}

/// The server name that the ClientHello at the beginning of `bytes` asks for (RFC 6066 §3), in lower case.
pub fn server_name(bytes: &[u8]) -> Looked<Option<String>> {
    look(bytes, |hello| hello.server_name().map(str::to_ascii_lowercase))
}

/// Reads ahead on `client` until `look` has seen a whole ClientHello; `None` if there is none within
/// [`detect::MAX_BYTES`].
///
/// # Errors
/// If the client goes away, or takes longer than [`detect::MAX_WAIT`].
pub async fn read<T>(client: &mut Stream, look: impl Fn(&[u8]) -> Looked<T>) -> Result<Option<T>, Cause> {
    let read = async {
        loop {
            match look(client.ahead()) {
                Looked::More => {}
                Looked::Found(found) => return Ok(Some(found)),
                Looked::Nothing => return Ok(None),
            }
            if client.read_ahead(detect::MAX_BYTES).await? == 0 {
                return Ok(None);
            }
        }
    };
    match tokio::time::timeout(detect::MAX_WAIT, read).await {
        Ok(read) => read.map_err(|_: std::io::Error| Cause::DownstreamClosed),
        Err(_) => Err(Cause::TlsFailure),
    }
}

fn look<T>(mut bytes: &[u8], read: impl FnOnce(&ClientHello<'_>) -> T) -> Looked<T> {
    let mut acceptor = Acceptor::default();
    while !bytes.is_empty() {
        if acceptor.read_tls(&mut bytes).is_err() {
            return Looked::Nothing;
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => return Looked::Found(read(&accepted.client_hello())),
            Ok(None) => {}
            Err(_) => return Looked::Nothing,
        }
    }
    Looked::More
}

fn sidecar(offered: &[u8]) -> Option<Hello> {
    match offered {
        b"heddle-tcp" => Some(Hello::SidecarTcp),
        _ if offered.starts_with(b"heddle-") => Some(Hello::SidecarHttp),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    /// The ClientHello of a client that offers `alpn`.
    fn hello(alpn: &[&str]) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let roots = rustls::RootCertStore::empty();
        let mut config = builder.unwrap().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let mut client = rustls::ClientConnection::new(Arc::new(config), "A.example".try_into().unwrap()).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_sidecar_is_told_by_what_it_offers_at_any_cut() {
        let cases: [(&[&str], Hello); 5] = [
            (&["heddle-http/1.1", "http/1.1"], Hello::SidecarHttp),
            (&["heddle-h2", "h2"], Hello::SidecarHttp),
            (&["heddle-tcp"], Hello::SidecarTcp),
            (&["h2", "http/1.1"], Hello::Application),
            (&[], Hello::Application),
        ];
        for (alpn, expected) in cases {
            let bytes = hello(alpn);
            assert_eq!(client_hello(&bytes), Looked::Found(expected), "{alpn:?}");
            assert_eq!(server_name(&bytes), Looked::Found(Some("a.example".into())));
            for cut in 0..bytes.len() {
                assert_eq!(client_hello(&bytes[..cut]), Looked::More, "{alpn:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn what_only_looks_like_tls_is_the_applications() {
        assert_eq!(client_hello(&[22, 3, 1, 0, 5, 1, 0, 0, 1, 9]), Looked::Nothing);
    }
}
