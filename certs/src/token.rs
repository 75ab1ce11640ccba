//! Join tokens: how a workload outside Kubernetes proves who it is when it asks for its first certificate.
//!
//! Form: `heddle-join-v1.<hex of the claims in JSON>.<hex of the signature>`; the signature is ECDSA P-256 with SHA-256
//! (ASN.1, FIPS 186-5) over everything before the second dot, by a key that signs nothing else. There is no algorithm
//! field to confuse anybody, and each value has one spelling.
//!
//! A token is a bearer secret and works until it expires, as often as it is shown: it is no certificate and no
//! one-time password; what it allows is to receive certificates of exactly one identity. Pure in `now`. Made by the
//! control plane (`heddle token`), verified by it.

use std::fmt;
use std::time::{Duration, SystemTime};

use rcgen::{KeyPair, SigningKey};
use serde::{Deserialize, Serialize};
use webpki::aws_lc_rs::ECDSA_P256_SHA256;

use crate::identity::{self, SpiffeId, TrustDomain};
use crate::{clock, crypto};

/// The key that signs and verifies tokens. All replicas of a control plane share it; a new key voids all tokens.
pub struct TokenKey(KeyPair);

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    /// Trust domain of the identity.
    pub trust_domain: TrustDomain,
    /// Namespace of the identity.
    pub namespace: String,
    /// Service account of the identity.
    pub service_account: String,
    /// Name of the `Workload` object this token is for, in that namespace.
    pub workload: String,
    /// Seconds since 1970 after which it is void.
    pub expires: u64,
    /// 32 random hexadecimal digits: names the token in logs without showing it.
    pub id: String,
}

/// Why a token is not made or not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Over [`MAX_BYTES`].
    #[error("join token is {0} bytes; the limit is {MAX_BYTES}")]
    TooLarge(usize),
    /// Not of the form above.
    #[error("join token: {0}; copy the whole line that `heddle token` printed")]
    Malformed(&'static str),
    /// Signed by another key, or changed.
    #[error("join token: its signature is not this control plane's; it was changed, or made by another one")]
    Signature,
    /// Over.
    #[error("join token {id} expired {seconds_ago} s ago; make a new one with `heddle token`")]
    Expired {
        /// The token's id.
        id: String,
        /// Seconds since its end.
        seconds_ago: u64,
    },
    /// Signed by us for another trust domain.
    #[error("join token {id} is for trust domain `{found}`; this control plane's is `{expected}`")]
    TrustDomain {
        /// The token's id.
        id: String,
        /// The token's.
        found: TrustDomain,
        /// The control plane's.
        expected: TrustDomain,
    },
    /// Namespace or service account cannot be part of an identity.
    #[error("join token: {0}")]
    Identity(#[from] identity::Error),
    /// The workload name is empty or too long.
    #[error("join token: workload name is {0} bytes; 1 to {MAX_WORKLOAD_BYTES} are allowed")]
    Workload(usize),
    /// The life asked for is out of bounds.
    #[error("join token: lifetime {0:?} is not between {MIN_LIFETIME:?} and {MAX_LIFETIME:?}")]
    Lifetime(Duration),
    /// The key cannot be read, made or used.
    #[error("join token key: {0}")]
    Key(String),
}

impl Claims {
    /// Claims for `id` as `workload`, until `lifetime` after `now`, with a fresh token id.
    pub fn new(id: &SpiffeId, workload: &str, lifetime: Duration, now: SystemTime) -> Result<Self, Error> {
        if !(MIN_LIFETIME..=MAX_LIFETIME).contains(&lifetime) {
            return Err(Error::Lifetime(lifetime));
        }
        let random = crypto::random::<16>().map_err(|_| Error::Key("the system gives no entropy".into()))?;
        let claims = Self {
            trust_domain: id.trust_domain(),
            namespace: id.namespace().into(),
            service_account: id.service_account().into(),
            workload: workload.into(),
            expires: clock::seconds(now).saturating_add(lifetime.as_secs()),
            id: crypto::hex(&random),
        };
        claims.identity()?;
        Ok(claims)
    }

    /// The identity the holder may receive certificates of.
    pub fn identity(&self) -> Result<SpiffeId, Error> {
        if self.workload.is_empty() || self.workload.len() > MAX_WORKLOAD_BYTES {
            return Err(Error::Workload(self.workload.len()));
        }
        Ok(SpiffeId::new(&self.trust_domain, &self.namespace, &self.service_account)?)
    }
}

/// Whether a bearer token is of the form above, and not somebody else's kind.
pub fn is_join_token(token: &str) -> bool {
    token.trim_ascii_start().strip_prefix(PREFIX).is_some_and(|rest| rest.starts_with('.'))
}

impl TokenKey {
    /// Makes a P-256 key.
    pub fn generate() -> Result<Self, Error> {
        KeyPair::generate().map(Self).map_err(|error| Error::Key(error.to_string()))
    }

    /// Reads a P-256 key, PKCS #8 or SEC 1 PEM.
    pub fn from_pem(text: &[u8]) -> Result<Self, Error> {
        let key = |error: String| Error::Key(error);
        let text = std::str::from_utf8(text).map_err(|error| key(error.to_string()))?;
        let pair = KeyPair::from_pem(text).map_err(|error| key(error.to_string()))?;
        if pair.algorithm() != &rcgen::PKCS_ECDSA_P256_SHA256 {
            return Err(key("it is not ECDSA on P-256".into()));
        }
        Ok(Self(pair))
    }

    /// The key, PEM: a secret.
    pub fn to_pem(&self) -> String {
        self.0.serialize_pem()
    }

    /// Writes the token of `claims`.
    pub fn issue(&self, claims: &Claims) -> Result<String, Error> {
        claims.identity()?;
        let json = serde_json::to_vec(claims).map_err(|error| Error::Key(error.to_string()))?;
        let signed = format!("{PREFIX}.{}", crypto::hex(&json));
        let signature = self.0.sign(signed.as_bytes()).map_err(|error| Error::Key(error.to_string()))?;
        let token = format!("{signed}.{}", crypto::hex(&signature));
        if token.len() > MAX_BYTES { Err(Error::TooLarge(token.len())) } else { Ok(token) }
    }

    /// Reads a token: signature first, then trust domain and expiry. White space around it is ignored.
    pub fn verify(&self, token: &str, trust_domain: &TrustDomain, now: SystemTime) -> Result<Claims, Error> {
        if token.len() > MAX_BYTES {
            return Err(Error::TooLarge(token.len()));
        }
        let token = token.trim_ascii();
        let (signed, signature) = token.rsplit_once('.').ok_or(Error::Malformed("it has no dots"))?;
        let (prefix, claims) = signed.split_once('.').ok_or(Error::Malformed("it has one dot, not two"))?;
        if prefix != PREFIX {
            return Err(Error::Malformed("it does not begin with `heddle-join-v1.`"));
        }
        let signature = crypto::unhex(signature).ok_or(Error::Malformed("the signature is not hexadecimal"))?;
        let verified = ECDSA_P256_SHA256.verify_signature(self.0.public_key_raw(), signed.as_bytes(), &signature);
        verified.map_err(|_| Error::Signature)?;
        let claims = crypto::unhex(claims).ok_or(Error::Malformed("the claims are not hexadecimal"))?;
        let claims: Claims = serde_json::from_slice(&claims).map_err(|_| Error::Malformed("unknown claims"))?;
        claims.accept(trust_domain, now)
    }
}

impl Claims {
    fn accept(self, trust_domain: &TrustDomain, now: SystemTime) -> Result<Self, Error> {
        self.identity()?;
        if self.trust_domain != *trust_domain {
            let (found, expected) = (self.trust_domain, trust_domain.clone());
            return Err(Error::TrustDomain { id: self.id, found, expected });
        }
        match clock::seconds(now).checked_sub(self.expires) {
            Some(seconds_ago) if seconds_ago > 0 => Err(Error::Expired { id: self.id, seconds_ago }),
            _ => Ok(self),
        }
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenKey")
    }
}

/// Begins every token and is signed with it, so that a signature means a join token and nothing else.
const PREFIX: &str = "heddle-join-v1";

/// Bytes of a token. Chosen: claims with the longest names Kubernetes allows take under 2.5 KiB in hexadecimal.
pub const MAX_BYTES: usize = 8 * 1024;

/// Bytes of a workload's name: Kubernetes' limit for object names (DNS-1123 subdomain).
pub const MAX_WORKLOAD_BYTES: usize = 253;

/// Chosen: shorter is over before it is pasted.
pub const MIN_LIFETIME: Duration = Duration::from_secs(10);

/// Chosen: a machine image may carry a token for a year, not for ever.
pub const MAX_LIFETIME: Duration = Duration::from_secs(366 * 24 * 3600);

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(2_000_000_000)
    }

    fn domain() -> TrustDomain {
        TrustDomain::parse("cluster.local").unwrap()
    }

    fn claims() -> Claims {
        let id = SpiffeId::new(&domain(), "shop", "cart").unwrap();
        Claims::new(&id, "cart-vm", Duration::from_secs(3600), now()).unwrap()
    }

    #[test]
    fn a_token_says_what_was_claimed_also_to_a_key_read_from_its_pem() {
        let (key, claims) = (TokenKey::generate().unwrap(), claims());
        let token = key.issue(&claims).unwrap();
        let again = TokenKey::from_pem(key.to_pem().as_bytes()).unwrap();
        let verified = again.verify(&format!(" {token}\n"), &domain(), now()).unwrap();
        assert_eq!(verified, claims);
        assert_eq!(verified.identity().unwrap().as_str(), "spiffe://cluster.local/ns/shop/sa/cart");
    }

    #[test]
    fn any_changed_byte_voids_a_token() {
        let key = TokenKey::generate().unwrap();
        let token = key.issue(&claims()).unwrap();
        for at in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
            let changed = String::from_utf8(bytes).unwrap();
            assert!(key.verify(&changed, &domain(), now()).is_err(), "byte {at}");
        }
        assert!(key.verify(&token[..token.len() - 2], &domain(), now()).is_err());
        assert!(key.verify(&format!("{token}00"), &domain(), now()).is_err());
    }

    #[test]
    fn claims_cannot_be_exchanged_under_a_signature() {
        let key = TokenKey::generate().unwrap();
        let token = key.issue(&claims()).unwrap();
        let admin = Claims { service_account: "admin".into(), ..claims() };
        let other = key.issue(&admin).unwrap();
        let forged = format!("{}.{}", other.rsplit_once('.').unwrap().0, token.rsplit_once('.').unwrap().1);
        assert_eq!(key.verify(&forged, &domain(), now()), Err(Error::Signature));
    }

    #[test]
    fn another_control_planes_token_is_refused() {
        let token = TokenKey::generate().unwrap().issue(&claims()).unwrap();
        assert_eq!(TokenKey::generate().unwrap().verify(&token, &domain(), now()), Err(Error::Signature));
    }

    #[test]
    fn a_token_is_void_one_second_after_its_expiry() {
        let key = TokenKey::generate().unwrap();
        let token = key.issue(&claims()).unwrap();
        let end = now() + Duration::from_secs(3600);
        assert!(key.verify(&token, &domain(), end).is_ok());
        let late = key.verify(&token, &domain(), end + Duration::from_secs(1));
        assert!(matches!(late, Err(Error::Expired { seconds_ago: 1, .. })));
    }

    #[test]
    fn a_token_for_another_trust_domain_is_refused() {
        let key = TokenKey::generate().unwrap();
        let token = key.issue(&claims()).unwrap();
        let other = key.verify(&token, &TrustDomain::parse("other").unwrap(), now());
        assert!(matches!(other, Err(Error::TrustDomain { .. })));
    }

    #[test]
    fn claims_that_are_no_identity_and_lives_out_of_bounds_are_never_issued() {
        let key = TokenKey::generate().unwrap();
        let slash = Claims { namespace: "a/sa/b".into(), ..claims() };
        assert!(matches!(key.issue(&slash), Err(Error::Identity(_))));
        let nameless = Claims { workload: String::new(), ..claims() };
        assert_eq!(key.issue(&nameless), Err(Error::Workload(0)));
        let id = claims().identity().unwrap();
        assert!(matches!(Claims::new(&id, "x", Duration::from_secs(1), now()), Err(Error::Lifetime(_))));
        assert!(matches!(Claims::new(&id, "x", MAX_LIFETIME * 2, now()), Err(Error::Lifetime(_))));
    }

    #[test]
    fn what_is_no_token_is_refused_with_a_reason() {
        let key = TokenKey::generate().unwrap();
        for text in ["", ".", "..", "a.b.c", "heddle-join-v1..", "heddle-join-v1.zz.zz", "heddle-join-v2.00.00"] {
            assert!(key.verify(text, &domain(), now()).is_err(), "{text}");
        }
        assert_eq!(key.verify(&"a".repeat(9000), &domain(), now()), Err(Error::TooLarge(9000)));
    }
}
