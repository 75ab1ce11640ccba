//! Who holds a projected service account token: asked of the API server (TokenReview), for audience [`AUDIENCE`].
//!
//! What the token says of itself is read first, unverified, and only ever to refuse: a token for somebody else, or one that is
//! over, is refused by name without a question to the API server. What counts is what the API server says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::PostParams;
use kube::{Api, Client};
use serde::Deserialize;
use tokio::sync::Semaphore;

use crate::metrics::Metrics;

/// Asks the API server about tokens.
#[derive(Clone)]
pub struct Reviewer {
    api: Api<TokenReview>,
    places: Arc<Semaphore>,
    metrics: Metrics,
}

/// Whom a token belongs to, as the API server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The service account's namespace.
    pub namespace: String,
    /// Its name.
    pub service_account: String,
    /// The pod the token was made for.
    pub pod: String,
    /// That pod's uid; a pod of the same name may follow it.
    pub uid: String,
}

/// Why a token proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not three parts with claims in the middle.
    #[error("it is no service account token: {0}")]
    Malformed(&'static str),
    /// Made for somebody else.
    #[error("it is for the audience {0}; project one for the audience `{AUDIENCE}`")]
    Audience(String),
    /// Over.
    #[error("it expired {0} s ago; the kubelet exchanges the file, so read it again for each request")]
    Expired(u64),
    /// The API server does not believe it.
    #[error("the API server does not believe it: {0}")]
    Unbelieved(String),
    /// Somebody else's than a service account's.
    #[error("it is for `{0}`, which is no service account")]
    NotServiceAccount(String),
    /// Not bound to a pod.
    #[error("it was not made for a pod; mount a projected one (`serviceAccountToken`)")]
    NoPod,
    /// Too many at once.
    #[error("{REVIEWS_AT_ONCE} tokens are being reviewed already; try again")]
    Overflow,
    /// The API server takes too long.
    #[error("the API server has not answered within {REVIEW_TIMEOUT:?}; try again")]
    Timeout,
    /// The API server refused the question, or is away.
    #[error("the API server could not be asked: {0}; try again")]
    Api(Box<kube::Error>),
}

/// How a review ended, as metrics name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The holder is known.
    Accepted,
    /// [`Error::Malformed`].
    Malformed,
    /// [`Error::Audience`].
    Audience,
    /// [`Error::Expired`].
    Expired,
    /// [`Error::Unbelieved`].
    Unbelieved,
    /// [`Error::NotServiceAccount`].
    NotServiceAccount,
    /// [`Error::NoPod`].
    NoPod,
    /// The holder's pod is another than the one that shows it. Found by [`crate::issue`].
    OtherPod,
    /// [`Error::Overflow`].
    Overflow,
    /// [`Error::Timeout`].
    Timeout,
    /// [`Error::Api`].
    Failed,
}

impl Reviewer {
    /// Asks with `client`.
    pub fn new(client: Client, metrics: Metrics) -> Self {
        Self { api: Api::all(client), places: Arc::new(Semaphore::new(REVIEWS_AT_ONCE)), metrics }
    }

    /// Who holds `token`.
    ///
    /// # Errors
    /// Says why it proves nothing, or why nobody knows now.
    pub async fn review(&self, token: &str, now: SystemTime) -> Result<Holder, Error> {
        let begun = std::time::Instant::now();
        let claims = claims(token);
        let says = claims.as_ref().map_or_else(|_| String::new(), |claims| clip(&claims.sub));
        let result = match claims {
            Ok(claims) => self.ask(token, &claims, now).await,
            Err(error) => Err(error),
        };
        self.metrics.reviewed(result.as_ref().err().map_or(Outcome::Accepted, Error::outcome), begun.elapsed());
        if let Err(error) = &result {
            tracing::info!(says, %error, "a service account token was refused");
        }
        result
    }

    async fn ask(&self, token: &str, claims: &Claims, now: SystemTime) -> Result<Holder, Error> {
        claims.refuse(now)?;
        let _place = self.places.try_acquire().map_err(|_| Error::Overflow)?;
        let spec = TokenReviewSpec { audiences: Some(vec![AUDIENCE.to_owned()]), token: Some(token.to_owned()) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let parameters = PostParams::default();
        let asked = tokio::time::timeout(REVIEW_TIMEOUT, self.api.create(&parameters, &review)).await;
        let answer = asked.map_err(|_| Error::Timeout)?.map_err(|error| Error::Api(Box::new(error)))?;
        holder(answer.status.unwrap_or_default())
    }
}

impl std::fmt::Debug for Reviewer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reviewer").finish_non_exhaustive()
    }
}

/// What a token says of itself, unverified.
#[derive(Debug, Deserialize)]
struct Claims {
    #[serde(default)]
    aud: Audiences,
    exp: Option<u64>,
    /// Whose it says it is, for the log.
    #[serde(default)]
    sub: String,
}

/// RFC 7519 §4.1.3: one, or a list.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Many(Vec<String>),
}

impl Default for Audiences {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

fn claims(token: &str) -> Result<Claims, Error> {
    let mut parts = token.split('.');
    let (Some(_), Some(claims), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err(Error::Malformed("it has not three parts"));
    };
    let json = URL_SAFE_NO_PAD.decode(claims).map_err(|_| Error::Malformed("its claims are not in base64url"))?;
    serde_json::from_slice(&json).map_err(|_| Error::Malformed("its claims are no JSON of that kind"))
}

impl Claims {
    /// Refuses what the API server would refuse too.
    fn refuse(&self, now: SystemTime) -> Result<(), Error> {
        let audiences = match &self.aud {
            Audiences::One(one) => std::slice::from_ref(one),
            Audiences::Many(many) => many,
        };
        if !audiences.iter().any(|audience| audience == AUDIENCE) {
            let shown = audiences.iter().take(MAX_SHOWN).map(|audience| format!("`{}`", clip(audience)));
            let shown: Vec<_> = shown.collect();
            return Err(Error::Audience(if shown.is_empty() { "of nobody".to_owned() } else { shown.join(", ") }));
        }
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        match self.exp.and_then(|exp| now.as_secs().checked_sub(exp)) {
            Some(ago) if ago > CLOCK_DIFFERENCE.as_secs() => Err(Error::Expired(ago)),
            _ => Ok(()),
        }
    }
}

fn clip(text: &str) -> String {
    text.chars().take(MAX_SHOWN_CHARS).collect()
}

/// What the API server says.
fn holder(status: TokenReviewStatus) -> Result<Holder, Error> {
    if status.authenticated != Some(true) {
        return Err(Error::Unbelieved(status.error.unwrap_or_else(|| "it says no more".to_owned())));
    }
    // An API server that knows nothing of audiences answers for its own.
    let audiences = status.audiences.unwrap_or_default();
    if !audiences.iter().any(|audience| audience == AUDIENCE) {
        return Err(Error::Audience(audiences.join(", ")));
    }
    let user = status.user.unwrap_or_default();
    let name = user.username.unwrap_or_default();
    let account = name.strip_prefix(ACCOUNT_PREFIX).and_then(|rest| rest.split_once(':'));
    let Some((namespace, service_account)) = account else { return Err(Error::NotServiceAccount(name)) };
    let extra = user.extra.unwrap_or_default();
    let (Some(pod), Some(uid)) = (one(&extra, POD_NAME), one(&extra, POD_UID)) else { return Err(Error::NoPod) };
    let (namespace, service_account) = (namespace.to_owned(), service_account.to_owned());
    Ok(Holder { namespace, service_account, pod, uid })
}

fn one(extra: &BTreeMap<String, Vec<String>>, key: &str) -> Option<String> {
    match extra.get(key).map(Vec::as_slice) {
        Some([value]) if !value.is_empty() => Some(value.clone()),
        _ => None,
    }
}

impl Error {
    /// As metrics name it.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Malformed(_) => Outcome::Malformed,
            Self::Audience(_) => Outcome::Audience,
            Self::Expired(_) => Outcome::Expired,
            Self::Unbelieved(_) => Outcome::Unbelieved,
            Self::NotServiceAccount(_) => Outcome::NotServiceAccount,
            Self::NoPod => Outcome::NoPod,
            Self::Overflow => Outcome::Overflow,
            Self::Timeout => Outcome::Timeout,
            Self::Api(_) => Outcome::Failed,
        }
    }
}

impl Outcome {
    /// Each once.
    pub const ALL: [Self; 11] = [
        Self::Accepted,
        Self::Malformed,
        Self::Audience,
        Self::Expired,
        Self::Unbelieved,
        Self::NotServiceAccount,
        Self::NoPod,
        Self::OtherPod,
        Self::Overflow,
        Self::Timeout,
        Self::Failed,
    ];

    /// As metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Malformed => "malformed",
            Self::Audience => "audience",
            Self::Expired => "expired",
            Self::Unbelieved => "unbelieved",
            Self::NotServiceAccount => "not_service_account",
            Self::NoPod => "no_pod",
            Self::OtherPod => "other_pod",
            Self::Overflow => "overflow",
            Self::Timeout => "timeout",
            Self::Failed => "failed",
        }
    }
}

/// For whom tokens must be made.
pub const AUDIENCE: &str = "heddle";
/// Kubernetes, "User impersonation": how a service account is called.
const ACCOUNT_PREFIX: &str = "system:serviceaccount:";
/// KEP-4193.
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
/// KEP-4193.
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
/// Reviews under way at once. Chosen: each is a few milliseconds of the API server's; who comes above it is told to come again.
const REVIEWS_AT_ONCE: usize = 64;
/// Time for one review. Chosen: a sidecar waits longer than that for its certificate.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(5);
/// How far the clocks of this machine and of the API server's may be apart before a token is called over here. What the API server
/// says counts anyway.
const CLOCK_DIFFERENCE: Duration = Duration::from_secs(60);
/// Audiences that are shown.
const MAX_SHOWN: usize = 4;
/// Letters of what a token says that are shown. Chosen: the longest name of a service account and some.
const MAX_SHOWN_CHARS: usize = 400;

#[cfg(test)]
mod tests {
    use k8s_openapi::api::authentication::v1::UserInfo;

    use super::*;

    fn token(claims: serde_json::Value) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()))
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn refused(claims_of: serde_json::Value) -> String {
        claims(&token(claims_of)).and_then(|claims| claims.refuse(at(10_000))).unwrap_err().to_string()
    }

    fn status() -> TokenReviewStatus {
        let extra = [(POD_NAME, "web-1"), (POD_UID, "u-1")];
        TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(vec![AUDIENCE.into()]),
            user: Some(UserInfo {
                username: Some("system:serviceaccount:shop:web".into()),
                extra: Some(extra.map(|(key, value)| (key.to_owned(), vec![value.to_owned()])).into()),
                ..UserInfo::default()
            }),
            error: None,
        }
    }

    #[test]
    fn a_token_for_somebody_else_or_one_that_is_over_is_refused_without_a_question() {
        assert!(
            refused(serde_json::json!({"aud": ["https://kubernetes.default.svc"]})).contains("`https://kubernetes")
        );
        assert!(refused(serde_json::json!({"aud": "vault", "exp": 20_000})).contains("`vault`"));
        assert!(refused(serde_json::json!({})).contains("of nobody"));
        assert!(refused(serde_json::json!({"aud": ["heddle"], "exp": 9_000})).contains("1000 s ago"));
        let good = token(serde_json::json!({"aud": ["other", "heddle"], "exp": 9_990}));
        claims(&good).unwrap().refuse(at(10_000)).unwrap();
    }

    #[test]
    fn what_is_no_token_is_refused_by_name() {
        for text in ["", "a", "a.b", "a.b.c.d", "a.!.c", "a.e30.c.", "heddle"] {
            assert!(matches!(claims(text), Err(Error::Malformed(_))), "{text}");
        }
        assert!(matches!(claims(&token(serde_json::json!([1]))), Err(Error::Malformed(_))));
    }

    #[test]
    fn the_holder_is_who_the_api_server_says() {
        let found = holder(status()).unwrap();
        assert_eq!((&*found.namespace, &*found.service_account), ("shop", "web"));
        assert_eq!((&*found.pod, &*found.uid), ("web-1", "u-1"));
    }

    #[test]
    fn an_answer_that_says_too_little_is_a_refusal() {
        let refused = |change: &dyn Fn(&mut TokenReviewStatus)| {
            let mut status = status();
            change(&mut status);
            holder(status).unwrap_err().outcome()
        };
        assert_eq!(refused(&|status| status.authenticated = None), Outcome::Unbelieved);
        assert_eq!(refused(&|status| status.audiences = None), Outcome::Audience);
        assert_eq!(
            refused(&|status| status.user.as_mut().unwrap().username = Some("admin".into())),
            Outcome::NotServiceAccount
        );
        assert_eq!(refused(&|status| status.user.as_mut().unwrap().extra = None), Outcome::NoPod);
        assert_eq!(refused(&|status| *status = TokenReviewStatus::default()), Outcome::Unbelieved);
    }
}
