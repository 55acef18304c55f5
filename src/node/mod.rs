//! The composition root: builds, starts, drains and stops; owns every task.
