//! The images of `twemoji-assets` with the names and groups of `emojis`.

use twemoji_assets::png::PngTwemojiAsset;
use unicode_normalization::UnicodeNormalization;

#[derive(Debug)]
pub struct Catalog {
    /// The nine groups, in Unicode's order.
    pub groups: Vec<Group>,
}

/// One of Unicode's nine emoji groups.
#[derive(Debug)]
pub struct Group {
    /// As Unicode writes it: `Food & Drink`.
    pub title: &'static str,
    /// As a path segment: `food-and-drink`.
    pub slug: String,
    /// In Unicode's order.
    pub concepts: Vec<Concept>,
}

/// A depicted thing with its variants.
#[derive(Debug)]
pub struct Concept {
    /// The Unicode short name: `grinning face`.
    pub name: &'static str,
    /// As a path segment, unique within the group: `grinning-face`.
    pub slug: String,
    /// The first shortcode, without colons.
    pub shortcode: Option<&'static str>,
    /// The default variant, then the skin tones.
    pub variants: Vec<Variant>,
}

/// An image of a concept.
#[derive(Debug)]
pub struct Variant {
    /// The full name: `waving hand: dark skin tone`.
    pub name: &'static str,
    /// Code points in hex, joined by `-`, as in the image's file name.
    pub code: String,
    /// The encoded image, 72 x 72 pixels.
    pub png: &'static [u8],
}

const GROUPS: [(emojis::Group, &str); 9] = [
    (emojis::Group::SmileysAndEmotion, "Smileys & Emotion"),
    (emojis::Group::PeopleAndBody, "People & Body"),
    (emojis::Group::AnimalsAndNature, "Animals & Nature"),
    (emojis::Group::FoodAndDrink, "Food & Drink"),
    (emojis::Group::TravelAndPlaces, "Travel & Places"),
    (emojis::Group::Activities, "Activities"),
    (emojis::Group::Objects, "Objects"),
    (emojis::Group::Symbols, "Symbols"),
    (emojis::Group::Flags, "Flags"),
];

impl Catalog {
    /// Loads all emoji that have an image.
    pub fn load() -> Self {
        let groups = GROUPS.iter().map(|(group, title)| Group::load(*group, title)).collect();
        Self { groups }
    }

    /// All concepts with their groups.
    pub fn concepts(&self) -> impl Iterator<Item = (&Group, &Concept)> {
        self.groups.iter().flat_map(|group| group.concepts.iter().map(move |concept| (group, concept)))
    }
}

impl Group {
    fn load(group: emojis::Group, title: &'static str) -> Self {
        let concepts = group
            .emojis()
            // The list includes skin tones, which `Concept::load` collects.
            .filter(|emoji| matches!(emoji.skin_tone(), None | Some(emojis::SkinTone::Default)))
            .filter_map(Concept::load)
            .collect();
        Self { title, slug: slug(title), concepts }
    }

    /// As captions write it: `food & drink`.
    pub fn name(&self) -> String {
        self.title.to_lowercase()
    }
}

impl Concept {
    fn load(emoji: &'static emojis::Emoji) -> Option<Self> {
        let variants: Vec<Variant> = match emoji.skin_tones() {
            Some(tones) => tones.filter_map(Variant::load).collect(),
            None => Variant::load(emoji).into_iter().collect(),
        };
        let name = emoji.name();
        (!variants.is_empty()).then(|| Self {
            name,
            slug: slug(name),
            shortcode: emoji.shortcode(),
            variants,
        })
    }
}

impl Variant {
    fn load(emoji: &'static emojis::Emoji) -> Option<Self> {
        // Most of Twemoji's names omit the variation selector that Unicode's names have.
        let bare: String = emoji.as_str().chars().filter(|c| *c != '\u{fe0f}').collect();
        let asset =
            PngTwemojiAsset::from_emoji(emoji.as_str()).or_else(|| PngTwemojiAsset::from_emoji(&bare))?;
        let code: Vec<String> = asset.emoji.chars().map(|c| format!("{:x}", u32::from(c))).collect();
        Some(Self { name: emoji.name(), code: code.join("-"), png: asset.data.0 })
    }
}

/// Lower-case ASCII letters and digits joined by `-`, without accents; `&`, `#` and `*` are spelled
/// out.
fn slug(name: &str) -> String {
    let spelled =
        name.replace('&', " and ").replace('#', " hash ").replace('*', " asterisk ").replace('’', "");
    let ascii: String = spelled
        .nfd()
        .filter(char::is_ascii)
        .map(|c| if c.is_ascii_alphanumeric() { c } else { ' ' })
        .collect();
    ascii.to_ascii_lowercase().split_whitespace().collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn slugs_are_ascii_words() {
        let cases = [
            ("Smileys & Emotion", "smileys-and-emotion"),
            ("keycap: #", "keycap-hash"),
            ("piñata", "pinata"),
            ("woman’s boot", "womans-boot"),
            ("flag: Åland Islands", "flag-aland-islands"),
        ];
        for (name, expected) in cases {
            assert_eq!(slug(name), expected);
        }
    }

    #[test]
    fn the_catalog_is_complete_and_unambiguous() {
        let catalog = Catalog::load();
        let concepts: Vec<_> = catalog.concepts().collect();
        let variants = || concepts.iter().flat_map(|(_, concept)| &concept.variants);
        let codes: HashSet<&str> = variants().map(|variant| variant.code.as_str()).collect();
        let slugs: HashSet<_> =
            concepts.iter().map(|(group, concept)| (&group.slug, &concept.slug)).collect();
        assert_eq!(catalog.groups.len(), 9);
        assert_eq!((concepts.len(), slugs.len()), (1914, 1914));
        assert_eq!((variants().count(), codes.len()), (3944, 3944));
        assert!(variants().all(|variant| variant.png.starts_with(b"\x89PNG")));
        assert!(!slugs.iter().any(|(_, slug)| slug.is_empty()));
    }
}
