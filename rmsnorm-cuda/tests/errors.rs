//! What a caller reads: each text names the mistake, what was expected and what came.

use rmsnorm_cuda::{Backward, BiasGradient, Dtype, Error, Forward, Operand, Vector, WeightGradient};

/// Memory that need not exist.
#[derive(Clone, Copy)]
struct Memory(Dtype, usize, u64);

impl Operand for Memory {
    fn dtype(&self) -> Dtype {
        self.0
    }
    fn elements(&self) -> usize {
        self.1
    }
    fn address(&self) -> u64 {
        self.2
    }
}

const ROWS: usize = 2;
const HIDDEN: usize = 8;

/// The `place`-th operand: far from all others, long enough.
fn memory(dtype: Dtype, place: u64) -> Memory {
    Memory(dtype, 1 << 16, place << 24)
}

fn forward(x: Dtype, weight: Dtype) -> Forward<Memory, Memory> {
    Forward {
        weight: Some(memory(weight, 2).into()),
        rstd: Some(memory(Dtype::F32, 4).into()),
        ..Forward::new((ROWS, HIDDEN), 1e-5, memory(x, 1), memory(x, 3))
    }
}

fn backward(x: Dtype, weight: Dtype, dw: Dtype) -> Backward<Memory, Memory> {
    Backward {
        weight: Some(memory(weight, 2).into()),
        dw: Some(WeightGradient { dw: memory(dw, 6).into(), scratch: memory(Dtype::F32, 7).into() }),
        ..Backward::new((ROWS, HIDDEN), memory(x, 1), memory(Dtype::F32, 3), memory(x, 4), memory(x, 5))
    }
}

fn text(result: Result<(), Error>) -> String {
    result.expect_err("refused").to_string()
}

#[test]
fn texts_name_the_mistake() {
    use Dtype::{Bf16, F16, F32};
    let refused = |spoil: fn(&mut Forward<Memory, Memory>)| {
        let mut call = forward(F32, F32);
        spoil(&mut call);
        text(call.check())
    };
    assert_eq!(forward(F32, F32).check(), Ok(()));
    assert_eq!(forward(Bf16, F16).check(), Ok(()));
    assert_eq!(backward(Bf16, F32, F16).check(), Ok(()));
    let halves = |c: &mut Forward<Memory, Memory>| c.rstd = Some(memory(F16, 4).into());
    assert_eq!(refused(halves), "rstd has elements of type f16, expected f32");
    let scratch = WeightGradient { dw: memory(F32, 6).into(), scratch: memory(Bf16, 7).into() };
    let call = Backward { dw: Some(scratch), ..backward(F32, F32, F32) };
    assert_eq!(text(call.check()), "scratch has elements of type bf16, expected f32");
    let biased = |dtype| Forward { bias: Some(memory(dtype, 8).into()), ..forward(Bf16, F32) };
    assert!(Dtype::ALL.map(|dtype| biased(dtype).check()).iter().all(Result::is_ok));
    let with_db = |db: Memory, scratch| Backward {
        db: Some(BiasGradient { db: db.into(), scratch: Vector::from(scratch) }),
        ..backward(Bf16, F32, F32)
    };
    assert_eq!(with_db(memory(Bf16, 8), memory(F32, 9)).check(), Ok(()));
    let of_dw = text(with_db(memory(F32, 8), memory(F32, 7)).check());
    assert!(of_dw.starts_with("scratch overlaps db_scratch, expected memory of its own"), "{of_dw}");
    let wrong = with_db(memory(F16, 8), memory(F16, 9)).check();
    assert_eq!(text(wrong), "db_scratch has elements of type f16, expected f32");
    let short = with_db(memory(F32, 8), Memory(F32, 15, 9 << 24)).check();
    assert_eq!(text(short), "db_scratch needs 16 elements (offset included), got 15");
    assert_eq!(refused(|c| c.eps = -f32::from_bits(1)), "eps is -1e-45, expected a finite number that is not negative");
    assert_eq!(refused(|c| c.hidden = 0), "hidden is 0, expected 1 to 16777216");
    assert_eq!(refused(|c| c.x.row_stride = 7), "x has row stride 7, expected 0 or at least hidden = 8");
    assert_eq!(refused(|c| c.y.row_stride = 0), "y has row stride 0, expected at least hidden = 8");
    assert_eq!(refused(|c| c.inner = 0), "inner is 0, expected a divisor of the 2 rows");
    assert_eq!(refused(|c| (c.rows, c.inner) = (1, 2)), "inner is 2, expected a divisor of the 1 row");
    let tangled = |c: &mut Forward<Memory, Memory>| {
        (c.rows, c.inner, c.rstd, c.x.data.1, c.y.data.1) = (6, 2, None, 99, 99);
        (c.y.outer_stride, c.y.row_stride) = (Some(16), 24);
    };
    assert_eq!(
        refused(tangled),
        "y has 3 × 2 rows of 8 elements with strides 16 and 24, which may overlap, expected all rows of one level to end before the next step of \
         the other"
    );
    assert_eq!(refused(|c| c.x.data.1 = 15), "x needs 16 elements (offset included), got 15");
    assert_eq!(
        refused(|c| *c = Forward { rows: 1, rstd: Some(Memory(F32, 0, 4 << 24).into()), ..forward(F32, F32) }),
        "rstd needs 1 element (offset included), got 0"
    );
    let far = usize::MAX;
    assert_eq!(
        refused(|c| c.weight = Some(Vector { offset: usize::MAX, ..memory(F32, 2).into() })),
        format!("weight spans more bytes than an address can count: 1 row of stride 8 from offset {far}")
    );
    assert_eq!(
        refused(|c| c.y.row_stride = usize::MAX),
        format!("y spans more bytes than an address can count: 2 rows of stride {far} from offset 0")
    );
    assert_eq!(
        refused(|c| (c.y.data, c.y.offset) = (c.x.data, 1)),
        "y overlaps x, expected memory of its own, or exactly the rows of x: the same address, strides and element type"
    );
    assert_eq!(refused(|c| c.rstd = Some(c.y.data.into())), "y overlaps rstd, expected memory of its own");
    assert_eq!(
        refused(|c| c.x.data.2 += 2),
        "x begins at address 0x1000002, which is no multiple of its element size of 4 bytes"
    );
    let error = Error::FloatingPoint { got: rmsnorm_cuda::FloatingPoint::RoundsDown };
    assert_eq!(
        error.to_string(),
        "this thread rounds toward -infinity, expected IEEE 754's default: subnormals kept, the nearest taken, ties to even"
    );
}
