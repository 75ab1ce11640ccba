//! Certificates and roots of gRPC's own bootstrap, by the name of the plugin instance that holds them (gRFC A29).

use std::collections::BTreeSet;

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateProviderPluginInstance, CertificateValidationContext, CommonTlsContext,
};
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;

use crate::emit::{envoy, pb};
use crate::model::SpiffeId;

/// Both from the instance `provider`; the peer must show one of `identities`, where there are any.
///
/// They are said twice: grpc-go, grpc-java and C-core read the field that Envoy calls deprecated and no other, and would take
/// any certificate of the mesh without it.
#[expect(deprecated, reason = "gRPC reads it")]
pub fn by(provider: &str, identities: &BTreeSet<&SpiffeId>) -> CommonTlsContext {
    let instance = || CertificateProviderPluginInstance { instance_name: provider.to_owned(), ..Default::default() };
    let exact = |id: &SpiffeId| MatchPattern::Exact(id.to_string());
    let validation = CertificateValidationContext {
        ca_certificate_provider_instance: Some(instance()),
        match_typed_subject_alt_names: identities.iter().map(|id| envoy::tls::uri(exact(id))).collect(),
        match_subject_alt_names: identities.iter().map(|id| pb::text(exact(id))).collect(),
        ..CertificateValidationContext::default()
    };
    CommonTlsContext {
        tls_certificate_provider_instance: Some(instance()),
        validation_context_type: Some(ValidationContextType::ValidationContext(validation)),
        ..CommonTlsContext::default()
    }
}
