//! Judges executors: adversarial inputs, the specification as plain loops, and the properties that every executor must have.
//!
//! Read in this order: [`case`] and [`values`] (what an input is), [`operands`], [`buffer`] and [`elements`] (the memory
//! made from it), [`hard`] (the named inputs), [`literal`] (the specification with plain loops), [`mod@property`] (the list of
//! properties) and then one file for each kind of property: [`identity`], [`accuracy`], [`memory`], [`batch`], [`scaling`],
//! [`exact`], [`refusal`], [`products`]. [`golden`] freezes the bits, [`idle`] is the test that the project began with.

#![forbid(unsafe_code)]

#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

pub mod accuracy;
pub mod batch;
pub mod buffer;
pub mod case;
#[cfg(feature = "cuda")]
pub mod compiled;
pub mod elements;
pub mod exact;
pub mod golden;
pub mod hard;
pub mod identity;
pub mod idle;
pub mod literal;
pub mod memory;
pub mod mutants;
pub mod operands;
pub mod products;
pub mod property;
pub mod refusal;
pub mod scaling;
pub mod study;
pub mod targets;
pub mod values;

pub use buffer::Fill;
pub use case::{Case, Gap, Name, Place, cases, random_case};
pub use hard::{HardCase, hard_case, hard_cases};
pub use literal::Literal;
pub use operands::{Operands, Outputs};
pub use property::{Evidence, Outcome, PROPERTIES, Property, property};
pub use values::{Values, Which};
