//! Parts of a model by name: freezing them, and copying them from another model.

use crate::clip::Clip;
use crate::error::{ModelError, Result};
use crate::towers::Tower;
use candle_core::Var;
use std::path::Path;

/// Whether a part covers a variable: `visual` and `text` are the towers; anything else is a
/// variable's name (`logit_scale`), or its beginning up to a dot (`transformer.resblocks.0`).
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
    /// Freezes the variables of these parts (see [`covers`]): training passes compute no gradient
    /// for them. A completely frozen tower is only evaluated, with running statistics in its batch
    /// norms (LiT, Zhai et al. 2022).
    ///
    /// # Errors
    /// `Config` if a part is unknown, if nothing is left to train, or for a part of a tower with
    /// batch norms.
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
            return Err(ModelError::Config("every variable is frozen: nothing is left to train".into()));
        }
        let is_image = |name: &&String| Tower::of(name) == Some(Tower::Image);
        let (count, all) = (frozen.iter().filter(is_image).count(), names().filter(is_image).count());
        if !self.buffers().is_empty() && count > 0 && count < all {
            return Err(ModelError::Config(
                "an image tower with batch norms can only be frozen as a whole (`visual`): its running statistics would keep changing"
                    .into(),
            ));
        }
        self.set_frozen(frozen);
        Ok(())
    }

    /// Copies the variables and running statistics of `parts` (all if `None`) from `other`, which
    /// was read from `path`.
    ///
    /// # Errors
    /// `Start` if `other` lacks such variables, has other shapes, or uses them differently.
    pub fn copy_from(&self, other: &Self, parts: Option<&[String]>, path: &Path) -> Result<()> {
        let is_covered = |name: &String| parts.is_none_or(|parts| any_covers(parts, name));
        let all = self.variables().iter().chain(self.buffers()).filter(|(name, _)| is_covered(name));
        let mut pairs: Vec<(&Var, &Var)> = Vec::new();
        let mut problems = Vec::new();
        for (name, own) in all {
            match other.variables().get(name).or_else(|| other.buffers().get(name)) {
                None => problems.push(format!("`{name}` is missing")),
                Some(theirs) if theirs.dims() != own.dims() => {
                    problems.push(format!(
                        "`{name}` has shape {:?} there and {:?} here",
                        theirs.dims(),
                        own.dims()
                    ));
                }
                Some(theirs) => pairs.push((own, theirs)),
            }
        }
        let (ours, theirs) = (self.config(), other.config());
        let copies = |tower| self.variables().keys().any(|n| Tower::of(n) == Some(tower) && is_covered(n));
        // Differences that do not show in shapes.
        if copies(Tower::Image) && ours.vision != theirs.vision {
            problems.push(format!("the image tower is {:?} there and {:?} here", theirs.vision, ours.vision));
        }
        if copies(Tower::Text) && ours.text.heads != theirs.text.heads {
            problems.push(format!(
                "the text tower has {} heads there and {} here",
                theirs.text.heads, ours.text.heads
            ));
        }
        if (copies(Tower::Image) || copies(Tower::Text)) && ours.activation != theirs.activation {
            problems.push(format!(
                "the activation is {:?} there and {:?} here",
                theirs.activation, ours.activation
            ));
        }
        let hidden = problems.len().saturating_sub(3);
        problems.truncate(3);
        if hidden > 0 {
            problems.push(format!("and {hidden} more"));
        }
        if !problems.is_empty() {
            return Err(ModelError::Start { path: path.to_owned(), problem: problems.join("; ") });
        }
        for (own, theirs) in pairs {
            own.set(&theirs.as_detached_tensor())?;
        }
        Ok(())
    }
}
