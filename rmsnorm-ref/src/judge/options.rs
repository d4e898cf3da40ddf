//! What the one who asks knows about the kernel.

use super::Unreadable;
use crate::depth;

/// What is known of a kernel. Everything may be left out but eps, which a file can hold too.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Added to the mean square, inside the root.
    pub eps: Option<f64>,
    /// Whether x_hat is rounded to the type of x before the weight.
    pub rounding: Option<Rounding>,
    /// Added to the weight: 1 for zero-centred weights.
    pub offset: Option<f64>,
    /// What is normalised of x + residual.
    pub sum: Option<Sum>,
    /// What is known of the sums along a row; None for any order.
    pub row: Option<Height>,
    /// What is known of the sums down a column.
    pub column: Option<Height>,
    /// Whether rows whose squares leave the range of f32 are judged.
    pub reach: Reach,
    /// (our name, the file's name) of tensors that are called otherwise.
    pub names: Vec<(String, String)>,
    /// Say nothing of progress.
    pub quiet: bool,
}

/// Where y is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// At the end.
    Once,
    /// x_hat to the type of x, then y: the order of Llama in transformers.
    Twice,
}

/// What of `x + residual` is normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    /// What is stored as z.
    Rounded,
    /// The sum in f32.
    Unrounded,
}

/// What is known of a sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Height {
    /// This many chains whose sums are added by a balanced tree.
    Chains(u64),
    /// The most roundings that one product passes through.
    Most(u64),
}

/// Which rows are judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// All. Beyond the range of f32's squares the bound is that of arithmetic which scales such rows.
    #[default]
    Any,
    /// Rows beyond that range are counted and do not decide.
    Plain,
}

impl Options {
    /// Roundings that a product passes through, along a row and down a column.
    pub(crate) fn heights(&self, rows: usize, hidden: usize) -> (u64, u64) {
        let height = |known: Option<Height>, length: u64| match known {
            None => length,
            Some(Height::Chains(chains)) => depth(length, chains).min(length),
            Some(Height::Most(most)) => most.min(length),
        };
        (height(self.row, hidden as u64), height(self.column, rows as u64))
    }

    /// These, and where they say nothing what the metadata of a file say.
    pub(crate) fn with_metadata<'m>(&self, get: impl Fn(&str) -> Option<&'m String>) -> Result<Self, Unreadable> {
        let mut options = self.clone();
        let refused = |key: &'static str, got: &str, expected: &'static str| {
            Err(Unreadable::Metadata { key, got: got.to_owned(), expected })
        };
        if let (None, Some(text)) = (options.eps, get("eps")) {
            match text.parse() {
                Ok(eps) => options.eps = Some(eps),
                Err(_) => return refused("eps", text, "a number"),
            }
        }
        if let (None, Some(text)) = (options.offset, get("offset").or_else(|| get("weight_offset"))) {
            match text.parse() {
                Ok(offset) if offset == 0.0 || offset == 1.0 => options.offset = Some(offset),
                _ => return refused("offset", text, "0 or 1"),
            }
        }
        if let (None, Some(text)) = (options.rounding, get("rounding")) {
            options.rounding = match text.as_str() {
                "once" => Some(Rounding::Once),
                "twice" => Some(Rounding::Twice),
                _ => return refused("rounding", text, "once or twice"),
            };
        }
        if let (None, Some(text)) = (options.sum, get("sum")) {
            options.sum = match text.as_str() {
                "rounded" => Some(Sum::Rounded),
                "unrounded" => Some(Sum::Unrounded),
                _ => return refused("sum", text, "rounded or unrounded"),
            };
        }
        if let (None, None, Some(text)) = (options.row, options.column, get("chains")) {
            match parse_heights(text, Height::Chains) {
                Ok((row, column)) => (options.row, options.column) = (row, column),
                Err(_) => return refused("chains", text, "any, ROW or ROW,COLUMN"),
            }
        }
        Ok(options)
    }
}

/// `ROW` or `ROW,COLUMN`, each `any` or a positive number.
pub(crate) fn parse_heights(
    text: &str,
    height: impl Fn(u64) -> Height,
) -> Result<(Option<Height>, Option<Height>), String> {
    let one = |text: &str| match text.trim() {
        "any" => Ok(None),
        number => match number.parse::<u64>() {
            Ok(number) if number > 0 => Ok(Some(height(number))),
            _ => Err(format!("`{number}` is neither `any` nor a number above 0")),
        },
    };
    match text.split(',').collect::<Vec<_>>()[..] {
        [row] => Ok((one(row)?, None)),
        [row, column] => Ok((one(row)?, one(column)?)),
        _ => Err(format!("`{text}`: expected ROW or ROW,COLUMN")),
    }
}
