//! The shared library as the loader and C programs see it: its name, exactly the
//! symbols of `libvfio-user.map`, and what its functions owe to C.
//!
//! Checks cargo's library, or the one that `VFU_LIBRARY` names, such as meson's.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use object::elf::{FileHeader64, STV_DEFAULT};
use object::read::elf::{Dyn, ElfFile, FileHeader, SectionHeader, Sym};
use object::{Endianness, Object, ObjectSymbol, elf};

const SONAME: &str = "libvfio-user.so.0";
/// Version nodes, and the record of what has the version.
const VERSIONS: [(&str, &str); 2] =
    [("LIBVFIO_USER_0", "interface.inc"), ("LIBVFIO_USER_1", "extension.inc")];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The library to check.
fn library() -> PathBuf {
    if let Some(path) = env::var_os("VFU_LIBRARY") {
        return path.into();
    }
    let deps = env::current_exe().unwrap().parent().unwrap().to_owned();
    let candidates = [deps.join("libvfio_user.so"), deps.parent().unwrap().join("libvfio_user.so")];
    candidates.into_iter().find(|path| path.exists()).expect("cargo built the library")
}

/// The names that the linker script lets out, each with its version.
fn public() -> BTreeMap<String, String> {
    let script = fs::read_to_string(root().join("libvfio-user.map")).unwrap();
    let (_, script) = script.split_once("*/").unwrap();
    let mut names = BTreeMap::new();
    for node in script.split('}').filter(|node| node.contains("global:")) {
        let (version, listed) = node.split_once('{').unwrap();
        let version = version.rsplit(';').next().unwrap().trim();
        let listed = listed.split("global:").nth(1).unwrap().split("local:").next().unwrap();
        for name in listed.split(';').map(str::trim).filter(|name| !name.is_empty()) {
            assert_eq!(names.insert(name.to_owned(), version.to_owned()), None, "{name} is listed twice");
        }
    }
    names
}

/// The functions that the records of the interface list, each with its version.
fn recorded() -> BTreeMap<String, String> {
    let mut names = BTreeMap::new();
    for (version, file) in VERSIONS {
        let record = fs::read_to_string(root().join("tests/abi").join(file)).unwrap();
        let functions = record.lines().filter_map(|line| line.strip_prefix("FUNCTION("));
        for name in functions.map(|line| line.split(',').next().unwrap()) {
            names.insert(name.to_owned(), version.to_owned());
        }
    }
    names
}

#[test]
fn the_linker_script_lists_the_interface() {
    let public = public();
    assert_eq!(public, recorded());
    assert_eq!(public.values().filter(|version| *version == "LIBVFIO_USER_0").count(), 34);
    for (name, version) in &public {
        assert_eq!(name.starts_with("vfux_"), version == "LIBVFIO_USER_1", "{name}");
    }
}

#[test]
fn the_library_exports_the_interface_and_nothing_else() {
    let data = fs::read(library()).unwrap();
    let file = ElfFile::<FileHeader64<Endianness>>::parse(&*data).unwrap();
    let exported: BTreeSet<String> = file
        .dynamic_symbols()
        .filter(|symbol| symbol.is_global() && !symbol.is_undefined())
        .filter(|symbol| symbol.elf_symbol().st_shndx(file.endian()) != elf::SHN_ABS)
        .filter(|symbol| symbol.elf_symbol().st_visibility() == STV_DEFAULT)
        .map(|symbol| symbol.name().unwrap().to_owned())
        .collect();
    assert_eq!(exported, public().into_keys().collect());
}

#[test]
fn versions_if_there_are_any_are_ours() {
    let data = fs::read(library()).unwrap();
    let header = FileHeader64::<Endianness>::parse(&*data).unwrap();
    let endian = header.endian().unwrap();
    let sections = header.sections(endian, &*data).unwrap();
    let Some(versions) = sections.versions(endian, &*data).unwrap() else {
        return;
    };
    if sections.iter().all(|section| section.sh_type(endian) != elf::SHT_GNU_VERDEF) {
        return;
    }
    let symbols = sections.symbols(endian, &*data, elf::SHT_DYNSYM).unwrap();
    let public = public();
    for (index, symbol) in symbols.enumerate() {
        let name = String::from_utf8(symbols.symbol_name(endian, symbol).unwrap().to_owned()).unwrap();
        if let Some(ours) = public.get(&name).filter(|_| symbol.st_shndx(endian) != elf::SHN_UNDEF) {
            let version = versions.version(versions.version_index(endian, index).index()).unwrap().unwrap();
            assert_eq!(version.name(), ours.as_bytes(), "{name}");
        }
    }
}

#[test]
fn the_loader_knows_the_library_by_its_name() {
    let data = fs::read(library()).unwrap();
    let header = FileHeader64::<Endianness>::parse(&*data).unwrap();
    let endian = header.endian().unwrap();
    let sections = header.sections(endian, &*data).unwrap();
    let (entries, strings) = sections.dynamic(endian, &*data).unwrap().unwrap();
    let strings = sections.strings(endian, &*data, strings).unwrap();
    let soname = entries.iter().find(|entry| entry.tag(endian) == elf::DT_SONAME).unwrap();
    assert_eq!(soname.string(endian, strings).unwrap(), SONAME.as_bytes());
}

/// Functions of the C library whose failure needs no test in `tests/faults`: they have
/// none, or are only called on the way from a panic to the log.
const CANNOT_FAIL: &str = "
    __cxa_finalize __cxa_thread_atexit_impl __errno_location __gmon_start__ __tls_get_addr __xpg_strerror_r
    _ITM_deregisterTMCloneTable _ITM_registerTMCloneTable abort bcmp clock_gettime dl_iterate_phdr free getcwd
    getenv geteuid getpid getrlimit gettid lseek64 memcmp memcpy memmove memset open64 pthread_key_create
    pthread_key_delete pthread_setcancelstate pthread_setcanceltype pthread_setspecific pthread_sigmask pthread_testcancel
    realpath
    sched_yield sigaction stat64 strlen sysconf vsnprintf writev";

/// What the library calls and `tests/faults` does not make fail would go untested.
#[test]
fn every_call_that_can_fail_is_made_to_by_the_fault_tests() {
    let shim = fs::read_to_string(root().join("tests/faults/shim.c")).unwrap();
    let defines = |name: &str| {
        shim.lines().any(|line| {
            let interposed = line.starts_with("INTERPOSE(") && line.contains(&format!(", {name}, SHIM_"));
            interposed || line.starts_with(&format!("{name}("))
        })
    };
    assert!(defines("recvmsg") && defines("close") && !defines("abort"));
    let data = fs::read(library()).unwrap();
    let file = ElfFile::<FileHeader64<Endianness>>::parse(&*data).unwrap();
    let untested: Vec<&str> = file
        .dynamic_symbols()
        .filter(|symbol| symbol.is_undefined())
        .map(|symbol| symbol.name().unwrap())
        .filter(|name| !name.is_empty() && !name.starts_with("_Unwind_"))
        .filter(|name| !CANNOT_FAIL.split_whitespace().any(|other| other == *name) && !defines(name))
        .collect();
    assert!(untested.is_empty(), "calls that the shim of tests/faults does not know: {untested:?}");
}

/// Frames between C and a wait: what C calls, and what may be a function of its own, as it is in
/// the name of a symbol.
const CANCELLED_IN: ([&str; 4], [&str; 8]) = (
    ["vfu_attach_ctx", "vfu_run_ctx", "vfu_sgl_read", "vfu_sgl_write"],
    [
        "4capi7context12run_for_ever",
        "4capi8transfer10move_bytes",
        "4capi4wait5drive",
        "4capi5guard12Cancellation8hold_off",
        "4capi5guard12Cancellation7restore",
        "4capi5guard20disable_cancellation",
        "4capi5guard20restore_cancellation",
        "4Wait7perform",
    ],
);

/// First addresses of functions in the unwind tables, and whether they have landing pads.
fn landing_pads(library: &Path) -> BTreeMap<u64, bool> {
    let tables = Command::new("readelf").arg("--debug-dump=frames").arg(library).output().unwrap();
    assert!(tables.status.success(), "{}", String::from_utf8_lossy(&tables.stderr));
    let tables = String::from_utf8_lossy(&tables.stdout);
    let (_, tables) = tables.split_once(".eh_frame section").unwrap();
    let mut of_kind = BTreeMap::new();
    let (mut kind, mut found) = ("", BTreeMap::new());
    for line in tables.lines().take_while(|line| !line.starts_with("Contents of ")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [offset, _, _, "CIE"] => kind = offset,
            // With an L, functions have a table of what is theirs alone: that is where their landing pads are.
            ["Augmentation:", text] => _ = of_kind.insert(kind, text.contains('L')),
            [_, _, _, "FDE", cie, pc] => {
                let first = pc.strip_prefix("pc=").unwrap().split("..").next().unwrap();
                let has_any = of_kind[cie.strip_prefix("cie=").unwrap()];
                found.insert(u64::from_str_radix(first, 16).unwrap(), has_any);
            }
            _ => (),
        }
    }
    found
}

/// A thread of asynchronous type ends at any instruction of these frames, also at one that its
/// landing pads are not for: to run them would end the process.
#[test]
fn what_a_thread_may_be_cancelled_in_has_no_landing_pads() {
    let path = library();
    let landing_pads = landing_pads(&path);
    assert!(landing_pads.values().any(|has_any| *has_any), "the guard has some");
    let data = fs::read(path).unwrap();
    let file = ElfFile::<FileHeader64<Endianness>>::parse(&*data).unwrap();
    let (exported, inner) = CANCELLED_IN;
    let mut seen = BTreeSet::new();
    for symbol in file.dynamic_symbols().chain(file.symbols()).filter(|symbol| symbol.is_definition()) {
        let name = symbol.name().unwrap();
        // What is in the guard, a closure, may have some.
        let is_inner = !name.contains("closure") && inner.iter().any(|part| name.contains(part));
        if exported.contains(&name) || is_inner {
            assert_eq!(landing_pads.get(&symbol.address()), Some(&false), "landing pads of {name}");
            seen.insert(name);
        }
    }
    assert!(exported.iter().all(|name| seen.contains(name)), "{seen:?}");
}

/// Compiles a C file, links it with the library and runs it.
fn run(name: &str, options: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("program");
    let library = fs::canonicalize(library()).unwrap();
    symlink(&library, folder.path().join(SONAME)).unwrap();
    let compiled = Command::new("gcc")
        .args(["-std=gnu99", "-Wall", "-Wextra", "-Werror", "-pthread", "-I"])
        .arg(root().join("include"))
        .args(options)
        .arg(root().join("tests/abi").join(name))
        .arg(&library)
        .arg("-o")
        .arg(&program)
        .output()
        .unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let ran = Command::new(&program)
        .env("LD_LIBRARY_PATH", folder.path())
        .arg(folder.path().join("socket"))
        .output()
        .unwrap();
    let said = [ran.stdout, ran.stderr].concat();
    assert!(ran.status.success(), "{name}: {}: {}", ran.status, String::from_utf8_lossy(&said));
}

#[test]
fn a_program_can_refer_to_every_function() {
    run("interface.c", &["-DWITH_LIBRARY"]);
}

#[test]
fn calls_keep_what_they_owe_to_c() {
    run("calls.c", &[]);
    run("extension.c", &[]);
}
