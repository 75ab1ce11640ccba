//! Between [`SystemTime`], which the public functions take as `now`, and the whole seconds of a certificate.
//!
//! Reads no clock. Called by this crate only.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;

/// Whole seconds since 1970, rounded down; before 1970: 0, which no certificate of ours can be valid at.
pub(crate) fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The inverse of [`seconds`], kept inside what a certificate can say.
pub(crate) fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds.min(LAST_SECOND))
}

/// For the certificate writer; `None` after [`LAST_SECOND`].
pub(crate) fn date(at: SystemTime) -> Option<OffsetDateTime> {
    let seconds = i64::try_from(seconds(at)).ok()?;
    OffsetDateTime::from_unix_timestamp(seconds).ok()
}

/// For webpki.
pub(crate) fn unix(at: SystemTime) -> rustls_pki_types::UnixTime {
    rustls_pki_types::UnixTime::since_unix_epoch(Duration::from_secs(seconds(at)))
}

/// Seconds since 1970 of 9999-12-31T23:59:59Z, the last time X.509 can write (RFC 5280 §4.1.2.5).
pub(crate) const LAST_SECOND: u64 = 253_402_300_799;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_a_certificate_cannot_say_are_refused_or_clamped() {
        assert_eq!(seconds(UNIX_EPOCH - Duration::from_secs(9)), 0);
        assert_eq!(at(u64::MAX), at(LAST_SECOND));
        assert!(date(at(LAST_SECOND)).is_some());
        assert!(date(at(LAST_SECOND) + Duration::from_secs(1)).is_none());
    }
}
