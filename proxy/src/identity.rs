//! This workload's certificate: asked for, renewed in time, handed to whoever holds it.
//!
//! The key is made here and never leaves the pod. The first certificate costs a token; later ones are asked for with
//! the one before, and with the token again if that has expired. Roots are followed live. `heddle-proxy run` puts what
//! comes into its TLS configurations, `heddle-proxy agent` into files.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::Args;
use heddle_certs::bundle::{self, Bundle};
use heddle_certs::credential::Identity;
use heddle_certs::csr::{self, KeyRequest};
use heddle_certs::identity::{self, SpiffeId, TrustDomain};
use heddle_certs::rotate;
use heddle_certs::rpc::{self, BundlesRequest, IdentityClient, SignRequest};
use serde::Serialize;
use tonic::transport::Channel;
use tonic::{Request, Streaming};

use crate::tls::{ControlPlane, ControlPlaneError};

/// Who this workload is and how it proves it. Each flag can be given as the environment variable named beside it.
#[derive(Debug, Clone, Args, Serialize)]
pub struct IdentityConfig {
    /// Trust domain of the mesh.
    #[arg(long, env = "HEDDLE_TRUST_DOMAIN", default_value = "cluster.local")]
    pub trust_domain: String,
    /// Kubernetes namespace of the workload.
    #[arg(long, env = "HEDDLE_NAMESPACE", default_value = "default")]
    pub namespace: String,
    /// Service account the workload runs under.
    #[arg(long, env = "HEDDLE_SERVICE_ACCOUNT", default_value = "default")]
    pub service_account: String,
    /// Name of the Pod or Workload.
    #[arg(long, env = "HEDDLE_WORKLOAD", default_value = "")]
    pub workload: String,
    /// File with the projected service account token or join token; read anew at each use.
    #[arg(long, env = "HEDDLE_TOKEN", default_value = "/var/run/secrets/heddle/token")]
    pub token: PathBuf,
    /// File with the roots to believe at first, PEM; later ones come from the control plane.
    #[arg(long, env = "HEDDLE_BUNDLE", default_value = "/var/run/secrets/heddle/bundle.pem")]
    pub bundle: PathBuf,
}

impl Default for IdentityConfig {
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".to_owned(),
            namespace: "default".to_owned(),
            service_account: "default".to_owned(),
            workload: String::new(),
            token: "/var/run/secrets/heddle/token".into(),
            bundle: "/var/run/secrets/heddle/bundle.pem".into(),
        }
    }
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("{what} {}: {source}; is the volume mounted?", path.display())]
    File {
        /// What the file is for.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file's roots are none.
    #[error("bundle: {0}")]
    Bundle(#[from] bundle::Error),
    /// A configured name is none.
    #[error("identity: {0}")]
    Name(#[from] identity::Error),
    /// No key or request could be made.
    #[error("certificate request: {0}")]
    Request(#[from] csr::Error),
    /// The control plane is not there.
    #[error(transparent)]
    ControlPlane(#[from] ControlPlaneError),
    /// The token is no header value.
    #[error("token {}: not printable ASCII", .0.display())]
    Token(PathBuf),
    /// The control plane says no.
    #[error("the control plane refuses a certificate: {}: {}", .0.code(), .0.message())]
    Refused(#[from] Box<tonic::Status>),
    /// What it sent is no certificate.
    #[error("the control plane's answer: {0}")]
    Answer(#[from] rpc::Error),
}

/// Keeps one workload's certificate.
pub struct Keeper {
    config: IdentityConfig,
    control_plane: ControlPlane,
    id: SpiffeId,
    roots: Arc<Bundle>,
    identity: Option<Identity>,
}

impl Keeper {
    /// A keeper that has nothing yet.
    ///
    /// # Errors
    /// If a configured name or the file of roots is wrong.
    pub fn new(config: IdentityConfig, control_plane: ControlPlane) -> Result<Self, Error> {
        let trust_domain = TrustDomain::parse(&config.trust_domain)?;
        let id = SpiffeId::new(&trust_domain, &config.namespace, &config.service_account)?;
        let text = read(&config.bundle, "bundle")?;
        let roots = Arc::new(Bundle::from_pem(trust_domain, &text)?);
        Ok(Self { config, control_plane, id, roots, identity: None })
    }

    /// Gets certificates for ever, and tells `changed` each new one, and each change of roots.
    pub async fn keep(mut self, mut changed: impl FnMut(&Identity, &Arc<Bundle>)) {
        let mut rng = fastrand::Rng::new();
        let mut failures = 0;
        loop {
            match self.sign().await {
                Ok((identity, roots)) => {
                    failures = 0;
                    tracing::info!(id = %identity.id(), serial = identity.serial_hex(), "certificate received");
                    changed(&identity, &roots);
                    self.roots = roots;
                    let renew_at = identity.renew_at(rng.f64());
                    self.identity = Some(identity);
                    self.follow_roots(renew_at, &mut changed).await;
                }
                Err(error) => {
                    failures += 1;
                    let now = SystemTime::now();
                    let not_after = self.identity.as_ref().map_or(now, Identity::not_after);
                    let wait = rotate::retry_after(failures, rng.f64(), now, not_after);
                    tracing::warn!(%error, failures, ?wait, "no certificate; trying again");
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    /// Follows the roots until `until`.
    async fn follow_roots(&mut self, until: SystemTime, changed: &mut impl FnMut(&Identity, &Arc<Bundle>)) {
        let left = until.duration_since(SystemTime::now()).unwrap_or_default();
        let deadline = tokio::time::Instant::now() + left;
        while tokio::time::Instant::now() < deadline {
            // A broken stream withdraws nothing: the roots stay, and it is begun again.
            let followed = tokio::time::timeout_at(deadline, self.follow_once(changed)).await;
            if let Ok(Err(error)) = followed {
                tracing::debug!(%error, "following the roots");
            }
            let pause = tokio::time::Instant::now() + ROOTS_PAUSE;
            tokio::time::sleep_until(pause.min(deadline)).await;
        }
    }

    async fn follow_once(&mut self, changed: &mut impl FnMut(&Identity, &Arc<Bundle>)) -> Result<(), Error> {
        let mut bundles = self.bundles().await?;
        while let Some(response) = bundles.message().await.map_err(Box::new)? {
            let roots = Arc::new(Bundle::try_from(response)?);
            if roots.version() != self.roots.version() {
                tracing::info!(version = roots.version(), "roots changed");
                self.roots = roots;
                if let Some(identity) = &self.identity {
                    changed(identity, &self.roots);
                }
            }
        }
        Ok(())
    }

    async fn bundles(&self) -> Result<Streaming<rpc::BundlesResponse>, Error> {
        let channel = self.control_plane.connect(&self.roots, self.identity.as_ref()).await?;
        let request = BundlesRequest { version: self.roots.version().to_owned() };
        Ok(IdentityClient::new(channel).bundles(request).await.map_err(Box::new)?.into_inner())
    }

    /// One certificate, for a new key.
    async fn sign(&self) -> Result<(Identity, Arc<Bundle>), Error> {
        if let Some(identity) = &self.identity
            && identity.not_after() > SystemTime::now()
        {
            let channel = self.control_plane.connect(&self.roots, Some(identity)).await;
            match self.ask(channel?, None).await {
                // The one before is not believed any more: begin again with the token.
                Err(Error::Refused(status)) if status.code() == tonic::Code::Unauthenticated => {}
                answer => return answer,
            }
        }
        let token = read(&self.config.token, "token")?;
        let channel = self.control_plane.connect(&self.roots, None).await?;
        self.ask(channel, Some(&String::from_utf8_lossy(&token))).await
    }

    async fn ask(&self, channel: Channel, token: Option<&str>) -> Result<(Identity, Arc<Bundle>), Error> {
        let key = KeyRequest::generate(&self.id)?;
        let mut request = Request::new(SignRequest::new(key.csr, None));
        request.set_timeout(SIGN_TIMEOUT);
        if let Some(token) = token {
            rpc::authorize(&mut request, token).map_err(|_| Error::Token(self.config.token.clone()))?;
        }
        let response = IdentityClient::new(channel).sign(request).await.map_err(Box::new)?;
        Ok(response.into_inner().accept(key.key)?)
    }
}

fn read(path: &PathBuf, what: &'static str) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::File { what, path: path.clone(), source })
}

/// Chosen: signing takes milliseconds; a control plane that takes longer is not well.
const SIGN_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two streams of roots. Chosen: roots change rarely, and the next one is published long before it signs.
const ROOTS_PAUSE: Duration = Duration::from_secs(2);
