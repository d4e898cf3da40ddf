//! The CUDA half of the specification, executed: `arith.cuh` compiled by the host's C++ compiler, with the emulator's stand-ins for
//! the GPU's instructions, gives the bits of `arith.rs` function by function. Needs a C++ compiler (`CXX`, else `c++`).
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use half::{bf16, f16};
use rmsnorm_cuda::arith::{self, Element, RowScale};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use tempfile::TempDir;

mod machine;

/// Inputs of each function.
const INPUTS: usize = 1_000_000;

type Bits = [u32; 3];

/// A function of four words, in both languages: up to three words of result.
struct Function {
    name: &'static str,
    /// Statements over the floats a, b, c, d and the words u[4] that fill r[3].
    cuda: &'static str,
    rust: fn([u32; 4]) -> Bits,
}

macro_rules! function {
    ($name:literal, $cuda:literal, |$($word:ident),*| $result:expr) => {
        Function {
            name: $name,
            cuda: $cuda,
            rust: |words| {
                let [$($word),*, ..] = words.map(f32::from_bits);
                $result
            },
        }
    };
}

fn f(value: f32) -> u32 {
    if value.is_nan() { 0x7fff_ffff } else { value.to_bits() }
}

/// What a recomputed sum is depends on the scale that is asked for: a wrong scale shows.
const FUNCTIONS: [Function; 32] = [
    function!("widen float", "r[0] = f(widen(a));", |a| [f(a.widen()), 0, 0]),
    Function {
        name: "widen f16",
        cuda: "r[0] = f(widen(f16{(u16)u[0]}));",
        rust: |u| [f(f16::from_bits(u[0] as u16).widen()), 0, 0],
    },
    Function {
        name: "widen bf16",
        cuda: "r[0] = f(widen(bf16{(u16)u[0]}));",
        rust: |u| [f(bf16::from_bits(u[0] as u16).widen()), 0, 0],
    },
    function!("store float", "r[0] = f(store<float>(a));", |a| [f32::store(a).to_bits(), 0, 0]),
    function!("store f16", "r[0] = store<f16>(a).bits;", |a| [f16::store(a).to_bits().into(), 0, 0]),
    function!("store bf16", "r[0] = store<bf16>(a).bits;", |a| [bf16::store(a).to_bits().into(), 0, 0]),
    function!("store_pair f16", "r[0] = store_pair<f16>(a, b);", |a, b| {
        [u32::from(f16::store(a).to_bits()) | u32::from(f16::store(b).to_bits()) << 16, 0, 0]
    }),
    function!("store_pair bf16", "r[0] = store_pair<bf16>(a, b);", |a, b| {
        [u32::from(bf16::store(a).to_bits()) | u32::from(bf16::store(b).to_bits()) << 16, 0, 0]
    }),
    function!("chain", "r[0] = f(chain(a, b, c));", |a, b, c| [f(arith::chain(a, b, c)), 0, 0]),
    function!("fold", "r[0] = f(fold(a, b));", |a, b| [f(arith::fold(a, b)), 0, 0]),
    function!("total", "r[0] = f(total(a));", |a| [f(arith::total(a)), 0, 0]),
    function!("mean", "r[0] = f(mean(a, b));", |a, b| [f(arith::mean(a, b)), 0, 0]),
    function!("mean of a power of two", "r[0] = f(mean(a, PowerOfTwo{1.0f / (1 << u[1] % 25)}));", |a, b| {
        [f(arith::mean(a, (1_u32 << (b.to_bits() % 25)) as f32)), 0, 0]
    }),
    function!("reciprocal_root", "r[0] = f(reciprocal_root(a));", |a| [f(arith::reciprocal_root(a)), 0, 0]),
    function!("scale_for", "r[0] = f(scale_for(a));", |a| [f(arith::scale_for(a)), 0, 0]),
    function!("scaled", "r[0] = f(scaled(a, b));", |a, b| [f(arith::scaled(a, b)), 0, 0]),
    function!(
        "row_scale",
        "RowScale s = row_scale(a, [=] { return b; }); r[0] = f(s.pre), r[1] = f(s.post);",
        |a, b| row(arith::row_scale(a, || b))
    ),
    function!(
        "statistic",
        "Statistic s = statistic(a, b, c, [=](float s) { return scaled(d, s); }); r[0] = f(s.rstd), r[1] = f(s.scale.pre), \
         r[2] = f(s.scale.post);",
        |a, b, c, d| {
            let (rstd, scale) = arith::statistic(a, b, c, |s| arith::scaled(d, s));
            [f(rstd), f(scale.pre), f(scale.post)]
        }
    ),
    function!("ordinary_rstd", "r[0] = f(ordinary_rstd(a, b, c));", |a, b, c| [f(arith::ordinary_rstd(a, b, c)), 0, 0]),
    function!("scaled_root", "r[0] = f(scaled_root(a, b));", |a, b| [f(arith::scaled_root(a, b)), 0, 0]),
    function!("x_hat", "r[0] = f(x_hat(a, RowScale{b, c}));", |a, pre, post| [
        f(arith::x_hat(a, RowScale { pre, post })),
        0,
        0
    ]),
    function!("x_hat of an ordinary row", "r[0] = f(x_hat(a, OrdinaryRow{b}));", |a, rstd| {
        [f(arith::x_hat(a, RowScale { pre: 1.0, post: rstd })), 0, 0]
    }),
    function!("added", "r[0] = f(added(a, b));", |a, b| [f(arith::added(a, b)), 0, 0]),
    function!("effective_weight", "r[0] = f(effective_weight(a, true)), r[1] = f(effective_weight(a, false));", |a| [
        f(arith::effective_weight(a, true)),
        f(arith::effective_weight(a, false)),
        0
    ]),
    function!("factor float", "r[0] = f(factor<float>(a, true)), r[1] = f(factor<float>(a, false));", |a| {
        [f(arith::factor(a, true, |x| f32::store(x).widen())), f(arith::factor(a, false, |_| 0.0)), 0]
    }),
    function!("factor f16", "r[0] = f(factor<f16>(a, true)), r[1] = f(factor<f16>(a, false));", |a| {
        [f(arith::factor(a, true, |x| f16::store(x).widen())), f(arith::factor(a, false, |_| 0.0)), 0]
    }),
    function!("factor bf16", "r[0] = f(factor<bf16>(a, true)), r[1] = f(factor<bf16>(a, false));", |a| {
        [f(arith::factor(a, true, |x| bf16::store(x).widen())), f(arith::factor(a, false, |_| 0.0)), 0]
    }),
    function!("weighted", "r[0] = f(weighted(a, b));", |a, b| [f(arith::weighted(a, b)), 0, 0]),
    function!("weighted_with", "r[0] = f(weighted_with(a, b, c));", |a, b, c| [f(arith::weighted_with(a, b, c)), 0, 0]),
    function!("centred", "r[0] = f(centred(a, b, c));", |a, b, c| [f(arith::centred(a, b, c)), 0, 0]),
    function!(
        "gradient",
        "r[0] = f(gradient(a, RowScale{b, c})), r[1] = f(gradient(a, OrdinaryRow{c}));",
        |a, pre, post| {
            let ordinary = RowScale { pre: 1.0, post };
            [f(arith::gradient(a, RowScale { pre, post })), f(arith::gradient(a, ordinary)), 0]
        }
    ),
    function!(
        "gradient_with",
        "r[0] = f(gradient_with(a, RowScale{b, c}, d)), r[1] = f(gradient_with(a, OrdinaryRow{c}, d)), \
         r[2] = f(gradient_with(a, RowScale{1.0f, c}, d));",
        |a, pre, post, dz| {
            let ordinary = f(arith::gradient_with(a, RowScale { pre: 1.0, post }, dz));
            [f(arith::gradient_with(a, RowScale { pre, post }, dz)), ordinary, ordinary]
        }
    ),
];

fn row(scale: RowScale) -> Bits {
    [f(scale.pre), f(scale.post), 0]
}

const ARITH: &str = include_str!("../src/arith.cuh");
const EMULATION: &str = include_str!("../src/cuda/checks/emulator.cc");

#[test]
fn both_halves_give_the_same_bits() {
    if !machine::has_cxx() {
        return;
    }
    let inputs = inputs(INPUTS);
    let program = Program::new("sound", ARITH, &inputs);
    for function in &FUNCTIONS {
        if let Some(difference) = program.difference(function, &inputs) {
            panic!("{}: {difference}", function.name);
        }
    }
    println!("{} functions, {INPUTS} inputs each", FUNCTIONS.len());
}

/// A function of arith.cuh that is not in the list would not be executed.
#[test]
fn no_function_is_left_out() {
    for (_, after) in ARITH.lines().filter_map(|line| line.split_once("__forceinline__ ")) {
        let before = after.split_once('(').expect("a function").0;
        let name = before.split_whitespace().last().and_then(|n| n.split('<').next()).expect("a name");
        let listed = FUNCTIONS.iter().any(|f| f.name.split(' ').next() == Some(name) && f.cuda.contains(name));
        assert!(listed, "{name} is not executed");
    }
}

/// Each change of one function is seen in that function, also where only a special value shows it.
#[test]
fn a_changed_function_is_seen() {
    if !machine::has_cxx() {
        return;
    }
    let changes = [
        ("widen bf16", "(u32)v.bits << 16", "(u32)v.bits << 15"),
        ("store bf16", "bf16{bf16_from_f32(v)}", "bf16{(u16)(__float_as_uint(v) >> 16)}"),
        ("store_pair f16", "f16x2_from_f32(low, high)", "f16x2_from_f32(high, low)"),
        ("chain", "__fmaf_rn(a, b, acc)", "__fadd_rn(__fmul_rn(a, b), acc)"),
        ("total", "__fadd_rn(root, 0.0f)", "root"),
        ("reciprocal_root", "__fdiv_rn(1.0f, __fsqrt_rn(v))", "__fsqrt_rn(__fdiv_rn(1.0f, v))"),
        ("scale_for", "v < MIN_POSITIVE", "v <= MIN_POSITIVE"),
        ("scaled", "__fmul_rn(z, s)", "z"),
        ("row_scale", "if (rstd == INFINITY_F32)", "if (rstd >= SCALE_UP)"),
        ("statistic", "__fmul_rn(__fmul_rn(eps, s), s)", "eps"),
        ("effective_weight", "zero_centred ? __fadd_rn(weight, 1.0f) : weight", "__fadd_rn(weight, zero_centred)"),
        ("factor f16", "widen(store<T>(x_hat))", "widen(store<bf16>(x_hat))"),
        ("centred", "__fmaf_rn(-x_hat, c, wdy)", "__fadd_rn(wdy, -__fmul_rn(x_hat, c))"),
        ("gradient", "__fmul_rn(__fmul_rn(t, row.post), row.pre)", "__fmul_rn(__fmul_rn(t, row.pre), row.post)"),
    ];
    let inputs = inputs(INPUTS / 10);
    for (i, (name, from, to)) in changes.into_iter().enumerate() {
        assert!(ARITH.contains(from), "{from}");
        let function = FUNCTIONS.iter().find(|f| f.name == name).expect(name);
        let program = Program::new(&format!("changed-{i}"), &ARITH.replace(from, to), &inputs);
        let difference = program.difference(function, &inputs);
        println!("{name}: {}", difference.unwrap_or_else(|| panic!("not seen: {to}")));
    }
}

/// Words of which one in four is special; the others have any bits.
fn inputs(count: usize) -> Vec<[u32; 4]> {
    let next_to = |bits: u32| [bits - 1, bits, bits + 1];
    let mut special: Vec<u32> = vec![0, 1, 0x7f80_0000, 0x7fc0_0000, 0x7f80_0001, 0x7fff_ffff, 0x007f_ffff];
    // 1, the scales, the edges of the normal range, of f16's, and halfway between two bf16.
    let edges =
        [1.0, 2.0, arith::SCALE_UP, arith::SCALE_DOWN, f32::MIN_POSITIVE, 65504.0, 65520.0, 6.1e-5, 5.96e-8, 2.98e-8];
    special.extend(edges.iter().flat_map(|edge: &f32| next_to(edge.to_bits())));
    special.extend([0x3f80_8000, 0x3f81_8000, 0x7f7f_8000].into_iter().flat_map(next_to));
    special.extend([0x7f7f_fffe, 0x7f7f_ffff, 0x3c00, 0x7bff, 0x7c00, 0x7c01, 0x03ff, 0x8000, 0xfc00, 0x4b80_0000]);
    let negative: Vec<u32> = special.iter().map(|bits| bits ^ 1 << 31).collect();
    special.extend(negative);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u32
    };
    let mut word = move || match random() {
        r if r % 4 == 0 => special[(r >> 2) as usize % special.len()],
        _ => random(),
    };
    (0..count).map(|_| std::array::from_fn(|_| word())).collect()
}

/// arith.cuh, compiled: prints what a function makes of the inputs.
struct Program {
    folder: TempDir,
}

impl Program {
    fn new(name: &str, arith: &str, inputs: &[[u32; 4]]) -> Program {
        let program = Program { folder: machine::folder() };
        let bytes: Vec<u8> = inputs.iter().flatten().flat_map(|word| word.to_le_bytes()).collect();
        std::fs::write(program.file("inputs"), bytes).expect("inputs");
        let mut source = format!("{EMULATION}\n{arith}\n#include <cstdio>\n#include <cstdlib>\n");
        source += "static u32 f(float v) { return v != v ? 0x7fffffffu : __float_as_uint(v); }\n";
        for (i, function) in FUNCTIONS.iter().enumerate() {
            let parameters = "float a, float b, float c, float d, const u32* u, u32* r";
            writeln!(source, "static void function_{i}({parameters}) {{ {} }}", function.cuda).expect("a string");
        }
        let all: String = (0..FUNCTIONS.len()).map(|i| format!("function_{i}, ")).collect();
        write!(
            source,
            "static void (*const functions[])(float, float, float, float, const u32*, u32*) = {{{all}}};\n\
             int main(int, char** arguments) {{\n\
             \x20   std::FILE* in = std::fopen(arguments[1], \"rb\");\n\
             \x20   auto function = functions[std::atoi(arguments[2])];\n\
             \x20   for (u32 u[4]; in && std::fread(u, 4, 4, in) == 4;) {{\n\
             \x20       u32 r[3] = {{}};\n\
             \x20       function(__uint_as_float(u[0]), __uint_as_float(u[1]), __uint_as_float(u[2]), __uint_as_float(u[3]), u, r);\n\
             \x20       std::fwrite(r, 4, 3, stdout);\n\
             \x20   }}\n\
             }}\n"
        )
        .expect("a string");
        std::fs::write(program.file("arithmetic.cc"), source).expect("the source");
        let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
        let output = Command::new(compiler)
            // As the emulator compiles.
            .args(["-std=c++17", "-O1", "-march=native", "-ffp-contract=off", "-w", "-o"])
            .args([program.file("arithmetic"), program.file("arithmetic.cc")])
            .output()
            .expect("a C++ compiler");
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        program
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The first input of which the two halves make something else.
    fn difference(&self, function: &Function, inputs: &[[u32; 4]]) -> Option<String> {
        let index = FUNCTIONS.iter().position(|f| f.name == function.name).expect("in the list");
        let mut command = Command::new(self.file("arithmetic"));
        let output = command.arg(self.file("inputs")).arg(index.to_string()).output().expect("runs");
        let words: Vec<u32> = output.stdout.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        let results = words.as_chunks::<3>().0;
        assert!(output.status.success() && results.len() == inputs.len(), "{}: it ended early", function.name);
        let (input, cuda) = inputs.iter().zip(results).find(|(input, cuda)| (function.rust)(**input) != **cuda)?;
        Some(format!("of {input:08x?} arith.cuh makes {cuda:08x?}, arith.rs {:08x?}", (function.rust)(*input)))
    }
}
