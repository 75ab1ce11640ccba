//! Whom the mesh is asked: manifests in a directory, or the admin port of a control plane.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use clap::Args;
use heddle_certs::identity::TrustDomain;
use heddle_control_plane::config::{DEFAULT_TRUST_DOMAIN, Egress};
use heddle_control_plane::explain::{self, Ask, Client, Reply};
use heddle_control_plane::model;
use heddle_control_plane::translate::{DEFAULT_ROOT_NAMESPACE, Settings};
use heddle_xds::delta::client::Added;
use heddle_xds::resource::Kind;
use ipnet::IpNet;

use super::sidecar::post;

/// What a mesh of manifests is set to, as the control plane's flags of the same names set it.
#[derive(Debug, Args)]
pub struct MeshArgs {
    /// With manifests: the trust domain of all identities.
    #[arg(long, value_name = "DOMAIN", default_value = DEFAULT_TRUST_DOMAIN)]
    trust_domain: String,
    /// With manifests: the namespace whose policies may hold for the whole mesh.
    #[arg(long, value_name = "NAMESPACE", default_value = DEFAULT_ROOT_NAMESPACE)]
    root_namespace: String,
    /// With manifests: networks of the mesh; may be given more than once.
    #[arg(long = "mesh-cidr", value_name = "CIDR", value_delimiter = ',')]
    mesh_cidrs: Vec<IpNet>,
    /// With manifests: whether hosts outside the mesh may be reached.
    #[arg(long, value_enum, default_value_t = Egress::Allow)]
    egress: Egress,
}

impl MeshArgs {
    fn settings(&self) -> anyhow::Result<Settings> {
        TrustDomain::parse(&self.trust_domain).with_context(|| format!("--trust-domain {}", self.trust_domain))?;
        let egress = match self.egress {
            Egress::Allow => model::Egress::Allow,
            Egress::Deny => model::Egress::Deny,
        };
        Ok(Settings {
            trust_domain: self.trust_domain.clone(),
            root_namespace: self.root_namespace.clone(),
            mesh: model::Mesh { cidrs: self.mesh_cidrs.clone(), egress },
        })
    }
}

/// Whom the mesh is asked.
#[derive(Debug)]
pub enum Mesh {
    /// Manifests, with nothing running.
    Manifests(Box<explain::Mesh>),
    /// The admin port of a control plane.
    ControlPlane(SocketAddr),
}

impl Mesh {
    /// The mesh that the manifests in `directory` describe.
    ///
    /// # Errors
    /// If one of them is wrong.
    pub fn manifests(directory: &Path, args: &MeshArgs) -> anyhow::Result<Self> {
        let mesh = explain::Mesh::read(directory, &args.settings()?);
        Ok(Self::Manifests(Box::new(mesh.with_context(|| directory.display().to_string())?)))
    }

    /// The mesh of the control plane whose admin port is at `address`.
    pub fn control_plane(address: SocketAddr) -> Self {
        Self::ControlPlane(address)
    }

    /// A workload by its name, or by that of what keeps it running.
    ///
    /// # Errors
    /// If there is none, with those that are.
    pub fn client(&self, name: &str) -> anyhow::Result<Client> {
        match self.ask(&Ask::Client(name.to_owned()))? {
            Reply::Client(client) => Ok(client),
            other => bail!(unexpected(&other)),
        }
    }

    /// Whose address this is.
    ///
    /// # Errors
    /// If the control plane cannot be asked.
    pub fn server(&self, address: IpAddr) -> anyhow::Result<Option<Client>> {
        match self.ask(&Ask::Server(address))? {
            Reply::Server(server) => Ok(server),
            other => bail!(unexpected(&other)),
        }
    }

    /// Where clients in `namespace` get that dial `host`.
    ///
    /// # Errors
    /// If nothing is known of it.
    pub fn destination(&self, namespace: &str, host: &str, port: u16) -> anyhow::Result<SocketAddr> {
        let ask = Ask::Destination { namespace: namespace.to_owned(), host: host.to_owned(), port };
        match self.ask(&ask)? {
            Reply::Destination(address) => Ok(address),
            other => bail!(unexpected(&other)),
        }
    }

    /// What the sidecar of `client` is told under a name; `None`: there is no such.
    ///
    /// # Errors
    /// If the control plane cannot be asked.
    pub fn resource(&self, client: &str, kind: Kind, name: &str) -> anyhow::Result<Option<Added>> {
        let (client, kind) = (client.to_owned(), kind.short_name().to_owned());
        let encoded = match self.ask(&Ask::Resource { client, kind, name: name.to_owned() })? {
            Reply::Resource(None) => return Ok(None),
            Reply::Resource(Some(encoded)) => encoded,
            other => bail!(unexpected(&other)),
        };
        let bytes = STANDARD.decode(encoded.bytes).context("the control plane's resource is no base64")?;
        Ok(Some(Added { name: name.into(), version: encoded.version.into(), bytes: Bytes::from(bytes) }))
    }

    /// Where objects stand, as far as anybody knows.
    ///
    /// # Errors
    /// If the control plane cannot be asked.
    pub fn places(&self, names: Vec<String>) -> anyhow::Result<BTreeMap<String, String>> {
        match self.ask(&Ask::Places(names))? {
            Reply::Places(places) => Ok(places),
            other => bail!(unexpected(&other)),
        }
    }

    fn ask(&self, ask: &Ask) -> anyhow::Result<Reply> {
        let reply = match self {
            Self::Manifests(mesh) => mesh.answer(ask),
            Self::ControlPlane(address) => {
                let body = post(*address, &serde_json::to_string(&[ask])?)
                    .with_context(|| format!("--control-plane {address}"))?;
                let replies: Vec<Reply> =
                    serde_json::from_str(&body).with_context(|| format!("--control-plane {address}: {body}"))?;
                replies.into_iter().next().with_context(|| format!("--control-plane {address}: no answer"))?
            }
        };
        match reply {
            Reply::Unknown(text) => bail!(text),
            reply => Ok(reply),
        }
    }
}

fn unexpected(reply: &Reply) -> String {
    format!("the control plane answered another question: {reply:?}; is it of the same version?")
}
