//! All built-in kinds of stages, SQL functions and web sites.

use twinlens_pipeline::Registry;

use crate::sites;

/// The registry with everything built in.
pub fn all() -> Registry {
    let mut registry = Registry::default();
    twinlens_crawl::register(&mut registry);
    twinlens_curate::register(&mut registry);
    twinlens_train::register::<twinlens_eval::InTrainingEvaluation>(&mut registry);
    twinlens_eval::register(&mut registry);
    registry.add_site(sites::GALLERY);
    registry
}
