//! The texts around an image, in varied wordings chosen by a hash of the name.

use crate::catalog::{Concept, Group, Variant};

/// FNV-1a, 64 bits, so that choices are the same on every machine and in every version.
pub(crate) fn hash(text: &str, salt: u64) -> u64 {
    let start = 0xcbf2_9ce4_8422_2325 ^ salt;
    let mixed =
        text.bytes().fold(start, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    // The low bits of FNV depend too much on the last byte for a small modulus.
    mixed ^ mixed >> 32
}

fn choose<T: Copy>(from: &[T], text: &str, salt: u64) -> T {
    from[(hash(text, salt) % from.len() as u64) as usize]
}

/// Name and group: `food & drink: red apple`.
pub(crate) fn figcaption(group: &Group, variant: &Variant) -> String {
    const TEMPLATES: [&str; 8] = [
        "{name} ({group})",
        "{name}, {group}",
        "{group}: {name}",
        "{name} - {group}",
        "{a_name} from {group}",
        "a {group} picture of {a_name}",
        "{group} emoji of {a_name}",
        "a small drawing of {a_name} in {group}",
    ];
    fill(choose(&TEMPLATES, variant.name, 1), group, variant)
}

/// The `title` attribute: a phrase, the shortcode, only the group, or missing.
pub(crate) fn title(group: &Group, concept: &Concept, variant: &Variant) -> Option<String> {
    const TEMPLATES: [&str; 8] = [
        "",
        ":shortcode:",
        "{group}",
        "emoji: {name}",
        "{name} emoji",
        "a picture of {a_name}",
        "an icon of {a_name}",
        "{group} / {name}",
    ];
    match choose(&TEMPLATES, variant.name, 2) {
        "" => None,
        ":shortcode:" => concept.shortcode.map(|code| format!(":{code}:")),
        template => Some(fill(template, group, variant)),
    }
}

/// The alt text of a thumbnail on a category page; `None` for no attribute.
pub(crate) fn thumbnail_alt(concept: &Concept) -> Option<&'static str> {
    choose(
        &[None, Some(""), Some("image"), Some("icon"), Some("thumbnail"), Some(concept.name)],
        concept.name,
        3,
    )
}

fn fill(template: &str, group: &Group, variant: &Variant) -> String {
    template
        .replace("{a_name}", &with_article(variant.name))
        .replace("{name}", variant.name)
        .replace("{group}", &group.name())
}

/// `a red apple`; labels (`flag: Italy`) and plurals take no article.
fn with_article(name: &str) -> String {
    if name.contains(':') || name.ends_with('s') || name.starts_with(|c: char| !c.is_ascii_lowercase()) {
        return name.to_owned();
    }
    let article = if name.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {name}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Catalog;
    use std::collections::HashMap;

    #[test]
    fn every_image_is_captioned_with_its_name_and_its_group() {
        let catalog = Catalog::load();
        for (group, concept) in catalog.concepts() {
            for variant in &concept.variants {
                let caption = figcaption(group, variant);
                assert!(caption.contains(variant.name) && caption.contains(&group.name()), "{caption}");
            }
        }
    }

    #[test]
    fn wordings_vary_evenly() {
        let catalog = Catalog::load();
        let mut counts: HashMap<_, usize> = HashMap::new();
        for (_, concept) in catalog.concepts() {
            *counts.entry(thumbnail_alt(concept).map(|alt| alt == concept.name)).or_default() += 1;
        }
        let total: usize = counts.values().sum();
        for (kind, share) in [(None, 6), (Some(true), 6)] {
            assert!(counts[&kind].abs_diff(total / share) < total / 25, "{counts:?}");
        }
        assert_eq!(with_article("owl"), "an owl");
        assert_eq!(with_article("flag: Italy"), "flag: Italy");
    }
}
