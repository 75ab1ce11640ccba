//! Reading a ClientHello without answering it.

use rustls::server::Acceptor;

/// What the beginning of a TLS connection says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hello {
    /// The ClientHello is not whole yet.
    More,
    /// A sidecar, for HTTP.
    SidecarHttp,
    /// A sidecar, for opaque bytes.
    SidecarTcp,
    /// The application's own TLS, or something that only looks like TLS.
    Application,
}

/// Reads `bytes`, the beginning of a connection.
pub fn client_hello(mut bytes: &[u8]) -> Hello {
    let mut acceptor = Acceptor::default();
    while !bytes.is_empty() {
        if acceptor.read_tls(&mut bytes).is_err() {
            return Hello::Application;
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                let mut offered = hello.alpn().into_iter().flatten();
                return offered.find_map(sidecar).unwrap_or(Hello::Application);
            }
            Ok(None) => {}
            Err(_) => return Hello::Application,
        }
    }
    Hello::More
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
        let mut client = rustls::ClientConnection::new(Arc::new(config), "a.example".try_into().unwrap()).unwrap();
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
            assert_eq!(client_hello(&bytes), expected, "{alpn:?}");
            for cut in 0..bytes.len() {
                assert_eq!(client_hello(&bytes[..cut]), Hello::More, "{alpn:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn what_only_looks_like_tls_is_the_applications() {
        assert_eq!(client_hello(&[22, 3, 1, 0, 5, 1, 0, 0, 1, 9]), Hello::Application);
    }
}
