//! Binds class names to labels: by the names in the data if there are any, otherwise by the
//! position in the declared list.

use std::collections::{BTreeMap, HashMap};

use super::declaration::Declaration;
use crate::trust::{CLASS_NAMES_DIFFER, DUPLICATE_NAME, Warning, normalised};

/// A class of an opened set; its position is its label id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundClass {
    /// The name in the data.
    pub label: String,
    /// The name in prompts.
    pub name: String,
    pub synonyms: Vec<String>,
}

/// The classes of an opened set.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Bound {
    /// By label id.
    pub classes: Vec<BoundClass>,
    /// Differences between the declaration and the data.
    pub warnings: Vec<Warning>,
    by_label: HashMap<String, usize>,
}

impl Bound {
    fn new(classes: Vec<BoundClass>, warnings: Vec<Warning>) -> Self {
        let by_label = classes.iter().enumerate().map(|(id, class)| (class.label.clone(), id)).collect();
        Self { classes, warnings, by_label }
    }

    /// The id of a class by its name in the data.
    pub fn id(&self, label: &str) -> Option<usize> {
        self.by_label.get(label).copied()
    }
}

/// Binds the declared classes of a set to `names`, the class names in its data by label id.
///
/// Classes are matched by name, not by order, because a different order is the most common cause of
/// a wrong accuracy: a declared class matches the name that equals its label or name after
/// normalisation. A declared class missing from the data is dropped, and an undeclared class keeps
/// its name in the data; both cause a warning. If two classes have the same name, the id is
/// appended to the second (`missile (744)`), also with a warning: ImageNet's published names have
/// duplicates.
///
/// # Errors
/// Neither the data nor the declaration name the classes.
pub fn bind(set: &Declaration, names: Option<&[String]>) -> Result<Bound, String> {
    let Some(names) = names else {
        let listed = set.listed().ok_or("its classes come from the data, but the data do not name them")?;
        let class = |class: &super::declaration::Class| BoundClass {
            label: class.label.clone().unwrap_or_else(|| class.name.clone()),
            name: class.name.trim().to_string(),
            synonyms: class.synonyms.clone(),
        };
        return Ok(Bound::new(listed.iter().map(class).collect(), Vec::new()));
    };
    let listed = set.listed().unwrap_or_default();
    let mut known: BTreeMap<String, &super::declaration::Class> = BTreeMap::new();
    for class in listed {
        // Labels take precedence: two names may be equal once normalised.
        known.entry(normalised(&class.name)).or_insert(class);
    }
    for class in listed {
        if let Some(label) = &class.label {
            known.insert(normalised(label), class);
        }
    }
    let (names, duplicates) = unique_names(names, &set.names);
    let mut classes = Vec::with_capacity(names.len());
    let (mut undeclared, mut matched) = (Vec::new(), Vec::new());
    for label in &names {
        let fix = set.names.get(label);
        match known.get(&normalised(label)) {
            Some(class) => {
                matched.push(class.name.as_str());
                let name = fix.unwrap_or(&class.name).trim().to_string();
                classes.push(BoundClass { label: label.clone(), name, synonyms: class.synonyms.clone() });
            }
            None => {
                if fix.is_none() && !listed.is_empty() {
                    undeclared.push(label.as_str());
                }
                let name = fix.cloned().unwrap_or_else(|| readable(label));
                classes.push(BoundClass { label: label.clone(), name, synonyms: Vec::new() });
            }
        }
    }
    let missing: Vec<&str> =
        listed.iter().map(|class| class.name.as_str()).filter(|name| !matched.contains(name)).collect();
    Ok(Bound::new(classes, duplicates.into_iter().chain(differ(&undeclared, &missing)).collect()))
}

/// Makes the names in the data unique: a duplicate gets its id appended, and a warning with the
/// final name after the set's own `fixes`.
fn unique_names(names: &[String], fixes: &BTreeMap<String, String>) -> (Vec<String>, Vec<Warning>) {
    let (mut seen, mut unique, mut duplicates) =
        (HashMap::new(), Vec::with_capacity(names.len()), Vec::new());
    for (id, name) in names.iter().enumerate() {
        let first = *seen.entry(name).or_insert(id);
        if first == id {
            unique.push(name.clone());
            continue;
        }
        let own = format!("{name} ({id})");
        let called = fixes.get(&own).unwrap_or(&own);
        duplicates.push(Warning {
            code: DUPLICATE_NAME,
            detail: format!(
                "the data call both class {first} and class {id} `{name}`; here the second is `{called}`"
            ),
            value: 2.0,
        });
        unique.push(own);
    }
    (unique, duplicates)
}

fn differ(undeclared: &[&str], missing: &[&str]) -> Option<Warning> {
    let some =
        |names: &[&str]| names.iter().take(5).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let mut parts = Vec::new();
    if !undeclared.is_empty() {
        parts.push(format!("{} that the set's file does not know ({})", undeclared.len(), some(undeclared)));
    }
    if !missing.is_empty() {
        parts.push(format!("none for {} of its classes ({})", missing.len(), some(missing)));
    }
    (!parts.is_empty()).then(|| Warning {
        code: CLASS_NAMES_DIFFER,
        detail: format!(
            "the data have names for their labels: {}. The data's are used",
            parts.join(", and ")
        ),
        value: (undeclared.len() + missing.len()) as f64,
    })
}

/// A class name from a directory name: `acoustic_guitar` becomes `acoustic guitar`.
fn readable(label: &str) -> String {
    label.replace('_', " ").trim().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(classes: &str) -> Declaration {
        Declaration::parse(&format!(
            "name = \"s\"\ntitle = \"S\"\nclasses = {classes}\nlicence = \"l\"\nsource = \"s\"\nhow_to_get = \"h\"\n[names]\n\"crane\" = \"crane (bird)\""
        ))
        .unwrap()
    }

    fn bound(classes: &str, names: Option<&[&str]>) -> (Vec<String>, usize) {
        let names: Option<Vec<String>> = names.map(|names| names.iter().map(ToString::to_string).collect());
        let bound = bind(&set(classes), names.as_deref()).unwrap();
        (bound.classes.into_iter().map(|class| class.name).collect(), bound.warnings.len())
    }

    #[test]
    fn classes_are_bound_by_name_and_not_by_order() {
        let listed = "[\"annual crop land\", { name = \"lake\", label = \"SeaLake\" }, \"forest\"]";
        type Case = (&'static str, Option<&'static [&'static str]>, &'static [&'static str], usize);
        let cases: [Case; 7] = [
            (listed, None, &["annual crop land", "lake", "forest"], 0),
            (
                listed,
                Some(&["Forest", "SeaLake", "Annual_Crop_Land"]),
                &["forest", "lake", "annual crop land"],
                0,
            ),
            (listed, Some(&["Forest", "SeaLake"]), &["forest", "lake"], 1),
            (listed, Some(&["Forest", "SeaLake", "River"]), &["forest", "lake", "River"], 1),
            ("\"from the data\"", Some(&["polar_bear", "crane"]), &["polar bear", "crane (bird)"], 0),
            ("[\"crane\"]", Some(&["crane"]), &["crane (bird)"], 0),
            ("\"from the data\"", Some(&["gull", "crane", "gull"]), &["gull", "crane (bird)", "gull (2)"], 1),
        ];
        for (classes, names, expected, warnings) in cases {
            assert_eq!(
                bound(classes, names),
                (expected.iter().map(ToString::to_string).collect(), warnings),
                "{names:?}"
            );
        }
        assert!(bind(&set("\"from the data\""), None).unwrap_err().contains("do not name them"));
    }
}
