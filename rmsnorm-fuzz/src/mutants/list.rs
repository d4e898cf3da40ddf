//! The list of defects. A patch names its file and the exact text: one that no longer applies fails `verify --mutants` and the
//! test below.

use super::*;

const fn patch(file: &'static str, from: &'static str, to: &'static str) -> Patch {
    Patch { file, from, to }
}

/// The hard case of this name.
fn hard(name: &str) -> Case {
    hard_case(name).unwrap_or_else(|| panic!("no hard case is called {name}")).case
}

/// Ordinary rows of 40 elements: narrow enough for a warp or two, wide enough for several blocks of row groups.
fn ordinary() -> Case {
    Case { seed: 7, ..Case::new(100, 40, Dtype::F32) }
}

/// Rows that arrive by bulk copies, where the GPU has them.
fn ring() -> Case {
    Case { seed: 7, ..Case::new(20, 512, Dtype::F32) }
}

/// As the issue: far fewer rows than row groups, four columns; enough rows that scratch has a slot for each block.
fn idle() -> Case {
    Case { seed: 7, ..Case::new(600, 4, Dtype::F32) }
}

/// Few enough rows that each shows in dw.
fn twice() -> Case {
    Case { rounding: Rounding::Twice, dw: DwKind::F32, seed: 7, ..Case::new(9, 512, Dtype::Bf16) }
}

/// A row of no whole number of packs, with room behind it.
fn gapped() -> Case {
    let place = Place { offset: 0, gap: Gap::Elements(25) };
    [Name::Y, Name::Dx]
        .into_iter()
        .fold(Case { seed: 7, ..Case::new(60, 39, Dtype::F32) }, |c, o| c.with_place(o, place))
}

/// Rows of which every other one begins in the middle of a word; whole packs of a warp, and a tail.
fn odd() -> Case {
    let place = Place { offset: 3, gap: Gap::None };
    [Name::X, Name::Dy]
        .into_iter()
        .fold(Case { seed: 7, ..Case::new(20, 777, Dtype::Bf16) }, |c, o| c.with_place(o, place))
}

/// Of bf16, with a matrix of f32.
fn mixed(other: Name) -> Case {
    let mut case = Case { seed: 7, ..Case::new(20, 512, Dtype::Bf16) };
    case.types[other as usize] = Some(Dtype::F32);
    case
}

/// A million rows of which each adds next to nothing to dw: one that is lost is within the bound.
fn million() -> Case {
    Case { x: Values::Constant(0.5), ..hard("million_rows") }
}

/// Defects that another property than the named one must catch too, so that each property has two.
pub const ALSO: &[(&str, &str)] = &[("idle_slots_without_nan", "idle_groups_781"), ("tail_stored_whole", "layout")];

/// Every defect: first those of the arithmetic, then those of the CPU executor, then those of the kernels.
pub const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "eps_ignored",
        defect: "eps is not added",
        on: On::Cpu,
        patches: &[patch("arith.rs", "let v = mean(sum, hidden) + eps;", "let v = mean(sum, hidden) + 0.0 * eps;")],
        property: "accuracy",
        case: || hard("eps_dominates"),
        column: false,
    },
    Mutant {
        name: "eps_outside_root",
        defect: "eps is added to the root instead of the mean square",
        on: On::Cpu,
        patches: &[patch(
            "arith.rs",
            "let rstd = reciprocal_root(v);",
            "let rstd = 1.0 / (mean(sum, hidden).sqrt() + eps);",
        )],
        property: "accuracy",
        case: || hard("eps_equals_square"),
        column: false,
    },
    Mutant {
        name: "eps_not_scaled",
        defect: "scaled rows get no eps",
        on: On::Cpu,
        patches: &[patch("arith.rs", "mean(rescale(s), hidden) + eps * s * s", "mean(rescale(s), hidden)")],
        property: "accuracy",
        case: || hard("eps_at_the_edge"),
        column: false,
    },
    Mutant {
        name: "no_scaled_path",
        defect: "rows whose squares overflow or vanish are not scaled",
        on: On::Cpu,
        patches: &[patch("arith.rs", "    if s == 1.0 {", "    if s > 0.0 {")],
        property: "accuracy",
        case: || hard("x_1e30_f32"),
        column: false,
    },
    Mutant {
        name: "scaled_too_late",
        defect: "rows are scaled up only when the mean square is 0: subnormal ones have lost their digits",
        on: On::Cpu,
        patches: &[patch("arith.rs", "} else if v < f32::MIN_POSITIVE {", "} else if v == 0.0 {")],
        property: "scaling",
        case: || hard("every_magnitude"),
        column: false,
    },
    Mutant {
        name: "rstd_in_bf16",
        defect: "rstd is rounded to bf16: one coherent error for each row",
        on: On::Cpu,
        patches: &[patch(
            "arith.rs",
            "let rstd = reciprocal_root(v);",
            "let rstd = bf16::store(reciprocal_root(v)).widen();",
        )],
        property: "accuracy",
        case: || hard("rows_17"),
        column: false,
    },
    Mutant {
        name: "root_of_reciprocal",
        defect: "the root of the reciprocal instead of the reciprocal of the root, as an rsqrt instruction may have it",
        on: On::Cpu,
        patches: &[patch("arith.rs", "    1.0 / v.sqrt()", "    (1.0 / v).sqrt()")],
        property: "identity",
        case: || hard("rows_17"),
        column: false,
    },
    Mutant {
        name: "chain_not_fused",
        defect: "a chain rounds its products",
        on: On::Cpu,
        patches: &[patch("arith.rs", "    a.mul_add(b, acc)", "    a * b + acc")],
        property: "identity",
        case: ring,
        column: true,
    },
    Mutant {
        name: "negative_zero",
        defect: "a sum of underflowed negative products is −0",
        on: On::Cpu,
        patches: &[patch("arith.rs", "    root + 0.0", "    root")],
        property: "identity",
        case: || hard("underflow_negative"),
        column: true,
    },
    Mutant {
        name: "offset_ignored",
        defect: "zero-centred weights are taken as they are",
        on: On::Cpu,
        patches: &[patch(
            "arith.rs",
            "if zero_centred { weight + 1.0 } else { weight }",
            "if zero_centred { weight } else { weight }",
        )],
        property: "accuracy",
        case: || hard("zero_centred_small"),
        column: false,
    },
    Mutant {
        name: "guard_against_zero",
        defect: "a tiny constant is added \"against division by zero\"",
        on: On::Cpu,
        patches: &[patch("arith.rs", "    (t * row.post) * row.pre", "    (t * row.post + 2e-8) * row.pre")],
        property: "scaling",
        case: ordinary,
        column: false,
    },
    Mutant {
        name: "all_nan",
        defect: "every y is NaN",
        on: On::Cpu,
        patches: &[patch("arith.rs", "    value * weight", "    value * weight * f32::NAN")],
        property: "accuracy",
        case: || hard("rows_17"),
        column: false,
    },
    Mutant {
        name: "all_zero",
        defect: "every y is 0",
        on: On::Cpu,
        patches: &[patch("arith.rs", "    value * weight", "    value * weight * 0.0")],
        property: "accuracy",
        case: || hard("rows_17"),
        column: false,
    },
    Mutant {
        name: "negative_eps_accepted",
        defect: "an eps below 0 is not refused",
        on: On::Cpu,
        patches: &[patch(
            "call.rs",
            "if bits > f32::MAX.to_bits() && bits != (-0.0_f32).to_bits() {",
            "if !self.eps.is_finite() {",
        )],
        property: "refusal",
        case: || hard("rows_17"),
        column: false,
    },
    Mutant {
        name: "one_element_short",
        defect: "a buffer that ends one element early is not refused",
        on: On::Cpu,
        patches: &[patch("view.rs", "        if needed > elements {", "        if needed > elements + 1 {")],
        property: "refusal",
        case: || hard("rows_17"),
        column: false,
    },
    Mutant {
        name: "tail_skipped",
        defect: "the last N % 8 columns of y are skipped",
        on: On::Cpu,
        patches: &[patch(
            "cpu/row.rs",
            "y.iter_mut().zip(x).zip(weight);",
            "y.iter_mut().zip(x).zip(weight).take(x.len() / 8 * 8);",
        )],
        property: "exact",
        case: || hard("width_7"),
        column: false,
    },
    Mutant {
        name: "round_robin_step",
        defect: "the rows of a group lie one group too close together",
        on: On::Cpu,
        patches: &[patch(
            "cpu/backward.rs",
            "(step * groups + first_group + i, i, dx)",
            "(step * (groups - 1) + first_group + i, i, dx)",
        )],
        property: "exact",
        case: || hard("groups_16385_over"),
        column: true,
    },
    Mutant {
        name: "lost_row",
        defect: "one row of a million is missing in dw",
        on: On::Cpu,
        patches: &[patch(
            "cpu/backward.rs",
            "let partial = partials.get_mut(i * hidden..(i + 1) * hidden)",
            "let partial = partials.get_mut(i * hidden..(i + 1) * hidden).filter(|_| r + 1 != 1 << 20)",
        )],
        property: "exact",
        case: million,
        column: true,
    },
    Mutant {
        name: "idle_slots_781",
        defect: "issue 781: the number of groups comes from the SM count, blocks without rows return early, and all slots are summed",
        on: On::Kernels,
        patches: &[
            patch(
                "plan.rs",
                "let column = column_order(rows, hidden);",
                "let mut column = column_order(rows, hidden);\n    if hidden <= 256 {\n        column.groups = 1024 * sm_count as usize;\n    }",
            ),
            patch(
                "kernels/backward.cu",
                "base < groups; base += (u64)blocks_of_head(inner) * TEAMS) {",
                "base < groups; base += (u64)blocks_of_head(inner) * TEAMS) {\n        if (base >= rows) return;",
            ),
        ],
        property: "idle_groups_781",
        case: idle,
        column: true,
    },
    Mutant {
        name: "idle_slots_without_nan",
        defect: "the same, and a NaN counts as 0: looking for NaNs finds nothing",
        on: On::Kernels,
        patches: &[
            patch(
                "plan.rs",
                "let column = column_order(rows, hidden);",
                "let mut column = column_order(rows, hidden);\n    if hidden <= 256 {\n        column.groups = 1024 * sm_count as usize;\n    }",
            ),
            patch(
                "kernels/backward.cu",
                "base < groups; base += (u64)blocks_of_head(inner) * TEAMS) {",
                "base < groups; base += (u64)blocks_of_head(inner) * TEAMS) {\n        if (base >= rows) return;",
            ),
            patch(
                "kernels/fold.cu",
                "return first < nodes ? column[(u64)first * hidden] : 0.0f;",
                "{\n        const float v = first < nodes ? column[(u64)first * hidden] : 0.0f;\n        return v == v ? v : 0.0f;\n    }",
            ),
        ],
        property: "content",
        case: idle,
        column: true,
    },
    Mutant {
        name: "groups_from_sm_count",
        defect: "the number of groups comes from the SM count: dw depends on the GPU",
        on: On::Kernels,
        patches: &[patch(
            "plan.rs",
            "let column = column_order(rows, hidden);",
            "let column = ColumnOrder { groups: rows.min(4 * sm_count as usize) };",
        )],
        property: "launch",
        case: || Case { rows: 1000, ..ordinary() },
        column: true,
    },
    Mutant {
        name: "one_group_unwritten",
        defect: "one block does not write its partial row",
        on: On::Kernels,
        patches: &[patch(
            "kernels/backward.cu",
            "if (partial) write_partial(",
            "if (partial && base != TEAMS) write_partial(",
        )],
        property: "content",
        case: ordinary,
        column: true,
    },
    Mutant {
        name: "fold_order",
        defect: "the tree over the row groups pairs distant ones first",
        on: On::Kernels,
        patches: &[patch(
            "kernels/fold.cu",
            "for (u32 d = 1; d < warps; d *= 2) v = fold",
            "for (u32 d = warps / 2; d > 0; d /= 2) v = fold",
        )],
        property: "identity",
        case: ordinary,
        column: true,
    },
    Mutant {
        name: "float_atomics",
        defect: "the groups of a block are added in the order in which they are done",
        on: On::Kernels,
        patches: &[patch(
            "kernels/backward.cu",
            "#pragma unroll\n    for (u32 d = 1; d < PARTNERS; d *= 2)\n#pragma unroll\n        for (u32 k = 0; k < PACKS; k++) {\n            auto& handed = buffers[all.parity][rank / (2 * d)];\n            if (rank % (2 * d) == d && speaks) {\n#pragma unroll\n                for (u32 i = 0; i < PACK; i++) handed[i][member] = sum[k][i];\n            }\n            all();\n            if (rank % (2 * d) == 0 && speaks) {\n#pragma unroll\n                for (u32 i = 0; i < PACK; i++) sum[k][i] = fold(sum[k][i], handed[i][member]);\n            }\n        }\n",
            "    auto& handed = buffers[0][0];\n    for (u32 k = 0; k < PACKS && PARTNERS > 1; k++) {\n        for (u32 i = 0; i < PACK && rank == 0 && speaks; i++) handed[i][member] = 0.0f;\n        all();\n        for (u32 i = 0; i < PACK && speaks; i++) {\n#ifdef __CUDACC_RTC__\n            atomicAdd(&handed[i][member], sum[k][i]);\n#else\n            handed[i][member] += sum[k][i];\n#endif\n        }\n        all();\n        for (u32 i = 0; i < PACK && rank == 0 && speaks; i++) sum[k][i] = handed[i][member];\n        all();\n    }\n",
        )],
        property: "two runs",
        case: ordinary,
        column: true,
    },
    Mutant {
        name: "barrier_forgotten",
        defect: "the groups of a block hand their sums over in one buffer, without waiting for the reader before",
        on: On::Kernels,
        patches: &[patch("kernels/backward.cu", "buffers[all.parity]", "buffers[0]")],
        property: "two runs",
        case: ordinary,
        column: true,
    },
    Mutant {
        name: "dw_added_to",
        defect: "dw is added to what was there",
        on: On::Kernels,
        patches: &[patch(
            "kernels/fold.cu",
            "dw[mine] = store<DW>(total(v));",
            "dw[mine] = store<DW>(total(fold(widen(dw[mine]), v)));",
        )],
        property: "content",
        case: ordinary,
        column: true,
    },
    Mutant {
        name: "partials_in_bf16",
        defect: "partial sums are rounded to bf16",
        on: On::Kernels,
        patches: &[patch(
            "kernels/fold.cu",
            "return first < nodes ? column[(u64)first * hidden] : 0.0f;",
            "return first < nodes ? widen(store<bf16>(column[(u64)first * hidden])) : 0.0f;",
        )],
        property: "accuracy",
        case: ordinary,
        column: true,
    },
    Mutant {
        name: "columns_floored",
        defect: "the fold has a block for each whole 32 columns, and none for the rest",
        on: On::Kernels,
        patches: &[patch(
            "plan.rs",
            "blocks: hidden.div_ceil(FOLD_COLUMNS as usize) as u32",
            "blocks: (hidden / FOLD_COLUMNS as usize) as u32",
        )],
        property: "content",
        case: ordinary,
        column: true,
    },
    Mutant {
        name: "dw_one_past",
        defect: "one element past dw is written",
        on: On::Kernels,
        patches: &[patch("kernels/fold.cu", "if (which == 0 && mine < hidden)", "if (which == 0 && mine <= hidden)")],
        property: "writes",
        case: ordinary,
        column: true,
    },
    Mutant {
        name: "tail_stored_whole",
        defect: "the last packs of a row are stored whole, past its end",
        on: On::Kernels,
        patches: &[patch(
            "kernels/pack.cuh",
            "if (column.has(i, hidden)) *column.at(row, i) = store<E>(value[i]);",
            "*column.at(row, i) = store<E>(value[i]);",
        )],
        property: "writes",
        case: gapped,
        column: false,
    },
    Mutant {
        name: "alignment_decides_order",
        defect: "unaligned rows are added up in another order: what a lane has first",
        on: On::Kernels,
        patches: &[patch(
            "kernels/reduce.cuh",
            "node[s] = fold_spread(v);",
            "node[s] = fold_lanes(fold_pack(p[s]), TEAM_LANES);",
        )],
        property: "layout",
        case: ordinary,
        column: false,
    },
    Mutant {
        name: "half_of_another_word",
        defect: "the first lane of a warp takes half a word from where the last lane is now instead of where it was",
        on: On::Kernels,
        patches: &[patch("kernels/pack.cuh", "before = lane > 0 ? handed : of_last;", "before = handed;")],
        property: "identity",
        case: odd,
        column: false,
    },
    Mutant {
        name: "ends_not_copied",
        defect: "a bulk copy leaves out the ends of an operand that is not on 16 bytes, and nobody else copies them",
        on: On::Kernels,
        patches: &[patch("kernels/source.cuh", "if (lane < STAGE_ROWS) mine.ends(to);", "")],
        property: "identity",
        case: odd,
        column: false,
    },
    Mutant {
        name: "ring_decides_order",
        defect: "rows that arrive by bulk copies are added up from their end",
        on: On::Kernels,
        patches: &[
            patch(
                "kernels/source.cuh",
                "template <bool KEPT> struct InMemory {",
                "template <bool KEPT> struct InMemory {\n    static constexpr bool REVERSED = false;",
            ),
            patch(
                "kernels/source.cuh",
                "template <u32 ROWS> struct Ringed {",
                "template <u32 ROWS> struct Ringed {\n    static constexpr bool REVERSED = true;",
            ),
            patch(
                "kernels/backward.cu",
                "const float dot = reduce(fold_row, [&](u32 k, float (&p)[PACK]) {",
                "const float dot = reduce(fold_row, [&](u32 j, float (&p)[PACK]) {\n                    const u32 k = Source::REVERSED ? PACKS - 1 - j : j;",
            ),
        ],
        property: "launch",
        case: ring,
        column: false,
    },
    Mutant {
        name: "position_decides",
        defect: "rows of odd number multiply by 1/N instead of dividing by N",
        on: On::Kernels,
        patches: &[patch(
            "kernels/forward.cu",
            "ordinary_rstds(sum, hidden, eps, ordinary);",
            "for (u32 r = 0; r < ROWS; r++)\n            if ((first + r * TEAMS + team) % 2 == 1) sum[r] = __fmul_rn(__fmul_rn(sum[r], __fdiv_rn(1.0f, (float)hidden)), (float)hidden);\n        ordinary_rstds(sum, hidden, eps, ordinary);",
        )],
        property: "scaling",
        case: ordinary,
        column: false,
    },
    Mutant {
        name: "batch_size_decides",
        defect: "from 256 rows on, another kernel multiplies by 1/N instead of dividing by N",
        on: On::Kernels,
        patches: &[patch(
            "kernels/forward.cu",
            "ordinary_rstds(sum, hidden, eps, ordinary);",
            "for (u32 r = 0; r < ROWS; r++)\n            if (rows >= 256) sum[r] = __fmul_rn(__fmul_rn(sum[r], __fdiv_rn(1.0f, (float)hidden)), (float)hidden);\n        ordinary_rstds(sum, hidden, eps, ordinary);",
        )],
        property: "batch",
        case: || Case { rows: 17, ..ordinary() },
        column: false,
    },
    Mutant {
        name: "part_of_another",
        defect: "of the blocks that share a row every other one stores in the part of the next, and half of the first part nobody stores",
        on: On::Kernels,
        patches: &[patch("kernels/forward_few.cu", "k == share / BLOCKS_A_PACK", "k == (share + 1) / BLOCKS_A_PACK")],
        property: "launch",
        case: || Case::new(1, 4096, Dtype::Bf16),
        column: false,
    },
    Mutant {
        name: "stale_rstd",
        defect: "every team of a block takes the rstd of its first row",
        on: On::Kernels,
        patches: &[patch(
            "kernels/source.cuh",
            "ahead.rstd = ahead.end > 0 ? of.rstd[row] : 0.0f;",
            "ahead.rstd = ahead.end > 0 ? of.rstd[first] : 0.0f;",
        )],
        property: "batch",
        case: || Case { rows: 17, ..ordinary() },
        column: false,
    },
    Mutant {
        name: "dx_over_dy",
        defect: "dx is written over dy",
        on: On::Kernels,
        patches: &[patch(
            "kernels/backward.cu",
            "as_it_lies<IS_SELDOM>(ROW(dx, source.row(at + r)), ",
            "as_it_lies<IS_SELDOM>((T*)dy + source.row(at + r) * dy_stride, ",
        )],
        property: "content",
        case: ordinary,
        column: false,
    },
    Mutant {
        name: "weight_twice",
        defect: "dx has the weight twice",
        on: On::Kernels,
        patches: &[patch(
            "kernels/reduce.cuh",
            "c, weighted(d[i], weight_of(w, i)));",
            "c, weighted(weighted(d[i], weight_of(w, i)), weight_of(w, i)));",
        )],
        property: "exact",
        case: || Case { hidden: 64, ..ordinary() },
        column: false,
    },
    Mutant {
        name: "tail_not_loaded",
        defect: "of an unaligned row no pack is loaded that it does not fill",
        on: On::Kernels,
        patches: &[patch(
            "kernels/pack.cuh",
            "if (!column.has(i, hidden)) continue;",
            "if (!column.has(PACK - 1, hidden)) continue;",
        )],
        property: "exact",
        case: gapped,
        column: false,
    },
    Mutant {
        name: "no_scaled_backward",
        defect: "backward does not scale rows whose rstd is infinite",
        on: On::Kernels,
        patches: &[patch("kernels/backward.cu", "is_ordinary &= rstd != INFINITY_F32;", "is_ordinary &= true;")],
        property: "accuracy",
        case: || hard("x_1e-41_f32"),
        column: false,
    },
    Mutant {
        name: "forward_offset_in_32_bits",
        defect: "a row of x in forward is found by 32 bits",
        on: On::Kernels,
        patches: &[patch(
            "kernels/forward.cu",
            "load_row(of_x[r], ROW(x, row),",
            "load_row(of_x[r], x + (u32)(row * x_stride),",
        )],
        property: "far rows",
        case: ring,
        column: false,
    },
    Mutant {
        name: "backward_offset_in_32_bits",
        defect: "a row in backward is found by 32 bits",
        on: On::Kernels,
        patches: &[patch(
            "kernels/source.cuh",
            "Arriving((const T*)of.first, (const T*)this->row(of, row),",
            "Arriving((const T*)of.first, (const T*)of.first + (u32)(row * of.stride),",
        )],
        property: "far rows",
        case: ring,
        column: false,
    },
    Mutant {
        name: "products_rounded",
        defect: "a chain of a kernel rounds its products",
        on: On::Kernels,
        patches: &[patch("arith.cuh", "return __fmaf_rn(a, b, acc); }", "return __fadd_rn(__fmul_rn(a, b), acc); }")],
        property: "identity",
        case: ring,
        column: false,
    },
    Mutant {
        name: "unwritten",
        defect: "y is not written",
        on: On::Kernels,
        patches: &[patch(
            "kernels/reduce.cuh",
            ": weighted(h, weight_of(w, i));\n    }\n    store_pack(row, column, hidden, out);",
            ": weighted(h, weight_of(w, i));\n    }",
        )],
        property: "accuracy",
        case: ordinary,
        column: false,
    },
    Mutant {
        name: "residual_ignored",
        defect: "the residual is not added",
        on: On::Cpu,
        patches: &[patch("arith.rs", "    x + residual\n", "    x + 0.0 * residual\n")],
        property: "accuracy",
        case: || hard("residual_1024"),
        column: false,
    },
    Mutant {
        name: "unrounded_sum",
        defect: "the sum is normalised before it is rounded, and what is stored is another row",
        on: On::Kernels,
        patches: &[
            patch(
                "kernels/forward.cu",
                "squares_step(z[r][k], p);\n            });",
                "for (int i = 0; i < (int)PACK; i++) {\n\
                 const float v = HAS_RESIDUAL ? added(addend[k][i], augend[k][i]) : z[r][k][i];\n\
                 p[i] = chain(v, v, p[i]);\n}\n});",
            ),
            patch(
                "kernels/forward.cu",
                "Pack<W> w[WEIGHTS][PACKS] = {};\n",
                "Pack<W> w[WEIGHTS][PACKS] = {};\n        Pack<T> addend[PACKS], augend[PACKS];\n",
            ),
            patch(
                "kernels/forward.cu",
                "for (u32 k = 0; k < PACKS; k++) z[r][k] = store_sum(",
                "for (u32 k = 0; k < PACKS; k++) addend[k] = of_x[r][k], augend[k] = other[k], z[r][k] = store_sum(",
            ),
        ],
        property: "fused",
        case: || Case { residual: Some(Values::Normal), ..Case::new(9, 512, Dtype::Bf16) },
        column: false,
    },
    Mutant {
        name: "products_of_sums_rounded",
        defect: "with a residual, a kernel rounds the squares before it adds them",
        on: On::Kernels,
        patches: &[patch(
            "kernels/forward.cu",
            "if (!column_of(k).is_outside(end)) squares_step(z[r][k], p);",
            "if (!HAS_RESIDUAL) return squares_step(z[r][k], p);\n\
             for (int i = 0; i < (int)PACK; i++) p[i] = __fadd_rn(__fmul_rn(z[r][k][i], z[r][k][i]), p[i]);",
        )],
        property: "fused",
        // So many rows, for what a chain loses is a small part of the last bit of its row's sum. (The squares of 16-bit sums are exact.)
        case: || Case { residual: Some(Values::Normal), ..Case::new(600, 512, Dtype::F32) },
        column: false,
    },
    Mutant {
        name: "x_hat_rounded_in_a_mixture",
        defect: "x_hat is rounded to the type of x where y has another",
        on: On::Cpu,
        patches: &[patch(
            "cpu/mixed.rs",
            "normalise::<f32, H>(z, scale, (false, twice)",
            "normalise::<f32, H>(z, scale, (false, true)",
        )],
        property: "types",
        case: || mixed(Name::Y),
        column: false,
    },
    Mutant {
        name: "order_of_a_mixture",
        defect: "where operands have several types, a row is summed in half as many chains",
        on: On::Cpu,
        patches: &[patch(
            "cpu/mixed.rs",
            "(Accumulators::new(row_order(hidden).chains, hidden)",
            "(Accumulators::new(row_order(hidden).chains / 2, hidden)",
        )],
        property: "types",
        case: || Case { hidden: 4096, ..mixed(Name::Y) },
        column: false,
    },
    Mutant {
        name: "unrounded_sum_in_a_mixture",
        defect: "where operands have several types, what is normalised is the sum before it was stored",
        on: On::Cpu,
        patches: &[patch("cpu/mixed.rs", "                z_out.widen(i, z);\n", "")],
        property: "fused",
        case: || Case { residual: Some(Values::Normal), ..mixed(Name::Residual) },
        column: false,
    },
    Mutant {
        name: "mixture_rounded_once",
        defect: "without a weight x_hat is not rounded twice, though y has another type than x",
        on: On::Kernels,
        patches: &[patch("cuda/steps.rs", " || y != calls.dtype", "")],
        property: "twice",
        case: || Case { rounding: Rounding::Twice, weight: WeightKind::Absent, ..mixed(Name::Y) },
        column: false,
    },
    Mutant {
        name: "dy_of_the_type_of_x",
        defect: "dy is read as if it were of the type of x",
        on: On::Kernels,
        patches: &[patch("cuda/steps.rs", "        dy: call.dy.data.dtype,\n", "        dy: call.x.data.dtype,\n")],
        property: "types",
        case: || mixed(Name::Dy),
        column: false,
    },
    Mutant {
        name: "dz_ignored",
        defect: "the gradient that arrives by another way is not added",
        on: On::Cpu,
        patches: &[patch(
            "arith.rs",
            "if row.pre == 1.0 { t.mul_add(row.post, dz) }",
            "if row.pre == 1.0 { t.mul_add(row.post, 0.0 * dz) }",
        )],
        property: "accuracy",
        case: || hard("dz_1024"),
        column: false,
    },
    Mutant {
        name: "dz_added_to_rounded",
        defect: "dz is added to a dx that is rounded already",
        on: On::Kernels,
        patches: &[patch(
            "arith.cuh",
            "return __fmaf_rn(t, row.rstd, dz);",
            "return __fadd_rn(__fmul_rn(t, row.rstd), dz);",
        )],
        property: "identity",
        case: || Case { dz: Some(Values::Normal), ..ordinary() },
        column: false,
    },
    Mutant {
        name: "dz_of_dy",
        defect: "a ring gives dy for dz",
        on: On::Kernels,
        patches: &[patch(
            "kernels/source.cuh",
            "arrived_pack<IS_SELDOM>(r, 2, of.dz,",
            "arrived_pack<IS_SELDOM>(r, 1, of.dz,",
        )],
        property: "accuracy",
        case: || Case { dz: Some(Values::Normal), ..ring() },
        column: false,
    },
    Mutant {
        name: "bias_ignored",
        defect: "the bias is not added",
        on: On::Cpu,
        patches: &[patch("arith.rs", "    value.mul_add(weight, bias)", "    value.mul_add(weight, 0.0 * bias)")],
        property: "accuracy",
        case: || hard("bias_1024"),
        column: false,
    },
    Mutant {
        name: "bias_added_to_rounded",
        defect: "the bias is added to a product that is rounded already",
        on: On::Kernels,
        patches: &[patch(
            "arith.cuh",
            "return __fmaf_rn(value, weight, bias);",
            "return __fadd_rn(__fmul_rn(value, weight), bias);",
        )],
        property: "identity",
        case: || Case { bias: WeightKind::Same, ..Case::new(9, 512, Dtype::F32) },
        column: false,
    },
    Mutant {
        name: "bias_of_the_next",
        defect: "a kernel takes the bias of another column",
        on: On::Kernels,
        patches: &[patch("kernels/reduce.cuh", "weight_of(w, i), b[i])", "weight_of(w, i), b[i ^ 1])")],
        property: "accuracy",
        case: || Case { bias: WeightKind::Same, ..ordinary() },
        column: false,
    },
    Mutant {
        name: "bias_from_the_beginning",
        defect: "the bias is taken from the beginning of its memory",
        on: On::Cpu,
        patches: &[patch(
            "cpu.rs",
            "let bias = bias.map(|bias| effective",
            "let bias = bias.map(|bias| Vector { offset: 0, ..bias }).map(|bias| effective",
        )],
        property: "layout",
        case: || hard("bias_4096"),
        column: false,
    },
    Mutant {
        name: "db_of_two_rows",
        defect: "db is the sum of two rows",
        on: On::Cpu,
        patches: &[patch(
            "cpu.rs",
            "bias_partials(Read::of_rows(dys, &dy, shape), rows, hidden, scratch)",
            "bias_partials(Read::of_rows(dys, &dy, shape), rows.min(2), hidden, scratch)",
        )],
        property: "exact",
        case: || hard("db_64"),
        column: true,
    },
    Mutant {
        name: "db_in_plain_order",
        defect: "a kernel adds the rows of db in another order",
        on: On::Kernels,
        patches: &[
            patch(
                "kernels/bias.cu",
                "for (u32 d = 1; d < slots; d *= 2) {",
                "for (u32 d = slots / 2; d > 0; d /= 2) {",
            ),
            patch("kernels/bias.cu", "if (slot % (2 * d) != 0) continue;", "if (slot >= d) continue;"),
        ],
        property: "identity",
        case: || Case { db: DwKind::Same, ..Case::new(300, 64, Dtype::F32) },
        column: true,
    },
    Mutant {
        name: "db_of_whole_turns",
        defect: "a kernel leaves out the rows that are no whole turn of four",
        on: On::Kernels,
        patches: &[patch(
            "kernels/bias.cu",
            "for (; row < rows; row += groups) add",
            "for (; row < 0; row += groups) add",
        )],
        property: "accuracy",
        case: || Case { db: DwKind::Same, ..ordinary() },
        column: true,
    },
    Mutant {
        name: "db_of_idle_groups",
        defect: "a kernel returns early where it has no rows, and leaves partial sums of db unwritten",
        on: On::Kernels,
        patches: &[patch(
            "kernels/bias.cu",
            "    float sum[PACK] = {};\n",
            "    float sum[PACK] = {};\n    if (node > 0) return;\n",
        )],
        property: "content",
        case: || Case { db: DwKind::Same, ..Case::new(300, 1024, Dtype::Bf16) },
        column: true,
    },
    Mutant {
        name: "rounded_once",
        defect: "y is rounded once where twice is asked for",
        on: On::Cpu,
        patches: &[patch(
            "arith.rs",
            "    if twice { stored(x_hat) } else { x_hat }",
            "    let _ = (twice, stored);\n    x_hat",
        )],
        property: "accuracy",
        case: || hard("twice_bf16"),
        column: false,
    },
    Mutant {
        name: "rounded_to_weight",
        defect: "x_hat is rounded to the type of the weight",
        on: On::Kernels,
        patches: &[patch("kernels/reduce.cuh", "h = factor<T>(", "h = factor<W>(")],
        property: "twice",
        case: || Case { weight: WeightKind::F32, ..twice() },
        column: false,
    },
    Mutant {
        name: "ties_of_x_hat_up",
        defect: "an x_hat halfway between two is rounded up",
        on: On::Kernels,
        patches: &[patch(
            "arith.cuh",
            "widen(store<T>(x_hat))",
            "widen(store<T>(__uint_as_float(__float_as_uint(x_hat) + 1u)))",
        )],
        property: "twice",
        case: || hard("twice_tie_bf16"),
        column: false,
    },
    Mutant {
        name: "dot_of_rounded",
        defect: "along the row backward takes the rounded x_hat",
        on: On::Kernels,
        patches: &[patch(
            "kernels/reduce.cuh",
            "weight_of(w, i)), x_hat(z[i], scale), p[i]);",
            "weight_of(w, i)), factor<T>(x_hat(z[i], scale), TWICE), p[i]);",
        )],
        property: "twice",
        case: twice,
        column: false,
    },
    Mutant {
        name: "dw_of_unrounded",
        defect: "dw takes an x_hat that is not rounded",
        on: On::Kernels,
        patches: &[patch(
            "kernels/reduce.cuh",
            "chain(d[i], factor<T>(x_hat(z[i], scale), TWICE)",
            "chain(d[i], x_hat(z[i], scale)",
        )],
        property: "accuracy",
        case: twice,
        column: true,
    },
    Mutant {
        name: "half_a_tile_kept",
        defect: "of a tile that is about to be overwritten half is kept",
        on: On::Cpu,
        patches: &[patch(
            "cpu/row.rs",
            "        held.copy_from_slice(output);",
            "        let half = output.len().div_ceil(2);\n        held[..half].copy_from_slice(&output[..half]);",
        )],
        property: "in place",
        case: ordinary,
        column: false,
    },
    Mutant {
        name: "row_in_place_shared",
        defect: "blocks share a row that is overwritten",
        on: On::Kernels,
        patches: &[patch("plan/class.rs", "let shares = if calls.in_place { 1 } else { shares };", "")],
        property: "in place",
        case: || Case { dw: DwKind::Absent, ..Case::new(1, 4096, Dtype::Bf16) },
        column: false,
    },
    Mutant {
        name: "tiles_beside_dx",
        defect: "tiles of columns are read while their rows are overwritten",
        on: On::Kernels,
        patches: &[patch("plan.rs", "is_other || calls.in_place ||", "is_other ||")],
        property: "in place",
        case: || Case::new(3, 1024, Dtype::Bf16),
        column: true,
    },
    Mutant {
        name: "columns_after_dx",
        defect: "streamed rows are summed when dx has taken their place",
        on: On::Kernels,
        patches: &[
            patch(
                "cuda/steps.rs",
                "        if let (Some(blocks), Some(_)) = (plan.columns, &call.dw) {\n",
                "        steps.push(Step::Kernel(over_rows));\n        if let (Some(blocks), Some(_)) = (plan.columns, &call.dw) {\n",
            ),
            patch(
                "cuda/steps.rs",
                "        steps.push(Step::Kernel(over_rows));\n        if let Some(WeightGradient",
                "        if let Some(WeightGradient",
            ),
        ],
        property: "in place",
        case: || Case::new(2, 17_001, Dtype::Bf16),
        column: true,
    },
    Mutant {
        name: "groups_in_the_order_of_memory",
        defect: "rows of two levels that are written are taken in the order in which they lie",
        on: On::Cpu,
        patches: &[patch("cpu/memory.rs", "        listed.sort_unstable_by_key(|(row, _)| *row);\n", "")],
        property: "layout",
        case: || Case { seed: 7, ..Case::new(12, 40, Dtype::F32) },
        column: false,
    },
    Mutant {
        name: "quotient_not_corrected",
        defect: "a group's number comes out one too small",
        on: On::Kernels,
        patches: &[patch("kernels/levels.cuh", "return least + (row - least * inner >= inner);", "return least;")],
        property: "identity",
        case: || hard("heads_packed"),
        column: false,
    },
    Mutant {
        name: "dy_of_one_level",
        defect: "dy is read as if its rows were of one level",
        on: On::Kernels,
        patches: &[patch(
            "kernels/source.cuh",
            "load_row(ahead.d, of.row(of.dy, row), ahead.end);",
            "load_row(ahead.d, of.dy.first + row * of.dy.stride, ahead.end);",
        )],
        property: "identity",
        case: || hard("heads_in_one_buffer"),
        column: true,
    },
    Mutant {
        name: "first_head_for_all",
        defect: "every head has the first one's weight, and leaves its gradient there",
        on: On::Cpu,
        patches: &[patch(
            "call/heads.rs",
            "Vector { data, offset: offset + head * len }",
            "Vector { data, offset: offset + 0 * head * len }",
        )],
        property: "heads",
        case: || hard("heads_packed"),
        column: false,
    },
    Mutant {
        name: "heads_share_a_weight",
        defect: "every head has the first one's weight",
        on: On::Kernels,
        patches: &[patch(
            "kernels/levels.cuh",
            "return operand + (row - group_of(row, inner, reciprocal) * inner) * hidden;",
            "return operand;",
        )],
        property: "heads",
        case: || hard("heads_packed"),
        column: false,
    },
    Mutant {
        name: "heads_share_partials",
        defect: "heads write their partial rows over each other's",
        on: On::Kernels,
        patches: &[patch("kernels/levels.cuh", "if (partial) partial += head(inner) * groups * hidden_given;", "")],
        property: "heads",
        case: || hard("heads_in_one_buffer"),
        column: true,
    },
    Mutant {
        name: "roots_of_heads_side_by_side",
        defect: "rstd of a head's rows is looked for behind each other",
        on: On::Kernels,
        patches: &[patch("kernels/levels.cuh", "return first[row * n];", "return first[row];")],
        property: "heads",
        case: || hard("heads_packed"),
        column: false,
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::Path;

    #[test]
    fn every_patch_applies() {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../rmsnorm-cuda/src");
        let stale: Vec<String> = MUTANTS
            .iter()
            .filter_map(|mutant| Some(format!("{}: {}", mutant.name, mutant.patched(&sources).err()?)))
            .collect();
        assert!(stale.is_empty(), "{}", stale.join("\n"));
    }

    #[test]
    fn the_list_is_complete() {
        let names: BTreeSet<_> = MUTANTS.iter().map(|m| m.name).collect();
        assert_eq!(names.len(), MUTANTS.len());
        assert!(names.iter().all(|n| n.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')));
        assert!(MUTANTS.len() >= 28, "{}", MUTANTS.len());
        assert!(MUTANTS.iter().filter(|m| m.column).count() >= 8);
        for judge in judges() {
            let of_it = MUTANTS.iter().filter(|m| m.demanded().any(|property| property == judge.name)).count();
            assert!(of_it >= 2, "{of_it} mutants are for {}", judge.name);
        }
        assert!(ALSO.iter().all(|(name, property)| mutant(name).is_some_and(|m| m.property != *property)));
        assert!(MUTANTS.iter().all(|m| judges().any(|judge| m.property == judge.name)));
        for nothing_else in ["all_nan", "all_zero", "unwritten"] {
            assert_eq!(mutant(nothing_else).unwrap().property, "accuracy");
        }
        for mutant in MUTANTS {
            assert!((mutant.case)().hidden > 0, "{}", mutant.name);
        }
    }
}
