//! YAML text to a tree of values with their positions in the file.
//!
//! The reader of the configuration is our own, not serde's: serde stops at the first error and drops positions, and a
//! user needs all errors of a file in one run, with line and column (an invalid value is reported, and reading
//! continues). The size of the tree is bounded, including aliases, so that a hostile file is refused before it is
//! expanded.

use super::diagnostics::{Diagnostic, Diagnostics, Span};
use super::syntax;
use granit_parser::{Event, Parser, ScalarStyle};
use std::collections::HashMap;

/// The most nodes of a file with its aliases expanded: room for 50,000 routes.
const MAX_NODES: usize = 2_000_000;
/// The most nodes that aliases may add.
const MAX_ALIASED_NODES: usize = 100_000;
const MAX_DEPTH: usize = 64;

/// A value and its position.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) span: Span,
}

#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// A text; `plain` where it was written without quotes.
    Scalar {
        text: String,
        plain: bool,
    },
    Sequence(Vec<Node>),
    Mapping(Vec<(Node, Node)>),
}

impl Node {
    /// Returns the kind of value, for messages.
    pub(crate) fn kind(&self) -> String {
        match &self.value {
            Value::Scalar { text, plain: true } if text.is_empty() || text == "~" || text == "null" => "nothing".into(),
            Value::Scalar { text, .. } if text.chars().count() <= 40 => format!("`{text}`"),
            Value::Scalar { .. } => "a long text".into(),
            Value::Sequence(_) => "a list".into(),
            Value::Mapping(_) => "a mapping".into(),
        }
    }

    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true } if matches!(text.as_str(), "" | "~" | "null"))
    }

    fn count(&self) -> usize {
        match &self.value {
            Value::Scalar { .. } => 1,
            Value::Sequence(items) => 1 + items.iter().map(Node::count).sum::<usize>(),
            Value::Mapping(entries) => 1 + entries.iter().map(|(k, v)| k.count() + v.count()).sum::<usize>(),
        }
    }
}

/// Parses one document. After a syntax error, an oversized file or a second document, that error is the only
/// diagnostic; duplicate keys are reported and the first one is kept.
pub(crate) fn parse(text: &str, diagnostics: &mut Diagnostics) -> Option<Node> {
    let mut builder = Builder {
        text,
        events: Parser::new_from_str(text),
        diagnostics,
        anchors: HashMap::new(),
        nodes: 0,
        aliased: 0,
        end: Span::default(),
    };
    match builder.document() {
        Ok(root) => Some(root),
        Err(diagnostic) => {
            builder.diagnostics.only(diagnostic);
            None
        }
    }
}

struct Builder<'a, 'text> {
    text: &'text str,
    events: Parser<'text, granit_parser::StrInput<'text>>,
    diagnostics: &'a mut Diagnostics,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    aliased: usize,
    /// The position of the last event, for errors of missing parts at the end.
    end: Span,
}

impl<'text> Builder<'_, 'text> {
    fn document(&mut self) -> Result<Node, Diagnostic> {
        let mut root = None;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd => {}
                Event::StreamEnd => break,
                _ if root.is_some() => {
                    return Err(Diagnostic::error(span, "expected one YAML document, found a second one"));
                }
                event => root = Some(self.node(event, span, 0)?),
            }
        }
        root.ok_or_else(|| {
            Diagnostic::error(Span::start(), "the file is empty; it needs at least `listeners` and `routes`")
        })
    }

    fn next(&mut self) -> Result<(Event<'text>, Span), Diagnostic> {
        match self.events.next_event() {
            Some(Ok((event, span))) => {
                self.end = Span::from_parser(&span);
                Ok((event, self.end))
            }
            Some(Err(error)) => Err(syntax::diagnose(self.text, &error)),
            None => Err(Diagnostic::error(self.end, "the file ends in the middle of a value")),
        }
    }

    fn node(&mut self, event: Event<'text>, span: Span, depth: usize) -> Result<Node, Diagnostic> {
        if depth > MAX_DEPTH {
            return Err(Diagnostic::error(span, format!("nested deeper than {MAX_DEPTH} levels")));
        }
        self.count(1, span)?;
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, _) => {
                (Value::Scalar { text: text.into_owned(), plain: style == ScalarStyle::Plain }, anchor)
            }
            Event::SequenceStart(_, anchor, _) => (self.sequence(depth)?, anchor),
            Event::MappingStart(_, anchor, _) => (self.mapping(depth)?, anchor),
            Event::Alias(anchor) => return self.alias(anchor, span),
            _ => return Err(Diagnostic::error(span, "expected a value")),
        };
        let node = Node { value, span };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn sequence(&mut self, depth: usize) -> Result<Value, Diagnostic> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(Value::Sequence(items)),
                (event, span) => items.push(self.node(event, span, depth + 1)?),
            }
        }
    }

    fn mapping(&mut self, depth: usize) -> Result<Value, Diagnostic> {
        let mut entries: Vec<(Node, Node)> = Vec::new();
        let mut keys: HashMap<String, Span> = HashMap::new();
        loop {
            let key = match self.next()? {
                (Event::MappingEnd, _) => return Ok(Value::Mapping(entries)),
                (event, span) => self.node(event, span, depth + 1)?,
            };
            let (event, span) = self.next()?;
            let value = self.node(event, span, depth + 1)?;
            let Value::Scalar { text, .. } = &key.value else {
                return Err(Diagnostic::error(key.span, format!("expected a key, found {}", key.kind())));
            };
            if let Some(first) = keys.get(text) {
                let message = format!("the key `{text}` stands here twice; it was first given in line {}", first.line);
                self.diagnostics.push(Diagnostic::error(key.span, message));
            } else {
                keys.insert(text.clone(), key.span);
                entries.push((key, value));
            }
        }
    }

    /// Returns the value of an alias, with the position of the alias.
    fn alias(&mut self, anchor: usize, span: Span) -> Result<Node, Diagnostic> {
        let Some(target) = self.anchors.get(&anchor) else {
            return Err(Diagnostic::error(span, "this alias stands inside the value that it names"));
        };
        let size = target.count();
        self.aliased += size;
        if self.aliased > MAX_ALIASED_NODES {
            let message = format!("aliases unfold to more than {MAX_ALIASED_NODES} values");
            return Err(Diagnostic::error(span, message));
        }
        let node = Node { value: target.value.clone(), span };
        self.count(size, span)?;
        Ok(node)
    }

    fn count(&mut self, nodes: usize, span: Span) -> Result<(), Diagnostic> {
        self.nodes += nodes;
        if self.nodes > MAX_NODES {
            return Err(Diagnostic::error(span, format!("the file has more than {MAX_NODES} values")));
        }
        Ok(())
    }
}
