//! Compiles the one C file and gives cargo's own shared library its soname.

fn main() {
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libvfio-user.so.0");
}
