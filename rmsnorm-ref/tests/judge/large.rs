//! What a large file takes.

use rmsnorm_ref::judge::Verdict;
use safetensors::tensor::{Dtype, TensorView};
use std::process::{Command, Stdio};
use std::time::Duration;

const ROWS: usize = 16_384;
const HIDDEN: usize = 256;

/// The program takes no more than twice the memory of the tensors, whether they are right or there is a mistake to look for.
#[test]
#[cfg(target_os = "linux")]
fn memory_is_at_most_twice_the_tensors() {
    let dir = tempfile::tempdir().unwrap();
    let bf16 = |value: f32| half::bf16::from_f32(value).to_le_bytes();
    let mut random = crate::kernel::Random(1);
    // x of ±1, eps 0, dy = x: y = x, dx = 0, dw = the number of rows.
    let x: Vec<u8> = (0..ROWS * HIDDEN).flat_map(|_| bf16(1.0 - 2.0 * random.below(2) as f32)).collect();
    let (dx, dw) = (vec![0; x.len()], bf16(ROWS as f32).repeat(HIDDEN));
    let mut noise = || (0..ROWS * HIDDEN).flat_map(|_| bf16(random.normal() as f32)).collect::<Vec<u8>>();
    let noise = [noise(), noise(), noise(), noise()];
    for (matrices, verdict) in [([&x, &x, &x, &dx], Verdict::Right), (noise.each_ref(), Verdict::Outside)] {
        let path = dir.path().join("large.safetensors");
        let matrices = ["x", "dy", "y", "dx"].into_iter().zip(matrices);
        let view = |shape: &[usize], bytes| TensorView::new(Dtype::BF16, shape.to_vec(), bytes).unwrap();
        let tensors = matrices.map(|(name, bytes)| (name, view(&[ROWS, HIDDEN], bytes)));
        let tensors: Vec<_> = tensors.chain([("dw", view(&[HIDDEN], &dw))]).collect();
        safetensors::serialize_to_file(tensors, None, &path).unwrap();
        let bytes = std::fs::metadata(&path).unwrap().len();
        let mut judge = Command::new(env!("CARGO_BIN_EXE_rmsnorm-judge"));
        let mut child = judge.arg(&path).args(["--eps", "0", "--quiet"]).stdout(Stdio::null()).spawn().unwrap();
        let mut most = 0;
        while child.try_wait().unwrap().is_none() {
            most = most.max(peak(child.id()).unwrap_or(0));
            std::thread::sleep(Duration::from_millis(1));
        }
        let status = child.wait().unwrap();
        println!("{verdict}: {bytes} bytes of tensors, {most} resident at most");
        assert_eq!(status.code(), Some(i32::from(verdict != Verdict::Right)));
        assert!(bytes < most && most <= 2 * bytes, "{verdict}: {bytes} bytes of tensors, {most} resident at most");
    }
}

/// The most bytes that a living process has had in memory.
#[cfg(target_os = "linux")]
fn peak(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(1024 * line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?)
}
