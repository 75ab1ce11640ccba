//! The one set of cryptographic primitives of the mesh: what TLS may negotiate, SHA-256, random bytes, hexadecimal.
//!
//! All of it is aws-lc-rs, reached through rustls' provider, so that nothing here chooses a second implementation.
//! Called by this crate; [`provider`] also by whoever builds a rustls configuration for something that is not mesh
//! mTLS (the control plane's webhook, for example).

use std::fmt::Write as _;
use std::sync::{Arc, LazyLock};

use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::crypto::hash::Hash;
use rustls::crypto::{CryptoProvider, GetRandomFailed};

/// TLS 1.3 suites and groups of the mesh, most wanted first. X25519MLKEM768 comes first because recorded traffic can
/// be decrypted once a quantum computer exists (draft-ietf-tls-ecdhe-mlkem); X25519 and P-256 are for peers without it.
///
/// One shared value: comparing configurations by pointer and sharing it between workers costs nothing.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        Arc::new(CryptoProvider {
            cipher_suites: vec![
                cipher_suite::TLS13_AES_128_GCM_SHA256,
                cipher_suite::TLS13_AES_256_GCM_SHA384,
                cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            ],
            kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1],
            ..aws_lc_rs::default_provider()
        })
    });
    PROVIDER.clone()
}

/// SHA-256 (FIPS 180-4) of `data`.
pub(crate) fn sha256(data: &[u8]) -> [u8; 32] {
    let mut digest = [0; 32];
    // SHA-256 has 32 bytes; the lengths are equal.
    digest.copy_from_slice(SHA256.hash(data).as_ref());
    digest
}

/// The hash of the suite that is named after it; decided when this is compiled.
static SHA256: &dyn Hash = match cipher_suite::TLS13_AES_128_GCM_SHA256.tls13() {
    Some(suite) => suite.common.hash_provider,
    None => panic!("TLS13_AES_128_GCM_SHA256 is a TLS 1.3 suite"),
};

/// `N` bytes from the provider's generator. Errors: the operating system gives no entropy.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], GetRandomFailed> {
    let mut bytes = [0; N];
    provider().secure_random.fill(&mut bytes)?;
    Ok(bytes)
}

/// Lower-case hexadecimal, two digits a byte.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing into a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The inverse of [`hex`]; `None` for an odd length or anything but lower-case digits, so each value has one spelling.
pub(crate) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sha256_of_abc_is_the_value_of_fips_180() {
        assert_eq!(hex(&sha256(b"abc")), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn the_hybrid_group_is_offered_first() {
        assert_eq!(provider().kx_groups[0].name(), rustls::NamedGroup::X25519MLKEM768);
        assert_eq!(provider().kx_groups.len(), 3);
    }

    #[test]
    fn hexadecimal_has_one_spelling() {
        assert_eq!(unhex("0aff"), Some(vec![10, 255]));
        for refused in ["0AFF", "0af", "0x0a", "é", "0g"] {
            assert_eq!(unhex(refused), None, "{refused}");
        }
    }

    proptest! {
        #[test]
        fn hexadecimal_round_trips(bytes: Vec<u8>) {
            prop_assert_eq!(unhex(&hex(&bytes)), Some(bytes));
        }
    }
}
