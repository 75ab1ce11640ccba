//! The certificate signing service `heddle.identity.v1.Identity`: messages, client and server trait, generated from
//! `proto/heddle/identity/v1/identity.proto`, and the conversions between its messages and this crate's types.
//!
//! It does not authenticate anybody: the control plane reads the token, decides the identity and calls
//! [`crate::ca::Authority::sign`]. Called by the control plane (server half) and by sidecars and agents (client half).

use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::bundle::{self, Bundle};
use crate::ca::Signed;
use crate::credential::{self, Identity};
use crate::identity::{self, TrustDomain};

#[allow(missing_docs, unused_qualifications, clippy::all)]
mod generated {
    tonic::include_proto!("heddle.identity.v1");
}

pub use generated::identity_client::IdentityClient;
pub use generated::identity_server::{Identity as IdentityService, IdentityServer};
pub use generated::{BundlesRequest, BundlesResponse, SignRequest, SignResponse};

/// Why an answer of the service is not usable.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The trust domain is not one.
    #[error("answer of the identity service: {0}")]
    TrustDomain(#[from] identity::Error),
    /// The roots make no bundle.
    #[error("answer of the identity service: {0}")]
    Bundle(#[from] bundle::Error),
    /// The version is not that of the roots.
    #[error("answer of the identity service: version `{said}` is not that of its roots, `{computed}`")]
    Version {
        /// What the answer says.
        said: String,
        /// What its roots give.
        computed: String,
    },
    /// The answer has no bundle.
    #[error("answer of the identity service: no bundle")]
    NoBundle,
    /// Chain and key make no identity.
    #[error("answer of the identity service: {0}")]
    Identity(#[from] credential::Error),
}

impl SignRequest {
    /// A request for `csr` (DER). `lifetime` is rounded down to seconds; `None` asks for the server's default.
    pub fn new(csr: Vec<u8>, lifetime: Option<Duration>) -> Self {
        let seconds = lifetime.map_or(0, |lifetime| u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX).max(1));
        Self { csr, lifetime_seconds: seconds }
    }
}

impl SignResponse {
    /// The answer with a signed leaf.
    pub fn new(signed: &Signed, bundle: &Bundle) -> Self {
        let chain = signed.chain.iter().map(|certificate| certificate.to_vec()).collect();
        Self { chain, bundle: Some(bundle.into()) }
    }

    /// What the workload now holds and believes; `key` is the one the request was made with.
    pub fn accept(self, key: PrivateKeyDer<'static>) -> Result<(Identity, Arc<Bundle>), Error> {
        let bundle = Bundle::try_from(self.bundle.ok_or(Error::NoBundle)?)?;
        let chain = self.chain.into_iter().map(CertificateDer::from).collect();
        Ok((Identity::new(chain, key)?, Arc::new(bundle)))
    }
}

impl From<&Bundle> for BundlesResponse {
    fn from(bundle: &Bundle) -> Self {
        Self {
            trust_domain: bundle.trust_domain().to_string(),
            roots: bundle.roots().map(|root| root.to_vec()).collect(),
            version: bundle.version().into(),
        }
    }
}

impl TryFrom<BundlesResponse> for Bundle {
    type Error = Error;

    fn try_from(answer: BundlesResponse) -> Result<Self, Error> {
        let trust_domain = TrustDomain::parse(&answer.trust_domain)?;
        let bundle = Bundle::new(trust_domain, answer.roots.into_iter().map(CertificateDer::from))?;
        if bundle.version() != answer.version {
            return Err(Error::Version { said: answer.version, computed: bundle.version().into() });
        }
        Ok(bundle)
    }
}

/// The token of `authorization: Bearer <token>` (RFC 6750 §2.1); `None` if there is none or it is not ASCII.
pub fn bearer(metadata: &tonic::metadata::MetadataMap) -> Option<&str> {
    let value = metadata.get("authorization")?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// Adds `authorization: Bearer <token>`, marked so that it is kept out of HPACK tables and logs. Errors: the token has
/// bytes a header cannot carry.
pub fn authorize<T>(
    request: &mut tonic::Request<T>,
    token: &str,
) -> Result<(), tonic::metadata::errors::InvalidMetadataValue> {
    let mut value: tonic::metadata::AsciiMetadataValue = format!("Bearer {}", token.trim_ascii()).parse()?;
    value.set_sensitive(true);
    request.metadata_mut().insert("authorization", value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;
    use crate::ca::{Authority, ROOT_LIFETIME};
    use crate::csr::{Csr, KeyRequest};
    use crate::identity::SpiffeId;

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(2_000_000_000)
    }

    fn answer() -> (SignResponse, PrivateKeyDer<'static>) {
        let domain = TrustDomain::parse("cluster.local").unwrap();
        let authority = Authority::generate(&domain, ROOT_LIFETIME, now()).unwrap();
        let id = SpiffeId::new(&domain, "shop", "cart").unwrap();
        let request = KeyRequest::generate(&id).unwrap();
        let csr = Csr::from_der(&SignRequest::new(request.csr, None).csr).unwrap();
        let signed = authority.sign(&csr, &id, Duration::from_secs(60), now()).unwrap();
        let bundle = Bundle::new(domain, [authority.root().clone()]).unwrap();
        (SignResponse::new(&signed, &bundle), request.key)
    }

    #[test]
    fn an_answer_becomes_an_identity_and_a_bundle() {
        let (answer, key) = answer();
        let (identity, bundle) = answer.accept(key).unwrap();
        assert_eq!(identity.id().as_str(), "spiffe://cluster.local/ns/shop/sa/cart");
        assert_eq!(bundle.trust_domain().as_str(), "cluster.local");
    }

    #[test]
    fn an_answer_for_another_key_is_refused() {
        let ((first, _), (_, key)) = (answer(), answer());
        assert!(matches!(first.accept(key), Err(Error::Identity(credential::Error::Key { .. }))));
    }

    #[test]
    fn a_bundle_whose_version_is_not_its_own_is_refused() {
        let (answer, _) = answer();
        let bundle = BundlesResponse { version: "0".repeat(32), ..answer.bundle.unwrap() };
        assert!(matches!(Bundle::try_from(bundle), Err(Error::Version { .. })));
    }

    #[test]
    fn a_bearer_token_travels_in_the_metadata() {
        let mut request = tonic::Request::new(());
        assert_eq!(bearer(request.metadata()), None);
        authorize(&mut request, "abc.def\n").unwrap();
        assert_eq!(bearer(request.metadata()), Some("abc.def"));
        assert!(authorize(&mut request, "a\nb").is_err());
    }
}
