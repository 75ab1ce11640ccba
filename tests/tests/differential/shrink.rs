//! Making a failing case small: whatever can be left out without it ceasing to fail is left out.

use heddle_control_plane::validate;
use serde_json::Value;

use crate::case::Case;

/// The smallest case found by leaving out one thing at a time, within so many tries. `fails` says whether a case still does.
pub fn shrink(case: &Case, tries: usize, mut fails: impl FnMut(&Case) -> bool) -> Case {
    let mut smallest = case.clone();
    let mut left = tries;
    'again: loop {
        for candidate in smaller(&smallest) {
            if left == 0 {
                return smallest;
            }
            if candidate.manifests.iter().any(refused) {
                continue;
            }
            left -= 1;
            if fails(&candidate) {
                smallest = candidate;
                continue 'again;
            }
        }
        return smallest;
    }
}

/// Whether the control plane would not have it in force.
fn refused(manifest: &Value) -> bool {
    let version = manifest["apiVersion"].as_str().unwrap();
    let group = version.split_once('/').map_or("", |(group, _)| group);
    let findings = validate::findings(group, manifest["kind"].as_str().unwrap(), manifest);
    !findings.errors.is_empty()
}

/// Everything that is one thing less, the large things first.
fn smaller(case: &Case) -> Vec<Case> {
    let mut all = Vec::new();
    if case.asks.len() > 1 {
        for half in case.asks.chunks(case.asks.len().div_ceil(2)) {
            all.push(Case { asks: half.to_vec(), ..case.clone() });
        }
    }
    for index in 0..case.manifests.len() {
        let mut less = case.clone();
        less.manifests.remove(index);
        all.push(less);
    }
    for index in 0..case.manifests.len() {
        let mut places = Vec::new();
        removable(&case.manifests[index]["spec"], "/spec", &mut places);
        for place in places {
            let mut less = case.clone();
            remove(&mut less.manifests[index], &place);
            all.push(less);
        }
    }
    for index in 0..case.asks.len() {
        for field in 0..case.asks[index].fields.len() {
            let mut less = case.clone();
            less.asks[index].fields.remove(field);
            all.push(less);
        }
    }
    all
}

/// Pointers (RFC 6901) to everything below `value` that an object can be without.
fn removable(value: &Value, place: &str, places: &mut Vec<String>) {
    match value {
        Value::Array(items) => {
            places.extend((0..items.len()).map(|index| format!("{place}/{index}")));
            for (index, item) in items.iter().enumerate() {
                removable(item, &format!("{place}/{index}"), places);
            }
        }
        Value::Object(fields) => {
            for (name, field) in fields {
                if !NEEDED.contains(&name.as_str()) {
                    places.push(format!("{place}/{name}"));
                }
                removable(field, &format!("{place}/{name}"), places);
            }
        }
        _ => {}
    }
}

fn remove(object: &mut Value, place: &str) {
    let (parent, name) = place.rsplit_once('/').unwrap();
    match object.pointer_mut(parent) {
        Some(Value::Array(items)) => drop(items.remove(name.parse().unwrap())),
        Some(Value::Object(fields)) => drop(fields.remove(name)),
        _ => {}
    }
}

/// Fields without which what is around them is none.
const NEEDED: [&str; 12] = [
    "parentRefs",
    "rules",
    "name",
    "kind",
    "group",
    "type",
    "value",
    "port",
    "targetRefs",
    "requestRedirect",
    "urlRewrite",
    "policy",
];
