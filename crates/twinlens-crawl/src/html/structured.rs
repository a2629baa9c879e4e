//! Images in JSON-LD (schema.org `ImageObject`).

use serde_json::Value;

use super::page::limits;

/// URL and text of each `ImageObject` that has both, in document order. A script that is not JSON
/// has none.
pub(super) fn image_objects(script: &str) -> Vec<(String, String)> {
    // The parser bounds the depth, and the walk does not recurse.
    let Ok(root) = serde_json::from_str::<Value>(script) else { return Vec::new() };
    let (mut images, mut stack) = (Vec::new(), vec![&root]);
    while let Some(value) = stack.pop() {
        if images.len() >= limits::STRUCTURED {
            break;
        }
        match value {
            Value::Array(items) => stack.extend(items.iter().rev()),
            Value::Object(members) => {
                if is_image(value) {
                    images.extend(url(value).zip(caption(value)));
                }
                stack.extend(members.values().rev());
            }
            _ => {}
        }
    }
    images
}

/// Whether the type is `ImageObject`, alone or among others, with or without the vocabulary's URL.
fn is_image(object: &Value) -> bool {
    let is_named = |kind: &Value| {
        kind.as_str().is_some_and(|kind| kind.rsplit(['/', ':']).next() == Some("ImageObject"))
    };
    match &object["@type"] {
        Value::Array(kinds) => kinds.iter().any(is_named),
        kind => is_named(kind),
    }
}

fn url(object: &Value) -> Option<String> {
    ["contentUrl", "url"].iter().find_map(|key| text_of(&object[*key]))
}

fn caption(object: &Value) -> Option<String> {
    ["caption", "name", "description"].iter().find_map(|key| text_of(&object[*key]))
}

/// The text of a string, the first of several, a `MediaObject`, or a value with a language.
fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(caption) => (!caption.trim().is_empty()).then(|| caption.clone()),
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
    fn image_objects_are_found_at_any_depth() {
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
                expected.into_iter().map(|(url, caption)| (url.to_string(), caption.to_string())).collect();
            assert_eq!(image_objects(script), expected, "{script}");
        }
        assert!(image_objects(&"[".repeat(100_000)).is_empty());
    }
}
