//! The Identity service: the only door through which a certificate is signed.
//!
//! Who asks is known from one of three proofs, and the certificate is for that identity whatever the request says: a projected
//! service account token in the metadata, of which the API server says whose it is ([`crate::cluster::review`]); a join token
//! there (the first certificate of a workload outside Kubernetes); or the client certificate of the connection (renewal). Either
//! way the workload must exist: a token is for one Pod or Workload, a certificate for some that runs under its service account,
//! so taking the object away ends its certificates with the last one's life. A pod's token is believed from that pod's own address
//! only, and a pod whose address is not known yet is waited for: its sidecar is faster than the news of it.
//!
//! Roots are no secret: [`Service::bundles`] answers everybody. Served by [`crate::app`] beside ADS.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::Stream;
use heddle_certs::ca::{self, requested_lifetime};
use heddle_certs::csr::{self, Csr};
use heddle_certs::identity::SpiffeId;
use heddle_certs::rpc::{BundlesRequest, BundlesResponse, IdentityService, SignRequest, SignResponse, bearer};
use heddle_certs::token::is_join_token;
use heddle_xds::server::PeerIdentity;
use tokio::sync::Semaphore;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};

use crate::ads::{OTHER_WORKLOAD_WAIT, UNKNOWN_WORKLOAD_WAIT};
use crate::authority::Authority;
use crate::cluster::review::{self, Holder, Outcome, Reviewer};
use crate::metrics::{Issued, Metrics};
use crate::model::WorkloadName;
use crate::publish::{Answer, Publisher, Snapshot};

/// The service.
#[derive(Debug)]
pub struct Service {
    authority: Arc<Authority>,
    publisher: Arc<Publisher>,
    /// Says whose service account tokens are; none outside a cluster.
    reviewer: Option<Reviewer>,
    places: Semaphore,
    waiting: Semaphore,
    metrics: Metrics,
}

impl Service {
    /// Signs with `authority` for workloads that `publisher` knows, those too whose service account tokens `reviewer` believes.
    pub fn new(
        authority: Arc<Authority>,
        publisher: Arc<Publisher>,
        reviewer: Option<Reviewer>,
        metrics: Metrics,
    ) -> Self {
        let (places, waiting) = (Semaphore::new(MAX_WAITING), Semaphore::new(MAX_WAITING_FOR_PODS));
        Self { authority, publisher, reviewer, places, waiting, metrics }
    }

    async fn answer(&self, request: Request<SignRequest>, now: SystemTime) -> Result<(SignResponse, Issued), Refused> {
        let (id, outcome) = self.authenticate(&request, now).await?;
        let _place = self.places.try_acquire().map_err(|_| {
            Refused(
                Issued::Overflow,
                Status::resource_exhausted(format!("{MAX_WAITING} requests wait already; try again")),
            )
        })?;
        let request = request.into_inner();
        let lifetime = requested_lifetime(request.lifetime_seconds, self.authority.leaf_lifetime());
        let authority = Arc::clone(&self.authority);
        let requester = id.clone();
        // Verifying, signing and checking take a good part of a millisecond.
        let signing = tokio::task::spawn_blocking(move || {
            let request = Csr::from_der(&request.csr)?;
            authority.sign(&request, &requester, lifetime, now)
        });
        let signed = signing.await.map_err(|_| Refused(Issued::Failed, Status::internal("signing did not finish")))?;
        let (signed, bundle) = signed.map_err(Refused::from)?;
        tracing::debug!(%id, serial = signed.serial_hex, "certificate issued");
        Ok((SignResponse::new(&signed, &bundle), outcome))
    }

    /// Who asks. A token counts before a certificate: who shows one means it.
    async fn authenticate(
        &self,
        request: &Request<SignRequest>,
        now: SystemTime,
    ) -> Result<(SpiffeId, Issued), Refused> {
        let peer = request.extensions().get::<PeerIdentity>();
        match (bearer(request.metadata()), &self.reviewer) {
            (Some(token), Some(reviewer)) if !is_join_token(token) => {
                let address = peer.and_then(|peer| peer.address).map(|address| address.ip().to_canonical());
                let id = self.review(reviewer, token, address, now).await?;
                return Ok((id, Issued::ForServiceAccount));
            }
            (Some(token), _) => {
                let claims = self.authority.verify_token(token, now).map_err(unauthenticated)?;
                let id = claims.identity().map_err(unauthenticated)?;
                let workload = WorkloadName::new(&claims.namespace, &claims.workload);
                self.exists(&id, Some(&workload))?;
                return Ok((id, Issued::ForToken));
            }
            (None, _) => {}
        }
        let Some(id) = peer.and_then(|peer| peer.spiffe_id.as_deref()) else {
            let how =
                "show a service account token or a join token (`authorization: Bearer …`), or a client certificate";
            return Err(Refused(Issued::Unauthenticated, Status::unauthenticated(how)));
        };
        let id = SpiffeId::parse(id).map_err(unauthenticated)?;
        self.exists(&id, None)?;
        Ok((id, Issued::ForCertificate))
    }

    /// The identity of a service account token's holder, whose pod must be the one that shows it.
    async fn review(
        &self,
        reviewer: &Reviewer,
        token: &str,
        address: Option<IpAddr>,
        now: SystemTime,
    ) -> Result<SpiffeId, Refused> {
        let holder = reviewer.review(token, now).await.map_err(|error| {
            let text = format!("service account token: {error}");
            match error {
                review::Error::Overflow => Refused(Issued::Overflow, Status::resource_exhausted(text)),
                review::Error::Timeout | review::Error::Api(_) => Refused(Issued::Failed, Status::unavailable(text)),
                review::Error::Malformed(_)
                | review::Error::Audience(_)
                | review::Error::Expired(_)
                | review::Error::Unbelieved(_)
                | review::Error::NotServiceAccount(_)
                | review::Error::NoPod => Refused(Issued::Unauthenticated, Status::unauthenticated(text)),
            }
        })?;
        let id = SpiffeId::new(self.authority.trust_domain(), &holder.namespace, &holder.service_account);
        let id = id.map_err(unauthenticated)?;
        let _waits = self.waiting.try_acquire().map_err(|_| {
            let text = format!("{MAX_WAITING_FOR_PODS} pods are waited for already; try again");
            Refused(Issued::Overflow, Status::resource_exhausted(text))
        })?;
        let found = self.publisher.ask(|snapshot| match shows(snapshot, &holder, &id, address) {
            Ok(()) => Answer::Final(Ok(())),
            Err(shown) => Answer::For(shown.patience(), Err(shown)),
        });
        match found.await {
            Some(Ok(())) => Ok(id),
            Some(Err(shown)) => {
                self.metrics.review_overruled(Outcome::OtherPod);
                let text = format!("service account token of Pod {}/{}: {shown}", holder.namespace, holder.pod);
                Err(Refused(Issued::Denied, Status::permission_denied(text)))
            }
            None => Err(Refused(Issued::Failed, Status::unavailable("the mesh is not read yet; try again"))),
        }
    }

    fn exists(&self, id: &SpiffeId, workload: Option<&WorkloadName>) -> Result<(), Refused> {
        let Some(snapshot) = self.publisher.snapshot() else {
            return Err(Refused(Issued::Failed, Status::unavailable("the mesh is not read yet; try again")));
        };
        let workloads = &snapshot.model().workloads;
        let (found, who) = match workload {
            Some(name) => {
                let found = workloads.get(name).is_some_and(|workload| workload.identity.as_str() == id.as_str());
                (found, format!("no Pod or Workload {name} with an address runs as `{id}`"))
            }
            None => {
                let found = snapshot.runs_as(id.namespace(), id.as_str());
                (found, format!("no Pod or Workload with an address runs as `{id}`"))
            }
        };
        if found { Ok(()) } else { Err(Refused(Issued::Denied, Status::permission_denied(who))) }
    }
}

#[tonic::async_trait]
impl IdentityService for Service {
    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        let peer = request.extensions().get::<PeerIdentity>().cloned().unwrap_or_default();
        match self.answer(request, SystemTime::now()).await {
            Ok((response, outcome)) => {
                self.metrics.issued(outcome);
                Ok(Response::new(response))
            }
            Err(Refused(outcome, status)) => {
                self.metrics.issued(outcome);
                tracing::info!(address = ?peer.address, %status, "no certificate issued");
                Err(status)
            }
        }
    }

    type BundlesStream = Pin<Box<dyn Stream<Item = Result<BundlesResponse, Status>> + Send>>;

    async fn bundles(&self, request: Request<BundlesRequest>) -> Result<Response<Self::BundlesStream>, Status> {
        let mut known = request.into_inner().version;
        // Holds nothing but the newest value, however slow the client is.
        let bundles = WatchStream::new(self.authority.current()).filter_map(move |current| {
            let bundle = current.bundle;
            if bundle.version() == known {
                return None;
            }
            known = bundle.version().to_owned();
            Some(Ok(BundlesResponse::from(&*bundle)))
        });
        Ok(Response::new(Box::pin(bundles)))
    }
}

/// Why a token's pod is not the one that shows it.
#[derive(Debug, thiserror::Error)]
enum Shown {
    #[error("no such pod with an address is known")]
    Unknown,
    #[error("it is of an earlier pod of that name, or of a later one")]
    OtherUid,
    #[error("that pod runs as `{0}`")]
    OtherAccount(String),
    #[error("it is shown from {}, which is not that pod's address", .0.map_or("nowhere".to_owned(), |ip| ip.to_string()))]
    OtherAddress(Option<IpAddr>),
}

impl Shown {
    /// How long news may change it: the kubelet writes a pod's address about a second after its containers begin.
    fn patience(&self) -> Duration {
        match self {
            Self::Unknown | Self::OtherUid => UNKNOWN_WORKLOAD_WAIT,
            Self::OtherAccount(_) | Self::OtherAddress(_) => OTHER_WORKLOAD_WAIT,
        }
    }
}

/// Whether the pod that `holder` names is there, runs as `id`, and is the one at `address`.
fn shows(snapshot: &Snapshot, holder: &Holder, id: &SpiffeId, address: Option<IpAddr>) -> Result<(), Shown> {
    let name = WorkloadName::new(&holder.namespace, &holder.pod);
    let Some(workload) = snapshot.model().workloads.get(&name) else { return Err(Shown::Unknown) };
    if workload.uid.as_deref() != Some(holder.uid.as_str()) {
        return Err(Shown::OtherUid);
    }
    if workload.identity.as_str() != id.as_str() {
        return Err(Shown::OtherAccount(workload.identity.to_string()));
    }
    // On the host's network an address is everybody's.
    if !workload.host_network && !address.is_some_and(|address| workload.addresses.contains(&address)) {
        return Err(Shown::OtherAddress(address));
    }
    Ok(())
}

/// A request that was not signed: how it is counted, and what the caller is told.
struct Refused(Issued, Status);

impl From<ca::Error> for Refused {
    fn from(error: ca::Error) -> Self {
        let text = error.to_string();
        match error {
            ca::Error::Request(csr::Error::OtherIdentity { .. }) | ca::Error::TrustDomain { .. } => {
                Self(Issued::Denied, Status::permission_denied(text))
            }
            ca::Error::Request(_) => Self(Issued::Invalid, Status::invalid_argument(text)),
            ca::Error::Ending(_) | ca::Error::NotBegun(_) => Self(Issued::Failed, Status::failed_precondition(text)),
            ca::Error::Profile(_)
            | ca::Error::Make { .. }
            | ca::Error::Check(_)
            | ca::Error::Load { .. }
            | ca::Error::Identity(_)
            | ca::Error::Credential(_)
            | ca::Error::Bundle(_) => {
                tracing::error!(error = text, "a certificate could not be made");
                Self(Issued::Failed, Status::internal("the certificate could not be made; see the control plane's log"))
            }
        }
    }
}

fn unauthenticated(error: impl std::fmt::Display) -> Refused {
    Refused(Issued::Unauthenticated, Status::unauthenticated(error.to_string()))
}

/// Requests that wait for the news of their pods at once. Chosen: as many pods as a large cluster starts in the time they wait.
const MAX_WAITING_FOR_PODS: usize = 1024;
/// Requests that are signed or wait for it at once. Chosen: a second's work of one core; who comes above it is told to come
/// again, and clients wait with jitter.
const MAX_WAITING: usize = 2048;

#[cfg(test)]
mod tests {
    use heddle_certs::bundle::Bundle;
    use heddle_certs::identity::TrustDomain;

    use super::*;
    use crate::config::Config;

    fn service(config: &Config) -> Service {
        let metrics = Metrics::new().unwrap();
        let authority =
            Authority::open(config, config.state.as_deref().unwrap(), metrics.clone(), SystemTime::now()).unwrap();
        Service::new(Arc::new(authority), Arc::default(), None, metrics)
    }

    fn config(state: &std::path::Path) -> Config {
        Config {
            root_lifetime: Duration::from_secs(100_000 * 2),
            ..Config::new("unused", state, TrustDomain::parse("mesh.example").unwrap())
        }
    }

    fn ask(version: &str) -> Request<BundlesRequest> {
        Request::new(BundlesRequest { version: version.to_owned() })
    }

    #[tokio::test]
    async fn the_roots_are_told_at_once_and_again_when_they_change() {
        let directory = tempfile::tempdir().unwrap();
        let service = service(&config(directory.path()));
        let mut bundles = service.bundles(ask("")).await.unwrap().into_inner();
        let first = Bundle::try_from(bundles.next().await.unwrap().unwrap()).unwrap();

        // Half of the root's life: the next one is published.
        let now = SystemTime::now() + Duration::from_secs(100_000);
        service.authority.exchange(now, now).await.unwrap();

        let second = Bundle::try_from(bundles.next().await.unwrap().unwrap()).unwrap();
        assert_eq!((first.roots().len(), second.roots().len()), (1, 2));
    }

    #[tokio::test]
    async fn who_has_the_roots_is_told_nothing_until_they_change() {
        let directory = tempfile::tempdir().unwrap();
        let service = service(&config(directory.path()));
        let known = service.authority.current().borrow().bundle.version().to_owned();
        let mut bundles = service.bundles(ask(&known)).await.unwrap().into_inner();

        let now = SystemTime::now() + Duration::from_secs(100_000);
        service.authority.exchange(now, now).await.unwrap();

        assert_ne!(bundles.next().await.unwrap().unwrap().version, known);
    }

    #[tokio::test]
    async fn nothing_is_signed_before_the_mesh_was_read() {
        let directory = tempfile::tempdir().unwrap();
        let service = service(&config(directory.path()));
        let token =
            crate::authority::join_token(directory.path(), "shop", "web", "web", Duration::from_secs(60)).unwrap();
        let mut request = Request::new(SignRequest::new(Vec::new(), None));
        heddle_certs::rpc::authorize(&mut request, &token).unwrap();

        let status = service.sign(request).await.unwrap_err();

        assert_eq!(status.code(), tonic::Code::Unavailable);
    }
}
