//! The frozen bits. `RMSNORM_BLESS=1 cargo test -p rmsnorm-fuzz --test golden` freezes them anew, if that is allowed.

use rmsnorm_cuda::{BITS_VERSION, Backward, Cpu, Error, Executor, Forward, Rows, Slice, SliceMut};
use rmsnorm_fuzz::golden::{computed, digest, digests, may_replace, version};
use rmsnorm_fuzz::{Literal, hard_case};
use std::path::Path;

#[test]
fn bits_are_the_frozen_ones() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = root.join("golden.txt");
    let frozen = std::fs::read_to_string(&path).unwrap_or_default();
    let computed = computed();
    if let Err(reason) = may_replace(&frozen, &computed) {
        panic!("{reason}");
    }
    if version(&computed) > 0 {
        let decisions = std::fs::read_to_string(root.join("../docs/decisions.md")).unwrap_or_default();
        let entry = format!("BITS_VERSION {BITS_VERSION}");
        assert!(decisions.contains(&entry), "docs/decisions.md has no entry that names \"{entry}\"");
    }
    if std::env::var_os("RMSNORM_BLESS").is_some() {
        std::fs::write(&path, computed).unwrap();
        return;
    }
    let same = frozen.lines().eq(computed.lines());
    assert!(same, "golden.txt is out of date: RMSNORM_BLESS=1 cargo test -p rmsnorm-fuzz --test golden");
}

#[test]
fn changed_bits_need_a_higher_version() {
    let frozen = "BITS_VERSION 3\na in 11\nb in 22\n";
    assert!(may_replace(frozen, frozen).is_ok());
    assert!(may_replace(frozen, "BITS_VERSION 3\na in 11\nb in 22\nnew in 33\n").is_ok());
    assert!(may_replace(frozen, "BITS_VERSION 3\na in 11\n").is_ok());
    assert!(may_replace(frozen, "BITS_VERSION 3\na in 11\nb other 23\n").is_ok());
    assert!(may_replace(frozen, "BITS_VERSION 3\na in 11\nb in 23\n").is_err());
    assert!(may_replace(frozen, "BITS_VERSION 2\na in 11\nb in 22\n").is_err());
    assert!(may_replace(frozen, "BITS_VERSION 4\na in 11\nb in 23\n").is_ok());
    assert!(may_replace("BITS_VERSION 0\na in 11\n", "BITS_VERSION 0\na in 12\n").is_ok());
}

#[test]
fn a_digest_sees_one_bit() {
    struct Flip;
    impl Executor for Flip {
        fn name(&self) -> String {
            "literal, but one bit of dx is flipped".into()
        }
        fn forward(&self, call: Forward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
            Literal.forward(call)
        }
        fn backward(&self, call: Backward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
            let Backward { rows, inner, hidden, weight_offset, x, weight, rstd, dy, mut dx, dw, .. } = call;
            let SliceMut::F32(data) = &mut dx.data else { panic!("another type") };
            let Rows { offset, row_stride, outer_stride, .. } = dx;
            let lent = Rows { data: SliceMut::F32(data), offset, row_stride, outer_stride };
            Literal.backward(Backward {
                inner,
                weight_offset,
                weight,
                dw,
                ..Backward::with_rows((rows, hidden), x, rstd, dy, lent)
            })?;
            data[dx.offset] = f32::from_bits(data[dx.offset].to_bits() ^ 1);
            Ok(())
        }
    }
    let case = hard_case("w_awkward").unwrap().case;
    assert_eq!(digest(&Literal, &case), digest(&Cpu, &case));
    assert_ne!(digest(&Literal, &case), digest(&Flip, &case));
    let [literal, cpu, flipped] = [&Literal as &dyn Executor, &Cpu, &Flip].map(|e| digests(e, &case).unwrap());
    assert_eq!(literal, cpu);
    assert_eq!([0, 1, 2, 3].map(|output| literal[output] == flipped[output]), [true, true, false, true]);
}
