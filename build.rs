//! Compiles the one C file, the variadic part of `vfu_log`, and names the shared
//! library.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=src/capi/log_shim.c");
    println!("cargo:rerun-if-env-changed=VFU_LOG_IN_C");
    println!("cargo:rustc-check-cfg=cfg(vfu_log_in_c)");
    let mut shim = cc::Build::new();
    shim.file("src/capi/log_shim.c").flag_if_supported("-std=gnu11").extra_warnings(true);
    // Set by who links the static library into what exports `vfu_log` (scripts/cargo-build).
    if env::var_os("VFU_LOG_IN_C").is_some() {
        shim.define("VFU_LOG_IN_C", None);
        println!("cargo:rustc-cfg=vfu_log_in_c");
    }
    shim.compile("vfu_log_shim");

    // The name that programs linked against the library ask the loader for.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libvfio-user.so.0");
}
