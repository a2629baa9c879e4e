//! Internal columns of the plans.

use twinlens_pipeline::passes::group_of;

/// The position of a row in the input.
pub(super) const POSITION: &str = "__twinlens_dedup_position";
/// The place of a row among its equals, or how many there are; of a distinct hash, itself.
pub(super) const PLACE: &str = "__twinlens_dedup_place";
/// The smallest uid among equals.
pub(super) const KEPT: &str = "__twinlens_dedup_kept";
/// The code of a rejected row.
pub(super) const CODE: &str = "__twinlens_dedup_code";
/// The detail of a rejected row.
pub(super) const DETAIL: &str = "__twinlens_dedup_detail";

/// The group of rows with these keys.
pub(super) fn group_of_texts<'a>(keys: impl IntoIterator<Item = &'a str>, groups: u64) -> u32 {
    // The separator only makes it likelier that other keys are in another group.
    let content: Vec<u8> = keys.into_iter().flat_map(|key| key.bytes().chain([0])).collect();
    group_of(&content, groups)
}
