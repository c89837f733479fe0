//! Tests of the overlay, without a mount.

mod fixture;
mod groups;
mod judge;
mod operations;

#[cfg(debug_assertions)]
mod between;
mod changes;
mod copying;
mod faults;
mod freezing;
mod hard_links;
mod keeping;
mod kills;
mod names;
mod races;
mod renames;
mod unlinked;
