#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vfio_user_fuzz::migration::run(data));
