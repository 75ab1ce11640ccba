//! What replicas tell each other: each one's clients say what they accepted and refused ([`crate::feedback`]), and the replica that
//! writes statuses needs what all of them say.
//!
//! A replica that does not hold the lease reports to the one that does, over the port of xDS, with its own certificate; both sides
//! must be the control plane itself. A report is whole and replaces the one before; one that is not repeated is forgotten, so a
//! replica that is gone does not count for ever. Served by [`crate::app`] beside ADS; read by [`crate::cluster::status`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use heddle_certs::tls::client_config;
use heddle_xds::resource::Kind;
use heddle_xds::server::PeerIdentity;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use crate::authority::Current;
use crate::cluster::lease::Lead;
use crate::feedback::{Counts, Refusal};
use crate::metrics::Metrics;

#[allow(missing_docs, unused_qualifications, clippy::all)]
mod generated {
    tonic::include_proto!("heddle.replicas.v1");
}

use generated::replicas_client::ReplicasClient;
use generated::replicas_server::Replicas;
pub use generated::replicas_server::ReplicasServer;
pub use generated::{ReportRequest, ReportResponse};

/// What other replicas have reported.
#[derive(Debug, Default)]
pub struct Reports(Mutex<BTreeMap<String, Report>>);

#[derive(Debug)]
struct Report {
    at: Instant,
    counts: BTreeMap<Arc<str>, Counts>,
}

impl Reports {
    /// What clients of all replicas say, by object; `own`: those of this one.
    pub fn with(&self, own: BTreeMap<Arc<str>, Counts>, now: Instant) -> BTreeMap<Arc<str>, Counts> {
        let mut total = own;
        let mut reports = self.lock();
        reports.retain(|_, report| now.saturating_duration_since(report.at) < FORGOTTEN_AFTER);
        for (object, counts) in reports.values().flat_map(|report| &report.counts) {
            let sum = total.entry(object.clone()).or_default();
            sum.accepted += counts.accepted;
            sum.refused += counts.refused;
            if sum.last_refusal.is_none() {
                sum.last_refusal.clone_from(&counts.last_refusal);
            }
        }
        total
    }

    fn take(&self, replica: String, counts: BTreeMap<Arc<str>, Counts>, now: Instant) -> Result<(), Status> {
        let mut reports = self.lock();
        if !reports.contains_key(&replica) && reports.len() >= MAX_REPLICAS {
            return Err(Status::resource_exhausted(format!("{MAX_REPLICAS} replicas report already")));
        }
        reports.insert(replica, Report { at: now, counts });
        Ok(())
    }

    /// Whole reports are put in and taken out, so what a panic left is usable.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Report>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes reports of other replicas.
#[derive(Debug)]
pub struct Service {
    reports: Arc<Reports>,
    /// Who else may report: this control plane's own identity.
    current: watch::Receiver<Current>,
    lead: watch::Receiver<Lead>,
}

impl Service {
    /// Puts what comes into `reports`, while `lead` says that this replica is the one to report to.
    pub fn new(reports: Arc<Reports>, current: watch::Receiver<Current>, lead: watch::Receiver<Lead>) -> Self {
        Self { reports, current, lead }
    }
}

#[tonic::async_trait]
impl Replicas for Service {
    async fn report(&self, request: Request<ReportRequest>) -> Result<Response<ReportResponse>, Status> {
        let peer = request.extensions().get::<PeerIdentity>().cloned().unwrap_or_default();
        let own = self.current.borrow().identity.id().to_string();
        if peer.spiffe_id.as_deref() != Some(own.as_str()) {
            tracing::info!(address = ?peer.address, spiffe_id = ?peer.spiffe_id, "a report of no replica was refused");
            return Err(Status::permission_denied("only a control plane of this mesh may report"));
        }
        if !self.lead.borrow().is_mine() {
            return Err(Status::failed_precondition("this replica writes no statuses; look at the lease"));
        }
        let ReportRequest { replica, counts } = request.into_inner();
        let counts = counts.into_iter().map(|counts| (Arc::from(counts.object.as_str()), counts.into())).collect();
        self.reports.take(replica, counts, Instant::now())?;
        Ok(Response::new(ReportResponse {}))
    }
}

/// Reports what this replica's clients say to the one that holds the lease, for ever.
pub async fn report(
    replica: String,
    feedback: impl Fn() -> BTreeMap<Arc<str>, Counts>,
    current: watch::Receiver<Current>,
    mut lead: watch::Receiver<Lead>,
    metrics: Metrics,
) {
    let mut failures: u32 = 0;
    loop {
        let to = lead.borrow_and_update().elsewhere();
        if let Some(address) = to {
            let request = ReportRequest { replica: replica.clone(), counts: sent(feedback()) };
            let sent = tokio::time::timeout(REPORT_TIMEOUT, send(address, &current, request)).await;
            let error = match sent {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error),
                Err(_) => Some(format!("no answer within {REPORT_TIMEOUT:?}")),
            };
            metrics.reported(error.is_none());
            failures = if error.is_some() { failures.saturating_add(1) } else { 0 };
            if let Some(error) = error {
                // A holder that has just gone is what usually is the matter; the next one is reported to.
                tracing::debug!(%address, error, failures, "what clients say could not be reported");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(REPORT_PAUSE) => {}
            changed = lead.changed() => if changed.is_err() {
                // The control plane ends.
                return std::future::pending().await;
            },
        }
    }
}

/// A connection of its own each time: it is one every few seconds, and the next may be to another replica with another certificate.
async fn send(address: SocketAddr, current: &watch::Receiver<Current>, request: ReportRequest) -> Result<(), String> {
    let Current { identity, bundle } = current.borrow().clone();
    let expected = Arc::from([identity.id().clone()]);
    let mut tls = client_config(&identity, bundle, expected).map_err(|error| error.to_string())?;
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let connector = TlsConnector::from(Arc::new(tls));
    let dial = tower::service_fn(move |_| {
        let connector = connector.clone();
        async move {
            let socket = TcpStream::connect(address).await?;
            // Who answers is checked by its identity, not by a name.
            let stream = connector.connect(ServerName::from(address.ip()), socket).await?;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| error.to_string())?;
    let channel: Channel = endpoint.connect_with_connector(dial).await.map_err(|error| error.to_string())?;
    let mut client = ReplicasClient::new(channel).max_encoding_message_size(MAX_REPORT_BYTES);
    client.report(request).await.map_err(|status| status.to_string())?;
    Ok(())
}

fn sent(counts: BTreeMap<Arc<str>, Counts>) -> Vec<generated::Counts> {
    let counts = counts.into_iter().map(|(object, counts)| generated::Counts {
        object: object.to_string(),
        accepted: counts.accepted,
        refused: counts.refused,
        last_refusal: counts.last_refusal.map(|refusal| generated::Refusal {
            workload: refusal.workload.to_string(),
            r#type: refusal.r#type.to_owned(),
            resource: refusal.resource.to_string(),
            version: refusal.version.to_string(),
            reason: refusal.reason,
        }),
    });
    counts.collect()
}

impl From<generated::Counts> for Counts {
    fn from(sent: generated::Counts) -> Self {
        Self {
            accepted: sent.accepted,
            refused: sent.refused,
            last_refusal: sent.last_refusal.and_then(|refusal| {
                let kind = Kind::DELIVERY.into_iter().find(|kind| kind.short_name() == refusal.r#type)?;
                Some(Refusal {
                    workload: refusal.workload.into(),
                    r#type: kind.short_name(),
                    resource: refusal.resource.into(),
                    version: refusal.version.into(),
                    reason: refusal.reason,
                })
            }),
        }
    }
}

/// Between two reports. Chosen: people look at a status seconds after a change, and statuses are not written more often.
const REPORT_PAUSE: Duration = Duration::from_secs(5);
/// Time for one.
const REPORT_TIMEOUT: Duration = Duration::from_secs(4);
/// When a replica that says no more is forgotten. Chosen: three reports may be lost.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(20);
/// Replicas that may report. Chosen: ten times the largest control plane.
const MAX_REPLICAS: usize = 64;
/// Bytes of a report: a hundred thousand objects.
pub const MAX_REPORT_BYTES: usize = 16 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(accepted: u64, refused: u64) -> Counts {
        let refusal = Refusal {
            workload: "shop/web".into(),
            r#type: "rds",
            resource: "r".into(),
            version: "1".into(),
            reason: "no".into(),
        };
        Counts { accepted, refused, last_refusal: (refused > 0).then_some(refusal) }
    }

    fn of_api(accepted: u64, refused: u64) -> BTreeMap<Arc<str>, Counts> {
        BTreeMap::from([(Arc::from("HTTPRoute/shop/api"), counts(accepted, refused))])
    }

    fn total(reports: &Reports, own: BTreeMap<Arc<str>, Counts>, now: Instant) -> (u64, u64) {
        let total = reports.with(own, now);
        total.get("HTTPRoute/shop/api").map_or((0, 0), |counts| (counts.accepted, counts.refused))
    }

    #[test]
    fn counts_of_all_replicas_are_added_and_a_report_replaces_the_one_before() {
        let (reports, now) = (Reports::default(), Instant::now());
        reports.take("a".into(), of_api(5, 0), now).unwrap();
        reports.take("a".into(), of_api(2, 1), now).unwrap();
        reports.take("b".into(), of_api(3, 0), now).unwrap();

        assert_eq!(total(&reports, of_api(1, 0), now), (6, 1));
        let refusal = reports.with(of_api(1, 0), now)["HTTPRoute/shop/api"].last_refusal.clone().unwrap();
        assert_eq!(&*refusal.workload, "shop/web");
    }

    #[test]
    fn a_replica_that_says_no_more_is_forgotten() {
        let (reports, now) = (Reports::default(), Instant::now());
        reports.take("a".into(), of_api(5, 0), now).unwrap();
        assert_eq!(total(&reports, BTreeMap::new(), now + FORGOTTEN_AFTER), (0, 0));
    }

    #[test]
    fn only_so_many_replicas_are_kept() {
        let (reports, now) = (Reports::default(), Instant::now());
        for number in 0..MAX_REPLICAS {
            reports.take(number.to_string(), of_api(1, 0), now).unwrap();
        }
        assert!(reports.take("one more".into(), of_api(1, 0), now).is_err());
        reports.take("0".into(), of_api(2, 0), now).unwrap();
    }

    #[test]
    fn a_report_arrives_as_it_was_sent() {
        let sent = sent(of_api(2, 1));
        let arrived: BTreeMap<Arc<str>, Counts> =
            sent.into_iter().map(|counts| (Arc::from(counts.object.as_str()), counts.into())).collect();
        assert_eq!(arrived, of_api(2, 1));
    }
}
