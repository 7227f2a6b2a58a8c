//! Logging. `vfu_log` takes a variable number of arguments, which stable Rust
//! cannot define: one in C does (`log_shim.c`), and comes back with the text.
//!
//! Where meson links the library, that one is `vfu_log` itself (`vfu_log_in_c`, see
//! `build.rs`). The shared library that cargo links exports what Rust defines, and
//! nothing else: there, the function here jumps to the one in C.

#[cfg(not(vfu_log_in_c))]
use std::arch::naked_asm;
use std::ffi::{CStr, c_char, c_int};

use super::{cast, guard, vfu_ctx_t, vfu_log_fn_t};
use crate::wire::Errno;

/// Longest message, in bytes, without its NUL; `log_shim.c` knows it too.
const MAX_MESSAGE: usize = 8191;

/// Chooses where log messages go. At first they go nowhere.
///
/// @vfu_ctx: the context
/// @log: takes the messages; NULL: there are none
/// @level: the least important messages to pass on: LOG_EMERG (0) to LOG_DEBUG
///         (7) of <syslog.h>
///
/// The texts of messages are no interface. A call or a request that is refused is
/// one line at LOG_ERR, with what was asked for and the rule that was broken; a set-up
/// that contradicts itself, and an unmap that finds nothing, are warned of; the loss
/// of a client is one line at LOG_INFO; each request is logged at LOG_DEBUG. Nothing
/// is formatted for a level that is off.
///
/// No refusals, and not logged, are EAGAIN, EBUSY, EINTR and ENOTCONN in a program
/// that calls again later, and what a function answers that is asked whether there
/// is something (vfu_addr_to_sgl(), vfu_pci_find_capability()). Functions that any
/// thread may call log each rule that they find broken once in the life of a context,
/// because it may be a guest that makes a device break it.
///
/// Threads: on the thread that uses the context, see the top of this file.
///
/// Returns 0, or -1 and sets errno:
///
///   EINVAL   no such level
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfu_setup_log(
    vfu_ctx: *mut vfu_ctx_t,
    log: vfu_log_fn_t,
    level: c_int,
) -> c_int {
    // SAFETY: C's promise for every handle: NULL or a live context.
    unsafe {
        guard::enter(vfu_ctx, "vfu_setup_log", |ctx| {
            if !(libc::LOG_EMERG..=libc::LOG_DEBUG).contains(&level) {
                return Err(Errno::EINVAL.because("there is no such level"));
            }
            *ctx.device().log.write() = log;
            ctx.set_log_level(log.map(|_| level));
            Ok(0)
        })
    }
}

/// Logs a message of the device with those of the library.
///
/// @vfu_ctx: the context
/// @level: LOG_EMERG (0) to LOG_DEBUG (7) of <syslog.h>
/// @fmt: format as for printf(), %m included, for a text of at most 8191 bytes:
///       a longer one is cut, and what is not UTF-8 is replaced; NULL is ignored
///
/// Leaves errno alone. May be called from any thread.
#[cfg(not(vfu_log_in_c))]
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub unsafe extern "C-unwind" fn vfu_log(vfu_ctx: *mut vfu_ctx_t, level: c_int, fmt: *const c_char) {
    #[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
    naked_asm!("jmp {}", sym vfu_log_shim);
    #[cfg(any(target_arch = "aarch64", target_arch = "arm", target_arch = "loongarch64"))]
    naked_asm!("b {}", sym vfu_log_shim);
    #[cfg(target_arch = "riscv64")]
    naked_asm!("tail {}", sym vfu_log_shim);
    // Callers in other modules come in at the top, with this address in r12, and expect
    // that the function finds its own TOC; those of this module come in behind that.
    #[cfg(target_arch = "powerpc64")]
    naked_asm!(
        "addis 2, 12, .TOC.-vfu_log@ha",
        "addi 2, 2, .TOC.-vfu_log@l",
        ".localentry vfu_log, .-vfu_log",
        "b {}",
        sym vfu_log_shim,
    );
    #[cfg(not(any(
        target_arch = "x86_64",
        target_arch = "x86",
        target_arch = "aarch64",
        target_arch = "arm",
        target_arch = "loongarch64",
        target_arch = "riscv64",
        target_arch = "powerpc64",
    )))]
    compile_error!(
        "cargo's shared library lacks vfu_log()'s jump for this machine; meson's library needs none"
    );
}

#[cfg(not(vfu_log_in_c))]
unsafe extern "C-unwind" {
    /// Only jumped to: the arguments stay where the caller put them.
    fn vfu_log_shim();
}

/// For the shim: whether a message would go anywhere.
///
/// cbindgen:ignore
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn vfu_log_is_enabled(vfu_ctx: *mut vfu_ctx_t, level: c_int) -> bool {
    // SAFETY: C's promise for every handle: NULL or a live context.
    unsafe { guard::enter_silent(vfu_ctx, "vfu_log", |ctx| Ok(ctx.log_enabled(level))) }
}

/// For the shim: passes a formatted message on.
///
/// cbindgen:ignore
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn vfu_log_text(
    vfu_ctx: *mut vfu_ctx_t,
    level: c_int,
    text: *mut c_char,
    cut: bool,
) {
    // SAFETY: the shim's buffer, all of it; nobody else uses it.
    let bytes = unsafe { cast::array_mut(text.cast::<u8>(), MAX_MESSAGE + 1) };
    // SAFETY: C's promise for every handle: NULL or a live context.
    unsafe {
        guard::enter(vfu_ctx, "vfu_log", |ctx| {
            if let Some(text) = make_utf8(bytes?, cut) {
                ctx.log(level, text);
            }
            Ok(())
        })
    }
}

/// Makes the text at the start of `bytes`, up to the first NUL, valid UTF-8: an
/// invalid byte becomes a question mark, and if the text was `cut`, an unfinished
/// character at its end goes.
fn make_utf8(bytes: &mut [u8], cut: bool) -> Option<&CStr> {
    let mut end = bytes.iter().position(|&b| b == 0)?;
    let mut done = 0;
    while let Some(Err(error)) = bytes.get(done..end).map(str::from_utf8) {
        let bad = done + error.valid_up_to();
        match error.error_len() {
            None if cut => end = bad,
            length => {
                done = length.map_or(end, |n| bad + n);
                bytes.get_mut(bad..done)?.fill(b'?');
            }
        }
    }
    *bytes.get_mut(end)? = 0;
    CStr::from_bytes_until_nul(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cleaned(text: &[u8], cut: bool) -> String {
        let mut bytes = text.to_vec();
        bytes.push(0);
        make_utf8(&mut bytes, cut).unwrap().to_str().unwrap().to_owned()
    }

    #[test]
    fn valid_text_stays() {
        assert_eq!(cleaned("größe: 3 €".as_bytes(), false), "größe: 3 €");
        assert_eq!(cleaned("größe: 3 €".as_bytes(), true), "größe: 3 €");
    }

    #[test]
    fn invalid_bytes_become_question_marks() {
        assert_eq!(cleaned(b"a\xffb\xc3(\xe2\x82", false), "a?b?(??");
    }

    #[test]
    fn a_character_cut_in_two_goes() {
        assert_eq!(cleaned(b"a\xffb\xe2\x82", true), "a?b");
        assert_eq!(cleaned(b"\xe2\x82", true), "");
    }

    #[test]
    fn a_text_without_end_is_none() {
        let mut text = *b"ab";
        assert!(make_utf8(&mut text, false).is_none());
    }

    proptest! {
        #[test]
        fn any_bytes_become_text_of_the_same_length(text: Vec<u8>) {
            let length = text.iter().position(|&b| b == 0).unwrap_or(text.len());
            prop_assert_eq!(cleaned(&text, false).len(), length);
            prop_assert!(cleaned(&text, true).len() <= length);
            prop_assert!(cleaned(&text, true).len() + 3 >= length);
        }

        #[test]
        fn any_text_cut_anywhere_is_a_prefix(text in "[^\0]*", at: prop::sample::Index) {
            let cut = at.index(text.len() + 1);
            prop_assert!(text.starts_with(&cleaned(&text.as_bytes()[..cut], true)));
        }
    }
}
