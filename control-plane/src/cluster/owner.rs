//! To whom belongs what the control plane makes: a ClusterRole of its installation. Once that is deleted, the API server's garbage
//! collector deletes the rest, in every namespace, so nothing is left of an installation that is taken away.
//!
//! A ClusterRole, because an object without namespace may own objects of every namespace, and because nobody deletes it in a hurry, as
//! is done with webhook configurations. What a user brought is the user's.

use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{Api, Client, Resource};

use super::{FORBIDDEN, NOT_FOUND, backoff, refused_with};

/// The owner cannot be one.
#[derive(Debug, thiserror::Error)]
#[error(
    "--owner {name}: {error}; name a ClusterRole that is there and that this service account may get, or leave it out"
)]
pub struct Error {
    /// As given.
    name: String,
    /// What the API server says.
    error: Box<kube::Error>,
}

/// The ClusterRole `name` as an owner. Waits for an API server that is away.
///
/// # Errors
/// If it is not there, or may not be read.
pub async fn find(client: Client, name: &str) -> Result<OwnerReference, Error> {
    let api: Api<ClusterRole> = Api::all(client);
    let mut failures = 0;
    loop {
        let error = match api.get_metadata(name).await {
            Ok(found) => return Ok(reference(name, found.metadata.uid.unwrap_or_default())),
            Err(error) => error,
        };
        if refused_with(&error, NOT_FOUND) || refused_with(&error, FORBIDDEN) {
            return Err(Error { name: name.to_owned(), error: Box::new(error) });
        }
        if failures == 0 {
            tracing::warn!(name, %error, "the API server does not tell the owner; it is asked again");
        }
        tokio::time::sleep(backoff(failures, fastrand::f64())).await;
        failures += 1;
    }
}

fn reference(name: &str, uid: String) -> OwnerReference {
    OwnerReference {
        api_version: ClusterRole::api_version(&()).into_owned(),
        kind: ClusterRole::kind(&()).into_owned(),
        name: name.to_owned(),
        uid,
        ..OwnerReference::default()
    }
}

/// Whether an object belongs to an owner of the same name that is gone: it is about to be deleted with that one.
pub(super) fn is_orphan(metadata: &ObjectMeta, owner: &OwnerReference) -> bool {
    let mut owners = metadata.owner_references.iter().flatten();
    owners.any(|other| other.kind == owner.kind && other.name == owner.name && other.uid != owner.uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_former_installation_made_is_told_from_what_a_user_brought() {
        let (then, now) = (reference("heddle", "1".to_owned()), reference("heddle", "2".to_owned()));
        let of = |owners: &[&OwnerReference]| ObjectMeta {
            owner_references: Some(owners.iter().map(|owner| (*owner).clone()).collect()),
            ..ObjectMeta::default()
        };
        assert!(is_orphan(&of(&[&then]), &now));
        assert!(!is_orphan(&of(&[&now]), &now));
        assert!(!is_orphan(&of(&[&reference("other", "1".to_owned())]), &now));
        assert!(!is_orphan(&ObjectMeta::default(), &now));
    }
}
