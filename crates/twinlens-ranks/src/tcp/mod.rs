//! Ranks that are processes, each connected with every other by TCP.

mod meet;
mod peer;
mod ranks;

pub use meet::Meeting;
pub use ranks::Tcp;
