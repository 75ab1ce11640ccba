//! What `heddle explain` wants to know of the mesh: who a workload is, where a name leads, and the resources its sidecar would
//! get, from the one pipeline that serves them.
//!
//! [`answer`] is asked by the admin page `/explain`; [`Mesh`] is the same for a directory of manifests with nothing running. What
//! follows from the resources is the sidecar's to say, so whoever asks puts them into its tables.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use heddle_xds::resource::Kind;
use serde::{Deserialize, Serialize};

use crate::model::{ServiceName, Workload, WorkloadName};
use crate::objects::{KINDS, ObjectKey};
use crate::publish::{Publisher, Snapshot};
use crate::source::directory::{self, Loader};
use crate::translate::{self, Settings};

/// A question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Ask {
    /// Who the Pod or Workload `<namespace>/<name>` is; what keeps pods running stands for the first of them.
    Client(String),
    /// Whose address this is.
    Server(IpAddr),
    /// Where clients of a namespace get that dial a name.
    Destination {
        /// The client's namespace.
        namespace: String,
        /// `api`, `api.shop`, `api.shop.svc.cluster.local`, or an address.
        host: String,
        /// The port they dial.
        port: u16,
    },
    /// A resource in heddle-proxy's dialect.
    Resource {
        /// `<namespace>/<name>` of whose sidecar asks.
        client: String,
        /// `lds`, `rds`, `cds` or `eds`.
        kind: String,
        /// Its name.
        name: String,
    },
    /// Where objects stand, `<Kind>/<namespace>/<name>`, or with `/<rule>` behind it a rule of one.
    Places(Vec<String>),
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reply {
    /// A workload.
    Client(Client),
    /// Whose address it is; none: nobody's here.
    Server(Option<Client>),
    /// An address to dial.
    Destination(SocketAddr),
    /// A resource; none: there is no such.
    Resource(Option<Encoded>),
    /// Places as `shop.yaml:12`, as far as they are known.
    Places(BTreeMap<String, String>),
    /// There is no answer, and why.
    Unknown(String),
}

/// A workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Client {
    /// `<namespace>/<name>`.
    pub name: String,
    /// SPIFFE ID of its certificate, if it has a sidecar.
    pub identity: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether it has a sidecar.
    pub sidecar: bool,
}

/// An encoded resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Encoded {
    /// Its version.
    pub version: String,
    /// The message, in base64.
    pub bytes: String,
}

/// Why a directory of manifests cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error(transparent)]
    Directory(#[from] directory::Error),
    /// Files or objects are wrong.
    #[error("{}", .0.join("\n"))]
    Problems(Vec<String>),
}

/// A mesh from manifests, with nothing running.
#[derive(Debug)]
pub struct Mesh {
    publisher: Publisher,
    snapshot: Arc<Snapshot>,
    loader: Loader,
}

impl Mesh {
    /// Reads `directory`.
    ///
    /// # Errors
    /// If any of it is wrong: half a mesh would explain nothing.
    pub fn read(directory: &Path, settings: &Settings) -> Result<Self, Error> {
        let mut loader = Loader::new(directory);
        let read = loader.reload()?;
        if !read.problems.is_empty() {
            return Err(Error::Problems(read.problems.iter().map(ToString::to_string).collect()));
        }
        let publisher = Publisher::default();
        publisher.publish(translate::all(&read.objects, settings), None, Instant::now());
        // Just published.
        let snapshot = publisher.snapshot().ok_or_else(|| Error::Problems(vec!["nothing was read".to_owned()]))?;
        Ok(Self { publisher, snapshot, loader })
    }

    /// Answers a question.
    pub fn answer(&self, ask: &Ask) -> Reply {
        match ask {
            Ask::Places(names) => Reply::Places(places(&self.loader, names)),
            other => answer(&self.publisher, &self.snapshot, other),
        }
    }
}

/// Answers a question about the mesh as `snapshot` has it; of places nothing is known here.
pub fn answer(publisher: &Publisher, snapshot: &Snapshot, ask: &Ask) -> Reply {
    let model = snapshot.model();
    match ask {
        Ask::Client(name) => {
            client(snapshot, name).map_or_else(Reply::Unknown, |found| Reply::Client(described(found)))
        }
        Ask::Server(address) => {
            let owner = model.workloads.values().find(|workload| workload.addresses.contains(address));
            Reply::Server(owner.map(|workload| described(workload)))
        }
        Ask::Destination { namespace, host, port } => {
            destination(snapshot, namespace, host, *port).map_or_else(Reply::Unknown, Reply::Destination)
        }
        Ask::Resource { client, kind, name } => {
            let Some(kind) = Kind::DELIVERY.into_iter().find(|known| known.short_name() == kind) else {
                return Reply::Unknown(format!("kind `{kind}`: must be lds, rds, cds or eds"));
            };
            let Some(client) = split(client) else {
                return Reply::Unknown(format!("client `{client}`: must be <namespace>/<name>"));
            };
            let found = publisher.heddle(snapshot, &client, kind, name).map(|published| published.resource);
            Reply::Resource(found.map(|resource| Encoded {
                version: resource.version.to_string(),
                bytes: STANDARD.encode(&resource.bytes),
            }))
        }
        Ask::Places(_) => Reply::Places(BTreeMap::new()),
    }
}

/// Where these objects stand in the files of `directory` as they are now; without one nobody knows.
pub fn places_in(directory: Option<&Path>, names: &[String]) -> BTreeMap<String, String> {
    let Some(directory) = directory else { return BTreeMap::new() };
    let mut loader = Loader::new(directory);
    // Of what cannot be read no place is known.
    if loader.reload().is_err() {
        return BTreeMap::new();
    }
    places(&loader, names)
}

fn places(loader: &Loader, names: &[String]) -> BTreeMap<String, String> {
    let place = |name: &String| {
        let mut parts = name.splitn(4, '/');
        let (kind, namespace, object) = (parts.next()?, parts.next()?, parts.next()?);
        let kind = KINDS.into_iter().find(|known| known.name() == kind)?;
        let key = ObjectKey { kind, namespace: namespace.into(), name: object.into() };
        let place = loader.place(&key, parts.next())?;
        Some((name.clone(), format!("{}:{}", place.file.display(), place.line)))
    };
    names.iter().filter_map(place).collect()
}

fn split(name: &str) -> Option<WorkloadName> {
    let (namespace, name) = name.split_once('/')?;
    (!namespace.is_empty() && !name.is_empty()).then(|| WorkloadName::new(namespace, name))
}

fn client<'s>(snapshot: &'s Snapshot, given: &str) -> Result<&'s Workload, String> {
    let Some(name) = split(given) else {
        return Err(format!("workload `{given}`: must be <namespace>/<name>, as shop/web"));
    };
    let workloads = &snapshot.model().workloads;
    let kept = || workloads.values().find(|workload| *workload.known_as() == name);
    if let Some(found) = workloads.get(&name).or_else(kept) {
        return Ok(found);
    }
    let there: BTreeSet<_> =
        workloads.keys().filter(|known| known.namespace == name.namespace).map(|known| &*known.name).collect();
    let there: Vec<_> = there.into_iter().take(MOST_NAMED).collect();
    let hint = if there.is_empty() {
        format!("namespace {} has none", name.namespace)
    } else {
        format!("namespace {} has {}", name.namespace, there.join(", "))
    };
    Err(format!("workload `{given}`: no Pod or Workload of that name has an address; {hint}"))
}

fn described(workload: &Workload) -> Client {
    Client {
        name: workload.name.to_string(),
        identity: workload.identity.as_str().to_owned(),
        addresses: workload.addresses.clone(),
        sidecar: workload.inbound.is_some(),
    }
}

/// As DNS in a cluster would have it: a Service's address, or that of an endpoint where the Service has none.
fn destination(snapshot: &Snapshot, namespace: &str, host: &str, port: u16) -> Result<SocketAddr, String> {
    if let Ok(ip) = host.parse() {
        return Ok(SocketAddr::new(ip, port));
    }
    let mut labels = host.split('.');
    let (name, of) = (labels.next().unwrap_or_default(), labels.next().unwrap_or(namespace));
    let in_mesh = labels.next().is_none_or(|label| label == "svc");
    let service = snapshot.model().services.get(&ServiceName::new(of, name)).filter(|_| in_mesh);
    let Some(service) = service else {
        return Err(format!(
            "host `{host}`: there is no Service {of}/{name}; of another host give the address, --address ADDRESS:PORT"
        ));
    };
    let Some(listener) = service.listeners.iter().find(|listener| listener.port == port) else {
        let ports: Vec<_> = service.listeners.iter().map(|listener| listener.port.to_string()).collect();
        return Err(format!("port {port}: Service {of}/{name} has {}", ports.join(", ")));
    };
    let headless = || {
        let endpoints = service.endpoints.values().flat_map(|endpoints| &endpoints.endpoints);
        endpoints.map(|endpoint| SocketAddr::new(endpoint.address.ip(), port)).next()
    };
    let address = listener.addresses.first().copied().or_else(headless);
    address.ok_or_else(|| format!("host `{host}`: Service {of}/{name} has neither an address nor an endpoint"))
}

/// Names of workloads in an error.
const MOST_NAMED: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Egress, Mesh as MeshFacts};

    const SHOP: &str = "\
apiVersion: v1
kind: Namespace
metadata: { name: shop }
---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: { name: web-0, namespace: shop, labels: { app: web } }
spec: { addresses: [10.0.0.2], serviceAccountName: web, ports: [{ port: 8080 }] }
---
apiVersion: v1
kind: Service
metadata: { name: web, namespace: shop }
spec: { clusterIP: 10.96.0.1, selector: { app: web }, ports: [{ port: 80, targetPort: 8080 }] }
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: cart, namespace: shop }
spec:
  parentRefs: [{ group: \"\", kind: Service, name: web, port: 80 }]
  rules:
  - matches: [{ path: { type: PathPrefix, value: /cart } }]
    backendRefs: [{ name: web, port: 80 }]
  - backendRefs: [{ name: web, port: 80 }]
    name: rest
";

    fn mesh(text: &str) -> Result<Mesh, Error> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("shop.yaml"), text).unwrap();
        let settings = Settings {
            trust_domain: "cluster.local".into(),
            root_namespace: "heddle-system".into(),
            mesh: MeshFacts { cidrs: Vec::new(), egress: Egress::Allow },
        };
        Mesh::read(directory.path(), &settings)
    }

    #[test]
    fn a_name_leads_where_dns_would() {
        let mesh = mesh(SHOP).unwrap();
        let ask = |namespace: &str, host: &str, port| {
            mesh.answer(&Ask::Destination { namespace: namespace.into(), host: host.into(), port })
        };
        let vip = Reply::Destination(([10, 96, 0, 1], 80).into());
        assert_eq!(ask("shop", "web", 80), vip);
        assert_eq!(ask("other", "web.shop.svc.cluster.local", 80), vip);
        let unknown = |reply| match reply {
            Reply::Unknown(text) => text,
            other => panic!("{other:?}"),
        };
        assert!(unknown(ask("other", "web", 80)).starts_with("host `web`: there is no Service other/web"));
        assert_eq!(unknown(ask("shop", "web", 81)), "port 81: Service shop/web has 80");
    }

    #[test]
    fn rules_are_found_in_their_files_by_place_and_by_name() {
        let mesh = mesh(SHOP).unwrap();
        let names = ["HTTPRoute/shop/cart", "HTTPRoute/shop/cart/0", "HTTPRoute/shop/cart/rest", "default", "Pod/a/b"];
        let names: Vec<_> = names.map(str::to_owned).into();

        let Reply::Places(places) = mesh.answer(&Ask::Places(names)) else { panic!() };

        let told: Vec<_> = places.iter().map(|(name, place)| (name.as_str(), place.as_str())).collect();
        let rule = |line: u64| format!("shop.yaml:{line}");
        let (object, first, rest) = (rule(15), rule(21), rule(23));
        assert_eq!(
            told,
            [
                ("HTTPRoute/shop/cart", object.as_str()),
                ("HTTPRoute/shop/cart/0", first.as_str()),
                ("HTTPRoute/shop/cart/rest", rest.as_str())
            ]
        );
    }

    #[test]
    fn a_workload_that_is_not_there_is_answered_with_those_that_are() {
        let mesh = mesh(SHOP).unwrap();
        let ask = |name: &str| mesh.answer(&Ask::Client(name.into()));
        assert!(matches!(ask("shop/web-0"), Reply::Client(client) if client.sidecar));
        let Reply::Unknown(text) = ask("shop/wbe-0") else { panic!() };
        assert!(text.ends_with("namespace shop has web-0"), "{text}");
        let Reply::Unknown(text) = ask("web-0") else { panic!() };
        assert_eq!(text, "workload `web-0`: must be <namespace>/<name>, as shop/web");
    }

    #[test]
    fn half_a_mesh_explains_nothing() {
        let Err(Error::Problems(problems)) = mesh(&SHOP.replace("PathPrefix", "Prefix")) else { panic!() };
        assert!(problems[0].starts_with("shop.yaml: "), "{problems:?}");
    }
}
