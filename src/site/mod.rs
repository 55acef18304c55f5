//! The site document: plan, apply, export.
