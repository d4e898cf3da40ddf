//! Broken kernels, each of which is caught.

use super::{demand_caught, emulator, machine};
use rayon::prelude::*;
use rmsnorm_cuda::Dtype;
use rmsnorm_cuda::plan::Arch;
use rmsnorm_fuzz::case::Gap;
use rmsnorm_fuzz::{Case, Name, Place, Values};

/// Each broken kernel gives other bits, or is caught by the emulator itself, for at least one of eight orders of threads.
#[test]
fn broken_kernels_are_caught() {
    if !machine::has_cxx() {
        return;
    }
    broken()
        .par_iter()
        .for_each(|(what, from, to, case)| demand_caught(|| emulator(Arch::H200, Some(8), 0), what, (from, to), case));
}

/// The same of rows that are not on 16 bytes: with bulk copies, and as they are read and written without.
#[test]
fn broken_kernels_of_odd_rows_are_caught() {
    if !machine::has_cxx() {
        return;
    }
    let odd = |hidden| Case::new(9, hidden, Dtype::Bf16).with_place(Name::X, Place { offset: 1, gap: Gap::None });
    ODD.par_iter().for_each(|(arch, what, from, to)| {
        let case = odd(if *arch == Arch::A100 { 777 } else { 1501 });
        demand_caught(|| emulator(*arch, Some(3), 0), what, (from, to), &case);
    });
}

/// What, the text with what stands there instead, and the case that shows it.
fn broken() -> [(&'static str, &'static str, &'static str, Case); 22] {
    let many_teams = Case::new(1400, 2048, Dtype::Bf16);
    let ring = Case::new(700, 4096, Dtype::Bf16);
    let narrow = Case::new(40_000, 40, Dtype::F32);
    // Two clusters, each with more rows than its ring has places.
    let wide = Case::new(12, 32_768, Dtype::Bf16);
    let scaled = Case { eps: 0.0, x: Values::Subnormal, ..Case::new(4, 32_768, Dtype::F32) };
    [
        ("no barrier between the warps of a team", "        team_barrier();\n        // Past", "        // Past", ring),
        ("one buffer instead of two that take turns", "turn ^= 1;", "", ring),
        ("a stage filled while it is read", "fetch(stage == 0 ? stages - 1 : stage - 1);", "fetch(stage);", ring),
        ("a stage read before it has arrived", "arrival_wait(full(stage), phase);", "", ring),
        (
            "no barrier between hands",
            "            all();\n            if (rank % (2 * d) == 0",
            "            if (rank % (2 * d) == 0",
            many_teams,
        ),
        ("one buffer instead of two for hands", "buffers[all.parity]", "buffers[0]", many_teams),
        (
            "the parity of the meeting forgotten",
            "meeting(barrier, parity), parity ^= 1;",
            "meeting(barrier, parity);",
            many_teams,
        ),
        (
            "the tree upside down",
            "for (u32 d = 1; d < width; d *= 2) v = fold",
            "for (u32 d = width / 2; d > 0; d /= 2) v = fold",
            ring,
        ),
        (
            "row-less groups return early",
            "    Source source(operands, stages, pace);",
            "    if (blockIdx.x > 3) return;\n    Source source(operands, stages, pace);",
            ring,
        ),
        ("eps forgotten", "__fadd_rn(mean(sum, hidden), eps)", "mean(sum, hidden)", narrow),
        (
            "no tail",
            "if (!column.has(i, hidden)) continue;",
            "if (!column.has(PACK - 1, hidden)) continue;",
            Case::new(50, 39, Dtype::Bf16),
        ),
        (
            "groups dealt in blocks",
            "here = first + team, first += of.groups;",
            "here = first + team, first += of.groups + 1;",
            narrow,
        ),
        (
            "a sum of slots before all messages are there",
            "        messages_wait(&shared.arrived[n % 2], n / 2 % 2);",
            "",
            wide,
        ),
        ("one slot instead of two", "slots[n % 2]", "slots[0]", wide),
        ("the phase of a slot forgotten", "n / 2 % 2", "0", wide),
        ("one slot for the scaled row too", "exchange.sum(n++)", "exchange.sum(n)", scaled),
        ("armed with the bytes of one block", "NODES * sizeof(float))", "WARPS * sizeof(float))", wide),
        (
            "sent before the wait for the row before",
            "c = mean(exchange.sum(n, node), divisor(hidden));\n            if (more) exchange.send(n + 1, node);\n",
            "node = fold_lanes(node, 32);\n            if (more) exchange.send(n + 1, node);\n            \
             c = mean(exchange.sum(n), divisor(hidden));\n",
            wide,
        ),
        ("messages before the blocks have met", "    cluster_arrive();\n    cluster_wait();\n", "", wide),
        ("a place filled again by its first reader", "WARPS - 1) == WARPS - 1)", "WARPS - 1) == 0)", wide),
        ("a slice read before it has arrived", "arrival_wait(&shared.full[first_place], first_phase);", "", wide),
        ("a row read before it has arrived", "arrival_wait(&shared.full[k], 0);", "", wide),
    ]
}

/// Where, what, and the text with what stands there instead.
const ODD: [(Arch, &str, &str, &str); 16] = [
    (Arch::A100, "half of another word", "before = lane > 0 ? handed : of_last;", "before = handed;"),
    (
        Arch::A100,
        "a warp's last element left to the next warp",
        "if (i + 2 == PACK && is_last) at[1] = (u16)(mine >> 16);",
        "",
    ),
    (Arch::A100, "a warp's first element left to the warp before", "if (i == 0 && is_first) at[0] = (u16)mine;", ""),
    (Arch::A100, "a row taken to begin with a whole word", "else if ((u64)row & 2) f(", "else if ((u64)row & 4) f("),
    (
        Arch::A100,
        "what a lane has first, then the lanes",
        "node[s] = fold_spread(v);",
        "node[s] = fold_lanes(fold_pack(p[s]), TEAM_LANES);",
    ),
    (
        Arch::A100,
        "a half handed over within one word",
        "is_end || lane > 0 ? mine : v.word(i / 2 + 1 - is_end)",
        "mine",
    ),
    (Arch::A100, "the last half handed over by nobody", "(is_end && lane == TEAM_LANES - 1 ? last : handed)", "handed"),
    (Arch::H200, "ends of an operand that nobody copies", "if (lane < STAGE_ROWS) mine.ends(to);", ""),
    (
        Arch::H200,
        "bytes of one operand awaited",
        "other < STAGE_ROWS; other++) bytes +=",
        "other < 1; other++) bytes +=",
    ),
    (Arch::H200, "a word of a split row that has arrived taken for whole", "bits = 8 * odd;", "bits = 0;"),
    (Arch::H200, "an element past the end", "column.has(i + 1, hidden) ? word : word & 0xffff;", "true ? word : 0;"),
    (Arch::H200, "a row read before it has arrived", "        arrival_wait(arrived, phase);\n", ""),
    (
        Arch::H200,
        "y copied before all have written it",
        "        async_proxy_fence();\n        team_barrier();\n",
        "        async_proxy_fence();\n",
    ),
    (Arch::H200, "a copy that nobody waits for", "        if (member == 0) bulk_stores_read();\n", ""),
    (Arch::H200, "elements before the first word", "if (member < before) to[member] = y_row[member];", ""),
    (Arch::H200, "y where x lies among words", "(T*)(out + skew(to))", "(T*)(out + skew(x + row * x_stride))"),
];
