//! The C interface, as C and C++ compilers see it: the headers against the
//! record in `tests/abi/interface.inc`, each header by itself and in any order,
//! calls of an older interface, and what calls owe to C. `docs/abi.md` says what
//! is promised.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Every language the headers are for: a compiler and its options.
const LANGUAGES: [&[&str]; 5] = [
    &["gcc", "-x", "c", "-std=gnu99"],
    &["gcc", "-x", "c", "-std=gnu11"],
    &["g++", "-x", "c++", "-std=c++11"],
    &["g++", "-x", "c++", "-std=c++17"],
    // What callers had to do for the original headers.
    &["g++", "-x", "c++", "-std=c++17", "-D_Static_assert=static_assert"],
];

const STRICT: [&str; 4] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"];

const HEADERS: [&str; 10] = [
    "libvfio-user.h",
    "libvfio-user-ext.h",
    "vfio-user.h",
    "pci_defs.h",
    "pci_caps/common.h",
    "pci_caps/dsn.h",
    "pci_caps/msi.h",
    "pci_caps/msix.h",
    "pci_caps/pm.h",
    "pci_caps/px.h",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn source(name: &str) -> PathBuf {
    root().join("tests/abi").join(name)
}

fn output(command: &mut Command) -> (bool, String) {
    let Output { status, stdout, stderr } = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    (status.success(), format!("{command:?}\n{text}"))
}

fn compiler(language: &[&str]) -> Command {
    let mut command = Command::new(language[0]);
    command.args(&language[1..]).args(STRICT).arg("-I").arg(root().join("include"));
    command
}

/// Compiles text, without a program to come of it.
fn check_text(language: &[&str], text: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("text");
    fs::write(&file, text).unwrap();
    let (compiles, messages) = output(compiler(language).arg("-fsyntax-only").arg(file));
    assert!(compiles, "{messages}\n{text}");
}

/// Compiles a file into a program and runs it.
fn run(language: &[&str], name: &str, options: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("program");
    // A member's offset in a structure that is plain C but not plain C++.
    let offsets: &[&str] = if language[0] == "g++" { &["-Wno-invalid-offsetof"] } else { &[] };
    let mut command = compiler(language);
    let (compiles, messages) =
        output(command.args(offsets).arg(source(name)).args(options).arg("-o").arg(&program));
    assert!(compiles, "{messages}");
    let (passes, messages) = output(&mut Command::new(&program));
    assert!(passes, "{name} as {language:?}: {messages}");
}

fn includes<'a>(headers: impl Iterator<Item = &'a &'a str>) -> String {
    headers.map(|header| format!("#include <{header}>\n")).chain(["int declared;\n".to_owned()]).collect()
}

#[test]
fn each_header_compiles_alone_and_twice() {
    for language in LANGUAGES {
        for header in HEADERS {
            check_text(language, &includes([header, header].iter()));
        }
    }
}

#[test]
fn headers_compile_in_any_order() {
    for language in LANGUAGES {
        check_text(language, &includes(HEADERS.iter()));
        check_text(language, &includes(HEADERS.iter().rev()));
    }
}

#[test]
fn headers_leave_no_name_behind_that_is_not_theirs() {
    let (ok, macros) = output(
        compiler(LANGUAGES[0])
            .args(["-dM", "-E", "-include", "libvfio-user.h", "-DLIBVFIO_USER_NO_COMPAT"])
            .arg("/dev/null"),
    );
    assert!(ok, "{macros}");
    for name in ["_Static_assert", "static_assert", "VFU_ASSERT_SIZE", "VFU_COMPAT_COUNT"] {
        assert!(!macros.contains(&format!("#define {name}")), "{name} is a macro");
    }
}

#[test]
fn the_interface_is_the_recorded_one() {
    for language in LANGUAGES {
        run(language, "interface.c", &[]);
    }
}

#[test]
fn constants_can_be_used_by_the_preprocessor() {
    let record = fs::read_to_string(source("interface.inc")).unwrap();
    let mut text = includes(HEADERS.iter());
    let constants = record.lines().filter_map(|line| line.strip_prefix("CONSTANT(")?.strip_suffix(')'));
    let mut count = 0;
    for (name, value) in constants.map(|constant| constant.split_once(", ").unwrap()) {
        text += &format!("#if !defined({name}) || ({name}) != ({value})\n#error {name}\n#endif\n");
        count += 1;
    }
    assert!(count > 0);
    for language in LANGUAGES {
        check_text(language, &text);
    }
}

#[test]
fn calls_of_both_generations_compile() {
    for language in LANGUAGES {
        run(language, "compat.c", &[]);
    }
}

#[test]
fn without_the_macros_only_todays_calls_compile() {
    for language in LANGUAGES {
        run(language, "compat.c", &["-DLIBVFIO_USER_NO_COMPAT", "-DNEW_CALLS_ONLY"]);
        let mut command = compiler(language);
        let refused = command.args(["-fsyntax-only", "-DLIBVFIO_USER_NO_COMPAT"]).arg(source("compat.c"));
        let (compiles, messages) = output(refused);
        assert!(!compiles && messages.contains("too few arguments"), "{messages}");
    }
}
