//! The roots in the API server's webhook configurations: by them it believes this control plane. Every replica keeps them
//! true, since all write the same; a change by others, a chart's upgrade say, is seen and mended.

use std::time::Duration;

use futures::StreamExt;
use json_patch::Patch as JsonPatch;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher::{Event, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::watch;

use crate::authority::Current;
use crate::cluster::{Clients, FIELD_MANAGER, watch_config};
use crate::metrics::Metrics;
use crate::objects::name_of;

/// A kind of webhook configuration.
trait Configuration: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static {
    /// Ours.
    const NAME: &'static str;

    /// The webhooks' names with how each is called.
    fn webhooks(&self) -> Vec<(&str, &WebhookClientConfig)>;
}

impl Configuration for MutatingWebhookConfiguration {
    const NAME: &'static str = INJECTOR;

    fn webhooks(&self) -> Vec<(&str, &WebhookClientConfig)> {
        let all = self.webhooks.iter().flatten();
        all.map(|webhook| (webhook.name.as_str(), &webhook.client_config)).collect()
    }
}

impl Configuration for ValidatingWebhookConfiguration {
    const NAME: &'static str = VALIDATOR;

    fn webhooks(&self) -> Vec<(&str, &WebhookClientConfig)> {
        let all = self.webhooks.iter().flatten();
        all.map(|webhook| (webhook.name.as_str(), &webhook.client_config)).collect()
    }
}

/// Keeps both configurations true where they name a Service in `namespace`: another control plane's webhooks believe that one.
/// Never ends.
pub async fn keep(clients: Clients, namespace: &str, current: watch::Receiver<Current>, metrics: Metrics) {
    let mutating = keep_one::<MutatingWebhookConfiguration>(&clients, namespace, current.clone(), metrics.clone());
    let validating = keep_one::<ValidatingWebhookConfiguration>(&clients, namespace, current, metrics);
    tokio::join!(mutating, validating);
}

async fn keep_one<C: Configuration>(
    clients: &Clients,
    namespace: &str,
    mut current: watch::Receiver<Current>,
    metrics: Metrics,
) {
    let config = watch_config().fields(&format!("metadata.name={}", C::NAME));
    let mut events = std::pin::pin!(watcher(Api::<C>::all(clients.watches.clone()), config));
    let api = Api::<C>::all(clients.calls.clone());
    let mut found: Option<C> = None;
    loop {
        let bundle = current.borrow_and_update().bundle.to_pem().into_bytes();
        let mut wait = CHECK_AGAIN;
        if let Some(patch) =
            found.as_ref().map(|found| repair(found, namespace, &bundle)).filter(|patch| !patch.0.is_empty())
        {
            match write(&api, patch, &metrics).await {
                // What the watch will say too.
                Some(mended) => found = Some(mended),
                None => wait = RETRY_AFTER,
            }
        }
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(Event::Apply(object) | Event::InitApply(object))) => found = Some(object),
                Some(Ok(Event::Delete(_))) => found = None,
                Some(Ok(Event::Init | Event::InitDone)) => {}
                Some(Err(error)) => {
                    tracing::warn!(%error, "{} {} cannot be watched", C::kind(&()), C::NAME);
                    // The watcher itself does not wait before it tries again.
                    tokio::time::sleep(RETRY_AFTER).await;
                }
                // A watcher has no end.
                None => return,
            },
            Ok(()) = current.changed() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

async fn write<C: Configuration>(api: &Api<C>, patch: JsonPatch, metrics: &Metrics) -> Option<C> {
    let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    let patched = tokio::time::timeout(WRITE_TIMEOUT, api.patch(C::NAME, &parameters, &Patch::Json::<()>(patch))).await;
    let error = match patched {
        Ok(Ok(object)) => {
            metrics.ca_bundle_written(true);
            tracing::info!("{} {} has the mesh's roots", C::kind(&()), name_of(object.meta()));
            return Some(object);
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {WRITE_TIMEOUT:?}"),
    };
    metrics.ca_bundle_written(false);
    tracing::warn!(error, "{} {} lacks the mesh's roots; it is tried again", C::kind(&()), C::NAME);
    None
}

/// What makes every webhook that calls a Service in `namespace` believe `bundle`; nothing else is touched, and only where the list
/// is still the one that was seen.
fn repair<C: Configuration>(found: &C, namespace: &str, bundle: &[u8]) -> JsonPatch {
    let wrong = found.webhooks().into_iter().enumerate().filter(|(_, (_, call))| {
        let ours = call.service.as_ref().is_some_and(|service| service.namespace == namespace);
        ours && call.ca_bundle.as_ref().is_none_or(|has| has.0 != bundle)
    });
    let operations = wrong.flat_map(|(i, (name, _))| {
        [
            json!({ "op": "test", "path": format!("/webhooks/{i}/name"), "value": name }),
            json!({
                "op": "add",
                "path": format!("/webhooks/{i}/clientConfig/caBundle"),
                "value": ByteString(bundle.to_vec()),
            }),
        ]
    });
    // Every operation is one, as it stands above.
    serde_json::from_value(operations.collect()).unwrap_or_default()
}

/// The configuration by which pods are sent here.
pub const INJECTOR: &str = "heddle-injector";
/// The one by which policies and routes are.
pub const VALIDATOR: &str = "heddle-validator";
/// Until it is looked again without any event. Chosen: watches tell; this is for what they might not.
const CHECK_AGAIN: Duration = Duration::from_secs(300);
/// After a failure. Chosen: pods of opted-in namespaces may be waiting for it.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// For one patch.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use k8s_openapi::api::admissionregistration::v1::{MutatingWebhook, ServiceReference};

    use super::*;

    fn configuration(webhooks: &[(&str, Option<&str>)]) -> MutatingWebhookConfiguration {
        let service = ServiceReference { namespace: "ours".to_owned(), ..ServiceReference::default() };
        let webhook = |(name, bundle): &(&str, Option<&str>)| MutatingWebhook {
            name: (*name).to_owned(),
            client_config: WebhookClientConfig {
                ca_bundle: bundle.map(|bundle| ByteString(bundle.into())),
                service: Some(service.clone()),
                ..WebhookClientConfig::default()
            },
            ..MutatingWebhook::default()
        };
        let webhooks = Some(webhooks.iter().map(webhook).collect());
        MutatingWebhookConfiguration { webhooks, ..MutatingWebhookConfiguration::default() }
    }

    #[test]
    fn webhooks_without_or_with_other_roots_are_mended_and_no_others() {
        let found = configuration(&[("a", None), ("b", Some("new")), ("c", Some("old"))]);
        let patch = serde_json::to_value(repair(&found, "ours", b"new")).unwrap();
        assert_eq!(
            patch,
            json!([
                { "op": "test", "path": "/webhooks/0/name", "value": "a" },
                { "op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": "bmV3" },
                { "op": "test", "path": "/webhooks/2/name", "value": "c" },
                { "op": "add", "path": "/webhooks/2/clientConfig/caBundle", "value": "bmV3" },
            ])
        );
        assert_eq!(repair(&configuration(&[("b", Some("new"))]), "ours", b"new").0.len(), 0);
        assert_eq!(repair(&found, "another", b"new").0.len(), 0, "another control plane's");
        assert_eq!(repair(&MutatingWebhookConfiguration::default(), "ours", b"new").0.len(), 0);
    }
}
