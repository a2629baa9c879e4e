//! The classes of a set: ids, labels in the data, and names in prompts.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use twinlens_pipeline::Fault;
use twinlens_pipeline::suggest::did_you_mean;

use crate::prompts::list_hash;

/// What is wrong with the classes, labels or images of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SetFault {
    pub why: String,
    pub hint: Option<String>,
}

impl SetFault {
    /// The fault of an option.
    pub(crate) fn at(self, span: Range<usize>) -> Fault {
        self.hint.into_iter().fold(Fault::at(span, self.why), Fault::hint)
    }
}

/// The classes of a set: ids, labels in the data, and names in prompts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Classes {
    ids: HashMap<String, usize>,
    names: Vec<String>,
    synonyms: Vec<Vec<String>>,
}

impl Classes {
    /// Classes whose ids are their positions in `labels`; `renames` maps labels to other names.
    ///
    /// # Errors
    /// There are no classes; a name is empty; two names are equal (after trimming, since tokenizers
    /// ignore white space at the ends); a renamed class does not exist.
    pub(crate) fn new(labels: Vec<String>, renames: &BTreeMap<String, String>) -> Result<Self, SetFault> {
        let fault = |why: String, hint: Option<String>| Err(SetFault { why, hint });
        if labels.is_empty() {
            return fault("there are no classes: no row has a label".into(), None);
        }
        if let Some(name) = renames.keys().find(|name| !labels.contains(*name)) {
            let hint = did_you_mean(name, labels.iter().map(String::as_str));
            return fault(format!("`names` renames the class `{name}`, which does not exist"), hint);
        }
        let mut seen: HashMap<String, &str> = HashMap::new();
        let mut names = Vec::with_capacity(labels.len());
        for (id, label) in labels.iter().enumerate() {
            let name = renames.get(label).unwrap_or(label).trim().to_string();
            if name.is_empty() {
                let hint = "filter out such rows, or name the class in `names`";
                return fault(
                    format!("the name of class {id} (label {label:?}) is empty"),
                    Some(hint.into()),
                );
            }
            if let Some(other) = seen.insert(name.clone(), label) {
                let hint = "prompts must distinguish the senses: `names = { \"crane\" = \"crane (bird)\" }`";
                return fault(
                    format!("the class name `{name}` occurs twice (labels {other:?} and {label:?})"),
                    Some(hint.into()),
                );
            }
            names.push(name);
        }
        let synonyms = vec![Vec::new(); names.len()];
        let ids = labels.into_iter().enumerate().map(|(id, label)| (label, id)).collect();
        Ok(Self { ids, names, synonyms })
    }

    /// Adds synonyms, by label.
    ///
    /// # Errors
    /// A class does not exist, or a synonym is empty.
    pub(crate) fn with_synonyms(
        mut self,
        synonyms: &BTreeMap<String, Vec<String>>,
    ) -> Result<Self, SetFault> {
        for (label, names) in synonyms {
            let Some(id) = self.id(label) else {
                let hint = did_you_mean(label, self.ids.keys().map(String::as_str));
                return Err(SetFault {
                    why: format!("`synonyms` names the class `{label}`, which does not exist"),
                    hint,
                });
            };
            if names.iter().any(|name| name.trim().is_empty()) {
                return Err(SetFault {
                    why: format!("a synonym of the class `{label}` is empty"),
                    hint: None,
                });
            }
            self.synonyms[id] = names.iter().map(|name| name.trim().to_string()).collect();
        }
        Ok(self)
    }

    /// Name and synonyms of each class, by id.
    pub(crate) fn all_names(&self) -> Vec<Vec<String>> {
        let all = |(name, synonyms): (&String, &Vec<String>)| {
            std::iter::once(name).chain(synonyms).cloned().collect()
        };
        self.names.iter().zip(&self.synonyms).map(all).collect()
    }

    pub(crate) fn id(&self, label: &str) -> Option<usize> {
        self.ids.get(label).copied()
    }

    /// Names by id, without synonyms.
    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }

    /// SHA-256 of the names, and of the synonyms if there are any, by id.
    pub(crate) fn hash(&self) -> String {
        if self.synonyms.iter().all(Vec::is_empty) {
            return list_hash(&self.names);
        }
        list_hash(&self.all_names().iter().map(|names| list_hash(names)).collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    fn renames(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(from, to)| (from.to_string(), to.to_string())).collect()
    }

    #[test]
    fn ids_are_positions_and_names_may_differ_from_labels() {
        let classes = Classes::new(
            strings(&["flags", "smileys-emotion"]),
            &renames(&[("smileys-emotion", "smileys & emotion")]),
        );
        let classes = classes.unwrap();
        assert_eq!((classes.id("smileys-emotion"), classes.id("smileys & emotion")), (Some(1), None));
        assert_eq!(classes.names(), ["flags", "smileys & emotion"]);
        assert_ne!(
            classes.hash(),
            Classes::new(strings(&["flags", "smileys"]), &renames(&[])).unwrap().hash()
        );
    }

    #[test]
    fn classes_that_cannot_be_distinguished_are_refused() {
        let cases = [
            ("none", strings(&[]), renames(&[]), "no classes"),
            ("twice", strings(&["crane", "dog", "crane"]), renames(&[]), "`crane` occurs twice"),
            (
                "twice but for white space",
                strings(&["crane", "crane "]),
                renames(&[]),
                "`crane` occurs twice",
            ),
            (
                "renamed onto another",
                strings(&["crane", "bird"]),
                renames(&[("bird", "crane")]),
                "`crane` occurs twice",
            ),
            ("empty", strings(&["dog", " "]), renames(&[]), "class 1 (label \" \") is empty"),
            (
                "rename of an unknown class",
                strings(&["dog"]),
                renames(&[("dgo", "hound")]),
                "`dgo`, which does not exist",
            ),
        ];
        for (name, labels, renames, expected) in cases {
            let fault = Classes::new(labels, &renames).unwrap_err();
            assert!(fault.why.contains(expected), "{name}: {fault:?}");
        }
        let distinct = Classes::new(strings(&["crane", "crane "]), &renames(&[("crane ", "crane (bird)")]));
        assert_eq!(distinct.unwrap().len(), 2);
    }
}
