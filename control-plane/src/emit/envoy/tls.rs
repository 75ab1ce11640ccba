//! Mutual TLS of an Envoy: TLS 1.3, identity and roots from files, peers checked by SPIFFE ID, no resumption.
//!
//! Envoy reads two secrets from files in [`super::Settings::identity_directory`] and reads them again whenever a file
//! is moved into that directory. The identity agent has to write there, each by rename:
//! - `identity.yaml`, one `DiscoveryResponse` in YAML with one Secret named `identity`: `tls_certificate` whose
//!   `certificate_chain.filename` is `<dir>/chain.pem`, `private_key.filename` is `<dir>/key.pem` and
//!   `watched_directory.path` is `<dir>`;
//! - `roots.yaml`, likewise with one Secret named `roots`: `validation_context` whose `trusted_ca.filename` is
//!   `<dir>/bundle.pem` and `watched_directory.path` is `<dir>`;
//! - `chain.pem`, `key.pem` and `bundle.pem` themselves, readable by Envoy's user.
//!
//! While a file is missing or cannot be read, connections that need it fail; none falls back to plaintext.
//! Resumption is off on both sides, because a resumed session is not checked against new roots or identities.

use envoy_types::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use envoy_types::pb::envoy::config::core::v3::transport_socket::ConfigType;
use envoy_types::pb::envoy::config::core::v3::{
    ApiVersion, ConfigSource, PathConfigSource, TransportSocket, WatchedDirectory,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::{
    CombinedCertificateValidationContext, ValidationContextType,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::downstream_tls_context::SessionTicketKeysType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::tls_parameters::TlsProtocol;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, SubjectAltNameMatcher,
    TlsParameters, UpstreamTlsContext,
};
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use prost::{Message, Name};

use super::Settings;
use crate::emit::pb;
use crate::model::SpiffeId;

/// Speaks to endpoints that may show any of `identities`, and offers `alpn` unless the connection says otherwise.
pub(super) fn upstream(settings: &Settings, identities: &[SpiffeId], alpn: &[&str]) -> TransportSocket {
    let exact = |id: &SpiffeId| MatchPattern::Exact(id.to_string());
    let context = UpstreamTlsContext {
        common_tls_context: Some(common(settings, identities.iter().map(exact), alpn)),
        max_session_keys: Some(pb::uint32(0)),
        ..UpstreamTlsContext::default()
    };
    socket(&context)
}

/// Takes sidecars of the trust domain of `own` and negotiates one of `alpn`.
pub(super) fn downstream(settings: &Settings, own: &SpiffeId, alpn: &[&str]) -> TransportSocket {
    let trust_domain = MatchPattern::Prefix(trust_domain_prefix(own));
    let context = DownstreamTlsContext {
        common_tls_context: Some(common(settings, [trust_domain], alpn)),
        require_client_certificate: Some(pb::boolean(true)),
        disable_stateful_session_resumption: true,
        session_ticket_keys_type: Some(SessionTicketKeysType::DisableStatelessSessionResumption(true)),
        ..DownstreamTlsContext::default()
    };
    socket(&context)
}

/// A URI in a certificate, on either side and in gRPC alike.
pub(in crate::emit) fn uri(pattern: MatchPattern) -> SubjectAltNameMatcher {
    SubjectAltNameMatcher {
        san_type: SanType::Uri as i32,
        matcher: Some(pb::text(pattern)),
        ..SubjectAltNameMatcher::default()
    }
}

/// The name of Envoy's TLS transport socket, the only one gRPC knows too.
pub(in crate::emit) fn socket<M: Message + Name>(context: &M) -> TransportSocket {
    TransportSocket {
        name: "envoy.transport_sockets.tls".to_owned(),
        config_type: Some(ConfigType::TypedConfig(pb::any(context))),
    }
}

fn common(settings: &Settings, peers: impl IntoIterator<Item = MatchPattern>, alpn: &[&str]) -> CommonTlsContext {
    let validation = CombinedCertificateValidationContext {
        default_validation_context: Some(CertificateValidationContext {
            match_typed_subject_alt_names: peers.into_iter().map(uri).collect(),
            ..CertificateValidationContext::default()
        }),
        validation_context_sds_secret_config: Some(secret(settings, ROOTS)),
        ..CombinedCertificateValidationContext::default()
    };
    CommonTlsContext {
        tls_params: Some(TlsParameters {
            tls_minimum_protocol_version: TlsProtocol::TlSv13 as i32,
            tls_maximum_protocol_version: TlsProtocol::TlSv13 as i32,
            ecdh_curves: CURVES.map(str::to_owned).to_vec(),
            ..TlsParameters::default()
        }),
        tls_certificate_sds_secret_configs: vec![secret(settings, IDENTITY)],
        alpn_protocols: alpn.iter().map(|name| (*name).to_owned()).collect(),
        validation_context_type: Some(ValidationContextType::CombinedValidationContext(validation)),
        ..CommonTlsContext::default()
    }
}

/// A secret in the file of its name.
fn secret(settings: &Settings, name: &str) -> SdsSecretConfig {
    let directory = &settings.identity_directory;
    let path = PathConfigSource {
        path: format!("{directory}/{name}.yaml"),
        watched_directory: Some(WatchedDirectory { path: directory.clone(), ..WatchedDirectory::default() }),
        ..PathConfigSource::default()
    };
    SdsSecretConfig {
        name: name.to_owned(),
        sds_config: Some(ConfigSource {
            config_source_specifier: Some(ConfigSourceSpecifier::PathConfigSource(path)),
            resource_api_version: ApiVersion::V3 as i32,
            ..ConfigSource::default()
        }),
    }
}

/// `spiffe://<trust domain>/`.
fn trust_domain_prefix(id: &SpiffeId) -> String {
    let rest = id.as_str().strip_prefix(SCHEME).unwrap_or_default();
    let domain = rest.split('/').next().unwrap_or_default();
    format!("{SCHEME}{domain}/")
}

/// The Secret with certificate chain and key; its file is `identity.yaml`.
pub const IDENTITY: &str = "identity";
/// The Secret with the roots; its file is `roots.yaml`.
pub const ROOTS: &str = "roots";

/// ALPN offered by a sidecar for HTTP/1.1.
pub(super) const OFFER_HTTP1: [&str; 2] = ["heddle-http/1.1", "http/1.1"];
/// ALPN offered by a sidecar for HTTP/2.
pub(super) const OFFER_HTTP2: [&str; 2] = ["heddle-h2", "h2"];
/// ALPN offered by a sidecar for opaque bytes.
pub(super) const OFFER_TCP: [&str; 1] = ["heddle-tcp"];

/// SPIFFE ID, section 2.1.
const SCHEME: &str = "spiffe://";
/// The same key exchanges as the sidecar, post-quantum first (draft-ietf-tls-ecdhe-mlkem; BoringSSL's names).
const CURVES: [&str; 3] = ["X25519MLKEM768", "X25519", "P-256"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_taken_from_the_own_trust_domain_and_no_longer_one() {
        let id = SpiffeId::new("mesh.example", "shop", "cart");
        assert_eq!(trust_domain_prefix(&id), "spiffe://mesh.example/");
    }
}
