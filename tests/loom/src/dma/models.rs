//! The models. Each says in a comment what its threads do and what has to hold.

mod dirty;
mod slots;
mod space;

use crate::explore::{explore, spawn};
