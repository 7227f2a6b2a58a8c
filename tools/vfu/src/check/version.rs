//! `VFIO_USER_VERSION`

use serde_json::{Value, json};
use vfio_user::wire::{Command, VERSION_MAJOR, VERSION_MINOR, Version, limits};
use zerocopy::IntoBytes;

use super::bench::Bench;
use super::link::{Answer, Link, Trouble};
use super::{Check, Outcome, ROBUSTNESS, Stop, words};

const VERSION: &str = "VFIO_USER_VERSION";
const HANDSHAKE: &str = "VFIO_USER_VERSION: Version Data Format";

pub const CHECKS: &[Check] = &[
    Check::new("minor", VERSION, "the minor version is at the most what is proposed", minor).own(),
    Check::new("major", VERSION, "a major version that it does not speak is not agreed on", major).own(),
    Check::new("no-data", VERSION, "the version data may be missing", no_data).own(),
    Check::new("no-capabilities", HANDSHAKE, "the capabilities may be missing", no_capabilities).own(),
    Check::new("json", HANDSHAKE, "the reply's data is JSON that ends in a NUL", is_json).own(),
    Check::new("capabilities", HANDSHAKE, "the reply's capabilities are of their types", types).own(),
    Check::new("subset", VERSION, "the capabilities are a subset of those proposed", subset).own(),
    Check::new("unknown-capability", VERSION, "a capability that it does not know is left out", unknown)
        .own(),
    Check::new("small-limits", HANDSHAKE, "small limits of the client are agreed on", small_limits).own(),
    Check::new("twin-socket", HANDSHAKE, "a second socket that is granted comes along", twin_socket).own(),
    Check::new("long-json", ROBUSTNESS, "long version data is read", long_json).own(),
    Check::new("in-pieces", ROBUSTNESS, "the proposal may come in pieces", in_pieces).own(),
    Check::new("malformed", ROBUSTNESS, "a malformed proposal does no harm", malformed).own(),
    Check::new("first", ROBUSTNESS, "another command in its place does no harm", first).own(),
    Check::new("again", ROBUSTNESS, "a second proposal does no harm", again).own(),
];

/// A proposal's payload.
fn proposal(major: u16, minor: u16, data: &[u8]) -> Vec<u8> {
    [Version { major, minor }.as_bytes(), data].concat()
}

/// The same with these capabilities.
fn with(capabilities: &Value) -> Vec<u8> {
    let text = format!("{}\0", json!({ "capabilities": capabilities }));
    proposal(VERSION_MAJOR, VERSION_MINOR, text.as_bytes())
}

/// What virtual machine monitors propose.
fn usual() -> Value {
    json!({
        "max_msg_fds": 16,
        "max_data_xfer_size": limits::MAX_DATA_XFER_SIZE,
        "pgsizes": 4096,
        "max_dma_maps": limits::MAX_DMA_MAPS,
        "write_multiple": true,
    })
}

/// A connection on which `payload` was answered well, and the answer.
fn propose(b: &mut Bench, payload: &[u8], what: &str) -> Outcome<(Link, Answer)> {
    let mut link = b.fresh()?;
    let answer = link.request(Command::Version, payload, what)?.done()?;
    Ok((link, answer))
}

/// The capabilities of the reply; an empty object where there are none.
fn capabilities(answer: &Answer) -> Outcome<Value> {
    let fail = |text: &str| Err(Stop::fail(format!("{}: {text}", answer.what)));
    let none = json!({});
    let text = match answer.body.get(size_of::<Version>()..) {
        None | Some([]) => return Ok(none),
        Some([text @ .., 0]) => text,
        Some(_) => return fail("the reply's data does not end in a NUL"),
    };
    match serde_json::from_slice::<Value>(text) {
        Err(e) => fail(&format!("the reply's data is no JSON: {e}")),
        Ok(Value::Object(members)) => match members.get("capabilities") {
            None => Ok(none),
            Some(capabilities) if capabilities.is_object() => Ok(capabilities.clone()),
            Some(_) => fail("the reply's 'capabilities' is no object"),
        },
        Ok(_) => fail("the reply's data is no JSON object"),
    }
}

fn minor(b: &mut Bench) -> Outcome {
    for minor in [0, 1, 2, 77] {
        let what = format!("a proposal of 0.{minor}");
        let text = format!("{}\0", json!({ "capabilities": usual() }));
        let (mut link, answer) = propose(b, &proposal(0, minor, text.as_bytes()), &what)?;
        let version = answer.payload::<Version>()?;
        if version.major != 0 || version.minor > minor {
            let text = format!("{what}: the server answers {}.{}", version.major, version.minor);
            return Err(Stop::fail(text));
        }
        link.in_step(&what)?;
    }
    Ok(())
}

/// The server has closed the connection, or answered with an error.
fn turned_down(link: &mut Link, payload: &[u8], what: &str) -> Outcome<bool> {
    let (header, bytes) = link.command(Command::Version as u16, 0, payload);
    link.send(&bytes, &[])?;
    Ok(link.reply_or_end(&header, what)?.is_none_or(|answer| answer.is_error()))
}

fn major(b: &mut Bench) -> Outcome {
    let mut link = b.fresh()?;
    let what = "a proposal of 7777.0";
    match turned_down(&mut link, &proposal(7777, 0, b"{}\0"), what)? {
        true => Ok(()),
        false => Err(Stop::fail(format!("{what}: agreed on"))),
    }
}

fn no_data(b: &mut Bench) -> Outcome {
    let (mut link, _) = propose(b, &proposal(0, 0, b""), "a proposal without data")?;
    link.in_step("a proposal without data")
}

fn no_capabilities(b: &mut Bench) -> Outcome {
    for text in ["{}", "{\"capabilities\": {}}"] {
        let what = format!("a proposal of '{text}'");
        let (mut link, _) = propose(b, &proposal(0, 0, format!("{text}\0").as_bytes()), &what)?;
        link.in_step(&what)?;
    }
    Ok(())
}

fn is_json(b: &mut Bench) -> Outcome {
    let (_, answer) = propose(b, &with(&usual()), "a usual proposal")?;
    capabilities(&answer).map(|_| ())
}

fn types(b: &mut Bench) -> Outcome {
    let (_, answer) = propose(b, &with(&usual()), "a usual proposal")?;
    let capabilities = capabilities(&answer)?;
    for (name, value) in capabilities.as_object().into_iter().flatten() {
        let fits = match name.as_str() {
            "max_msg_fds" | "max_data_xfer_size" | "pgsizes" | "max_dma_maps" => value.is_u64(),
            "write_multiple" => value.is_boolean(),
            "twin_socket" | "migration" => value.is_object(),
            _ => true,
        };
        if !fits {
            return Err(Stop::fail(format!("the capability '{name}' is {value}")));
        }
    }
    if capabilities.get("max_data_xfer_size").is_some_and(|size| size.as_u64() == Some(0)) {
        return Err(Stop::fail("max_data_xfer_size is 0: nothing could be transferred"));
    }
    if capabilities.get("pgsizes").is_some_and(|sizes| sizes.as_u64() == Some(0)) {
        return Err(Stop::fail("pgsizes is 0: nothing could be mapped"));
    }
    Ok(())
}

/// Most servers always tell their own limits, which clients put up with.
fn subset(b: &mut Bench) -> Outcome {
    let (_, answer) = propose(b, &with(&json!({})), "a proposal of no capability")?;
    let mut more = Vec::new();
    for name in capabilities(&answer)?.as_object().into_iter().flatten().map(|(name, _)| name) {
        match name.as_str() {
            "twin_socket" | "write_multiple" => {
                return Err(Stop::fail(format!("'{name}' is in the reply to a proposal of no capability")));
            }
            _ => more.push(name.clone()),
        }
    }
    if !answer.fds.is_empty() {
        return Err(Stop::fail("the reply to a proposal of no capability brings a descriptor"));
    }
    if !more.is_empty() {
        b.warn(format!("the reply to a proposal of no capability has {}", more.join(", ")));
    }
    Ok(())
}

fn unknown(b: &mut Bench) -> Outcome {
    let mut proposed = usual();
    proposed["vfu_check"] = json!({ "unknown": [1, null, "two"] });
    let what = "a proposal with an unknown capability";
    let (mut link, answer) = propose(b, &with(&proposed), what)?;
    if capabilities(&answer)?.get("vfu_check").is_some() {
        return Err(Stop::fail(format!("{what}: agreed on")));
    }
    link.in_step(what)
}

fn small_limits(b: &mut Bench) -> Outcome {
    let what = "a proposal of max_msg_fds 1, max_data_xfer_size 4096";
    let regions: Vec<u32> = b.facts().regions.iter().map(|r| r.index).collect();
    let (mut link, _) = propose(b, &with(&json!({ "max_msg_fds": 1, "max_data_xfer_size": 4096 })), what)?;
    for index in regions {
        let request = words(&[4096, 0, index, 0, 0, 0, 0, 0]);
        let what = format!("DEVICE_GET_REGION_INFO of region {index}, to a client that takes one descriptor");
        let answer = link.request(Command::DeviceGetRegionInfo, &request, &what)?;
        if answer.fds.len() > 1 {
            return Err(Stop::fail(format!("{what}: {} came", answer.fds.len())));
        }
    }
    link.in_step(what)
}

fn twin_socket(b: &mut Bench) -> Outcome {
    let mut proposed = usual();
    proposed["twin_socket"] = json!({ "supported": true });
    let what = "a proposal with twin_socket";
    let (mut link, answer) = propose(b, &with(&proposed), what)?;
    let capabilities = capabilities(&answer)?;
    let granted = capabilities.get("twin_socket");
    if granted.and_then(|t| t.get("supported")) != Some(&Value::Bool(true)) {
        return match answer.fds.is_empty() {
            true => Err(Stop::skip("the server has no second socket")),
            false => Err(Stop::fail(format!("{what}: a descriptor came, but the socket is not granted"))),
        };
    }
    let index = granted.and_then(|t| t.get("fd_index")).and_then(Value::as_u64);
    let Some(index) = index.and_then(|n| usize::try_from(n).ok()) else {
        return Err(Stop::fail(format!("{what}: granted without fd_index")));
    };
    let Some(fd) = answer.fds.get(index) else {
        let text = format!("{what}: fd_index is {index}, but {} descriptors came", answer.fds.len());
        return Err(Stop::fail(text));
    };
    if rustix::net::sockopt::socket_type(fd) != Ok(rustix::net::SocketType::STREAM) {
        return Err(Stop::fail(format!("{what}: the descriptor is no stream socket")));
    }
    link.in_step(what)
}

fn long_json(b: &mut Bench) -> Outcome {
    for size in [4_000, 40_000] {
        let mut proposed = usual();
        proposed["vfu_check"] = Value::from("x".repeat(size));
        let what = format!("a proposal with {size} bytes of an unknown capability");
        let (mut link, _) = propose(b, &with(&proposed), &what)?;
        link.in_step(&what)?;
    }
    Ok(())
}

fn in_pieces(b: &mut Bench) -> Outcome {
    const PAUSE: std::time::Duration = std::time::Duration::from_millis(2);
    let what = "a proposal in pieces";
    let mut link = b.fresh()?;
    let (header, bytes) = link.command(Command::Version as u16, 0, &with(&usual()));
    for piece in bytes.chunks(7) {
        link.send(piece, &[])?;
        std::thread::sleep(PAUSE);
    }
    link.reply(&header, what)?.done()?;
    link.in_step(what)
}

fn malformed(b: &mut Bench) -> Outcome {
    let payloads: [(&str, Vec<u8>); 7] = [
        ("no payload", vec![]),
        ("3 bytes", vec![0; 3]),
        ("data that does not end in a NUL", proposal(0, 0, b"{}")),
        ("data that is a NUL alone", proposal(0, 0, b"\0")),
        ("data that is no JSON", proposal(0, 0, b"{\"capabilities\0")),
        ("data that is no UTF-8", proposal(0, 0, b"{\"\xff\xfe\": 1}\0")),
        ("capabilities that are no object", proposal(0, 0, b"{\"capabilities\": 5}\0")),
    ];
    for (what, payload) in payloads {
        let mut link = b.fresh()?;
        if !turned_down(&mut link, &payload, &format!("a proposal with {what}"))? {
            b.warn(format!("a proposal with {what} is agreed on"));
        }
        // That it is still there shows at the next one.
        drop(link);
    }
    Ok(())
}

fn first(b: &mut Bench) -> Outcome {
    let what = "DEVICE_GET_INFO before VERSION";
    let mut link = b.fresh()?;
    let (header, bytes) = link.command(Command::DeviceGetInfo as u16, 0, &words(&[16, 0, 0, 0]));
    link.send(&bytes, &[])?;
    if link.reply_or_end(&header, what)?.is_some_and(|answer| !answer.is_error()) {
        b.warn(format!("{what} is executed"));
    }
    Ok(())
}

fn again(b: &mut Bench) -> Outcome {
    let what = "a second VERSION";
    let mut link = b.connect()?;
    let (header, bytes) = link.command(Command::Version as u16, 0, &with(&usual()));
    link.send(&bytes, &[])?;
    match link.reply_or_end(&header, what)? {
        None => Ok(()),
        Some(answer) if answer.is_error() => match link.in_step(what) {
            // It has said why.
            Err(Stop::Trouble(Trouble::Gone(_))) => Ok(()),
            outcome => outcome,
        },
        Some(_) => link.in_step(what),
    }
}
