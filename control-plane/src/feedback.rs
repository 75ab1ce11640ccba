//! What clients say about the resources made from each object: how many accepted them, how many refused, and the last
//! reason.
//!
//! The unit of a count is one resource at one client, as its stream last said. A stream takes its words along when it ends,
//! so the counts are of clients that are connected to this replica now; a name that a client unsubscribed from counts until
//! then too. Pure but for its locks. Written by [`crate::ads`]; read by [`crate::admin`] for `/status`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use heddle_xds::protocol::Verdict;
use heddle_xds::resource::Kind;
use serde::Serialize;

/// Counts over all streams, by object (`<Kind>/<namespace>/<name>`).
#[derive(Debug, Default)]
pub struct Feedback {
    objects: Mutex<BTreeMap<Arc<str>, Counts>>,
}

/// What clients say about one object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Resources that clients accepted.
    pub accepted: u64,
    /// Resources that clients refused; they keep the version before.
    pub refused: u64,
    /// The newest refusal, while there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_refusal: Option<Refusal>,
}

/// One refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// `<namespace>/<name>` of the workload that refused.
    pub workload: Arc<str>,
    /// The resource's type: `lds`, `rds`, `cds`, `eds`.
    pub r#type: &'static str,
    /// Its name.
    pub resource: Arc<str>,
    /// Its version.
    pub version: Arc<str>,
    /// Field and reason, as the client wrote it.
    pub reason: String,
}

/// What one stream last said about each resource. At most [`MAX_SAID`].
#[derive(Debug, Default)]
pub struct Said(Mutex<BTreeMap<(Kind, Arc<str>), Word>>);

#[derive(Debug)]
struct Word {
    accepted: bool,
    version: Arc<str>,
    sources: Arc<[Arc<str>]>,
}

impl Feedback {
    /// Counts a word of the stream of `workload` about a resource made from `sources`. Whether it accepts another version
    /// than the one it had before: then a change has arrived.
    pub fn count(&self, said: &Said, workload: &Arc<str>, verdict: &Verdict, sources: Arc<[Arc<str>]>) -> bool {
        let accepted = verdict.refused.is_none();
        let word = Word { accepted, version: verdict.version.clone(), sources: sources.clone() };
        let (before, dropped) = said.say((verdict.kind, verdict.name.clone()), word);
        let arrived = accepted && before.as_ref().is_some_and(|before| before.version != verdict.version);
        let mut objects = self.lock();
        for word in before.iter().chain(&dropped) {
            subtract(&mut objects, word);
        }
        for source in &*sources {
            let counts = objects.entry(source.clone()).or_default();
            match &verdict.refused {
                None => counts.accepted += 1,
                Some(reason) => {
                    counts.refused += 1;
                    counts.last_refusal = Some(Refusal {
                        workload: workload.clone(),
                        r#type: verdict.kind.short_name(),
                        resource: verdict.name.clone(),
                        version: verdict.version.clone(),
                        reason: reason.clone(),
                    });
                }
            }
        }
        arrived
    }

    /// The resource is gone: what the stream said about it counts no more.
    pub fn forget(&self, said: &Said, kind: Kind, name: &str) {
        let mut words = said.lock();
        if let Some(word) = words.remove(&(kind, Arc::from(name))) {
            subtract(&mut self.lock(), &word);
        }
    }

    /// The stream has ended.
    pub fn gone(&self, said: &Said) {
        let words = std::mem::take(&mut *said.lock());
        let mut objects = self.lock();
        words.values().for_each(|word| subtract(&mut objects, word));
    }

    /// All counts, by object.
    pub fn counts(&self) -> BTreeMap<Arc<str>, Counts> {
        self.lock().clone()
    }

    /// A panic between two counts leaves one of them off by one, no more.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Counts>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Said {
    /// Returns the word before on the same resource, and one that had to make place.
    fn say(&self, key: (Kind, Arc<str>), word: Word) -> (Option<Word>, Option<Word>) {
        let mut words = self.lock();
        let before = words.insert(key, word);
        let dropped = if words.len() > MAX_SAID { words.pop_first() } else { None };
        (before, dropped.map(|(_, word)| word))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(Kind, Arc<str>), Word>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn subtract(objects: &mut BTreeMap<Arc<str>, Counts>, word: &Word) {
    for source in &*word.sources {
        let Some(counts) = objects.get_mut(source) else { continue };
        let count = if word.accepted { &mut counts.accepted } else { &mut counts.refused };
        *count = count.saturating_sub(1);
        if counts.refused == 0 {
            counts.last_refusal = None;
        }
        if counts.accepted == 0 && counts.refused == 0 {
            objects.remove(source);
        }
    }
}

/// Words kept for one stream. Chosen: four types of as many names as a stream may subscribe to; a stream that had more over
/// its life counts a little less.
pub const MAX_SAID: usize = 4 * heddle_xds::protocol::MAX_SUBSCRIPTIONS;

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(version: &str, refused: Option<&str>) -> Verdict {
        Verdict { kind: Kind::Route, name: "r".into(), version: version.into(), refused: refused.map(str::to_owned) }
    }

    fn sources() -> Arc<[Arc<str>]> {
        Arc::from([Arc::from("HTTPRoute/shop/api"), Arc::from("Service/shop/api")])
    }

    fn of(feedback: &Feedback, object: &str) -> Counts {
        feedback.counts().get(object).cloned().unwrap_or_default()
    }

    #[test]
    fn a_resource_counts_for_every_object_it_was_made_from() {
        let (feedback, one, two) = (Feedback::default(), Said::default(), Said::default());

        feedback.count(&one, &"shop/web".into(), &verdict("1", None), sources());
        feedback.count(&two, &"shop/api".into(), &verdict("1", Some("name: too long")), sources());

        for object in ["HTTPRoute/shop/api", "Service/shop/api"] {
            let counts = of(&feedback, object);
            assert_eq!((counts.accepted, counts.refused), (1, 1), "{object}");
            let refusal = counts.last_refusal.unwrap();
            assert_eq!((&*refusal.workload, &*refusal.reason), ("shop/api", "name: too long"));
        }
    }

    #[test]
    fn the_last_word_of_a_stream_counts_and_says_whether_a_change_arrived() {
        let (feedback, said) = (Feedback::default(), Said::default());
        let count =
            |version: &str, refused| feedback.count(&said, &"shop/web".into(), &verdict(version, refused), sources());

        assert!(!count("1", None), "the first version is no change");
        assert!(!count("2", Some("no")));
        assert!(!count("2", None), "the version it refused before");
        assert!(count("3", None));

        let counts = of(&feedback, "Service/shop/api");
        assert_eq!((counts.accepted, counts.refused, counts.last_refusal), (1, 0, None));
    }

    #[test]
    fn a_stream_takes_its_words_along_and_a_resource_that_is_gone_counts_no_more() {
        let (feedback, one, two) = (Feedback::default(), Said::default(), Said::default());
        feedback.count(&one, &"shop/web".into(), &verdict("1", None), sources());
        feedback.count(&two, &"shop/web".into(), &verdict("1", Some("no")), sources());

        feedback.gone(&one);
        feedback.forget(&two, Kind::Route, "r");

        assert_eq!(feedback.counts(), BTreeMap::new());
    }

    #[test]
    fn a_stream_that_never_ends_keeps_a_bounded_number_of_words() {
        let (feedback, said) = (Feedback::default(), Said::default());
        for number in 0..=MAX_SAID {
            let verdict = Verdict { name: number.to_string().into(), ..verdict("1", None) };
            feedback.count(&said, &"shop/web".into(), &verdict, sources());
        }
        assert_eq!(of(&feedback, "Service/shop/api").accepted, MAX_SAID as u64);
    }
}
