//! A small training on emoji with their names as captions.

use std::fs;

use twinlens_gallery::Catalog;

use super::Place;

/// Writes the images and captions that [`pipeline`] reads.
pub(crate) fn write_images(place: &Place) {
    for concept in Catalog::load().groups[0].concepts.iter().take(24) {
        let slug = &concept.slug;
        place.write(&format!("images/{slug}.txt"), &format!("a picture of {slug}"));
        fs::write(place.path(&format!("images/{slug}.png")), concept.variants[0].png).unwrap();
    }
}

/// A pipeline that ends with the table of the training; `options` are further lines of it.
pub(crate) fn pipeline(name: &str, options: &str) -> String {
    format!(
        r#"
name = "{name}"
seed = 5

[stages.images]
kind = "folder"
folders = ["images"]

[stages.words]
kind = "tokenizer"
input = "images"
vocab_size = 300

[stages.clip]
kind = "train"
input = "images"
tokenizer = "words"
model = {{ embed = 16, vision = {{ image_size = 16, patch = 8, width = 16, layers = 1, heads = 2 }}, text = {{ context = 24, width = 16, layers = 1, heads = 2 }} }}
batch_size = 8
{options}
"#
    )
}
