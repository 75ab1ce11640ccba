//! The Identity service: the only door through which a certificate is signed.
//!
//! Who asks is known from one of two proofs, and the certificate is for that identity whatever the request says: a join
//! token in the metadata (the first certificate of a workload outside Kubernetes), or the client certificate of the
//! connection (renewal). Either way the workload must exist: a token is for one Pod or Workload, a certificate for some
//! that runs under its service account, so taking the object away ends its certificates with the last one's life.
//!
//! Roots are no secret: [`Service::bundles`] answers everybody. Projected service account tokens (TokenReview) belong to
//! the Kubernetes source and are not read here. Served by [`crate::app`] beside ADS.

use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use futures::Stream;
use heddle_certs::ca::{self, requested_lifetime};
use heddle_certs::csr::{self, Csr};
use heddle_certs::identity::SpiffeId;
use heddle_certs::rpc::{BundlesRequest, BundlesResponse, IdentityService, SignRequest, SignResponse, bearer};
use heddle_xds::server::PeerIdentity;
use tokio::sync::Semaphore;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};

use crate::authority::Authority;
use crate::metrics::{Issued, Metrics};
use crate::model::WorkloadName;
use crate::publish::Publisher;

/// The service.
#[derive(Debug)]
pub struct Service {
    authority: Arc<Authority>,
    publisher: Arc<Publisher>,
    places: Semaphore,
    metrics: Metrics,
}

impl Service {
    /// Signs with `authority` for workloads that `publisher` knows.
    pub fn new(authority: Arc<Authority>, publisher: Arc<Publisher>, metrics: Metrics) -> Self {
        Self { authority, publisher, places: Semaphore::new(MAX_WAITING), metrics }
    }

    async fn answer(&self, request: Request<SignRequest>, now: SystemTime) -> Result<(SignResponse, Issued), Refused> {
        let (id, outcome) = self.authenticate(&request, now)?;
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
    fn authenticate(&self, request: &Request<SignRequest>, now: SystemTime) -> Result<(SpiffeId, Issued), Refused> {
        let peer = request.extensions().get::<PeerIdentity>();
        if let Some(token) = bearer(request.metadata()) {
            let claims = self.authority.verify_token(token, now).map_err(unauthenticated)?;
            let id = claims.identity().map_err(unauthenticated)?;
            let workload = WorkloadName::new(&claims.namespace, &claims.workload);
            self.exists(&id, Some(&workload))?;
            return Ok((id, Issued::ForToken));
        }
        let Some(id) = peer.and_then(|peer| peer.spiffe_id.as_deref()) else {
            let how = "show a join token (`authorization: Bearer …`, from `heddle token`) or a client certificate";
            return Err(Refused(Issued::Unauthenticated, Status::unauthenticated(how)));
        };
        let id = SpiffeId::parse(id).map_err(unauthenticated)?;
        self.exists(&id, None)?;
        Ok((id, Issued::ForCertificate))
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

/// Requests that are signed or wait for it at once. Chosen: a second's work of one core; who comes above it is told to come
/// again, and clients wait with jitter.
const MAX_WAITING: usize = 2048;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use heddle_certs::bundle::Bundle;
    use heddle_certs::identity::TrustDomain;

    use super::*;
    use crate::config::Config;

    fn service(config: &Config) -> Service {
        let metrics = Metrics::new().unwrap();
        let authority = Authority::open(config, metrics.clone(), SystemTime::now()).unwrap();
        Service::new(Arc::new(authority), Arc::default(), metrics)
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
        service.authority.exchange(now, now).unwrap();

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
        service.authority.exchange(now, now).unwrap();

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
