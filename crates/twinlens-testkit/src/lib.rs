//! A misbehaving web server, damaged images, tar and xz files, and a count of memory, for tests
//! only.

pub mod avif;
pub mod bombs;
#[cfg(feature = "stage")]
pub mod contract;
pub mod fuzz;
pub mod images;
pub mod memory;
pub mod process;
pub mod python;
#[cfg(feature = "stage")]
pub mod stage;
pub mod tar;
pub mod web;
pub mod xz;

pub use web::{Answer, Certificate, Faults, Request, Site, WebServer};
