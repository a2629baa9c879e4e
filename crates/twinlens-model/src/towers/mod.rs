//! The towers: from pixels and token ids to features.

mod blocks;
pub(crate) mod image;
pub(crate) mod resnet;
pub(crate) mod text;
pub(crate) mod vision;
pub(crate) mod vit;

pub use blocks::Kept;

/// Every kind of image tower. To add one, write its file and list it here.
static KINDS: &[&image::TowerKind] = &[&vit::KIND, &resnet::KIND];

/// One of the two encoders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tower {
    /// Pixels to features.
    Image,
    /// Token ids to features.
    Text,
}

impl Tower {
    /// The tower that a variable belongs to. The temperature and the layers that predict words
    /// belong to none.
    pub fn of(variable: &str) -> Option<Self> {
        let text = ["transformer.", "token_embedding.", "ln_final."];
        if variable.starts_with("visual.") {
            Some(Self::Image)
        } else if text.iter().any(|prefix| variable.starts_with(prefix))
            || ["positional_embedding", "text_projection"].contains(&variable)
        {
            Some(Self::Text)
        } else {
            None
        }
    }
}
