//! The report as one page.
use super::{FolderReport, Report};
pub(crate) fn of(_: &Report) -> String { String::new() }
pub(crate) fn of_folder(_: &FolderReport) -> String { String::new() }
