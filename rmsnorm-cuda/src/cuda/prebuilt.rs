//! Kernels compiled ahead, for machines without NVRTC: the [portable](Module::portable) module of every call, as PTX that the driver compiles.
//!
//! A bundle is text, an empty line, and frames of zstd. The first line of the text names the format and the NVRTC; each other line is a module: the
//! SHA-256 of its source, that of its PTX, the frame that it is in (first byte and length, counted from behind the empty line), its place in what
//! the frame decompresses to, and its name. Modules that resemble each other share a frame. A module is found by its source: what was
//! made of other sources is not found.

#![cfg_attr(not(feature = "prebuilt"), allow(dead_code, unused_imports))]

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::OnceLock;

use sha2::{Digest, Sha256};

use super::module::Module;
use crate::Dtype;

/// Kernels compiled ahead.
#[derive(Debug)]
pub struct Bundle {
    modules: BTreeMap<String, Entry>,
    frames: &'static [u8],
    nvrtc: String,
}

#[derive(Debug)]
struct Entry {
    ptx_sha256: String,
    frame: Range<usize>,
    place: Range<usize>,
}

impl Bundle {
    /// That of the package `rmsnorm-cuda-prebuilt`, if it is there and of these sources; else why it is not.
    pub fn installed() -> Result<&'static Self, &'static str> {
        static INSTALLED: OnceLock<Result<Bundle, String>> = OnceLock::new();
        let read = || match PACKAGE {
            None => Err("it is off".into()),
            Some([]) => Err("the bundle is empty: `cargo xtask prebuilt` makes it".into()),
            Some(bytes) => Bundle::read(bytes),
        };
        INSTALLED.get_or_init(read).as_ref().map_err(String::as_str)
    }

    /// What [`pack`] made.
    pub fn read(bytes: &'static [u8]) -> Result<Self, String> {
        let end = bytes.windows(2).position(|pair| pair == b"\n\n").ok_or("the bundle has no list of modules")?;
        let (text, frames) = (&bytes[..end], &bytes[end + 2..]);
        let text = std::str::from_utf8(text).map_err(|e| e.to_string())?;
        let (first, lines) = text.split_once('\n').ok_or("the bundle is empty")?;
        let nvrtc = first.strip_prefix(FORMAT).ok_or_else(|| format!("the bundle begins {first:?}, not {FORMAT:?}"))?;
        let entry = |line: &str| {
            let mut words = line.splitn(7, ' ');
            let (source, ptx_sha256) = (words.next()?.to_string(), words.next()?.to_string());
            let mut range = || {
                let (start, len): (usize, usize) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
                Some(start..start.checked_add(len)?)
            };
            let entry = Entry { ptx_sha256, frame: range()?, place: range()? };
            (entry.frame.end <= frames.len()).then_some((source, entry))
        };
        let modules = lines.lines().map(|line| entry(line).ok_or_else(|| format!("the bundle has the line {line:?}")));
        let bundle = Bundle { modules: modules.collect::<Result<_, _>>()?, frames, nvrtc: nvrtc.into() };
        if !bundle.modules.contains_key(&sha256(Module::Fold { dw: Dtype::F32, per_head: false }.source().as_bytes())) {
            return Err("the bundle was made of other kernels than these: `cargo xtask prebuilt` makes it anew".into());
        }
        Ok(bundle)
    }

    /// Number of modules, and the version of the NVRTC that compiled them.
    pub fn describe(&self) -> String {
        format!("{} modules by NVRTC {}", self.modules.len(), self.nvrtc)
    }

    /// The PTX of `module` with a zero behind it, as the driver takes it; or why there is none.
    pub fn image(&self, module: &Module) -> Result<Vec<u8>, String> {
        let source = sha256(module.source().as_bytes());
        let entry = self.modules.get(&source).ok_or_else(|| format!("{}, none of this", self.describe()))?;
        let frame = decompress(&self.frames[entry.frame.clone()])?;
        let mut ptx = frame.get(entry.place.clone()).ok_or("a frame is too short")?.to_vec();
        if sha256(&ptx) != entry.ptx_sha256 || ptx.contains(&0) {
            return Err("its text is not what was packed".into());
        }
        ptx.push(0);
        Ok(ptx)
    }
}

/// A bundle of modules and their PTX. `compress` makes a frame of zstd.
pub fn pack<E>(
    nvrtc: (i32, i32),
    modules: &[(Module, String)],
    compress: impl Fn(&[u8]) -> Result<Vec<u8>, E>,
) -> Result<Vec<u8>, E> {
    let (mut text, mut frames) = (format!("{FORMAT}{}.{}\n", nvrtc.0, nvrtc.1), Vec::new());
    for together in modules.chunks(MODULES_PER_FRAME) {
        let raw: Vec<u8> = together.iter().flat_map(|(_, ptx)| ptx.bytes()).collect();
        let (first, frame) = (frames.len(), compress(&raw)?);
        let mut at = 0;
        for (module, ptx) in together {
            let [source, sum] = [module.source().as_bytes(), ptx.as_bytes()].map(sha256);
            text += &format!("{source} {sum} {first} {} {at} {} {module}\n", frame.len(), ptx.len());
            at += ptx.len();
        }
        frames.extend(frame);
    }
    Ok([text.as_bytes(), b"\n", &frames].concat())
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(feature = "prebuilt")]
const PACKAGE: Option<&[u8]> = Some(rmsnorm_cuda_prebuilt::BUNDLE);
#[cfg(not(feature = "prebuilt"))]
const PACKAGE: Option<&[u8]> = None;

#[cfg(feature = "prebuilt")]
fn decompress(frame: &[u8]) -> Result<Vec<u8>, String> {
    let mut decoder = ruzstd::decoding::StreamingDecoder::new(frame).map_err(|e| e.to_string())?;
    let mut raw = Vec::new();
    std::io::Read::read_to_end(&mut decoder, &mut raw).map_err(|e| e.to_string())?;
    Ok(raw)
}

#[cfg(not(feature = "prebuilt"))]
fn decompress(_: &[u8]) -> Result<Vec<u8>, String> {
    Err("it is off".into())
}

const FORMAT: &str = "rmsnorm-cuda bundle 1, NVRTC ";

/// A frame is decompressed for each module that is loaded from it, and small beside all.
const MODULES_PER_FRAME: usize = 16;
