//! Compiles the one C file, the variadic part of `vfu_log`, and names the shared
//! library.

fn main() {
    println!("cargo:rerun-if-changed=src/capi/log_shim.c");
    cc::Build::new()
        .file("src/capi/log_shim.c")
        .flag_if_supported("-std=gnu11")
        .extra_warnings(true)
        .compile("vfu_log_shim");

    // The name that programs linked against the library ask the loader for.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libvfio-user.so.0");
}
