//! Where the code of a kernel comes from: the cache, else NVRTC, else what was compiled ahead.

use super::cache::{Cache, Origin};
use super::library::nvrtc;
use super::module::Module;
use super::prebuilt::Bundle;
use crate::Error;

/// The places that there are.
pub(super) struct Code {
    pub(super) cache: Cache,
    capability: (u32, u32),
    without_nvrtc: Option<WithoutNvrtc>,
}

/// What there is instead of a compiler.
struct WithoutNvrtc {
    reason: Error,
    bundle: Result<&'static Bundle, &'static str>,
    /// Whether what another process kept is looked for. Not in checks of a bundle.
    takes_kept: bool,
}

impl Code {
    /// For compute capability `major.minor`; an error where none of the places could have anything.
    pub(super) fn new(cache: Cache, capability: (u32, u32)) -> Result<Self, Error> {
        let instead = |reason| WithoutNvrtc { reason, bundle: Bundle::installed(), takes_kept: true };
        let code = Code { cache, capability, without_nvrtc: nvrtc(capability).err().map(instead) };
        match &code.without_nvrtc {
            Some(WithoutNvrtc { reason, bundle: Err(off), .. }) if !code.cache.keeps_any() => {
                Err(code.none("any kernel", reason, off))
            }
            _ => Ok(code),
        }
    }

    /// That of `bundle` alone.
    #[cfg(feature = "checks")]
    pub(super) fn of_bundle(bundle: &'static Bundle, capability: (u32, u32)) -> Self {
        let reason = Error::Library { library: "NVRTC", reason: "is not to be used".into() };
        let instead = WithoutNvrtc { reason, bundle: Ok(bundle), takes_kept: false };
        Code { cache: Cache::off(), capability, without_nvrtc: Some(instead) }
    }

    /// Whether what was compiled ahead takes the place of what is missing; and if so, whether anything else may be there.
    pub(super) fn ahead(&self) -> Option<bool> {
        self.without_nvrtc.as_ref().filter(|instead| instead.bundle.is_ok()).map(|instead| instead.takes_kept)
    }

    /// What the driver is to load of `module`: of what was compiled `ahead`, or not.
    pub(super) fn image(&self, module: &Module, ahead: bool) -> Result<(Vec<u8>, Origin), Error> {
        let Some(WithoutNvrtc { reason, bundle, .. }) = &self.without_nvrtc else {
            return self.cache.cubin_and_origin(module, self.capability);
        };
        let prebuilt = match bundle {
            Ok(bundle) if ahead => match bundle.image(module) {
                Ok(ptx) => return Ok((ptx, Origin::Prebuilt)),
                Err(why) => why,
            },
            Ok(_) => "this is none of them".into(),
            Err(off) => off.to_string(),
        };
        match self.cache.cubin_of_any(module, self.capability).filter(|_| !ahead) {
            Some(cubin) => Ok((cubin, Origin::Cache)),
            None => Err(self.none(&module.to_string(), reason, &prebuilt)),
        }
    }

    /// The error that names the three places.
    fn none(&self, kernel: &str, nvrtc: &Error, prebuilt: &str) -> Error {
        let cache = match (self.cache.folder(), self.cache.warning()) {
            (_, Some(warning)) => warning.to_string(),
            (Some(folder), None) => format!("{} has none", folder.display()),
            (None, None) => "is off".into(),
        };
        let nvrtc = match nvrtc {
            Error::Library { reason, .. } => reason.clone(),
            other => other.to_string(),
        };
        Error::NoCode { kernel: kernel.into(), cache, nvrtc, prebuilt: prebuilt.into() }
    }
}
