//! Files of strangers: malformed ones get a clear error, first tries an answer that helps.

use crate::kernel::{Fault, Named, Problem, Style, file, run, stored, write};
use rmsnorm_ref::Format;
use rmsnorm_ref::judge::{Options, Unreadable, Verdict, judge_file};
use safetensors::tensor::Dtype;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

fn good() -> (Problem, Named) {
    let p = Problem::new(6, 10, Format::F32, 1);
    let out = run(&p, &Style::PLAIN, Fault::None);
    let tensors = file(&p, &out);
    (p, tensors)
}

fn options() -> Options {
    Options { eps: Some(1e-3f32.into()), quiet: true, ..Options::default() }
}

/// The sentence that a changed file gets.
fn refused(options: &Options, change: impl FnOnce(&mut Named)) -> String {
    let (dir, path) = place();
    let mut tensors = good().1;
    change(&mut tensors);
    write(&path, &tensors, None);
    let error = judge_file(&path, None, options).expect_err("it is malformed").to_string();
    drop(dir);
    error
}

fn refused_bytes(change: impl FnOnce(&mut Vec<u8>)) -> String {
    let (dir, path) = place();
    write(&path, &good().1, None);
    let mut bytes = std::fs::read(&path).unwrap();
    change(&mut bytes);
    std::fs::write(&path, bytes).unwrap();
    let error = judge_file(&path, None, &options()).expect_err("it is malformed").to_string();
    drop(dir);
    error
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("case.safetensors");
    (dir, path)
}

fn header(bytes: &mut Vec<u8>, change: impl FnOnce(String) -> String) {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let text = change(String::from_utf8(bytes[8..8 + length].to_vec()).unwrap());
    let data = bytes.split_off(8 + length);
    *bytes = [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &data].concat();
}

fn renamed(tensors: &mut Named, from: &str, to: &str) {
    let tensor = tensors.remove(from).unwrap();
    tensors.insert(to.into(), tensor);
}

fn reshaped(tensors: &mut Named, name: &str, shape: &[usize], values: usize) {
    tensors.insert(name.into(), (Dtype::F32, shape.to_vec(), stored(Format::F32, (0..values).map(|i| i as f64)).1));
}

#[test]
fn bytes_that_are_no_safetensors() {
    let says = |error: String, parts: &[&str]| {
        println!("{error}");
        assert!(error.contains("is not a readable safetensors file"), "{error}");
        parts.iter().for_each(|part| assert!(error.contains(part), "{part}: {error}"));
    };
    says(refused_bytes(Vec::clear), &["0 bytes", "begins with 8 bytes"]);
    says(refused_bytes(|b| b.truncate(5)), &["5 bytes", "begins with 8 bytes"]);
    says(refused_bytes(|b| b.truncate(40)), &["40 bytes", "longer than the file"]);
    says(refused_bytes(|b| b.truncate(b.len() - 1)), &["cut short"]);
    says(refused_bytes(|b| b.push(0)), &["cover the data"]);
    says(refused_bytes(|b| b[..8].fill(0xff)), &["no length of a header"]);
    says(refused_bytes(|b| b.splice(..4, *b"PK\x03\x04").for_each(drop)), &["torch.save"]);
    says(refused_bytes(|b| b[9] = 0xff), &["no JSON"]);
    says(refused_bytes(|b| b[8] = b'['), &["no JSON"]);
    says(refused_bytes(|b| header(b, |text| text.replace("\"F32\"", "\"F31\""))), &["no JSON"]);
    says(refused_bytes(|b| header(b, |text| text.replace("[6,10]", "[6,11]"))), &["shape"]);
    says(refused_bytes(|b| header(b, |text| text.replace("data_offsets", "offsets"))), &["no JSON"]);
    says(
        refused_bytes(|b| header(b, |text| text.replacen("[6,10]", "[18446744073709551615,10]", 1))),
        &["fit together"],
    );
    let nowhere = judge_file(Path::new("/no/such/file"), None, &options()).unwrap_err();
    assert!(nowhere.to_string().starts_with("/no/such/file: No such file"), "{nowhere}");
    assert!(matches!(judge_file(Path::new("/"), None, &options()).unwrap_err(), Unreadable::File { .. }));
}

#[test]
fn tensors_that_do_not_fit() {
    let o = options();
    let says = |error: String, parts: &[&str]| {
        println!("{error}");
        parts.iter().for_each(|part| assert!(error.contains(part), "{part}: {error}"));
    };
    says(refused(&o, |t| t.clear()), &["no tensor has a name that is known", "it holds no tensor"]);
    says(refused(&o, |t| drop(t.remove("x"))), &["there is no x", "--name x=NAME", "weight F32 [10]"]);
    says(refused(&o, |t| t.retain(|name, _| ["x", "weight", "dy"].contains(&name.as_str()))), &["no output to judge"]);
    says(refused(&o, |t| drop(t.remove("dy"))), &["is judged from dy, and there is no dy"]);
    says(refused(&o, |t| reshaped(t, "x", &[], 1)), &["x has shape []", "rows × columns"]);
    says(refused(&o, |t| reshaped(t, "x", &[6, 0], 0)), &["x has shape [6, 0]", "one element or more"]);
    says(refused(&o, |t| reshaped(t, "y", &[6, 9], 54)), &["y has shape [6, 9]; expected [6, 10]"]);
    says(refused(&o, |t| reshaped(t, "y", &[10, 6], 60)), &["y looks transposed", "y.T.contiguous()"]);
    says(refused(&o, |t| reshaped(t, "y", &[60], 60)), &["as many as those of x: reshape"]);
    says(refused(&o, |t| reshaped(t, "weight", &[6], 6)), &["weight has shape [6]", "x looks transposed"]);
    says(refused(&o, |t| reshaped(t, "dw", &[9], 9)), &["dw has shape [9]; expected [10]"]);
    says(refused(&o, |t| reshaped(t, "rstd", &[6, 10], 60)), &["one value a row is meant"]);
    says(refused(&o, |t| reshaped(t, "eps", &[2], 2)), &["eps has shape [2]; expected one number"]);
    says(
        refused(&o, |t| drop(t.insert("y".into(), (Dtype::I32, vec![6, 10], vec![0; 240])))),
        &["y is I32; expected F32"],
    );
    says(refused(&o, |t| drop(t.insert("x".into(), (Dtype::F8_E4M3, vec![6, 10], vec![0; 60])))), &["x is F8_E4M3"]);
    says(
        refused(&o, |t| {
            let bytes = (0..60).flat_map(|i| (0.1 * f64::from(i)).to_le_bytes()).collect();
            t.insert("x".into(), (Dtype::F64, vec![6, 10], bytes));
        }),
        &["x[1] is 1e-1, which is not a number of f32"],
    );
    for eps in [-1.0, f64::NAN, f64::INFINITY] {
        says(refused(&Options { eps: Some(eps), ..options() }, |_| {}), &["expected a finite number of 0 or more"]);
    }
    let named = |ours: &str, theirs: &str| Options { names: vec![(ours.into(), theirs.into())], ..options() };
    says(refused(&named("y", "nowhere"), |_| {}), &["no tensor is called nowhere", "y F32 [6, 10]"]);
    for (key, value) in [("eps", "small"), ("offset", "2"), ("rounding", "thrice"), ("sum", "all"), ("chains", "0")] {
        let (_dir, path) = place();
        write(&path, &good().1, Some(HashMap::from([(key.into(), value.into())])));
        let error = judge_file(&path, None, &Options { quiet: true, ..Options::default() }).unwrap_err().to_string();
        says(error, &[&format!("metadata {key} is `{value}`; expected")]);
    }
}

/// What somebody tries first.
#[test]
fn a_strangers_first_tries_get_an_answer_that_helps() {
    let blank = Options { quiet: true, ..Options::default() };
    // Only x and y: which eps?
    let error = refused(&blank, |t| t.retain(|name, _| ["x", "y", "weight"].contains(&name.as_str())));
    assert!(error.contains("--eps E") && error.contains("fits eps = 1e-3"), "{error}");
    let (_dir, path) = place();
    let (mut p, _) = good();
    p.weight = None;
    let mut tensors = file(&p, &run(&p, &Style::PLAIN, Fault::None));
    tensors.retain(|name, _| ["x", "y"].contains(&name.as_str()));
    write(&path, &tensors, None);
    assert_eq!(judge_file(&path, None, &options()).unwrap().verdict, Verdict::Right);
    // A wrong name.
    let error = refused(&options(), |t| {
        ["dx", "dw", "db", "rstd"].iter().for_each(|name| drop(t.remove(*name)));
        renamed(t, "y", "out");
    });
    assert!(error.contains("--name y=out"), "{error}");
    let mut tensors = good().1;
    renamed(&mut tensors, "y", "out");
    write(&path, &tensors, None);
    let named = Options { names: vec![("y".into(), "out".into())], ..options() };
    let report = judge_file(&path, None, &named).unwrap();
    assert!(report.cases[0].outputs.iter().any(|output| output.name == "y" && output.outside == 0));
    let report = judge_file(&path, None, &options()).unwrap();
    assert!(report.cases[0].notes.iter().any(|note| note.contains("not judged: out")), "{report}");
}

/// Leading dimensions are rows; prefixes are cases; eps may be a tensor or stand in the metadata; f64 is a type of outputs.
#[test]
fn the_forms_that_a_file_may_have() {
    let (p, tensors) = good();
    let (_dir, path) = place();
    let judged = |tensors: &Named, metadata: Option<HashMap<String, String>>| {
        write(&path, tensors, metadata);
        judge_file(&path, None, &Options { quiet: true, ..Options::default() }).unwrap()
    };
    let eps = HashMap::from([("eps".to_owned(), p.eps.to_string())]);
    assert_eq!(judged(&tensors, Some(eps)).verdict, Verdict::Right);
    let mut with_eps = tensors.clone();
    with_eps.insert("eps".into(), (Dtype::F32, vec![], p.eps.to_le_bytes().to_vec()));
    let mut ranked = with_eps.clone();
    for name in ["x", "y", "dx", "dy"] {
        ranked.get_mut(name).unwrap().1 = vec![2, 1, 3, 10];
    }
    ranked.get_mut("rstd").unwrap().1 = vec![2, 1, 3, 1];
    assert_eq!(judged(&ranked, None).cases[0].rows, 6);
    let mut two = Named::new();
    for (name, tensor) in &with_eps {
        two.insert(format!("model.layers.0.{name}"), tensor.clone());
        two.insert(format!("b/{name}"), tensor.clone());
    }
    let report = judged(&two, None);
    let names: Vec<&str> = report.cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names, ["b", "model.layers.0"]);
    assert_eq!(report.verdict, Verdict::Right);
    let mut wide = with_eps;
    let out = run(&p, &Style::PLAIN, Fault::None);
    wide.insert("y".into(), (Dtype::F64, vec![6, 10], out.y.iter().flat_map(|y| y.to_le_bytes()).collect()));
    assert_eq!(judged(&wide, None).verdict, Verdict::Right);
    wide.insert("y".into(), (Dtype::F64, vec![6, 10], out.y.iter().flat_map(|y| (y * 1.0001).to_le_bytes()).collect()));
    assert_eq!(judged(&wide, None).verdict, Verdict::Outside);
    // No rows: dw and db are 0.
    let none = Problem { rows: 0, x: vec![], dy: vec![], ..p };
    let mut nothing = file(&none, &run(&none, &Style::PLAIN, Fault::None));
    nothing.insert("eps".into(), (Dtype::F32, vec![], 1e-5f32.to_le_bytes().to_vec()));
    assert_eq!(judged(&nothing, None).verdict, Verdict::Right);
    nothing.get_mut("dw").unwrap().2[3] = 0x3f;
    assert_eq!(judged(&nothing, None).verdict, Verdict::Outside);
}

/// What any order hides a known order shows, and so do rows in which one element dominates.
#[test]
fn a_known_order_sees_more() {
    let mut p = Problem::new(3, 20_000, Format::F32, 4);
    p.eps = 0.0;
    let left_out = Fault::FirstColumns(19_999);
    let (_dir, path) = place();
    let judged = |p: &Problem, row: Option<rmsnorm_ref::judge::Height>| {
        write(&path, &file(p, &run(p, &Style::PLAIN, left_out)), None);
        let options = Options { eps: Some(0.0), row, ..options() };
        judge_file(&path, None, &options).unwrap()
    };
    let blind = judged(&p, None);
    assert_eq!(blind.verdict, Verdict::Right, "{blind}");
    assert!(blind.cases[0].notes[0].contains("one element left out"), "{blind}");
    assert_eq!(judged(&p, Some(rmsnorm_ref::judge::Height::Chains(1024))).verdict, Verdict::Outside);
    p.x.chunks_mut(20_000).for_each(|row| row[19_999] = 1000.0);
    assert_eq!(judged(&p, None).verdict, Verdict::Outside);
}

/// JSON holds what the text says, and NaN and infinities as text.
#[test]
fn json_is_whole() {
    let (_dir, path) = place();
    let (p, _) = good();
    let mut out = run(&p, &Style::PLAIN, Fault::None);
    out.y[13] = f64::NAN;
    out.dx[7] = f64::INFINITY;
    write(&path, &file(&p, &out), None);
    let report = judge_file(&path, None, &options()).unwrap();
    assert_eq!(report.exit_status(), 1);
    let json: serde_json::Value = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
    assert_eq!(json["verdict"], "outside");
    let outputs = json["cases"][0]["outputs"].as_array().unwrap();
    let worst = |name: &str| &outputs.iter().find(|output| output["name"] == name).unwrap()["worst"];
    assert_eq!(
        (&worst("y")["computed"], &worst("y")["row"], &worst("y")["column"]),
        (&"NaN".into(), &1.into(), &3.into())
    );
    assert_eq!(worst("dx")["computed"], "inf");
}
