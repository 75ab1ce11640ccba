//! What came from all watches, put together: which objects there are, which cannot be read, of which kinds not all is known yet.
//!
//! No IO, no clock. A listing replaces what is known of its kind only when it has ended, and only then is something taken away
//! that it did not name. Driven by [`super::watch`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::read::Unreadable;
use crate::objects::{KINDS, Kind, Object, ObjectKey, Objects};
use crate::source::{Observed, Problem, Snapshot};

/// Something a watch saw.
#[derive(Debug)]
pub(super) enum Event {
    /// All objects of a kind are about to be named.
    ListingBegins(Kind),
    /// This object is there, as a listing or a change says, with what stands in its status, if that matters.
    Present(ObjectKey, Result<Object, Unreadable>, Option<Observed>),
    /// This object is gone.
    Gone(ObjectKey),
    /// All objects of a kind were named.
    ListingEnds(Kind),
    /// The API server does not know the kind.
    NotServed(Kind),
    /// Listing or watching a kind failed, for this reason.
    Failed(Kind, String),
}

/// The state.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    objects: Objects,
    /// Objects that cannot be read as they are now.
    unreadable: BTreeMap<ObjectKey, Unreadable>,
    observed: Arc<BTreeMap<ObjectKey, Arc<Observed>>>,
    kinds: BTreeMap<Kind, Progress>,
    /// Whether the next snapshot differs from the last.
    changed: bool,
}

/// What is known of one kind.
#[derive(Debug, Default)]
struct Progress {
    /// Everything was named once.
    whole: bool,
    /// What the listing under way has named.
    listing: Option<BTreeSet<ObjectKey>>,
    /// The API server does not know it.
    not_served: bool,
    /// Why it is not whole.
    failure: Option<String>,
}

impl Gathered {
    /// Takes in one event.
    pub(super) fn take(&mut self, event: Event) {
        match event {
            Event::ListingBegins(kind) => self.kind(kind).listing = Some(BTreeSet::new()),
            Event::Present(key, read, observed) => {
                if let Some(observed) = observed {
                    Arc::make_mut(&mut self.observed).insert(key.clone(), Arc::new(observed));
                    self.changed = true;
                }
                if let Some(named) = &mut self.kind(key.kind).listing {
                    named.insert(key.clone());
                }
                match read {
                    Ok(object) => self.set(&key, object),
                    Err(error) => self.refuse(key, error),
                }
            }
            Event::Gone(key) => self.remove(&key),
            Event::ListingEnds(kind) => self.listed(kind),
            Event::NotServed(kind) => {
                // What a kind has said is not withdrawn because the API server forgets the kind for a moment; if it was taken
                // away for good, each of its objects was.
                let progress = self.kind(kind);
                let news = !progress.whole || !progress.not_served;
                (progress.whole, progress.not_served, progress.failure) = (true, true, None);
                progress.listing = None;
                self.changed |= news;
            }
            Event::Failed(kind, reason) => {
                let progress = self.kind(kind);
                progress.listing = None;
                if !progress.whole && progress.failure.as_ref() != Some(&reason) {
                    progress.failure = Some(reason);
                    self.changed = true;
                }
            }
        }
    }

    /// What is in force now, if it differs from what this returned last. Before everything was named once it holds no objects.
    pub(super) fn snapshot(&mut self) -> Option<Snapshot> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let waiting: Vec<Kind> =
            KINDS.into_iter().filter(|kind| self.kinds.get(kind).is_none_or(|progress| !progress.whole)).collect();
        let failures = self.kinds.iter().filter_map(|(kind, progress)| {
            let reason = progress.failure.clone()?;
            Some(Problem { place: kind.to_string(), reason })
        });
        let unreadable = self.unreadable.iter().map(|(key, error)| Problem {
            place: key.to_string(),
            reason: match self.objects.object(key) {
                Some(_) => format!("{error}; what it said before stays in force"),
                None => error.to_string(),
            },
        });
        Some(Snapshot {
            problems: failures.chain(unreadable).collect(),
            objects: if waiting.is_empty() { self.objects.clone() } else { Objects::default() },
            ignored: Default::default(),
            waiting: waiting.into(),
            observed: self.observed.clone(),
        })
    }

    fn set(&mut self, key: &ObjectKey, object: Object) {
        self.changed |= self.unreadable.remove(key).is_some();
        // Most events of a pod change nothing that is kept of it, and a new listing names what is known.
        if self.objects.object(key).as_ref() != Some(&object) {
            self.objects.set(object);
            self.changed = true;
        }
    }

    fn refuse(&mut self, key: ObjectKey, error: Unreadable) {
        self.changed |= self.unreadable.get(&key) != Some(&error);
        self.unreadable.insert(key, error);
    }

    fn remove(&mut self, key: &ObjectKey) {
        let was_unreadable = self.unreadable.remove(key).is_some();
        let was_there = self.objects.object(key).is_some();
        self.objects.remove(key);
        if self.observed.contains_key(key) {
            Arc::make_mut(&mut self.observed).remove(key);
        }
        self.changed |= was_unreadable || was_there;
    }

    fn listed(&mut self, kind: Kind) {
        let progress = self.kind(kind);
        let Some(named) = progress.listing.take() else { return };
        let news = !progress.whole || progress.not_served;
        (progress.whole, progress.not_served, progress.failure) = (true, false, None);
        self.changed |= news;
        let known = self.objects.keys_of(kind).into_iter().chain(self.unreadable.keys().cloned());
        let gone: Vec<_> = known.filter(|key| key.kind == kind && !named.contains(key)).collect();
        gone.iter().for_each(|key| self.remove(key));
    }

    fn kind(&mut self, kind: Kind) -> &mut Progress {
        self.kinds.entry(kind).or_default()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn service(name: &str, generation: i64) -> Object {
        let metadata = ObjectMeta {
            namespace: Some("shop".into()),
            name: Some(name.into()),
            generation: Some(generation),
            ..ObjectMeta::default()
        };
        Object::Service(Arc::new(Service { metadata, ..Service::default() }))
    }

    fn present(name: &str, generation: i64) -> Event {
        let object = service(name, generation);
        Event::Present(object.key(), Ok(object), None)
    }

    fn unreadable(name: &str) -> Event {
        let error = Unreadable { field: "spec.ports[0].port".into(), reason: "wrong".into() };
        Event::Present(service(name, 0).key(), Err(error), None)
    }

    /// Everything listed, with the Services given.
    fn whole(services: &[&str]) -> Gathered {
        let mut gathered = Gathered::default();
        for kind in KINDS {
            gathered.take(Event::ListingBegins(kind));
            if kind == Kind::Service {
                services.iter().for_each(|name| gathered.take(present(name, 1)));
            }
            gathered.take(Event::ListingEnds(kind));
        }
        gathered.snapshot();
        gathered
    }

    fn names(snapshot: &Snapshot) -> Vec<String> {
        snapshot.objects.keys().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn nothing_is_handed_out_before_all_kinds_were_listed() {
        let mut gathered = Gathered::default();
        for kind in KINDS.into_iter().filter(|kind| *kind != Kind::Pod) {
            gathered.take(Event::ListingBegins(kind));
            if kind == Kind::Service {
                gathered.take(present("api", 1));
            }
            gathered.take(Event::ListingEnds(kind));
        }
        gathered.take(Event::ListingBegins(Kind::Pod));
        let waiting = gathered.snapshot().unwrap();
        assert_eq!((&*waiting.waiting, names(&waiting).len()), (&[Kind::Pod][..], 0));

        gathered.take(Event::ListingEnds(Kind::Pod));

        let snapshot = gathered.snapshot().unwrap();
        assert!(snapshot.is_whole());
        assert_eq!(names(&snapshot), ["Service shop/api"]);
    }

    #[test]
    fn a_kind_that_is_not_served_is_not_waited_for_and_read_when_it_comes() {
        let mut gathered = Gathered::default();
        for kind in KINDS {
            match kind {
                Kind::HttpRoute => gathered.take(Event::NotServed(kind)),
                _ => [Event::ListingBegins(kind), Event::ListingEnds(kind)].into_iter().for_each(|e| gathered.take(e)),
            }
        }
        assert!(gathered.snapshot().unwrap().is_whole());
        gathered.take(Event::NotServed(Kind::HttpRoute));
        assert!(gathered.snapshot().is_none(), "said once");

        gathered.take(Event::ListingBegins(Kind::HttpRoute));
        gathered.take(Event::ListingEnds(Kind::HttpRoute));

        assert!(gathered.snapshot().unwrap().is_whole());
    }

    #[test]
    fn a_broken_watch_and_a_listing_that_breaks_off_withdraw_nothing() {
        let mut gathered = whole(&["api", "web"]);
        gathered.take(Event::Failed(Kind::Service, "connection refused".into()));
        gathered.take(Event::ListingBegins(Kind::Service));
        gathered.take(present("api", 1));
        gathered.take(Event::Failed(Kind::Service, "connection refused".into()));
        gathered.take(Event::NotServed(Kind::Service));

        assert_eq!(gathered.objects.count(Kind::Service), 2);
    }

    #[test]
    fn a_listing_takes_away_what_it_does_not_name_and_keeps_what_is_the_same() {
        let mut gathered = whole(&["api", "web"]);
        let before = gathered.objects.clone();
        gathered.take(Event::ListingBegins(Kind::Service));
        gathered.take(present("api", 1));
        gathered.take(Event::ListingEnds(Kind::Service));

        let snapshot = gathered.snapshot().unwrap();

        let changed: Vec<_> = snapshot.objects.changed_since(&before).iter().map(ToString::to_string).collect();
        assert_eq!(changed, ["Service shop/web"]);
    }

    #[test]
    fn an_unreadable_object_keeps_what_it_said_and_is_named_until_it_is_mended_or_gone() {
        let mut gathered = whole(&["api"]);
        gathered.take(unreadable("api"));
        gathered.take(unreadable("new"));
        let broken = gathered.snapshot().unwrap();
        let problems: Vec<_> = broken.problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            problems,
            [
                "Service shop/api: spec.ports[0].port: wrong; what it said before stays in force",
                "Service shop/new: spec.ports[0].port: wrong"
            ]
        );
        assert_eq!(names(&broken), ["Service shop/api"]);

        gathered.take(present("api", 2));
        gathered.take(Event::Gone(service("new", 0).key()));

        assert_eq!(gathered.snapshot().unwrap().problems.len(), 0);
    }

    #[test]
    fn a_listing_forgets_an_unreadable_object_that_is_gone() {
        let mut gathered = whole(&[]);
        gathered.take(unreadable("new"));
        gathered.take(Event::ListingBegins(Kind::Service));
        gathered.take(Event::ListingEnds(Kind::Service));
        assert_eq!(gathered.snapshot().unwrap().problems.len(), 0);
    }

    #[test]
    fn what_says_the_same_again_is_no_change() {
        let mut gathered = whole(&["api"]);
        gathered.take(present("api", 1));
        assert!(gathered.snapshot().is_none());
    }

    #[test]
    fn a_kind_that_cannot_be_listed_is_named_until_it_can() {
        let mut gathered = Gathered::default();
        gathered.take(Event::Failed(Kind::Pod, "forbidden".into()));
        let problems = gathered.snapshot().unwrap().problems;
        assert_eq!(problems[0].to_string(), "Pod: forbidden");
        gathered.take(Event::ListingBegins(Kind::Pod));
        gathered.take(Event::ListingEnds(Kind::Pod));
        assert_eq!(gathered.snapshot().unwrap().problems.len(), 0);
    }
}
