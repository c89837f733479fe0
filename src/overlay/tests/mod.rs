//! Tests of the overlay, without a mount.

mod fixture;

mod changes;
mod copying;
mod faults;
mod hard_links;
mod names;
mod races;
mod renames;
