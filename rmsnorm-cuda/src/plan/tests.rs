use super::cluster::{CLUSTER_SHARED_BYTES, CLUSTER_STAGES_MAX, lead};
use super::*;
use crate::HIDDEN_MAX;
use crate::order::WIDE_MAX;

/// Widths either side of every step of the tables.
fn widths() -> Vec<usize> {
    let mut w: Vec<usize> = (1..=2100).collect();
    w.extend((2100..=140_000).step_by(61));
    w.extend([256, 2048, 16384, 32768, 65536, WIDE_MAX].iter().flat_map(|e| [e - 1, *e, e + 1]));
    w.push(HIDDEN_MAX);
    w
}

fn calls(hidden: usize, dtype: Dtype) -> Calls {
    Calls { weight: Some(dtype), dw: Some(dtype), ..Calls::new((usize::MAX, hidden), dtype) }
}

/// Elements of all packs before the last.
fn owned_before_last(class: &Class) -> usize {
    ((class.packs - 1) * class.team * class.pack) as usize
}

#[test]
fn a_class_holds_every_chain() {
    for (dtype, direction) in Dtype::ALL.into_iter().flat_map(|dtype| Direction::BOTH.map(|d| (dtype, d))) {
        let classes = classes(direction, dtype);
        for hidden in widths() {
            let (class, order) = (class(direction, hidden, dtype), row_order(hidden));
            let chains = order.chains;
            let owned = (class.team * class.pack) as usize;
            let all = owned * class.sets as usize;
            if class.is_streamed() {
                let most = chains.max(order.dot_chains);
                assert!(hidden > WIDE_MAX && chains.is_multiple_of(class.pack as usize) && most <= all, "{hidden}");
            } else if class.is_clustered() {
                // A block has an aligned power of two of the chains, every pack begins where chains do, and all lie on 16 bytes.
                let shared = class.cluster as usize * owned;
                let expected = if direction == Direction::Forward { chains } else { order.dot_chains };
                assert!(shared == expected && owned.is_power_of_two() && class.cluster.is_power_of_two(), "{hidden}");
                assert!(hidden > HELD_MAX && hidden <= class.holds() && class.teams == 1, "{hidden}");
                assert!(all >= chains || direction == Direction::Forward, "{hidden}: a row that a block folds alone");
                assert!(class.pack as usize * dtype.bytes() <= 32 && class.cluster <= 8, "{hidden}");
            } else {
                assert!(hidden <= class.holds(), "{hidden}");
                assert!(if hidden <= NARROW { chains <= all && class.packs == 1 } else { chains == all }, "{hidden}");
                // All packs before the last are whole (rows.cuh, Column).
                assert!(variants(hidden, dtype).iter().all(|class| owned_before_last(class) < hidden), "{hidden}");
                assert!(class.sets == 1 || class.team > 32, "{hidden}");
            }
            assert!(class.teams.is_power_of_two() && class.threads() <= 1024, "{hidden}");
            // Hardware barriers 1 to 15 are the teams' own.
            assert!(class.team <= 32 || class.teams < 16, "{hidden}");
            assert!(classes.contains(&class) && variants(hidden, dtype).contains(&class), "{hidden} {class}");
        }
    }
}

#[test]
fn the_fold_reaches_every_node() {
    for dtype in Dtype::ALL {
        for hidden in widths() {
            for aligned in [true, false] {
                let calls = Calls { aligned, db: Some(dtype), ..calls(hidden, dtype) };
                let plan = backward(&calls, &Tuning::of(Arch::H200));
                let bias = plan.bias.expect("db is asked for");
                for fold in [plan.fold, bias.fold] {
                    let reaches = fold.nodes <= fold.warps << fold.level && fold.warps <= FOLD_WARPS_MAX;
                    assert!(reaches && fold.level <= FOLD_LEVEL_MAX, "{hidden} {plan}");
                }
                // Every pack of a row and every row group has a thread.
                let pack = if bias.aligned { 16 / dtype.bytes() } else { 1 };
                let tiles = hidden.div_ceil(bias.lanes as usize * pack);
                assert_eq!(bias.blocks as usize, tiles * bias.fold.nodes as usize, "{hidden} {plan}");
                assert!(bias.fold.nodes * (BIAS_THREADS / bias.lanes) >= plan.column.groups as u32, "{hidden} {plan}");
                assert!(bias.lanes.is_power_of_two() && bias.lanes <= 32, "{hidden} {plan}");
                assert!(!bias.aligned || hidden.is_multiple_of(pack), "{hidden} {plan}");
            }
        }
    }
}

/// Of clusters: where they work and where rows are streamed; that what they need fits; that all clusters have as many row groups.
#[test]
fn clusters_are_launched_where_they_work() {
    for (dtype, (name, arch)) in Dtype::ALL.into_iter().flat_map(|dtype| Arch::ALL.map(|arch| (dtype, arch))) {
        for hidden in [HELD_MAX + 8, 20480, 32768, 53248, 65536, 100_000, WIDE_MAX, WIDE_MAX + 8] {
            let aligned = Calls { rows: 4099, ..calls(hidden, dtype) };
            let tuning = Tuning::of(arch);
            let plans = |calls: &Calls, tuning: &Tuning| (forward(calls, tuning), backward(calls, tuning));
            let (f, b) = plans(&aligned, &tuning);
            let expected = ["H200", "B200"].contains(&name) && hidden <= WIDE_MAX;
            assert_eq!([f.rows.class.is_clustered(), b.rows.class.is_clustered()], [expected; 2], "{name} {hidden}");
            let unaligned = Calls { aligned: false, ..aligned };
            for (calls, tuning) in [(&unaligned, tuning), (&Calls { hidden: hidden + 1, ..aligned }, tuning)] {
                let (f, b) = plans(calls, &tuning);
                assert!(f.rows.class.is_streamed() && b.rows.class.is_streamed(), "{name} {hidden}");
            }
            let streamed = Tuning { forward: Some(STREAMED), backward: Some(STREAMED), ..tuning };
            let (sf, sb) = plans(&aligned, &streamed);
            assert!(sf.rows.class.is_streamed() && sb.rows.class.is_streamed(), "{name} {hidden}");
            // The other direction's class is no variant of this one, nor is a cluster without a ring.
            let crossed = Tuning { forward: Some(b.rows.class), backward: Some(f.rows.class), ..tuning };
            assert_eq!(plans(&aligned, &crossed), (f, b), "{name} {hidden}");
            assert!(backward(&aligned, &Tuning { stages: Some(0), ..tuning }).rows.class.is_streamed());
            if !expected {
                continue;
            }
            assert_eq!(f.rows.blocks, 4099 * f.rows.class.cluster);
            assert!(
                f.shared_bytes * f.blocks_per_sm <= arch.block_shared_bytes && f.rows.class.packs <= CLUSTER_STAGES_MAX
            );
            for stages in [None, Some(1), Some(9), Some(u32::MAX)] {
                let b = backward(&aligned, &Tuning { stages, ..tuning });
                let Source::Cluster { stages, shared_bytes } = b.source else { panic!("{b}") };
                let class = b.rows.class;
                assert!(stages >= class.packs + lead(class, dtype) && stages <= CLUSTER_STAGES_MAX, "{b}");
                assert!(shared_bytes <= CLUSTER_SHARED_BYTES && b.columns.is_none(), "{b}");
                let clusters = b.rows.blocks / class.cluster;
                assert_eq!((b.rows.blocks, b.column.groups as u32 % clusters), (120, 0), "{b}");
            }
        }
    }
}

/// Of the rows of one cluster's launch: on other GPUs, beside a ring that has no room, with other weights, with blocks that are forced.
#[test]
fn clusters_have_what_fits() {
    // Fewer multiprocessors: as many clusters as take equally many groups; too few for one, or too many rows: streamed.
    let wide = Calls { rows: 4099, ..calls(65536, Dtype::Bf16) };
    let of = |calls: &Calls, sm_count| backward(calls, &Tuning::of(Arch { sm_count, ..Arch::H200 })).to_string();
    assert_eq!(of(&wide, 132), "G30 cluster-4×1024×8×2 ×120 exact ring 5 fold 30");
    assert_eq!(of(&wide, 114), "G30 cluster-4×1024×8×2 ×60 exact ring 5 fold 30");
    assert_eq!(of(&Calls { rows: 7, ..wide }, 16), "G7 cluster-4×1024×8×2 ×16 exact ring 5 fold 7");
    assert!(of(&wide, 3).contains("streamed") && of(&Calls { rows: GRID_MAX, ..wide }, 132).contains("streamed"));
    // Where a block's ring has no room for two rows, a cluster has: if it can work.
    let large = Calls { rows: 4099, ..calls(HELD_MAX, Dtype::F32) };
    assert_eq!(of(&large, 132), "G128 cluster-2×512×4×4/2 ×128 exact ring 8 fold 128");
    let unringed = Tuning { stages: Some(0), ..Tuning::of(Arch::H200) };
    for tuning in [unringed, Tuning::of(Arch::A100)] {
        let plan = backward(&large, &tuning).to_string();
        assert_eq!(plan, "G128 held-1×256×8×8/2 ×128 exact reread fold 128");
    }
    // A weight for which there are no registers is in shared memory, and the ring has what is left.
    let of_weight = |weight| {
        let calls = Calls { rows: 4099, weight: Some(weight), ..calls(WIDE_MAX, Dtype::Bf16) };
        backward(&calls, &Tuning { stages: Some(u32::MAX), ..Tuning::of(Arch::H200) })
    };
    let shared = |plan: BackwardPlan| match plan.source {
        Source::Cluster { stages, shared_bytes } => (stages, shared_bytes - CLUSTER_BYTES),
        _ => panic!("{plan}"),
    };
    assert_eq!(shared(of_weight(Dtype::Bf16)), (14, 14 * 16384));
    assert_eq!(shared(of_weight(Dtype::F32)), (10, 10 * 16384 + 4 * 16384));
    let first = forward(&wide, &Tuning::of(Arch::H200)).to_string();
    assert_eq!(first, "cluster-4×256×8×8 ×16396 exact 4/SM");
    let forced = Tuning { blocks: Some(7), ..Tuning::of(Arch::H200) };
    assert_eq!((backward(&wide, &forced).rows.blocks, forward(&wide, &forced).rows.blocks), (8, 16396));
    // More than a grid can have is refused by the driver, as property 12 wants to see.
    let refused = Tuning { blocks: Some(u32::MAX), ..Tuning::of(Arch::H200) };
    assert!(forward(&wide, &refused).rows.blocks as usize > GRID_MAX);
}

/// One launch has a slot for every row group, and the kernels are those of [`ROW_COUNTS`].
#[test]
fn few_rows_are_one_launch() {
    let tuning = Tuning::of(Arch::H200);
    for (dtype, aligned) in Dtype::ALL.into_iter().flat_map(|dtype| [(dtype, true), (dtype, false)]) {
        for hidden in widths().into_iter().filter(|hidden| *hidden <= HELD_MAX + 8) {
            let plan = |rows| backward(&Calls { rows, aligned, ..calls(hidden, dtype) }, &tuning);
            let kind = |rows| (plan(rows).span, plan(rows).rows.class, plan(rows).source == Source::Kept);
            let prepared = ROW_COUNTS.map(kind);
            for rows in
                [1, 2, 31, 32, 33, 64, 65, 100, 128, 129, 200, 256, 257, 300, 512, 513, 700, 1024, 1025, 1 << 20]
            {
                let plan = plan(rows);
                assert!(prepared.contains(&kind(rows)), "{rows}×{hidden} {plan}");
                let Some(span) = plan.span else { continue };
                let class = plan.rows.class;
                assert!(aligned && hidden > NARROW && rows <= FEW_ROWS_MAX as usize, "{rows}×{hidden} {plan}");
                assert!(plan.column.groups <= (FEW_SLOTS * span) as usize, "{rows}×{hidden} {plan}");
                assert!(variants(hidden, dtype).contains(&class) && class.sets == 1, "{rows}×{hidden} {plan}");
                // A warp's slots share out the columns of a pack.
                assert!(class.pack * class.threads() >= 1024, "{rows}×{hidden} {plan}");
            }
        }
    }
    let one = |rows, hidden, dtype| backward(&Calls { rows, ..calls(hidden, dtype) }, &tuning).span;
    assert_eq!((one(1, 16_384, Dtype::Bf16), one(64, 8192, Dtype::F32)), (Some(2), Some(2)));
    let dx_alone = Calls { rows: 1, dw: None, ..calls(4096, Dtype::Bf16) };
    assert_eq!(backward(&dx_alone, &tuning).span, None);
}

/// The kernels of forward too are those of [`ROW_COUNTS`], and all that write a part of a row write all of it, once.
#[test]
fn few_rows_have_a_kernel_in_forward() {
    let tuning = Tuning::of(Arch::H200);
    for (dtype, aligned) in Dtype::ALL.into_iter().flat_map(|dtype| [(dtype, true), (dtype, false)]) {
        for hidden in widths().into_iter().filter(|hidden| *hidden <= HELD_MAX + 8) {
            let calls = |rows| Calls { rows, aligned, ..calls(hidden, dtype) };
            let plan = |rows| forward(&calls(rows), &tuning);
            let kind = |rows| ForwardPlan { rows: Launch { blocks: 0, ..plan(rows).rows }, ..plan(rows) };
            let prepared = ROW_COUNTS.map(kind);
            for rows in [1, 4, 5, 16, 17, 64, 128, 129, 256, 257, 512, 513, 1024, 1025, 1 << 20] {
                let plan = plan(rows);
                assert!(prepared.contains(&kind(rows)), "{rows}×{hidden} {plan}");
                let is_few = aligned && hidden.is_multiple_of(4) && (NARROW + 1..=HELD_MAX).contains(&hidden);
                let expected = is_few && rows <= 1024 && rows * hidden <= 1 << 21;
                assert_eq!(plan.shares.is_some(), expected, "{rows}×{hidden} {plan}");
                let Some(shares) = plan.shares else { continue };
                let class = plan.rows.class;
                assert!(
                    class.can_be_shared_by(shares) && plan.rows.blocks as usize == rows * shares as usize,
                    "{plan}"
                );
                assert!(class.holds() >= hidden && (class.teams, class.sets) == (1, 1), "{plan}");
                // One block a row: 132 multiprocessors of 65536 registers hold all at once.
                assert!(shares > 1 || plan.rows.blocks * class.threads() <= 132 << 10, "{rows}×{hidden} {plan}");
            }
        }
    }
    let four_packs = Class::of_few(4096);
    let possible: Vec<u32> = (0..100).filter(|blocks| four_packs.can_be_shared_by(*blocks)).collect();
    assert_eq!(possible, [1, 4, 8, 16, 32]);
    // For others than compute capability 9.0 nobody has chosen, and whatever is chosen otherwise is taken.
    let of = |rows, tuning: &Tuning| forward(&Calls { rows, ..calls(4096, Dtype::Bf16) }, tuning).shares;
    assert_eq!(of(1, &Tuning::of(Arch::B200)), None);
    assert_eq!(of(1, &Tuning { few_rows: false, shares: Some(4), ..tuning }), None);
    assert_eq!(of(1, &Tuning { blocks: Some(1), ..tuning }), None);
    assert_eq!(of(1, &Tuning { forward: Some(four_packs), ..tuning }), None);
    assert_eq!(of(1, &Tuning { shares: Some(1), ..tuning }), Some(1));
    assert_eq!(of(1, &Tuning { shares: Some(3), ..tuning }), Some(8));
    assert_eq!(of(5000, &Tuning { shares: Some(4), ..tuning }), Some(4));
    assert_eq!(of(1 << 30, &Tuning { shares: Some(4), ..tuning }), None);
}

#[test]
fn staged_rows_have_room() {
    let mut staged = 0;
    for (dtype, hidden) in
        Dtype::ALL.into_iter().flat_map(|dtype| (257..=HELD_MAX).step_by(97).map(move |n| (dtype, n)))
    {
        let plan = forward(&Calls { rows: 1000, aligned: false, ..calls(hidden, dtype) }, &Tuning::of(Arch::H200));
        let two_rows = 2 * plan.rows.class.teams as usize * (hidden * dtype.bytes() + BEYOND as usize);
        assert!(!plan.is_staged() || plan.shared_bytes as usize >= two_rows, "{hidden} {dtype}: {plan}");
        staged += usize::from(plan.is_staged());
    }
    assert!(staged > 100, "{staged}");
}

/// Where it was measured, of what the memory must move, and where there is a rate.
#[test]
fn a_pace_needs_a_rate() {
    let pace = |rows, tuning: Tuning| match backward(&Calls { rows, ..calls(4096, Dtype::Bf16) }, &tuning).source {
        Source::Ring { pace, .. } => pace,
        source => panic!("{source:?}"),
    };
    let at = |rate_percent| Tuning { rate_percent, ..Tuning::of(Arch::H200) };
    assert!(pace(100_000, at(None)) > 0);
    assert!(pace(100_000, at(Some(50))) > pace(100_000, at(Some(100))));
    assert_eq!(pace(100_000, at(Some(0))), 0);
    assert_eq!(pace(2000, at(None)), 0);
    for (name, arch) in Arch::ALL.into_iter().filter(|(_, arch)| arch.compute_capability > (9, 0)) {
        if let Source::Ring { pace, .. } =
            backward(&Calls { rows: 100_000, ..calls(4096, Dtype::Bf16) }, &Tuning::of(arch)).source
        {
            assert_eq!(pace, 0, "{name}");
        }
    }
}

/// Whichever class is chosen: a copy that is no whole number of words never arrives.
#[test]
fn a_ring_of_aligned_rows_has_whole_words() {
    for (dtype, hidden) in
        Dtype::ALL.into_iter().flat_map(|dtype| (1..=HELD_MAX).step_by(4).map(move |n| (dtype, n + 3)))
    {
        for class in variants(hidden, dtype) {
            let tuning = Tuning { backward: Some(class), ..Tuning::of(Arch::H200) };
            let plan = backward(&Calls { rows: 1000, ..calls(hidden, dtype) }, &tuning);
            let has_ring = matches!(plan.source, Source::Ring { .. } | Source::Cluster { .. });
            let is_whole = (hidden * dtype.bytes()).is_multiple_of(16);
            assert!(!has_ring || !plan.rows.aligned || is_whole, "{hidden} {dtype}: {plan}");
        }
    }
}

/// Rows that are not aligned arrive by a ring as others do, whose stages have room for their words; what is not planned for them says so.
#[test]
fn unaligned_rows_have_a_ring() {
    for dtype in Dtype::ALL {
        for hidden in widths().into_iter().filter(|hidden| *hidden <= HELD_MAX) {
            let calls = Calls { rows: 100_000, aligned: false, ..calls(hidden, dtype) };
            let plan = backward(&calls, &Tuning::of(Arch::H200));
            assert_eq!(plan.rows.class, class_unaligned(Direction::Backward, hidden, dtype), "{hidden} {plan}");
            let class = plan.rows.class;
            let pitch = (hidden * dtype.bytes() + BEYOND as usize).next_multiple_of(128);
            let stage_bytes = class.teams as usize * stage_rows(false) as usize * pitch;
            let room = (Arch::H200.block_shared_bytes - class.declared_bytes() - (1 << 10)) as usize;
            match plan.source {
                Source::Ring { stages, shared_bytes, apart, .. } => {
                    assert_eq!(apart, dtype != Dtype::F32 && (4097..=5120).contains(&hidden), "{hidden} {plan}");
                    assert_eq!(shared_bytes as usize, stages as usize * stage_bytes, "{hidden} {plan}");
                    assert!(shared_bytes as usize <= room, "{hidden} {plan}");
                }
                _ => assert!(hidden <= NARROW || 2 * stage_bytes > room, "{hidden} {plan}"),
            }
            let unringed = Tuning { stages: Some(0), ..Tuning::of(Arch::H200) };
            for tuning in [unringed, Tuning::of(Arch::A100)] {
                assert!(!matches!(backward(&calls, &tuning).source, Source::Ring { .. }), "{hidden}");
            }
        }
    }
    let of = |rows, hidden, dtype| {
        let calls = Calls { rows, aligned: false, ..calls(hidden, dtype) };
        let tuning = Tuning::of(Arch::H200);
        (forward(&calls, &tuning).to_string(), backward(&calls, &tuning).to_string())
    };
    let expected = (
        "held-1×128×8×5/2 ×32768 unaligned staged 8/SM",
        "G128 held-1×128×8×5/2 ×128 unaligned ring 6 sums apart pace 0.73 µs fold 128",
    );
    assert_eq!(of(32_768, 4097, Dtype::Bf16), (expected.0.into(), expected.1.into()));
    let few = of(9, 4097, Dtype::Bf16).1;
    assert_eq!(few, "G9 held-1×128×8×5/2 ×9 unaligned ring 6 sums apart fold 9");
    // Without dw there are no sums.
    let without = backward(
        &Calls { rows: 100_000, aligned: false, dw: None, ..calls(4097, Dtype::Bf16) },
        &Tuning::of(Arch::H200),
    );
    assert!(matches!(without.source, Source::Ring { apart: false, .. }), "{without}");
    // Elsewhere they have the classes of aligned rows, which is what is compiled ahead.
    let odd = Calls { rows: 9, ..calls(4097, Dtype::Bf16) };
    assert_eq!(backward(&odd, &Tuning::of(Arch::A100)).rows.class, class(Direction::Backward, 4097, Dtype::Bf16));
}

/// In place no block reads what another writes, and nothing is launched that was not prepared for rows elsewhere.
#[test]
fn in_place_few_rows_are_planned_as_more() {
    for (_, arch) in Arch::ALL {
        for (dtype, hidden) in Dtype::ALL.into_iter().flat_map(|t| widths().into_iter().map(move |n| (t, n))) {
            let of = |rows, in_place, tuning: &Tuning| {
                let calls = Calls { rows, in_place, ..calls(hidden, dtype) };
                (forward(&calls, tuning), backward(&calls, tuning))
            };
            let tuning = Tuning::of(arch);
            let prepared = ROW_COUNTS.map(|rows| of(rows, false, &tuning));
            for rows in [1, 4, 16, 17, 300, 1024, 5000] {
                let forced = of(rows, true, &Tuning { shares: Some(4), ..tuning }).0;
                assert!(forced.shares.is_none_or(|shares| shares == 1), "{rows}×{hidden} {forced}");
                let (f, b) = of(rows, true, &tuning);
                assert!(f.shares.is_none_or(|shares| shares == 1) && b.span.is_none(), "{rows}×{hidden} {f} {b}");
                let staged = |f: &ForwardPlan| f.shared_bytes > 0;
                let kernel = |f: &ForwardPlan| {
                    (f.rows.class, f.rows.exact, f.blocks_per_sm, f.rows_at_once, f.shares, staged(f))
                };
                assert!(prepared.iter().any(|(there, _)| kernel(there) == kernel(&f)), "{rows}×{hidden} {f}");
                let source = |b: &BackwardPlan| std::mem::discriminant(&b.source);
                let kernel = |b: &BackwardPlan| (b.rows.class, b.rows.exact, b.blocks_per_sm, b.span, source(b));
                assert!(prepared.iter().any(|(_, there)| kernel(there) == kernel(&b)), "{rows}×{hidden} {b}");
            }
        }
    }
}

/// What a plan says is all that distinguishes it.
#[test]
fn a_plan_says_all() {
    let of = |rows, tuning| {
        let calls = Calls { rows, ..calls(4096, Dtype::Bf16) };
        (forward(&calls, &tuning).to_string(), backward(&calls, &tuning).to_string())
    };
    let tuning = Tuning::of(Arch::H200);
    let expected = (
        "held-1×256×4×4 ×100 exact 4/SM few rows, blocks a row 1",
        "G100 held-1×128×8×4 ×228 exact 4/SM one launch, span 4",
    );
    assert_eq!(of(100, tuning), (expected.0.into(), expected.1.into()));
    assert_eq!(of(1, tuning).0, "held-1×256×4×4 ×8 exact 4/SM few rows, blocks a row 8");
    let many = Tuning { few_rows: false, ..tuning };
    assert_eq!(of(100, many).0, "held-2×64×8×8/2 ×50 exact");
    assert_eq!(of(100, many).1, "G100 held-4×128×8×4 ×25 exact ring 2 fold 25");
    assert_eq!(of(1024, tuning).1, "G512 held-1×128×8×4 ×1152 exact 4/SM one launch, span 16");
    assert_eq!(of(1025, tuning).1, "G512 held-4×128×8×4 ×128 exact ring 2 fold 128");
    assert!(of(100_000, tuning).1.ends_with("×128 exact ring 2 pace 2.94 µs fold 128"), "{}", of(100_000, tuning).1);
    let pairs = backward(&Calls { rows: 100_000, ..calls(512, Dtype::Bf16) }, &tuning).to_string();
    assert_eq!(pairs, "G1024 held-8×32×8×2 ×128 exact ring 3 of two rows pace 1.47 µs fold 128");
    let unringed = Tuning { stages: Some(0), blocks: Some(7), ..tuning };
    assert_eq!(of(100, unringed).1, "G100 held-4×128×8×4 ×7 exact reread fold 25");
}
