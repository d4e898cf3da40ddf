//! The bits, frozen: a digest of the outputs of every small hard case, and of every case of several types.
//!
//! `golden.txt` holds `BITS_VERSION` and a line for each case, made by the literal executor: name, digest of the case, digest of
//! its outputs. A change of any output bit changes a
//! digest, and then the version must rise.

use crate::buffer::Fill;
use crate::case::Case;
use crate::elements::Elements;
use crate::hard::hard_cases;
use crate::identity::literal_outputs;
use crate::operands::{Operands, Outputs};
use crate::sets::types;
use rmsnorm_cuda::{BITS_VERSION, Error, Executor};
use sha2::{Digest, Sha256};
use std::fmt::Write;

/// SHA-256 of every output of `executor` on `case`, NaNs being canonical: rstd, y, dx, dw, each as its element size, its length
/// and its bits, little-endian.
pub fn digest(executor: &dyn Executor, case: &Case) -> Result<String, Error> {
    Ok(digest_of(&Operands::new(case, Fill::Plausible).run(executor)?))
}

/// The same of each output by itself, where there is one; then z, with a residual, and db, where it is asked for.
pub fn digests(executor: &dyn Executor, case: &Case) -> Result<Vec<Option<String>>, Error> {
    let outputs = Operands::new(case, Fill::Plausible).run(executor)?;
    let digest = |elements| {
        let mut hash = Sha256::new();
        add(&mut hash, elements);
        hex(hash)
    };
    let always = [Some(&outputs.rstd), Some(&outputs.y), Some(&outputs.dx), outputs.dw.as_ref()];
    let others = match (&outputs.z, &outputs.db) {
        (None, None) => vec![],
        (z, None) => vec![z.as_ref()],
        (z, db) => vec![z.as_ref(), db.as_ref()],
    };
    Ok(always.into_iter().chain(others).map(|output| output.map(digest)).collect())
}

/// What `golden.txt` must contain: computed by the literal executor.
pub fn computed() -> String {
    let mut text = format!("BITS_VERSION {BITS_VERSION}\n");
    let small = hard_cases().iter().filter(|c| !c.is_large()).map(|hard| (hard.name.clone(), hard.case));
    for (name, case) in small.chain(types().into_iter().map(|item| (item.name, item.case))) {
        let operands = Operands::new(&case, Fill::Plausible);
        // A case that was changed is another case: its inputs are part of its name here.
        let inputs = &hex(Sha256::new_with_prefix(case.to_string()))[..8];
        let digest = digest_of(&literal_outputs(&operands));
        writeln!(text, "{name} {inputs} {digest}").expect("writing to a string");
    }
    text
}

/// Whether `computed` may stand where `frozen` stood: nothing that both name has changed, or the version has risen, or the bits
/// were not frozen yet (version 0). The error says what to do.
pub fn may_replace(frozen: &str, computed: &str) -> Result<(), String> {
    let (was, is) = (version(frozen), version(computed));
    if is < was {
        return Err(format!("BITS_VERSION fell from {was} to {is}"));
    }
    let changed: Vec<&str> = entries(computed)
        .filter(|(name, hash)| entries(frozen).any(|(n, h)| n == *name && h != *hash))
        .map(|(name, _)| name.split(' ').next().unwrap_or(name))
        .collect();
    if changed.is_empty() || was == 0 || is > was {
        return Ok(());
    }
    Err(format!(
        "output bits changed in {} cases ({}, …) but BITS_VERSION is still {was}. If that is meant: raise BITS_VERSION in \
         rmsnorm-cuda/src/order.rs, write an entry in docs/decisions.md that names the new version, and freeze the bits with \
         RMSNORM_BLESS=1 cargo test -p rmsnorm-fuzz --test golden",
        changed.len(),
        changed[0],
    ))
}

/// The version that a golden file was made for; 0 if it says none.
pub fn version(golden: &str) -> u32 {
    golden.lines().next().and_then(|line| line.strip_prefix("BITS_VERSION ")?.parse().ok()).unwrap_or(0)
}

fn entries(golden: &str) -> impl Iterator<Item = (&str, &str)> {
    golden.lines().skip(1).filter_map(|line| line.rsplit_once(' '))
}

fn digest_of(outputs: &Outputs) -> String {
    let mut hash = Sha256::new();
    let always = [&outputs.rstd, &outputs.y, &outputs.dx];
    for elements in always.into_iter().chain(&outputs.dw).chain(&outputs.z).chain(&outputs.db) {
        add(&mut hash, elements);
    }
    hex(hash)
}

fn add(hash: &mut Sha256, elements: &Elements) {
    let bytes = elements.dtype().bytes();
    hash.update([bytes as u8]);
    hash.update((elements.len() as u64).to_le_bytes());
    let mut piece = Vec::with_capacity(PIECE * bytes);
    for first in (0..elements.len()).step_by(PIECE) {
        piece.clear();
        for i in first..elements.len().min(first + PIECE) {
            piece.extend_from_slice(&elements.bits(i).to_le_bytes()[..bytes]);
        }
        hash.update(&piece);
    }
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string");
        text
    })
}

const PIECE: usize = 1 << 14;
