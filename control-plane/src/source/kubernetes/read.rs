//! One object as the API server writes it, read as our type or named with what is wrong with it.
//!
//! Listings are read one object at a time and each is cut down at once, so that what nobody needs is never held for a whole
//! page. An object that cannot be read is a value like any other: it must not stop the listing or the watch it came in.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use gateway_api::experimental::grpcroutes::GrpcRoute;
use gateway_api::experimental::httproutes::HttpRoute;
use gateway_api::experimental::referencegrants::ReferenceGrant;
use gateway_api::experimental::tcproutes::TcpRoute;
use gateway_api::tlsroutes::TlsRoute;
use k8s_openapi::api::core::v1::{Namespace, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::core::{ApiResource, DynamicResourceScope};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::api::{AuthorizationPolicy, FaultInjection, MeshTlsPolicy, RateLimitPolicy, TrafficPolicy, Workload};
use crate::objects::{Kind, Object, ObjectKey, Pod, Route};
use crate::source::Observed;

/// A type the API server's JSON is read as.
pub(super) trait Readable: DeserializeOwned + Send + 'static {
    /// What it is to the mesh.
    const KIND: Kind;
    /// Whether its status is written here, so that it must be known what stands there.
    const HAS_STATUS: bool = false;

    /// The object, without what the mesh has no use for: what is left out cannot look like a change.
    fn into_object(self) -> Result<Object, Unreadable>;
}

/// What was written for one object of type `K`.
pub(super) struct Read<K> {
    /// Name, namespace and resource version.
    metadata: ObjectMeta,
    /// What it says.
    object: Result<Object, Unreadable>,
    /// What stands in its status, if that is written here.
    observed: Option<Observed>,
    of: PhantomData<fn() -> K>,
}

/// Why an object cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unreadable {
    /// As `spec.ports[0].port`; empty where it is the object as a whole.
    pub(super) field: String,
    /// What is wrong there.
    pub(super) reason: String,
}

impl<K: Readable> Read<K> {
    /// Which object it is.
    pub(super) fn key(&self) -> ObjectKey {
        ObjectKey::of(K::KIND, &self.metadata)
    }

    /// What it says, and what stands in its status.
    pub(super) fn into_parts(self) -> (Result<Object, Unreadable>, Option<Observed>) {
        (self.object, self.observed)
    }
}

impl<'de, K: Readable> Deserialize<'de> for Read<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Works because the API server writes an event's type before its object; serde would buffer it otherwise.
        let written = Box::<RawValue>::deserialize(deserializer)?;
        let Named { metadata } = serde_json::from_str(written.get()).map_err(D::Error::custom)?;
        let mut json = serde_json::Deserializer::from_str(written.get());
        let object = serde_path_to_error::deserialize::<_, K>(&mut json).map_err(|error| {
            let field = error.path().to_string();
            let field = if field == "." { String::new() } else { field };
            Unreadable { field, reason: without_position(&error.into_inner().to_string()).to_owned() }
        });
        let observed = if K::HAS_STATUS {
            let Stated { status } = serde_json::from_str(written.get()).map_err(D::Error::custom)?;
            Some(Observed { resource_version: metadata.resource_version.clone().unwrap_or_default(), status })
        } else {
            None
        };
        let metadata = ObjectMeta {
            name: metadata.name,
            namespace: metadata.namespace,
            resource_version: metadata.resource_version,
            ..ObjectMeta::default()
        };
        Ok(Self { metadata, object: object.and_then(K::into_object), observed, of: PhantomData })
    }
}

/// What every object has.
#[derive(Deserialize)]
struct Named {
    #[serde(default)]
    metadata: Metadata,
}

/// What some have.
#[derive(Deserialize)]
struct Stated {
    #[serde(default)]
    status: serde_json::Value,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    resource_version: Option<String>,
}

/// Nobody sees the line it came in.
fn without_position(text: &str) -> &str {
    text.rsplit_once(" at line ").map_or(text, |(text, _)| text)
}

impl<K: Readable> Resource for Read<K> {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(served: &ApiResource) -> Cow<'_, str> {
        served.kind.as_str().into()
    }

    fn group(served: &ApiResource) -> Cow<'_, str> {
        served.group.as_str().into()
    }

    fn version(served: &ApiResource) -> Cow<'_, str> {
        served.version.as_str().into()
    }

    fn plural(served: &ApiResource) -> Cow<'_, str> {
        served.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl<K> Clone for Read<K> {
    fn clone(&self) -> Self {
        Self {
            metadata: self.metadata.clone(),
            object: self.object.clone(),
            observed: self.observed.clone(),
            of: PhantomData,
        }
    }
}

impl<K> fmt::Debug for Read<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Read").field("metadata", &self.metadata).field("object", &self.object).finish_non_exhaustive()
    }
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.reason)
    }
}

/// Leaves what says who somebody is, and of annotations those that somebody here could mean.
fn prune(metadata: &mut ObjectMeta) {
    metadata.managed_fields = None;
    metadata.owner_references = None;
    metadata.finalizers = None;
    metadata.self_link = None;
    metadata.generate_name = None;
    metadata.resource_version = None;
    if let Some(annotations) = &mut metadata.annotations {
        annotations.retain(|name, _| KEPT_ANNOTATIONS.iter().any(|prefix| name.starts_with(prefix)));
        if annotations.is_empty() {
            metadata.annotations = None;
        }
    }
}

/// Our own, and what users tell about a Service. The rest is others' notes, some written every few seconds.
const KEPT_ANNOTATIONS: [&str; 2] = ["heddle.dev/", "service.kubernetes.io/"];

impl Readable for Namespace {
    const KIND: Kind = Kind::Namespace;

    fn into_object(mut self) -> Result<Object, Unreadable> {
        prune(&mut self.metadata);
        (self.spec, self.status) = (None, None);
        Ok(Object::Namespace(Arc::new(self)))
    }
}

impl Readable for ServiceAccount {
    const KIND: Kind = Kind::ServiceAccount;

    fn into_object(self) -> Result<Object, Unreadable> {
        let mut account = Self { metadata: self.metadata, ..Self::default() };
        prune(&mut account.metadata);
        Ok(Object::ServiceAccount(Arc::new(account)))
    }
}

impl Readable for Service {
    const KIND: Kind = Kind::Service;

    fn into_object(mut self) -> Result<Object, Unreadable> {
        prune(&mut self.metadata);
        self.status = None;
        Ok(Object::Service(Arc::new(self)))
    }
}

impl Readable for Pod {
    const KIND: Kind = Kind::Pod;

    fn into_object(self) -> Result<Object, Unreadable> {
        Ok(Object::Pod(Arc::new(self)))
    }
}

impl Readable for EndpointSlice {
    const KIND: Kind = Kind::EndpointSlice;

    fn into_object(mut self) -> Result<Object, Unreadable> {
        prune(&mut self.metadata);
        // Every change of any endpoint is a new one, the ones that mean nothing too.
        self.metadata.generation = None;
        for endpoint in &mut self.endpoints {
            endpoint.deprecated_topology = None;
            if let Some(target) = &mut endpoint.target_ref {
                (target.uid, target.resource_version, target.namespace) = (None, None, None);
            }
        }
        Ok(Object::EndpointSlice(Arc::new(self)))
    }
}

impl Readable for HttpRoute {
    const KIND: Kind = Kind::HttpRoute;
    const HAS_STATUS: bool = true;

    fn into_object(mut self) -> Result<Object, Unreadable> {
        prune(&mut self.metadata);
        route(Route::from_http(self))
    }
}

impl Readable for GrpcRoute {
    const KIND: Kind = Kind::GrpcRoute;
    const HAS_STATUS: bool = true;

    fn into_object(mut self) -> Result<Object, Unreadable> {
        prune(&mut self.metadata);
        route(Route::from_grpc(self))
    }
}

impl Readable for TlsRoute {
    const KIND: Kind = Kind::TlsRoute;
    const HAS_STATUS: bool = true;

    fn into_object(mut self) -> Result<Object, Unreadable> {
        prune(&mut self.metadata);
        route(Route::from_tls(self))
    }
}

impl Readable for TcpRoute {
    const KIND: Kind = Kind::TcpRoute;
    const HAS_STATUS: bool = true;

    fn into_object(mut self) -> Result<Object, Unreadable> {
        prune(&mut self.metadata);
        route(Route::from_tcp(self))
    }
}

fn route(route: serde_json::Result<Route>) -> Result<Object, Unreadable> {
    route.map(Object::from).map_err(|error| Unreadable { field: "spec".to_owned(), reason: error.to_string() })
}

impl Readable for ReferenceGrant {
    const KIND: Kind = Kind::ReferenceGrant;

    fn into_object(mut self) -> Result<Object, Unreadable> {
        prune(&mut self.metadata);
        Ok(Object::ReferenceGrant(Arc::new(self)))
    }
}

/// Our own kinds: what their checks refuse is said in their status, so it is no reason to leave them out here.
macro_rules! own_kind {
    ($kind:ident) => {
        impl Readable for $kind {
            const KIND: Kind = Kind::$kind;
            const HAS_STATUS: bool = true;

            fn into_object(mut self) -> Result<Object, Unreadable> {
                prune(&mut self.metadata);
                self.status = None;
                Ok(Object::$kind(Arc::new(self)))
            }
        }
    };
}

own_kind!(Workload);
own_kind!(TrafficPolicy);
own_kind!(FaultInjection);
own_kind!(AuthorizationPolicy);
own_kind!(RateLimitPolicy);
own_kind!(MeshTlsPolicy);

#[cfg(test)]
mod tests {
    use kube::core::{ObjectList, WatchEvent};

    use super::*;

    /// As a page of a listing, in which objects of built-in kinds do not say what they are.
    const PAGE: &str = r#"{"kind":"ServiceList","apiVersion":"v1","metadata":{"resourceVersion":"9"},"items":[
        {"metadata":{"name":"api","namespace":"shop","resourceVersion":"5","managedFields":[{"manager":"kubectl"}],
         "annotations":{"kubectl.kubernetes.io/last-applied-configuration":"{}","heddle.dev/x":"y"}},
         "spec":{"clusterIP":"10.96.0.1","ports":[{"port":80}]},"status":{"loadBalancer":{}}},
        {"metadata":{"name":"bad","namespace":"shop","resourceVersion":"6"},"spec":{"ports":[{"port":80},{"port":"x"}]}}
    ]}"#;

    #[test]
    fn one_unreadable_object_of_a_page_is_named_and_the_others_are_read() {
        let page: ObjectList<Read<Service>> = serde_json::from_str(PAGE).unwrap();
        let [good, bad] = page.items.try_into().unwrap();

        assert_eq!(
            (good.key().to_string(), good.meta().resource_version.as_deref()),
            ("Service shop/api".into(), Some("5"))
        );
        let Ok(Object::Service(service)) = good.into_parts().0 else { panic!("unreadable") };
        assert_eq!((&service.status, &service.metadata.managed_fields), (&None, &None));
        assert_eq!(service.metadata.resource_version, None);
        assert_eq!(service.metadata.annotations.as_ref().unwrap().keys().collect::<Vec<_>>(), ["heddle.dev/x"]);

        assert_eq!(bad.key().to_string(), "Service shop/bad");
        let error = bad.into_parts().0.unwrap_err();
        assert_eq!(error.to_string(), "spec.ports[1].port: invalid type: string \"x\", expected i32");
    }

    #[test]
    fn an_event_with_an_unreadable_object_is_an_event() {
        let event = r#"{"type":"MODIFIED","object":{"apiVersion":"heddle.dev/v1alpha1","kind":"TrafficPolicy",
            "metadata":{"name":"p","namespace":"shop","resourceVersion":"7"},"spec":{"targetRefs":"all"},
            "status":{"conditions":[]}}}"#;
        let WatchEvent::Modified(read) = serde_json::from_str::<WatchEvent<Read<TrafficPolicy>>>(event).unwrap() else {
            panic!("another event");
        };
        let (object, observed) = read.into_parts();
        assert_eq!(object.unwrap_err().field, "spec.targetRefs");
        let observed = observed.unwrap();
        assert_eq!((&*observed.resource_version, observed.status), ("7", serde_json::json!({ "conditions": [] })));
    }

    #[test]
    fn a_grant_of_the_older_version_is_read_as_one_of_the_newer() {
        let written = r#"{"apiVersion":"gateway.networking.k8s.io/v1beta1","kind":"ReferenceGrant",
            "metadata":{"name":"g","namespace":"shop"},"spec":{"from":[],"to":[]}}"#;
        let read: Read<ReferenceGrant> = serde_json::from_str(written).unwrap();
        assert!(read.into_parts().0.is_ok());
    }
}
