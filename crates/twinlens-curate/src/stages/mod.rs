//! The stage kinds of this crate.

mod balance;
mod columns;
mod command;
mod decontaminate;
mod dedup;
mod filter;
mod match_queries;
mod presets;
mod queries;
mod query_list;
mod select;
mod sql;
#[cfg(test)]
mod testing;

pub use balance::Balance;
pub use command::Command;
pub use decontaminate::Decontaminate;
pub use dedup::Dedup;
pub use filter::Filter;
pub use match_queries::Match;
pub use queries::Queries;
pub use select::Select;
pub use sql::Sql;

use twinlens_pipeline::Registry;

/// Registers this crate's stage kinds and SQL functions.
pub fn register(registry: &mut Registry) {
    registry.add::<Balance>();
    registry.add::<Command>();
    registry.add::<Decontaminate>();
    registry.add::<Dedup>();
    registry.add::<Filter>();
    registry.add::<Match>();
    registry.add::<Queries>();
    registry.add::<Select>();
    registry.add::<Sql>();
    crate::functions::public().into_iter().for_each(|function| registry.add_function(function));
}
