//! The judge is judged: correct kernels in any order are right, planted faults are named, and files of all kinds get an answer.

mod compared;
mod files;
mod kernel;
mod large;
mod planted;
mod program;
mod right;
