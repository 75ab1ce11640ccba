//! A YAML tree that knows the line of each of its nodes.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::{DuplicateKeyPolicy, Options, Spanned};

use super::Error;

/// A node and its line.
#[derive(Debug, Clone)]
pub(super) struct Located {
    line: u64,
    node: Node,
}

#[derive(Debug, Clone)]
enum Node {
    Scalar(Value),
    List(Vec<Located>),
    Fields(Vec<(String, u64, Located)>),
}

/// The documents of a text.
pub(super) fn documents(text: &str) -> Result<Vec<Located>, Error> {
    let mut options = Options::default();
    options.duplicate_keys = DuplicateKeyPolicy::Error;
    // `yes`, `on` and `off` are texts, as for Kubernetes.
    options.strict_booleans = true;
    options.with_snippet = false;
    let read: Result<Vec<Spanned<Node>>, _> = serde_saphyr::from_multiple_with_options(text, options);
    let nodes = read.map_err(|error| Error {
        line: error.location().map_or(0, |location| location.line()),
        object: None,
        field: String::new(),
        value: String::new(),
        remedy: error.without_snippet().to_string(),
    })?;
    Ok(nodes.into_iter().map(Located::from).collect())
}

impl Located {
    /// The line the node begins at, from 1.
    pub(super) fn line(&self) -> u64 {
        self.line
    }

    /// Whether the document is empty.
    pub(super) fn is_null(&self) -> bool {
        matches!(self.node, Node::Scalar(Value::Null))
    }

    /// As JSON.
    pub(super) fn value(&self) -> Value {
        match &self.node {
            Node::Scalar(value) => value.clone(),
            Node::List(items) => Value::Array(items.iter().map(Self::value).collect()),
            Node::Fields(fields) => {
                let fields = fields.iter().map(|(name, _, node)| (name.clone(), node.value()));
                Value::Object(fields.collect::<Map<_, _>>())
            }
        }
    }

    /// The text of a field.
    pub(super) fn text(&self, field: &str) -> Option<&str> {
        self.path_text(&[field])
    }

    /// The text at a path of fields.
    pub(super) fn path_text(&self, path: &[&str]) -> Option<&str> {
        let mut node = self;
        for field in path {
            node = node.field(field)?.1;
        }
        match &node.node {
            Node::Scalar(Value::String(text)) => Some(text),
            Node::Scalar(_) | Node::List(_) | Node::Fields(_) => None,
        }
    }

    /// The items of a list field.
    pub(super) fn items(&self, field: &str) -> Option<&[Self]> {
        match &self.field(field)?.1.node {
            Node::List(items) => Some(items),
            Node::Scalar(_) | Node::Fields(_) => None,
        }
    }

    /// `Service shop/api`, as far as it is known.
    pub(super) fn name(&self) -> String {
        let kind = self.text("kind").unwrap_or("object");
        let name = self.path_text(&["metadata", "name"]).unwrap_or("without name");
        match self.path_text(&["metadata", "namespace"]) {
            Some(namespace) => format!("{kind} {namespace}/{name}"),
            None => format!("{kind} {name}"),
        }
    }

    /// The line of the deepest part of `path` that is there; `path` as `spec.ports[0].port`.
    pub(super) fn line_of(&self, path: &str) -> u64 {
        self.walk(path).0
    }

    /// An error at `path`.
    pub(super) fn error(&self, path: &str, remedy: &str) -> Error {
        let (line, found) = self.walk(path);
        let value = match found.map(|node| &node.node) {
            Some(Node::Scalar(Value::String(text))) => text.clone(),
            Some(Node::Scalar(value)) => value.to_string(),
            Some(Node::List(_) | Node::Fields(_)) | None => String::new(),
        };
        Error { line, object: Some(self.name()), field: path.to_owned(), value, remedy: remedy.to_owned() }
    }

    /// Line of the deepest part that is there, and the node if all of it is.
    fn walk(&self, path: &str) -> (u64, Option<&Self>) {
        let mut node = self;
        let mut line = self.line;
        for part in path.split(['.', '[']).filter(|part| !part.is_empty()) {
            let next = match part.strip_suffix(']').map(str::parse::<usize>) {
                Some(Ok(index)) => match &node.node {
                    Node::List(items) => items.get(index).map(|item| (item.line, item)),
                    Node::Scalar(_) | Node::Fields(_) => None,
                },
                _ => node.field(part),
            };
            let Some((at, found)) = next else { return (line, None) };
            (line, node) = (at, found);
        }
        (line, Some(node))
    }

    fn field(&self, name: &str) -> Option<(u64, &Self)> {
        match &self.node {
            Node::Fields(fields) => {
                fields.iter().find(|(field, _, _)| field == name).map(|(_, line, node)| (*line, node))
            }
            Node::Scalar(_) | Node::List(_) => None,
        }
    }
}

impl From<Spanned<Node>> for Located {
    fn from(spanned: Spanned<Node>) -> Self {
        Self { line: spanned.referenced.line(), node: spanned.value }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Deserialize::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        // JSON has no infinities; nothing that is read takes one.
        Ok(Node::Scalar(Number::from_f64(value).map_or(Value::Null, Value::Number)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_string<E>(self, value: String) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element::<Spanned<Node>>()? {
            items.push(item.into());
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let mut fields = Vec::new();
        while let Some(name) = access.next_key::<Spanned<String>>()? {
            let node = access.next_value::<Spanned<Node>>()?;
            let line = name.referenced.line();
            fields.push((name.value, line, node.into()));
        }
        Ok(Node::Fields(fields))
    }
}
