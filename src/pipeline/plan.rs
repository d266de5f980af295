//! A policy compiled for records: which places to look at, which fields to read, which key each column takes.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use crate::columns::{FieldHit, Found, Hit, Locator, LocatorError, json, lines};
use crate::keys::KeySpec;
use crate::policy::{
    Cipher, ColumnPath, ColumnRule, KeyGroup, KeyTemplate, OnMissing, Policy, Recipient, Root, Segment, VerifiedPolicy,
};

/// Magic byte of a schema registry's prefix, which is followed by a four-byte schema id.
const REGISTRY_MAGIC: u8 = 0;
const REGISTRY_PREFIX_LEN: usize = 5;

/// How a record's value holds its documents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// One JSON document (RFC 8259).
    #[default]
    Json,
    /// One JSON document per line.
    Ndjson,
    /// One JSON document behind a schema registry's five bytes (magic 0, schema id).
    JsonSr,
}

/// Why a record cannot be processed: a stable code, and what else may be told without showing a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rejection {
    pub(crate) code: &'static str,
    pub(crate) detail: String,
}

impl Rejection {
    pub(crate) fn new(code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
        }
    }
}

/// One occurrence of a column in a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Byte range of a JSON value in the record's value.
    Value { start: usize, end: usize },
    /// The record's key.
    Key,
    /// The header at that position.
    Header(usize),
}

/// A compiled policy.
pub(crate) struct Plan {
    pub(crate) policy: Arc<VerifiedPolicy>,
    format: Format,
    locator: Locator,
    /// Rule of each of the locator's columns.
    value_rules: Vec<usize>,
    /// Those among them whose column must be there.
    required: Vec<usize>,
    /// Rules of `$key` and `$header` columns.
    outer_rules: Vec<usize>,
    fields: Vec<ColumnPath>,
    /// Per rule: index of its row-id field.
    row_fields: Vec<Option<usize>>,
    /// Per rule: the path of that field, in its canonical spelling.
    bound_paths: Vec<Option<String>>,
    /// Index of the field that holds a session for the backend.
    session_field: Option<usize>,
    /// Index of the field that holds a session for the enclave.
    enclave_session_field: Option<usize>,
    /// Per rule: the rules of its hints.
    hints: Vec<Vec<usize>>,
    /// Per rule: what stands before a sealed text in JSON. For hints that is their name too.
    openings: Vec<Vec<u8>>,
    /// Per rule: its key group and the label's index in it; `None` for domain columns.
    pub(crate) columns: Vec<Option<(usize, u16)>>,
    pub(crate) groups: Vec<Group>,
    /// How dead letters are sealed.
    pub(crate) dead_letters: Option<DeadLetterPlan>,
}

/// How dead letters are sealed.
pub(crate) enum DeadLetterPlan {
    /// Under a data key of this spec.
    Key(Box<KeySpec>),
    /// To this RSA key.
    Recipient(Recipient),
}

/// One key group: what its data keys are made for.
pub(crate) struct Group {
    template: KeyTemplate,
    fields: Vec<usize>,
    spec: KeySpec,
}

impl Group {
    /// The spec of the key `name`, or of the plain key.
    pub(crate) fn spec(&self, name: Option<&str>) -> Cow<'_, KeySpec> {
        let mut spec = Cow::Borrowed(&self.spec);
        if let Some(name) = name {
            name.clone_into(&mut spec.to_mut().key_name);
        }
        spec
    }

    pub(crate) fn is_template(&self) -> bool {
        self.template.is_template()
    }
}

/// One JSON document of a record: its offset in the record's value, its bytes, what was found in it.
pub(crate) struct Document<'a> {
    pub(crate) offset: usize,
    pub(crate) text: &'a [u8],
    pub(crate) found: &'a Found,
}

impl Plan {
    /// Compiles a policy that [`Policy::unsupported`] has nothing to say about.
    pub(crate) fn new(policy: Arc<VerifiedPolicy>, format: Format) -> Result<Self, LocatorError> {
        let model = policy.policy();
        let groups = model.groups();
        let mut fields: Vec<ColumnPath> = Vec::new();
        let mut field = |path: &ColumnPath| {
            fields.iter().position(|known| known == path).unwrap_or_else(|| {
                fields.push(path.clone());
                fields.len() - 1
            })
        };
        let row_fields = model
            .columns
            .iter()
            .map(|rule| rule.bind_row.as_ref().map(&mut field))
            .collect();
        let spelled = |rule: &ColumnRule| rule.bind_row.as_ref().map(ToString::to_string);
        let bound_paths = model.columns.iter().map(spelled).collect();
        let session = model.client.as_ref().and_then(|client| client.session.as_ref());
        let session_field = session.map(&mut field);
        let session = model
            .enclave
            .as_ref()
            .and_then(|enclave| enclave.client.session.as_ref());
        let enclave_session_field = session.map(&mut field);
        let compiled = groups
            .iter()
            .filter_map(|group| compile_group(model, group, &mut field))
            .collect();
        let in_value = |rule: &ColumnRule| *rule.path.root() == Root::Value;
        let rules = || model.columns.iter().enumerate();
        let value_rules: Vec<usize> = rules().filter(|(_, rule)| in_value(rule)).map(|(n, _)| n).collect();
        let rejects = |rule: &usize| model.columns[*rule].on_missing == OnMissing::Reject;
        let required = value_rules.iter().copied().filter(rejects).collect();
        let outer_rules = rules().filter(|(_, rule)| !in_value(rule)).map(|(n, _)| n).collect();
        let paths: Vec<ColumnPath> = value_rules.iter().map(|n| model.columns[*n].path.clone()).collect();
        let locator = Locator::new(&paths, &fields)?;
        let columns = (0..model.columns.len()).map(|rule| column_of(&groups, rule)).collect();
        let mut hints = vec![Vec::new(); model.columns.len()];
        for (n, rule) in rules() {
            if let Some(hint) = &rule.hint {
                hints[hint.column].push(n);
            }
        }
        let openings = model.columns.iter().map(opening).collect();
        let recipient = model.dead_letters.as_ref().and_then(|rule| rule.recipient());
        let letter_key = model
            .dead_letter_group()
            .and_then(|group| compile_group(model, &group, &mut |_| 0))
            .map(|group| DeadLetterPlan::Key(Box::new(group.spec)));
        let dead_letters = recipient.cloned().map(DeadLetterPlan::Recipient).or(letter_key);
        Ok(Self {
            policy,
            format,
            locator,
            value_rules,
            required,
            outer_rules,
            fields,
            row_fields,
            bound_paths,
            session_field,
            enclave_session_field,
            hints,
            openings,
            columns,
            groups: compiled,
            dead_letters,
        })
    }

    pub(crate) fn rules(&self) -> &[ColumnRule] {
        &self.policy.policy().columns
    }

    /// The domains that columns of this policy belong to, each once.
    pub(crate) fn domains(&self) -> Vec<&str> {
        once(self.rules().iter().filter_map(ColumnRule::domain))
    }

    /// The domains whose secrets are needed to seal by this policy, each once.
    pub(crate) fn sealing_domains(&self) -> Vec<&str> {
        once(self.rules().iter().filter_map(ColumnRule::sealing_domain))
    }

    /// The rules of a rule's hints.
    pub(crate) fn hints(&self, rule: usize) -> &[usize] {
        &self.hints[rule]
    }

    /// What stands before a rule's sealed text in JSON: a quote; for a hint, its whole beginning as the next member.
    pub(crate) fn opening(&self, rule: usize) -> &[u8] {
        &self.openings[rule]
    }

    /// The field that a rule's values are bound to.
    pub(crate) fn row_field(&self, rule: usize) -> Option<usize> {
        self.row_fields[rule]
    }

    /// The canonical path that a rule's values are bound to, as text.
    pub(crate) fn bound_path(&self, rule: usize) -> Option<&String> {
        self.bound_paths[rule].as_ref()
    }

    /// Rules of `$key` and `$header` columns.
    pub(crate) fn outer_rules(&self) -> &[usize] {
        &self.outer_rules
    }

    /// Calls `visit` for each document of the record's value with what was found in it.
    pub(crate) fn documents(
        &self,
        value: &[u8],
        found: &mut Found,
        mut visit: impl FnMut(Document<'_>) -> Result<(), Rejection>,
    ) -> Result<(), Rejection> {
        let mut one = |range: Range<usize>| {
            let text = &value[range.clone()];
            self.locator
                .locate(text, found)
                .map_err(|error| Rejection::new(error.code(), error.to_string()))?;
            visit(Document {
                offset: range.start,
                text,
                found,
            })
        };
        match self.format {
            Format::Json => one(0..value.len()),
            Format::JsonSr if value.len() > REGISTRY_PREFIX_LEN && value[0] == REGISTRY_MAGIC => {
                one(REGISTRY_PREFIX_LEN..value.len())
            }
            Format::JsonSr => Err(Rejection::new(
                "no-registry-prefix",
                "the value does not start with a schema registry's five bytes",
            )),
            Format::Ndjson => {
                let lines = lines::lines(value).map(|line| line.content);
                lines.filter(|content| !content.is_empty()).try_for_each(one)
            }
        }
    }

    /// The rule whose column that is.
    pub(crate) fn rule_of(&self, hit: &Hit) -> usize {
        self.value_rules[usize::from(hit.column)]
    }

    /// Occurrences of columns in one document: (rule, place in the record, list indexes).
    pub(crate) fn hits<'d>(
        &'d self,
        document: &'d Document<'d>,
    ) -> impl Iterator<Item = (usize, Place, &'d [u32])> + 'd {
        document.found.hits.iter().map(|hit| {
            let range = hit.range();
            let place = Place::Value {
                start: document.offset + range.start,
                end: document.offset + range.end,
            };
            (
                self.value_rules[usize::from(hit.column)],
                place,
                document.found.indexes(hit),
            )
        })
    }

    /// Refuses a document that lacks a column that must be there.
    pub(crate) fn check_missing(&self, document: &Document<'_>) -> Result<(), Rejection> {
        for rule in &self.required {
            if !document.found.hits.iter().any(|hit| self.rule_of(hit) == *rule) {
                return Err(Rejection::new(
                    "missing-column",
                    format!("column {} is missing", self.rules()[*rule].path),
                ));
            }
        }
        Ok(())
    }

    /// The JSON text of a field that occurs exactly once in the document.
    pub(crate) fn field<'d>(&self, document: &Document<'d>, field: usize) -> Result<&'d [u8], Rejection> {
        let path = &self.fields[field];
        let mut occurrences = document
            .found
            .fields
            .iter()
            .filter(|hit| usize::from(hit.field) == field);
        match (occurrences.next(), occurrences.next()) {
            (Some(hit), None) => Ok(&document.text[FieldHit::range(hit)]),
            (None, _) => Err(Rejection::new("missing-field", format!("field {path} is missing"))),
            _ => Err(Rejection::new(
                "ambiguous-field",
                format!("field {path} occurs more than once"),
            )),
        }
    }

    /// The field that holds a session for the backend, if the policy names one.
    pub(crate) fn session_field(&self) -> Option<usize> {
        self.session_field
    }

    /// The same for the enclave.
    pub(crate) fn enclave_session_field(&self) -> Option<usize> {
        self.enclave_session_field
    }

    /// Where in the record's value a field is that occurs once or not at all.
    pub(crate) fn field_range(&self, document: &Document<'_>, field: usize) -> Result<Option<Range<usize>>, Rejection> {
        let fields = document.found.fields.iter();
        let mut occurrences = fields.filter(|hit| usize::from(hit.field) == field);
        match (occurrences.next(), occurrences.next()) {
            (Some(hit), None) => {
                let range = FieldHit::range(hit);
                Ok(Some(document.offset + range.start..document.offset + range.end))
            }
            (None, _) => Ok(None),
            _ => Err(Rejection::new(
                "ambiguous-field",
                format!("field {} occurs more than once", self.fields[field]),
            )),
        }
    }

    /// The resolved key name of a template group for one document; `None` for plain keys.
    pub(crate) fn key_name(&self, group: usize, document: Option<&Document<'_>>) -> Result<Option<String>, Rejection> {
        let group = &self.groups[group];
        if !group.is_template() {
            return Ok(None);
        }
        let Some(document) = document else {
            return Err(Rejection::new(
                "missing-field",
                "a key template needs a record with a value",
            ));
        };
        let mut values = Vec::with_capacity(group.fields.len());
        for field in &group.fields {
            let text = self.field(document, *field)?;
            values.push(scalar_text(text).ok_or_else(|| {
                Rejection::new("bad-template-field", "a key template's field is no string or integer")
            })?);
        }
        let name = group
            .template
            .resolve(&values)
            .map_err(|error| Rejection::new("bad-template-field", error.to_string()))?;
        Ok(Some(name))
    }
}

fn once<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut names: Vec<&str> = names.collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// `"`, or `,"number#last4":"` for a hint.
fn opening(rule: &ColumnRule) -> Vec<u8> {
    let mut opening = Vec::new();
    if rule.hint.is_some()
        && let Some(Segment::Name(name)) = rule.path.segments().last()
    {
        opening.push(b',');
        json::write_string(name, &mut opening);
        opening.push(b':');
    }
    opening.push(b'"');
    opening
}

/// A string's decoded text, or an integer's digits: what a template takes.
fn scalar_text(json: &[u8]) -> Option<String> {
    match json.first()? {
        b'"' => json::string_value(json).map(Cow::into_owned),
        b'-' | b'0'..=b'9' => std::str::from_utf8(json).ok().map(str::to_owned),
        _ => None,
    }
}

fn column_of(groups: &[KeyGroup], rule: usize) -> Option<(usize, u16)> {
    groups.iter().enumerate().find_map(|(n, group)| {
        let column = group.labels.iter().position(|label| label.column == Some(rule))?;
        Some((n, u16::try_from(column).ok()?))
    })
}

/// `None` cannot happen for a checked policy: every rule's key exists.
fn compile_group(model: &Policy, group: &KeyGroup, field: &mut impl FnMut(&ColumnPath) -> usize) -> Option<Group> {
    let key = model.keys.get(&group.key)?;
    let spec = KeySpec::of(model, group)?;
    Some(Group {
        template: key.name.clone(),
        fields: key.name.fields().iter().map(field).collect(),
        spec,
    })
}

/// Whether a rule is sealed under its domain's secret.
pub(crate) fn is_domain(rule: &ColumnRule) -> bool {
    matches!(rule.cipher, Cipher::Domain(_))
}
