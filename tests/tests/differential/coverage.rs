//! What the generated cases used, and how often.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::case::Case;

/// How often each field was written, by its path; a field that says which of several things is meant counts by its value.
#[derive(Default)]
pub struct Coverage(BTreeMap<String, u32>);

impl Coverage {
    /// Counts a case.
    pub fn add(&mut self, case: &Case) {
        for manifest in &case.manifests {
            self.walk(&manifest["spec"], manifest["kind"].as_str().unwrap());
        }
    }

    fn walk(&mut self, value: &Value, path: &str) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| self.walk(item, path)),
            Value::Object(fields) => {
                for (name, field) in fields {
                    let path = format!("{path}.{name}");
                    let path = match field.as_str().filter(|_| CHOICES.contains(&name.as_str())) {
                        Some(choice) => format!("{path}={choice}"),
                        None => path,
                    };
                    *self.0.entry(path.clone()).or_insert(0) += 1;
                    self.walk(field, &path);
                }
            }
            _ => {}
        }
    }

    /// Fields that were used, and those used less than `least` times.
    pub fn print(&self, least: u32) -> Vec<&str> {
        for (path, count) in &self.0 {
            println!("{count:>6} {path}");
        }
        self.0.iter().filter(|(_, count)| **count < least).map(|(path, _)| path.as_str()).collect()
    }

    /// Whether a field was used at all.
    pub fn has(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }
}

/// Fields whose values are choices.
const CHOICES: [&str; 4] = ["type", "action", "policy", "mode"];
