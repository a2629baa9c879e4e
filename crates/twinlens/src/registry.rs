//! Every kind of stage, every SQL function and every web site that the program offers.

use twinlens_pipeline::Registry;

use crate::sites;

/// All of them, from all crates.
pub fn all() -> Registry {
    let mut registry = Registry::default();
    twinlens_crawl::register(&mut registry);
    twinlens_curate::register(&mut registry);
    twinlens_train::register::<twinlens_eval::InTrainingEvaluation>(&mut registry);
    twinlens_eval::register(&mut registry);
    registry.add_site(sites::GALLERY);
    registry
}
