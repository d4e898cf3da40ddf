//! Judges executors: adversarial inputs, the specification as plain loops, and the properties that every executor must have.
//!
//! Read in this order: [`case`] and [`values`] (what an input is), [`operands`], [`buffer`] and [`elements`] (the memory
//! made from it), [`hard`] and [`sets`] (the named inputs), [`literal`] (the specification with plain loops), [`mod@subject`] (what is judged),
//! [`finding`] (what can be found), [`mod@property`] (the list of properties) and then one file for each kind of property:
//! [`identity`], [`accuracy`], [`runs`], [`memory`], [`issue_781`], [`launches`], [`batch`], [`scaling`], [`refusal`],
//! [`far_rows`], [`exact`], [`fused`], [`twice`], [`in_place`], [`heads`], [`types`]. [`golden`] freezes the bits, [`targets`] fuzzes, [`mutants`] are what must be caught.

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
pub mod far_rows;
pub mod finding;
pub mod fused;
pub mod golden;
pub mod hard;
pub mod heads;
pub mod identity;
pub mod in_place;
pub mod issue_781;
pub mod launches;
pub mod literal;
pub mod memory;
pub mod mutants;
pub mod operands;
pub mod property;
pub mod refusal;
pub mod runs;
pub mod scaling;
pub mod sets;
pub mod statistics;
pub mod subject;
pub mod targets;
pub mod twice;
pub mod types;
pub mod values;

pub use buffer::Fill;
pub use case::{Case, Gap, Groups, Name, Place, cases, random_case};
pub use finding::{Evidence, Outcome};
pub use hard::{HardCase, hard_case, hard_cases};
pub use literal::Literal;
pub use operands::{Operands, Outputs};
pub use property::{PROPERTIES, Property, property, try_case};
pub use subject::{Subject, Tried};
pub use values::{Values, Which};
