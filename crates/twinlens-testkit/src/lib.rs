//! A hostile web server, crash points and fixtures, for tests alone.

pub mod images;
pub mod tar;
pub mod web;

pub use web::{Answer, Certificate, Faults, Request, Site, Web};
