//! Output bits by case, and what the reports of other runs, committed, say of them.

use super::report::{Build, Digests, Report};
use crate::copies::below_root;
use crate::record::plural;
use anyhow::{Context, Result, bail};
use rayon::{ThreadPool, ThreadPoolBuilder};
use rmsnorm_cuda::{BITS_VERSION, Error, Executor};
use rmsnorm_fuzz::golden;
use rmsnorm_fuzz::sets::{self, Item};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The cases whose output bits reports carry; or only those that are quick to compute; and one in so many of the plan classes and of the
/// several types, each of which has kernels of its own.
pub(super) fn digested(quick: bool, one_class_in: usize) -> Vec<Item> {
    let large = if quick { Vec::new() } else { sets::hard(true) };
    let several = [sets::plan_classes(), sets::types()].map(|items| sets::one_in(one_class_in, items));
    [sets::hard(false), large, sets::random(0, &RANDOM, DEEP), several.concat()].concat()
}

/// What `executor` makes of `items`; `done` is called after each.
pub(super) fn digests(items: &[Item], executor: &dyn Executor, done: impl Fn() + Sync) -> Result<Digests> {
    let digest = |item: &Item| {
        let outputs = match golden::digests(executor, &item.case) {
            // Only where there is no NVRTC; the properties say how many cases were left out.
            Err(Error::NoCode { .. }) => None,
            outputs => Some(outputs.with_context(|| format!("digest of {}", item.name))?),
        };
        done();
        let digits = |output: Option<String>| output.map_or("-".into(), |hash| hash[..DIGITS].to_string());
        Ok(outputs.map(|all| (key(item), all.into_iter().map(digits).collect::<Vec<_>>().join(" "))))
    };
    let next = AtomicUsize::new(0);
    let work = || {
        std::iter::from_fn(|| items.get(next.fetch_add(1, Ordering::Relaxed)).map(digest))
            .filter_map(Result::transpose)
            .collect()
    };
    // A pool for each worker, as in `Judge::judge_all`: in a shared one, a case that waits begins another on its stack, and so on.
    let pools: Vec<ThreadPool> = (0..rayon::current_num_threads())
        .map(|_| ThreadPoolBuilder::new().num_threads(1).build())
        .collect::<Result<_, _>>()?;
    let parts: Vec<Result<Digests>> = std::thread::scope(|scope| {
        let workers: Vec<_> = pools.iter().map(|pool| scope.spawn(|| pool.install(work))).collect();
        let joined = workers.into_iter().map(|worker| worker.join().unwrap_or_else(|_| bail!("a digest panicked")));
        joined.collect()
    });
    parts.into_iter().try_fold(Digests::new(), |mut all, part| {
        all.append(&mut part?);
        Ok(all)
    })
}

/// Only equal inputs can be compared: a case that was changed is another case.
fn key(Item { name, case }: &Item) -> String {
    let inputs = Sha256::digest(case.to_string())[..4].iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("{name} {inputs}")
}

/// How many cases are in both, and the outputs of these that differ.
pub(super) fn compare(here: &Digests, there: &Digests) -> (usize, Vec<String>) {
    let both = here.iter().filter_map(|(case, outputs)| Some((case, outputs, there.get(case)?)));
    let differ = both.clone().filter(|(_, here, there)| here != there).map(|(case, here, there)| {
        let outputs =
            OUTPUTS.iter().zip(here.split(' ').zip(there.split(' '))).filter(|(_, (here, there))| here != there);
        let outputs: Vec<&str> = outputs.map(|(name, _)| *name).collect();
        format!("{} of {}", outputs.join(", "), case.split(' ').next().unwrap_or(case))
    });
    (both.clone().count(), differ.collect())
}

/// What the reports under a folder say of a run.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Committed {
    /// A sentence for each, and whether there is one of a GPU.
    pub(super) lines: Vec<String>,
    /// Other bits of equal inputs.
    pub(super) contradictions: Vec<String>,
}

impl Committed {
    /// Compares `digests` with every report under `folder` but that which this run is to replace.
    pub(super) fn compare(folder: &Path, digests: &Digests, replaced: Option<&PathBuf>) -> Committed {
        let mut all = Committed::default();
        if !folder.is_dir() {
            all.lines.push(format!("nothing to compare with: there is no {}", below_root(folder)));
            return all;
        }
        let replaced = replaced.and_then(|path| path.canonicalize().ok());
        let mut newest: Option<(String, Report)> = None;
        for path in
            reports(folder).into_iter().filter(|path| path.canonicalize().ok() != replaced || replaced.is_none())
        {
            let name = below_root(&path);
            let report = match Report::read(&path) {
                Ok(report) => report,
                Err(error) => {
                    all.lines.push(format!("unreadable: {error:#}"));
                    continue;
                }
            };
            let on = report.machine.gpu.as_ref().map_or(&report.machine.cpu, |gpu| &gpu.name);
            let which = format!("{name} ({on}, commit {})", report.build.commit());
            let version = report.build.bits_version;
            match compare(digests, &report.digests) {
                _ if version != BITS_VERSION => {
                    all.lines.push(format!("not compared, bits version {version} is not {BITS_VERSION}: {which}"))
                }
                (0, _) => all.lines.push(format!("not compared, it has none of these cases: {which}")),
                (cases, differ) if differ.is_empty() => {
                    all.lines.push(format!("same bits as {which} in {}", plural(cases, "case")))
                }
                (cases, differ) => all.contradictions.push(format!(
                    "other bits than {which} in {} of {}: {}{}",
                    differ.len(),
                    plural(cases, "case"),
                    differ[..differ.len().min(NAMED)].join("; "),
                    if differ.len() > NAMED { "; …" } else { "" }
                )),
            }
            let newer = newest.as_ref().is_none_or(|(_, other)| other.started_unix_s < report.started_unix_s);
            if report.machine.gpu.is_some() && report.passed && newer {
                newest = Some((which, report));
            }
        }
        all.lines.push(of_a_gpu(folder, newest));
        all
    }
}

/// Whether the newest report of a GPU says something about this binary.
fn of_a_gpu(folder: &Path, newest: Option<(String, Report)>) -> String {
    let Some((which, Report { build: that, .. })) = newest else {
        return format!("{} holds no report of a GPU", below_root(folder));
    };
    let this = Build::this();
    if this.kernel_sources_sha256 == "unknown" {
        format!("this build has no kernels to compare with those of {which}")
    } else if that.kernel_sources_sha256 != this.kernel_sources_sha256 {
        format!("STALE: the kernels have changed since {which}")
    } else {
        format!("of the present kernels: {which}")
    }
}

/// The files under `folder` that are called like reports of this command.
fn reports(folder: &Path) -> Vec<PathBuf> {
    let is_report = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("verify-") && name.ends_with(".json")
    };
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|file| file.path());
    let mut paths: Vec<PathBuf> = files.filter(is_report).collect();
    paths.sort();
    paths
}

const OUTPUTS: [&str; 6] = ["rstd", "y", "dx", "dw", "z", "db"];
/// Random cases among those that are digested.
const RANDOM: [(u64, u32); 1] = [(200, 16)];
const DEEP: u64 = 20;
/// Hexadecimal digits of a digest: 48 bits do not agree by accident.
const DIGITS: usize = 12;
/// Cases that a sentence names.
const NAMED: usize = 5;

#[cfg(test)]
mod tests {
    use super::super::report::{Machine, SCHEMA};
    use super::*;
    use crate::record;
    use rmsnorm_cuda::{Backward, Cpu, Dtype, Error, Forward, Rows, Slice, SliceMut};

    /// The bits that another machine computed are those that this machine's CPU computes.
    #[test]
    fn committed_reports_have_the_bits_of_this_cpu() {
        let here = digests(&digested(true, 1), &Cpu, || ()).unwrap();
        let paths = reports(&crate::copies::root().join(super::super::EVIDENCE));
        assert!(!paths.is_empty());
        for path in paths {
            let report = Report::read(&path).unwrap();
            let name = path.display();
            assert_eq!(report.build.bits_version, BITS_VERSION, "{name} is of other bits: make it anew or remove it");
            let (cases, differ) = compare(&here, &report.digests);
            println!("{name}: {cases} cases compared");
            assert!(cases > 0, "{name} has no case that is digested today: make it anew or remove it");
            assert_eq!(differ, Vec::<String>::new(), "{name}");
        }
    }

    /// The CPU executor, but for one bit of dx where rows have `0` elements.
    struct Flip(usize);

    impl Executor for Flip {
        fn name(&self) -> String {
            "flip".into()
        }
        fn forward(&self, call: Forward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
            Cpu.forward(call)
        }
        fn backward(&self, call: Backward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
            let Backward { rows, hidden, weight_offset, x, weight, rstd, dy, mut dx, dw, .. } = call;
            let at = dx.offset;
            let SliceMut::F32(data) = &mut dx.data else { panic!("another type") };
            let lent = Rows::strided(SliceMut::F32(data), at, dx.row_stride);
            Cpu.backward(Backward {
                weight_offset,
                weight,
                dw,
                ..Backward::with_rows((rows, hidden), x, rstd, dy, lent)
            })?;
            if hidden == self.0 {
                data[at] = f32::from_bits(data[at].to_bits() ^ 1);
            }
            Ok(())
        }
    }

    fn items() -> Vec<Item> {
        let item = |name| {
            let mut item = sets::named(name).unwrap();
            item.case.dtype = Dtype::F32;
            item
        };
        ["width_5", "width_7"].map(item).to_vec()
    }

    #[test]
    fn one_bit_is_named_and_other_inputs_are_not_compared() {
        let [cpu, other] = [&Cpu as &dyn Executor, &Flip(7)].map(|e| digests(&items(), e, || ()).unwrap());
        assert_eq!(compare(&cpu, &cpu), (2, vec![]));
        assert_eq!(compare(&cpu, &other), (2, vec!["dx of width_7".to_string()]));
        let mut changed = items();
        changed[1].case.eps += 1.0;
        let changed = digests(&changed, &Cpu, || ()).unwrap();
        assert_eq!(compare(&cpu, &changed), (1, vec![]));
    }

    fn report(digests: Digests) -> Report {
        Report {
            schema: SCHEMA,
            passed: true,
            command: vec![],
            started_unix_s: 0,
            elapsed_s: 0.0,
            build: Build::this(),
            machine: Machine { cpu: "some CPU".into(), ..Machine::default() },
            mode: "default".into(),
            seed: 0,
            rows: vec![],
            random: None,
            digests_by: vec![],
            digests,
            failures: vec![],
            phases: vec![],
            literal_thread_s: 0.0,
        }
    }

    #[test]
    fn committed_reports_are_compared_or_named() {
        let folder = tempfile::tempdir().unwrap();
        let here = digests(&items(), &Cpu, || ()).unwrap();
        let compared = || Committed::compare(folder.path(), &here, None);
        let none = compared();
        assert!(none.contradictions.is_empty() && none.lines.len() == 1, "{none:?}");
        let keep = |name: &str, report: &Report| record::write_json(&folder.path().join(name), report).unwrap();
        keep("verify-same.json", &report(here.clone()));
        keep("verify-other.json", &report(digests(&items(), &Flip(5), || ()).unwrap()));
        keep("verify-none.json", &report(Digests::new()));
        keep("verify-old.json", &Report { schema: 1, ..report(here.clone()) });
        record::write(&folder.path().join("verify-text.json"), "text").unwrap();
        let all = compared();
        let says = |text: &str, name: &str| all.lines.iter().any(|line| line.starts_with(text) && line.contains(name));
        assert!(
            says("same bits as ", "verify-same.json (some CPU, commit ") && says("not compared", "verify-none.json")
        );
        assert!(says("unreadable: ", "verify-old.json") && says("unreadable: ", "verify-text.json"), "{all:?}");
        assert!(all.contradictions.len() == 1 && all.contradictions[0].contains("in 1 of 2 cases: dx of width_5"));
        // What this run replaces is not held against it.
        let replaced = folder.path().join("verify-other.json");
        assert!(Committed::compare(folder.path(), &here, Some(&replaced)).contradictions.is_empty());
        let absent = Committed::compare(&folder.path().join("nowhere"), &here, None);
        assert!(absent.lines[0].starts_with("nothing to compare with"), "{absent:?}");
    }
}
