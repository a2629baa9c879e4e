//! Parts of a model by name: what is held fast in training, and what is taken from another model.

use crate::clip::Clip;
use crate::config::VisionConfig;
use crate::error::{ModelError, Result};
use crate::weights::Variables;
use candle_core::Var;
use std::path::Path;

/// One of the two encoders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tower {
    /// Pixels to features.
    Image,
    /// Token ids to features.
    Text,
}

impl Tower {
    /// The tower that a variable belongs to; the temperature and the heads that predict words
    /// belong to none.
    pub fn of(variable: &str) -> Option<Self> {
        let text = ["transformer.", "token_embedding.", "ln_final."];
        if variable.starts_with("visual.") {
            Some(Self::Image)
        } else if text.iter().any(|start| variable.starts_with(start))
            || ["positional_embedding", "text_projection"].contains(&variable)
        {
            Some(Self::Text)
        } else {
            None
        }
    }
}

/// Whether a part covers a variable: `visual` and `text` are the towers, anything else is a name up
/// to one of its dots (`transformer.resblocks.0`), or whole (`logit_scale`).
pub fn covers(part: &str, variable: &str) -> bool {
    match part {
        "visual" => Tower::of(variable) == Some(Tower::Image),
        "text" => Tower::of(variable) == Some(Tower::Text),
        _ => variable.strip_prefix(part).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')),
    }
}

/// Whether one of the parts covers a variable.
pub fn any_covers(parts: &[String], variable: &str) -> bool {
    parts.iter().any(|part| covers(part, variable))
}

impl Clip {
    /// Holds the variables of these parts fast from now on (see [`covers`]): training passes
    /// compute no gradient for them. A tower that is wholly fast is only evaluated, a ResNet's
    /// batch norms by their running statistics (Zhai et al. 2022, LiT).
    ///
    /// # Errors
    /// `Config` when a part is no part of this model, when nothing is left to learn, or for a piece
    /// of a ResNet.
    pub fn freeze(&mut self, parts: &[String]) -> Result<()> {
        let names = || self.variables().keys();
        if let Some(part) = parts.iter().find(|part| !names().any(|name| covers(part, name))) {
            return Err(ModelError::Config(format!(
                "no variable of this model is part of `{part}`; parts are `visual`, `text`, or variables' names up to a \
                 dot, such as `{}`",
                names()
                    .next_back()
                    .map_or("logit_scale", |name| name.rsplit_once('.').map_or(name.as_str(), |n| n.0))
            )));
        }
        let frozen: std::collections::BTreeSet<String> =
            names().filter(|name| any_covers(parts, name)).cloned().collect();
        if frozen.len() == self.variables().len() {
            return Err(ModelError::Config("every variable is frozen: nothing is left to learn".into()));
        }
        let of_images = |name: &&String| Tower::of(name) == Some(Tower::Image);
        let (held, all) = (frozen.iter().filter(of_images).count(), names().filter(of_images).count());
        if matches!(self.config().vision, VisionConfig::ResNet(_)) && held > 0 && held < all {
            return Err(ModelError::Config(
                "a ResNet is frozen whole or not at all (`visual`): its batch norms would go on moving"
                    .into(),
            ));
        }
        self.set_frozen(frozen);
        Ok(())
    }

    /// The variables that are learned, in the order of their names.
    pub fn trainable(&self) -> Variables {
        let free = self.variables().iter().filter(|(name, _)| !self.is_frozen(name));
        free.map(|(name, variable)| (name.clone(), variable.clone())).collect()
    }

    /// Whether all of a tower is held fast.
    pub fn is_tower_frozen(&self, tower: Tower) -> bool {
        let mut of_it = self.variables().keys().filter(|name| Tower::of(name) == Some(tower)).peekable();
        of_it.peek().is_some() && of_it.all(|name| self.is_frozen(name))
    }

    /// Sets the variables of `parts` (`None`: of all), and the running statistics among them, to
    /// those of `other`, which came from `from`.
    ///
    /// # Errors
    /// `Weights` when `other` has no such variables, or of other shapes, or computes something else
    /// with them.
    pub fn copy_from(&self, other: &Self, parts: Option<&[String]>, from: &Path) -> Result<()> {
        let wanted = |name: &String| parts.is_none_or(|parts| any_covers(parts, name));
        let all = self.variables().iter().chain(self.buffers()).filter(|(name, _)| wanted(name));
        let mut found: Vec<(&Var, &Var)> = Vec::new();
        let mut problems = Vec::new();
        for (name, own) in all {
            match other.variables().get(name).or_else(|| other.buffers().get(name)) {
                None => problems.push(format!("it has no `{name}`")),
                Some(theirs) if theirs.dims() != own.dims() => {
                    problems.push(format!(
                        "`{name}` is {:?} there, and {:?} here",
                        theirs.dims(),
                        own.dims()
                    ));
                }
                Some(theirs) => found.push((own, theirs)),
            }
        }
        let (ours, theirs) = (self.config(), other.config());
        let takes = |tower| self.variables().keys().any(|n| Tower::of(n) == Some(tower) && wanted(n));
        // What no shape shows.
        if takes(Tower::Image) && ours.vision != theirs.vision {
            problems.push(format!("its image tower is {:?}, and this one {:?}", theirs.vision, ours.vision));
        }
        if takes(Tower::Text) && ours.text.heads != theirs.text.heads {
            problems.push(format!(
                "its text tower has {} heads, and this one {}",
                theirs.text.heads, ours.text.heads
            ));
        }
        if (takes(Tower::Image) || takes(Tower::Text)) && ours.activation != theirs.activation {
            problems
                .push(format!("its activation is {:?}, and here {:?}", theirs.activation, ours.activation));
        }
        let hidden = problems.len().saturating_sub(3);
        problems.truncate(3);
        if hidden > 0 {
            problems.push(format!("and {hidden} more"));
        }
        if !problems.is_empty() {
            return Err(ModelError::Start { path: from.to_owned(), problem: problems.join("; ") });
        }
        for (own, theirs) in found {
            own.set(&theirs.as_detached_tensor())?;
        }
        Ok(())
    }
}
