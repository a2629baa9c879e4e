//! Images in JSON-LD (schema.org `ImageObject`).

use serde_json::Value;

use super::limits;

/// Address and text of each `ImageObject` of a script that has both; in document order. A script
/// that is no JSON has none.
pub(super) fn images(script: &str) -> Vec<(String, String)> {
    // The parser bounds the depth; the walk does not recurse.
    let Ok(root) = serde_json::from_str::<Value>(script) else { return Vec::new() };
    let (mut found, mut open) = (Vec::new(), vec![&root]);
    while let Some(value) = open.pop() {
        if found.len() >= limits::STRUCTURED {
            break;
        }
        match value {
            Value::Array(items) => open.extend(items.iter().rev()),
            Value::Object(members) => {
                if is_image(value) {
                    found.extend(address(value).zip(text(value)));
                }
                open.extend(members.values().rev());
            }
            _ => {}
        }
    }
    found
}

/// `ImageObject`, alone or among others, with or without the vocabulary's address.
fn is_image(object: &Value) -> bool {
    let named = |kind: &Value| {
        kind.as_str().is_some_and(|kind| kind.rsplit(['/', ':']).next() == Some("ImageObject"))
    };
    match &object["@type"] {
        Value::Array(kinds) => kinds.iter().any(named),
        kind => named(kind),
    }
}

fn address(object: &Value) -> Option<String> {
    ["contentUrl", "url"].iter().find_map(|key| plain(&object[*key]))
}

fn text(object: &Value) -> Option<String> {
    ["caption", "name", "description"].iter().find_map(|key| plain(&object[*key]))
}

/// A text, the first of several, or the text of a `MediaObject` or of a value with a language.
fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => (!text.trim().is_empty()).then(|| text.clone()),
        Value::Array(items) => items.first().and_then(Value::as_str).map(String::from),
        Value::Object(_) => {
            ["text", "@value", "name"].iter().find_map(|key| value[*key].as_str()).map(String::from)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_objects_are_found_wherever_they_stand() {
        let cases = [
            (
                r#"{"@type": "ImageObject", "contentUrl": "a", "caption": "one", "name": "n"}"#,
                vec![("a", "one")],
            ),
            (
                r#"{"@type": ["Thing", "https://schema.org/ImageObject"], "url": "a", "name": "n"}"#,
                vec![("a", "n")],
            ),
            (
                r#"{"@graph": [{"image": {"@type": "ImageObject", "url": ["a", "b"], "caption": {"@value": "x"}}}, {"@type": "schema:ImageObject", "contentUrl": "c", "description": "d"}]}"#,
                vec![("a", "x"), ("c", "d")],
            ),
            (r#"{"@type": "ImageObject", "url": "a", "caption": "  "}"#, vec![]),
            (r#"{"@type": "Product", "url": "a", "name": "n"}"#, vec![]),
            (r#"{"@type": 3}"#, vec![]),
            ("not json", vec![]),
        ];
        for (script, expected) in cases {
            let expected: Vec<_> =
                expected.into_iter().map(|(url, text)| (url.to_string(), text.to_string())).collect();
            assert_eq!(images(script), expected, "{script}");
        }
        assert!(images(&"[".repeat(100_000)).is_empty());
    }
}
