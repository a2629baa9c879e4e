//! The classes of a set: their ids, the labels that mean them, the names that go into prompts.

use std::collections::{BTreeMap, HashMap};

use twinlens_pipeline::suggest::did_you_mean;

use crate::prompts::list_hash;

/// What is wrong with a list of classes, naming the class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassFault {
    /// The sentence.
    pub why: String,
    /// What to do next.
    pub hint: Option<String>,
}

/// The classes of a set: ids, the labels in the data that mean them, and the names that go into
/// prompts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Classes {
    ids: HashMap<String, usize>,
    names: Vec<String>,
    synonyms: Vec<Vec<String>>,
}

impl Classes {
    /// Classes whose ids are the places in `labels`; `renames` gives some of them other names.
    ///
    /// # Errors
    /// No class at all; an empty name; two classes of one name (compared after white space at the
    /// ends is removed, as a tokenizer does not see it); a rename of a class that is not there.
    pub fn new(labels: Vec<String>, renames: &BTreeMap<String, String>) -> Result<Self, ClassFault> {
        let fault = |why: String, hint: Option<String>| Err(ClassFault { why, hint });
        if labels.is_empty() {
            return fault("there are no classes: it has no labelled row".into(), None);
        }
        if let Some(name) = renames.keys().find(|name| !labels.contains(*name)) {
            let hint = did_you_mean(name, labels.iter().map(String::as_str));
            return fault(format!("`names` renames the class `{name}`, which is not there"), hint);
        }
        let mut seen: HashMap<String, &str> = HashMap::new();
        let mut names = Vec::with_capacity(labels.len());
        for (id, label) in labels.iter().enumerate() {
            let name = renames.get(label).unwrap_or(label).trim().to_string();
            if name.is_empty() {
                let hint = "filter such rows out, or give the class a name in `names`";
                return fault(
                    format!("the name of class {id} (label {label:?}) is empty"),
                    Some(hint.into()),
                );
            }
            if let Some(twin) = seen.insert(name.clone(), label) {
                let hint = "a prompt must tell the senses apart: `names = { \"crane\" = \"crane (bird)\" }`";
                return fault(
                    format!("the class name `{name}` is there twice (labels {twin:?} and {label:?})"),
                    Some(hint.into()),
                );
            }
            names.push(name);
        }
        let synonyms = vec![Vec::new(); names.len()];
        let ids = labels.into_iter().enumerate().map(|(id, label)| (label, id)).collect();
        Ok(Self { ids, names, synonyms })
    }

    /// With further names of some classes, by label.
    ///
    /// # Errors
    /// Names of a class that is not there, or an empty one.
    pub fn with_synonyms(mut self, synonyms: &BTreeMap<String, Vec<String>>) -> Result<Self, ClassFault> {
        for (label, names) in synonyms {
            let Some(id) = self.id(label) else {
                let hint = did_you_mean(label, self.ids.keys().map(String::as_str));
                return Err(ClassFault {
                    why: format!("`synonyms` name the class `{label}`, which is not there"),
                    hint,
                });
            };
            if names.iter().any(|name| name.trim().is_empty()) {
                return Err(ClassFault {
                    why: format!("a synonym of the class `{label}` is empty"),
                    hint: None,
                });
            }
            self.synonyms[id] = names.iter().map(|name| name.trim().to_string()).collect();
        }
        Ok(self)
    }

    /// All names of each class, by id: that of the results comes first.
    pub fn all_names(&self) -> Vec<Vec<String>> {
        let all =
            |(name, others): (&String, &Vec<String>)| std::iter::once(name).chain(others).cloned().collect();
        self.names.iter().zip(&self.synonyms).map(all).collect()
    }

    /// The id of a label.
    pub fn id(&self, label: &str) -> Option<usize> {
        self.ids.get(label).copied()
    }

    /// Names by id, as in prompts and results.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// How many there are.
    #[expect(clippy::len_without_is_empty, reason = "there is always at least one")]
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// SHA-256 of the names in the order of their ids; where there are synonyms, of those too.
    pub fn hash(&self) -> String {
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
    fn ids_are_places_and_names_may_differ_from_labels() {
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
    fn classes_that_cannot_be_told_apart_are_refused() {
        let cases = [
            ("none", strings(&[]), renames(&[]), "no classes"),
            ("twice", strings(&["crane", "dog", "crane"]), renames(&[]), "`crane` is there twice"),
            (
                "twice but for white space",
                strings(&["crane", "crane "]),
                renames(&[]),
                "`crane` is there twice",
            ),
            (
                "renamed onto another",
                strings(&["crane", "bird"]),
                renames(&[("bird", "crane")]),
                "`crane` is there twice",
            ),
            ("empty", strings(&["dog", " "]), renames(&[]), "class 1 (label \" \") is empty"),
            (
                "rename of nothing",
                strings(&["dog"]),
                renames(&[("dgo", "hound")]),
                "`dgo`, which is not there",
            ),
        ];
        for (name, labels, renames, expected) in cases {
            let fault = Classes::new(labels, &renames).unwrap_err();
            assert!(fault.why.contains(expected), "{name}: {fault:?}");
        }
        let told_apart = Classes::new(strings(&["crane", "crane "]), &renames(&[("crane ", "crane (bird)")]));
        assert_eq!(told_apart.unwrap().len(), 2);
    }
}
