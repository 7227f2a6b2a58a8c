//! `include/libvfio-user.h` and `include/libvfio-user-ext.h` are what `src/capi`
//! generates: this test fails where they differ, and writes the headers anew when
//! `UPDATE_HEADER` is set.
//!
//! cbindgen prints the declarations, each with its doc comment. It knows neither
//! C's function types, nor enumerations without a tag, nor variadic functions,
//! and has an order of its own. So its output is cut into declarations, and
//! a template in `src/capi/header` for each header says where each goes. A line
//! of a template that starts with `@` stands for a declaration:
//!
//! - `@name`: as cbindgen prints it,
//! - `@typedef name`: a structure or enumeration that has a name but no tag,
//! - `@anonymous name`: an enumeration that has neither,
//! - `@callback name`: a function type, made from the pointer type; parameters
//!   of that type become pointers to it,
//! - `@variadic name`: a function with `...` after its parameters.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The headers, by the name that they and their templates have.
const HEADERS: [&str; 2] = ["libvfio-user.h", "libvfio-user-ext.h"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn rust_files(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join(folder)).unwrap_or_else(|e| panic!("{folder}: {e}"));
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "rs"))
        .collect();
    files.sort();
    files
}

/// A line of the template: C, or what stands for a declaration.
enum Line<'a> {
    Text(&'a str),
    Declaration { form: &'a str, name: &'a str },
}

fn lines(template: &str) -> impl Iterator<Item = Line<'_>> {
    template.lines().map(|line| match line.strip_prefix('@') {
        None => Line::Text(line),
        Some(rest) => {
            let (form, name) = rest.split_once(' ').unwrap_or(("", rest));
            Line::Declaration { form, name }
        }
    })
}

/// What cbindgen prints for all headers, by name.
fn declarations(templates: &[String]) -> BTreeMap<String, String> {
    let mut config = cbindgen::Config::from_file(root().join("src/capi/header/cbindgen.toml")).unwrap();
    for line in templates.iter().flat_map(|template| lines(template)) {
        if let Line::Declaration { name, .. } = line {
            config.export.include.push(name.to_owned());
        }
    }
    let mut builder = cbindgen::Builder::new().with_config(config);
    for file in ["src/capi", "src/capi/ext"].into_iter().flat_map(rust_files) {
        builder = builder.with_src(file);
    }
    let mut text = Vec::new();
    builder.generate().expect("cbindgen understands src/capi").write(&mut text);
    let text = String::from_utf8(text).unwrap();
    text.split("\n\n")
        .map(str::trim)
        .filter(|block| !block.is_empty())
        .map(|block| (declared_name(block).to_owned(), tidy(block)))
        .collect()
}

/// The C code of a declaration, behind its comment.
fn code(block: &str) -> &str {
    match block.strip_prefix("/**").and_then(|rest| rest.split_once("*/")) {
        Some((_, code)) => code.trim_start(),
        None => block,
    }
}

/// The name in a `#define`, in a structure or enumeration, in a pointer to a
/// function, or else the last word before the parameters or the end.
fn declared_name(block: &str) -> &str {
    let code = code(block);
    let second_word = || code.split_whitespace().nth(1).unwrap_or_default();
    if code.starts_with("#define") {
        return second_word();
    }
    if let Some((_, pointer)) = code.split_once("(*").filter(|_| code.starts_with("typedef")) {
        return pointer.split(')').next().unwrap_or_default();
    }
    if code.ends_with("};") {
        return second_word();
    }
    let end = code.find(['(', ';']).unwrap_or(code.len());
    code[..end].rsplit([' ', '*']).next().unwrap_or_default()
}

/// Comments of one line on one line, and tabs for indentation.
fn tidy(block: &str) -> String {
    let mut out: Vec<String> = Vec::new();
    let mut rest = block.lines().peekable();
    while let Some(line) = rest.next() {
        let mut line = line.trim_end().to_owned();
        if line.trim() == "/**" {
            let ahead: Vec<&str> = rest.clone().take(2).collect();
            if let [text, end] = ahead[..]
                && end.trim() == "*/"
            {
                line = format!("{} {} */", line, text.trim().trim_start_matches('*').trim());
                rest.nth(1);
            }
        }
        let spaces = line.len() - line.trim_start_matches(' ').len();
        line =
            format!("{}{}{}", "\t".repeat(spaces / 8), " ".repeat(spaces % 8), line.trim_start_matches(' '));
        out.push(union_of_flags(&line).unwrap_or(line));
    }
    out.join("\n")
}

/// A `#define` of many flags, which cbindgen nests two by two: one on each line.
fn union_of_flags(line: &str) -> Option<String> {
    let (name, value) = line.strip_prefix("#define ")?.split_once(' ')?;
    let flags: Vec<&str> = value.split('|').map(|flag| flag.trim_matches(['(', ')', ' '])).collect();
    (flags.len() > 2).then(|| format!("#define {name} \\\n\t({})", flags.join(" | \\\n\t ")))
}

/// A declaration in the form that the template asks for.
fn in_form(form: &str, name: &str, block: &str) -> String {
    let (comment, code) = block.split_at(block.len() - code(block).len());
    let kind = code.split(' ').next().unwrap_or_default();
    let body = || code.strip_prefix(&format!("{kind} {name} ")).unwrap_or_else(|| panic!("{name}: no body"));
    let code = match form {
        "" => code.to_owned(),
        "typedef" => format!("typedef {kind} {} {name};", body().trim_end_matches(';')),
        "anonymous" => format!("{kind} {}", body()),
        "callback" => code.replacen(&format!("(*{name})"), &format!("({name})"), 1),
        "variadic" => {
            format!("{}, ...);", code.strip_suffix(");").unwrap_or_else(|| panic!("{name}: no end")))
        }
        other => panic!("@{other} {name}: no such form"),
    };
    format!("{comment}{code}")
}

/// A header, from its template and what it takes of the declarations.
fn fill_in(template: &str, declarations: &mut BTreeMap<String, String>) -> String {
    let mut header = String::new();
    for line in lines(template) {
        match line {
            Line::Text(text) => header.push_str(text),
            Line::Declaration { form, name } => {
                let block = declarations.remove(name).unwrap_or_else(|| panic!("nothing generates {name}"));
                header.push_str(&in_form(form, name, &block));
            }
        }
        header.push('\n');
    }
    for line in lines(template) {
        match line {
            Line::Declaration { form: "callback", name } => {
                header = header.replace(&format!("{name} "), &format!("{name} *"));
            }
            Line::Declaration { form: "typedef", name } => {
                header = header.replace(&format!("struct {name} "), &format!("{name} "));
            }
            _ => {}
        }
    }
    header
}

#[test]
fn the_headers_are_what_the_source_generates() {
    let templates = HEADERS.map(|name| read(&format!("src/capi/header/{name}.in")));
    let mut declarations = declarations(&templates);
    for (name, template) in HEADERS.iter().zip(&templates) {
        let (path, generated) = (format!("include/{name}"), fill_in(template, &mut declarations));
        if std::env::var_os("UPDATE_HEADER").is_some() {
            fs::write(root().join(&path), &generated).unwrap();
        }
        let committed = read(&path);
        for (number, (is, should)) in committed.lines().zip(generated.lines()).enumerate() {
            assert_eq!(is, should, "{path}:{}: run with UPDATE_HEADER=1 to write it anew", number + 1);
        }
        assert_eq!(committed, generated, "{path} is not complete: run with UPDATE_HEADER=1");
    }
    let left: Vec<&String> = declarations.keys().collect();
    assert!(left.is_empty(), "no template has a place for {left:?}");
}

/// Functions of the header: name and comment, white space as one blank.
fn functions(header: &str) -> BTreeMap<&str, String> {
    let blocks = header.split("\n\n").map(str::trim).filter(|block| block.starts_with("/**"));
    let is_function = |block: &&str| {
        let code = code(block);
        code.ends_with(");") && !code.contains('{') && !code.starts_with("typedef")
    };
    blocks
        .filter(is_function)
        .map(|block| {
            let comment = block.strip_suffix(code(block)).unwrap_or_default();
            let words = comment.split_whitespace().filter(|word| *word != "*");
            (declared_name(block), words.collect::<Vec<_>>().join(" "))
        })
        .collect()
}

#[test]
fn every_function_says_on_which_threads_it_may_be_called() {
    const FROM_ANY: &str = "May be called from any thread";
    let [header, extensions] = HEADERS.map(|name| read(&format!("include/{name}")));
    let (functions, extensions) = (functions(&header), functions(&extensions));
    assert_eq!(functions.len(), 34);
    assert!(!extensions.is_empty() && extensions.keys().all(|name| name.starts_with("vfux_")));
    for (name, comment) in functions.iter().chain(&extensions) {
        let says = ["Threads: on the thread that uses the context", "Threads: any, at any time.", FROM_ANY];
        assert!(
            says.iter().filter(|words| comment.contains(*words)).count() == 1 || *name == "vfu_destroy_ctx",
            "{name}: on which threads?"
        );
    }
    // Those that are safe beside the thread that runs the context are listed at the top.
    let (_, top) = header.split_once(" * Threads. ").unwrap();
    let (top, _) = top.split_once(" may run on other threads").unwrap();
    let listed: BTreeSet<&str> =
        top.split([' ', '\n']).filter_map(|word| word.split_once("()")).map(|(name, _)| name).collect();
    let from_any = functions.iter().filter(|(_, comment)| comment.contains(FROM_ANY)).map(|(name, _)| *name);
    assert_eq!(listed, from_any.collect());
}
