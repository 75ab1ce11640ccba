//! What is to be written into an object's status: our judgement beside what others have written, and nothing if it is there
//! already. Pure; [`crate::cluster::status`] writes it.
//!
//! A route's status has an entry for each parent and controller: others' stay as they are, in their order. Our own kinds' status
//! is ours alone. A condition keeps the time of its last transition while its status stays (Kubernetes API conventions, "Typical
//! status properties").

use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{CONTROLLER, Condition, ObjectStatus, ParentStatus, RouteStatus, Status};
use crate::feedback::Counts;

/// The status to write in the place of `observed`; `None`: it says all this already. `wanted` is none for a route that names no
/// parent of ours (any more). `counts`: what clients say about the object, on all replicas.
pub fn merge(wanted: Option<&Status>, counts: Option<&Counts>, observed: &Value, now: Timestamp) -> Option<Value> {
    match wanted {
        Some(Status::Route(route)) => merge_route(route, counts, observed, now),
        Some(Status::Object(object)) => merge_object(object, counts, observed, now),
        None => merge_route(&RouteStatus::default(), counts, observed, now),
    }
}

fn merge_route(wanted: &RouteStatus, counts: Option<&Counts>, observed: &Value, now: Timestamp) -> Option<Value> {
    let empty = Vec::new();
    let entries = observed.get("parents").and_then(Value::as_array).unwrap_or(&empty);
    let (ours, others): (Vec<_>, Vec<_>) =
        entries.iter().partition(|entry| entry.get("controllerName").and_then(Value::as_str) == Some(CONTROLLER));
    let made: Vec<Value> = wanted.parents.iter().map(|parent| entry(parent, counts, &ours, now)).collect();
    if made.iter().eq(ours.iter().copied()) {
        return None;
    }
    let all: Vec<Value> = others.into_iter().cloned().chain(made).collect();
    Some(json!({ "parents": all }))
}

fn entry(parent: &ParentStatus, counts: Option<&Counts>, ours: &[&Value], now: Timestamp) -> Value {
    let parent_ref = json!(parent.parent_ref);
    let before = ours.iter().find(|entry| entry.get("parentRef") == Some(&parent_ref));
    let before = before.and_then(|entry| entry.get("conditions"));
    json!({
        "parentRef": parent_ref,
        "controllerName": parent.controller_name,
        "conditions": conditions(&parent.conditions, counts, before, now),
    })
}

fn merge_object(wanted: &ObjectStatus, counts: Option<&Counts>, observed: &Value, now: Timestamp) -> Option<Value> {
    let mut made = Map::new();
    made.insert("conditions".into(), conditions(&wanted.conditions, counts, observed.get("conditions"), now).into());
    if let Some(counts) = counts {
        let mut clients = json!({ "accepted": counts.accepted, "refused": counts.refused });
        if let Some(refusal) = refusal(counts) {
            clients["lastRefusal"] = refusal.into();
        }
        made.insert("clients".into(), clients);
    }
    let made = Value::Object(made);
    (made != *observed).then_some(made)
}

/// As they are written, with the times of those that were there before.
fn conditions(wanted: &[Condition], counts: Option<&Counts>, before: Option<&Value>, now: Timestamp) -> Vec<Value> {
    let generation = wanted.first().map_or(0, |condition| condition.observed_generation);
    let programmed = counts.map(|counts| programmed(counts, generation));
    let given = wanted.iter().map(|condition| json!(condition));
    given.chain(programmed).map(|condition| timed(condition, before, now)).collect()
}

fn timed(mut condition: Value, before: Option<&Value>, now: Timestamp) -> Value {
    let before = before.and_then(Value::as_array).into_iter().flatten();
    let same = before.clone().find(|old| old.get("type") == condition.get("type"));
    let kept = same.filter(|old| old.get("status") == condition.get("status"));
    let time = kept.and_then(|old| old.get("lastTransitionTime")).cloned();
    // Whole seconds, as the API server keeps them.
    let now = || Timestamp::from_second(now.as_second()).unwrap_or(now).to_string().into();
    condition["lastTransitionTime"] = time.unwrap_or_else(now);
    if let Some(message) =
        condition.get("message").and_then(Value::as_str).filter(|text| text.len() > MAX_MESSAGE_BYTES)
    {
        let end = (0..=MAX_MESSAGE_BYTES).rev().find(|at| message.is_char_boundary(*at)).unwrap_or_default();
        condition["message"] = format!("{}…", &message[..end]).into();
    }
    condition
}

/// What clients say, as a condition.
fn programmed(counts: &Counts, generation: i64) -> Value {
    let Counts { accepted, refused, .. } = counts;
    let (status, reason) = if *refused == 0 { ("True", "Programmed") } else { ("False", "Refused") };
    let mut message = format!("resources made from it: {accepted} accepted by clients, {refused} refused");
    if let Some(refusal) = refusal(counts) {
        message.push_str("; the last one by ");
        message.push_str(&refusal);
    }
    json!({
        "type": PROGRAMMED,
        "status": status,
        "reason": reason,
        "message": message,
        "observedGeneration": generation,
    })
}

fn refusal(counts: &Counts) -> Option<String> {
    let refusal = counts.last_refusal.as_ref()?;
    Some(format!("{}, {} {}: {}", refusal.workload, refusal.r#type, refusal.resource, refusal.reason))
}

/// Whether the clients that use the object have taken it over; absent while none uses it. Not one of Gateway API's types for
/// routes, so it carries our domain (Kubernetes, "API conventions").
pub const PROGRAMMED: &str = "heddle.dev/Programmed";
/// Bytes of a message. Kubernetes takes 32 KiB; nobody reads more than this.
const MAX_MESSAGE_BYTES: usize = 4096;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{ConditionType, Reason};
    use super::*;
    use crate::feedback::Refusal;
    use crate::objects::route::ParentRef;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn accepted(status: bool, generation: i64) -> Condition {
        let reason = if status { Reason::Accepted } else { Reason::NoMatchingParent };
        Condition::new(ConditionType::Accepted, status, reason, "text", generation)
    }

    fn route(conditions: Vec<Condition>) -> Status {
        let parent_ref = ParentRef {
            group: Some(String::new()),
            kind: Some("Service".into()),
            name: "api".into(),
            ..ParentRef::default()
        };
        Status::Route(RouteStatus {
            parents: vec![ParentStatus { parent_ref, controller_name: CONTROLLER, conditions }],
        })
    }

    fn others() -> Value {
        json!({ "parentRef": { "name": "gateway" }, "controllerName": "example.com/gateway", "conditions": [] })
    }

    fn counts(accepted: u64, refused: u64) -> Counts {
        let refusal = Refusal {
            workload: "shop/web".into(),
            r#type: "rds",
            resource: "shop/api/80".into(),
            version: "1".into(),
            reason: "routes[0]: no".into(),
        };
        Counts { accepted, refused, last_refusal: (refused > 0).then_some(refusal) }
    }

    #[test]
    fn what_is_there_already_is_not_written() {
        let wanted = route(vec![accepted(true, 3)]);
        let written = merge(Some(&wanted), None, &Value::Null, at(100)).unwrap();
        assert_eq!(merge(Some(&wanted), None, &written, at(200)), None);
    }

    #[test]
    fn other_controllers_entries_stay_and_their_place_does_not_matter() {
        let wanted = route(vec![accepted(true, 3)]);
        let written = merge(Some(&wanted), None, &json!({ "parents": [others()] }), at(100)).unwrap();
        assert_eq!((&written["parents"][0], written["parents"].as_array().unwrap().len()), (&others(), 2));

        let mut turned = written.clone();
        turned["parents"].as_array_mut().unwrap().reverse();
        assert_eq!(merge(Some(&wanted), None, &turned, at(200)), None);
    }

    #[test]
    fn a_route_that_leaves_us_takes_our_entry_out_and_no_other() {
        let written = merge(Some(&route(vec![accepted(true, 3)])), None, &json!({ "parents": [others()] }), at(100));
        let left = merge(None, None, &written.unwrap(), at(200)).unwrap();
        assert_eq!(left, json!({ "parents": [others()] }));
        assert_eq!(merge(None, None, &left, at(300)), None);
        assert_eq!(merge(None, None, &Value::Null, at(300)), None);
    }

    #[test]
    fn the_time_of_a_transition_changes_with_the_status_only() {
        let first = merge(Some(&route(vec![accepted(true, 3)])), None, &Value::Null, at(100)).unwrap();
        let newer = merge(Some(&route(vec![accepted(true, 4)])), None, &first, at(200)).unwrap();
        let other = merge(Some(&route(vec![accepted(false, 4)])), None, &newer, at(300)).unwrap();
        let time = |status: &Value| status["parents"][0]["conditions"][0]["lastTransitionTime"].clone();
        assert_eq!(time(&first), "1970-01-01T00:01:40Z");
        assert_eq!(time(&newer), time(&first));
        assert_eq!(newer["parents"][0]["conditions"][0]["observedGeneration"], 4);
        assert_eq!(time(&other), "1970-01-01T00:05:00Z");
    }

    #[test]
    fn a_condition_that_is_not_wanted_any_more_goes() {
        let partly = Condition::new(ConditionType::PartiallyInvalid, true, Reason::UnsupportedValue, "text", 3);
        let both = merge(Some(&route(vec![accepted(true, 3), partly])), None, &Value::Null, at(100)).unwrap();
        let one = merge(Some(&route(vec![accepted(true, 3)])), None, &both, at(200)).unwrap();
        assert_eq!(one["parents"][0]["conditions"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn what_clients_say_is_a_condition_of_a_route_and_a_number_of_our_own_kinds() {
        let written = merge(Some(&route(vec![accepted(true, 3)])), Some(&counts(2, 1)), &Value::Null, at(100)).unwrap();
        let programmed = &written["parents"][0]["conditions"][1];
        assert_eq!((&programmed["type"], &programmed["status"]), (&json!(PROGRAMMED), &json!("False")));
        assert_eq!(programmed["observedGeneration"], 3);
        let message = programmed["message"].as_str().unwrap();
        assert!(
            message.contains("2 accepted") && message.contains("shop/web, rds shop/api/80: routes[0]: no"),
            "{message}"
        );

        let own = Status::Object(ObjectStatus { conditions: vec![accepted(true, 3)] });
        let written = merge(Some(&own), Some(&counts(2, 0)), &Value::Null, at(100)).unwrap();
        assert_eq!(written["clients"], json!({ "accepted": 2, "refused": 0 }));
        assert_eq!(written["conditions"][1]["status"], "True");
        let silent = merge(Some(&own), None, &written, at(200)).unwrap();
        assert_eq!((silent.get("clients"), silent["conditions"].as_array().unwrap().len()), (None, 1));
    }

    #[test]
    fn a_long_message_is_cut_between_letters() {
        let text: Arc<str> = "ä".repeat(MAX_MESSAGE_BYTES).into();
        let long = Condition::new(ConditionType::Accepted, true, Reason::Accepted, text, 1);
        let written = merge(Some(&route(vec![long])), None, &Value::Null, at(0)).unwrap();
        let message = written["parents"][0]["conditions"][0]["message"].as_str().unwrap();
        assert!(message.len() <= MAX_MESSAGE_BYTES + "…".len());
    }
}
