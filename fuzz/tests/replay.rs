//! The committed corpora, without a fuzzer: every input that was of interest
//! once is tried with every build.

use std::fs;
use std::path::Path;

fn replay(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let mut inputs: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    assert!(inputs.len() >= 12, "{target}: only {} inputs", inputs.len());
    for input in inputs {
        println!("{}", input.display());
        run(&fs::read(input).unwrap());
    }
}

/// One after the other: what is counted in one (open descriptors) must not
/// change by another.
#[test]
fn corpora() {
    replay("capabilities", vfio_user_fuzz::capabilities::run);
    replay("config_space", vfio_user_fuzz::config_space::run);
    replay("dma", vfio_user_fuzz::dma::run);
    replay("migration", vfio_user_fuzz::migration::run);
    replay("context", vfio_user_fuzz::context::run);
    replay("hand_over", vfio_user_fuzz::hand_over::run);
}
