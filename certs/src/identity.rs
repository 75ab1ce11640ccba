//! Trust domain and SPIFFE ID, parsed once at the edge and never compared as loose text again.
//!
//! A mesh identity is `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`. Other SPIFFE IDs (any path) are
//! valid by the specification but name no workload of a mesh: [`SpiffeId::parse`] recognises them and refuses them
//! with [`Error::NotAWorkload`], so a certificate carrying one is refused with a reason and not misread. Only the
//! canonical spelling is accepted (lower-case scheme and trust domain, no port, query, percent-encoding or trailing
//! slash), so that equality of identities is equality of bytes.
//!
//! Source: SPIFFE-ID §2, <https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md>. Called by everyone.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Name of a trust domain, for example `cluster.local`: 1 to 255 bytes of `a-z 0-9 . - _` (SPIFFE-ID §2.1, §2.3).
/// Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(Arc<str>);

/// Identity of a workload: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`, at most 2,048 bytes. It names
/// a service account, not a pod. Cheap to clone.
#[derive(Clone)]
pub struct SpiffeId {
    text: Arc<str>,
    /// Where the trust domain ends in `text`; it begins after the scheme.
    trust_domain_end: usize,
    /// Where the namespace ends in `text`; it begins `/ns/` after the trust domain.
    namespace_end: usize,
}

/// Why a text is no trust domain or no workload identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The trust domain has no character.
    #[error("SPIFFE ID `{0}`: trust domain is empty; give one, for example `cluster.local`")]
    EmptyTrustDomain(String),
    /// The trust domain is over [`MAX_TRUST_DOMAIN_BYTES`].
    #[error("trust domain is {0} bytes; the limit is {MAX_TRUST_DOMAIN_BYTES}")]
    TrustDomainTooLong(usize),
    /// A character that SPIFFE-ID §2.1 does not allow in a trust domain.
    #[error("trust domain `{name}`: character {character:?} is not allowed; use a-z, 0-9, `.`, `-` and `_`")]
    TrustDomainCharacter {
        /// The whole name.
        name: String,
        /// The first character that is not allowed.
        character: char,
    },
    /// The whole identity is over [`MAX_ID_BYTES`].
    #[error("SPIFFE ID is {0} bytes; the limit is {MAX_ID_BYTES}")]
    TooLong(usize),
    /// It does not begin with `spiffe://`.
    #[error("`{0}`: a SPIFFE ID begins with `spiffe://` in lower case")]
    Scheme(String),
    /// A segment of the path is empty, `.`, `..`, or has a character that SPIFFE-ID §2.2 does not allow.
    #[error(
        "SPIFFE ID `{id}`: path segment `{segment}` is not allowed; use a-z, A-Z, 0-9, `.`, `-`, `_`, not empty, not `.` or `..`"
    )]
    Segment {
        /// The whole identity.
        id: String,
        /// The first segment that is not allowed.
        segment: String,
    },
    /// A valid SPIFFE ID whose path is not of the mesh's form.
    #[error("SPIFFE ID `{0}` names no workload: its path must be `/ns/<namespace>/sa/<service account>`")]
    NotAWorkload(String),
}

impl TrustDomain {
    /// Parses a bare name (no scheme). Errors name the first thing that is wrong.
    pub fn parse(name: &str) -> Result<Self, Error> {
        if name.is_empty() {
            return Err(Error::EmptyTrustDomain(String::new()));
        }
        if name.len() > MAX_TRUST_DOMAIN_BYTES {
            return Err(Error::TrustDomainTooLong(name.len()));
        }
        let allowed = |c: &char| matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | '_');
        if let Some(character) = name.chars().find(|c| !allowed(c)) {
            return Err(Error::TrustDomainCharacter { name: name.into(), character });
        }
        Ok(Self(name.into()))
    }

    /// The bare name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The SPIFFE ID of the trust domain itself, `spiffe://<name>`: the URI in a root certificate (X.509-SVID §4.2).
    pub fn to_uri(&self) -> String {
        format!("{SCHEME}{}", self.0)
    }

    /// The control plane's identity in this trust domain: `/ns/heddle-system/sa/heddle-control-plane`.
    pub fn control_plane(&self) -> Result<SpiffeId, Error> {
        SpiffeId::new(self, CONTROL_PLANE_NAMESPACE, CONTROL_PLANE_SERVICE_ACCOUNT)
    }
}

impl SpiffeId {
    /// Builds an identity from its parts. Errors: a part is not a SPIFFE path segment, or the whole is too long.
    pub fn new(trust_domain: &TrustDomain, namespace: &str, service_account: &str) -> Result<Self, Error> {
        Self::parse(&format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}"))
    }

    /// Parses the URI form. Errors name the first thing that is wrong; a valid SPIFFE ID of another form is
    /// [`Error::NotAWorkload`].
    pub fn parse(id: &str) -> Result<Self, Error> {
        if id.len() > MAX_ID_BYTES {
            return Err(Error::TooLong(id.len()));
        }
        let Some(rest) = id.strip_prefix(SCHEME) else { return Err(Error::Scheme(id.into())) };
        let (name, path) = rest.split_once('/').map_or((rest, None), |(name, path)| (name, Some(path)));
        if name.is_empty() {
            return Err(Error::EmptyTrustDomain(id.into()));
        }
        TrustDomain::parse(name)?;
        let Some(path) = path else { return Err(Error::NotAWorkload(id.into())) };
        if let Some(segment) = path.split('/').find(|segment| !is_segment(segment)) {
            return Err(Error::Segment { id: id.into(), segment: segment.into() });
        }
        let segments: Vec<&str> = path.splitn(5, '/').collect();
        let ["ns", namespace, "sa", _] = segments[..] else { return Err(Error::NotAWorkload(id.into())) };
        let trust_domain_end = SCHEME.len() + name.len();
        let namespace_end = trust_domain_end + "/ns/".len() + namespace.len();
        Ok(Self { text: id.into(), trust_domain_end, namespace_end })
    }

    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> TrustDomain {
        TrustDomain(self.trust_domain_str().into())
    }

    /// The trust domain's bare name, without a copy.
    pub fn trust_domain_str(&self) -> &str {
        &self.text[SCHEME.len()..self.trust_domain_end]
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.text[self.trust_domain_end + "/ns/".len()..self.namespace_end]
    }

    /// The service account.
    pub fn service_account(&self) -> &str {
        &self.text[self.namespace_end + "/sa/".len()..]
    }
}

fn is_segment(segment: &str) -> bool {
    let allowed = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'_');
    !segment.is_empty() && segment != "." && segment != ".." && segment.bytes().all(allowed)
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TrustDomain {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::parse(name)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for SpiffeId {
    type Err = Error;

    fn from_str(id: &str) -> Result<Self, Error> {
        Self::parse(id)
    }
}

// The offsets follow from the text, so the text alone decides equality, order and hash.
impl PartialEq for SpiffeId {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for SpiffeId {}

impl PartialOrd for SpiffeId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for SpiffeId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.text.cmp(&other.text)
    }
}

impl std::hash::Hash for SpiffeId {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl Serialize for TrustDomain {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for TrustDomain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl Serialize for SpiffeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for SpiffeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// Namespace of the control plane: where the chart installs it.
pub const CONTROL_PLANE_NAMESPACE: &str = "heddle-system";

/// Service account of the control plane: the one the chart creates.
pub const CONTROL_PLANE_SERVICE_ACCOUNT: &str = "heddle-control-plane";

/// Bytes of a trust domain name: SPIFFE-ID §2.3.
pub const MAX_TRUST_DOMAIN_BYTES: usize = 255;

/// Bytes of a whole SPIFFE ID, scheme included: SPIFFE-ID §2.3.
pub const MAX_ID_BYTES: usize = 2048;

/// SPIFFE-ID §2: the scheme, with the authority's slashes.
const SCHEME: &str = "spiffe://";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_identity_has_its_three_parts() {
        let id = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/cart").unwrap();
        assert_eq!(id.trust_domain(), TrustDomain::parse("cluster.local").unwrap());
        assert_eq!((id.namespace(), id.service_account()), ("shop", "cart"));
    }

    #[test]
    fn a_valid_foreign_path_is_recognised_and_refused_as_no_workload() {
        for id in
            ["spiffe://a", "spiffe://a/web", "spiffe://a/ns/x/sa", "spiffe://a/ns/x/sa/y/z", "spiffe://a/sa/x/ns/y"]
        {
            assert_eq!(SpiffeId::parse(id), Err(Error::NotAWorkload(id.into())), "{id}");
        }
    }

    #[test]
    fn what_the_specification_forbids_is_refused() {
        let segment = |id: &str, segment: &str| Error::Segment { id: id.into(), segment: segment.into() };
        let cases = [
            ("https://a/ns/x/sa/y", Error::Scheme("https://a/ns/x/sa/y".into())),
            ("SPIFFE://a/ns/x/sa/y", Error::Scheme("SPIFFE://a/ns/x/sa/y".into())),
            ("spiffe:///ns/x/sa/y", Error::EmptyTrustDomain("spiffe:///ns/x/sa/y".into())),
            ("spiffe://A/ns/x/sa/y", Error::TrustDomainCharacter { name: "A".into(), character: 'A' }),
            ("spiffe://a:1/ns/x/sa/y", Error::TrustDomainCharacter { name: "a:1".into(), character: ':' }),
            ("spiffe://u@a/ns/x/sa/y", Error::TrustDomainCharacter { name: "u@a".into(), character: '@' }),
            ("spiffe://a/ns/x/sa/y/", segment("spiffe://a/ns/x/sa/y/", "")),
            ("spiffe://a/", segment("spiffe://a/", "")),
            ("spiffe://a/ns//sa/y", segment("spiffe://a/ns//sa/y", "")),
            ("spiffe://a/ns/../sa/y", segment("spiffe://a/ns/../sa/y", "..")),
            ("spiffe://a/ns/x/sa/%79", segment("spiffe://a/ns/x/sa/%79", "%79")),
            ("spiffe://a/ns/x/sa/y?q", segment("spiffe://a/ns/x/sa/y?q", "y?q")),
            ("spiffe://a/ns/x/sa/y#f", segment("spiffe://a/ns/x/sa/y#f", "y#f")),
            ("spiffe://a/ns/é/sa/y", segment("spiffe://a/ns/é/sa/y", "é")),
        ];
        for (id, error) in cases {
            assert_eq!(SpiffeId::parse(id), Err(error), "{id}");
        }
    }

    #[test]
    fn lengths_are_limited_at_the_byte() {
        assert!(TrustDomain::parse(&"a".repeat(255)).is_ok());
        assert_eq!(TrustDomain::parse(&"a".repeat(256)), Err(Error::TrustDomainTooLong(256)));
        let longest = format!("spiffe://a/ns/b/sa/{}", "c".repeat(2048 - "spiffe://a/ns/b/sa/".len()));
        assert!(SpiffeId::parse(&longest).is_ok());
        assert_eq!(SpiffeId::parse(&format!("{longest}c")), Err(Error::TooLong(2049)));
    }

    #[test]
    fn parts_that_would_change_the_path_are_refused() {
        let domain = TrustDomain::parse("a").unwrap();
        assert!(SpiffeId::new(&domain, "x/sa/admin", "y").is_err());
        assert!(SpiffeId::new(&domain, "", "y").is_err());
    }

    proptest! {
        #[test]
        fn every_identity_round_trips(
            domain in "[a-z0-9._-]{1,60}",
            namespace in "[a-zA-Z0-9_-][a-zA-Z0-9._-]{0,60}",
            account in "[a-zA-Z0-9_-][a-zA-Z0-9._-]{0,60}",
        ) {
            let domain = TrustDomain::parse(&domain).unwrap();
            let id = SpiffeId::new(&domain, &namespace, &account).unwrap();
            let again = SpiffeId::parse(&id.to_string()).unwrap();
            prop_assert_eq!(&again, &id);
            prop_assert_eq!(again.trust_domain(), domain);
            prop_assert_eq!((again.namespace(), again.service_account()), (namespace.as_str(), account.as_str()));
        }

        #[test]
        fn no_text_panics_and_what_parses_displays_as_itself(text in "(spiffe://)?[ -~é]{0,80}") {
            if let Ok(id) = SpiffeId::parse(&text) {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }
}
