//! A hostile web server, crash points and fixtures, for tests alone.

pub mod web;

pub use web::{Answer, Request, Site, Web};
