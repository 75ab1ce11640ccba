//! `AdmissionReview` (admission.k8s.io/v1), as far as it is needed: what the API server asks and what it is answered.

use json_patch::Patch;
use k8s_openapi::ByteString;
use serde::Deserialize;
use serde_json::{Value, json};

/// What the API server asks about.
#[derive(Debug, Clone, Deserialize)]
pub struct Review {
    /// The question.
    pub request: Request,
}

/// One request to the API server that waits for an answer.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// Repeated in the answer.
    pub uid: String,
    /// What the object is.
    pub kind: Kind,
    /// `CREATE`, `UPDATE`, `DELETE` or `CONNECT`.
    pub operation: String,
    /// Where the object is, or is to be.
    #[serde(default)]
    pub namespace: String,
    /// `status` and the like; absent for the object itself.
    #[serde(default)]
    pub sub_resource: Option<String>,
    /// The object as it is to be; null when it is deleted.
    #[serde(default)]
    pub object: Value,
    /// The object as it was.
    #[serde(default)]
    pub old_object: Value,
    /// Whether nothing else may be done because of it.
    #[serde(default)]
    pub dry_run: Option<bool>,
}

/// What an object is.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Kind {
    /// API group; empty for Kubernetes' first kinds.
    #[serde(default)]
    pub group: String,
    /// Kind.
    pub kind: String,
}

/// What is answered.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answer {
    /// Changes to the object.
    pub patch: Option<Patch>,
    /// Why it must not be; absent: it may.
    pub refusal: Option<String>,
    /// Shown to whoever asked.
    pub warnings: Vec<String>,
}

impl Request {
    /// Whether it makes or changes an object itself.
    pub fn writes_object(&self) -> bool {
        let whole = self.sub_resource.as_deref().unwrap_or_default().is_empty();
        whole && matches!(self.operation.as_str(), "CREATE" | "UPDATE")
    }

    /// Whether nothing else may be done because of it.
    pub fn is_dry_run(&self) -> bool {
        self.dry_run.unwrap_or_default()
    }
}

impl Answer {
    /// Nothing against it.
    pub fn allow() -> Self {
        Self::default()
    }

    /// It must not be, because of these.
    pub fn refuse(reasons: &[impl ToString]) -> Self {
        let reasons: Vec<_> = reasons.iter().map(ToString::to_string).collect();
        Self { refusal: Some(reasons.join("; ")), ..Self::default() }
    }

    /// As the API server reads it.
    ///
    /// # Errors
    /// Never in practice: only on a patch that is no JSON.
    pub fn to_json(&self, uid: &str) -> serde_json::Result<Vec<u8>> {
        let mut response = json!({ "uid": uid, "allowed": self.refusal.is_none() });
        if let Some(reason) = &self.refusal {
            // Not `Invalid`, of which clients show the details and not the message.
            response["status"] = json!({ "message": reason, "reason": "BadRequest", "code": 400 });
        }
        if let Some(patch) = self.patch.as_ref().filter(|patch| !patch.0.is_empty()) {
            response["patchType"] = "JSONPatch".into();
            response["patch"] = serde_json::to_value(ByteString(serde_json::to_vec(patch)?))?;
        }
        if !self.warnings.is_empty() {
            response["warnings"] = self.warnings.iter().map(|text| shortened(text)).collect();
        }
        let review = json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response });
        serde_json::to_vec(&review)
    }
}

/// The API server cuts longer warnings off anywhere (`AdmissionResponse.warnings`).
fn shortened(text: &str) -> String {
    if text.len() <= MAX_WARNING_BYTES {
        return text.to_owned();
    }
    let end = (0..=MAX_WARNING_BYTES - ELLIPSIS.len()).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{}{ELLIPSIS}", &text[..end])
}

/// Kubernetes, `AdmissionResponse.warnings`: 256 characters without special ones.
const MAX_WARNING_BYTES: usize = 256;
const ELLIPSIS: &str = "...";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_what_the_api_server_reads() {
        let patch: Patch = serde_json::from_value(json!([{ "op": "add", "path": "/a", "value": 1 }])).unwrap();
        let answer = Answer { patch: Some(patch), warnings: vec!["é".repeat(200)], ..Answer::default() };
        let json: Value = serde_json::from_slice(&answer.to_json("7").unwrap()).unwrap();
        let response = &json["response"];
        assert_eq!((&response["uid"], &response["allowed"]), (&json!("7"), &json!(true)));
        assert_eq!(response["patchType"], "JSONPatch");
        assert_eq!(response["patch"], "W3sib3AiOiJhZGQiLCJwYXRoIjoiL2EiLCJ2YWx1ZSI6MX1d");
        assert!(response["warnings"][0].as_str().is_some_and(|text| text.ends_with("...") && text.len() <= 256));

        let json: Value = serde_json::from_slice(&Answer::refuse(&["a", "b"]).to_json("8").unwrap()).unwrap();
        assert_eq!(json["response"]["allowed"], false);
        assert_eq!(json["response"]["status"]["message"], "a; b");
        assert_eq!(json["response"].get("patch"), None);
    }
}
